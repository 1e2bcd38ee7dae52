from __future__ import annotations

from shared.retry_budget import CALLS_PER_RETRY, SAVED_RETRIES, RetryBudget


def retries_of(budget: RetryBudget, calls: int) -> int:
    """Return how many calls, all of which fail, may be repeated."""
    retries = 0
    for _ in range(calls):
        budget.earn()
        retries += budget.spend()
    return retries


def test_outage() -> None:
    """Of many calls that fail, a tenth is repeated, and what was saved up."""
    most = 1000 / CALLS_PER_RETRY + SAVED_RETRIES

    assert most - 1 <= retries_of(RetryBudget(), 1000) <= most


def test_few_calls() -> None:
    """A process that has just started may repeat its first calls."""
    assert SAVED_RETRIES == retries_of(RetryBudget(), SAVED_RETRIES)


def test_nothing_left() -> None:
    """A retry that is refused costs nothing, and ten calls pay for the next one."""
    budget = RetryBudget()
    while budget.spend():
        pass

    for _ in range(CALLS_PER_RETRY - 1):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


def test_good_times() -> None:
    """What is saved up has a limit, however long all goes well."""
    budget = RetryBudget()
    for _ in range(10_000):
        budget.earn()

    assert SAVED_RETRIES == sum(budget.spend() for _ in range(2 * SAVED_RETRIES))

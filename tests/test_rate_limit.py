from __future__ import annotations

from dataclasses import dataclass

import pytest

from shared import rate_limit
from shared.errors import RateLimitedError
from shared.rate_limit import RateLimit


@dataclass
class Seconds:
    """A clock that stands still until it is moved."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def limit(seconds: Seconds) -> RateLimit:
    return RateLimit(clock=seconds)


def taken(limit: RateLimit, key: str, times: int) -> int:
    """Return how many of so many requests at once are let through."""
    passed = 0
    for _ in range(times):
        try:
            limit.take(key)
        except RateLimitedError:
            continue
        passed += 1
    return passed


def test_burst_then_wait(limit: RateLimit, seconds: Seconds) -> None:
    """Of 200 requests in one minute 90 pass: 60 at once, and 30 more in the minute."""
    assert 60 == taken(limit, "ada", 100)
    seconds.now += 60
    assert 30 == taken(limit, "ada", 100)


def test_others_are_not_held_up(limit: RateLimit) -> None:
    """One person over the limit does not affect others."""
    taken(limit, "ada", 100)

    assert 60 == taken(limit, "grace", 60)


def test_retry_after(limit: RateLimit, seconds: Seconds) -> None:
    """A caller who waits as long as Retry-After says gets through."""
    taken(limit, "ada", 60)
    with pytest.raises(RateLimitedError) as refused:
        limit.take("ada")
    assert 2 == refused.value.retry_after

    seconds.now += refused.value.retry_after
    limit.take("ada")


def test_refusals_cost_nothing(limit: RateLimit, seconds: Seconds) -> None:
    """Two devices of one person that take turns every second still share 30 requests a minute."""
    taken(limit, "ada", 60)
    passed = 0
    for _ in range(60):
        seconds.now += 1
        passed += taken(limit, "ada", 1)

    assert 30 == passed


def test_saves_up_no_more_than_a_burst(limit: RateLimit, seconds: Seconds) -> None:
    """A long pause allows one burst, not more."""
    limit.take("ada")
    seconds.now += 86_400

    assert 60 == taken(limit, "ada", 100)


def test_memory_is_bounded(limit: RateLimit) -> None:
    """The person unseen for longest is forgotten, the others are not."""
    for name in ("first", "second"):
        taken(limit, name, 60)
    for position in range(rate_limit.MAX_REMEMBERED - 1):
        limit.take(position)

    assert 0 == taken(limit, "second", 1)
    assert 60 == taken(limit, "first", 60)

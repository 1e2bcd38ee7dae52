"""Calls, failures, cancellations and time in any order, in an asyncio loop that waits for nothing.

It is asyncio's own, since what counts is what it does when two things happen at the same moment.
"""

from __future__ import annotations

import asyncio
import selectors
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.acs.gate import Gate
from shared.errors import (
    BrokerError,
    IdentityGoneError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
)
from shared.identifiers import Person
from shared.quota import PAUSE_SECONDS, WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from shared.quota import Quota

Result = TypeVar("Result")

ADA = Person("contoso", "ada")
# Few, so that much happens at the same moment.
MOMENTS = st.sampled_from([0, 1, WAIT_SECONDS, 4])


class _Skip(selectors.DefaultSelector):
    """Instead of waiting, sets the clock of its loop forward."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.passed += timeout or 0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while it has nothing to do."""

    def __init__(self) -> None:
        self._skip = _Skip()
        super().__init__(self._skip)

    def time(self) -> float:
        return self._skip.passed


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in such a loop, in which no callback may fail."""
    failures: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, failure: failures.append(failure))
        result = runner.run(main)
    assert not failures
    return result


@dataclass(frozen=True)
class Call:
    """Somebody asks, and does something with the turn.

    Attributes:
        after: when, in seconds since the one before.
        person: who.
        expected: for how long a row is read before that; None: not at all.
        takes: how long the call takes.
        error: how it ends.
        skips: whether no call is made after all.
        cancels: which of the others is given up at that moment, counted from the last.
    """

    after: float
    person: Person
    expected: float | None
    takes: float
    error: BrokerError | None
    skips: bool
    cancels: int | None

    async def make(self, gate: Gate) -> None:
        """Make the call; end as it ends."""
        if self.expected is not None:
            with gate.expect(self.person):
                await asyncio.sleep(self.expected)
        asked = asyncio.get_running_loop().time()
        async with gate.turn(self.person) as turn:
            assert asyncio.get_running_loop().time() <= asked + WAIT_SECONDS
            if self.skips:
                turn.skip()
                return
            await asyncio.sleep(self.takes)
            if self.error is not None:
                raise self.error


PEOPLE = st.builds(Person, st.sampled_from(["contoso", "fabrikam"]), st.sampled_from("abc"))
ERRORS = st.sampled_from(
    [
        *(None, None, None, IdentityGoneError(), UpstreamTimeoutError("TimeoutError")),
        *(UpstreamThrottledError("ACS answered 429", retry_after=wait) for wait in (1, 2.5, 90)),
    ]
)
CALLS = st.builds(
    Call,
    after=st.one_of(st.just(0), st.just(0), MOMENTS),
    person=PEOPLE,
    expected=st.one_of(st.none(), st.none(), MOMENTS),
    takes=MOMENTS,
    error=ERRORS,
    skips=st.sampled_from([False, False, True]),
    cancels=st.one_of(st.none(), st.integers(1, 5)),
)


async def make_all(gate: Gate, calls: list[Call]) -> None:
    """Make all calls, and wait for the end of the last one."""
    tasks = []
    for call in calls:
        if call.after:
            await asyncio.sleep(call.after)
        tasks.append(asyncio.create_task(call.make(gate)))
        if call.cancels is not None:
            tasks[-min(call.cancels, len(tasks))].cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        expected = BrokerError | asyncio.CancelledError | None
        assert isinstance(ended, expected), ended


def quota_of(gate: Gate) -> Quota[Any]:
    """Return the quota of a gate."""
    return gate._quota  # noqa: SLF001 - from outside, one lost turn of a hundred cannot be seen


def counts_of(gate: Gate) -> list[object]:
    """Return how many turns there are, and who has a place; each is empty if nobody has any."""
    state = vars(quota_of(gate))
    names = ("_running", "_running_of", "_waiting", "_places", "_places_of")
    return [state[name] for name in names]


def is_empty(gate: Gate) -> bool:
    """Return whether nobody has, waits for, or is expected to ask for a turn."""
    return not any(counts_of(gate))


@settings(max_examples=300)
@given(st.lists(CALLS, max_size=40), st.sampled_from([10, 100, 1000]))
def test_any_order(calls: list[Call], published: int) -> None:
    """After everything has ended, nothing is left of it, and calls are made again."""

    async def main() -> None:
        gate = Gate("issue", published=published)
        await make_all(gate, calls)
        assert is_empty(gate)

        await asyncio.sleep(PAUSE_SECONDS[1])
        async with gate.turn(ADA):
            pass
        assert is_empty(gate)
        assert quota_of(gate).refusal(ADA, asyncio.get_running_loop().time()) is None

    run(main())


async def one_at_a_time() -> Gate:
    """Return a gate that lets one call through, since ACS has just limited us."""
    gate = Gate("issue")
    with suppress(UpstreamThrottledError):
        async with gate.turn(ADA):
            raise UpstreamThrottledError("ACS answered 429", retry_after=1)
    await asyncio.sleep(PAUSE_SECONDS[0])
    return gate


async def one_call(gate: Gate) -> None:
    """Make a call for Ada."""
    async with gate.turn(ADA):
        pass


class TestSameMoment:
    """A cancellation, and what the request has waited for."""

    def test_turn_and_cancellation(self) -> None:
        """The turn of a request that is given up at that moment is the next one's."""

        async def main() -> None:
            gate = await one_at_a_time()
            async with gate.turn(ADA):
                waiting = asyncio.create_task(one_call(gate))
                await asyncio.sleep(2)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert is_empty(gate)

        run(main())

    def test_cancellation_and_turn(self) -> None:
        """A request that has just been given up gets no turn."""

        async def main() -> None:
            gate = await one_at_a_time()
            async with gate.turn(ADA):
                waiting = asyncio.create_task(one_call(gate))
                await asyncio.sleep(2)
                waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert is_empty(gate)

        run(main())

    def test_time_limit_and_cancellation(self) -> None:
        """A request that is given up when it has waited too long has had no turn to give back."""

        async def main() -> None:
            gate = await one_at_a_time()
            async with gate.turn(ADA):
                waiting = asyncio.create_task(one_call(gate))
                await asyncio.sleep(0)
                asyncio.get_running_loop().call_later(WAIT_SECONDS, waiting.cancel)
                await asyncio.wait([waiting])
                assert waiting.cancelled()
                assert 1 == counts_of(gate)[0]
            assert is_empty(gate)

        run(main())

    def test_turn_and_time_limit(self) -> None:
        """A request whose turn comes at the last moment has it."""

        async def main() -> None:
            gate, loop = await one_at_a_time(), asyncio.get_running_loop()
            await gate.turn(ADA).__aenter__()
            loop.call_later(WAIT_SECONDS, gate.end, ADA, loop.time(), None)
            await one_call(gate)
            assert is_empty(gate)

        run(main())


def test_skipped_turn() -> None:
    """A turn in which nobody was called does not say that ACS takes calls again."""

    async def main() -> None:
        gate = await one_at_a_time()
        async with gate.turn(ADA) as turn:
            turn.skip()
        assert quota_of(gate).is_throttled
        async with gate.turn(ADA):
            pass
        assert not quota_of(gate).is_throttled

    run(main())

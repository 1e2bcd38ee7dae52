"""Lets calls of one operation of ACS through, as many as ACS allows, and fairly."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from shared import audit
from shared.errors import BusyError, IdentityGoneError, UpstreamThrottledError
from shared.quota import PUBLISHED, WAIT_SECONDS, Quota, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from shared.errors import BrokerError
    from shared.identifiers import Person


class Gate:
    """Decides before anything is sent whether a call is made, and when.

    Args:
        operation: its name, for the log.
        published: how many calls ACS allows in 30 seconds.
    """

    def __init__(self, operation: str, *, published: int = PUBLISHED) -> None:
        self._operation = operation
        self._quota = Quota[asyncio.Future[None]](published=published)
        self._timer: asyncio.TimerHandle | None = None

    def check_newcomer(self, person: Person) -> None:
        """Raise BusyError or UpstreamThrottledError if nobody new should be let in now."""
        now = _now()
        refusal = self._quota.refuses_newcomers(now)
        if refusal is not None:
            raise self._error(refusal, person, now)

    @contextmanager
    def expect(self, person: Person) -> Iterator[None]:
        """Count somebody who will ask for a turn soon.

        A person is counted once, since requests with the same Entra token share one call.

        Raises:
            BusyError, UpstreamThrottledError: the call would not be made in time.
        """
        if self._quota.counts(person):
            yield
            return
        self._check(person)
        self._quota.enter(person)
        try:
            yield
        finally:
            self._quota.leave(person)

    def turn(self, person: Person) -> Turn:
        """Return a person's turn, at once or later; raises as `expect`. It has to be used."""
        if self._quota.take(person, _now()):
            return Turn(self, person, None)
        self._check(person)
        ready = asyncio.get_running_loop().create_future()
        self._quota.wait(person, ready)
        self._go_on()
        return Turn(self, person, ready)

    async def wait(self, person: Person, ready: asyncio.Future[None]) -> None:
        """Wait until it is somebody's turn.

        Raises:
            BusyError: it takes too long.
        """

        def expire() -> None:
            if not ready.done():
                self._quota.give_up(person, ready)
                ready.set_exception(self._error(Refusal.FULL, person, _now()))

        timer = asyncio.get_running_loop().call_later(WAIT_SECONDS, expire)
        try:
            with audit.timed("turn_ms"):
                await ready
        except asyncio.CancelledError:
            if ready.cancelled():
                self._quota.give_up(person, ready)
            elif ready.exception() is None:  # The turn came at this very moment.
                self.end(person, _now(), None, called=False)
            raise
        finally:
            timer.cancel()

    def end(
        self, person: Person, began: float, error: BaseException | None, *, called: bool = True
    ) -> None:
        """Count a call that has ended, or was not made after all, and let the next begin."""
        now = _now()
        if isinstance(error, UpstreamThrottledError):
            wait = error.retry_after or 0
            if self._quota.throttled(began, now, wait):
                self._report()
        was_throttled = self._quota.is_throttled
        succeeded = called and (error is None or isinstance(error, IdentityGoneError))
        self._quota.ended(person, began, now, succeeded=succeeded)
        if was_throttled and not self._quota.is_throttled:
            self._report()
        self._go_on()

    def _check(self, person: Person) -> None:
        now = _now()
        refusal = self._quota.refusal(person, now)
        if refusal is not None:
            raise self._error(refusal, person, now)

    def _go_on(self) -> None:
        """Begin what may begin now, and come back when more may."""
        while (begun := self._quota.next(_now())) is not None:
            person, ready = begun
            if ready.cancelled():
                self._quota.ended(person, _now(), _now(), succeeded=False)
            else:
                ready.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait = self._quota.next_in(_now())
        if wait is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, wait), self._go_on)

    def _error(self, refusal: Refusal, person: Person, now: float) -> BrokerError:
        kind = UpstreamThrottledError if refusal is Refusal.THROTTLED else BusyError
        reason = f"{self._operation}: {refusal.value}"
        return kind(reason, retry_after=self._quota.retry_after(refusal, person, now))

    def _report(self) -> None:
        """Write a line when ACS begins to limit us, and when it has stopped."""
        throttled = self._quota.is_throttled
        audit.record(
            "acs_throttled" if throttled else "acs_unthrottled",
            {"work": self._operation, "per_second": round(self._quota.per_second, 1)},
            level=logging.WARNING if throttled else logging.INFO,
        )


class Turn:
    """One call, as a context: it begins when it may, and its end lets others begin."""

    def __init__(self, gate: Gate, person: Person, ready: asyncio.Future[None] | None) -> None:
        self._gate = gate
        self._person = person
        self._ready = ready
        self._began = 0.0
        self._called = True

    async def __aenter__(self) -> Self:
        """Wait until the call may be made.

        Raises:
            BusyError: it takes too long.
        """
        if self._ready is not None and not self._ready.done():
            await self._gate.wait(self._person, self._ready)
        self._began = _now()
        return self

    def skip(self) -> None:
        """Make no call after all; the end of the turn then says nothing about ACS."""
        self._called = False

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Count the end of the call."""
        self._gate.end(self._person, self._began, error, called=self._called)


def _now() -> float:
    return asyncio.get_running_loop().time()

"""What the runs of all timers have in common: pace, brakes, failures that do not end them, a line.

A piece of work that fails is counted, and tried again by a later run. Several failures in a row
mean that a service is out of order: they end the run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from shared import audit
from shared.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

# ACS allows 500 deletes in 30 seconds; 5 a second are 30 % of that.
# https://learn.microsoft.com/azure/communication-services/concepts/service-limits#identity
SECONDS_PER_DELETE = 0.2
AT_A_TIME = 4  # So that the pace holds while a deletion takes up to 0.8 seconds.
FAILURES_IN_A_ROW = 5
MAX_DURATION = timedelta(minutes=25)  # host.json ends a run after 30 minutes.


class BrakeError(Exception):
    """A brake that ends the run; the text is its name."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work: its kind, what does it, and for the log, whom or what it is about.

    `do` returns whether there was something to do; `failures` says how often it has failed before.
    """

    kind: str
    do: Callable[[], Awaitable[bool]]
    about: Mapping[str, audit.Field]
    failures: int | None = None  # Not known.
    calls_acs: bool = True  # If not, the pace does not matter.


class Work:
    """Does pieces of work at a limited pace, a few at a time, until a brake ends it.

    Args:
        seconds_each: the pace.
        duration: how long the run may take.
    """

    def __init__(self, *, seconds_each: float, duration: timedelta = MAX_DURATION) -> None:
        self._seconds_each = seconds_each
        self._until = asyncio.get_running_loop().time() + duration.total_seconds()
        self._in_a_row = 0
        self.failed = 0

    def check_time(self, *, reserve: timedelta = timedelta()) -> None:
        """Raise BrakeError if the time is over but for a reserve."""
        if asyncio.get_running_loop().time() > self._until - reserve.total_seconds():
            raise BrakeError("time")

    async def do(self, pieces: Iterable[Piece]) -> AsyncIterator[Piece]:
        """Do pieces of work, and yield each that did something.

        Raises:
            BrakeError: the time is over, or too many have failed in a row.
        """
        remaining = iter(pieces)
        while group := list(islice(remaining, AT_A_TIME)):
            self.check_time()
            calls = sum(piece.calls_acs for piece in group)
            pause = asyncio.sleep(self._seconds_each * calls)
            *done, _ = await asyncio.gather(*map(self._try, group), pause)
            for piece, outcome in zip(group, done, strict=True):
                if outcome:
                    yield piece
            if self._in_a_row >= FAILURES_IN_A_ROW:
                raise BrakeError("failures")

    async def _try(self, piece: Piece) -> bool:
        """Return whether a piece of work did something; count it and go on if it fails."""
        try:
            done = await piece.do()
        except BrokerError as error:
            self.failed += 1
            self._in_a_row += 1
            failures = None if piece.failures is None else piece.failures + 1
            why: dict[str, audit.Field] = {"code": error.code, "reason": str(error)}
            fields = {"work": piece.kind, "failures": failures, **why, **piece.about}
            audit.record("piece_failed", fields, level=logging.WARNING)
            return False
        self._in_a_row = 0
        return done


@contextmanager
def reported(name: str, report: Any) -> Iterator[None]:  # noqa: ANN401 - any dataclass
    """Write one audit line about a run: `<name>_finished`, `_stopped` or `_failed`.

    Args:
        name: of the timer.
        report: a dataclass with what the run found and did, and a member `stopped` for the brake.
    """
    started = time.monotonic()
    event, level = "failed", logging.ERROR
    why: dict[str, audit.Field] = {}
    spent: dict[str, audit.Field] = {}
    try:
        with audit.decision() as spent:
            yield
        event, level = "finished", logging.INFO
    except BrakeError as brake:
        report.stopped = str(brake)
        event, level = "stopped", logging.WARNING
    except BrokerError as error:
        why = {"code": error.code, "reason": str(error)}
        raise
    finally:
        ms = round((time.monotonic() - started) * 1000)
        audit.record(f"{name}_{event}", {**asdict(report), **spent, **why, "ms": ms}, level=level)

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from shared import audit
from shared.errors import StorageUnavailableError, UpstreamUnavailableError
from shared.runs import AT_A_TIME, FAILURES_IN_A_ROW, BrakeError, Piece, Work, reported
from tests.emulated import lines

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(slots=True)
class Report:
    """What a run of a timer found."""

    found: int = 0
    stopped: str | None = None


def piece(do: Callable[[], Awaitable[bool]], kind: str = "test") -> Piece:
    return Piece(kind, do, {"object_id": "somebody"}, failures=2)


async def works() -> bool:
    return True


async def has_nothing_to_do() -> bool:
    return False


async def fails() -> bool:
    raise UpstreamUnavailableError("ACS answered 503")


async def done_by(work: Work, pieces: list[Piece]) -> list[str]:
    """Return the kinds of the pieces that did something, and then the brake that ended the run."""
    done = []
    try:
        async for each in work.do(pieces):
            done.append(each.kind)  # noqa: PERF401 - a brake must not lose what was done
    except BrakeError as brake:
        return [*done, str(brake)]
    return done


class TestWork:
    """Pieces of work, a few at a time."""

    async def test_yields_what_was_done(self) -> None:
        """What had nothing to do does not count as done, nor as failed."""
        work = Work(seconds_each=0)

        done = await done_by(work, [piece(works, "a"), piece(has_nothing_to_do), piece(works, "b")])

        assert (["a", "b"], 0) == (done, work.failed)

    async def test_nothing(self) -> None:
        """No work is done at once, even at a slow pace."""
        assert [] == await done_by(Work(seconds_each=60), [])

    async def test_pace(self) -> None:
        """Pieces that take no time are spread over time."""
        loop = asyncio.get_running_loop()
        started = loop.time()

        await done_by(Work(seconds_each=0.05), [piece(works)] * 6)

        assert loop.time() - started >= 0.3

    async def test_pace_holds(self) -> None:
        """The pace includes the time that the pieces take, which are done four at a time."""
        running, most = 0, 0

        async def takes_a_while() -> bool:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.2)
            running -= 1
            return True

        loop = asyncio.get_running_loop()
        started = loop.time()
        await done_by(Work(seconds_each=0.05), [piece(takes_a_while)] * 8)

        assert AT_A_TIME == most
        # Two groups: one after the other would take 1.6 s, and 0.4 s more with the pauses.
        assert 0.4 <= loop.time() - started < 0.8

    async def test_failure(self, caplog: pytest.LogCaptureFixture) -> None:
        """What fails is counted, and the log says what it was; the rest is done."""
        work = Work(seconds_each=0)

        done = await done_by(work, [piece(works), piece(fails, "idle"), piece(works)])

        assert (2, 1) == (len(done), work.failed)
        assert [
            (
                "WARNING",
                {
                    "event": "piece_failed",
                    "work": "idle",
                    "code": "upstream_unavailable",
                    "reason": "ACS answered 503",
                    "failures": 3,
                    "object_id": "somebody",
                },
            )
        ] == lines(caplog)

    async def test_failures_in_a_row(self) -> None:
        """Several failures in a row end the run: a service is out of order."""
        work = Work(seconds_each=0)

        assert ["failures"] == await done_by(work, [piece(fails)] * 100)
        assert FAILURES_IN_A_ROW <= work.failed < FAILURES_IN_A_ROW + AT_A_TIME

    async def test_failures_in_a_row_over_calls(self) -> None:
        """Failures in a row count over the pages of a run."""
        work = Work(seconds_each=0)
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert [] == await done_by(work, [piece(fails)])

        assert ["failures"] == await done_by(work, [piece(fails)])

    @pytest.mark.parametrize("between", [works, has_nothing_to_do])
    async def test_failures_in_between(self, between: Callable[[], Awaitable[bool]]) -> None:
        """Many failures do not end a run in which other work succeeds."""
        work = Work(seconds_each=0)

        done = await done_by(work, [piece(fails), piece(fails), piece(between)] * 10)

        assert 20 == work.failed
        assert "failures" not in done

    async def test_what_was_done_before_a_brake(self) -> None:
        """What was done before a brake ended the run is known."""
        pieces = [piece(works, "done"), *[piece(fails)] * 8]

        assert ["done", "failures"] == await done_by(Work(seconds_each=0), pieces)

    async def test_time(self) -> None:
        """When the time is over, nothing more is begun."""
        begun = 0

        async def begins() -> bool:
            nonlocal begun
            begun += 1
            await asyncio.sleep(0.1)
            return True

        work = Work(seconds_each=0, duration=timedelta(seconds=0.05))
        *done, brake = await done_by(work, [piece(begins)] * 100)

        assert ("time", AT_A_TIME, AT_A_TIME) == (brake, len(done), begun)

    async def test_reserve(self) -> None:
        """A reserve ends the time earlier."""
        work = Work(seconds_each=0, duration=timedelta(minutes=1))
        work.check_time(reserve=timedelta(seconds=50))

        with pytest.raises(BrakeError, match="time"):
            work.check_time(reserve=timedelta(seconds=61))

    async def test_unforeseen(self) -> None:
        """A defect is not taken for a service that fails."""

        async def is_wrong() -> bool:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await done_by(Work(seconds_each=0), [piece(is_wrong)])


@pytest.mark.usefixtures("every_audit_line")
class TestReported:
    """The one line about a run."""

    def test_finished(self, caplog: pytest.LogCaptureFixture) -> None:
        """A run that is finished says what it found, and how long that took."""
        report = Report()
        with reported("sweep", report):
            report.found = 3
            with audit.timed("acs_ms"):
                pass

        ((level, line),) = lines(caplog)
        assert "INFO" == level
        assert line.pop("ms") >= 0
        assert {"event": "sweep_finished", "found": 3, "acs_ms": 0} == line

    def test_stopped(self, caplog: pytest.LogCaptureFixture) -> None:
        """A brake ends the run, is named in the report, and is no error."""
        report = Report()

        def brake() -> None:
            raise BrakeError("time")

        with reported("prune", report):
            report.found = 1
            brake()

        ((level, line),) = lines(caplog)
        assert ("WARNING", "prune_stopped", "time", 1) == (
            level,
            line["event"],
            line["stopped"],
            line["found"],
        )
        assert "time" == report.stopped

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (
                StorageUnavailableError("ServerBusy"),
                {"code": "storage_unavailable", "reason": "ServerBusy"},
            ),
            (KeyError("x"), {}),
        ],
    )
    def test_failed(
        self, caplog: pytest.LogCaptureFixture, error: Exception, why: dict[str, str]
    ) -> None:
        """A run that fails says how far it came, and the host hears of it."""
        report = Report()

        def run() -> None:
            with reported("prune", report):
                report.found = 2
                raise error

        with pytest.raises(type(error)):
            run()

        ((level, line),) = lines(caplog)
        del line["ms"]
        assert ("ERROR", {"event": "prune_failed", "found": 2, **why}) == (level, line)

"""The prune timer: goes through the table once a day, and removes identities that nobody uses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from shared.errors import BrokerError
from shared.mappings.endings import is_deletion_due, is_mark_needed
from shared.mappings.identities import CLOCK_TOLERANCE, LONGEST_LEASE, is_leased
from shared.mappings.index_check import IndexCheck
from shared.mappings.table import State, readable_of
from shared.runs import MAX_DURATION, SECONDS_PER_DELETE, BrakeError, Work, reported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shared.mappings.attempts import Position
    from shared.mappings.endings import Endings
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMapping, IdentityMappings
    from shared.runs import Piece
    from shared.settings import PruneSettings

ABANDONED_AFTER = timedelta(minutes=10)
MAX_CLOCK_OFFSET = timedelta(minutes=5)
RESERVED = MAX_DURATION / 2  # For removing; counting goes on in the next run.
PROGRESS = "prune"
PROGRESS_LASTS = timedelta(days=3)


def utc_now() -> datetime:
    """Return the current time of this machine, in UTC."""
    return datetime.now(UTC)


@dataclass(slots=True)
class PruneReport:
    """What one run found, and what it did or, in a dry run, would have done."""

    dry_run: bool
    rows: int = 0
    idle: int = 0
    pruned: int = 0
    finished: int = 0  # Interrupted creations and deletions that were completed.
    mended: int = 0  # Marks that have expired, dates in the future, wrong entries of the index.
    failed: int = 0  # Identities that could not be deleted, or rows that could not be changed.
    stopped: str | None = None  # Which brake ended the run, if one did.


@dataclass(slots=True)
class _Progress:
    """Where the table was left: a run that is stopped goes on there the next day."""

    counted: bool
    position: Position | None
    started_on: datetime


class Pruner:
    """Removes idle identities, with limits on clock offset, share, number, pace and time.

    The table is read twice: once to count, so that the share of idle rows is known before the first
    is removed, and once for the rows with something to do. Rows are read page by page, so memory
    does not grow with the table.
    """

    def __init__(  # noqa: PLR0913 - each is a part that tests replace
        self,
        *,
        settings: PruneSettings,
        endings: Endings,
        mappings: IdentityMappings,
        ledger: Ledger,
        clock: Callable[[], datetime] = utc_now,
        seconds_per_delete: float = SECONDS_PER_DELETE,
    ) -> None:
        self._settings = settings
        self._endings = endings
        self._mappings = mappings
        self._ledger = ledger
        self._clock = clock
        self._seconds_per_delete = seconds_per_delete

    async def run(self) -> PruneReport:
        """Do one run, and write one audit line about it.

        Raises:
            BrokerError: Table Storage failed; the next run continues from there.
        """
        report = PruneReport(dry_run=self._settings.dry_run)
        with reported("prune", report):
            await self._run(report)
        return report

    async def _run(self, report: PruneReport) -> None:
        now = await self._mappings.server_time()
        if abs(self._clock() - now) > MAX_CLOCK_OFFSET:
            raise BrakeError("clock")
        work = Work(seconds_each=self._seconds_per_delete)
        progress = await self._recall(report, now)
        index = IndexCheck(mappings=self._mappings, ledger=self._ledger)
        try:
            if not progress.counted:
                await self._count(report, progress, work, index)
            self._check_share(report, progress)
            await self._go_through(report, progress, work, now)
            if not self._settings.dry_run:
                report.mended += await index.mend()
        except (BrakeError, BrokerError):
            await self._remember(report, progress)
            raise
        finally:
            report.failed = work.failed
        await self._ledger.forget(PROGRESS)

    def _check_share(self, report: PruneReport, progress: _Progress) -> None:
        if report.idle > report.rows * self._settings.max_share:
            progress.counted = False  # The next run counts again.
            raise BrakeError("share")

    async def _count(
        self, report: PruneReport, progress: _Progress, work: Work, index: IndexCheck
    ) -> None:
        """Count the rows, and those of them that are active but idle."""
        index.is_complete = progress.position is None
        idle_before = progress.started_on - self._settings.idle
        async for page in self._mappings.uses(start=progress.position):
            work.check_time(reserve=RESERVED)
            report.rows += len(page.entities)
            report.idle += sum(_is_idle(entity, idle_before) for entity in page.entities)
            index.add(page.entities)
            progress.position = page.following
        progress.counted, progress.position = True, None

    async def _go_through(
        self, report: PruneReport, progress: _Progress, work: Work, now: datetime
    ) -> None:
        """Do what the rows of each page need."""
        idle_before = now - self._settings.idle
        left = self._settings.max_deletes
        pages = self._mappings.unsettled(
            idle_before=idle_before, future=now + CLOCK_TOLERANCE, start=progress.position
        )
        async for page in pages:
            mappings = readable_of(page)
            mending = [self._mend(mapping, now) for mapping in mappings]
            report.mended += await self._do(work, [piece for piece in mending if piece])
            interrupted = [mapping for mapping in mappings if _is_interrupted(mapping, now)]
            idle = [
                mapping
                for mapping in mappings
                if mapping.state is State.ACTIVE and mapping.last_used_on < idle_before
            ]
            # Attempts count, not successes: a service that refuses must not be asked for ever.
            for kind, reason in ((interrupted, "interrupted"), (idle, "idle")):
                ends = [partial(self._endings.end, each, reason=reason) for each in kind[:left]]
                done = await self._do(work, ends)
                if reason == "idle":
                    report.pruned += done
                else:
                    report.finished += done
                left -= len(ends)
                if len(ends) < len(kind):
                    raise BrakeError("deletes")
            progress.position = page.following

    async def _do(self, work: Work, pieces: Sequence[Piece]) -> int:
        """Do pieces of work, or in a dry run only count them."""
        return len(pieces) if self._settings.dry_run else await work.do(pieces)

    def _mend(self, mapping: IdentityMapping, now: datetime) -> Piece | None:
        """Return what has to be set right in a row, if anything."""
        if mapping.state is State.ERASED and not is_mark_needed(mapping, now):
            return partial(self._mappings.remove, mapping)
        if mapping.state is State.ACTIVE and mapping.last_used_on > now + CLOCK_TOLERANCE:
            # It was written by a machine whose clock was wrong, and would never become idle.
            return partial(self._changed, mapping, now)
        return None

    async def _changed(self, mapping: IdentityMapping, now: datetime) -> bool:
        return await self._mappings.change(mapping, last_used_on=now) is not None

    async def _recall(self, report: PruneReport, now: datetime) -> _Progress:
        """Return where the last run stopped, and put what it counted into the report."""
        kept = await self._ledger.recall(PROGRESS)
        if self._settings.dry_run or not kept or kept["startedOn"] < now - PROGRESS_LASTS:
            return _Progress(counted=False, position=None, started_on=now)
        report.rows, report.idle = kept["rows"], kept["idle"]
        return _Progress(
            counted=kept["counted"],
            position=json.loads(kept["position"]),
            started_on=kept["startedOn"],
        )

    async def _remember(self, report: PruneReport, progress: _Progress) -> None:
        if self._settings.dry_run:
            return
        if not progress.counted and progress.position is None:
            await self._ledger.forget(PROGRESS)
            return
        await self._ledger.remember(
            PROGRESS,
            counted=progress.counted,
            position=json.dumps(progress.position),
            rows=report.rows,
            idle=report.idle,
            startedOn=progress.started_on,
        )


def _is_idle(entity: Mapping[str, Any], idle_before: datetime) -> bool:
    used = entity.get("lastUsedOn")
    return entity.get("state") == State.ACTIVE and isinstance(used, datetime) and used < idle_before


def _is_interrupted(mapping: IdentityMapping, now: datetime) -> bool:
    """Return whether a creation was abandoned, or a deletion may go on."""
    if mapping.state is State.CREATING:
        lease_until = mapping.lease_until
        # Long after the lease: the person may be on the way back.
        return not is_leased(mapping, now, LONGEST_LEASE) and (
            lease_until is None or not now - ABANDONED_AFTER <= lease_until <= now
        )
    return is_deletion_due(mapping, now)

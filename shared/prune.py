"""The prune timer: goes through the table once a day, and removes identities that nobody uses."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from shared.clock import utc_now
from shared.leavers import has_returned
from shared.mappings.endings import is_deletion_due, is_mark_needed
from shared.mappings.identities import (
    CLOCK_TOLERANCE,
    LONGEST_LEASE,
    is_in_future,
    is_leased,
    not_in_future,
)
from shared.mappings.index_check import IndexCheck
from shared.mappings.table import State, person_of, readable_of
from shared.runs import MAX_DURATION, SECONDS_PER_DELETE, BrakeError, Piece, Work, reported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from shared.leavers import Leaver, Leavers, Search
    from shared.mappings.attempts import Page, Position
    from shared.mappings.endings import Endings
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMapping, IdentityMappings
    from shared.settings import PruneSettings

ABANDONED_AFTER = timedelta(minutes=10)
MAX_CLOCK_OFFSET = timedelta(minutes=5)
PROGRESS = "prune"
PROGRESS_LASTS = timedelta(days=3)


@dataclass(slots=True)
class PruneReport:
    """What one run found, and what it did or, in a dry run, would have done."""

    dry_run: bool
    rows: int = 0
    idle: int = 0
    pruned: int = 0
    left: int = 0  # Identities of people who were deleted from Entra.
    finished: int = 0  # Interrupted creations and deletions that were completed.
    mended: int = 0  # Marks that have expired, dates in the future, wrong entries of the index.
    failed: int = 0  # Identities that could not be deleted, or rows that could not be changed.
    stopped: str | None = None  # Which brake ended the run, if one did.

    def count(self, piece: Piece) -> None:
        """Count a piece of work that was done."""
        match piece.kind:
            case "idle":
                self.pruned += 1
            case "left":
                self.left += 1
            case "interrupted":
                self.finished += 1
            case "mend":
                self.mended += 1


@dataclass(slots=True)
class _Progress:
    """Where the table was left: a run that was ended in whatever way goes on there the next day."""

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
        leavers: Leavers | None = None,
        clock: Callable[[], datetime] = utc_now,
        seconds_per_delete: float = SECONDS_PER_DELETE,
        duration: timedelta = MAX_DURATION,
    ) -> None:
        self._settings = settings
        self._endings = endings
        self._mappings = mappings
        self._ledger = ledger
        self._leavers = leavers
        self._clock = clock
        self._seconds_per_delete = seconds_per_delete
        self._duration = duration

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
        work = Work(seconds_each=self._seconds_per_delete, duration=self._duration)
        progress = await self._recall(report, now)
        try:
            if self._leavers:
                await self._remove_leavers(self._leavers, report, work, now)
            if not progress.counted:
                await self._count(report, progress, work)
            await self._check_share(report)
            await self._go_through(report, progress, work, now)
        finally:
            report.failed = work.failed

    async def _remove_leavers(
        self, leavers: Leavers, report: PruneReport, work: Work, now: datetime
    ) -> None:
        """Remove the identities of people who were deleted from Entra.

        The whole table is read for it in each run: where the last run stopped does not matter, and
        the share of the people who have left is known before the first of them is removed.
        """
        search = await leavers.search(now=now)
        if search is None:
            return
        async for page in self._mappings.uses():
            work.check_time(reserve=self._duration / 2)
            _add_to(search, page.entities)
        pieces = [
            Piece("left", partial(self._end_left, leaver), leaver.person._asdict())
            for leaver in search.found()
        ]
        async for piece in self._do(work, pieces):
            report.count(piece)

    async def _end_left(self, leaver: Leaver) -> bool:
        """Remove the identity of somebody who has left, unless the row says otherwise by now."""
        mapping = await self._mappings.read(leaver.person)
        if mapping.state is not State.ACTIVE or has_returned(
            leaver.deleted_on, last_used_on=mapping.last_used_on
        ):
            return False
        return await self._endings.end(mapping, reason="left")

    async def _count(self, report: PruneReport, progress: _Progress, work: Work) -> None:
        """Count the rows, and those of them that are active but idle; check the index by them."""
        index = IndexCheck(mappings=self._mappings, ledger=self._ledger)
        index.is_complete = progress.position is None
        idle_before = progress.started_on - self._settings.idle
        async for page in self._mappings.uses(start=progress.position):
            # Half of the time is for removing; counting goes on in the next run.
            work.check_time(reserve=self._duration / 2)
            # What is left of people who were erased does not count: it is no identity.
            report.rows += sum(each.get("state") != State.ERASED for each in page.entities)
            report.idle += sum(_is_idle(entity, idle_before) for entity in page.entities)
            index.add(page.entities)
            await self._move_on(report, progress, page)
        if not self._settings.dry_run:
            report.mended += await index.mend(work.check_time)

    async def _check_share(self, report: PruneReport) -> None:
        if report.idle > report.rows * self._settings.max_share:
            if not self._settings.dry_run:
                await self._ledger.forget(PROGRESS)  # The next run counts again.
            raise BrakeError("share")

    async def _go_through(
        self, report: PruneReport, progress: _Progress, work: Work, now: datetime
    ) -> None:
        """Do what the rows of each page need."""
        left = self._settings.max_deletes
        pages = self._mappings.unsettled(
            idle_before=now - self._settings.idle,
            future=now + CLOCK_TOLERANCE,
            start=progress.position,
        )
        async for page in pages:
            work.check_time()
            needed = [self._needed(mapping, now) for mapping in readable_of(page)]
            pieces = [piece for piece in needed if piece]
            ends = [piece for piece in pieces if piece.kind != "mend"]
            # Attempts count, not successes: a service that refuses must not be asked for ever. They
            # are in any order: the same few that fail must not always come first.
            chosen = random.sample(ends, min(left, len(ends)))
            left -= len(chosen)
            try:
                mends = [piece for piece in pieces if piece.kind == "mend"]
                async for piece in self._do(work, mends + chosen):
                    report.count(piece)
            except BrakeError as brake:
                if str(brake) == "failures":
                    await self._move_on(report, progress, page)  # Nor hold up the other pages.
                raise
            if len(chosen) < len(ends):
                raise BrakeError("deletes")
            await self._move_on(report, progress, page)

    async def _do(self, work: Work, pieces: Sequence[Piece]) -> AsyncIterator[Piece]:
        """Do pieces of work, or in a dry run only yield them."""
        if self._settings.dry_run:
            for piece in pieces:
                yield piece
        else:
            async for piece in work.do(pieces):
                yield piece

    def _needed(self, mapping: IdentityMapping, now: datetime) -> Piece | None:
        """Return what a row needs, if anything."""
        about = {"acs_id": mapping.acs_id or None, **mapping.person._asdict()}
        if _is_ahead(mapping, now):
            # A wrong clock or an edit by hand: the row would never become idle, or its person would
            # be locked out. Of an interrupted row, the rest is for the next run.
            return Piece("mend", partial(self._set_back, mapping, now), about, calls_acs=False)
        if mapping.state is State.ERASED:
            needed = not is_mark_needed(mapping, now)
            mend = partial(self._mappings.remove, mapping)
            return Piece("mend", mend, about, calls_acs=False) if needed else None
        reason = None
        if mapping.state is State.ACTIVE and mapping.last_used_on < now - self._settings.idle:
            reason = "idle"
        elif _is_interrupted(mapping, now):
            reason = "interrupted"
        if reason is None:
            return None
        end = partial(self._endings.end, mapping, reason=reason)
        return Piece(reason, end, about, mapping.failures)

    async def _set_back(self, mapping: IdentityMapping, now: datetime) -> bool:
        """Set dates in the future to now; the mark then still refuses every token from before."""
        mark = mapping.revoked_before
        changes = {
            "last_used_on": not_in_future(mapping.last_used_on, now),
            "revoked_before": not_in_future(mark, now) if mark else None,
        }
        return await self._mappings.change(mapping, **changes) is not None

    async def _recall(self, report: PruneReport, now: datetime) -> _Progress:
        """Return where the last run stopped, and put what it counted into the report."""
        kept = {} if self._settings.dry_run else await self._ledger.recall(PROGRESS)
        with suppress(KeyError, TypeError, ValueError):  # An entry that somebody has edited.
            position = json.loads(kept["position"])
            progress = _Progress(kept["counted"], position, kept["startedOn"])
            if now - PROGRESS_LASTS < progress.started_on < now + CLOCK_TOLERANCE:
                report.rows, report.idle = int(kept["rows"]), int(kept["idle"])
                return progress
        return _Progress(counted=False, position=None, started_on=now)

    async def _move_on(self, report: PruneReport, progress: _Progress, page: Page) -> None:
        """Note that a page is done: should this run be ended, the next one goes on behind it."""
        progress.position = page.following
        if page.following is None:
            progress.counted = not progress.counted  # The first reading ends, or the second one.
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


def _add_to(search: Search, entities: Sequence[Mapping[str, Any]]) -> None:
    for entity in entities:
        used = entity.get("lastUsedOn")
        if entity.get("state") == State.ACTIVE and isinstance(used, datetime):
            search.add(person_of(entity), last_used_on=used)


def _is_ahead(mapping: IdentityMapping, now: datetime) -> bool:
    """Return whether a row's last use, while that counts, or its mark is in the future."""
    used = mapping.last_used_on if mapping.state is State.ACTIVE else now
    return is_in_future(max(used, mapping.revoked_before or used), now)


def _is_interrupted(mapping: IdentityMapping, now: datetime) -> bool:
    """Return whether a creation was abandoned, or a deletion may go on."""
    if mapping.state is State.CREATING:
        lease_until = mapping.lease_until
        # Long after the lease: the person may be on the way back.
        return not is_leased(mapping, now, LONGEST_LEASE) and (
            lease_until is None or not now - ABANDONED_AFTER <= lease_until <= now
        )
    return is_deletion_due(mapping, now)

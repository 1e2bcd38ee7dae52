"""The prune timer: finishes interrupted work, then removes identities that nobody uses."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import BrokerError, UpstreamBadResponseError
from shared.mappings.identities import utc_now
from shared.mappings.table import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from shared.mappings.identities import Identities
    from shared.mappings.table import IdentityMappings
    from shared.settings import PruneSettings

# ACS allows 500 deletes in 30 seconds; 5 a second are 30 % of that.
# https://learn.microsoft.com/azure/communication-services/concepts/service-limits#identity
SECONDS_PER_DELETE = 0.2
ABANDONED_AFTER = timedelta(minutes=10)
MAX_CLOCK_OFFSET = timedelta(minutes=5)
MAX_DURATION = timedelta(minutes=25)  # host.json ends a run after 30 minutes.


@dataclass(slots=True)
class PruneReport:
    """What one run found, and what it did or, in a dry run, would have done."""

    dry_run: bool
    rows: int = 0
    idle: int = 0
    pruned: int = 0
    finished: int = 0  # Interrupted creations and deletions that were completed.
    orphans: int = 0  # Identities deleted from the ledger.
    refused: int = 0  # Identities that ACS would not delete.
    stopped: str | None = None  # Which brake ended the run, if one did.


class _BrakeError(Exception):
    """A brake that ends the run; the text is its name."""


class Pruner:
    """Removes idle identities, with limits on clock offset, share, number, pace and time.

    It remembers nothing between runs: the next run finds what is left, and every step can be
    repeated. Rows are read page by page, so memory does not grow with the table.
    """

    def __init__(
        self,
        *,
        settings: PruneSettings,
        identities: Identities,
        mappings: IdentityMappings,
        clock: Callable[[], datetime] = utc_now,
        seconds_per_delete: float = SECONDS_PER_DELETE,
    ) -> None:
        self._settings = settings
        self._identities = identities
        self._mappings = mappings
        self._clock = clock
        self._seconds_per_delete = seconds_per_delete

    async def run(self) -> PruneReport:
        """Do one run, and write one audit line about it.

        Raises:
            BrokerError: Table Storage or ACS failed; the next run continues from there.
        """
        report = PruneReport(dry_run=self._settings.dry_run)
        started = time.monotonic()
        event, level = "prune_failed", logging.ERROR
        why: dict[str, audit.Field] = {}
        try:
            with audit.decision() as spent:
                await self._run(report)
            event, level = "prune_finished", logging.INFO
        except _BrakeError as brake:
            report.stopped = str(brake)
            event, level = "prune_stopped", logging.WARNING
        except BrokerError as error:
            why = {"code": error.code, "reason": str(error)}
            raise
        finally:
            ms = round((time.monotonic() - started) * 1000)
            audit.record(event, {**asdict(report), **spent, **why, "ms": ms}, level=level)
        return report

    async def _run(self, report: PruneReport) -> None:
        now = self._clock()
        until = now + MAX_DURATION
        if abs(await self._mappings.server_time() - now) > MAX_CLOCK_OFFSET:
            raise _BrakeError("clock")
        await self._finish(report, now, until)
        idle_before = now - self._settings.idle
        report.rows, report.idle = await self._mappings.count(idle_before=idle_before)
        if report.idle > report.rows * self._settings.max_share:
            raise _BrakeError("share")
        async for mapping in self._mappings.idle(idle_before=idle_before):
            if report.pruned == self._settings.max_deletes:
                raise _BrakeError("deletes")
            end = partial(self._identities.end, mapping, reason="idle")
            report.pruned += await self._do(report, end, until)

    async def _finish(self, report: PruneReport, now: datetime, until: datetime) -> None:
        """Finish interrupted creations and deletions, and empty the ledger of orphans."""
        async for mapping in self._mappings.interrupted(lease_before=now):
            abandoned = mapping.lease_until is None or mapping.lease_until < now - ABANDONED_AFTER
            if mapping.state is State.DELETING or abandoned:
                end = partial(self._identities.end, mapping, reason="interrupted")
                report.finished += await self._do(report, end, until)
        async for acs_id in self._mappings.orphans():
            delete = partial(self._identities.delete_orphan, acs_id)
            report.orphans += await self._do(report, delete, until)

    async def _do(
        self, report: PruneReport, work: Callable[[], Awaitable[bool]], until: datetime
    ) -> bool:
        """Do one piece of work at the allowed pace, or in a dry run only count it.

        An identity that ACS refuses to delete must not hold up the others: it is counted as
        refused, and the next run tries it again.
        """
        if self._settings.dry_run:
            return True
        if self._clock() > until:
            raise _BrakeError("time")
        await asyncio.sleep(self._seconds_per_delete)
        try:
            return await work()
        except UpstreamBadResponseError:
            report.refused += 1
            return False

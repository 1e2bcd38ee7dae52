"""The sweep timer: every few minutes, finishes what is in the ledger."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from shared.mappings.endings import LONGEST_RETRY
from shared.runs import SECONDS_PER_DELETE, Piece, Work, reported

if TYPE_CHECKING:
    from datetime import datetime

    from shared import audit
    from shared.mappings.endings import Endings
    from shared.mappings.ledger import Ledger, Orphan, Unfinished
    from shared.mappings.table import IdentityMappings

LATE_AFTER = timedelta(hours=1)


@dataclass(slots=True)
class SweepReport:
    """What one run found and did."""

    waiting: int = 0  # People and identities in the ledger.
    late: int = 0  # People among them who have waited for more than an hour.
    finished: int = 0  # People whose erasure or revocation is complete.
    orphans: int = 0  # Identities that were deleted.
    failed: int = 0  # Erasures, revocations and deletions that have to be tried again.
    stopped: str | None = None  # Which brake ended the run, if one did.


class Sweeper:
    """Finishes revocations and erasures, and deletes the identities that are in the ledger.

    The ledger is short: this does not read the table of mappings. A run that did everything leaves
    nothing; what fails stays, with the time of the next attempt.
    """

    def __init__(
        self,
        *,
        endings: Endings,
        mappings: IdentityMappings,
        ledger: Ledger,
        seconds_per_delete: float = SECONDS_PER_DELETE,
    ) -> None:
        self._endings = endings
        self._mappings = mappings
        self._ledger = ledger
        self._seconds_per_delete = seconds_per_delete

    async def run(self) -> SweepReport:
        """Do one run, and write one audit line about it.

        Raises:
            BrokerError: Table Storage failed; the next run continues from there.
        """
        report = SweepReport()
        with reported("sweep", report):
            await self._run(report)
        return report

    async def _run(self, report: SweepReport) -> None:
        now = await self._mappings.server_time()
        work = Work(seconds_each=self._seconds_per_delete)
        people = [each async for each in self._ledger.unfinished()]
        orphans = [each async for each in self._ledger.orphans()]
        report.waiting = len(people) + len(orphans)
        report.late = sum(now - each.since > LATE_AFTER for each in people)
        pieces = [
            Piece("unfinished", partial(self._finish, each), each.person._asdict())
            for each in people
        ]
        pieces += [
            Piece("orphan", partial(self._endings.delete_orphan, each), _about(each), each.failures)
            for each in orphans
            if is_due(each, now)
        ]
        try:
            # In any order: the same few that fail must not always come first.
            async for piece in work.do(random.sample(pieces, len(pieces))):
                if piece.kind == "orphan":
                    report.orphans += 1
                else:
                    report.finished += 1
        finally:
            report.failed = work.failed

    async def _finish(self, entry: Unfinished) -> bool:
        done = await self._endings.finish(entry)
        if done:
            await self._ledger.remove_unfinished(entry)
        return done


def is_due(orphan: Orphan, now: datetime) -> bool:
    """Return whether an identity may be deleted now; a date that nobody can have set is ignored."""
    retry_on = orphan.retry_on
    return retry_on is None or not now < retry_on <= now + LONGEST_RETRY


def _about(orphan: Orphan) -> dict[str, audit.Field]:
    person = orphan.person._asdict() if orphan.person else {}
    return {"acs_id": orphan.acs_id, **person}

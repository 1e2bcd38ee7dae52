"""Brings identities along that people have in another system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.mappings.people import Row
from infra.mappings.work import THERE, Done, do_all, settled
from shared.mappings.table import State

if TYPE_CHECKING:
    from infra.mappings.check import Check
    from infra.mappings.people import AnyRow
    from infra.mappings.report import Report
    from infra.mappings.store import Store

NOT_ACTIVE = "the row has no active identity: a file of this service is for `restore`"
NO_DRY_RUN, DRY_RUN = "imported", "would be imported"


class Import:
    """Imports a file that `Check` has looked at."""

    def __init__(self, check: Check, *, store: Store, report: Report, dry_run: bool) -> None:
        self._check = check
        self._store = store
        self._report = report
        self._dry_run = dry_run
        self._done = Done()

    async def run(self) -> bool:
        """Import the file; False if a row is wrong by itself, and so nothing was imported.

        Raises:
            StorageUnavailableError: Table Storage kept failing; the next run goes on.
        """
        for row in self._check.rows():
            problem = self._problem_of(row)
            if problem:
                self._report.refuse(row, problem)
        if self._report.counts:
            return False
        self._done = await Done.of(self._store, total=self._check.total)
        await do_all(self._check.rows(), self._import)
        return True

    def _problem_of(self, row: AnyRow) -> str | None:
        problem = self._check.problem_of(row)
        return problem or (NOT_ACTIVE if _active(row) is None else None)

    async def _import(self, row: AnyRow) -> None:
        active = _active(row)
        assert active is not None, "refused before"  # noqa: S101 - or the file changed meanwhile
        if self._done.has(active):
            self._report.count(THERE, row)
        else:
            await settled(row, lambda: self._adopt(active), self._report)

    async def _adopt(self, row: Row) -> str:
        adoption = self._store.adoption
        if self._dry_run:
            return DRY_RUN if await adoption.foresee(row.person, row.acs_id) else THERE
        added = await adoption.adopt(
            row.person, row.acs_id, created_on=row.created_on, last_used_on=row.last_used_on
        )
        return NO_DRY_RUN if added else THERE


def _active(row: AnyRow) -> Row | None:
    return row if isinstance(row, Row) and row.state is State.ACTIVE else None

"""Puts rows back that are in a backup, an export, or the log.

A person who has a row keeps it, since it is newer; marks are put back all the same, and never move
back. Orphans come first: what must be deleted is not given to anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.mappings.people import OrphanRow, Row
from infra.mappings.work import THERE, Done, do_all, settled
from shared.errors import BusyError, ConflictError
from shared.mappings.endings import MARK_LIFETIME
from shared.mappings.identities import FOREIGN
from shared.mappings.ownership import claim
from shared.mappings.table import LEASE, State

if TYPE_CHECKING:
    from infra.mappings.check import Check
    from infra.mappings.people import AnyRow
    from infra.mappings.report import Report
    from infra.mappings.store import Store
    from shared.mappings.table import IdentityMapping

TRIES = 3
RESTORED, WOULD = "restored", "would be restored"
UNFINISHED = "not restored, as the identity was still being created"
EXPIRED = "not needed any more"
SUPERSEDED = "superseded"  # The reason of an orphan.


class Restore:
    """Restores a file that `Check` has looked at.

    Args:
        check: the file, and what is wrong with it.
        store: the tables to restore into; the broker may be using them.
        report: where rows go that are not restored, with the reason.
        dry_run: changes nothing.
        delete_superseded: an identity whose person has another one by now is deleted.
    """

    def __init__(
        self,
        check: Check,
        *,
        store: Store,
        report: Report,
        dry_run: bool,
        delete_superseded: bool,
    ) -> None:
        self._check = check
        self._store = store
        self._report = report
        self._dry_run = dry_run
        self._delete_superseded = delete_superseded
        self._restored = WOULD if dry_run else RESTORED
        self._done = Done()

    async def run(self) -> None:
        """Restore the file.

        Raises:
            StorageUnavailableError: Table Storage kept failing; the next run goes on.
        """
        self._done = await Done.of(self._store, total=self._check.total)
        rows = self._check.rows()
        await do_all((row for row in rows if isinstance(row, OrphanRow)), self._restore)
        rows = self._check.rows()
        await do_all((row for row in rows if not isinstance(row, OrphanRow)), self._restore)

    async def _restore(self, row: AnyRow) -> None:
        problem = self._check.problem_of(row)
        if problem:
            self._report.refuse(row, problem)
        elif isinstance(row, OrphanRow):
            await settled(row, lambda: self._restore_orphan(row), self._report)
        elif isinstance(row, Row):
            if self._done.has(row):
                self._report.count(THERE, row)
            else:
                await settled(row, lambda: self._restore_row(row), self._report)

    async def _restore_orphan(self, row: OrphanRow) -> str:
        if row.acs_id not in self._check.orphans or await self._store.ledger.is_orphan(row.acs_id):
            return THERE  # A row of the file has it, or the ledger.
        if not self._dry_run:
            now = await self._store.mappings.server_time()
            await self._store.ledger.add_orphan(
                row.acs_id, person=row.person, reason=row.reason, now=now
            )
        return self._restored

    async def _restore_row(self, row: Row) -> str:
        match row.state:
            case State.ACTIVE:
                return await self._restore_active(row)
            case State.DELETING if row.acs_id and row.reason != FOREIGN:
                return await self._restore_deleting(row)
        if await self._restore_mark(row, bare=True):
            return self._restored
        return UNFINISHED if row.state is State.CREATING else EXPIRED

    async def _restore_active(self, row: Row) -> str:
        adoption, ledger = self._store.adoption, self._store.ledger
        marked = await self._restore_mark(row)
        try:
            if self._dry_run:
                added = await adoption.foresee(row.person, row.acs_id, restoring=True)
            else:
                if row.revoke_again:
                    await ledger.add_unfinished(row.person)
                added = await adoption.adopt(
                    row.person,
                    row.acs_id,
                    created_on=row.created_on,
                    last_used_on=row.last_used_on,
                    revoked_before=row.revoked_before,
                    revoke_again=row.revoke_again,
                    restoring=True,
                )
        except ConflictError as error:
            await self._restore_mark(row, bare=True)
            await self._give_up(row, error)
            raise
        if not added and not self._dry_run:  # The ledger may have been lost, and not the table.
            await self._claim(row)
        return self._restored if added or marked else THERE

    async def _restore_deleting(self, row: Row) -> str:
        """Put a row back that is being deleted, or only its identity into the ledger."""
        ledger = self._store.ledger
        live = await self._store.mappings.read(row.person)
        if live.state is not State.ABSENT:
            await self._restore_mark(row, bare=True)
        if live.acs_id == row.acs_id and live.state is State.ACTIVE:
            raise ConflictError("the identity was being deleted, and is in use")
        if live.acs_id == row.acs_id or await ledger.is_orphan(row.acs_id):
            return THERE
        if self._dry_run:
            return self._restored
        if live.state is not State.ABSENT:
            await self._add_orphan(row, live, reason=row.reason or SUPERSEDED)
            return self._restored
        await ledger.add_unfinished(row.person)
        restored = await self._store.mappings.change(
            live,
            state=State.DELETING,
            acs_id=row.acs_id,
            reason=row.reason,
            lease_until=live.now + LEASE,  # Nobody deletes it before the index is written.
            revoked_before=row.revoked_before,
            created_on=row.created_on or live.now,
            last_used_on=row.last_used_on or live.now,
        )
        if restored is None:
            raise BusyError("the row keeps changing")
        try:
            await self._claim(row)
        except ConflictError:
            await self._store.mappings.remove(restored)
            raise
        return self._restored

    async def _claim(self, row: Row) -> None:
        mappings, ledger = self._store.mappings, self._store.ledger
        if not await claim(row.acs_id, row.person, mappings=mappings, ledger=ledger):
            raise ConflictError("somebody else has this identity")

    async def _add_orphan(self, row: Row, live: IdentityMapping, *, reason: str) -> None:
        """Have an identity deleted whose person has another one, unless it is somebody else's.

        The ledger is written first, so that whoever is given the identity after the claim finds it
        there.
        """
        ledger = self._store.ledger
        await ledger.add_orphan(row.acs_id, person=row.person, reason=reason, now=live.now)
        try:
            await self._claim(row)
        except ConflictError:
            await ledger.remove_orphan(row.acs_id)
            raise

    async def _give_up(self, row: Row, error: ConflictError) -> None:
        """Say that an identity is left over, or have it deleted, if it was the person's before.

        Raises:
            ConflictError: with the whole story.
        """
        live = await self._store.mappings.read(row.person)
        owner = await self._store.ledger.owner(row.acs_id)
        if live.acs_id == row.acs_id or owner not in {None, row.person}:
            return
        if not self._delete_superseded:
            raise ConflictError(f"{error}: {row.acs_id} is left over") from error
        if await self._store.ledger.is_orphan(row.acs_id):
            raise ConflictError(f"{error}: the ledger has {row.acs_id}") from error
        if not self._dry_run:
            await self._add_orphan(row, live, reason=SUPERSEDED)
        raise ConflictError(f"{error}: {row.acs_id} is going to be deleted") from error

    async def _restore_mark(self, row: Row, *, bare: bool = False) -> bool:
        """See to it that Entra tokens from before the mark are refused; False if they are.

        Args:
            row: the row of the file.
            bare: also for somebody who has no identity, in a row with the mark alone if need be.
                Otherwise the mark comes with the identity.

        Raises:
            BusyError: the row keeps changing.
        """
        mark = row.revoked_before
        if mark is None:
            return False
        for _ in range(TRIES):
            live = await self._store.mappings.read(row.person)
            if live.now >= mark + MARK_LIFETIME:
                return False
            if live.state in {State.ABSENT, State.CREATING} and not bare:
                return False
            if live.revoked_before is not None and live.revoked_before >= mark:
                return False
            if self._dry_run:
                return True
            if live.state is State.ACTIVE:
                # The person may have been given tokens since, for an Entra token from before.
                await self._store.ledger.add_unfinished(row.person)
            if await self._mark(live, row) is not None:
                return True
        raise BusyError("the row keeps changing")

    async def _mark(self, live: IdentityMapping, row: Row) -> IdentityMapping | None:
        change, mark = self._store.mappings.change, row.revoked_before
        match live.state:
            case State.ACTIVE:
                return await change(live, revoked_before=mark, revoke_again=True)
            case State.CREATING:
                # Whoever is creating it finds the row changed, and may not finish.
                return await change(live, revoked_before=mark, lease_until=live.now)
            case State.DELETING:
                return await change(live, revoked_before=mark)
        return await change(live, state=State.ERASED, revoked_before=mark, last_used_on=live.now)

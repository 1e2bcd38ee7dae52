"""How tokens and identities end: revocation, erasure, pruning, and what was left unfinished.

An end is written into the row before ACS is told, and into the ledger before that, so that the
sweeper finds it whatever happens in between. Each step can be repeated. The row is the truth: an
identity that a row names as active is never deleted.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import (
    BrokerError,
    BusyError,
    ForeignIdentityError,
    IdentityGoneError,
    RevokedTokenError,
    StorageUnavailableError,
)
from shared.mappings.identities import (
    CLOCK_TOLERANCE,
    FOREIGN,
    LONGEST_LEASE,
    is_leased,
    is_settled,
)
from shared.mappings.ownership import report_shared
from shared.mappings.table import LEASE, State

if TYPE_CHECKING:
    from datetime import datetime

    from shared.acs.identity import AcsIdentity
    from shared.identifiers import Person
    from shared.mappings.identities import Admit, Identities
    from shared.mappings.ledger import Ledger, Orphan, Unfinished
    from shared.mappings.table import IdentityMapping, IdentityMappings

TRIES = 5  # How often a row may change under us before the caller is told to try again.
# How long a mark is kept when there is no identity: longer than any Entra token lives, which under
# continuous access evaluation is up to 28 hours.
MARK_LIFETIME = timedelta(hours=30)
TABLE_RESOLUTION = timedelta(seconds=1)  # Of the table's clock, as the `Date` header shows it.
RETRY_AFTER, LONGEST_RETRY = timedelta(minutes=5), timedelta(days=1)
# An entry is written before the work that it announces: until then, the work may be on its way.
ANNOUNCED_FOR = timedelta(minutes=2)
RENEWALS, RENEWALS_A_DAY = "renewals", 3


class Endings:
    """Ends people's tokens and identities.

    Args:
        acs: revokes tokens and deletes identities.
        mappings: the table of mappings.
        ledger: what has to be finished later.
        identities: the protocol that creates identities.
    """

    def __init__(
        self,
        *,
        acs: AcsIdentity,
        mappings: IdentityMappings,
        ledger: Ledger,
        identities: Identities,
    ) -> None:
        self._acs = acs
        self._mappings = mappings
        self._ledger = ledger
        self._identities = identities

    async def revoke(self, person: Person, *, admit: Admit) -> bool:
        """Revoke a person's ACS tokens, and refuse Entra tokens from before now.

        A request that read the row before the mark may still hand out a token; so the tokens are
        revoked once more when all such requests have ended, by the sweeper or the next request.

        Args:
            person: whose tokens are revoked.
            admit: is given each row that was read. If it raises RevokedTokenError, the mark that
                is there already covers everything that the caller may revoke.

        Returns:
            Whether ACS has been told. If not, it will be: that is stored.

        Raises:
            BusyError, StorageUnavailableError: it may not be stored; the caller has to repeat it.
        """
        for _ in range(TRIES):
            mapping = await self._mappings.read(person)
            await self._announce(mapping)
            marked: IdentityMapping | None = mapping
            if not _is_revoked(mapping, admit):
                marked = await self._mark(mapping)
            if marked is None:
                continue
            _note(marked)
            if marked.state is State.ACTIVE and marked.revoke_again:
                return await self._tell(marked)
            return marked.state is not State.DELETING
        raise BusyError("the row keeps changing")

    async def erase(self, person: Person, *, reason: str, admit: Admit) -> bool:
        """Delete a person's identity, and leave a mark that refuses Entra tokens from before now.

        Args:
            person: whose identity is deleted.
            reason: why, for the row and the log.
            admit: is given the row, and raises RevokedTokenError if the caller may not erase it.

        Returns:
            Whether it is done. If not, it will be: that is stored.

        Raises:
            BusyError, StorageUnavailableError: it may not be stored; the caller has to repeat it.
            RevokedTokenError: the caller's token has been revoked, and the identity not erased.
        """
        for _ in range(TRIES):
            mapping = await self._mappings.read(person)
            await self._announce(mapping)
            ended = mapping.state in {State.ABSENT, State.ERASED}
            begun = mapping.state is State.DELETING and mapping.revoked_before is not None
            if (ended or begun) and _is_revoked(mapping, admit):
                claimed: IdentityMapping | None = mapping
            else:
                admit(mapping)
                claimed = await self._claim_for_erasure(mapping, reason)
            if claimed is None:
                continue
            _note(claimed)
            if claimed.state is State.ERASED:
                return True
            with suppress(BrokerError):
                return await self._finish_deletion(claimed)
            return False
        raise BusyError("the row keeps changing")

    async def end(self, mapping: IdentityMapping, *, reason: str) -> bool:
        """Delete an identity and its row; False if another request has changed the row before.

        First the row is claimed. That fails if a token request touched the row before, and a token
        request that comes later finds the row claimed.

        Raises:
            ForeignIdentityError: it belongs to another ACS resource; the row is as it was.
            BrokerError: ACS or the table failed; the row says when to try again.
        """
        if mapping.state is State.ACTIVE and not await self._acs.owns(mapping.acs_id):
            raise ForeignIdentityError("the identity belongs to another ACS resource")
        claimed = await self._mappings.change(
            mapping,
            state=State.DELETING,
            reason=mapping.reason or reason,
            lease_until=mapping.now + LEASE,
        )
        return claimed is not None and await self._finish_deletion(claimed)

    async def finish(self, entry: Unfinished) -> bool:
        """Finish what a person's row says has to be done; True if the entry may be struck off.

        A new entry stays for a while, even if the row has been dealt with: it may announce another
        revocation, which is about to be written to the row.

        Raises:
            BrokerError: ACS or the table failed; the entry stays in the ledger.
        """
        mapping = await self._mappings.read(entry.person)
        now = mapping.now
        if is_deletion_due(mapping, now):
            done = await self.end(mapping, reason="interrupted")
        elif mapping.revoke_again and is_settled(mapping, now):
            done = await self._identities.finish_revocation(mapping) is not None
        else:
            done = mapping.state is not State.DELETING and not mapping.revoke_again
        return done and now > entry.since + ANNOUNCED_FOR

    async def delete_orphan(self, orphan: Orphan) -> bool:
        """Delete an identity that is in the ledger, unless its person's row names it after all.

        Raises:
            BrokerError: ACS or the table failed; the ledger says when to try again.
        """
        person = orphan.person or await self._ledger.owner(orphan.acs_id)
        if person is not None:
            mapping = await self._mappings.read(person)
            if mapping.state is State.ACTIVE and mapping.acs_id == orphan.acs_id:
                await self._ledger.remove_orphan(orphan.acs_id)
                return False
            if not await self._is_out_of_reach(mapping):
                return False  # For now: the next run looks again.
        if await self._is_used_by_another(orphan.acs_id, person):
            await self._ledger.remove_orphan(orphan.acs_id)
            return False
        try:
            await self._acs.delete(orphan.acs_id)
            await self._ledger.forget_owner(orphan.acs_id, person)
        except BrokerError:
            now = await self._mappings.server_time()
            await self._ledger.postpone(orphan, retry_on=now + retry_wait(orphan.failures))
            raise
        _record_deletion(orphan.acs_id, f"orphan: {orphan.reason}", person)
        await self._ledger.remove_orphan(orphan.acs_id)
        return True

    async def heal(self, mapping: IdentityMapping) -> None:
        """Let a person have a new identity, because ACS no longer knows the one in the row.

        It is done for a few people a day at most: if ACS knows none of our identities, the endpoint
        is wrong, or somebody deleted the resource, and nothing must be replaced.

        Raises:
            IdentityGoneError: the person has to wait for the operator.
        """
        if mapping.gone_on is None:
            marked = await self._mappings.change(mapping, gone_on=mapping.now)
            if marked is None:
                return  # The caller reads the row again.
            mapping = marked
        if not await self._acs.owns(mapping.acs_id):
            raise IdentityGoneError("the identity belongs to another ACS resource")
        if not await self._ledger.take(RENEWALS, day=mapping.now.date(), limit=RENEWALS_A_DAY):
            raise IdentityGoneError(f"{RENEWALS_A_DAY} identities were renewed today already")
        await self.give_up(mapping)

    async def give_up(self, mapping: IdentityMapping, *, foreign: bool = False) -> bool:
        """Mark an identity that ACS does not know for deletion: the next request gets another.

        Args:
            mapping: the row.
            foreign: the identity belongs to another ACS resource, so it cannot be deleted here.

        Returns:
            False if another writer has changed the row.
        """
        reason = FOREIGN if foreign else "gone"
        claimed = await self._mappings.change(
            mapping, state=State.DELETING, reason=reason, lease_until=None
        )
        if claimed is not None:
            fields = {"acs_id": mapping.acs_id, **mapping.person._asdict()}
            audit.record("identity_given_up", fields, level=logging.WARNING)
        return claimed is not None

    async def _announce(self, mapping: IdentityMapping) -> None:
        """Write into the ledger that a row is about to have something to finish.

        Where there is no identity, one write ends it all: whoever revokes or erases people who were
        never here keeps no timer busy.
        """
        if mapping.state not in {State.ABSENT, State.ERASED}:
            await self._ledger.add_unfinished(mapping.person)

    async def _mark(self, mapping: IdentityMapping) -> IdentityMapping | None:
        """Store the mark; None if another writer was first."""
        mark = _mark_of(mapping)
        match mapping.state:
            case State.ABSENT | State.ERASED:
                return await self._mappings.change(
                    mapping, state=State.ERASED, revoked_before=mark, last_used_on=mapping.now
                )
            case State.CREATING:
                # Whoever is creating it finds the row changed, and may not finish.
                return await self._mappings.change(mapping, revoked_before=mark, lease_until=None)
            case State.DELETING:
                return await self._mappings.change(mapping, revoked_before=mark)
        return await self._mappings.change(mapping, revoked_before=mark, revoke_again=True)

    async def _tell(self, mapping: IdentityMapping) -> bool:
        """Let ACS revoke the tokens; False if that has to be left to the sweeper."""
        try:
            await self._acs.revoke(mapping.acs_id)
        except IdentityGoneError:
            return True
        except BrokerError as error:
            fields = {"code": error.code, "reason": str(error), **mapping.person._asdict()}
            audit.record("tokens_not_revoked", fields, level=logging.WARNING)
            return False
        return True

    async def _claim_for_erasure(
        self, mapping: IdentityMapping, reason: str
    ) -> IdentityMapping | None:
        if mapping.state in {State.ABSENT, State.ERASED}:
            return await self._mark(mapping)
        return await self._mappings.change(
            mapping,
            state=State.DELETING,
            reason=FOREIGN if mapping.reason == FOREIGN else reason,
            revoked_before=_mark_of(mapping),
            revoke_again=False,
            lease_until=mapping.now + LEASE,
        )

    async def _finish_deletion(self, claimed: IdentityMapping) -> bool:
        """Delete the identity of a claimed row in ACS, then end the row."""
        if claimed.acs_id:
            acs_id, person = claimed.acs_id, claimed.person
            try:
                kept = claimed.reason == FOREIGN or await self._is_used_by_another(acs_id, person)
                if not kept:
                    await self._acs.delete(acs_id)
                await self._ledger.forget_owner(acs_id, person)
            except BrokerError:
                with suppress(StorageUnavailableError):
                    await self._mappings.change(
                        claimed,
                        failures=claimed.failures + 1,
                        lease_until=claimed.now + retry_wait(claimed.failures),
                    )
                raise
            if not kept:
                _record_deletion(acs_id, claimed.reason, person)
        await self._end_row(claimed)
        return True

    async def _is_used_by_another(self, acs_id: str, person: Person | None) -> bool:
        """Return whether an identity is in use by somebody else, as after a restore by hand."""
        owner = await self._ledger.owner(acs_id)
        if owner in {None, person}:
            return False
        found = await self._mappings.read(owner)
        if found.acs_id != acs_id or found.state is not State.ACTIVE:
            return False
        report_shared(acs_id, owner)
        return True

    async def _end_row(self, claimed: IdentityMapping) -> None:
        """Remove a row, or leave its mark alone for as long as that is needed.

        If another writer has changed the row meanwhile, it is for that one to end it.
        """
        if is_mark_needed(claimed, claimed.now):
            await self._mappings.change(
                claimed,
                state=State.ERASED,
                acs_id="",
                reason="",
                failures=0,
                lease_until=None,
                gone_on=None,
                revoke_again=False,
                created_on=claimed.now,
                last_used_on=claimed.now,
            )
        else:
            await self._mappings.remove(claimed)

    async def _is_out_of_reach(self, mapping: IdentityMapping) -> bool:
        """See to it that a row cannot come to name an orphan any more; False if it still might.

        Whoever made the orphan may have written it to the row, and that may arrive late: a row that
        is still being created is therefore changed, so that such a write fails.
        """
        if mapping.state is not State.CREATING:
            return True
        if is_leased(mapping, mapping.now, LONGEST_LEASE):
            return False
        return await self._mappings.change(mapping) is not None


def is_deletion_due(mapping: IdentityMapping, now: datetime) -> bool:
    """Return whether a deletion was interrupted, or failed and may be tried again."""
    if mapping.state is not State.DELETING:
        return False
    return not is_leased(mapping, now, LONGEST_RETRY + LEASE)


def is_mark_needed(mapping: IdentityMapping, now: datetime) -> bool:
    """Return whether there may still be Entra tokens that a row's mark refuses."""
    return mapping.revoked_before is not None and now < mapping.revoked_before + MARK_LIFETIME


def retry_wait(failures: int) -> timedelta:
    """Return how long to wait after one more failure: 5 minutes, 10, 20, ... and at most a day."""
    doubled: int = 2 ** min(failures, 10)
    return min(RETRY_AFTER * doubled, LONGEST_RETRY)


def _mark_of(mapping: IdentityMapping) -> datetime:
    """Return the mark for a row read just now.

    Marks never move back, except from a future in which they would lock the person out.
    """
    mark, before = mapping.now + TABLE_RESOLUTION, mapping.revoked_before
    return max(mark, before) if before and before < mark + CLOCK_TOLERANCE else mark


def _is_revoked(mapping: IdentityMapping, admit: Admit) -> bool:
    try:
        admit(mapping)
    except RevokedTokenError:
        return True
    return False


def _note(mapping: IdentityMapping) -> None:
    audit.note(acs_id=mapping.acs_id or None, revoked_before=str(mapping.revoked_before))


def _record_deletion(acs_id: str, reason: str, person: Person | None) -> None:
    fields = {"acs_id": acs_id, "reason": reason}
    audit.record("identity_deleted", fields | (person._asdict() if person else {}))

"""Brings ACS identities along that people have already: from another system, or from a backup.

The index is written first, and only for an identity that nobody else has; the row after it. So one
identity never belongs to two people, whatever else is going on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shared.errors import BusyError, ConflictError
from shared.mappings.identities import LONGEST_LEASE, is_leased, not_in_future
from shared.mappings.ownership import claim
from shared.mappings.table import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from shared.identifiers import Person
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMapping, IdentityMappings

TRIES = 3


class AcsResource(Protocol):
    """The ACS resource that identities must belong to, such as `AcsIdentity`."""

    async def owns(self, acs_id: str) -> bool:
        """Return whether an identity belongs to it."""


class Adoption:
    """Gives people identities that exist in ACS already."""

    def __init__(self, *, acs: AcsResource, mappings: IdentityMappings, ledger: Ledger) -> None:
        self._acs = acs
        self._mappings = mappings
        self._ledger = ledger

    async def adopt(  # noqa: PLR0913 - the columns of a row
        self,
        person: Person,
        acs_id: str,
        *,
        created_on: datetime | None = None,
        last_used_on: datetime | None = None,
        revoked_before: datetime | None = None,
        revoke_again: bool = False,
        restoring: bool = False,
        is_known: Callable[[str], Awaitable[bool]] | None = None,
    ) -> bool:
        """Give a person an identity.

        Args:
            person: who gets it; a person who has an identity keeps it.
            acs_id: the identity.
            created_on: when it was created, if that is known.
            last_used_on: when it was last used; now, if that is not known.
            revoked_before: a mark that the row must have; a newer one in the row stays.
            revoke_again: if the person has it only now, its tokens have to be revoked once more.
            restoring: the identity was the person's before; so whoever was erased since, or had
                their tokens revoked, does not get it back.

            is_known: asks ACS whether it knows the identity. It is asked when nobody else can begin
                to delete it any more.

        Returns:
            Whether the person has it only now; False if that was so before.

        Raises:
            ConflictError: the person has another identity; somebody else has this one; it is about
                to be deleted; ACS does not know it; or it belongs to another ACS resource.
            BusyError: another request is creating or deleting the person's identity.
        """
        for _ in range(TRIES):
            mapping = await self._mappings.read(person)
            now = mapping.now
            # A mark from the future would lock the person out until then.
            mark = not_in_future(revoked_before, now) if revoked_before else None
            if mapping.acs_id == acs_id and mapping.state is State.ACTIVE:
                if await self._has_mark(mapping, mark):
                    return False
                continue
            _refuse_occupied(mapping, restoring=restoring)
            await self._claim(acs_id, person)
            if is_known is not None and not await is_known(acs_id):
                raise ConflictError("ACS does not know the identity")
            marks = [each for each in (mapping.revoked_before, mark) if each]
            adopted = await self._mappings.change(
                mapping,
                state=State.ACTIVE,
                acs_id=acs_id,
                generation=mapping.generation + 1,
                lease_until=None,
                failures=0,
                created_on=min(created_on or now, now),
                last_used_on=min(last_used_on or now, now),
                revoked_before=max(marks, default=None),
                revoke_again=revoke_again,
                gone_on=None,
            )
            if adopted is not None:
                return True
        raise BusyError("the row keeps changing")

    async def foresee(self, person: Person, acs_id: str, *, restoring: bool = False) -> bool:
        """Return what `adopt` would return now, or raise what it would raise; change nothing."""
        mapping = await self._mappings.read(person)
        if mapping.acs_id == acs_id and mapping.state is State.ACTIVE:
            return False
        _refuse_occupied(mapping, restoring=restoring)
        await self._refuse_foreign(acs_id)
        owner = await self._ledger.owner(acs_id)
        if owner is not None and owner != person:
            found = await self._mappings.read(owner)
            if found.acs_id == acs_id or found.state is State.CREATING:
                raise ConflictError("somebody else has this identity")
        await self._refuse_orphan(acs_id)
        return True

    async def _has_mark(self, mapping: IdentityMapping, mark: datetime | None) -> bool:
        """See to it that a row has a mark, or a newer one; False if the row has changed."""
        if mark is None or (mapping.revoked_before and mapping.revoked_before >= mark):
            return True
        return await self._mappings.change(mapping, revoked_before=mark) is not None

    async def _claim(self, acs_id: str, person: Person) -> None:
        """Enter the person into the index as the owner."""
        await self._refuse_foreign(acs_id)
        if not await claim(acs_id, person, mappings=self._mappings, ledger=self._ledger):
            raise ConflictError("somebody else has this identity")
        # Asked last: an identity gets into the ledger before its row is changed, so whoever has
        # seen that no row names it finds it there.
        await self._refuse_orphan(acs_id)

    async def _refuse_foreign(self, acs_id: str) -> None:
        if not await self._acs.owns(acs_id):
            raise ConflictError("the identity belongs to another ACS resource")

    async def _refuse_orphan(self, acs_id: str) -> None:
        if await self._ledger.is_orphan(acs_id):
            raise ConflictError("the identity is about to be deleted")


def _refuse_occupied(mapping: IdentityMapping, *, restoring: bool) -> None:
    """Raise an error if a row is not free for an identity."""
    match mapping.state:
        case State.ACTIVE:
            raise ConflictError("the person has another identity")
        case State.CREATING if is_leased(mapping, mapping.now, LONGEST_LEASE):
            raise BusyError("an identity is being created for the person")
        # One that is being created, too: the person was erased, came back, and nothing came of it.
        case _ if restoring and mapping.revoked_before:
            raise ConflictError("the person was erased, or signed out everywhere, since")
        case State.DELETING if restoring:
            raise ConflictError("the person's identity is being deleted")
        case State.DELETING:
            raise BusyError("the person's identity is being deleted")

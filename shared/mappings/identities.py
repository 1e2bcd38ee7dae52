"""The identity protocol: one ACS identity for each person, despite races, crashes and failures.

ACS can neither list identities nor create one idempotently, so an id that is lost is lost for
good. Therefore the intent is written before the identity is created, conditional writes alone
decide who may write, and no token is issued for an identity before a row points to it. A crash can
leave behind an identity that never had a token, a row whose lease runs out, or an entry in the
ledger; the next request or the timer continues from there.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import BrokerError, BusyError, StorageUnavailableError
from shared.mappings.table import LEASE, IdentityMapping, State
from shared.settings import TOUCH_INTERVAL
from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.acs.identity import AcsIdentity
    from shared.identifiers import Person
    from shared.mappings.table import IdentityMappings

POLL_SECONDS = 0.15
POLLS = 20  # Another request gets three seconds to finish, then the caller is told to try again.


def utc_now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


class Step(Enum):
    """What to do next for a person who needs an identity."""

    TAKE_OVER = auto()  # A request began to create it, and did not finish.
    FINISH_DELETING = auto()  # A request or the timer began to delete it, and did not finish.
    WAIT = auto()  # It is being created or deleted right now.
    TOUCH = auto()  # It exists, and its last use has not been recorded for a while.
    USE = auto()  # It exists.


def next_step(mapping: IdentityMapping, *, now: datetime) -> Step:
    """Return what to do next, given the person's row."""
    if mapping.state is State.ACTIVE:
        return Step.TOUCH if now - mapping.last_used_on > TOUCH_INTERVAL else Step.USE
    if mapping.lease_until is not None and now < mapping.lease_until:
        return Step.WAIT
    return Step.TAKE_OVER if mapping.state is State.CREATING else Step.FINISH_DELETING


class Identities:
    """Finds, creates and deletes people's ACS identities.

    Args:
        acs: creates and deletes identities.
        mappings: the table that remembers them.
        clock: returns the current time, in UTC.
        poll_seconds: how long to wait before checking whether another request has finished.
    """

    def __init__(
        self,
        *,
        acs: AcsIdentity,
        mappings: IdentityMappings,
        clock: Callable[[], datetime] = utc_now,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._acs = acs
        self._mappings = mappings
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._in_flight = SingleFlight[IdentityMapping]()

    async def find(self, person: Person) -> IdentityMapping | None:
        """Return a person's mapping if it has an identity to use, else None."""
        mapping = await self._mappings.read(person)
        return mapping if mapping is not None and mapping.state is State.ACTIVE else None

    async def get_or_create(self, person: Person) -> IdentityMapping:
        """Return a person's active mapping, with its last use recorded; create it if necessary.

        Concurrent calls for one person share the work within a process. The work goes on when a
        caller stops waiting, so that no half-made identity is left behind.

        Raises:
            BusyError: another request is creating or deleting it, and takes longer than we wait.
            StorageUnavailableError, Upstream…Error: the table or ACS failed.
        """
        return await self._in_flight.run(person, lambda: self._get_or_create(person))

    async def end(self, mapping: IdentityMapping, *, reason: str) -> bool:
        """Delete an identity and its mapping; False if another request has changed the mapping.

        First the row is claimed. That fails if a token request touched the row before, and a token
        request that comes later finds the row claimed. Each step can be repeated.
        """
        claimed = await self._mappings.change(
            mapping, state=State.DELETING, lease_until=self._clock() + LEASE
        )
        if claimed is None:
            return False
        if claimed.acs_id:
            try:
                await self._acs.delete(claimed.acs_id)
            except BrokerError:
                await self._give_back(claimed)
                raise
            deleted = {"acs_id": claimed.acs_id, "reason": reason}
            audit.record("identity_deleted", deleted | claimed.person._asdict())
        return await self._mappings.remove(claimed)

    async def delete_orphan(self, acs_id: str) -> bool:
        """Delete an identity that is in the ledger, then strike it off; return True."""
        await self._acs.delete(acs_id)
        audit.record("identity_deleted", {"acs_id": acs_id, "reason": "orphan"})
        await self._mappings.remove_orphan(acs_id)
        return True

    async def _get_or_create(self, person: Person) -> IdentityMapping:
        for _ in range(POLLS):
            mapping = await self._mappings.read(person)
            made = await self._advance(person, mapping)
            if made is not None:
                return made
        raise BusyError("another request is creating or deleting this identity")

    async def _advance(
        self, person: Person, mapping: IdentityMapping | None
    ) -> IdentityMapping | None:
        """Do the next step; None if the table has to be read again."""
        now = self._clock()
        lease = now + LEASE
        if mapping is None:
            intent = IdentityMapping(
                person=person,
                state=State.CREATING,
                created_on=now,
                last_used_on=now,
                lease_until=lease,
            )
            return await self._create(await self._mappings.insert(intent))
        match next_step(mapping, now=now):
            case Step.USE:
                return mapping
            case Step.TOUCH:
                return await self._mappings.change(mapping, last_used_on=now)
            case Step.TAKE_OVER:
                taken_over = await self._mappings.change(
                    mapping, lease_until=lease, generation=mapping.generation + 1
                )
                return await self._create(taken_over)
            case Step.FINISH_DELETING:
                await self.end(mapping, reason="interrupted")
            case Step.WAIT:
                await asyncio.sleep(self._poll_seconds)
        return None

    async def _create(self, intent: IdentityMapping | None) -> IdentityMapping | None:
        """Create the identity that our intent announced; None if the intent was not written."""
        if intent is None:
            return None
        try:
            acs_id = await self._acs.create()
        except BrokerError as error:
            # ACS may have created it all the same. It has no token, and never will have.
            fields = {"code": error.code, **intent.person._asdict()}
            audit.record("identity_not_created", fields, level=logging.WARNING)
            await self._give_back(intent)
            raise
        try:
            return await self._finalise(intent, acs_id)
        except BrokerError as error:
            fields = {"code": error.code, "acs_id": acs_id, **intent.person._asdict()}
            audit.record("identity_unreferenced", fields, level=logging.ERROR)
            raise

    async def _give_back(self, mapping: IdentityMapping) -> None:
        """End our lease, so that the next request can continue at once."""
        with suppress(StorageUnavailableError):
            await self._mappings.change(mapping, lease_until=self._clock())

    async def _finalise(self, intent: IdentityMapping, acs_id: str) -> IdentityMapping | None:
        """Point the row to the new identity; None if another request has taken over the row."""
        now = self._clock()
        mapping = await self._mappings.change(
            intent, state=State.ACTIVE, acs_id=acs_id, lease_until=None, last_used_on=now
        )
        if mapping is not None:
            audit.note(created=True)
            return mapping
        # Our write may have succeeded without our seeing it, and then been overwritten.
        found = await self._mappings.read(intent.person)
        if found is None or found.acs_id != acs_id:
            await self._mappings.add_orphan(acs_id, reason="lost_lease", now=now)
            with suppress(BrokerError):  # It is in the ledger, so the timer will delete it.
                await self.delete_orphan(acs_id)
        return None

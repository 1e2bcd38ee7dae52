"""The identity protocol: one ACS identity for each person, whatever races, crashes or fails.

ACS can neither list identities nor create one idempotently, so an id that is lost is lost for
good. Therefore the intent is written before the identity is made, who may write is decided by
conditional writes alone, and an identity hands out tokens only once a row points to it. What a
crash can leave behind is an identity that never had a token, a row whose lease runs out, or an
entry in the ledger; the next request or the timer goes on from there.
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
POLLS = 20  # Three seconds for somebody else to finish, then the caller is asked to come back.


def utc_now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)


class Step(Enum):
    """What to do next for somebody who needs an identity."""

    TAKE_OVER = auto()  # Somebody began and did not finish.
    FINISH_DELETING = auto()  # Somebody began to delete and did not finish.
    WAIT = auto()  # Somebody is at work right now.
    TOUCH = auto()  # It is there, and its last use was noted long ago.
    USE = auto()  # It is there.


def next_step(mapping: IdentityMapping, *, now: datetime) -> Step:
    """Return what to do next, given the person's row."""
    if mapping.state is State.ACTIVE:
        return Step.TOUCH if now - mapping.last_used_on > TOUCH_INTERVAL else Step.USE
    if mapping.lease_until is not None and now < mapping.lease_until:
        return Step.WAIT
    return Step.TAKE_OVER if mapping.state is State.CREATING else Step.FINISH_DELETING


class Identities:
    """Makes, finds and ends people's ACS identities.

    Args:
        acs: creates and deletes identities.
        mappings: the table that remembers them.
        clock: the time, in UTC.
        poll_seconds: how long to wait before looking whether somebody else has finished.
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
        """Return a person's mapping if there is one with an identity."""
        mapping = await self._mappings.read(person)
        return mapping if mapping is not None and mapping.state is State.ACTIVE else None

    async def get_or_create(self, person: Person) -> IdentityMapping:
        """Return a person's active mapping, whose last use is noted; make it if there is none.

        Concurrent calls for one person share the work within a process. It goes on where a caller
        stops waiting, so that no half-made identity is left because somebody was impatient.

        Raises:
            BusyError: somebody else is creating or deleting it, for longer than we wait.
            StorageUnavailableError, Upstream…Error: the table or ACS failed.
        """
        return await self._in_flight.run(person, lambda: self._get_or_create(person))

    async def end(self, mapping: IdentityMapping, *, reason: str) -> bool:
        """Delete an identity and its mapping; False if somebody changed the mapping meanwhile.

        The claim comes first: a token request that touched the row before makes it fail, one that
        comes after finds the row taken. Each step can be done again.
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
        raise BusyError("somebody else is at work on this identity")

    async def _advance(
        self, person: Person, mapping: IdentityMapping | None
    ) -> IdentityMapping | None:
        """Do the next step; None where the table has to be read again."""
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
        """Make the identity that an intent of ours announces; None if the intent is not ours."""
        if intent is None:
            return None
        try:
            acs_id = await self._acs.create()
        except BrokerError as error:
            # ACS may have made it all the same. No token was made for it, and none will be.
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
        """Let the next request go on at once from where we could not."""
        with suppress(StorageUnavailableError):
            await self._mappings.change(mapping, lease_until=self._clock())

    async def _finalise(self, intent: IdentityMapping, acs_id: str) -> IdentityMapping | None:
        """Let the row point to the new identity; None if another owner has taken the row over."""
        now = self._clock()
        mapping = await self._mappings.change(
            intent, state=State.ACTIVE, acs_id=acs_id, lease_until=None, last_used_on=now
        )
        if mapping is not None:
            audit.note(created=True)
            return mapping
        # Our write may have got through unseen, with somebody else's on top of it.
        found = await self._mappings.read(intent.person)
        if found is None or found.acs_id != acs_id:
            await self._mappings.add_orphan(acs_id, reason="lost_lease", now=now)
            with suppress(BrokerError):  # It is in the ledger: the timer does it.
                await self.delete_orphan(acs_id)
        return None

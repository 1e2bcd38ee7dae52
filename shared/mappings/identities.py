"""The identity protocol: one ACS identity for each person, despite races, crashes and failures.

ACS can neither list identities nor create one idempotently, so an id that is lost is lost for
good. Therefore the intent is written before the identity is created, conditional writes alone
decide who may write, and no token is issued for an identity before a row points to it. A crash can
leave behind an identity that never had a token, a row whose lease runs out, or an entry in the
ledger; the next request or a timer continues from there.

Times are those of the table's own clock, as it was when the row was read: the clocks of our
instances may differ.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import (
    BrokerError,
    BusyError,
    IdentityGoneError,
    StorageUnavailableError,
    UpstreamAuthError,
    UpstreamThrottledError,
)
from shared.mappings.ownership import claim, report_shared
from shared.mappings.table import LEASE, State
from shared.settings import TOUCH_INTERVAL
from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from shared.acs.identity import AcsIdentity
    from shared.identifiers import Person
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMapping, IdentityMappings

    Admit = Callable[[IdentityMapping], None]

POLL_SECONDS = 0.15
POLLS = 20  # Another request gets three seconds to finish, then the caller is told to try again.
# After a create that may have made an identity: how long until the next may be tried, in seconds.
# Each try may leave an identity behind that nobody can name.
CREATE_BACKOFF = (2, 6, 18, 54, 60)
FOREIGN = "foreign"  # The reason of a row whose identity belongs to another ACS resource.
# A row whose lease ends later than any lease can is damaged: the lease counts as over.
LONGEST_LEASE = timedelta(minutes=5)
CLOCK_TOLERANCE = timedelta(minutes=5)
# From the moment a mark is stored until the last request that read the row without it has been
# answered: a request takes 7.5 s at most, a call to ACS 4 s.
SETTLED_AFTER = timedelta(seconds=20)


class Step(Enum):
    """What to do next for a person who needs an identity."""

    CREATE = auto()  # There is none, or the one before it has been erased.
    TAKE_OVER = auto()  # A request began to create it, and did not finish.
    REPLACE = auto()  # It is being deleted, so the person gets another one.
    WAIT = auto()  # It is being created right now, or its tokens are about to be revoked.
    REVOKE = auto()  # Its tokens have to be revoked once more.
    TOUCH = auto()  # It exists, and its last use has not been recorded for a while.
    USE = auto()  # It exists.


def next_step(mapping: IdentityMapping, *, now: datetime) -> Step:
    """Return what to do next, given the person's row."""
    match mapping.state:
        case State.ABSENT | State.ERASED:
            return Step.CREATE
        case State.DELETING:
            return Step.REPLACE
        case State.CREATING:
            return Step.WAIT if is_leased(mapping, now, LONGEST_LEASE) else Step.TAKE_OVER
    if mapping.revoke_again:
        return Step.REVOKE if is_settled(mapping, now) else Step.WAIT
    # A date in the future was written by a machine whose clock was wrong.
    used = mapping.last_used_on
    fresh = now - TOUCH_INTERVAL <= used <= now + CLOCK_TOLERANCE
    return Step.USE if fresh else Step.TOUCH


def is_leased(mapping: IdentityMapping, now: datetime, longest: timedelta) -> bool:
    """Return whether somebody else is at work on a row, or has to wait before going on."""
    lease_until = mapping.lease_until
    return lease_until is not None and now < lease_until <= now + longest


def is_in_future(date: datetime, now: datetime) -> bool:
    """Return whether a date lies ahead by more than clocks differ: then it is wrong."""
    return date > now + CLOCK_TOLERANCE


def not_in_future(date: datetime, now: datetime) -> datetime:
    """Return a date, or now if it is in the future: it cannot have been meant to be later."""
    return now if is_in_future(date, now) else date


def is_settled(mapping: IdentityMapping, now: datetime) -> bool:
    """Return whether all requests that read the row before it was last written have ended."""
    return mapping.written_on is None or now >= mapping.written_on + SETTLED_AFTER


class Identities:
    """Finds and creates people's ACS identities.

    Args:
        acs: creates identities.
        mappings: the table that remembers them.
        ledger: the index, and the identities that have to be deleted.
        poll_seconds: how long to wait before checking whether another request has finished.
    """

    def __init__(
        self,
        *,
        acs: AcsIdentity,
        mappings: IdentityMappings,
        ledger: Ledger,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._acs = acs
        self._mappings = mappings
        self._ledger = ledger
        self._poll_seconds = poll_seconds
        self._in_flight = SingleFlight[None]()

    async def find(self, person: Person, *, admit: Admit) -> IdentityMapping | None:
        """Return a person's mapping if it has an identity, else None.

        Raises:
            IdentityGoneError: ACS has said that it does not know the identity.
            Whatever `admit` raises.
        """
        mapping = await self._mappings.read(person)
        admit(mapping)
        if mapping.state is not State.ACTIVE:
            return None
        refuse_gone(mapping)
        return mapping

    async def get_or_create(self, person: Person, *, admit: Admit) -> IdentityMapping:
        """Return a person's active mapping, with its last use recorded; create it if necessary.

        Each call reads the row itself, so that it sees every mark stored before it began. What has
        to be done then is shared among the calls of one process, and goes on when a caller stops
        waiting, so that no half-made identity is left behind.

        Args:
            person: whose identity is wanted.
            admit: is given each row that was read, and raises if the caller may not go on.

        Raises:
            BusyError: another request is creating it and takes longer than we wait; or its tokens
                are being revoked.
            StorageUnavailableError, Upstream…Error: the table or ACS failed.
            Whatever `admit` raises.
        """
        wait = timedelta()
        for _ in range(POLLS):
            mapping = await self._mappings.read(person)
            admit(mapping)
            step = next_step(mapping, now=mapping.now)
            if step is Step.USE:
                return mapping
            wait = _wait(mapping)
            if step is Step.WAIT and mapping.revoke_again:
                break  # Polling is for what ends sooner.
            made: list[IdentityMapping | None] = []

            async def advance(
                mapping: IdentityMapping = mapping,
                step: Step = step,
                made: list[IdentityMapping | None] = made,
            ) -> None:
                made.append(await self._advance(mapping, step))

            await self._in_flight.run(person, advance)
            # Another call's work says nothing about us, and may be older than we are: read again.
            if made and made[0] is not None:
                return made[0]
        raise BusyError("another request is at work on this identity", retry_after=_seconds(wait))

    async def finish_revocation(self, mapping: IdentityMapping) -> IdentityMapping | None:
        """Revoke an identity's tokens once more; None if another writer has changed the row."""
        with suppress(IdentityGoneError):
            await self._acs.revoke(mapping.acs_id)
        fields = {"acs_id": mapping.acs_id, "again": True, **mapping.person._asdict()}
        audit.record("tokens_revoked", fields)
        return await self._mappings.change(mapping, revoke_again=False)

    async def check_owner(self, mapping: IdentityMapping) -> None:
        """Refuse a row that names somebody else's identity; write a missing index entry.

        Raises:
            StorageUnavailableError: it does, or Table Storage failed.
        """
        acs_id, person = mapping.acs_id, mapping.person
        if await self._ledger.owner(acs_id) == person:
            return
        if await claim(acs_id, person, mappings=self._mappings, ledger=self._ledger):
            return
        # Nobody's: the identity has just been taken out of the index, so the row has changed, too.
        if await self._ledger.owner(acs_id) is not None:
            report_shared(acs_id, person)
            raise StorageUnavailableError("a row that names somebody else's identity")

    async def _advance(self, mapping: IdentityMapping, step: Step) -> IdentityMapping | None:
        """Do the next step; None if the table has to be read again."""
        match step:
            case Step.WAIT:
                await asyncio.sleep(self._poll_seconds)
                return None
            case Step.REVOKE:
                await self.finish_revocation(mapping)
                return None  # Its use has not been recorded yet.
            case Step.TOUCH:
                await self.check_owner(mapping)
                return await self._mappings.change(mapping, last_used_on=mapping.now)
        # Asked before anything is stored that would have to be taken back.
        async with self._acs.turn_to_create(mapping.person) as turn:
            intent = await self._announce(mapping, step)
            if intent is not None:
                return await self._create(intent)
            turn.skip()
            return None

    async def _announce(self, mapping: IdentityMapping, step: Step) -> IdentityMapping | None:
        """Announce a create in the row; None if another request has changed the row."""
        now = mapping.now
        match step:
            case Step.REPLACE if mapping.reason == FOREIGN:
                await self._ledger.forget_owner(mapping.acs_id, mapping.person)
            case Step.REPLACE if mapping.acs_id:
                await self._ledger.add_orphan(
                    mapping.acs_id, person=mapping.person, reason=mapping.reason, now=now
                )
        return await self._mappings.change(
            mapping,
            state=State.CREATING,
            acs_id="",
            reason="",
            gone_on=None,
            revoke_again=False,
            failures=mapping.failures if step is Step.TAKE_OVER else 0,
            generation=mapping.generation + 1,
            lease_until=now + LEASE,
            created_on=mapping.created_on if step is Step.TAKE_OVER else now,
            last_used_on=now,
        )

    async def _create(self, intent: IdentityMapping) -> IdentityMapping | None:
        """Create the identity that our intent announced; None if the row was taken over."""
        try:
            acs_id = await self._acs.create()
        except BrokerError as error:
            # ACS may have created it all the same. It has no token, and never will have.
            fields = {"code": error.code, "reason": str(error), **intent.person._asdict()}
            audit.record("identity_not_created", fields, level=logging.WARNING)
            await self._give_back(intent, error)
            raise
        try:
            # First the index, so that it never lacks an identity that somebody uses. An entry that
            # a crash leaves over is removed by the daily check.
            await self._ledger.index(acs_id, intent.person)
            return await self._finalise(intent, acs_id)
        except BrokerError as error:
            await self._keep_unconfirmed(intent, acs_id, error)
            raise

    async def _give_back(self, intent: IdentityMapping, error: BrokerError) -> None:
        """Let the next request go on: at once if ACS refused, later if it may have created."""
        failures, lease_until = intent.failures, None
        if not isinstance(error, UpstreamAuthError | UpstreamThrottledError):
            wait = CREATE_BACKOFF[min(failures, len(CREATE_BACKOFF) - 1)]
            failures += 1
            lease_until = intent.now + timedelta(seconds=wait)
            error.retry_after = max(error.retry_after or 0, wait)
        with suppress(StorageUnavailableError):
            await self._mappings.change(intent, lease_until=lease_until, failures=failures)

    async def _finalise(self, intent: IdentityMapping, acs_id: str) -> IdentityMapping | None:
        """Point the row to the new identity; None if another request has taken over the row."""
        mapping = await self._mappings.change(
            intent,
            state=State.ACTIVE,
            acs_id=acs_id,
            lease_until=None,
            failures=0,
            last_used_on=intent.now,
        )
        if mapping is not None:
            audit.note(created=True)
            return mapping
        # Our write may have succeeded without our seeing it, and then been overwritten.
        found = await self._mappings.read(intent.person)
        if found.acs_id != acs_id:
            await self._ledger.add_orphan(
                acs_id, person=intent.person, reason="lost_lease", now=intent.now
            )
        return None

    async def _keep_unconfirmed(
        self, intent: IdentityMapping, acs_id: str, error: BrokerError
    ) -> None:
        """Keep an identity in the ledger of which we do not know whether a row points to it.

        Whoever works through the ledger looks at the row first.
        """
        try:
            await self._ledger.add_orphan(
                acs_id, person=intent.person, reason="unconfirmed", now=intent.now
            )
            kept = True
        except StorageUnavailableError:
            kept = False
        fields = {"acs_id": acs_id, "kept": kept, "code": error.code, **intent.person._asdict()}
        audit.record("identity_unconfirmed", fields, level=logging.WARNING)


def refuse_gone(mapping: IdentityMapping) -> None:
    """Raise IdentityGoneError if ACS has said that it does not know a row's identity."""
    if mapping.gone_on is not None:
        raise IdentityGoneError("ACS did not know the identity when it was last used")


def _wait(mapping: IdentityMapping) -> timedelta:
    """Return how long a row that is being worked on may remain so."""
    if mapping.state is State.CREATING and mapping.lease_until is not None:
        return mapping.lease_until - mapping.now
    if mapping.revoke_again and mapping.written_on is not None:
        return mapping.written_on + SETTLED_AFTER - mapping.now
    return timedelta()


def _seconds(wait: timedelta) -> float:
    return max(BusyError.retry_after, wait.total_seconds())

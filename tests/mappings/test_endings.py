from __future__ import annotations

import asyncio
import json
import math
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO
from shared import audit
from shared.broker import refuse_revoked
from shared.entra.access_tokens import Caller
from shared.errors import (
    BrokerError,
    BusyError,
    ForeignIdentityError,
    IdentityGoneError,
    RevokedTokenError,
    StorageUnavailableError,
    UpstreamUnavailableError,
)
from shared.identifiers import Person
from shared.mappings.endings import (
    ANNOUNCED_FOR,
    MARK_LIFETIME,
    is_deletion_due,
    is_mark_needed,
    retry_wait,
)
from shared.mappings.identities import FOREIGN, SETTLED_AFTER
from shared.mappings.ledger import Unfinished
from shared.mappings.table import LEASE, State, partition_key
from tests.emulated import ACS_ID, anybody, mapping_of, until

if TYPE_CHECKING:
    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.mappings.endings import Endings
    from shared.mappings.identities import Admit, Identities
    from shared.mappings.ledger import Orphan
    from shared.mappings.table import IdentityMapping
    from tests.emulated import Clock, Store

HOUR = timedelta(hours=1)
# When a row was written is told by Azurite's clock, which runs on while that of the tests stands.
SETTLED_SECONDS = SETTLED_AFTER.total_seconds() + 60
FOREIGN_ID = ACS_ID.replace("ac5ac5ac", "0e0e0e0e")
# How ACS can fail a revocation or a deletion.
pytestmark = pytest.mark.usefixtures("every_audit_line")

ACS_FAULTS = pytest.mark.parametrize(
    "fault", [{"status": 503}, {"status": 403}, {"status": 400}, {"status": 429}]
)


def signed_in(person: Person, date: datetime) -> Admit:
    """Return what admits a person with an Entra token from a date, unless it has been revoked."""
    caller = Caller(person, None, math.floor(date.timestamp()))
    return partial(refuse_revoked, caller)


@pytest.fixture
def earlier(person: Person, clock: Clock) -> Admit:
    """Admit the person with an Entra token from an hour ago."""
    return signed_in(person, clock.now - HOUR)


@pytest.fixture
async def active(identities: Identities, person: Person) -> IdentityMapping:
    """The person's row, with an identity that exists in ACS."""
    return await identities.get_or_create(person, admit=anybody)


@pytest.fixture
async def token(acs_identity: AcsIdentity, active: IdentityMapping) -> str:
    """An ACS token of the person's."""
    return await issue(acs_identity, active.acs_id)


async def issue(acs_identity: AcsIdentity, acs_id: str) -> str:
    """Issue an ACS token."""
    now = datetime.now(UTC)  # As the emulator's clock.
    issued = await acs_identity.issue(
        acs_id, scopes=["chat"], lifetime=HOUR, now=now, person=Person("tenant", "somebody")
    )
    return issued.token


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the audit lines."""
    ours = [record for record in caplog.records if record.name == audit.logger.name]
    return [json.loads(record.message) for record in ours]


async def keep_changing(store: Store, mapping: IdentityMapping, task: asyncio.Task[bool]) -> None:
    """Write a row again and again until a task is done."""
    while not task.done():
        await store.put(mapping)


async def finish(endings: Endings, store: Store) -> list[bool]:
    """Do what the sweeper does for each person in the ledger."""
    entries = [entry async for entry in store.ledger.unfinished()]
    return [await endings.finish(entry) for entry in entries]


class TestRevoke:
    """Sign out everywhere: ACS tokens are revoked, and older Entra tokens refused."""

    async def test_active(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        token: str,
    ) -> None:
        """ACS has revoked the tokens; the row has the mark, and that a second time is due."""
        assert await endings.revoke(person, admit=earlier)

        row = await store.row(person)
        assert row is not None
        assert not acs.token_is_valid(token)
        assert clock.now < row["revokedBefore"] < clock.now + timedelta(seconds=5)
        assert (State.ACTIVE, True) == (row["state"], row["revokeAgain"])
        assert [person] == await store.unfinished()

    @pytest.mark.parametrize(
        ("state", "told"),
        [
            (State.ABSENT, True),
            (State.ERASED, True),
            (State.CREATING, True),
            (State.DELETING, False),
        ],
    )
    async def test_no_identity(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        state: State,
        told: bool,
    ) -> None:
        """The mark is stored for everybody, whatever is known about them; ACS is not asked."""
        acs_id = ACS_ID if state is State.DELETING else ""
        if state is not State.ABSENT:
            lease_until = clock.now + LEASE
            await store.put(
                mapping_of(person, clock.now, state=state, acs_id=acs_id, lease_until=lease_until)
            )

        assert told is await endings.revoke(person, admit=earlier)

        mapping = await store.mappings.read(person)
        assert mapping.revoked_before is not None
        assert clock.now < mapping.revoked_before
        assert State.ERASED if state is State.ABSENT else state is mapping.state
        assert acs_id == mapping.acs_id
        assert not mapping.revoke_again
        assert 0 == acs.faults.count("revoke")
        with pytest.raises(RevokedTokenError):
            earlier(mapping)

    async def test_twice(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        earlier: Admit,
        token: str,
    ) -> None:
        """With the same Entra token once more, ACS is told again, and the mark stays."""
        await endings.revoke(person, admit=earlier)
        before = await store.row(person)

        assert await endings.revoke(person, admit=earlier)

        assert before == await store.row(person)
        assert 2 == acs.faults.count("revoke")
        assert not acs.token_is_valid(token)

    async def test_complete(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        token: str,
    ) -> None:
        """A revoked Entra token cannot revoke what its person has done since."""
        await endings.revoke(person, admit=earlier)
        clock.advance(seconds=SETTLED_SECONDS)
        await finish(endings, store)
        before = await store.row(person)

        assert await endings.revoke(person, admit=earlier)

        assert before == await store.row(person)
        assert 2 == acs.faults.count("revoke")
        assert not acs.token_is_valid(token)

    async def test_later_sign_in(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        active: IdentityMapping,
    ) -> None:
        """Whoever signs in again can revoke again, with a later mark."""
        await endings.revoke(person, admit=earlier)
        first = (await store.mappings.read(person)).revoked_before
        clock.advance(hours=1)
        later = await issue(acs_identity, active.acs_id)

        assert await endings.revoke(person, admit=signed_in(person, clock.now))

        second = (await store.mappings.read(person)).revoked_before
        assert first is not None
        assert second is not None
        assert second - first > timedelta(minutes=59)
        assert not acs.token_is_valid(later)

    @pytest.mark.parametrize("state", [each for each in State if each is not State.ABSENT])
    async def test_later_mark(
        self, endings: Endings, store: Store, person: Person, clock: Clock, state: State
    ) -> None:
        """A mark never moves back."""
        mark = clock.now + timedelta(minutes=2)
        await store.put(mapping_of(person, clock.now, state=state, revoked_before=mark))

        await endings.revoke(person, admit=anybody)

        assert mark == (await store.mappings.read(person)).revoked_before

    async def test_mark_in_the_future(
        self, endings: Endings, store: Store, person: Person, clock: Clock
    ) -> None:
        """A damaged mark, which would lock its person out, is replaced."""
        await store.put(mapping_of(person, clock.now, revoked_before=clock.now + HOUR))

        await endings.revoke(person, admit=anybody)

        mark = (await store.mappings.read(person)).revoked_before
        assert mark is not None
        assert clock.is_now(mark)

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 503},
            {"status": 403},
            {"status": 429},
            {"reset": True},
            {"reset": True, "after": True},
        ],
    )
    async def test_acs_fails(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        token: str,
        caplog: pytest.LogCaptureFixture,
        fault: dict[str, Any],
    ) -> None:
        """If ACS cannot be told now, the sweeper does so."""
        acs.faults.fail_next("revoke", **fault)

        assert not await endings.revoke(person, admit=earlier)
        assert ["tokens_not_revoked"] == [line["event"] for line in lines(caplog)]
        clock.advance(seconds=SETTLED_SECONDS)
        await finish(endings, store)

        assert not acs.token_is_valid(token)
        assert not (await store.mappings.read(person)).revoke_again

    async def test_gone(
        self, endings: Endings, store: Store, person: Person, clock: Clock, earlier: Admit
    ) -> None:
        """An identity that ACS does not know has no tokens; the mark is stored all the same."""
        await store.put(mapping_of(person, clock.now))

        assert await endings.revoke(person, admit=earlier)
        with pytest.raises(RevokedTokenError):
            earlier(await store.mappings.read(person))

    @pytest.mark.parametrize("position", [0, 1], ids=["ledger", "row"])
    async def test_table_fails(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        earlier: Admit,
        token: str,
        position: int,
    ) -> None:
        """Without a mark nothing is revoked, and the caller is told of the failure."""
        before = await store.row(person)
        if position:
            store.faults.fail_next("table_update")
        store.faults.fail_next("table_update", status=503, times=2)

        with pytest.raises(StorageUnavailableError):
            await endings.revoke(person, admit=earlier)
        assert before == await store.row(person)
        assert acs.token_is_valid(token)

    async def test_mark_is_recognised(
        self, endings: Endings, store: Store, person: Person, earlier: Admit, token: str
    ) -> None:
        """A mark whose answer is lost was stored."""
        assert token
        store.faults.fail_next("table_update")
        store.faults.fail_next("table_update", status=503, after=True)

        assert await endings.revoke(person, admit=earlier)
        assert (await store.mappings.read(person)).revoke_again

    async def test_crash_after_the_mark(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        token: str,
    ) -> None:
        """If the process dies before ACS is told, the sweeper tells it."""
        await store.ledger.add_unfinished(person)
        await store.put(active, revokedBefore=clock.now, revokeAgain=True)
        clock.advance(seconds=SETTLED_SECONDS)

        await finish(endings, store)

        assert not acs.token_is_valid(token)

    async def test_same_second(
        self, endings: Endings, store: Store, person: Person, clock: Clock
    ) -> None:
        """Refused are tokens up to the end of the second, since that is how exact the clock is."""
        await endings.revoke(person, admit=anybody)

        with pytest.raises(RevokedTokenError):
            signed_in(person, clock.now + timedelta(seconds=1))(await store.mappings.read(person))

    async def test_token_on_its_way(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        active: IdentityMapping,
    ) -> None:
        """A token for a request that read the row before the mark is revoked the second time."""
        await endings.revoke(person, admit=earlier)
        late = await issue(acs_identity, active.acs_id)
        assert acs.token_is_valid(late)

        clock.advance(seconds=SETTLED_SECONDS)
        await finish(endings, store)

        assert not acs.token_is_valid(late)

    async def test_during_creation(
        self,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        earlier: Admit,
    ) -> None:
        """A request that is creating the identity gets none, and what it made has to go."""
        acs.faults.fail_next("create", delay=0.4)
        creating = asyncio.create_task(identities.get_or_create(person, admit=earlier))
        await until(lambda: acs.faults.count("create") == 1)

        assert await endings.revoke(person, admit=earlier)

        with pytest.raises(RevokedTokenError):
            await creating
        assert {acs.created[0]: "lost_lease"} == await store.orphans()
        made = await identities.get_or_create(person, admit=anybody)
        assert acs.created[1] == made.acs_id

    async def test_row_that_keeps_changing(
        self, endings: Endings, acs: AcsEmulator, store: Store, active: IdentityMapping
    ) -> None:
        """If the row changes each time, the caller is told to try again."""
        store.faults.fail_next("table_update", delay=0.1, times=20)
        revoking = asyncio.create_task(endings.revoke(active.person, admit=anybody))
        await keep_changing(store, active, revoking)

        with pytest.raises(BusyError):
            await revoking
        assert 0 == acs.faults.count("revoke")


class TestErase:
    """Erasure: the identity is deleted, and a mark remains."""

    async def test_active(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        active: IdentityMapping,
        token: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """ACS has deleted it with its tokens, the row keeps the mark alone, the index nothing."""
        clock.advance(hours=1)
        assert await endings.erase(person, reason="erased_by_user", admit=earlier)

        row = await store.row(person)
        assert row is not None
        assert [active.acs_id] == acs.deleted
        assert not acs.token_is_valid(token)
        kept = "PartitionKey RowKey state generation attempt createdOn lastUsedOn schema"
        assert {*kept.split(), "revokedBefore"} == set(row)
        assert State.ERASED == row["state"]
        assert all(clock.is_now(row[name]) for name in ("createdOn", "lastUsedOn", "revokedBefore"))
        assert await store.ledger.owner(active.acs_id) is None
        wanted = {
            "event": "identity_deleted",
            "acs_id": active.acs_id,
            "reason": "erased_by_user",
            "tenant_id": person.tenant_id,
            "object_id": person.object_id,
        }
        assert [wanted] == lines(caplog)

    @pytest.mark.parametrize("state", [State.ABSENT, State.ERASED, State.CREATING])
    async def test_no_identity(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        state: State,
    ) -> None:
        """For those without an identity the mark is stored as well, and the answer is the same."""
        if state is not State.ABSENT:
            await store.put(mapping_of(person, clock.now, state=state, acs_id=""))

        assert await endings.erase(person, reason="test", admit=earlier)

        mapping = await store.mappings.read(person)
        assert State.ERASED is mapping.state
        assert 0 == acs.faults.count("delete")
        with pytest.raises(RevokedTokenError):
            earlier(mapping)

    @pytest.mark.parametrize("admin", [False, True], ids=["same token", "administrator"])
    async def test_twice(
        self,
        endings: Endings,
        acs: AcsEmulator,
        person: Person,
        earlier: Admit,
        active: IdentityMapping,
        admin: bool,
    ) -> None:
        """Erasing again is no error, though the Entra token has been revoked by the first time."""
        await endings.erase(person, reason="test", admit=earlier)

        assert await endings.erase(person, reason="test", admit=anybody if admin else earlier)
        assert [active.acs_id] == acs.deleted

    @pytest.mark.parametrize("state", [State.ACTIVE, State.CREATING])
    async def test_revoked_token(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        state: State,
    ) -> None:
        """A revoked Entra token cannot erase what its person has got since."""
        await store.put(mapping_of(person, clock.now, state=state, revoked_before=clock.now))
        before = await store.row(person)

        with pytest.raises(RevokedTokenError):
            await endings.erase(person, reason="test", admit=earlier)
        assert before == await store.row(person)
        assert 0 == acs.faults.count("delete")

    async def test_sign_in_afterwards(
        self,
        endings: Endings,
        identities: Identities,
        person: Person,
        clock: Clock,
        earlier: Admit,
        active: IdentityMapping,
    ) -> None:
        """The app's next refresh does not undo it; a later sign-in gets a new identity."""
        await endings.erase(person, reason="test", admit=earlier)

        with pytest.raises(RevokedTokenError):
            await identities.get_or_create(person, admit=earlier)
        clock.advance(minutes=1)
        later = signed_in(person, clock.now)
        new = await identities.get_or_create(person, admit=later)
        assert (True, active.generation + 1) == (new.acs_id != active.acs_id, new.generation)
        with pytest.raises(RevokedTokenError):
            earlier(new)

    @ACS_FAULTS
    async def test_acs_fails(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        active: IdentityMapping,
        fault: dict[str, Any],
    ) -> None:
        """The erasure is stored, and tried again later and later until it succeeds."""
        acs.faults.fail_next("delete", times=3, **fault)

        assert not await endings.erase(person, reason="erased_by_user", admit=earlier)
        for failures, minutes in ((1, 5), (2, 10), (3, 20)):
            mapping = await store.mappings.read(person)
            assert (State.DELETING, failures, "erased_by_user") == (
                mapping.state,
                mapping.failures,
                mapping.reason,
            )
            assert mapping.lease_until is not None
            assert clock.is_now(mapping.lease_until - timedelta(minutes=minutes))
            assert [False] == await finish(endings, store)
            assert failures == acs.faults.count("delete")
            clock.advance(minutes=minutes, seconds=5)
            if failures < 3:
                with pytest.raises(BrokerError):
                    await finish(endings, store)

        assert [True] == await finish(endings, store)
        assert [active.acs_id] == acs.deleted
        assert State.ERASED is (await store.mappings.read(person)).state

    async def test_again_after_a_failure(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        earlier: Admit,
        active: IdentityMapping,
    ) -> None:
        """The person need not wait: with the same Entra token, it is tried again at once."""
        acs.faults.fail_next("delete", status=503)
        assert not await endings.erase(person, reason="test", admit=earlier)

        assert await endings.erase(person, reason="test", admit=earlier)
        assert [active.acs_id] == acs.deleted
        assert State.ERASED is (await store.mappings.read(person)).state

    async def test_reply_lost(
        self,
        endings: Endings,
        acs: AcsEmulator,
        person: Person,
        active: IdentityMapping,
    ) -> None:
        """A deletion whose answer is lost is done."""
        acs.faults.fail_next("delete", reset=True, after=True)

        assert await endings.erase(person, reason="test", admit=anybody)
        assert [active.acs_id] == acs.deleted

    @pytest.mark.parametrize(
        ("passed", "operation"),
        [
            pytest.param(0, "table_delete", id="index"),
            pytest.param(2, "table_update", id="end of the row"),
        ],
    )
    async def test_table_fails_after_the_claim(
        self,
        endings: Endings,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        passed: int,
        operation: str,
    ) -> None:
        """What could not be stored once the identity was deleted is stored later."""
        if passed:
            store.faults.fail_next(operation, times=passed)
        store.faults.fail_next(operation, status=503, times=2)

        assert not await endings.erase(person, reason="test", admit=anybody)
        assert State.DELETING is (await store.mappings.read(person)).state
        clock.advance(minutes=6)
        await finish(endings, store)

        assert State.ERASED is (await store.mappings.read(person)).state
        assert await store.ledger.owner(active.acs_id) is None

    @pytest.mark.parametrize("passed", [0, 1], ids=["ledger", "claim"])
    async def test_table_fails_before_the_claim(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        active: IdentityMapping,
        passed: int,
    ) -> None:
        """If the erasure could not be stored, nothing is deleted, and the caller is told."""
        if passed:
            store.faults.fail_next("table_update", times=passed)
        store.faults.fail_next("table_update", status=503, times=2)

        with pytest.raises(StorageUnavailableError):
            await endings.erase(person, reason="test", admit=anybody)
        assert 0 == acs.faults.count("delete")
        assert active == await store.mappings.read(person)

    @pytest.mark.parametrize("deleted", [False, True], ids=["before ACS", "after ACS"])
    async def test_crash(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        deleted: bool,
    ) -> None:
        """If the process dies after the claim, the sweeper finishes when the lease is over."""
        await store.ledger.add_unfinished(person)
        lease_until = clock.now + LEASE
        claim = {"state": "deleting", "revokedBefore": clock.now, "leaseUntil": lease_until}
        await store.put(active, **claim)
        if deleted:
            await acs_identity.delete(active.acs_id)

        assert [False] == await finish(endings, store)
        clock.advance(seconds=LEASE.total_seconds() + 1)
        await finish(endings, store)

        assert [active.acs_id] == acs.deleted
        assert State.ERASED is (await store.mappings.read(person)).state

    async def test_during_creation(
        self,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        earlier: Admit,
    ) -> None:
        """A request that is creating the identity gets none, and what it made has to go."""
        acs.faults.fail_next("create", delay=0.4)
        creating = asyncio.create_task(identities.get_or_create(person, admit=earlier))
        await until(lambda: acs.faults.count("create") == 1)

        assert await endings.erase(person, reason="test", admit=earlier)

        with pytest.raises(RevokedTokenError):
            await creating
        assert {acs.created[0]: "lost_lease"} == await store.orphans()
        assert State.ERASED is (await store.mappings.read(person)).state

    async def test_sign_in_during_deletion(
        self,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        earlier: Admit,
        active: IdentityMapping,
    ) -> None:
        """Whoever signs in again meanwhile gets a new identity, which stays; the old one goes."""
        acs.faults.fail_next("delete", delay=0.4)
        erasing = asyncio.create_task(endings.erase(person, reason="test", admit=earlier))
        await until(lambda: acs.faults.count("delete") == 1)
        later = signed_in(person, clock.now + HOUR)
        new = await identities.get_or_create(person, admit=later)

        assert await erasing
        for orphan in [each async for each in store.ledger.orphans()]:
            await endings.delete_orphan(orphan)

        assert [new.acs_id] == list(acs.identities)
        assert new == await store.mappings.read(person)
        assert active.acs_id in acs.deleted
        assert person == await store.ledger.owner(new.acs_id)

    async def test_foreign(
        self, endings: Endings, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """An identity of another ACS resource is not taken for deleted because ours is not it."""
        await store.put(mapping_of(person, clock.now, acs_id=FOREIGN_ID))

        assert not await endings.erase(person, reason="test", admit=anybody)
        mapping = await store.mappings.read(person)
        assert (State.DELETING, FOREIGN_ID, 1) == (
            mapping.state,
            mapping.acs_id,
            mapping.failures,
        )
        assert FOREIGN_ID not in acs.deleted

    async def test_given_up_as_foreign(
        self, endings: Endings, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """One that was given up as foreign is erased here, whatever becomes of it there."""
        foreign = mapping_of(person, clock.now, acs_id=FOREIGN_ID, state=State.DELETING)
        await store.put(foreign, reason=FOREIGN)
        await store.ledger.index(FOREIGN_ID, person)

        assert await endings.erase(person, reason="test", admit=anybody)
        assert State.ERASED is (await store.mappings.read(person)).state
        assert await store.ledger.owner(FOREIGN_ID) is None
        assert 0 == acs.faults.count("delete")

    async def test_row_that_keeps_changing(
        self, endings: Endings, acs: AcsEmulator, store: Store, active: IdentityMapping
    ) -> None:
        """If the row changes each time, the caller is told to try again."""
        store.faults.fail_next("table_update", delay=0.1, times=20)
        erasing = asyncio.create_task(endings.erase(active.person, reason="test", admit=anybody))
        await keep_changing(store, active, erasing)

        with pytest.raises(BusyError):
            await erasing
        assert 0 == acs.faults.count("delete")


class TestEnd:
    """An end without the person's doing."""

    @pytest.mark.parametrize(
        ("hours", "left"),
        [
            pytest.param(None, State.ABSENT, id="no mark"),
            pytest.param(31, State.ABSENT, id="old mark"),
            pytest.param(29, State.ERASED, id="mark that is needed"),
        ],
    )
    async def test_row(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        hours: int | None,
        left: State,
    ) -> None:
        """The identity is deleted, and the row removed unless its mark is still needed."""
        mark = clock.now - timedelta(hours=hours) if hours else None
        await store.put(active, revokedBefore=mark)

        assert await endings.end(await store.mappings.read(person), reason="idle")

        mapping = await store.mappings.read(person)
        assert (left, mark if left is State.ERASED else None, "") == (
            mapping.state,
            mapping.revoked_before,
            mapping.acs_id,
        )
        assert [active.acs_id] == acs.deleted
        assert await store.ledger.owner(active.acs_id) is None

    async def test_used_meanwhile(
        self,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
    ) -> None:
        """A row that a request has changed since it was read is left alone."""
        clock.advance(days=100)
        idle = await store.mappings.read(person)
        used = await identities.get_or_create(person, admit=anybody)

        assert not await endings.end(idle, reason="idle")
        assert used == await store.mappings.read(person)
        assert [] == acs.deleted
        assert active.acs_id == used.acs_id

    async def test_reason(
        self,
        endings: Endings,
        store: Store,
        person: Person,
        active: IdentityMapping,
        acs: AcsEmulator,
    ) -> None:
        """Why a deletion began stays known when it is finished later."""
        await store.put(active, state="deleting", reason="gone")
        acs.faults.fail_next("delete", status=503)

        with pytest.raises(UpstreamUnavailableError):
            await endings.end(await store.mappings.read(person), reason="interrupted")
        assert "gone" == (await store.mappings.read(person)).reason

    async def test_never_created(
        self, endings: Endings, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """The row of a creation that was abandoned is removed without asking ACS."""
        await store.put(mapping_of(person, clock.now, state=State.CREATING, acs_id=""))

        assert await endings.end(await store.mappings.read(person), reason="interrupted")
        assert [] == await store.all_rows()
        assert 0 == acs.faults.count("delete")

    async def test_failure_that_cannot_be_stored(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
    ) -> None:
        """If neither ACS nor the table work, ACS's error is told, and the lease runs out."""
        acs.faults.fail_next("delete", status=503)
        store.faults.fail_next("table_update")
        store.faults.fail_next("table_update", status=503, times=2)

        with pytest.raises(UpstreamUnavailableError):
            await endings.end(active, reason="idle")
        mapping = await store.mappings.read(person)
        assert not is_deletion_due(mapping, clock.now)
        clock.advance(seconds=LEASE.total_seconds() + 1)
        assert is_deletion_due(mapping, clock.now)


class TestFinish:
    """What the sweeper does for a person in the ledger, and when the entry goes."""

    NEW, OLD = timedelta(seconds=1), ANNOUNCED_FOR + timedelta(seconds=10)

    @pytest.mark.parametrize(
        ("age", "row", "wanted"),
        [
            pytest.param(NEW, None, False, id="announced, no row"),
            pytest.param(OLD, None, True, id="never came, no row"),
            pytest.param(NEW, {}, False, id="announced"),
            pytest.param(OLD, {}, True, id="never came"),
            pytest.param(OLD, {"revoke_again": True}, False, id="not settled"),
            pytest.param(OLD, {"state": State.ERASED, "acs_id": ""}, True, id="erased"),
        ],
    )
    async def test_nothing_to_do(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        age: timedelta,
        row: dict[str, Any] | None,
        wanted: bool,
    ) -> None:
        """An entry without work waits until the work it announces must have come."""
        if row is not None:
            await store.put(mapping_of(person, clock.now, **row))
        before = await store.row(person)

        assert wanted is await endings.finish(Unfinished(person, clock.now - age, ""))
        assert before == await store.row(person)
        assert 0 == acs.faults.count("revoke") + acs.faults.count("delete")

    @pytest.mark.parametrize("kind", ["revocation", "deletion"])
    @pytest.mark.parametrize(("age", "wanted"), [(NEW, False), (OLD, True)], ids=["new", "old"])
    async def test_another_is_announced(
        self,
        endings: Endings,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        kind: str,
        age: timedelta,
        wanted: bool,
    ) -> None:
        """When one is finished, a new entry stays: it may be for another one, about to begin."""
        if kind == "revocation":
            await store.put(active, revokeAgain=True)
        else:
            await store.put(active, state="deleting")
        clock.advance(seconds=SETTLED_SECONDS)

        assert wanted is await endings.finish(Unfinished(person, clock.now - age, ""))
        mapping = await store.mappings.read(person)
        assert (False, False) == (mapping.revoke_again, mapping.state is State.DELETING)

    async def test_revocation(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        token: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The second revocation has an audit line of its own; if it fails, it remains due."""
        await store.put(active, revokeAgain=True)
        clock.advance(seconds=SETTLED_SECONDS)
        entry = Unfinished(person, clock.now - HOUR, "")
        acs.faults.fail_next("revoke", status=503)
        with pytest.raises(UpstreamUnavailableError):
            await endings.finish(entry)
        assert (await store.mappings.read(person)).revoke_again

        assert await endings.finish(entry)
        assert not acs.token_is_valid(token)
        (line,) = lines(caplog)
        assert ("tokens_revoked", True, active.acs_id) == (
            line["event"],
            line["again"],
            line["acs_id"],
        )


class TestDeleteOrphan:
    """Identities in the ledger are deleted, but never one that is in use."""

    async def orphan(self, store: Store) -> Orphan:
        """Return the only identity that is in the ledger."""
        (orphan,) = [each async for each in store.ledger.orphans()]
        return orphan

    async def test_deletes(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is gone from ACS, the index and the ledger, with an audit line."""
        acs_id = await acs_identity.create()
        await store.ledger.index(acs_id, person)
        await store.ledger.add_orphan(acs_id, person=person, reason="lost_lease", now=clock.now)

        assert await endings.delete_orphan(await self.orphan(store))

        assert [acs_id] == acs.deleted
        assert {} == await store.orphans()
        assert await store.ledger.owner(acs_id) is None
        (line,) = lines(caplog)
        assert ("identity_deleted", "orphan: lost_lease", person.object_id) == (
            line["event"],
            line["reason"],
            line["object_id"],
        )

    async def test_again(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        clock: Clock,
    ) -> None:
        """After a crash, or by two runs at once, it is deleted twice without harm."""
        acs_id = await acs_identity.create()
        await store.ledger.add_orphan(acs_id, person=None, reason="test", now=clock.now)
        orphan = await self.orphan(store)

        both = await asyncio.gather(*(endings.delete_orphan(orphan) for _ in range(2)))

        assert [True, True] == both
        assert [acs_id] == acs.deleted
        assert {} == await store.orphans()

    @pytest.mark.parametrize("known", [True, False], ids=["named in the ledger", "in the index"])
    async def test_in_use(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        active: IdentityMapping,
        known: bool,
    ) -> None:
        """An identity that its person's row names is kept, and leaves the ledger."""
        await store.ledger.add_orphan(
            active.acs_id, person=person if known else None, reason="unconfirmed", now=clock.now
        )

        assert not await endings.delete_orphan(await self.orphan(store))
        assert [] == acs.deleted
        assert {} == await store.orphans()
        assert active == await store.mappings.read(person)

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param(None, id="no row"),
            pytest.param({"acs_id": ACS_ID}, id="another identity"),
            pytest.param({"state": State.DELETING}, id="the same, being deleted"),
            pytest.param({"state": State.ERASED, "acs_id": ""}, id="erased"),
        ],
    )
    async def test_not_in_use(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
        changes: dict[str, Any] | None,
    ) -> None:
        """Other rows do not keep it, and are not changed."""
        acs_id = await acs_identity.create()
        if changes is not None:
            await store.put(mapping_of(person, clock.now, **({"acs_id": acs_id} | changes)))
        before = await store.row(person)
        await store.ledger.add_orphan(acs_id, person=person, reason="test", now=clock.now)

        assert await endings.delete_orphan(await self.orphan(store))
        assert [acs_id] == acs.deleted
        assert before == await store.row(person)

    async def test_late_write(
        self,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """A row that may still come to name it is waited for, and then kept from doing so."""
        store.faults.fail_next("table_update", delay=4, times=2)
        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person, admit=anybody)
        orphan = await self.orphan(store)

        assert not await endings.delete_orphan(orphan)
        assert {orphan.acs_id: "unconfirmed"} == await store.orphans()
        clock.advance(seconds=LEASE.total_seconds() + 1)
        assert await endings.delete_orphan(orphan)

        await asyncio.sleep(2.5)  # By now, both writes have arrived.
        assert State.CREATING is (await store.mappings.read(person)).state
        assert [orphan.acs_id] == acs.deleted

    async def test_row_changed_meanwhile(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """If the row gets its identity at that moment, the next run looks again."""
        acs_id = await acs_identity.create()
        await store.put(mapping_of(person, clock.now, state=State.CREATING, acs_id=""))
        await store.ledger.add_orphan(acs_id, person=person, reason="unconfirmed", now=clock.now)
        orphan = await self.orphan(store)
        store.faults.fail_next("table_update", delay=0.3)
        deleting = asyncio.create_task(endings.delete_orphan(orphan))
        await until(lambda: store.faults.count("table_update") == 2)
        await store.put(mapping_of(person, clock.now, acs_id=acs_id))

        assert not await deleting
        assert not await endings.delete_orphan(orphan)
        assert [acs_id] == list(acs.identities)
        assert {} == await store.orphans()

    @ACS_FAULTS
    async def test_acs_fails(
        self,
        endings: Endings,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        store: Store,
        person: Person,
        clock: Clock,
        fault: dict[str, Any],
    ) -> None:
        """It stays in the ledger, with the time of the next attempt."""
        acs_id = await acs_identity.create()
        await store.ledger.add_orphan(acs_id, person=person, reason="test", now=clock.now)
        acs.faults.fail_next("delete", times=2, **fault)

        for failures, minutes in ((1, 5), (2, 10)):
            with pytest.raises(BrokerError):
                await endings.delete_orphan(await self.orphan(store))
            orphan = await self.orphan(store)
            assert (failures, person) == (orphan.failures, orphan.person)
            assert orphan.retry_on is not None
            assert clock.is_now(orphan.retry_on - timedelta(minutes=minutes))

        assert await endings.delete_orphan(await self.orphan(store))

    @pytest.mark.parametrize("acs_id", [FOREIGN_ID, "nonsense"])
    async def test_foreign(
        self, endings: Endings, acs: AcsEmulator, store: Store, clock: Clock, acs_id: str
    ) -> None:
        """One of another ACS resource is not taken for deleted."""
        await store.ledger.add_orphan(acs_id, person=None, reason="test", now=clock.now)

        with pytest.raises(ForeignIdentityError):
            await endings.delete_orphan(await self.orphan(store))
        assert 1 == (await self.orphan(store)).failures
        assert acs_id not in acs.deleted

    @pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}])
    async def test_row_cannot_be_read(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        fault: dict[str, Any],
    ) -> None:
        """As long as we do not know whether it is in use, it is not deleted."""
        await store.ledger.add_orphan(ACS_ID, person=person, reason="test", now=clock.now)
        store.faults.fail_next("table_read", times=3, **fault)

        with pytest.raises(StorageUnavailableError):
            await endings.delete_orphan(await self.orphan(store))
        assert 0 == acs.faults.count("delete")
        assert {ACS_ID: "test"} == await store.orphans()


class TestHeal:
    """An identity that ACS no longer knows is replaced, for a few people a day."""

    @pytest.fixture
    async def lost(
        self, acs: AcsEmulator, store: Store, person: Person, active: IdentityMapping
    ) -> IdentityMapping:
        """A row whose identity somebody has deleted in ACS."""
        del acs.identities[active.acs_id]
        return await store.mappings.read(person)

    async def test_replaced(
        self,
        endings: Endings,
        identities: Identities,
        store: Store,
        person: Person,
        lost: IdentityMapping,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The next request gets a new identity; an audit line tells which one was given up."""
        await endings.heal(lost)

        (line,) = lines(caplog)
        assert ("identity_given_up", lost.acs_id, person.object_id) == (
            line["event"],
            line["acs_id"],
            line["object_id"],
        )
        new = await identities.get_or_create(person, admit=anybody)
        assert (True, lost.generation + 1, None) == (
            new.acs_id != lost.acs_id,
            new.generation,
            new.gone_on,
        )
        assert {lost.acs_id: "gone"} == await store.orphans()
        (orphan,) = [each async for each in store.ledger.orphans()]
        assert await endings.delete_orphan(orphan)

    async def test_a_few_a_day(
        self, endings: Endings, acs_identity: AcsIdentity, store: Store, clock: Clock
    ) -> None:
        """The fourth person of a day has to wait: perhaps the whole resource is gone."""
        acs_id = await acs_identity.create()
        clock.now = clock.now.replace(hour=12)
        outcomes = []
        for number in range(4):
            person = Person(CONTOSO.tenant_id, str(uuid.uuid4()))
            await store.put(mapping_of(person, clock.now, acs_id=f"{acs_id}-{number}"))
            try:
                await endings.heal(await store.mappings.read(person))
            except IdentityGoneError:
                outcomes.append("refused")
            outcomes.append((await store.mappings.read(person)).state)

        assert [State.DELETING] * 3 + ["refused", State.ACTIVE] == outcomes
        waiting = await store.mappings.read(person)
        assert waiting.gone_on is not None
        assert clock.is_now(waiting.gone_on)

        clock.advance(days=1)
        await endings.heal(await store.mappings.read(person))
        assert State.DELETING is (await store.mappings.read(person)).state

    async def test_foreign(
        self,
        endings: Endings,
        store: Store,
        person: Person,
        clock: Clock,
        lost: IdentityMapping,
    ) -> None:
        """If the identities are another resource's, the endpoint is wrong: none is replaced."""
        others = [Person(CONTOSO.tenant_id, str(uuid.uuid4())) for _ in range(4)]
        for other in others:
            await store.put(mapping_of(other, clock.now, acs_id=FOREIGN_ID))
            with pytest.raises(IdentityGoneError):
                await endings.heal(await store.mappings.read(other))

            mapping = await store.mappings.read(other)
            assert (State.ACTIVE, FOREIGN_ID) == (mapping.state, mapping.acs_id)
            assert mapping.gone_on is not None

        await endings.heal(lost)  # They do not count among the few.
        assert State.DELETING is (await store.mappings.read(person)).state

    async def test_changed_meanwhile(
        self,
        endings: Endings,
        identities: Identities,
        store: Store,
        person: Person,
        clock: Clock,
        lost: IdentityMapping,
    ) -> None:
        """A row that another request has changed is left to it."""
        clock.advance(days=2)
        used = await identities.get_or_create(person, admit=anybody)

        await endings.heal(lost)
        assert used == await store.mappings.read(person)
        assert not await endings.give_up(lost)
        assert used == await store.mappings.read(person)

    @pytest.mark.parametrize("position", range(3), ids=["gone on", "allowance", "given up"])
    async def test_table_fails(
        self,
        endings: Endings,
        store: Store,
        person: Person,
        lost: IdentityMapping,
        position: int,
    ) -> None:
        """Without the table nothing is given up, and the caller is told."""
        operation = "table_insert" if position == 1 else "table_update"
        if position == 2:
            store.faults.fail_next(operation)
        store.faults.fail_next(operation, status=503, times=2)

        with pytest.raises(StorageUnavailableError):
            await endings.heal(lost)
        assert State.ACTIVE is (await store.mappings.read(person)).state

    async def test_given_up_as_foreign(
        self,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """What an administrator gives up as foreign is replaced, and not to be deleted here."""
        await store.put(mapping_of(person, clock.now, acs_id=FOREIGN_ID))
        await store.ledger.index(FOREIGN_ID, person)

        assert await endings.give_up(await store.mappings.read(person), foreign=True)
        new = await identities.get_or_create(person, admit=anybody)

        assert [new.acs_id] == acs.created
        assert {} == await store.orphans()
        assert await store.ledger.owner(FOREIGN_ID) is None


class TestTimes:
    """Until when something waits, or is kept."""

    def test_retries(self) -> None:
        """The waits double, from five minutes to a day."""
        minutes = [retry_wait(failures).total_seconds() / 60 for failures in range(12)]

        assert [5, 10, 20, 40, 80] == minutes[:5]
        assert [1440, 1440] == minutes[-2:]
        assert timedelta(days=1) == retry_wait(10**9)

    @pytest.mark.parametrize(
        ("state", "lease", "due"),
        [
            (State.DELETING, None, True),
            (State.DELETING, timedelta(seconds=-1), True),
            (State.DELETING, timedelta(0), True),
            (State.DELETING, timedelta(seconds=1), False),
            (State.DELETING, timedelta(days=1), False),
            (State.DELETING, timedelta(days=1, minutes=1), True),  # Of a clock that was wrong.
            (State.CREATING, None, False),
            (State.ACTIVE, None, False),
            (State.ERASED, None, False),
        ],
    )
    def test_deletion_due(
        self, person: Person, now: datetime, state: State, lease: timedelta | None, due: bool
    ) -> None:
        """A deletion goes on when its lease is over, or further away than any can be."""
        lease_until = None if lease is None else now + lease
        mapping = mapping_of(person, now, state=state, lease_until=lease_until)

        assert due is is_deletion_due(mapping, now)

    @pytest.mark.parametrize(
        ("age", "needed"),
        [
            (None, False),
            (timedelta(hours=-1), True),
            (timedelta(hours=28), True),
            (MARK_LIFETIME, False),
        ],
    )
    def test_mark_needed(
        self, person: Person, now: datetime, age: timedelta | None, needed: bool
    ) -> None:
        """A mark is needed for longer than any Entra token lives, which is up to 28 hours."""
        mark = None if age is None else now - age

        assert needed is is_mark_needed(mapping_of(person, now, revoked_before=mark), now)


class TestTwoRows:
    """Two rows that name one identity, as after a restore by hand."""

    @pytest.fixture
    async def made(
        self, identities: Identities, store: Store, person: Person
    ) -> tuple[IdentityMapping, Person]:
        """The mapping of the person in the index, and another person with the same identity."""
        mapping = await identities.get_or_create(person, admit=anybody)
        other = Person(person.tenant_id, "0" * 36)
        await store.put(replace(mapping, person=other))
        return mapping, other

    async def test_erase(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        made: tuple[IdentityMapping, Person],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Erasing the one leaves the other's identity alone, and is reported."""
        mapping, other = made

        assert await endings.erase(other, reason="erased", admit=anybody)

        assert [mapping.acs_id] == list(acs.identities)
        assert mapping.person == await store.ledger.owner(mapping.acs_id)
        assert State.ERASED is (await store.mappings.read(other)).state
        assert "identity_shared" in caplog.text

    async def test_orphan(
        self,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        made: tuple[IdentityMapping, Person],
        clock: Clock,
    ) -> None:
        """An orphan of the one that the other uses is struck off."""
        mapping, other = made
        await store.rows.delete_entity(partition_key(other), other.object_id)
        await store.ledger.add_orphan(mapping.acs_id, person=other, reason="idle", now=clock.now)
        (orphan,) = [each async for each in store.ledger.orphans()]

        assert not await endings.delete_orphan(orphan)

        assert [mapping.acs_id] == list(acs.identities)
        assert {} == await store.orphans()

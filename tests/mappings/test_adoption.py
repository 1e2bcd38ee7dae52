from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO
from shared.errors import (
    BrokerError,
    BusyError,
    ConflictError,
    StorageUnavailableError,
    UpstreamAuthError,
    UpstreamUnavailableError,
)
from shared.identifiers import Person
from shared.mappings.table import LEASE, State
from tests.emulated import ACS_ID, anybody, mapping_of, until

if TYPE_CHECKING:
    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.mappings.adoption import Adoption
    from shared.mappings.endings import Endings
    from shared.mappings.identities import Identities
    from tests.emulated import Clock, Store

LONG_AGO = datetime(2024, 2, 29, 12, tzinfo=UTC)
FOREIGN_ID = ACS_ID.replace("ac5ac5ac", "0e0e0e0e")
OTHER_ID = f"{ACS_ID}-other"


@pytest.fixture
def other() -> Person:
    """Somebody else."""
    return Person(CONTOSO.tenant_id, str(uuid.uuid4()))


@pytest.fixture
async def acs_id(acs_identity: AcsIdentity) -> str:
    """The id of an identity that exists in ACS, and that nobody has."""
    return await acs_identity.create()


async def owners(store: Store, acs_id: str) -> list[str]:
    """Return who has an identity according to the rows, by object id."""
    return [row["RowKey"] for row in await store.all_rows() if row.get("acsId") == acs_id]


class TestAdopt:
    """Somebody gets an identity that exists."""

    async def test_first(
        self, adoption: Adoption, store: Store, person: Person, clock: Clock, acs_id: str
    ) -> None:
        """The row and the index name it, and it counts as used now."""
        assert await adoption.adopt(person, acs_id)

        row = await store.row(person)
        assert row is not None
        assert (State.ACTIVE, acs_id) == (row["state"], row["acsId"])
        assert clock.is_now(row["createdOn"])
        assert clock.is_now(row["lastUsedOn"])
        assert person == await store.ledger.owner(acs_id)

    async def test_used(
        self,
        adoption: Adoption,
        identities: Identities,
        acs: AcsEmulator,
        person: Person,
        acs_id: str,
    ) -> None:
        """The person's next request uses it, and creates none."""
        await adoption.adopt(person, acs_id)

        assert acs_id == (await identities.get_or_create(person, admit=anybody)).acs_id
        assert [acs_id] == acs.created

    async def test_again(
        self, adoption: Adoption, store: Store, person: Person, acs_id: str
    ) -> None:
        """The second time nothing is written: an import may be repeated."""
        await adoption.adopt(person, acs_id)
        before = await store.row(person)

        assert not await adoption.adopt(person, acs_id, last_used_on=LONG_AGO)
        assert before == await store.row(person)

    @pytest.mark.parametrize(
        ("given", "created", "used"),
        [
            pytest.param({}, "now", "now", id="unknown"),
            pytest.param({"created_on": LONG_AGO}, "then", "now", id="created"),
            pytest.param(
                {"created_on": LONG_AGO, "last_used_on": LONG_AGO}, "then", "then", id="both"
            ),
            pytest.param(
                {"last_used_on": datetime(2999, 1, 1, tzinfo=UTC)}, "now", "now", id="future"
            ),
        ],
    )
    async def test_dates(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        clock: Clock,
        acs_id: str,
        given: dict[str, Any],
        created: str,
        used: str,
    ) -> None:
        """Dates are kept if they are known; no identity was used in the future."""
        await adoption.adopt(person, acs_id, **given)

        row = await store.row(person)
        assert row is not None
        for wanted, date in ((created, row["createdOn"]), (used, row["lastUsedOn"])):
            assert clock.is_now(date) if wanted == "now" else date == LONG_AGO

    @pytest.mark.parametrize("has_it", [False, True])
    async def test_mark_from_the_future(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        clock: Clock,
        acs_id: str,
        has_it: bool,
    ) -> None:
        """A mark that would lock the person out, as from a damaged backup, becomes now."""
        if has_it:
            await adoption.adopt(person, acs_id)
        await adoption.adopt(person, acs_id, revoked_before=datetime(2999, 1, 1, tzinfo=UTC))

        row = await store.row(person)
        assert row is not None
        assert clock.is_now(row["revokedBefore"])

    @pytest.mark.parametrize(
        ("stored", "given", "wanted"), [(2, None, 2), (2, 1, 2), (2, 3, 3), (None, 3, 3)]
    )
    async def test_marks(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        clock: Clock,
        acs_id: str,
        stored: int | None,
        given: int | None,
        wanted: int,
    ) -> None:
        """Of two marks, the later one is kept: no revocation is undone."""
        marks = [
            clock.now - timedelta(hours=5 - hour) if hour else None for hour in (stored, given)
        ]
        if stored:
            erased = mapping_of(person, clock.now, state=State.ERASED, acs_id="")
            await store.put(erased, revokedBefore=marks[0])

        await adoption.adopt(person, acs_id, revoked_before=marks[1])

        row = await store.row(person)
        assert row is not None
        assert clock.now - timedelta(hours=5 - wanted) == row["revokedBefore"]

    @pytest.mark.parametrize("lease", [None, -1, 3600], ids=["none", "over", "impossible"])
    async def test_abandoned_creation(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        clock: Clock,
        acs_id: str,
        lease: int | None,
    ) -> None:
        """A creation that nobody is at work on any more is no obstacle."""
        lease_until = clock.now + timedelta(seconds=lease) if lease else None
        creating = mapping_of(person, clock.now, state=State.CREATING, acs_id="", failures=3)
        await store.put(creating, leaseUntil=lease_until)

        assert await adoption.adopt(person, acs_id)
        row = await store.row(person)
        assert row is not None
        assert (State.ACTIVE, 2) == (row["state"], row["generation"])
        assert not {"leaseUntil", "failures"} & set(row)


class TestRefused:
    """What does not fit is refused, and nothing is changed."""

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            pytest.param({"acs_id": OTHER_ID}, ConflictError, id="another identity"),
            pytest.param({"state": State.DELETING, "acs_id": OTHER_ID}, BusyError, id="deleting"),
            pytest.param({"state": State.DELETING}, BusyError, id="deleting this one"),
            pytest.param({"state": State.CREATING, "acs_id": ""}, BusyError, id="creating"),
        ],
    )
    async def test_occupied(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        clock: Clock,
        changes: dict[str, Any],
        error: type[BrokerError],
    ) -> None:
        """A person who has an identity, or whose identity is being made or deleted."""
        await store.put(mapping_of(person, clock.now, lease_until=clock.now + LEASE, **changes))
        before = await store.row(person)

        with pytest.raises(error):
            await adoption.adopt(person, ACS_ID)
        assert before == await store.row(person)
        assert await store.ledger.owner(ACS_ID) is None

    @pytest.mark.parametrize("state", [State.ACTIVE, State.DELETING])
    async def test_somebody_elses(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        other: Person,
        clock: Clock,
        state: State,
    ) -> None:
        """An identity that somebody else's row names."""
        await store.put(mapping_of(other, clock.now, state=state))
        await store.ledger.index(ACS_ID, other)
        before = await store.all_rows()

        with pytest.raises(ConflictError):
            await adoption.adopt(person, ACS_ID)
        assert before == await store.all_rows()
        assert other == await store.ledger.owner(ACS_ID)

    async def test_being_created_for_somebody_else(
        self, adoption: Adoption, store: Store, person: Person, other: Person, clock: Clock
    ) -> None:
        """An identity whose entry is somebody's who is just getting one."""
        await store.put(mapping_of(other, clock.now, state=State.CREATING, acs_id=""))
        await store.ledger.index(ACS_ID, other)

        with pytest.raises(ConflictError):
            await adoption.adopt(person, ACS_ID)
        assert other == await store.ledger.owner(ACS_ID)

    async def test_orphan(
        self, adoption: Adoption, store: Store, person: Person, clock: Clock
    ) -> None:
        """An identity that is about to be deleted."""
        await store.ledger.add_orphan(ACS_ID, person=None, reason="test", now=clock.now)

        with pytest.raises(ConflictError):
            await adoption.adopt(person, ACS_ID)
        assert [] == await store.all_rows()

    @pytest.mark.parametrize("acs_id", [FOREIGN_ID, "nonsense", "", f"{ACS_ID}/.."])
    async def test_foreign(
        self, adoption: Adoption, store: Store, person: Person, acs_id: str
    ) -> None:
        """An identity of another ACS resource, or something that is no identity."""
        with pytest.raises(ConflictError):
            await adoption.adopt(person, acs_id)
        assert [] == await store.all_rows()
        assert 0 == store.faults.count("table_insert")


class TestLeftOver:
    """An index entry for somebody whose row does not name the identity does not count."""

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param(None, id="no row"),
            pytest.param({"state": State.ERASED, "acs_id": ""}, id="erased"),
            pytest.param({"acs_id": OTHER_ID}, id="another identity"),
            pytest.param({"acs_id": OTHER_ID, "state": State.DELETING}, id="another, deleting"),
        ],
    )
    async def test_taken_over(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        other: Person,
        clock: Clock,
        changes: dict[str, Any] | None,
    ) -> None:
        """The identity is free, and what the other person has stays."""
        await store.ledger.index(ACS_ID, other)
        if changes is not None:
            await store.put(mapping_of(other, clock.now, **changes))
        before = await store.mappings.read(other)

        assert await adoption.adopt(person, ACS_ID)

        assert person == await store.ledger.owner(ACS_ID)
        assert [person.object_id] == await owners(store, ACS_ID)
        after = await store.mappings.read(other)
        assert before.acs_id == after.acs_id
        assert State.ERASED if before.state is State.ABSENT else before.state is after.state

    async def test_own(self, adoption: Adoption, store: Store, person: Person) -> None:
        """After a crash between the index and the row, the import is repeated."""
        await store.ledger.index(ACS_ID, person)

        assert await adoption.adopt(person, ACS_ID)
        assert [person.object_id] == await owners(store, ACS_ID)


class TestRaces:
    """One identity never belongs to two people, and one person never has two."""

    async def test_many_people(self, adoption: Adoption, store: Store, acs_id: str) -> None:
        """Of ten who are to get the same identity at the same time, one gets it."""
        people = [Person(CONTOSO.tenant_id, str(uuid.uuid4())) for _ in range(10)]

        outcomes = await asyncio.gather(
            *(adoption.adopt(each, acs_id) for each in people), return_exceptions=True
        )

        assert 1 == outcomes.count(True)
        (winner,) = await owners(store, acs_id)
        assert people[outcomes.index(True)].object_id == winner
        assert all(isinstance(each, BrokerError) for each in outcomes if each is not True)

    async def test_many_identities(
        self, adoption: Adoption, store: Store, person: Person, acs_identity: AcsIdentity
    ) -> None:
        """Of five identities that a person is to get at the same time, one is the person's."""
        made = [await acs_identity.create() for _ in range(5)]

        outcomes = await asyncio.gather(
            *(adoption.adopt(person, each) for each in made), return_exceptions=True
        )

        assert 1 == outcomes.count(True)
        (row,) = await store.all_rows()
        assert made[outcomes.index(True)] == row["acsId"]

    async def test_same(
        self, adoption: Adoption, store: Store, person: Person, acs_id: str
    ) -> None:
        """The same import twice at the same time succeeds twice."""
        outcomes = await asyncio.gather(*(adoption.adopt(person, acs_id) for _ in range(2)))

        assert True in outcomes
        assert [person.object_id] == await owners(store, acs_id)

    async def test_late_row(
        self, adoption: Adoption, store: Store, person: Person, other: Person, acs_id: str
    ) -> None:
        """Who is slow between the index and the row does not get what another has got since."""
        store.faults.fail_next("table_insert")  # The index.
        store.faults.fail_next("table_insert", delay=0.6)  # The row.
        slow = asyncio.create_task(adoption.adopt(person, acs_id))
        await until(lambda: store.faults.count("table_insert") == 2)

        assert await adoption.adopt(other, acs_id)
        with pytest.raises(ConflictError):
            await slow
        assert [other.object_id] == await owners(store, acs_id)
        assert other == await store.ledger.owner(acs_id)

    async def test_taken_over_too_late(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        other: Person,
        clock: Clock,
        acs_id: str,
    ) -> None:
        """An entry is not left over if its person's row comes to name the identity just now."""
        await store.ledger.index(acs_id, other)
        await store.put(mapping_of(other, clock.now, state=State.ERASED, acs_id=""))
        store.faults.clear()
        store.faults.fail_next("table_update", delay=0.4)
        adopting = asyncio.create_task(adoption.adopt(person, acs_id))
        await until(lambda: store.faults.count("table_update") == 1)
        await store.put(mapping_of(other, clock.now, acs_id=acs_id))

        with pytest.raises(ConflictError):
            await adopting
        assert [other.object_id] == await owners(store, acs_id)
        assert other == await store.ledger.owner(acs_id)

    async def test_orphaned_meanwhile(
        self,
        adoption: Adoption,
        identities: Identities,
        store: Store,
        person: Person,
        other: Person,
        clock: Clock,
        acs_id: str,
    ) -> None:
        """An identity that its person loses just now is about to be deleted, and not free."""
        await store.put(mapping_of(other, clock.now, state=State.DELETING, acs_id=acs_id))
        await store.ledger.index(acs_id, other)
        store.faults.fail_next("table_read", times=2)
        store.faults.fail_next("table_read", delay=0.8)
        adopting = asyncio.create_task(adoption.adopt(person, acs_id))
        await until(lambda: store.faults.count("table_read") == 3)
        await identities.get_or_create(other, admit=anybody)

        with pytest.raises(ConflictError):
            await adopting
        assert [] == await owners(store, acs_id)

    async def test_in_the_ledger_too_late(
        self,
        adoption: Adoption,
        endings: Endings,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        acs_id: str,
    ) -> None:
        """A request that made the identity and lost the row gives it up: the row decides."""
        await store.put(mapping_of(person, clock.now, state=State.CREATING, acs_id=""))
        await store.ledger.index(acs_id, person)

        async def give_up(acs_id: str) -> bool:
            await store.ledger.add_orphan(acs_id, person=person, reason="lost_lease", now=clock.now)
            return True

        assert await adoption.adopt(person, acs_id, is_known=give_up)
        (orphan,) = [each async for each in store.ledger.orphans()]

        assert not await endings.delete_orphan(orphan)
        assert not await store.orphans()
        assert 0 == acs.faults.count("delete")
        assert [person.object_id] == await owners(store, acs_id)

    async def test_while_one_is_created(
        self,
        adoption: Adoption,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        acs_id: str,
    ) -> None:
        """A request that is creating an identity is not disturbed."""
        acs.faults.fail_next("create", delay=0.4)
        creating = asyncio.create_task(identities.get_or_create(person, admit=anybody))
        await until(lambda: acs.faults.count("create") == 2)

        with pytest.raises(BusyError):
            await adoption.adopt(person, acs_id)
        assert [person.object_id] == await owners(store, (await creating).acs_id)

    async def test_after_a_slow_creation(
        self,
        adoption: Adoption,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        acs_id: str,
    ) -> None:
        """A request that lost its lease to an import uses what was imported."""
        acs.faults.fail_next("create", delay=0.6)
        creating = asyncio.create_task(identities.get_or_create(person, admit=anybody))
        await until(lambda: acs.faults.count("create") == 2)
        clock.advance(seconds=LEASE.total_seconds() + 1)

        assert await adoption.adopt(person, acs_id)
        assert acs_id == (await creating).acs_id
        assert {acs.created[1]: "lost_lease"} == await store.orphans()

    async def test_row_that_keeps_changing(
        self, adoption: Adoption, store: Store, person: Person, acs_id: str, clock: Clock
    ) -> None:
        """If the row changes each time, the caller is told to try again."""
        erased = mapping_of(person, clock.now, acs_id="", state=State.ERASED)
        await store.put(erased)
        store.faults.fail_next("table_update", delay=0.2, times=20)
        adopting = asyncio.create_task(adoption.adopt(person, acs_id))
        while not adopting.done():
            await store.put(erased)
            await asyncio.sleep(0.02)

        with pytest.raises(BusyError):
            await adopting


class TestFailures:
    """What happens when a service fails."""

    @pytest.mark.parametrize("position", [0, 1], ids=["index", "row"])
    @pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}])
    async def test_reply_lost(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        acs_id: str,
        position: int,
        fault: dict[str, Any],
    ) -> None:
        """A write whose answer was lost is recognised."""
        if position:
            store.faults.fail_next("table_insert")
        store.faults.fail_next("table_insert", after=True, **fault)

        assert await adoption.adopt(person, acs_id)
        assert [person.object_id] == await owners(store, acs_id)
        assert person == await store.ledger.owner(acs_id)

    @pytest.mark.parametrize("position", [0, 1], ids=["index", "row"])
    async def test_table_fails(
        self,
        adoption: Adoption,
        store: Store,
        person: Person,
        other: Person,
        acs_id: str,
        position: int,
    ) -> None:
        """Without the table nobody has the identity, and anybody may get it later."""
        if position:
            store.faults.fail_next("table_insert")
        store.faults.fail_next("table_insert", status=503, times=2)

        with pytest.raises(StorageUnavailableError):
            await adoption.adopt(person, acs_id)
        assert [] == await store.all_rows()
        assert await adoption.adopt(other, acs_id)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [({"status": 403}, UpstreamAuthError), ({"reset": True}, UpstreamUnavailableError)],
        ids=["refused", "unreachable"],
    )
    async def test_acs_fails(
        self,
        adoption: Adoption,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        fault: dict[str, Any],
        error: type[BrokerError],
    ) -> None:
        """As long as we do not know which resource is ours, nothing is adopted."""
        acs.faults.fail_next("create", **fault)

        with pytest.raises(error):
            await adoption.adopt(person, ACS_ID)
        assert [] == await store.all_rows()


class TestRestoring:
    """What `restoring` refuses."""

    async def test_erased_and_creating(
        self, adoption: Adoption, store: Store, person: Person, clock: Clock
    ) -> None:
        """Somebody who was erased, and for whom a creation was left unfinished, stays erased."""
        left = mapping_of(
            person, clock.now, acs_id="", state=State.CREATING, revoked_before=clock.now
        )
        await store.put(left)

        with pytest.raises(ConflictError):
            await adoption.adopt(person, ACS_ID, restoring=True)

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from shared import audit
from shared.circuit import LEAST_CALLS, PROBE_SECONDS
from shared.errors import (
    BrokerError,
    BusyError,
    StorageUnavailableError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamUnavailableError,
)
from shared.identifiers import Person
from shared.mappings.identities import Identities
from shared.mappings.table import LEASE, State
from tests.emulated import ACS_ID, anybody, mapping_of, until

if TYPE_CHECKING:
    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from tests.emulated import Clock, Store


@pytest.fixture
def another(acs_identity: AcsIdentity, store: Store) -> Identities:
    """The identity protocol of another process."""
    return Identities(
        acs=acs_identity, mappings=store.mappings, ledger=store.ledger, poll_seconds=0.02
    )


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the names of the audit lines."""
    ours = [record for record in caplog.records if record.name == audit.logger.name]
    return [json.loads(record.message)["event"] for record in ours]


class TestGetOrCreate:
    """One person, one identity."""

    async def test_first_call(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """The first call makes an identity, the row points to it, and the lease is gone."""
        mapping = await identities.get_or_create(person, admit=anybody)

        row = await store.row(person)
        assert row is not None
        assert [mapping.acs_id] == acs.created
        assert (State.ACTIVE, mapping.acs_id) == (row["state"], row["acsId"])
        assert clock.is_now(row["createdOn"])
        assert clock.is_now(row["lastUsedOn"])
        assert "leaseUntil" not in row

    async def test_later_calls(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """Later calls return it and write nothing, within a day."""
        first = await identities.get_or_create(person, admit=anybody)
        clock.advance(hours=23)

        assert first == await identities.get_or_create(person, admit=anybody)
        assert 2 == store.faults.count("table_update")  # The row, and the index.

    async def test_touch(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """After more than a day the use is noted, and the identity stays."""
        first = await identities.get_or_create(person, admit=anybody)
        clock.advance(days=1, seconds=1)

        again = await identities.get_or_create(person, admit=anybody)

        assert first.acs_id == again.acs_id
        row = await store.row(person)
        assert row is not None
        assert clock.is_now(row["lastUsedOn"])

    async def test_others(self, identities: Identities) -> None:
        """Another person, and the same object id in another tenant, get their own identity."""
        made = [
            await identities.get_or_create(Person(tenant_id * 36, object_id * 36), admit=anybody)
            for tenant_id, object_id in product("ab", "cd")
        ]

        assert 4 == len({mapping.acs_id for mapping in made})

    async def test_find(self, identities: Identities, store: Store, person: Person) -> None:
        """Looking somebody up creates nothing; a row without an identity does not count."""
        assert await identities.find(person, admit=anybody) is None
        made = await identities.get_or_create(person, admit=anybody)
        assert made == await identities.find(person, admit=anybody)

        for state in (State.CREATING, State.DELETING):
            await store.put(replace(made, state=state))
            assert await identities.find(person, admit=anybody) is None


class TestConcurrency:
    """Many requests of one person at once."""

    async def test_one_process(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person
    ) -> None:
        """Fifty first requests in one process make one identity."""
        made = await asyncio.gather(
            *(identities.get_or_create(person, admit=anybody) for _ in range(50))
        )

        assert {acs.created[0]} == {mapping.acs_id for mapping in made}
        assert (1, 1) == (len(acs.created), len(await store.all_rows()))

    @pytest.mark.parametrize("delay", [0, 0.3])
    async def test_two_processes(
        self,
        identities: Identities,
        another: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        delay: float,
    ) -> None:
        """Twenty-five in each of two processes: all get the same identity."""
        acs.faults.fail_next("create", delay=delay)
        made = await asyncio.gather(
            *(each.get_or_create(person, admit=anybody) for each in [identities, another] * 25)
        )

        assert {acs.created[0]} == {mapping.acs_id for mapping in made}
        assert (1, 1) == (len(acs.created), len(await store.all_rows()))

    async def test_ten_processes(
        self,
        acs_identity: AcsIdentity,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """The same with ten processes, which all write the day's first use as well."""
        processes = [
            Identities(acs=acs_identity, mappings=store.mappings, ledger=store.ledger)
            for _ in range(10)
        ]
        for _ in range(2):
            made = await asyncio.gather(
                *(each.get_or_create(person, admit=anybody) for each in processes)
            )
            assert {acs.created[0]} == {mapping.acs_id for mapping in made}
            clock.advance(days=2)

        assert 1 == len(acs.created)

    async def test_first_caller_leaves(
        self, identities: Identities, acs: AcsEmulator, person: Person
    ) -> None:
        """A caller who goes away leaves no half-made identity behind."""
        acs.faults.fail_next("create", delay=0.1)
        first = asyncio.create_task(identities.get_or_create(person, admit=anybody))
        await asyncio.sleep(0.05)
        first.cancel()

        made = await identities.get_or_create(person, admit=anybody)

        assert [made.acs_id] == acs.created
        assert first.cancelled()

    async def test_busy(
        self, acs_identity: AcsIdentity, store: Store, person: Person, clock: Clock
    ) -> None:
        """While another process holds the lease, the caller is told when it ends."""
        identities = Identities(
            acs=acs_identity, mappings=store.mappings, ledger=store.ledger, poll_seconds=0
        )
        lease_until = clock.now + LEASE
        await store.put(
            mapping_of(person, clock.now, state=State.CREATING, lease_until=lease_until)
        )

        with pytest.raises(BusyError) as raised:
            await identities.get_or_create(person, admit=anybody)
        assert raised.value.retry_after == pytest.approx(20, abs=1)


class TestFailures:
    """What is left behind when a service fails."""

    @pytest.mark.parametrize(
        ("fault", "error", "unreferenced"),
        [
            ({"status": 500}, UpstreamUnavailableError, 0),
            ({"reset": True, "after": True}, UpstreamUnavailableError, 1),
            ({"status": 503, "after": True}, UpstreamUnavailableError, 1),
            ({"status": 201, "body": "{}"}, UpstreamBadResponseError, 0),
        ],
        ids=["500", "reply lost", "503 after it was made", "no id"],
    )
    async def test_create_fails(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        fault: dict[str, Any],
        error: type[BrokerError],
        unreferenced: int,
        clock: Clock,
    ) -> None:
        """One POST and an error; the next request succeeds if it obeys Retry-After."""
        acs.faults.fail_next("create", **fault)
        with pytest.raises(error) as raised:
            await identities.get_or_create(person, admit=anybody)
        assert 1 == acs.faults.count("create")
        assert raised.value.retry_after is not None
        clock.advance(seconds=raised.value.retry_after + 1)

        made = await identities.get_or_create(person, admit=anybody)

        row = await store.row(person)
        assert row is not None
        assert made.acs_id == row["acsId"] == acs.created[-1]
        assert unreferenced == len(acs.created) - 1
        assert not acs.issued

    async def test_create_keeps_failing(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A create that is refused changes no row: it has made nothing that somebody waits for."""
        acs.faults.fail_next("create", status=503, times=999)
        people = [person._replace(object_id=str(uuid.uuid4())) for _ in range(LEAST_CALLS)]
        await asyncio.gather(
            *(identities.get_or_create(each, admit=anybody) for each in people),
            return_exceptions=True,
        )
        erased = mapping_of(people[0], clock.now, state=State.DELETING, reason="erased_by_user")
        await store.put(erased)
        before = await store.all_rows()
        assert "circuit_opened" in events(caplog)
        caplog.clear()

        for each in (person, people[0]):
            with pytest.raises(UpstreamUnavailableError) as raised:
                await identities.get_or_create(each, admit=anybody)
            assert 0 < (raised.value.retry_after or 0) <= PROBE_SECONDS

        assert before == await store.all_rows()
        assert not await store.orphans()
        assert not events(caplog)
        assert LEAST_CALLS == acs.faults.count("create")

    async def test_create_and_table_fail(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The caller is told of ACS's failure; the lease that cannot be given back runs out."""
        acs.faults.fail_next("create", status=500)
        store.faults.fail_next("table_update", status=500, times=2)
        with pytest.raises(UpstreamUnavailableError):
            await identities.get_or_create(person, admit=anybody)
        assert ["identity_not_created"] == events(caplog)
        with pytest.raises(BusyError):
            await identities.get_or_create(person, admit=anybody)

        clock.advance(seconds=LEASE.total_seconds() + 1)
        await identities.get_or_create(person, admit=anybody)

    @pytest.mark.parametrize("fault", [{"status": 403}, {"status": 503}, {"reset": True}])
    async def test_table_fails(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, fault: Any
    ) -> None:
        """If the table cannot be read, nothing is created."""
        store.faults.fail_next("table_read", times=10, **fault)

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person, admit=anybody)
        assert 0 == acs.faults.count("create")

    async def test_no_table(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person
    ) -> None:
        """If the table is missing, no identities are created."""
        await store.rows.delete_table()

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person, admit=anybody)
        assert 0 == acs.faults.count("create")

    async def test_newer_row(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """A row of a newer version is left alone."""
        await store.put(mapping_of(person, clock.now), schema=2)
        before = await store.row(person)

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person, admit=anybody)
        assert before == await store.row(person)
        assert 0 == acs.faults.count("create")

    async def test_finalise_fails(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An identity that could not be written to the row is kept, and never gets a token."""
        store.faults.fail_next("table_update", status=500, times=2)
        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person, admit=anybody)
        assert ["identity_unconfirmed"] == events(caplog)
        assert acs.created[0] in caplog.text
        assert {acs.created[0]: "unconfirmed"} == await store.orphans()

        clock.advance(seconds=LEASE.total_seconds() + 1)
        made = await identities.get_or_create(person, admit=anybody)
        assert made.acs_id == acs.created[1]

    async def test_changed_before_it_is_recognised(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """An identity that the row points to is not deleted, whoever wrote the row last."""
        store.faults.fail_next("table_update", status=503, after=True)
        store.faults.fail_next("table_update", delay=0.3)
        getting = asyncio.create_task(identities.get_or_create(person, admit=anybody))
        await until(lambda: store.faults.count("table_update") == 2)
        # The first answer was lost; before the second comes, somebody else changes the row.
        marked = mapping_of(person, clock.now, acs_id=acs.created[0], revoked_before=clock.now)
        await store.put(marked)

        made = await getting

        assert acs.created == [made.acs_id] == list(acs.identities)
        assert {} == await store.orphans()

    @pytest.mark.parametrize("operation", ["table_insert", "table_update"])
    @pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}])
    async def test_own_write_is_recognised(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        operation: str,
        fault: dict[str, Any],
    ) -> None:
        """A write whose answer was lost is our own: one create, and the call succeeds."""
        store.faults.fail_next(operation, after=True, **fault)

        made = await identities.get_or_create(person, admit=anybody)

        assert [made.acs_id] == acs.created


class TestInterrupted:
    """What another process left unfinished."""

    async def test_after_the_intent(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """An intent whose owner died: busy within the lease, taken over after it."""
        lease_until = clock.now + LEASE
        intent = mapping_of(person, clock.now, acs_id="", state=State.CREATING)
        await store.put(replace(intent, lease_until=lease_until))
        with pytest.raises(BusyError):
            await identities.get_or_create(person, admit=anybody)
        assert not acs.created

        clock.now = lease_until + timedelta(seconds=1)
        made = await identities.get_or_create(person, admit=anybody)
        assert [made.acs_id] == acs.created

    async def test_slow_owner(
        self,
        identities: Identities,
        another: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """What an owner made who lost its lease has to go; both get the second identity."""
        acs.faults.fail_next("create", delay=0.5)
        slow = asyncio.create_task(identities.get_or_create(person, admit=anybody))
        await until(lambda: acs.faults.count("create") == 1)
        clock.advance(seconds=LEASE.total_seconds() + 1)

        quick = await another.get_or_create(person, admit=anybody)

        assert quick.acs_id == (await slow).acs_id
        (orphan,) = set(acs.created) - {quick.acs_id}
        assert {orphan: "lost_lease"} == await store.orphans()

    async def test_turn_without_a_call(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A create that is left to somebody else does not say that ACS takes creates again."""
        caplog.set_level("INFO")
        acs.faults.fail_next("create", status=429, headers={"Retry-After": "1"})
        with pytest.raises(UpstreamThrottledError):
            await identities.get_or_create(person, admit=anybody)
        await asyncio.sleep(1.05)
        before = store.faults.count("table_update")
        store.faults.fail_next("table_update", delay=0.2)
        getting = asyncio.create_task(identities.get_or_create(person, admit=anybody))
        await until(lambda: store.faults.count("table_update") > before)
        await store.put(mapping_of(person, clock.now))

        assert ACS_ID == (await getting).acs_id
        assert 1 == acs.faults.count("create")
        assert "acs_throttled" in caplog.text
        assert "acs_unthrottled" not in caplog.text

    async def test_deleting(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """A request does not wait for a deletion: the old identity goes into the ledger."""
        old = await identities.get_or_create(person, admit=anybody)
        deleting = replace(old, state=State.DELETING, reason="idle", lease_until=clock.now + LEASE)
        await store.put(deleting)

        new = await identities.get_or_create(person, admit=anybody)

        assert old.acs_id != new.acs_id
        assert {old.acs_id: "idle"} == await store.orphans()
        assert old.generation + 1 == new.generation

    async def test_lease_of_a_wrong_clock(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """A lease that ends later than any lease can counts as over."""
        lease_until = clock.now + timedelta(days=365)
        await store.put(
            mapping_of(person, clock.now, state=State.CREATING, lease_until=lease_until)
        )

        assert State.ACTIVE is (await identities.get_or_create(person, admit=anybody)).state

    async def test_use_in_the_future(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """A last use in the future is put right by the next use."""
        await store.put(mapping_of(person, clock.now + timedelta(days=365)))

        made = await identities.get_or_create(person, admit=anybody)
        assert clock.is_now(made.last_used_on)


class TestBackoff:
    """After a create that may have made an identity, the next try waits longer and longer."""

    @pytest.mark.parametrize(
        "fault", [{"status": 503}, {"reset": True}, {"status": 201, "body": "{}"}]
    )
    async def test_waits(
        self,
        identities: Identities,
        acs: AcsEmulator,
        person: Person,
        clock: Clock,
        fault: dict[str, Any],
    ) -> None:
        """A caller who obeys Retry-After needs few tries: each may have left an identity behind."""
        waits = []
        for _ in range(6):
            acs.faults.fail_next("create", **fault)
            with pytest.raises(BrokerError) as raised:
                await identities.get_or_create(person, admit=anybody)
            assert raised.value.retry_after is not None
            waits.append(raised.value.retry_after)
            with pytest.raises(BusyError):
                await identities.get_or_create(person, admit=anybody)
            clock.advance(seconds=waits[-1] + 1)

        made = await identities.get_or_create(person, admit=anybody)

        assert waits == sorted(waits)
        assert [18, 54, 60, 60] == waits[2:]
        assert 7 == acs.faults.count("create")
        assert 0 == made.failures

    async def test_refused(self, identities: Identities, acs: AcsEmulator, person: Person) -> None:
        """After a refusal, which made nothing, the next request may go on at once."""
        acs.faults.fail_next("create", status=403)
        with pytest.raises(UpstreamAuthError):
            await identities.get_or_create(person, admit=anybody)

        assert [(await identities.get_or_create(person, admit=anybody)).acs_id] == acs.created


class TestIndex:
    """Whose an ACS identity is."""

    async def test_new(self, identities: Identities, store: Store, person: Person) -> None:
        """A new identity is in the index at once."""
        made = await identities.get_or_create(person, admit=anybody)

        assert person == await store.ledger.owner(made.acs_id)

    async def test_made_up_for(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """An entry that is missing is written with the next use that is recorded."""
        made = await identities.get_or_create(person, admit=anybody)
        await store.ledger.forget_owner(made.acs_id, person)

        clock.advance(days=2)
        await identities.get_or_create(person, admit=anybody)

        assert person == await store.ledger.owner(made.acs_id)

    async def test_shared(
        self,
        identities: Identities,
        store: Store,
        person: Person,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """If two rows name one identity, only the person in the index may use it."""
        made = await identities.get_or_create(person, admit=anybody)
        other = Person(person.tenant_id, "0" * 36)
        await store.put(replace(made, person=other))
        clock.advance(days=2)

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(other, admit=anybody)
        await identities.get_or_create(person, admit=anybody)
        assert ["identity_shared"] == events(caplog)

    async def test_left_over(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """An entry for somebody whose row names another identity, or none, does not count."""
        made = await identities.get_or_create(person, admit=anybody)
        other = Person(person.tenant_id, "0" * 36)
        await store.ledger.index(made.acs_id, other)
        clock.advance(days=2)

        await identities.get_or_create(person, admit=anybody)

        assert person == await store.ledger.owner(made.acs_id)

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import audit
from shared.errors import (
    BrokerError,
    BusyError,
    StorageUnavailableError,
    UpstreamBadResponseError,
    UpstreamUnavailableError,
)
from shared.identifiers import Person
from shared.mappings.identities import Identities
from shared.mappings.table import LEASE, State
from shared.prune import Pruner
from shared.settings import PruneSettings
from tests.emulated import Clock, mapping_of, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from datetime import datetime

    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.mappings.table import IdentityMapping
    from tests.emulated import Store

    Gate = Callable[[type[BrokerError]], Coroutine[None, None, None]]

Result = TypeVar("Result")


@pytest.fixture
def another(acs_identity: AcsIdentity, store: Store, clock: Clock) -> Identities:
    """The identity protocol of another process."""
    return Identities(acs=acs_identity, mappings=store.mappings, clock=clock, poll_seconds=0.02)


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
        mapping = await identities.get_or_create(person)

        row = await store.row(person)
        assert row is not None
        assert [mapping.acs_id] == acs.created
        assert (State.ACTIVE, mapping.acs_id) == (row["state"], row["acsId"])
        assert clock.now == row["createdOn"] == row["lastUsedOn"]
        assert "leaseUntil" not in row

    async def test_later_calls(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """Later calls return it and write nothing, within a day."""
        first = await identities.get_or_create(person)
        clock.advance(days=1)

        assert first == await identities.get_or_create(person)
        assert 1 == store.faults.count("table_update")

    async def test_touch(
        self, identities: Identities, store: Store, person: Person, clock: Clock
    ) -> None:
        """After more than a day the use is noted, and the identity stays."""
        first = await identities.get_or_create(person)
        clock.advance(days=1, seconds=1)

        again = await identities.get_or_create(person)

        assert replace(first, last_used_on=clock.now) == replace(
            again, attempt=first.attempt, etag=first.etag
        )
        row = await store.row(person)
        assert row is not None
        assert clock.now == row["lastUsedOn"]

    async def test_others(self, identities: Identities) -> None:
        """Another person, and the same object id in another tenant, get their own identity."""
        made = [
            await identities.get_or_create(Person(tenant_id * 36, object_id * 36))
            for tenant_id, object_id in product("ab", "cd")
        ]

        assert 4 == len({mapping.acs_id for mapping in made})

    async def test_find(self, identities: Identities, store: Store, person: Person) -> None:
        """Looking somebody up creates nothing; a row without an identity does not count."""
        assert await identities.find(person) is None
        made = await identities.get_or_create(person)
        assert made == await identities.find(person)

        for state in (State.CREATING, State.DELETING):
            await store.put(replace(made, state=state))
            assert await identities.find(person) is None


class TestConcurrency:
    """Many requests of one person at once."""

    async def test_one_process(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person
    ) -> None:
        """Fifty first requests in one process make one identity."""
        made = await asyncio.gather(*(identities.get_or_create(person) for _ in range(50)))

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
            *(each.get_or_create(person) for each in [identities, another] * 25)
        )

        assert {acs.created[0]} == {mapping.acs_id for mapping in made}
        assert (1, 1) == (len(acs.created), len(await store.all_rows()))

    async def test_ten_processes(
        self,
        acs_identity: AcsIdentity,
        acs: AcsEmulator,
        store: Store,
        person: Person,
    ) -> None:
        """The same with ten processes, which all write the day's first use as well."""
        clock = Clock()
        processes = [
            Identities(acs=acs_identity, mappings=store.mappings, clock=clock) for _ in range(10)
        ]
        for _ in range(2):
            made = await asyncio.gather(*(each.get_or_create(person) for each in processes))
            assert {acs.created[0]} == {mapping.acs_id for mapping in made}
            clock.advance(days=2)

        assert 1 == len(acs.created)

    async def test_first_caller_leaves(
        self, identities: Identities, acs: AcsEmulator, person: Person
    ) -> None:
        """A caller who goes away leaves no half-made identity behind."""
        acs.faults.fail_next("create", delay=0.1)
        first = asyncio.create_task(identities.get_or_create(person))
        await asyncio.sleep(0.05)
        first.cancel()

        made = await identities.get_or_create(person)

        assert [made.acs_id] == acs.created
        assert first.cancelled()

    async def test_busy(
        self, acs_identity: AcsIdentity, store: Store, person: Person, clock: Clock
    ) -> None:
        """While another process holds the lease, the caller is told to try again soon."""
        identities = Identities(
            acs=acs_identity, mappings=store.mappings, clock=clock, poll_seconds=0
        )
        for state in (State.CREATING, State.DELETING):
            row = mapping_of(person, clock.now, state=state, lease_until=clock.now + LEASE)
            await store.put(row)

            with pytest.raises(BusyError) as raised:
                await identities.get_or_create(person)
            assert raised.value.retry_after == 2


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
    ) -> None:
        """One POST and an error; the lease is given back, so the next request succeeds at once."""
        acs.faults.fail_next("create", **fault)
        with pytest.raises(error):
            await identities.get_or_create(person)
        assert 1 == acs.faults.count("create")

        made = await identities.get_or_create(person)

        row = await store.row(person)
        assert row is not None
        assert made.acs_id == row["acsId"] == acs.created[-1]
        assert unreferenced == len(acs.created) - 1
        assert not acs.issued

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
            await identities.get_or_create(person)
        assert ["identity_not_created"] == events(caplog)
        with pytest.raises(BusyError):
            await identities.get_or_create(person)

        clock.advance(seconds=LEASE.total_seconds())
        await identities.get_or_create(person)

    @pytest.mark.parametrize("fault", [{"status": 403}, {"status": 503}, {"reset": True}])
    async def test_table_fails(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, fault: Any
    ) -> None:
        """If the table cannot be read, nothing is created."""
        store.faults.fail_next("table_read", times=10, **fault)

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person)
        assert 0 == acs.faults.count("create")

    async def test_no_table(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person
    ) -> None:
        """If the table is missing, no identities are created."""
        await store.rows.delete_table()

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person)
        assert 0 == acs.faults.count("create")

    async def test_newer_row(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """A row of a newer version is left alone."""
        await store.put(mapping_of(person, clock.now), schema=2)
        before = await store.row(person)

        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person)
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
        """An identity that could not be written to the row is logged, and never gets a token."""
        store.faults.fail_next("table_update", status=500, times=2)
        with pytest.raises(StorageUnavailableError):
            await identities.get_or_create(person)
        assert ["identity_unreferenced"] == events(caplog)
        assert acs.created[0] in caplog.text

        clock.advance(seconds=LEASE.total_seconds())
        made = await identities.get_or_create(person)
        assert made.acs_id == acs.created[1]

    async def test_changed_before_it_is_recognised(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person, clock: Clock
    ) -> None:
        """An identity that the row points to is not deleted, whoever wrote the row last."""
        store.faults.fail_next("table_update", status=503, after=True)
        store.faults.fail_next("table_update", delay=0.3)
        getting = asyncio.create_task(identities.get_or_create(person))
        await until(lambda: store.faults.count("table_update") == 2)
        # The first answer was lost; before the second arrives, another process changes the row.
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

        made = await identities.get_or_create(person)

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
            await identities.get_or_create(person)
        assert not acs.created

        clock.now = lease_until
        made = await identities.get_or_create(person)
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
        """An owner who lost its lease deletes what it made; both get the second identity."""
        acs.faults.fail_next("create", delay=0.5)
        slow = asyncio.create_task(identities.get_or_create(person))
        await until(lambda: acs.faults.count("create") == 1)
        clock.advance(seconds=LEASE.total_seconds())

        quick = await another.get_or_create(person)

        assert quick.acs_id == (await slow).acs_id
        assert [quick.acs_id] == list(acs.identities)
        assert 2 == len(acs.created)
        assert {} == await store.orphans()

    @pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}])
    async def test_slow_owner_cannot_delete(
        self,
        identities: Identities,
        another: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        fault: dict[str, Any],
    ) -> None:
        """If ACS does not delete it, it stays in the ledger, and no request is refused for that."""
        acs.faults.fail_next("create", delay=0.5)
        acs.faults.fail_next("delete", **fault)
        slow = asyncio.create_task(identities.get_or_create(person))
        await until(lambda: acs.faults.count("create") == 1)
        clock.advance(seconds=LEASE.total_seconds())
        quick = await another.get_or_create(person)

        assert quick.acs_id == (await slow).acs_id
        (orphan,) = set(acs.created) - {quick.acs_id}
        assert {orphan: "lost_lease"} == await store.orphans()

        await identities.delete_orphan(orphan)
        assert {} == await store.orphans()
        assert [quick.acs_id] == list(acs.identities)

    @pytest.mark.parametrize("deleted", [False, True], ids=["before", "after"])
    async def test_deleting(
        self,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        person: Person,
        clock: Clock,
        deleted: bool,
    ) -> None:
        """A deletion that stopped before or after ACS deleted is finished by the next request."""
        old = await identities.get_or_create(person)
        lease_until = clock.now + LEASE
        await store.put(replace(old, state=State.DELETING, lease_until=lease_until))
        if deleted:
            await identities.delete_orphan(old.acs_id)
        with pytest.raises(BusyError):
            await identities.get_or_create(person)

        clock.now = lease_until
        new = await identities.get_or_create(person)

        assert old.acs_id != new.acs_id
        assert [new.acs_id] == list(acs.identities)


class TestEnd:
    """Pruning against use."""

    async def test_end(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person
    ) -> None:
        """The identity is deleted and the row is gone."""
        made = await identities.get_or_create(person)

        assert await identities.end(made, reason="idle")
        assert [made.acs_id] == acs.deleted
        assert [] == await store.all_rows()

    async def test_used_meanwhile(
        self, identities: Identities, acs: AcsEmulator, person: Person, clock: Clock
    ) -> None:
        """A use recorded since the row was read saves the identity."""
        idle = await identities.get_or_create(person)
        clock.advance(days=100)
        used = await identities.get_or_create(person)

        assert not await identities.end(idle, reason="idle")
        assert used == await identities.find(person)
        assert not acs.deleted

    async def test_request_meanwhile(
        self,
        identities: Identities,
        another: Identities,
        acs: AcsEmulator,
        person: Person,
        clock: Clock,
    ) -> None:
        """A request that comes after the claim waits, and creates a new identity."""
        idle = await identities.get_or_create(person)
        clock.advance(days=100)
        acs.faults.fail_next("delete", delay=0.2)
        ending = asyncio.create_task(identities.end(idle, reason="idle"))
        await until(lambda: acs.faults.count("delete") == 1)

        new = await another.get_or_create(person)

        assert await ending
        assert idle.acs_id != new.acs_id
        assert [new.acs_id] == list(acs.identities)
        assert new == await identities.find(person)

    async def test_acs_fails(
        self, identities: Identities, acs: AcsEmulator, store: Store, person: Person
    ) -> None:
        """If ACS fails, the row stays `deleting`, and the next request finishes it at once."""
        made = await identities.get_or_create(person)
        acs.faults.fail_next("delete", status=503)
        with pytest.raises(UpstreamUnavailableError):
            await identities.end(made, reason="idle")
        row = await store.row(person)
        assert row is not None
        assert State.DELETING == row["state"]

        new = await identities.get_or_create(person)
        assert [new.acs_id] == list(acs.identities)


class CrashError(BaseException):
    """The process is gone: nothing of it runs any more, not even an exception handler."""


ADA = Person("3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10", "0aa1b2c3-0000-4000-8000-000000000001")
IDLE = timedelta(days=90)


@dataclass
class World:
    """A model of ACS and Table Storage."""

    clock: Clock = field(default_factory=Clock)
    rows: dict[Person, IdentityMapping] = field(default_factory=dict)
    ledger: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
    served: set[str] = field(default_factory=set)  # Identities for which we issued a token.
    recorded: set[str] = field(default_factory=set)  # Ever in a row or in the ledger.
    made: int = 0
    writes: int = 0
    faults: int = 0

    def check(self) -> None:
        """Check what must always hold: a token handed out is for the person's identity."""
        assert len(self.served) <= 1
        assert self.served <= {mapping.acs_id for mapping in self.rows.values()} & self.alive

    def check_settled(self) -> None:
        """What must hold once all is done: nothing is left but one identity and its row.

        A fault may cost an identity that was never recorded, and so never had a token.
        """
        self.check()
        (mapping,) = self.rows.values()
        assert mapping.state is State.ACTIVE
        assert {mapping.acs_id} == self.served
        assert not self.ledger
        lost = self.alive - self.served
        assert len(lost) <= self.faults
        assert lost.isdisjoint(self.recorded)


def world_of(state: str) -> World:
    """Return a world with a history."""
    world = World(alive={"old"}, recorded={"old"})
    long_ago = world.clock() - IDLE - timedelta(days=1)
    old = mapping_of(ADA, long_ago, acs_id="old", etag="0", lease_until=long_ago)
    if state == "idle":
        world.rows[ADA] = replace(old, lease_until=None)
    elif state == "deleting":
        world.rows[ADA] = replace(old, state=State.DELETING)
    elif state == "deleted in ACS":
        world.rows[ADA] = replace(old, state=State.DELETING)
        world.alive.clear()
    elif state == "creating":
        world.rows[ADA] = replace(old, state=State.CREATING, acs_id="")
        world.alive.clear()
    elif state == "orphan":
        world.ledger.add("old")
    else:
        world.alive.clear()
    return world


STATES = ["absent", "creating", "idle", "deleting", "deleted in ACS", "orphan"]


class Process:
    """The broker in one process, over the model.

    Args:
        world: the services.
        gate: is passed before and after what each call does; it may raise there.
    """

    def __init__(self, world: World, gate: Gate) -> None:
        self.world = world
        self._gate = gate
        # This class has exactly the methods of the two classes that are called.
        services: dict[str, Any] = {"acs": self, "mappings": self}
        self._identities = Identities(**services, clock=world.clock, poll_seconds=0)
        self._pruner = Pruner(
            settings=PruneSettings(idle=IDLE, dry_run=False, max_share=1, max_deletes=100),
            identities=self._identities,
            mappings=services["mappings"],
            clock=world.clock,
            seconds_per_delete=0,
        )

    async def request(self) -> None:
        """Ask for a token, as the broker does."""
        mapping = await self._identities.get_or_create(ADA)
        await self.issue(mapping.acs_id)

    async def prune(self) -> None:
        """Let the timer run."""
        await self._pruner.run()

    async def _call(
        self, effect: Callable[[], Result], error: type[BrokerError] = StorageUnavailableError
    ) -> Result:
        await self._gate(error)
        result = effect()
        self.world.check()
        await self._gate(error)
        return result

    # As AcsIdentity.

    async def create(self) -> str:
        def effect() -> str:
            self.world.made += 1
            acs_id = f"id-{self.world.made}"
            self.world.alive.add(acs_id)
            return acs_id

        return await self._call(effect, UpstreamUnavailableError)

    async def issue(self, acs_id: str) -> None:
        await self._call(lambda: self.world.served.add(acs_id), UpstreamUnavailableError)

    async def delete(self, acs_id: str) -> None:
        await self._call(lambda: self.world.alive.discard(acs_id), UpstreamUnavailableError)

    # As IdentityMappings.

    async def read(self, person: Person) -> IdentityMapping | None:
        return await self._call(lambda: self.world.rows.get(person))

    async def insert(self, mapping: IdentityMapping) -> IdentityMapping | None:
        return await self._call(lambda: self._put(mapping, None))

    async def change(self, mapping: IdentityMapping, **changes: Any) -> IdentityMapping | None:
        return await self._call(lambda: self._put(replace(mapping, **changes), mapping.etag))

    def _put(self, mapping: IdentityMapping, etag: str | None) -> IdentityMapping | None:
        stored = self.world.rows.get(mapping.person)
        if (stored.etag if stored else None) != etag:
            return None
        self.world.writes += 1
        written = replace(mapping, etag=str(self.world.writes))
        self.world.rows[mapping.person] = written
        self.world.recorded.add(mapping.acs_id)
        return written

    async def remove(self, mapping: IdentityMapping) -> bool:
        def effect() -> bool:
            stored = self.world.rows.get(mapping.person)
            if stored is not None and stored.etag != mapping.etag:
                return False
            self.world.rows.pop(mapping.person, None)
            return True

        return await self._call(effect)

    async def add_orphan(self, acs_id: str, *, reason: str, now: datetime) -> None:
        assert reason
        assert now

        def effect() -> None:
            self.world.ledger.add(acs_id)
            self.world.recorded.add(acs_id)

        await self._call(effect)

    async def remove_orphan(self, acs_id: str) -> None:
        await self._call(lambda: self.world.ledger.discard(acs_id))

    async def server_time(self) -> datetime:
        return self.world.clock()

    async def count(self, *, idle_before: datetime) -> tuple[int, int]:
        return len(self.world.rows), sum(
            mapping.last_used_on < idle_before for mapping in self.world.rows.values()
        )

    async def idle(self, *, idle_before: datetime) -> AsyncIterator[IdentityMapping]:
        for mapping in await self._call(lambda: list(self.world.rows.values())):
            if mapping.state is State.ACTIVE and mapping.last_used_on < idle_before:
                yield mapping

    async def interrupted(self, *, lease_before: datetime) -> AsyncIterator[IdentityMapping]:
        for mapping in await self._call(lambda: list(self.world.rows.values())):
            lease_until = mapping.lease_until or lease_before
            if mapping.state is not State.ACTIVE and lease_until < lease_before:
                yield mapping

    async def orphans(self) -> AsyncIterator[str]:
        for acs_id in await self._call(lambda: sorted(self.world.ledger)):
            yield acs_id


async def open_gate(_error: type[BrokerError]) -> None:
    """Let every call succeed."""


async def settle(world: World) -> None:
    """Let a request come within the lease, one after it, and the timer a while later."""
    process = Process(world, open_gate)
    with suppress(BusyError):
        await process.request()
    world.clock.advance(seconds=LEASE.total_seconds())
    await process.request()
    world.clock.advance(minutes=11)
    await process.prune()
    world.check_settled()


class TestEveryCrash:
    """A process may crash, or a reply may be lost, before and after each of its steps."""

    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize("work", [Process.request, Process.prune], ids=["request", "prune"])
    @pytest.mark.parametrize("how", ["crash", "failure"])
    async def test_recovers(
        self, state: str, work: Callable[[Process], Coroutine[None, None, None]], how: str
    ) -> None:
        """Wherever that happens, later requests and the timer put everything in order."""
        points = 0
        happened = True
        while happened:
            world, happened, left = world_of(state), False, points

            async def gate(error: type[BrokerError]) -> None:
                nonlocal happened, left
                left -= 1
                if left < 0 and not happened:
                    happened = True
                    world.faults += 1  # noqa: B023 - as above
                    raise CrashError if how == "crash" else error

            with suppress(CrashError, BrokerError):
                await work(Process(world, gate))
            await settle(world)
            points += 1
        assert points > 2


class Schedule:
    """Lets one process at a time, of several, do its next step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[tuple[asyncio.Future[None], type[BrokerError]]] = []
        self._running: list[asyncio.Task[None]] = []

    def start(self, work: Callable[[Process], Coroutine[None, None, None]]) -> None:
        """Start some work in a process of its own."""
        self._running.append(asyncio.create_task(work(Process(self._world, self._gate))))

    async def _gate(self, error: type[BrokerError]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, error))
        await future

    async def next(self, event: str = "step", which: int = 0) -> bool:
        """Let one process go on, fail or crash, or a lease run out; False when all have ended."""
        while len(self._waiting) < sum(not task.done() for task in self._running):  # noqa: ASYNC110 - one turn of the loop at a time
            await asyncio.sleep(0)
        if not self._waiting:
            return False
        if event == "lease runs out":
            self._world.clock.advance(seconds=LEASE.total_seconds())
            return True
        future, error = self._waiting.pop(which % len(self._waiting))
        if event == "step":
            future.set_result(None)
        else:
            self._world.faults += 1
            future.set_exception(CrashError() if event == "crash" else error())
        return True

    async def outcomes(self) -> list[BaseException | None]:
        """Return the outcome of each process."""
        return await asyncio.gather(*self._running, return_exceptions=True)


EVENTS = ["step"] * 9 + ["lease runs out", "crash", "failure"]
CHOICES = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=60)


class TestEverySchedule:
    """Two requests, another after them and the timer, interleaved in any way."""

    @settings(max_examples=400)
    @given(state=st.sampled_from(STATES), choices=CHOICES)
    def test_holds(self, state: str, choices: list[tuple[str, int]]) -> None:
        """Tokens are handed out only for the identity that is, and stays, the person's."""

        async def play() -> None:
            world = world_of(state)
            schedule = Schedule(world)
            for work in (Process.request, Process.request, Process.prune, Process.prune):
                schedule.start(work)
            for event, which in choices:
                await schedule.next(event, which)
            while await schedule.next():
                pass
            for outcome in await schedule.outcomes():
                assert isinstance(outcome, BrokerError | CrashError | None)
            await settle(world)

        asyncio.run(play())

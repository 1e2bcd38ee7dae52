from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from shared.mappings.endings import ANNOUNCED_FOR, LONGEST_RETRY, RETRY_AFTER, Endings
from shared.mappings.identities import SETTLED_AFTER
from shared.mappings.ledger import Orphan
from shared.mappings.table import LEASE, State
from shared.runs import FAILURES_IN_A_ROW
from shared.sweep import LATE_AFTER, Sweeper, SweepReport, is_due
from tests.emulated import anybody, lines, mapping_of

if TYPE_CHECKING:
    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.mappings.identities import Identities
    from tests.emulated import Clock, Store

pytestmark = pytest.mark.usefixtures("every_audit_line")

OTHER = Person("0" * 36, "1" * 36)
FAR = timedelta(days=365_000)  # A date that nobody can have meant.


class TestPeople:
    """Erasures and revocations that were begun are completed."""

    async def test_nothing(self, sweeper: Sweeper, caplog: pytest.LogCaptureFixture) -> None:
        """An empty ledger is swept with one line."""
        assert SweepReport() == await sweeper.run()
        ((level, line),) = lines(caplog, "sweep_")
        assert ("INFO", "sweep_finished", 0) == (level, line["event"], line["waiting"])

    async def test_erasure(
        self,
        sweeper: Sweeper,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        person: Person,
    ) -> None:
        """An erasure that ACS was down for is completed five minutes later, and its mark stays."""
        mapping = await identities.get_or_create(person, admit=anybody)
        acs.faults.fail_next("delete", status=503)
        assert not await endings.erase(person, reason="erased", admit=anybody)
        assert SweepReport(waiting=1) == await sweeper.run()

        clock.now += RETRY_AFTER + timedelta(seconds=1)

        assert SweepReport(waiting=1, finished=1) == await sweeper.run()
        row = await store.row(person)
        assert row is not None
        assert (State.ERASED, False) == (row["state"], mapping.acs_id in acs.identities)
        assert row["revokedBefore"] <= clock.now
        assert SweepReport() == await sweeper.run()

    @pytest.mark.parametrize("gone", [False, True], ids=["before ACS", "after ACS"])
    async def test_erasure_after_a_crash(
        self,
        sweeper: Sweeper,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        person: Person,
        gone: bool,
    ) -> None:
        """An erasure whose process died is completed once the lease is over."""
        mapping = await identities.get_or_create(person, admit=anybody)
        await store.ledger.add_unfinished(person)
        lease_until = clock.now + LEASE
        await store.put(
            replace(
                mapping,
                state=State.DELETING,
                reason="erased",
                revoked_before=clock.now,
                lease_until=lease_until,
            )
        )
        if gone:
            acs.identities.clear()
        assert SweepReport(waiting=1) == await sweeper.run()

        clock.now = lease_until + timedelta(seconds=1)

        assert SweepReport(waiting=1) == await sweeper.run()
        assert {} == acs.identities
        row = await store.row(person)
        assert row is not None
        assert State.ERASED == row["state"]
        clock.now += ANNOUNCED_FOR  # Until then, the entry may announce another one.
        assert SweepReport(waiting=1, finished=1) == await sweeper.run()
        assert [] == await store.unfinished()

    async def test_announced_only(
        self,
        sweeper: Sweeper,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        person: Person,
    ) -> None:
        """An erasure that died before its mark leaves everything as it was, and no entry."""
        mapping = await identities.get_or_create(person, admit=anybody)
        await store.ledger.add_unfinished(person)
        assert SweepReport(waiting=1) == await sweeper.run()
        assert [person] == await store.unfinished()  # It may be on its way.

        clock.now += ANNOUNCED_FOR + timedelta(seconds=2)

        assert SweepReport(waiting=1, finished=1) == await sweeper.run()
        assert [] == await store.unfinished()
        assert mapping.acs_id in acs.identities

    async def test_revocation(
        self,
        sweeper: Sweeper,
        endings: Endings,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        person: Person,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Tokens are revoked once more when every request from before the mark has ended."""
        mapping = await identities.get_or_create(person, admit=anybody)
        assert await endings.revoke(person, admit=anybody)
        acs.identities[mapping.acs_id].tokens.add("issued by a request that read no mark")
        assert SweepReport(waiting=1) == await sweeper.run()
        assert 1 == acs.faults.count("revoke")

        clock.now += SETTLED_AFTER + timedelta(seconds=2)

        await sweeper.run()
        assert set() == acs.identities[mapping.acs_id].tokens
        row = await store.row(person)
        assert row is not None
        assert "revokeAgain" not in row
        assert [True] == [line["again"] for _, line in lines(caplog, "tokens_revoked")]
        clock.now += ANNOUNCED_FOR  # Until then, the entry may announce another one.
        assert SweepReport(waiting=1, finished=1) == await sweeper.run()
        assert [] == await store.unfinished()

    async def test_revoked_again_meanwhile(
        self,
        sweeper: Sweeper,
        endings: Endings,
        identities: Identities,
        acs_identity: AcsIdentity,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        person: Person,
    ) -> None:
        """A revocation that begins while an earlier one is completed stays in the ledger."""
        await identities.get_or_create(person, admit=anybody)
        await endings.revoke(person, admit=anybody)
        clock.now += ANNOUNCED_FOR + timedelta(seconds=2)

        class Late(Endings):
            async def finish(self, entry: Any) -> bool:
                done = await super().finish(entry)
                await self.revoke(entry.person, admit=anybody)
                return done

        late = Late(
            acs=acs_identity, mappings=store.mappings, ledger=store.ledger, identities=identities
        )
        await Sweeper(
            endings=late, mappings=store.mappings, ledger=store.ledger, seconds_per_delete=0
        ).run()

        assert [person] == await store.unfinished()
        clock.now += ANNOUNCED_FOR + timedelta(seconds=2)
        assert 1 == (await sweeper.run()).finished
        assert 4 == acs.faults.count("revoke")

    async def test_late(self, sweeper: Sweeper, store: Store, clock: Clock, person: Person) -> None:
        """The report says how many people have waited for longer than anybody should."""
        await store.ledger.add_unfinished(OTHER)
        await store.put(
            mapping_of(
                OTHER, clock.now, state=State.DELETING, lease_until=clock.now + timedelta(hours=2)
            )
        )
        clock.now += LATE_AFTER - timedelta(minutes=1)
        assert 0 == (await sweeper.run()).late

        clock.now += timedelta(minutes=2)
        await store.ledger.add_orphan("8:acs:x", person=person, reason="test", now=clock.now)
        assert 1 == (await sweeper.run()).late


class TestOrphans:
    """Identities that no row names are deleted."""

    @pytest.fixture
    async def orphan(self, acs_identity: AcsIdentity, store: Store, clock: Clock) -> str:
        """An identity in the ledger."""
        acs_id = await acs_identity.create()
        await store.ledger.add_orphan(acs_id, person=OTHER, reason="lost_lease", now=clock.now)
        return acs_id

    async def test_deleted(
        self,
        sweeper: Sweeper,
        acs: AcsEmulator,
        store: Store,
        orphan: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is deleted, struck off, taken out of the index, and the log says so."""
        await store.ledger.index(orphan, OTHER)

        assert SweepReport(waiting=1, orphans=1) == await sweeper.run()

        assert [orphan] == acs.deleted
        assert ({}, None) == (await store.orphans(), await store.ledger.owner(orphan))
        ((_, line),) = lines(caplog, "identity_deleted")
        assert ("orphan: lost_lease", OTHER.object_id) == (line["reason"], line["object_id"])

    async def test_gone(
        self, sweeper: Sweeper, acs: AcsEmulator, store: Store, orphan: str
    ) -> None:
        """One that is gone already is struck off, too."""
        del acs.identities[orphan]

        assert 1 == (await sweeper.run()).orphans
        assert {} == await store.orphans()

    async def test_of_nobody(
        self, sweeper: Sweeper, acs_identity: AcsIdentity, acs: AcsEmulator, store: Store
    ) -> None:
        """An entry of an earlier version, without a person, is understood."""
        acs_id = await acs_identity.create()
        await store.entries.create_entity({"PartitionKey": "orphan", "RowKey": acs_id})

        assert 1 == (await sweeper.run()).orphans
        assert [acs_id] == acs.deleted

    @pytest.mark.parametrize("known", ["ledger", "index"])
    async def test_live_identity(
        self,
        sweeper: Sweeper,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        person: Person,
        known: str,
    ) -> None:
        """An identity that a row names after all is never deleted: its entry was a mistake."""
        mapping = await identities.get_or_create(person, admit=anybody)
        await store.ledger.add_orphan(
            mapping.acs_id,
            person=person if known == "ledger" else None,
            reason="unconfirmed",
            now=clock.now,
        )

        assert SweepReport(waiting=1) == await sweeper.run()

        assert [] == acs.deleted
        assert {} == await store.orphans()
        assert person == await store.ledger.owner(mapping.acs_id)

    async def test_failure(
        self,
        sweeper: Sweeper,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        orphan: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One that cannot be deleted is tried again later, and later each time."""
        acs.faults.fail_next("delete", status=500, times=2)
        assert SweepReport(waiting=1, failed=1) == await sweeper.run()
        ((level, line),) = lines(caplog, "piece_failed")
        assert ("WARNING", "orphan", orphan, 1) == (
            level,
            line["work"],
            line["acs_id"],
            line["failures"],
        )
        assert SweepReport(waiting=1) == await sweeper.run()

        clock.now += RETRY_AFTER + timedelta(seconds=1)
        assert 1 == (await sweeper.run()).failed
        clock.now += RETRY_AFTER + timedelta(seconds=1)
        assert 0 == (await sweeper.run()).orphans
        clock.now += RETRY_AFTER + timedelta(seconds=1)
        assert 1 == (await sweeper.run()).orphans
        assert {} == await store.orphans()

    async def test_lost_reply(
        self, sweeper: Sweeper, acs: AcsEmulator, store: Store, clock: Clock, orphan: str
    ) -> None:
        """A deletion whose answer was lost is repeated, and done."""
        acs.faults.fail_next("delete", status=500, after=True)
        assert 1 == (await sweeper.run()).failed

        clock.now += RETRY_AFTER + timedelta(seconds=1)

        assert 1 == (await sweeper.run()).orphans
        assert ([orphan], {}) == (acs.deleted, await store.orphans())

    async def test_foreign(
        self, sweeper: Sweeper, acs: AcsEmulator, store: Store, clock: Clock
    ) -> None:
        """An identity of another resource stays in the ledger: ACS would say that it is gone."""
        acs_id = "8:acs:00000000-1111-4000-8000-000000000001_00000005"
        await store.ledger.add_orphan(acs_id, person=None, reason="test", now=clock.now)

        assert SweepReport(waiting=1, failed=1) == await sweeper.run()
        assert [acs_id] == list(await store.orphans())
        assert acs.deleted == acs.created  # What our resource's id was learned from.

    @pytest.mark.parametrize(
        ("retry_in", "due"),
        [
            (None, True),
            (timedelta(), True),
            (timedelta(seconds=1), False),
            (LONGEST_RETRY, False),
            (LONGEST_RETRY + timedelta(seconds=1), True),
            (FAR, True),
        ],
    )
    def test_is_due(self, clock: Clock, retry_in: timedelta | None, due: bool) -> None:
        """A date further away than any next attempt can be is ignored."""
        retry_on = None if retry_in is None else clock.now + retry_in
        assert due == is_due(Orphan("8:acs:x", None, "test", 1, retry_on), clock.now)


class TestFailures:
    """What fails holds up nothing else, and a service that is out of order ends the run."""

    @pytest.fixture
    async def orphans(self, acs_identity: AcsIdentity, store: Store, clock: Clock) -> list[str]:
        """Twenty identities in the ledger."""
        made = [await acs_identity.create() for _ in range(20)]
        for acs_id in made:
            await store.ledger.add_orphan(acs_id, person=None, reason="test", now=clock.now)
        return made

    async def test_one(self, sweeper: Sweeper, acs: AcsEmulator, orphans: list[str]) -> None:
        """One failure costs one deletion."""
        acs.faults.fail_next("delete", status=500)

        assert SweepReport(waiting=20, orphans=19, failed=1) == await sweeper.run()
        assert 1 == len(set(orphans) & set(acs.identities))

    @pytest.mark.usefixtures("orphans")
    async def test_all(
        self, sweeper: Sweeper, acs: AcsEmulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Several failures in a row end the run."""
        acs.faults.fail_next("delete", status=503, times=100)

        report = await sweeper.run()

        assert "failures" == report.stopped
        assert FAILURES_IN_A_ROW <= report.failed < 2 * FAILURES_IN_A_ROW
        assert [("WARNING", "sweep_stopped")] == [
            (level, line["event"]) for level, line in lines(caplog, "sweep_")
        ]

    async def test_same_ones(
        self,
        sweeper: Sweeper,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
        orphans: list[str],
    ) -> None:
        """People whose row cannot be read, and who come first, do not hold up the others."""
        for number in range(2 * FAILURES_IN_A_ROW):
            broken = Person("0" * 36, f"{number:036}")
            mapping = await identities.get_or_create(broken, admit=anybody)
            await store.put(mapping, schema=2)
            await store.ledger.add_unfinished(broken)

        for _ in range(20):
            await sweeper.run()

        assert set() == set(orphans) & set(acs.identities)
        assert {} == await store.orphans()

    @pytest.mark.parametrize(
        ("operation", "fault"),
        [
            ("table_query", {"status": 503, "times": 3}),
            ("table_query", {"status": 403}),
            ("table_read", {"status": 403}),
        ],
    )
    @pytest.mark.usefixtures("orphans")
    async def test_run_fails(
        self,
        sweeper: Sweeper,
        store: Store,
        caplog: pytest.LogCaptureFixture,
        operation: str,
        fault: dict[str, Any],
    ) -> None:
        """Where the table cannot be read the run fails, and the next one does everything."""
        store.faults.fail_next(operation, **fault)

        with pytest.raises(StorageUnavailableError):
            await sweeper.run()
        ((level, line),) = lines(caplog, "sweep_")
        assert ("ERROR", "sweep_failed", "storage_unavailable") == (
            level,
            line["event"],
            line["code"],
        )

        assert 20 == (await sweeper.run()).orphans

    async def test_pace(self, endings: Endings, store: Store, orphans: list[str]) -> None:
        """Deletions are spread over time, as those of the other timer."""
        sweeper = Sweeper(
            endings=endings,
            mappings=store.mappings,
            ledger=store.ledger,
            seconds_per_delete=1 / len(orphans),
        )

        loop = asyncio.get_running_loop()
        started = loop.time()

        assert 20 == (await sweeper.run()).orphans
        assert loop.time() - started >= 1

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.acs.emulator import RESOURCE_ID, Identity
from local.entra.directory import CONTOSO
from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from shared.mappings.endings import MARK_LIFETIME, Endings
from shared.mappings.table import LEASE, State
from shared.prune import ABANDONED_AFTER, PROGRESS, PROGRESS_LASTS, Pruner, PruneReport
from shared.runs import FAILURES_IN_A_ROW
from shared.settings import PruneSettings
from tests.emulated import anybody, lines, mapping_of, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from datetime import datetime

    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.mappings.identities import Identities
    from shared.mappings.table import IdentityMapping
    from tests.emulated import Clock, Store

    MakePruner = Callable[..., Pruner]
    MakePeople = Callable[..., Awaitable[list[IdentityMapping]]]

pytestmark = pytest.mark.usefixtures("every_audit_line")

SETTINGS = PruneSettings(idle=timedelta(days=90), dry_run=False, max_share=0.5, max_deletes=1000)
IDLE = timedelta(days=91)
PAGE = [group << 24 | number for group in range(10) for number in range(100)]
SECOND_PAGE = 0x20 << 24
FAR = timedelta(days=365_000)  # A date that nobody can have meant.


@pytest.fixture
def pruner(endings: Endings, store: Store, clock: Clock) -> MakePruner:
    """Return a function that makes the timer's use case, with other settings or parts."""

    def make(
        *,
        clock: Callable[[], datetime] = clock,
        endings: Endings = endings,
        seconds_per_delete: float = 0,
        duration: timedelta = timedelta(minutes=25),
        **changes: Any,
    ) -> Pruner:
        return Pruner(
            settings=replace(SETTINGS, **changes),
            endings=endings,
            mappings=store.mappings,
            ledger=store.ledger,
            clock=clock,
            seconds_per_delete=seconds_per_delete,
            duration=duration,
        )

    return make


def somebody(number: int) -> Person:
    """Return a person by number; those of higher numbers come later in the table."""
    return Person(CONTOSO.tenant_id, f"{number:08x}-0000-4000-8000-000000000000")


def foreign(number: int, now: datetime) -> IdentityMapping:
    """Return an idle mapping to an identity of another ACS resource."""
    acs_id = f"8:acs:00000000-1111-4000-8000-000000000001_{number:08x}"
    return mapping_of(somebody(number), now - IDLE, acs_id=acs_id)


def stored(acs: AcsEmulator, numbers: Iterable[int], used: datetime) -> list[IdentityMapping]:
    """Return mappings of people to identities that ACS knows."""
    made = []
    for number in numbers:
        identity = Identity(f"8:acs:{RESOURCE_ID}_00000005-{number:08x}")
        acs.identities[identity.id] = identity
        made.append(mapping_of(somebody(number), used, acs_id=identity.id))
    return made


@pytest.fixture
def people(identities: Identities, store: Store, clock: Clock) -> MakePeople:
    """Return a function that lets people have an identity and be idle, or not, since then."""

    async def make(*, idle: int = 0, active: int = 0) -> list[IdentityMapping]:
        made = []
        for number in range(idle + active):
            mapping = await identities.get_or_create(somebody(number), admit=anybody)
            if number < idle:
                mapping = replace(mapping, last_used_on=clock.now - IDLE)
                await store.put(mapping)
            made.append(mapping)
        return made

    return make


async def states(store: Store) -> dict[str, str]:
    """Return the state of each row, by object id."""
    return {row["RowKey"]: row["state"] for row in await store.all_rows()}


class TestPruning:
    """Idle identities are removed, others stay."""

    async def test_prunes(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Idle rows, their identities and index entries are removed; one line says how many."""
        *idle, one, two = await people(idle=2, active=2)

        report = await pruner().run()

        assert PruneReport(dry_run=False, rows=4, idle=2, pruned=2) == report
        assert {mapping.acs_id for mapping in idle} == set(acs.deleted)
        rows = await store.all_rows()
        assert {one.acs_id, two.acs_id} == {row["acsId"] for row in rows}
        entries = [dict(entity) async for entity in store.entries.list_entities()]
        assert {one.acs_id, two.acs_id} == {entry["PartitionKey"] for entry in entries}
        ((level, line),) = lines(caplog, "prune_")
        assert "INFO" == level
        expected = {"event": "prune_finished", "rows": 4, "idle": 2, "pruned": 2, "failed": 0}
        assert expected == {name: line[name] for name in expected}
        deleted = [line for _, line in lines(caplog, "identity_deleted")]
        assert {(mapping.acs_id, mapping.person.object_id, "idle") for mapping in idle} == {
            (line["acs_id"], line["object_id"], line["reason"]) for line in deleted
        }

    async def test_again(self, pruner: MakePruner, people: MakePeople, acs: AcsEmulator) -> None:
        """A second run finds nothing to do."""
        await people(idle=1, active=1)
        await pruner().run()

        assert PruneReport(dry_run=False, rows=1) == await pruner().run()
        assert 1 == len(acs.deleted)

    async def test_empty(self, pruner: MakePruner) -> None:
        """An empty table is no error."""
        assert PruneReport(dry_run=False) == await pruner().run()

    async def test_dry_run(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A dry run reports the same and changes nothing."""
        _, other, ahead, *_ = await people(idle=1, active=3)
        long_ago = clock.now - timedelta(hours=1)
        await store.put(replace(other, state=State.DELETING, lease_until=long_ago))
        await store.put(replace(ahead, last_used_on=clock.now + FAR))

        async def everything() -> list[list[dict[str, Any]]]:
            tables = (store.rows, store.entries)
            return [[dict(each) async for each in table.list_entities()] for table in tables]

        before = await everything()

        dry = await pruner(dry_run=True).run()

        expected = PruneReport(dry_run=True, rows=4, idle=1, pruned=1, finished=1, mended=1)
        assert expected == dry
        assert before == await everything()
        assert not acs.deleted
        assert lines(caplog, "prune_")[0][1]["dry_run"]
        wet = await pruner().run()
        assert replace(expected, dry_run=False) == wet

    async def test_exact_days(self, pruner: MakePruner, store: Store, clock: Clock) -> None:
        """A mapping is idle once the days have passed, not before."""
        for number, margin in enumerate((timedelta(seconds=20), -timedelta(seconds=1))):
            await store.put(mapping_of(somebody(number), clock.now - SETTINGS.idle + margin))

        report = await pruner(dry_run=True).run()

        assert (2, 1, 1) == (report.rows, report.idle, report.pruned)

    async def test_by_the_clock_of_the_table(
        self, pruner: MakePruner, store: Store, clock: Clock
    ) -> None:
        """What is idle is decided by the table's clock, not by that of the process."""
        await store.put(mapping_of(somebody(0), clock.now - SETTINGS.idle + timedelta(minutes=2)))

        def ahead() -> datetime:
            return clock.now + timedelta(minutes=4)

        assert 0 == (await pruner(clock=ahead, dry_run=True).run()).idle

    async def test_somebody_comes_back(
        self,
        pruner: MakePruner,
        people: MakePeople,
        identities: Identities,
        acs: AcsEmulator,
        store: Store,
    ) -> None:
        """A person who asks for a token during the run keeps the identity."""
        idle = (await people(idle=5, active=5))[:5]
        acs.faults.fail_next("delete", delay=0.3, times=4)
        running = asyncio.create_task(pruner().run())
        await until(lambda: acs.faults.count("delete") == 4)
        now = await states(store)
        (last,) = [each for each in idle if now[each.person.object_id] == State.ACTIVE]

        back = await identities.get_or_create(last.person, admit=anybody)

        assert PruneReport(dry_run=False, rows=10, idle=5, pruned=4) == await running
        assert last.acs_id == back.acs_id
        assert last.acs_id in acs.identities

    async def test_somebody_comes_back_too_late(
        self,
        pruner: MakePruner,
        people: MakePeople,
        identities: Identities,
        acs: AcsEmulator,
    ) -> None:
        """Who asks for a token while the identity is being deleted gets another, which stays."""
        first, *_ = await people(idle=1, active=1)
        acs.faults.fail_next("delete", delay=0.3)
        running = asyncio.create_task(pruner().run())
        await until(lambda: acs.faults.count("delete") == 1)

        back = await identities.get_or_create(first.person, admit=anybody)
        await running

        assert back.acs_id != first.acs_id
        assert back.acs_id in acs.identities
        assert first.acs_id not in acs.identities
        assert back == await identities.find(first.person, admit=anybody)

    async def test_pages(self, pruner: MakePruner, store: Store, clock: Clock) -> None:
        """More rows than a page are all seen."""
        idle = clock.now - IDLE
        await store.put_all([mapping_of(somebody(number), idle) for number in PAGE])
        await store.put(mapping_of(somebody(0xFF000000), idle))

        report = await pruner(max_share=1, max_deletes=5000, dry_run=True).run()

        assert (1001, 1001, 1001) == (report.rows, report.idle, report.pruned)


class TestInterrupted:
    """Interrupted work is finished."""

    @pytest.mark.parametrize("gone", [False, True], ids=["before ACS", "after ACS"])
    async def test_deleting(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        gone: bool,
    ) -> None:
        """A deletion that stopped, before or after ACS deleted, is finished after its lease."""
        (mapping,) = await people(active=1)
        lease_until = clock.now + LEASE
        await store.put(replace(mapping, state=State.DELETING, lease_until=lease_until))
        if gone:
            acs.identities.clear()
        assert PruneReport(dry_run=False, rows=1) == await pruner().run()

        clock.now = lease_until + timedelta(seconds=1)
        assert PruneReport(dry_run=False, rows=1, finished=1) == await pruner().run()
        assert [] == await store.all_rows()
        assert {} == acs.identities

    async def test_reason_stays(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """What was begun for a reason is finished for it."""
        (mapping,) = await people(active=1)
        await store.put(replace(mapping, state=State.DELETING, reason="gone"))

        await pruner().run()

        ((_, line),) = lines(caplog, "identity_deleted")
        assert "gone" == line["reason"]

    async def test_creating(
        self, pruner: MakePruner, store: Store, acs: AcsEmulator, clock: Clock
    ) -> None:
        """An abandoned intent is removed ten minutes after its lease, not before."""
        intent = mapping_of(somebody(1), clock.now, state=State.CREATING, acs_id="")
        await store.put(replace(intent, lease_until=clock.now))
        clock.now += ABANDONED_AFTER - timedelta(seconds=20)
        assert PruneReport(dry_run=False, rows=1) == await pruner().run()

        clock.advance(seconds=21)
        assert PruneReport(dry_run=False, rows=1, finished=1) == await pruner().run()
        assert [] == await store.all_rows()
        assert 0 == acs.faults.count("delete")

    @pytest.mark.parametrize("state", [State.CREATING, State.DELETING])
    @pytest.mark.parametrize("lease", [FAR, None], ids=["far ahead", "none"])
    async def test_damaged_lease(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        acs: AcsEmulator,
        clock: Clock,
        state: State,
        lease: timedelta | None,
    ) -> None:
        """A lease further ahead than any can be counts as over, and so does a missing one."""
        (mapping,) = await people(active=1)
        lease_until = None if lease is None else clock.now + lease
        acs_id = mapping.acs_id if state is State.DELETING else ""
        await store.put(replace(mapping, state=state, acs_id=acs_id, lease_until=lease_until))

        assert 1 == (await pruner().run()).finished
        assert [] == await store.all_rows()
        assert (mapping.acs_id in acs.identities) == (state is State.CREATING)


class TestMending:
    """Rows and index entries that are wrong, or of no use any more."""

    async def test_mark_expires(self, pruner: MakePruner, store: Store, clock: Clock) -> None:
        """A mark without an identity is kept for as long as an Entra token may live.

        It does not count as a row: it is nobody who could be idle.
        """
        mark = clock.now - MARK_LIFETIME + timedelta(seconds=20)
        erased = mapping_of(somebody(1), clock.now, state=State.ERASED, acs_id="")
        await store.put(replace(erased, revoked_before=mark))
        assert PruneReport(dry_run=False) == await pruner().run()

        clock.advance(seconds=21)
        assert PruneReport(dry_run=False, mended=1) == await pruner().run()
        assert [] == await store.all_rows()

    async def test_mark_outlives_the_identity(
        self, pruner: MakePruner, people: MakePeople, store: Store, clock: Clock
    ) -> None:
        """A mark that is still needed stays when the timer finishes a deletion."""
        (mapping,) = await people(active=1)
        mark = clock.now - timedelta(hours=1)
        await store.put(replace(mapping, state=State.DELETING, revoked_before=mark))

        assert 1 == (await pruner().run()).finished
        row = await store.row(mapping.person)
        assert row is not None
        assert (State.ERASED, mark) == (row["state"], row["revokedBefore"])
        assert "acsId" not in row

    async def test_date_in_the_future(
        self, pruner: MakePruner, people: MakePeople, store: Store, clock: Clock
    ) -> None:
        """A last use in the future is corrected, so that the mapping can become idle."""
        (mapping, _) = await people(active=2)
        await store.put(replace(mapping, last_used_on=clock.now + FAR))

        assert 1 == (await pruner().run()).mended
        row = await store.row(mapping.person)
        assert row is not None
        assert clock.is_now(row["lastUsedOn"])
        clock.advance(days=91)
        assert 2 == (await pruner(max_share=1).run()).pruned

    @pytest.mark.parametrize("state", [State.ACTIVE, State.ERASED, State.DELETING])
    async def test_mark_in_the_future(
        self, pruner: MakePruner, people: MakePeople, store: Store, clock: Clock, state: State
    ) -> None:
        """A mark from the future would lock the person out: it becomes now, and expires as usual.

        It still refuses every token from before: it cannot have been meant for later ones.
        """
        (mapping,) = await people(active=1)
        damaged = replace(mapping, state=state, revoked_before=clock.now + FAR)
        if state is State.ERASED:
            damaged = replace(damaged, acs_id="")
        await store.put(damaged)

        assert 1 == (await pruner().run()).mended
        row = await store.row(mapping.person)
        assert row is not None
        assert clock.is_now(row["revokedBefore"])
        assert state == row["state"]
        assert damaged.last_used_on == row["lastUsedOn"]
        assert 0 == (await pruner(dry_run=True).run()).mended

    async def test_small_difference_of_clocks(
        self, pruner: MakePruner, store: Store, clock: Clock
    ) -> None:
        """A last use or a mark a little ahead is left alone: clocks may differ."""
        soon = clock.now + timedelta(minutes=4)
        await store.put(mapping_of(somebody(1), soon, revoked_before=soon))

        assert 0 == (await pruner(dry_run=True).run()).mended

    async def test_index(
        self, pruner: MakePruner, people: MakePeople, store: Store, clock: Clock
    ) -> None:
        """A missing entry of the index is added, one that is left over is removed."""
        one, two = await people(active=2)
        await store.ledger.forget_owner(one.acs_id, one.person)
        await store.rows.delete_entity(f"{CONTOSO.tenant_id}_00", two.person.object_id)
        clock.advance(minutes=11)  # A new entry is left alone: its row may be about to be written.

        assert PruneReport(dry_run=False, rows=1, mended=2) == await pruner().run()
        assert one.person == await store.ledger.owner(one.acs_id)
        assert await store.ledger.owner(two.acs_id) is None

    async def test_index_while_pruning_is_stopped(
        self, pruner: MakePruner, people: MakePeople, store: Store
    ) -> None:
        """The index is checked even if a brake keeps the timer from pruning."""
        one, *_ = await people(idle=1)
        await store.ledger.forget_owner(one.acs_id, one.person)

        report = await pruner(max_share=0).run()

        assert ("share", 1) == (report.stopped, report.mended)


class TestBrakes:
    """The brakes that end a run."""

    async def stopped(
        self, pruner: Pruner, caplog: pytest.LogCaptureFixture, brake: str
    ) -> PruneReport:
        """Return the report of a run that a brake has stopped, and that says so."""
        caplog.clear()
        report = await pruner.run()
        assert brake == report.stopped
        assert [("WARNING", "prune_stopped", brake)] == [
            (level, line["event"], line["stopped"]) for level, line in lines(caplog, "prune_")
        ]
        return report

    async def test_share(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """If too large a share of the rows is idle, nothing is deleted: it looks like a mistake."""
        await people(idle=3, active=2)

        for _ in range(2):  # The second run counts again, and does not add up.
            report = await self.stopped(pruner(), caplog, "share")
            assert (5, 3, 0) == (report.rows, report.idle, report.pruned)
        assert not acs.deleted
        assert 3 == (await pruner(max_share=0.6).run()).pruned

    async def test_share_is_lowered(
        self,
        pruner: MakePruner,
        people: MakePeople,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A share that is lowered while the table is gone through applies to the next run."""
        await people(idle=3, active=3)
        await self.stopped(pruner(max_deletes=1), caplog, "deletes")

        await self.stopped(pruner(max_share=0.1), caplog, "share")
        report = await self.stopped(pruner(max_share=0.1), caplog, "share")

        assert (5, 2) == (report.rows, report.idle)

    async def test_number(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A run deletes so many at most; the next one continues, and the last is not stopped."""
        await people(idle=3, active=3)

        assert 2 == (await self.stopped(pruner(max_deletes=2), caplog, "deletes")).pruned
        assert 2 == len(acs.deleted)
        report = await pruner(max_deletes=2).run()
        assert (1, None) == (report.pruned, report.stopped)

    @pytest.mark.parametrize("dry_run", [True, False])
    async def test_exact_number(
        self, pruner: MakePruner, people: MakePeople, dry_run: bool
    ) -> None:
        """Exactly as many as are allowed is no reason to stop."""
        await people(idle=2, active=2)

        report = await pruner(max_deletes=2, dry_run=dry_run).run()

        assert (2, None) == (report.pruned, report.stopped)

    @pytest.mark.parametrize("interrupted", [False, True])
    async def test_attempts_count(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        caplog: pytest.LogCaptureFixture,
        interrupted: bool,
    ) -> None:
        """What ACS refuses to delete counts for the limit, also where it was begun earlier."""
        for mapping in (await people(idle=6, active=6))[:6]:
            if interrupted:
                await store.put(replace(mapping, state=State.DELETING))
        acs.faults.fail_next("delete", status=400, times=100)

        report = await self.stopped(pruner(max_deletes=3), caplog, "deletes")

        assert (3, 0, 0) == (report.failed, report.pruned, report.finished)
        assert 3 == acs.faults.count("delete")

    async def test_everything_is_refused(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """When ACS fails altogether the run ends soon, and most people's rows are as they were."""
        await people(idle=15, active=15)
        acs.faults.fail_next("delete", status=500, times=100)

        report = await self.stopped(pruner(), caplog, "failures")

        assert FAILURES_IN_A_ROW <= report.failed < 2 * FAILURES_IN_A_ROW
        found = list((await states(store)).values())
        assert report.failed == found.count(State.DELETING)
        assert report.failed == acs.faults.count("delete") == len(lines(caplog, "piece_failed"))

    async def test_clock(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A clock that is wrong, in either direction, makes everybody or nobody look idle."""
        await people(idle=1, active=2)

        def offset(by: timedelta) -> Pruner:
            return pruner(max_share=1, clock=lambda: clock.now + by)

        for by in (timedelta(days=30), timedelta(minutes=6), -timedelta(minutes=6)):
            await self.stopped(offset(by), caplog, "clock")
        assert not acs.deleted

        assert 1 == (await offset(timedelta(minutes=4)).run()).pruned

    async def test_clock_of_the_service(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The clock is compared with the date in Table Storage's answer."""
        await people(idle=1, active=1)
        headers = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
        store.faults.fail_next("table_read", headers=headers)

        await self.stopped(pruner(), caplog, "clock")

    async def test_time(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A run ends before the host would end it, and says what it did; the next one continues."""
        await people(idle=5, active=5)
        acs.faults.fail_next("delete", delay=0.6, times=4)

        report = await self.stopped(pruner(duration=timedelta(seconds=0.5)), caplog, "time")

        assert (4, 4) == (report.pruned, len(acs.deleted))
        assert 1 == (await pruner().run()).pruned

    async def test_pace(self, pruner: MakePruner, people: MakePeople) -> None:
        """Deletions are spread over time."""
        await people(idle=3, active=3)
        loop = asyncio.get_running_loop()
        started = loop.time()

        await pruner(seconds_per_delete=0.1).run()

        assert loop.time() - started >= 0.3


class TestFailures:
    """What fails is counted and tried again, and holds up nothing else."""

    @pytest.mark.parametrize(
        ("service", "operation", "fault"),
        [
            ("acs", "delete", {"status": 400}),
            ("acs", "delete", {"status": 401}),
            ("acs", "delete", {"status": 403}),
            ("acs", "delete", {"status": 429, "headers": {"Retry-After": "86400"}}),
            ("acs", "delete", {"status": 500}),
            ("acs", "delete", {"status": 500, "after": True}),
            ("acs", "delete", {"delay": 4.5}),
            ("store", "table_delete", {"status": 403}),
        ],
        ids=str,
    )
    async def test_one_failure(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        service: str,
        operation: str,
        fault: dict[str, Any],
    ) -> None:
        """One failed call costs one deletion, which a run of the next day makes up for."""
        *idle, a, b, c = await people(idle=3, active=3)
        faults = {"acs": acs.faults, "store": store.faults}[service]
        faults.fail_next(operation, **fault)

        report = await pruner().run()

        assert ("prune_finished", None) == (lines(caplog, "prune_")[0][1]["event"], report.stopped)
        assert (2, 1) == (report.pruned, report.failed)
        ((level, line),) = lines(caplog, "piece_failed")
        assert ("WARNING", "idle", 1) == (level, line["work"], line["failures"])
        assert line["object_id"] in {mapping.person.object_id for mapping in idle}
        assert line["acs_id"] in {mapping.acs_id for mapping in idle}

        clock.advance(days=1)
        assert (1, 0) == ((again := await pruner().run()).finished, again.failed)
        kept = {a.acs_id, b.acs_id, c.acs_id}
        assert kept == {row["acsId"] for row in await store.all_rows()} == set(acs.identities)

    async def test_when_to_try_again(
        self,
        pruner: MakePruner,
        people: MakePeople,
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A deletion that failed is not tried again at once; the row counts its failures."""
        (mapping, _) = await people(idle=1, active=1)
        acs.faults.fail_next("delete", status=500, times=2)
        for _ in range(2):
            await pruner().run()
        assert 1 == acs.faults.count("delete")

        clock.advance(minutes=6)
        report = await pruner().run()

        assert (1, 2) == (report.failed, lines(caplog, "piece_failed")[-1][1]["failures"])
        row = await store.row(mapping.person)
        assert row is not None
        assert (State.DELETING, 2) == (row["state"], row["failures"])

    @pytest.mark.parametrize(
        ("operation", "fault"),
        [
            ("table_query", {"status": 503, "times": 3}),
            ("table_query", {"status": 403}),
            ("table_query", {"headers": {"Date": ""}}),
            ("table_update", {"status": 403}),
            ("table_read", {"headers": {"Date": ""}, "times": 3}),
        ],
    )
    async def test_run_fails(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        caplog: pytest.LogCaptureFixture,
        operation: str,
        fault: dict[str, Any],
    ) -> None:
        """Where the table cannot be read the run fails, and the next one does everything."""
        await people(idle=3, active=3)
        store.faults.fail_next(operation, **fault)

        with pytest.raises(StorageUnavailableError):
            await pruner().run()
        ((level, line),) = lines(caplog, "prune_")
        assert ("ERROR", "prune_failed", "storage_unavailable") == (
            level,
            line["event"],
            line["code"],
        )

        store.faults.clear()
        assert 3 == (await pruner().run()).pruned

    @pytest.mark.parametrize(
        ("fault", "queries"), [({"delay": 3.2}, 3), ({"status": 503}, 4)], ids=["slow", "503"]
    )
    async def test_page(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        fault: dict[str, Any],
        queries: int,
    ) -> None:
        """A page may take longer than a request for one row, and is read again after a failure."""
        await people(idle=1, active=1)
        store.faults.fail_next("table_query", **fault)

        assert 1 == (await pruner().run()).pruned
        assert queries == store.faults.count("table_query")

    async def test_report_so_far(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The line about a run that failed says how far it came."""
        await people(idle=3, active=3)
        for _ in range(3):  # Rows, the index, rows with something to do.
            store.faults.fail_next("table_query", delay=0)
        await pruner(max_deletes=2).run()
        caplog.clear()
        store.faults.fail_next("table_query", status=403)

        with pytest.raises(StorageUnavailableError):
            await pruner().run()

        ((_, line),) = lines(caplog, "prune_")
        so_far = PruneReport(dry_run=False, rows=6, idle=3)
        assert {name: value for name, value in asdict(so_far).items() if value is not None} == {
            name: line[name] for name in asdict(so_far) if name in line
        }

    @pytest.mark.parametrize(
        "changes",
        [
            {"schema": 2},
            {"acsId": "somebody"},
            {"lastUsedOn": "yesterday"},
            {"lastUsedOn": None},
            {"generation": "1"},
            {"state": "sleeping"},
        ],
        ids=str,
    )
    async def test_unreadable_row(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        caplog: pytest.LogCaptureFixture,
        changes: dict[str, Any],
    ) -> None:
        """A row that cannot be read is left alone, and does not hold up the others."""
        first, *_ = await people(idle=2, active=3)
        entity = await store.row(first.person)
        assert entity is not None
        changed = {name: value for name, value in (entity | changes).items() if value is not None}
        await store.rows.delete_entity(entity["PartitionKey"], entity["RowKey"])
        await store.rows.create_entity(changed)

        report = await pruner().run()

        assert (1, 0) == (report.pruned, report.failed)
        left = await store.row(first.person)
        assert left is not None
        assert changed == {name: left[name] for name in changed}
        if "lastUsedOn" not in changes:  # Which is what the scan asks for.
            found = [line["object_id"] for _, line in lines(caplog, "mapping_unreadable")]
            assert {first.person.object_id} == set(found)


class TestForeignIdentities:
    """Identities of another ACS resource: the endpoint may be wrong, and ACS would answer 404."""

    async def test_nothing_is_touched(
        self,
        pruner: MakePruner,
        store: Store,
        acs: AcsEmulator,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Nothing is deleted, neither rows nor identities, and nothing is said to have been."""
        for number in range(20):
            await store.put(foreign(number, clock.now))
        before = await store.all_rows()

        report = await pruner(max_share=1).run()

        assert ("failures", 0) == (report.stopped, report.pruned)
        assert before == await store.all_rows()
        assert set(acs.deleted) == set(acs.created)  # What our resource's id was learned from.
        assert [] == lines(caplog, "identity_deleted")
        assert {"identity_gone"} == {line["code"] for _, line in lines(caplog, "piece_failed")}

    async def test_learned_once(
        self, pruner: MakePruner, store: Store, acs: AcsEmulator, clock: Clock
    ) -> None:
        """A new process makes one identity to learn our resource's id, and deletes it."""
        await store.put_all(stored(acs, range(4), clock.now - IDLE))

        assert 4 == (await pruner(max_share=1).run()).pruned
        assert (1, 5) == (len(acs.created), len(acs.deleted))

    async def test_others_are_not_held_up(
        self, pruner: MakePruner, store: Store, acs: AcsEmulator, clock: Clock
    ) -> None:
        """Some that fail each time, and come first, do not keep the timer from the others."""
        await store.put_all([foreign(number, clock.now) for number in range(9)])
        await store.put_all(stored(acs, range(9, 29), clock.now - IDLE))

        for _ in range(40):
            await pruner(max_share=1).run()
            if len(await store.all_rows()) == 9:
                return
        pytest.fail("The others are still there.")

    async def test_other_pages_are_not_held_up(
        self, pruner: MakePruner, store: Store, acs: AcsEmulator, clock: Clock
    ) -> None:
        """A page full of what fails is left behind by the run that it ends."""
        await store.put_all([foreign(number, clock.now) for number in PAGE])
        await store.put_all(stored(acs, [SECOND_PAGE], clock.now - IDLE))

        await store.ledger.remember(  # The first reading is done.
            PROGRESS, counted=True, position="null", rows=1001, idle=1001, startedOn=clock.now
        )

        first = await pruner(max_share=1).run()
        second = await pruner(max_share=1).run()

        assert ("failures", 0) == (first.stopped, first.pruned)
        assert (None, 1) == (second.stopped, second.pruned)
        assert {} == await store.ledger.recall(PROGRESS)  # The third one begins anew.


class Killed(BaseException):
    """Nothing in the code catches this."""


class TestResuming:
    """A run goes on where the one before it was ended."""

    @pytest.fixture
    async def two_pages(self, store: Store, acs: AcsEmulator, clock: Clock) -> None:
        """A page of rows of which five are idle, and a smaller one with two.

        The others are being created: the second reading gets them, too, and leaves them alone.
        """
        creating = mapping_of(somebody(0), clock.now, state=State.CREATING, acs_id="")
        creating = replace(creating, lease_until=clock.now)
        for numbers in (PAGE, range(SECOND_PAGE, SECOND_PAGE + 50)):
            await store.put_all([replace(creating, person=somebody(each)) for each in numbers])
        for numbers in (range(5), range(SECOND_PAGE, SECOND_PAGE + 2)):
            await store.put_all(stored(acs, numbers, clock.now - IDLE))

    @pytest.mark.usefixtures("two_pages")
    async def test_counting_takes_long(
        self, pruner: MakePruner, store: Store, acs: AcsEmulator
    ) -> None:
        """Half of the time is for counting; the next run counts the rest, and prunes."""
        store.faults.fail_next("table_query", delay=0)
        store.faults.fail_next("table_query", delay=0.6)

        first = await pruner(duration=timedelta(seconds=1)).run()
        queries = store.faults.count("table_query")
        second = await pruner().run()

        assert ("time", 1000, 5, 0) == (first.stopped, first.rows, first.idle, first.pruned)
        assert (None, 1050, 7, 7) == (second.stopped, second.rows, second.idle, second.pruned)
        assert 7 == len(set(acs.deleted) - set(acs.created))
        # The rest of the first reading, and the second one.
        assert 3 == store.faults.count("table_query") - queries

    @pytest.mark.usefixtures("two_pages")
    async def test_going_through_takes_long(self, pruner: MakePruner, store: Store) -> None:
        """The second reading is ended in time, too, and goes on in the next run."""
        # The rows, the index, the rows that it lacks, and the first page of the second reading.
        for delay in (0, 0, 0, 0, 0, 0, 3.1):
            store.faults.fail_next("table_query", delay=delay)

        first = await pruner(duration=timedelta(seconds=3)).run()
        queries = store.faults.count("table_query")
        second = await pruner().run()

        assert ("time", 5) == (first.stopped, first.pruned)
        assert (None, 1050, 2) == (second.stopped, second.rows, second.pruned)
        assert 1 == store.faults.count("table_query") - queries

    @pytest.mark.usefixtures("two_pages")
    async def test_nothing_to_do_takes_long(self, pruner: MakePruner, store: Store) -> None:
        """The second reading is ended in time even if nothing has to be done, as in a dry run."""
        for delay in (0, 0, 3.1):
            store.faults.fail_next("table_query", delay=delay)

        report = await pruner(duration=timedelta(seconds=3), dry_run=True).run()

        assert ("time", 0) == (report.stopped, report.pruned)

    @pytest.mark.usefixtures("two_pages")
    @pytest.mark.parametrize("deletions", [2, 6], ids=["first page", "second page"])
    async def test_killed(
        self,
        pruner: MakePruner,
        store: Store,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        identities: Identities,
        clock: Clock,
        deletions: int,
    ) -> None:
        """A process that dies while it prunes leaves nothing undone, and nothing is counted twice.

        What it had claimed and not deleted is finished once the lease is over.
        """

        class Dying(Endings):
            begun = 0

            async def end(self, mapping: IdentityMapping, *, reason: str) -> bool:
                self.begun += 1
                if self.begun > deletions:
                    raise Killed
                return await super().end(mapping, reason=reason)

        dying = Dying(
            acs=acs_identity, mappings=store.mappings, ledger=store.ledger, identities=identities
        )
        with pytest.raises(Killed):
            await pruner(endings=dying).run()
        await asyncio.sleep(0.5)  # What it had begun at the same time is on its way.
        queries = store.faults.count("table_query")

        report = await pruner().run()

        assert (1050, 7) == (report.rows, report.idle)
        assert (2 if deletions == 2 else 1) == store.faults.count("table_query") - queries
        clock.advance(minutes=5)
        await pruner().run()
        assert 7 == len(set(acs.deleted) - set(acs.created))
        assert 1043 == len(await store.all_rows())

    @pytest.mark.usefixtures("two_pages")
    async def test_number_over_pages(self, pruner: MakePruner, acs: AcsEmulator) -> None:
        """The limit is for a run, not for a page, and the runs add up."""
        reports = [await pruner(max_deletes=6).run() for _ in range(2)]

        assert [("deletes", 6), (None, 1)] == [
            (report.stopped, report.pruned) for report in reports
        ]
        assert 7 == len(set(acs.deleted) - set(acs.created))

    @pytest.mark.parametrize(
        "changes",
        [
            {"startedOn": -PROGRESS_LASTS - timedelta(minutes=1)},
            {"startedOn": timedelta(days=1)},
            {"startedOn": "yesterday"},
            {"startedOn": None},
            {"position": "somewhere"},
            {"position": None},
            {"rows": "many"},
            {"counted": None},
        ],
        ids=str,
    )
    async def test_entry_is_of_no_use(
        self,
        pruner: MakePruner,
        people: MakePeople,
        store: Store,
        clock: Clock,
        changes: dict[str, Any],
    ) -> None:
        """An entry that is old, damaged or from the future is ignored: the run begins anew."""
        await people(idle=1, active=1)
        kept: dict[str, Any] = {
            "counted": True,
            "position": "null",
            "rows": 99,
            "idle": 1,
            "startedOn": clock.now,
        }
        for name, value in changes.items():
            kept[name] = clock.now + value if isinstance(value, timedelta) else value
        await store.ledger.remember(PROGRESS, **kept)

        report = await pruner().run()

        assert PruneReport(dry_run=False, rows=2, idle=1, pruned=1) == report
        assert {} == await store.ledger.recall(PROGRESS)

    async def test_entry_counts(
        self, pruner: MakePruner, people: MakePeople, store: Store, clock: Clock
    ) -> None:
        """What an earlier run has counted decides about the share, and a dry run counts itself."""
        await people(idle=1)
        await store.ledger.remember(
            PROGRESS, counted=True, position="null", rows=99, idle=1, startedOn=clock.now
        )

        dry = await pruner(dry_run=True).run()
        wet = await pruner().run()

        assert ("share", 1, 0) == (dry.stopped, dry.rows, dry.pruned)
        assert (None, 99, 1) == (wet.stopped, wet.rows, wet.pruned)

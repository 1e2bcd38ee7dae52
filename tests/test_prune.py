from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO
from shared import audit
from shared.errors import BrokerError, StorageUnavailableError, UpstreamThrottledError
from shared.identifiers import Person
from shared.mappings.identities import Identities
from shared.mappings.table import State
from shared.prune import ABANDONED_AFTER, MAX_DURATION, Pruner, PruneReport
from shared.settings import PruneSettings
from tests.emulated import Clock, mapping_of, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.mappings.table import IdentityMapping
    from tests.emulated import Store

SETTINGS = PruneSettings(idle=timedelta(days=90), dry_run=False, max_share=0.5, max_deletes=1000)


@pytest.fixture
def pruner(identities: Identities, store: Store, clock: Clock) -> Callable[..., Pruner]:
    """Return a function that makes the timer's use case, with other settings."""

    def make(**changes: Any) -> Pruner:
        return Pruner(
            settings=replace(SETTINGS, **changes),
            identities=identities,
            mappings=store.mappings,
            clock=clock,
            seconds_per_delete=0,
        )

    return make


def person_number(number: int) -> Person:
    """Return a person by number; those of higher numbers come later in the table."""
    return Person(CONTOSO.tenant_id, f"{number:08x}-0000-4000-8000-000000000000")


@pytest.fixture
def people(identities: Identities, store: Store, clock: Clock) -> Callable[..., Any]:
    """Return a function that lets people have an identity and be idle, or not, since then."""

    async def make(*, idle: int = 0, active: int = 0) -> list[IdentityMapping]:
        made = []
        for number in range(idle + active):
            mapping = await identities.get_or_create(person_number(number))
            if number < idle:
                mapping = replace(mapping, last_used_on=clock.now - timedelta(days=91))
                await store.put(mapping)
            made.append(mapping)
        return made

    return make


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """Return the level and the fields of each audit line about a run."""
    ours = [record for record in caplog.records if record.name == audit.logger.name]
    found = [(record.levelname, json.loads(record.message)) for record in ours]
    return [line for line in found if line[1]["event"].startswith("prune_")]


class TestPruning:
    """Idle identities are removed, others stay."""

    async def test_prunes(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Idle rows and their identities are removed; one line says how many."""
        caplog.set_level(logging.INFO)
        *idle, one, two = await people(idle=2, active=2)

        report = await pruner().run()

        assert PruneReport(dry_run=False, rows=4, idle=2, pruned=2) == report
        assert [mapping.acs_id for mapping in idle] == acs.deleted
        rows = await store.all_rows()
        assert {one.acs_id, two.acs_id} == {row["acsId"] for row in rows}
        ((level, line),) = lines(caplog)
        assert "INFO" == level
        assert {"event": "prune_finished", "rows": 4, "idle": 2, "pruned": 2} == {
            name: line[name] for name in ("event", "rows", "idle", "pruned")
        }

    async def test_again(
        self, pruner: Callable[..., Pruner], people: Callable[..., Any], acs: AcsEmulator
    ) -> None:
        """A second run finds nothing to do."""
        await people(idle=1, active=1)
        await pruner().run()

        assert PruneReport(dry_run=False, rows=1) == await pruner().run()
        assert 1 == len(acs.deleted)

    async def test_empty(self, pruner: Callable[..., Pruner]) -> None:
        """An empty table is no error."""
        assert PruneReport(dry_run=False) == await pruner().run()

    async def test_dry_run(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A dry run reports the same and removes nothing."""
        caplog.set_level(logging.INFO)
        idle, other, _ = await people(idle=1, active=2)
        long_ago = clock.now - timedelta(hours=1)
        await store.put(replace(other, state=State.DELETING, lease_until=long_ago))
        await store.mappings.add_orphan(idle.acs_id, reason="test", now=clock.now)
        before = await store.all_rows(), await store.orphans()

        dry = await pruner(dry_run=True).run()

        assert PruneReport(dry_run=True, rows=3, idle=1, pruned=1, finished=1, orphans=1) == dry
        assert before == (await store.all_rows(), await store.orphans())
        assert not acs.deleted
        assert lines(caplog)[0][1]["dry_run"]

    async def test_exact_days(
        self, pruner: Callable[..., Pruner], store: Store, clock: Clock
    ) -> None:
        """A mapping that was used exactly 90 days ago is not idle yet."""
        for number, used in enumerate((SETTINGS.idle, SETTINGS.idle + timedelta(seconds=1))):
            await store.put(mapping_of(person_number(number), clock.now - used))

        await pruner().run()

        assert [person_number(0).object_id] == [row["RowKey"] for row in await store.all_rows()]

    async def test_somebody_comes_back(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        identities: Identities,
        acs: AcsEmulator,
    ) -> None:
        """A person who asks for a token during the run keeps the identity."""
        first, second, *_ = await people(idle=2, active=2)
        acs.faults.fail_next("delete", delay=0.2)
        running = asyncio.create_task(pruner().run())
        await until(lambda: acs.faults.count("delete") == 1)

        back = await identities.get_or_create(second.person)

        assert PruneReport(dry_run=False, rows=4, idle=2, pruned=1) == await running
        assert second.acs_id == back.acs_id
        assert [first.acs_id] == acs.deleted

    async def test_pages(self, pruner: Callable[..., Pruner], store: Store, clock: Clock) -> None:
        """More rows than a page are all seen."""
        idle = clock.now - timedelta(days=91)
        numbers = [group << 24 | number for group in range(11) for number in range(100)]
        rows = [mapping_of(person_number(number), idle) for number in numbers]
        await store.put_all(rows)
        await store.put(mapping_of(person_number(0xFF000000), idle))

        report = await pruner(max_share=1, max_deletes=5000, dry_run=True).run()

        assert (1101, 1101) == (report.rows, report.idle)
        assert 1101 == report.pruned


class TestInterrupted:
    """Interrupted work is finished first."""

    @pytest.mark.parametrize("gone", [False, True], ids=["before ACS", "after ACS"])
    async def test_deleting(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        gone: bool,
    ) -> None:
        """A deletion that stopped, before or after ACS deleted, is finished after its lease."""
        (mapping,) = await people(active=1)
        await store.put(replace(mapping, state=State.DELETING, lease_until=clock.now))
        if gone:
            acs.identities.clear()
        assert PruneReport(dry_run=False, rows=1) == await pruner().run()

        clock.advance(seconds=1)
        assert PruneReport(dry_run=False, finished=1) == await pruner().run()
        assert [] == await store.all_rows()
        assert {} == acs.identities

    async def test_creating(
        self, pruner: Callable[..., Pruner], store: Store, acs: AcsEmulator, clock: Clock
    ) -> None:
        """An abandoned intent is removed ten minutes after its lease, not before."""
        lease_until = clock.now - ABANDONED_AFTER
        intent = mapping_of(person_number(1), clock.now, state=State.CREATING, acs_id="")
        await store.put(replace(intent, lease_until=lease_until))
        assert PruneReport(dry_run=False, rows=1) == await pruner().run()

        clock.advance(seconds=1)
        assert PruneReport(dry_run=False, finished=1) == await pruner().run()
        assert [] == await store.all_rows()
        assert 0 == acs.faults.count("delete")

    async def test_ledger(
        self, pruner: Callable[..., Pruner], acs: AcsEmulator, store: Store, clock: Clock
    ) -> None:
        """Orphans are deleted and removed from the ledger, even if they are gone already."""
        names = [f"8:acs:ac5ac5ac-0000-4000-8000-000000000001_{number}" for number in range(3)]
        for name in names:
            await store.mappings.add_orphan(name, reason="test", now=clock.now)

        assert PruneReport(dry_run=False, orphans=3) == await pruner().run()
        assert {} == await store.orphans()
        assert 3 == acs.faults.count("delete")


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
            (level, line["event"], line["stopped"]) for level, line in lines(caplog)
        ]
        return report

    async def test_share(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """If too large a share of the rows is idle, nothing is deleted: it looks like a mistake."""
        await people(idle=3, active=2)

        report = await self.stopped(pruner(), caplog, "share")

        assert (5, 3, 0) == (report.rows, report.idle, report.pruned)
        assert not acs.deleted
        assert (await pruner(max_share=0.6).run()).pruned == 3

    async def test_number(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
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
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        dry_run: bool,
    ) -> None:
        """Exactly as many as are allowed is no reason to stop."""
        await people(idle=2, active=2)

        report = await pruner(max_deletes=2, dry_run=dry_run).run()

        assert (2, None) == (report.pruned, report.stopped)

    async def test_clock(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A clock that is wrong, in either direction, makes everybody or nobody look idle."""
        await people(idle=1, active=2)
        now = clock.now
        for offset in (timedelta(days=30), timedelta(minutes=6), -timedelta(minutes=6)):
            clock.now = now + offset
            await self.stopped(pruner(max_share=1), caplog, "clock")
        assert not acs.deleted

        clock.now = now + timedelta(minutes=4)
        assert 1 == (await pruner().run()).pruned

    async def test_clock_of_the_service(
        self,
        pruner: Callable[..., Pruner],
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The clock is compared with the date in Table Storage's answer."""
        headers = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
        store.faults.fail_next("table_read", headers=headers)

        await self.stopped(pruner(), caplog, "clock")

    async def test_time(
        self,
        people: Callable[..., Any],
        acs_identity: AcsIdentity,
        acs: AcsEmulator,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A run ends before the host would end it; the next one continues."""
        await people(idle=2, active=2)
        clock = Clock()

        class SlowIdentities(Identities):
            async def end(self, mapping: IdentityMapping, *, reason: str) -> bool:
                ended = await super().end(mapping, reason=reason)
                clock.now += MAX_DURATION + timedelta(seconds=1)
                return ended

        pruner = Pruner(
            settings=SETTINGS,
            identities=SlowIdentities(acs=acs_identity, mappings=store.mappings, clock=clock),
            mappings=store.mappings,
            clock=clock,
            seconds_per_delete=0,
        )

        assert 1 == (await self.stopped(pruner, caplog, "time")).pruned
        assert 1 == len(acs.deleted)

        clock.now -= MAX_DURATION + timedelta(seconds=1)
        assert 1 == (await pruner.run()).pruned

    async def test_pace(
        self, identities: Identities, store: Store, people: Callable[..., Any], clock: Clock
    ) -> None:
        """Deletes are spread over time."""
        await people(idle=3, active=3)
        pruner = Pruner(
            settings=SETTINGS,
            identities=identities,
            mappings=store.mappings,
            clock=clock,
            seconds_per_delete=0.1,
        )
        started = asyncio.get_running_loop().time()

        await pruner.run()

        assert asyncio.get_running_loop().time() - started >= 0.3


class TestFailures:
    """A run that fails says so, and the next one continues from there."""

    @pytest.mark.parametrize(
        ("service", "operation", "fault", "error"),
        [
            ("acs", "delete", {"status": 429}, UpstreamThrottledError),
            ("acs", "delete", {"reset": True, "times": 2}, BrokerError),
            ("store", "table_query", {"status": 503}, StorageUnavailableError),
            ("store", "table_update", {"status": 403}, StorageUnavailableError),
            ("store", "table_delete", {"status": 500, "times": 2}, StorageUnavailableError),
            ("store", "table_read", {"headers": {"Date": ""}, "times": 3}, StorageUnavailableError),
        ],
    )
    async def test_goes_on(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        service: str,
        operation: str,
        fault: dict[str, Any],
        error: type[BrokerError],
    ) -> None:
        """Whatever fails in between, everything is done two runs later."""
        *_, kept = await people(idle=3, active=3)
        faults = {"acs": acs.faults, "store": store.faults}[service]
        faults.fail_next(operation, **fault)

        with pytest.raises(error):
            await pruner().run()
        assert [("ERROR", "prune_failed")] == [
            (level, line["event"]) for level, line in lines(caplog)
        ]

        clock.advance(seconds=21)
        await pruner(max_share=1).run()
        rows = await store.all_rows()
        assert 3 == len(rows)
        assert kept.acs_id in {row["acsId"] for row in rows}
        assert {row["acsId"] for row in rows} == set(acs.identities)

    async def test_report_so_far(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The line about a run that failed says how far it came."""
        await people(idle=3, active=3)
        acs.faults.fail_next("delete", delay=0)
        acs.faults.fail_next("delete", status=503)

        with pytest.raises(BrokerError):
            await pruner().run()

        ((_, line),) = lines(caplog)
        so_far = PruneReport(dry_run=False, rows=6, idle=3, pruned=1)
        assert {name: value for name, value in asdict(so_far).items() if value is not None} == {
            name: line[name] for name in asdict(so_far) if name in line
        }

    async def test_unreadable_row(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        store: Store,
    ) -> None:
        """A row of a newer version is left alone, and does not hold up the others."""
        first, *_ = await people(idle=2, active=3)
        await store.put(first, schema=2)

        report = await pruner().run()

        assert 1 == report.pruned
        assert first.person.object_id in {row["RowKey"] for row in await store.all_rows()}

    async def test_refused_deletion(
        self,
        pruner: Callable[..., Pruner],
        people: Callable[..., Any],
        acs: AcsEmulator,
        store: Store,
        clock: Clock,
    ) -> None:
        """An identity that ACS will not delete is counted and kept, and does not hold up others."""
        first, second, third, *_ = await people(idle=3, active=3)
        await store.mappings.add_orphan("8:acs:orphan", reason="test", now=clock.now)
        acs.faults.fail_next("delete", status=400, times=2)

        report = await pruner().run()
        clock.advance(seconds=1)
        found = await pruner().run()

        assert (2, 0, 2) == (report.refused, report.orphans, report.pruned)
        assert {second.acs_id, third.acs_id}.isdisjoint(acs.identities)
        # The next run finds both again.
        assert (0, 1, 1) == (found.refused, found.orphans, found.finished)
        assert first.acs_id not in acs.identities

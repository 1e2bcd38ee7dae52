from __future__ import annotations

import io
import json
import logging
import os
import secrets
import tracemalloc
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from azure.data.tables import EdmType, EntityProperty
from azure.data.tables.aio import TableClient
from azure.storage.blob.aio import ContainerClient

from local.entra.directory import CONTOSO
from local.serving.application import serve
from local.storage.proxy import BlobProxy
from shared import audit
from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from shared.mappings.backup import PAGE_SIZE, Backup
from shared.mappings.backup_file import contents_of, rows_of
from shared.mappings.inspection import MAX_LINES
from shared.mappings.table import State, partition_key
from shared.services import BACKUP_BOUNDS, BLOB_BOUNDS
from tests.emulated import mapping_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.serving.faults import Faults
    from local.storage.azurite import Endpoints
    from local.storage.proxy import TableProxy
    from tests.emulated import Store

# How many rows the test of memory has. More take a while to store: 100,000 about two minutes.
ROWS = int(os.environ.get("BACKUP_ROWS", "5000"))
MAX_MEMORY = 20 * 1024 * 1024
# As shared/services.py builds its clients, but without waiting before another attempt, and with
# several blocks for a few rows.
TABLES = BACKUP_BOUNDS | {"retry_backoff_factor": 0}
BLOBS = BLOB_BOUNDS | {
    "initial_backoff": 0,
    "increment_base": 0,
    "random_jitter_range": 0,
    "max_block_size": 8192,
}


def acs_id(number: int) -> str:
    """Return the id of an identity by number."""
    return f"8:acs:ac5ac5ac-0000-4000-8000-000000000001_{number:08x}-0000-0000-0000-000000000000"


def somebody(number: int) -> Person:
    """Return a person by number; each tenth goes to the same partition."""
    return Person(CONTOSO.tenant_id, f"{number % 16:x}{number:07x}-0000-4000-8000-000000000000")


@dataclass(frozen=True, slots=True)
class Backups:
    """A container: its client past the proxy, the proxy's faults, and what a backup works with."""

    container: ContainerClient
    faults: Faults
    mappings: TableClient
    ledger: TableClient
    proxied: ContainerClient

    @property
    def backup(self) -> Backup:
        """Return a backup as the timer makes it."""
        return self.with_pages_of(PAGE_SIZE)

    def with_pages_of(self, size: int) -> Backup:
        """Return a backup that reads pages of another size."""
        return Backup(
            mappings=self.mappings,
            ledger=self.ledger,
            container=self.proxied,
            page_size=size,
        )

    async def names(self) -> list[str]:
        """Return the names of the blobs that there are."""
        return [blob.name async for blob in self.container.list_blobs()]

    async def only(self) -> io.BytesIO:
        """Return what is in the one blob that there is."""
        [name] = await self.names()
        download = await self.container.download_blob(name)
        return io.BytesIO(await download.readall())


@pytest.fixture
async def backups(storage: Endpoints, tables: TableProxy, store: Store) -> AsyncIterator[Backups]:
    """A container for this test only, and a backup of the test's tables into it."""
    assert storage.blob is not None
    name, direct = f"c{secrets.token_hex(8)}", storage.connection_string
    proxy = BlobProxy(storage.blob)
    async with AsyncExitStack() as running:
        proxy.url = await running.enter_async_context(serve(proxy.application()))
        container, proxied = [
            await running.enter_async_context(
                ContainerClient.from_connection_string(connection, name, **BLOBS)
            )
            for connection in (direct, direct.replace(storage.blob, proxy.endpoint))
        ]
        await container.create_container()
        mappings, ledger = [
            await running.enter_async_context(
                TableClient.from_connection_string(
                    direct.replace(storage.table, tables.endpoint),
                    table,
                    **TABLES,
                )
            )
            for table in (store.rows.table_name, store.entries.table_name)
        ]
        yield Backups(container, proxy.faults, mappings, ledger, proxied)


def lines(caplog: pytest.LogCaptureFixture, *events: str) -> list[dict[str, Any]]:
    """Return the audit lines about some events."""
    ours = [record for record in caplog.records if record.name == audit.logger.name]
    found = [{**json.loads(record.message), "level": record.levelname} for record in ours]
    return [line for line in found if line["event"] in events]


class TestWrites:
    """What is in a backup."""

    async def test_every_row(
        self, backups: Backups, store: Store, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Both tables are in it as they are stored, and one line says so."""
        caplog.set_level(logging.INFO)
        people = [mapping_of(somebody(number), now, acs_id=acs_id(number)) for number in range(3)]
        for mapping in people:
            await store.put(mapping)
        await store.ledger.add_orphan(acs_id(9), person=None, reason="lost_lease", now=now)

        report = await backups.backup.run()

        file = await backups.only()
        rows = list(rows_of(file))
        assert await store.all_rows() == [
            dict(row.entity) for row in rows if row.table == store.rows.table_name
        ]
        (orphan,) = [row for row in rows if row.table == store.entries.table_name]
        assert (acs_id(9), "lost_lease") == (orphan.entity["RowKey"], orphan.entity["reason"])
        assert all(row.written_on for row in rows)
        assert (3, 1) == (report.rows, report.ledger_rows)
        (line,) = lines(caplog, "backup_finished")
        assert {
            "level": "INFO",
            "blob": (await backups.names())[0],
            "bytes": len(file.getvalue()),
            "rows": 3,
            "ledger_rows": 1,
            "damaged": 0,
            "future_dates": 0,
            "shared_ids": 0,
        }.items() <= line.items()
        assert {"ms", "table_ms"} <= line.keys()

    async def test_unknown_columns(self, backups: Backups, store: Store, person: Person) -> None:
        """Columns that this version does not know are kept, with their types."""
        later = {
            "PartitionKey": partition_key(person),
            "RowKey": person.object_id,
            "schema": 2,
            "revokeAgain": True,
            "failures": 3,
            "size": EntityProperty(2**40, EdmType.INT64),
            "goneOn": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
            "note": "2026-01-02T03:04:05Z",
        }
        await store.rows.upsert_entity(later)

        await backups.backup.run()

        (row,) = rows_of(await backups.only())
        assert later == row.entity

    async def test_name(self, backups: Backups) -> None:
        """A blob is named by the table's clock, to the second, so that names sort by age."""
        before = datetime.now(UTC).replace(microsecond=0)

        await backups.backup.run()

        [name] = await backups.names()
        taken_on = datetime.strptime(name, "%Y-%m-%dT%H%M%SZ.jsonl.gz").replace(tzinfo=UTC)
        assert before <= taken_on <= datetime.now(UTC)
        assert taken_on == contents_of(await backups.only()).taken_on

    async def test_again(self, backups: Backups, store: Store, now: datetime) -> None:
        """A page that fails for a moment is read once more, and no row is lost or there twice."""
        numbers = range(0, 160, 16)
        await store.put_all(
            [mapping_of(somebody(number), now, acs_id=acs_id(number)) for number in numbers]
        )
        store.faults.fail_next("table_query", times=3)  # The clock and two pages.
        store.faults.fail_next("table_query", status=503, times=2)
        backups.faults.fail_next("blob_block", status=503)

        report = await backups.with_pages_of(2).run()

        assert 10 == report.rows
        rows = [row.entity["RowKey"] for row in rows_of(await backups.only())]
        assert [row["RowKey"] for row in await store.all_rows()] == rows
        # The clock, five pages of mappings, one of the ledger, and two attempts that failed.
        assert 9 == store.faults.count("table_query")

    async def test_slow_page(self, backups: Backups, store: Store) -> None:
        """A page may take longer than a request for one row may."""
        store.faults.fail_next("table_query", delay=3.5)

        await backups.backup.run()

        assert 1 == len(await backups.names())


class TestFails:
    """A run that fails says so, and leaves no blob that could be mistaken for a backup."""

    @pytest.fixture
    async def people(self, store: Store, now: datetime) -> None:
        """More rows than fit into one block."""
        await store.put_all(
            [
                replace(mapping_of(somebody(number), now), attempt=secrets.token_hex(400))
                for number in range(0, 1600, 16)
            ]
        )

    @pytest.mark.usefixtures("people")
    @pytest.mark.parametrize(
        ("operation", "works", "fault", "reason"),
        [
            pytest.param(
                "table_query",
                4,
                {"status": 403},
                "AuthorizationPermissionMismatch",
                id="the table refuses us half-way",
            ),
            pytest.param("table_query", 4, {"reset": True}, "the table", id="the table is gone"),
            pytest.param("table_query", 0, {"status": 404}, "the table", id="there is no table"),
            pytest.param(
                "blob_block", 0, {"status": 403}, "AuthorizationPermissionMismatch", id="no role"
            ),
            pytest.param("blob_block", 2, {"status": 503}, "ServerBusy", id="blobs fail half-way"),
            pytest.param("blob_block", 2, {"reset": True}, "the container", id="blobs are gone"),
            pytest.param("blob_commit", 0, {"status": 500}, "InternalError", id="not committed"),
        ],
    )
    async def test_fails(
        self,
        backups: Backups,
        store: Store,
        caplog: pytest.LogCaptureFixture,
        operation: str,
        works: int,
        fault: dict[str, Any],
        reason: str,
    ) -> None:
        """The error is raised, one line at ERROR says why, and no blob appears."""
        faults = store.faults if operation.startswith("table") else backups.faults
        if works:
            faults.fail_next(operation, times=works)
        faults.fail_next(operation, times=99, **fault)

        with pytest.raises(StorageUnavailableError, match=reason):
            await backups.with_pages_of(10).run()

        assert works < faults.count(operation)
        assert [] == await backups.names()
        (line,) = lines(caplog, "backup_failed", "backup_finished")
        assert ("backup_failed", "ERROR", "storage_unavailable") == (
            line["event"],
            line["level"],
            line["code"],
        )
        assert reason in line["reason"]

    async def test_no_container(self, backups: Backups, caplog: pytest.LogCaptureFixture) -> None:
        """A container that is missing is not made."""
        await backups.container.delete_container()

        with pytest.raises(StorageUnavailableError, match="ContainerNotFound"):
            await backups.backup.run()

        assert not await backups.container.exists()
        assert 1 == len(lines(caplog, "backup_failed"))

    async def test_takes_too_long(
        self, backups: Backups, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A run ends by itself before the host would end it, and leaves no blob."""
        store.faults.fail_next("table_query")
        store.faults.fail_next("table_query", delay=5)
        backup = Backup(
            mappings=backups.mappings,
            ledger=backups.ledger,
            container=backups.proxied,
            max_duration=timedelta(seconds=0.5),
        )

        with pytest.raises(StorageUnavailableError, match="too long"):
            await backup.run()

        assert [] == await backups.names()
        assert "the backup takes too long" == lines(caplog, "backup_failed")[0]["reason"]

    async def test_never_overwrites(self, backups: Backups) -> None:
        """A blob that has the name already stays as it is."""
        now = datetime.now(UTC)
        for second in range(10):
            name = f"{now + timedelta(seconds=second):%Y-%m-%dT%H%M%SZ}.jsonl.gz"
            await backups.container.upload_blob(name, b"somebody's")

        with pytest.raises(StorageUnavailableError, match="already"):
            await backups.backup.run()

        for name in await backups.names():
            download = await backups.container.download_blob(name)
            assert b"somebody's" == await download.readall()

    async def test_lost_answer(self, backups: Backups) -> None:
        """A blob that is there because only the answer was lost is no failure."""
        backups.faults.fail_next("blob_commit", reset=True, after=True)

        report = await backups.backup.run()

        assert [report.blob] == await backups.names()
        assert {0} == set(contents_of(await backups.only()).rows.values())


class TestInspects:
    """Bad rows are in the backup as they are, counted and named."""

    async def test_damaged(
        self, backups: Backups, store: Store, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A row that cannot be read is named with the reason."""
        good, bad = mapping_of(somebody(1), now), mapping_of(somebody(2), now, acs_id=acs_id(2))
        await store.put(good)
        await store.put(bad, schema=7)

        report = await backups.backup.run()

        assert (2, 1) == (report.rows, report.damaged)
        (line,) = lines(caplog, "mapping_unreadable")
        assert {
            "level": "ERROR",
            "tenant_id": CONTOSO.tenant_id,
            "object_id": bad.person.object_id,
            "reason": "a row with another schema version",
        }.items() <= line.items()
        assert [1, 7] == sorted(row.entity["schema"] for row in rows_of(await backups.only()))

    @pytest.mark.parametrize(
        ("changes", "reported"),
        [
            pytest.param({"last_used_on": timedelta(minutes=4)}, None, id="clocks differ a bit"),
            pytest.param({"last_used_on": timedelta(minutes=6)}, "lastUsedOn", id="used"),
            pytest.param({"created_on": timedelta(days=365)}, "createdOn", id="created"),
            pytest.param({"revoked_before": timedelta(days=1)}, "revokedBefore", id="revoked"),
            pytest.param({"lease_until": timedelta(hours=23)}, None, id="a deletion that waits"),
            pytest.param({"lease_until": timedelta(days=2)}, "leaseUntil", id="no such lease"),
        ],
    )
    async def test_future(
        self,
        backups: Backups,
        store: Store,
        now: datetime,
        caplog: pytest.LogCaptureFixture,
        changes: dict[str, timedelta],
        reported: str | None,
    ) -> None:
        """A date that lies in the future by the table's clock is named."""
        dates = {name: now + offset for name, offset in changes.items()}
        await store.put(mapping_of(somebody(1), now, **dates))

        report = await backups.backup.run()

        found = lines(caplog, "mapping_in_future")
        assert report.future_dates == len(found) == (1 if reported else 0)
        for line in found:
            assert "ERROR" == line["level"]
            assert somebody(1).object_id == line["object_id"]
            assert line["reason"].startswith(f"{reported} is 20")

    async def test_shared_ids(
        self, backups: Backups, store: Store, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """People with one ACS identity are named, in whatever partitions and states they are."""
        ids = {1: 1, 2: 2, 3: 1, 4: 4, 5: 2, 6: 2}
        for number, shared in ids.items():
            state = State.DELETING if number == 3 else State.ACTIVE
            await store.put(mapping_of(somebody(number), now, acs_id=acs_id(shared), state=state))
        for number in (7, 8):  # They have none yet, so they share none.
            await store.put(mapping_of(somebody(number), now, acs_id="", state=State.CREATING))

        report = await backups.backup.run()

        assert 2 == report.shared_ids
        found = lines(caplog, "identity_shared")
        assert {
            (somebody(number).object_id, acs_id(shared))
            for number, shared in ids.items()
            if number != 4
        } == {(line["object_id"], line["acs_id"]) for line in found}
        assert {"ERROR"} == {line["level"] for line in found}

    async def test_not_more_lines(
        self, backups: Backups, store: Store, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All bad rows are counted, and the first twenty of a kind are named."""
        later = now + timedelta(days=9)
        for number in range(MAX_LINES + 2):
            await store.put(mapping_of(somebody(number), now, last_used_on=later))
            await store.put(mapping_of(somebody(1000 + number), now), generation="one")

        report = await backups.backup.run()

        count = MAX_LINES + 2
        # All of them have the same ACS identity, besides.
        assert (count, count, 1) == (report.damaged, report.future_dates, report.shared_ids)
        for event in ("mapping_unreadable", "mapping_in_future", "identity_shared"):
            assert MAX_LINES == len(lines(caplog, event))

    async def test_names_fail(
        self, backups: Backups, store: Store, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the second pass fails, the backup is there, and says how many ids are shared."""
        caplog.set_level(logging.INFO)
        for number in range(2):
            await store.put(mapping_of(somebody(number), now))
        store.faults.fail_next("table_query", times=3)
        store.faults.fail_next("table_query", status=403)

        report = await backups.backup.run()

        assert [report.blob] == await backups.names()
        assert 1 == lines(caplog, "backup_finished")[0]["shared_ids"]
        assert [] == lines(caplog, "identity_shared")


async def test_flat_memory(backups: Backups, store: Store, now: datetime) -> None:
    """Memory does not grow with the tables. BACKUP_ROWS sets how many rows there are."""
    size = 1000
    for start in range(0, ROWS, size):
        people = sorted(somebody(number) for number in range(start, min(start + size, ROWS)))
        await store.put_all(
            [
                mapping_of(person, now, acs_id=acs_id(number))
                for number, person in enumerate(people, start)
            ]
        )
    tracemalloc.start()
    try:
        report = await backups.backup.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (ROWS, 0, 0, 0) == (
        report.rows,
        report.damaged,
        report.future_dates,
        report.shared_ids,
    )
    assert peak < MAX_MEMORY
    assert ROWS == sum(1 for _ in rows_of(await backups.only()))

"""`python -m infra.mappings import`, with real tables."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from shared.errors import BrokerError
from shared.mappings.table import State
from tests.emulated import anybody, mapping_of
from tests.infra.mappings.conftest import DATE, acs_id, entry, somebody, write

if TYPE_CHECKING:
    from pathlib import Path

    from local.storage.azurite import Endpoints
    from local.storage.proxy import TableProxy
    from shared.mappings.identities import Identities
    from tests.emulated import Store
    from tests.infra.mappings.conftest import Command


async def owned(store: Store) -> dict[str, str]:
    """Return the person of each identity, after comparing the rows with the index."""
    rows = await store.all_rows()
    found = {row["acsId"]: row["RowKey"] for row in rows if row["state"] == State.ACTIVE}
    assert len(found) == len(rows)
    assert found == {acs_id: owner.object_id async for acs_id, owner, *_ in store.ledger.owners()}
    return found


@pytest.mark.parametrize("name", ["people.csv", "people.jsonl", "people.json"])
async def test_imports(command: Command, store: Store, tmp_path: Path, name: str) -> None:
    """Everybody has the identity of the file, with the dates that it has."""
    dates = {"createdOn": "2026-11-01T00:00:00Z", "lastUsedOn": "2026-11-24T12:11:12.345678+02:00"}
    path = write(tmp_path / name, [entry(1), entry(2, **dates), entry(3)])

    finished = await command("import", path)

    assert (0, {}) == (finished.code, finished.report)
    assert "3 imported" in finished.out
    assert {acs_id(n): somebody(n).object_id for n in (1, 2, 3)} == await owned(store)
    dated = await store.mappings.read(somebody(2))
    assert (DATE.replace(day=1, hour=0, minute=0, second=0, microsecond=0), DATE) == (
        dated.created_on,
        dated.last_used_on,
    )
    undated = await store.mappings.read(somebody(1))
    assert abs(undated.now - undated.last_used_on) < timedelta(minutes=1)


async def test_again(command: Command, store: Store, tmp_path: Path) -> None:
    """A second run changes nothing, and says that all is there."""
    path = write(tmp_path / "people.csv", [entry(n) for n in range(5)])
    await command("import", path)
    before = await store.all_rows()

    finished = await command("import", path)

    assert 0 == finished.code
    assert "5 there already" in finished.out
    assert before == await store.all_rows()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"objectId": "ada@contoso.com"}, "object_id is not a GUID", id="object id"),
        pytest.param({"tenantId": ""}, "tenant_id is not a GUID", id="no tenant id"),
        pytest.param({"communicationUserId": "8:orgid:1"}, "not an ACS identity", id="identity"),
        pytest.param({"communicationUserId": ""}, "not an ACS identity", id="no identity"),
        pytest.param({"createdOn": "yesterday"}, "createdOn is not a date", id="date"),
        pytest.param({"lastUsedOn": "2026-01-31T09:00:00"}, "with a zone", id="no zone"),
        pytest.param({"state": "gone"}, "not a valid State", id="state"),
        pytest.param({"state": "deleting"}, "for `restore`", id="being deleted"),
        pytest.param(
            {"communicationUserId": acs_id(2).replace("ac5ac5ac", "ac5ac5ad")},
            "another ACS resource",
            id="another resource",
        ),
        pytest.param({"communicationUserId": acs_id(1)}, "more than one person", id="shared"),
        pytest.param(
            {"communicationUserId": acs_id(1).upper().replace("8:ACS", "8:acs")},
            "more than one person",
            id="shared in other letters",
        ),
        pytest.param({"objectId": somebody(1).object_id}, "more than one identity", id="two"),
    ],
)
async def test_wrong_row(
    command: Command, store: Store, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """If one row is wrong by itself, it is named, and nothing is imported."""
    path = write(tmp_path / "people.jsonl", [entry(0), entry(1), entry(2, **changes)])

    finished = await command("import", path)

    assert 1 == finished.code
    assert "Nothing was imported" in finished.out
    assert 3 in finished.report
    assert all(reason in found for found in finished.report.values())
    assert [] == await store.all_rows()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("people.txt", "", id="unknown suffix"),
        pytest.param("people.csv", "tenantId,oid\n", id="no such column"),
        pytest.param("people.jsonl", '{"tenantId": ', id="not JSON"),
        pytest.param("people.json", "{}", id="not an array"),
        pytest.param("people.jsonl.gz", "no gzip", id="not a backup"),
    ],
)
async def test_wrong_file(command: Command, tmp_path: Path, name: str, text: str) -> None:
    """A file that cannot be read is named, with an exit code of its own."""
    (tmp_path / name).write_text(text)

    finished = await command("import", tmp_path / name)

    assert 2 == finished.code
    assert name in finished.err


async def test_spreadsheet(command: Command, store: Store, tmp_path: Path) -> None:
    """A file of a spreadsheet has a byte order mark, other columns, and ids in capitals."""
    path = tmp_path / "people.csv"
    tenant_id, object_id, acs = entry(1).values()
    path.write_text(
        f"\ufeffmail,objectId,tenantId,communicationUserId\r\n"
        f"ada@contoso.com,{object_id.upper()},{tenant_id},{acs}\r\n"
    )

    finished = await command("import", path)

    assert 0 == finished.code
    assert {acs: object_id} == await owned(store)


async def test_conflicts(command: Command, store: Store, tmp_path: Path) -> None:
    """Rows that do not fit the tables are refused with the reason; the others are imported."""
    now = await store.mappings.server_time()
    await store.put(mapping_of(somebody(1), now, acs_id=acs_id(11)))
    await store.put(mapping_of(somebody(12), now, acs_id=acs_id(2)))
    await store.ledger.index(acs_id(2), somebody(12))
    await store.ledger.add_orphan(acs_id(3), person=None, reason="lost", now=now)
    await store.put(mapping_of(somebody(4), now, acs_id=acs_id(4)), schema=2)
    await store.put(mapping_of(somebody(5), now, state=State.ERASED, acs_id=""))
    path = write(tmp_path / "people.csv", [entry(n) for n in range(7)])

    finished = await command("import", path)

    assert 1 == finished.code
    assert {
        3: "the person has another identity",
        4: "somebody else has this identity",
        5: "the identity is about to be deleted",
        6: "a row with another schema version",
    } == finished.report
    assert "3 imported, 4 refused" in finished.out
    assert acs_id(11) == (await store.mappings.read(somebody(1))).acs_id
    assert 0 == command.report.stat().st_mode & 0o077
    for number in (0, 5, 6):
        assert acs_id(number) == (await store.mappings.read(somebody(number))).acs_id
    # Whoever was refused can be given an identity as before.
    assert State.ABSENT is (await store.mappings.read(somebody(2))).state


async def test_dry_run(command: Command, store: Store, tmp_path: Path) -> None:
    """A dry run says what would become of each row, and changes nothing."""
    now = await store.mappings.server_time()
    await store.put(mapping_of(somebody(1), now, acs_id=acs_id(1)))
    await store.put(mapping_of(somebody(2), now, acs_id=acs_id(12)))
    await store.put(mapping_of(somebody(13), now, acs_id=acs_id(3)))
    await store.ledger.index(acs_id(3), somebody(13))
    before = await store.all_rows()
    path = write(tmp_path / "people.csv", [entry(n) for n in range(4)])

    finished = await command("import", path, "--dry-run")

    assert 1 == finished.code
    assert {
        2: "would be imported",
        3: "there already",
        4: "the person has another identity",
        5: "somebody else has this identity",
    } == finished.report
    assert before == await store.all_rows()
    assert [acs_id(3)] == [acs_id async for acs_id, _, *_ in store.ledger.owners()]


async def test_live_traffic(
    command: Command, store: Store, identities: Identities, tmp_path: Path
) -> None:
    """People who ask meanwhile get one identity: that of the file, or one that is new."""
    people = range(40)
    path = write(tmp_path / "people.csv", [entry(n) for n in people])

    async def ask(number: int) -> str:
        while True:
            try:
                found = await identities.get_or_create(somebody(number), admit=anybody)
            except BrokerError:
                continue  # The app asks again.
            return found.acs_id

    running = asyncio.create_task(command("import", path))
    answers = await asyncio.gather(*(ask(number) for number in people))
    finished = await running

    stored = [(await store.mappings.read(somebody(number))).acs_id for number in people]
    assert stored == answers
    assert len(set(stored)) == len(stored)
    new = {number for number in people if stored[number] != acs_id(number)}
    assert new == {row - 2 for row in finished.report}


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        pytest.param("table_insert", {"status": 503, "times": 5}, id="throttled"),
        pytest.param("table_insert", {"reset": True, "times": 5}, id="cut off"),
        pytest.param("table_insert", {"reset": True, "after": True, "times": 3}, id="lost answers"),
        pytest.param("table_read", {"status": 500, "times": 2}, id="reads fail"),
    ],
)
async def test_table_falters(
    command: Command,
    storage: Endpoints,
    tables: TableProxy,
    store: Store,
    tmp_path: Path,
    operation: str,
    fault: dict[str, Any],
) -> None:
    """What fails for a moment is tried again, and nothing is lost or done twice."""
    proxied = storage.connection_string.replace(storage.table, tables.endpoint)
    path = write(tmp_path / "people.csv", [entry(n) for n in range(3)])
    store.faults.fail_next(operation, **fault)

    finished = await replace(
        command, options=("--connection-string", proxied, *command.options[2:])
    )("import", path)

    assert (0, {}) == (finished.code, finished.report)
    assert {acs_id(n): somebody(n).object_id for n in range(3)} == await owned(store)


async def test_table_fails(command: Command, store: Store, tmp_path: Path) -> None:
    """Without a table, it says so and creates none."""
    await store.rows.delete_table()
    path = write(tmp_path / "people.csv", [entry(1)])

    finished = await command("import", path)

    assert 2 == finished.code
    assert "TableNotFound" in finished.err

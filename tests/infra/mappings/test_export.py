"""`python -m infra.mappings export`, with real tables."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest

from shared.mappings.backup_file import contents_of, rows_of
from shared.mappings.table import State
from tests.emulated import mapping_of
from tests.infra.mappings.conftest import DATE, acs_id, somebody

if TYPE_CHECKING:
    from pathlib import Path

    from tests.emulated import Store
    from tests.infra.mappings.conftest import Command


@pytest.fixture
async def people(store: Store) -> list[dict[str, Any]]:
    """Rows of each kind, and what an export says about them."""
    await store.put(mapping_of(somebody(1), DATE, acs_id=acs_id(1)))
    await store.put(
        mapping_of(somebody(2), DATE, acs_id="", state=State.ERASED, revoked_before=DATE)
    )
    await store.put(
        mapping_of(somebody(3), DATE, acs_id=acs_id(3), state=State.DELETING, reason="idle")
    )
    await store.ledger.index(acs_id(1), somebody(1))
    dates = dict.fromkeys(("createdOn", "lastUsedOn"), DATE.isoformat())
    more: list[dict[str, Any]] = [
        {"communicationUserId": acs_id(1), "state": "active"},
        {"state": "erased", "revokedBefore": DATE.isoformat()},
        {"communicationUserId": acs_id(3), "state": "deleting", "reason": "idle"},
    ]
    names = ("tenantId", "objectId")
    return [
        dict(zip(names, somebody(number), strict=True)) | dates | row
        for number, row in enumerate(more, start=1)
    ]


async def test_csv(command: Command, tmp_path: Path, people: list[dict[str, Any]]) -> None:
    """A CSV file has each row, and only its owner can read it."""
    path = tmp_path / "out.csv"

    finished = await command("export", path)

    assert 0 == finished.code
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert people == rows
    assert 0 == path.stat().st_mode & 0o077
    assert [path] == list(tmp_path.glob("out*"))


async def test_json_lines(command: Command, tmp_path: Path, people: list[dict[str, Any]]) -> None:
    """A JSON Lines file has the same members."""
    path = tmp_path / "out.jsonl"

    await command("export", path)

    assert people == [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("people")
async def test_everything(command: Command, store: Store, tmp_path: Path) -> None:
    """A whole export is a backup: it has all columns of both tables."""
    path = tmp_path / "out.jsonl.gz"

    finished = await command("export", path)

    assert (0, "4 exported" in finished.out) == (finished.code, True)
    with path.open("rb") as file:
        assert {store.rows.table_name: 3, store.entries.table_name: 1} == contents_of(file).rows
        rows = [dict(row.entity) for row in rows_of(file)]
    assert await store.all_rows() == rows[:3]
    assert 0 == path.stat().st_mode & 0o077


@pytest.mark.usefixtures("people")
async def test_damaged(command: Command, store: Store, tmp_path: Path) -> None:
    """A row that cannot be read is reported, and the others are written."""
    await store.put(mapping_of(somebody(2), DATE), schema=7)
    path = tmp_path / "out.csv"

    finished = await command("export", path)

    assert (1, {2: "a row with another schema version"}) == (finished.code, finished.report)
    assert 3 == len(path.read_text().splitlines())


async def test_there_already(command: Command, tmp_path: Path) -> None:
    """A file that exists is never overwritten."""
    path = tmp_path / "out.csv"
    path.write_text("precious")

    finished = await command("export", path)

    assert (2, "precious") == (finished.code, path.read_text())
    assert "exists already" in finished.err


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl.gz", "out.txt"])
async def test_fails(command: Command, store: Store, tmp_path: Path, name: str) -> None:
    """If it fails, there is no file that could be mistaken for an export."""
    if not name.endswith("txt"):
        await store.rows.delete_table()

    finished = await command("export", tmp_path / name)

    assert 2 == finished.code
    assert [] == list(tmp_path.glob("out*"))

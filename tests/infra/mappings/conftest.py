from __future__ import annotations

import asyncio
import csv
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from infra.mappings.__main__ import main
from local.acs.emulator import RESOURCE_ID
from local.entra.directory import CONTOSO
from shared.identifiers import Person

if TYPE_CHECKING:
    from pathlib import Path

    from local.storage.azurite import Endpoints
    from tests.emulated import Store

DATE = datetime(2026, 11, 24, 10, 11, 12, 345678, tzinfo=UTC)


def acs_id(number: int) -> str:
    """Return the id of an identity by number."""
    return f"8:acs:{RESOURCE_ID}_{number:08x}-0000-0000-0000-000000000000"


def somebody(number: int) -> Person:
    """Return a person by number."""
    return Person(CONTOSO.tenant_id, f"{number:08x}-1111-4111-8111-111111111111")


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """Return what a file to import says about a person, with changes."""
    tenant_id, object_id = somebody(number)
    values = {"tenantId": tenant_id, "objectId": object_id, "communicationUserId": acs_id(number)}
    return values | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a file in the format that its name says."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        elif path.suffix == ".json":
            json.dump(rows, file)
        else:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return path


@dataclass(frozen=True, slots=True)
class Finished:
    """What the command printed, and what its report says, by row."""

    code: int
    out: str
    err: str
    report: dict[int, str]


@dataclass(frozen=True, slots=True)
class Command:
    """`python -m infra.mappings` for the tables of one test."""

    options: tuple[str, ...]
    report: Path
    capsys: pytest.CaptureFixture[str]

    def words(self, command: str, path: Path, *options: str) -> list[str]:
        """Return the command line."""
        given = self.options if command != "export" else self.options[:-2]
        return [command, "test", str(path), *options, *given, "--report", str(self.report)]

    async def __call__(self, command: str, path: Path, *options: str) -> Finished:
        """Run the command in this process."""
        code = await asyncio.to_thread(main, self.words(command, path, *options))
        printed = self.capsys.readouterr()
        return Finished(code, printed.out, printed.err, self.reported())

    def reported(self) -> dict[int, str]:
        """Return the reasons in the report, by row."""
        if not self.report.exists():
            return {}
        with self.report.open(newline="") as file:
            return {int(row["row"]): row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def command(
    storage: Endpoints, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command, with the options that make it use the test's tables."""
    return Command(
        (
            *("--connection-string", storage.connection_string),
            *("--table", store.rows.table_name),
            *("--acs-resource-id", RESOURCE_ID),
        ),
        tmp_path / "report.csv",
        capsys,
    )

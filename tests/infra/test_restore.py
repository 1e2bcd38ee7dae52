"""infra/restore.py with Azurite, which accepts the Entra tokens of a stand-in for `az`."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.data.tables.aio import TableServiceClient

from local.serving.certificates import Certificates
from local.storage.azurite import azurite
from shared.identifiers import Person
from shared.mappings.table import IdentityMappings, State, entity_from_mapping
from tests.emulated import ACS_ID, mapping_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
TENANT = "22222222-2222-4222-8222-222222222222"
ADA, BOB, EVE = (Person(TENANT, f"{digit * 8}-1111-4111-8111-111111111111") for digit in "abe")
NOW = datetime(2026, 11, 24, 10, 11, 12, 345678, tzinfo=UTC)
OTHER_ID = ACS_ID.replace("00000005", "00000006")


def entra_token() -> str:
    """Return a token that Azurite accepts: it checks the claims but not the signature."""
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": f"https://sts.windows.net/{TENANT}/",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in parts) + ".c2ln"


@dataclass(frozen=True, slots=True)
class Tables:
    """The two tables of an environment, and the variables by which the script finds them."""

    folder: Path
    service: TableServiceClient
    name: str
    environment: dict[str, str]

    @property
    def mappings(self) -> IdentityMappings:
        """The tables as the broker reads them."""
        return IdentityMappings(
            mappings=self.service.get_table_client(self.name),
            orphans=self.service.get_table_client(f"{self.name}Orphans"),
        )

    def restore(self, *files: list[dict[str, Any]] | str) -> subprocess.CompletedProcess[str]:
        """Run the script with files of these rows (as JSON lines) or of this text."""
        paths = []
        for number, rows in enumerate(files):
            path = self.folder / f"{number}.jsonl"
            text = rows if isinstance(rows, str) else "".join(f"{json.dumps(r)}\n" for r in rows)
            path.write_text(text)
            paths.append(str(path))
        return subprocess.run(  # noqa: S603 - a script of ours
            [sys.executable, "-m", "infra.restore", "dev", *paths],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
async def tables(tmp_path: Path) -> AsyncIterator[Tables]:
    """Empty tables, and an `az` that finds the environment `dev` and gets tokens."""
    certificates = Certificates(tmp_path)
    name = f"t{secrets.token_hex(8)}"
    async with AsyncExitStack() as stack:
        endpoints = await stack.enter_async_context(azurite(certificates=certificates))
        answers = {
            "deployment sub list": [
                {"name": "acs-token-broker-dev", "tags": None, "state": "Succeeded", "time": "1"}
            ],
            "deployment sub show": {
                output: {"value": value}
                for output, value in {
                    "AZURE_RESOURCE_GROUP": "rg-acs-token-broker-dev",
                    "MAPPINGS_TABLE_ENDPOINT": endpoints.table,
                    "MAPPINGS_TABLE": name,
                }.items()
            },
            "account get-access-token": {
                "accessToken": entra_token(),
                "expires_on": int(time.time()) + 3600,
            },
        }
        folder = tmp_path / "bin"
        folder.mkdir()
        az = folder / "az"
        az.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"[answer] = [it for words, it in {answers!r}.items()"
            " if ' '.join(sys.argv[1:]).startswith(words)]\n"
            "print(json.dumps(answer))\n"
        )
        az.chmod(0o755)
        service = await stack.enter_async_context(
            TableServiceClient.from_connection_string(
                endpoints.connection_string,
                connection_verify=str(certificates.authority_file),
            )
        )
        await service.create_table(name)
        await service.create_table(f"{name}Orphans")
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "REQUESTS_CA_BUNDLE": str(certificates.authority_file)}
        yield Tables(tmp_path, service, name, environment)


def exported(person: Person, **changes: Any) -> dict[str, Any]:
    """Return a row as infra/export.py writes it: dates are strings."""
    entity = entity_from_mapping(mapping_of(person, NOW, **changes))
    row = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in entity.items()
        if value is not None
    }
    return row | {"Timestamp": "2026-11-24T10:11:12.4+00:00", "etag": "W/\"datetime'2026'\""}


async def test_restores_an_export(tables: Tables) -> None:
    """The broker reads each row of an export as it was."""
    exported_mappings = {
        ADA: mapping_of(ADA, NOW, revoked_before=NOW, generation=3),
        BOB: mapping_of(BOB, NOW, state=State.DELETING, lease_until=NOW + timedelta(seconds=20)),
        EVE: mapping_of(EVE, NOW, state=State.CREATING, acs_id="", lease_until=NOW),
    }
    rows = [
        exported(ADA, revoked_before=NOW, generation=3),
        exported(BOB, state=State.DELETING, lease_until=NOW + timedelta(seconds=20)),
        exported(EVE, state=State.CREATING, acs_id="", lease_until=NOW),
    ]
    orphan = {"PartitionKey": "orphan", "RowKey": OTHER_ID, "reason": "lost"}
    finished = tables.restore(rows, [orphan | {"createdOn": NOW.isoformat()}])
    assert (0, "") == (finished.returncode, finished.stderr)
    assert f"{tables.name}: 3 rows put back, 0 left alone\n" in finished.stdout
    for person, mapping in exported_mappings.items():
        found = await tables.mappings.read(person)
        assert found is not None
        assert entity_from_mapping(mapping) == entity_from_mapping(found)
    assert [OTHER_ID] == [acs_id async for acs_id in tables.mappings.orphans()]
    assert 1 == len([row async for row in tables.mappings.idle(idle_before=NOW + timedelta(1))])


async def test_restores_from_the_log(tables: Tables) -> None:
    """The results of a query of the log become rows that the broker can use."""
    row = {"TableName": "PrimaryResult", "tenant_id": TENANT, "object_id": ADA.object_id}
    seen = {"acs_id": ACS_ID, "last_seen": "2026-11-24T10:11:12.3456789Z"}
    finished = tables.restore(json.dumps([row | seen], indent=2))
    assert (0, "") == (finished.returncode, finished.stderr)
    found = await tables.mappings.read(ADA)
    assert found is not None
    assert (State.ACTIVE, ACS_ID, NOW) == (found.state, found.acs_id, found.last_used_on)


async def test_nothing_is_overwritten(tables: Tables) -> None:
    """A row that the table has is not changed, and the first file with a row for a person wins."""
    rows = tables.service.get_table_client(tables.name)
    await rows.create_entity(entity_from_mapping(mapping_of(ADA, NOW)))
    newest = [exported(ADA, acs_id=OTHER_ID), exported(BOB, acs_id=OTHER_ID)]
    finished = tables.restore(newest, [exported(BOB), exported(EVE)])
    assert f"{tables.name}: 2 rows put back, 1 left alone\n" in finished.stdout
    found = [await tables.mappings.read(person) for person in (ADA, BOB, EVE)]
    assert [ACS_ID, OTHER_ID, ACS_ID] == [mapping and mapping.acs_id for mapping in found]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"schema": 2}, id="newer schema"),
        pytest.param({"createdOn": "yesterday"}, id="not a date"),
        pytest.param({"state": "gone"}, id="unknown state"),
        pytest.param({"acsId": "8:orgid:1"}, id="not an ACS identity"),
        pytest.param({"acsId": None}, id="active without an identity"),
        pytest.param({"lastUsedOn": None}, id="no date"),
    ],
)
async def test_unreadable(tables: Tables, changes: dict[str, Any]) -> None:
    """If one row cannot be read, the error names it and nothing is written."""
    finished = tables.restore([exported(BOB), exported(ADA) | changes])
    assert 1 == finished.returncode
    assert "0.jsonl, row 2" in finished.stderr
    assert await tables.mappings.read(BOB) is None


async def test_missing_table(tables: Tables) -> None:
    """If the table is missing, it says so and creates none."""
    await tables.service.delete_table(tables.name)
    finished = tables.restore([exported(ADA)])
    assert 1 == finished.returncode
    assert "TableNotFound" in finished.stderr

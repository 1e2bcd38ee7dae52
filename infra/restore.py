"""Put rows back into the mapping tables of an environment. Stop its app first.

    .venv/bin/python -m infra.restore prod mappings.json backup/IdentityMappings*.jsonl

It reads files of infra/export.py, and results of infra/queries/workbook-mappings.kql as JSON. It
never changes a row that a table already has. Of several rows for one person it takes the first, so
name the newest file first. It writes nothing unless it can read all rows. Run it from the top of a
clone with the Python of `make setup`. The account of `az login` needs Storage Table Data
Contributor on the storage account; if that is closed to the internet, use a machine inside the
network.
"""  # noqa: INP001 - a script that is run as `python -m infra.restore`

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, ResourceExistsError
from azure.data.tables import TableServiceClient
from azure.identity import AzureCliCredential

from infra.export import OUTPUTS, ask
from shared.identifiers import ACS_ID, Person
from shared.mappings.table import (
    LEDGER_PARTITION,
    SCHEMA,
    IdentityMapping,
    State,
    entity_from_mapping,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.data.tables import TableClient

CONNECTIONS = 8  # A row takes some 20 ms; the SDK keeps ten connections open.


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file: a JSON array, or an object in each line."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        yield from json.loads(text)
    else:
        yield from map(json.loads, text.splitlines())


def entity_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the entity that a row stands for, with the types that JSON does not have.

    Raises:
        ValueError, KeyError, TypeError: this version of the broker does not write such a row.
    """
    if row.get("PartitionKey") == LEDGER_PARTITION:
        created_on = datetime.fromisoformat(row["createdOn"])
        names = ("PartitionKey", "RowKey", "reason")
        return {name: row[name] for name in names} | {"createdOn": created_on}
    mapping = _from_export(row) if "PartitionKey" in row else _from_log(row)
    if not ACS_ID.fullmatch(mapping.acs_id) and (mapping.acs_id or mapping.state is State.ACTIVE):
        raise ValueError("not an ACS identity")
    return entity_from_mapping(mapping)


def _from_export(row: dict[str, Any]) -> IdentityMapping:
    if row["schema"] != SCHEMA:
        raise ValueError(f"the row has schema {row['schema']}; this version writes {SCHEMA}")

    def date(name: str) -> datetime | None:
        return datetime.fromisoformat(row[name]) if row.get(name) else None

    return IdentityMapping(
        person=Person(row["PartitionKey"].partition("_")[0], row["RowKey"]),
        state=State(row["state"]),
        acs_id=row.get("acsId") or "",
        generation=int(row["generation"]),
        attempt=row["attempt"],
        lease_until=date("leaseUntil"),
        created_on=datetime.fromisoformat(row["createdOn"]),
        last_used_on=datetime.fromisoformat(row["lastUsedOn"]),
        revoked_before=date("revokedBefore"),
    )


def _from_log(row: dict[str, Any]) -> IdentityMapping:
    last_seen = datetime.fromisoformat(row["last_seen"])
    return IdentityMapping(
        person=Person(row["tenant_id"], row["object_id"]),
        state=State.ACTIVE,
        acs_id=row["acs_id"],
        attempt="rebuilt",
        created_on=last_seen,  # The log may not go back to the creation.
        last_used_on=last_seen,
    )


def read_all(paths: list[Path]) -> list[dict[str, Any]]:
    """Return the entities of all files, the first for each person and each orphan.

    Raises:
        ValueError: a row cannot be read; the message says which.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        for number, row in enumerate(rows_of(path), start=1):
            try:
                entity = entity_of(row)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise ValueError(f"{path}, row {number}: {exc!r}") from exc
            found.setdefault((entity["PartitionKey"], entity["RowKey"]), entity)
    return list(found.values())


def insert(table: TableClient, entity: dict[str, Any]) -> bool:
    """Add a row; return False if the table has it already."""
    try:
        table.create_entity(entity)
    except ResourceExistsError:
        return False
    return True


def main() -> int:
    """Put the rows back, print how many, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment")
    parser.add_argument("file", type=Path, nargs="+")
    arguments = parser.parse_args()
    try:
        entities = read_all(arguments.file)
        outputs = ask(str(OUTPUTS), arguments.environment, "--json")
        with (
            TableServiceClient(
                outputs["MAPPINGS_TABLE_ENDPOINT"], credential=AzureCliCredential()
            ) as service,
            ThreadPoolExecutor(CONNECTIONS) as pool,
        ):
            orphans = [it for it in entities if it["PartitionKey"] == LEDGER_PARTITION]
            mappings = [it for it in entities if it["PartitionKey"] != LEDGER_PARTITION]
            for suffix, own in (("", mappings), ("Orphans", orphans)):
                table = service.get_table_client(outputs["MAPPINGS_TABLE"] + suffix)
                added = sum(pool.map(partial(insert, table), own))
                left = len(own) - added
                sys.stdout.write(f"{table.table_name}: {added} rows put back, {left} left alone\n")
    except (OSError, ValueError, AzureError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"Not all rows were put back. Fix this, then run it again: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

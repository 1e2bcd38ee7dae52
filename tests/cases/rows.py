"""The tables of identities as an operator can see and change them, and the timers run by hand."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import ResourceNotFoundError

from local.entra.directory import CONTOSO
from tests.running import table_of

if TYPE_CHECKING:
    from tests.cases.service import Service
    from tests.running import Running

MAPPINGS = "IdentityMappings"


def key_of(object_id: str) -> dict[str, str]:
    """Return the keys of the row of a person of Contoso."""
    return {"PartitionKey": f"{CONTOSO.tenant_id}_{object_id[:2]}", "RowKey": object_id}


async def row_of(
    running: Running, object_id: str, *, name: str = MAPPINGS
) -> dict[str, Any] | None:
    """Return the row of a person of Contoso."""

    def read() -> dict[str, Any] | None:
        with table_of(running, name) as table:
            try:
                return dict(table.get_entity(*key_of(object_id).values()))
            except ResourceNotFoundError:
                return None

    return await asyncio.to_thread(read)


async def identity_in_row(running: Running, object_id: str) -> str:
    """Return the ACS identity in the row of a person of Contoso; empty if there is none."""
    row = await row_of(running, object_id) or {}
    return str(row.get("acsId", ""))


async def change_row(
    running: Running, object_id: str, *, name: str = MAPPINGS, **changes: Any
) -> None:
    """Write into the row of a person of Contoso, past the broker."""

    def write() -> None:
        with table_of(running, name) as table:
            table.upsert_entity(key_of(object_id) | changes)

    await asyncio.to_thread(write)


async def orphans(running: Running) -> set[str]:
    """Return the identities in the ledger that have to be deleted."""

    def read() -> set[str]:
        with table_of(running, f"{MAPPINGS}Orphans") as table:
            return {
                entity["RowKey"]
                for entity in table.list_entities()
                if entity["PartitionKey"] == "orphan"
            }

    return await asyncio.to_thread(read)


async def create_tables(running: Running, name: str) -> None:
    """Create two empty tables for one test."""

    def create() -> None:
        for each in (name, f"{name}Orphans"):
            with table_of(running, each) as table:
                table.create_table()

    await asyncio.to_thread(create)


async def forget_renewals(running: Running) -> None:
    """Forget how many identities were renewed today."""

    def delete() -> None:
        with table_of(running, f"{MAPPINGS}Orphans") as table:
            table.delete_entity("run", "renewals")

    await asyncio.to_thread(delete)


async def run_timer(service: Service, timer: str) -> dict[str, Any]:
    """Run `prune_mappings` or `sweep_ledger` now, and return what it reports."""
    output = service.running.host.output
    began = len(output)
    answer = await service.app.post(f"/admin/functions/{timer}", json={"input": ""})
    assert 202 == answer.status
    start = f'"event": "{timer.partition("_")[0]}_'
    async with asyncio.timeout(10):
        while not (found := [line for line in output[began:] if start in line]):  # noqa: ASYNC110 - as `printed`
            await asyncio.sleep(0.02)
    report: dict[str, Any] = json.loads(found[-1][found[-1].index("{") :])
    return report


def continuation(partition: str, row: str) -> dict[str, str]:
    """Return the headers by which Azurite says that a list goes on."""
    return {
        f"x-ms-continuation-Next{name}": base64.b64encode(value.encode()).decode()
        for name, value in (("PartitionKey", partition), ("RowKey", row))
    }

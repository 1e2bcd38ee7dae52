"""The daily timer with many rows: memory, pace, and going on after being killed.

`MAPPINGS_ROWS=100000 .venv/bin/python -m pytest tests/test_prune_scale.py -s` measures it with as
many rows as that, and prints what it finds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.acs.emulator import RESOURCE_ID, Identity
from local.entra.directory import CONTOSO
from shared.identifiers import Person
from shared.mappings.table import State
from tests.emulated import mapping_of

if TYPE_CHECKING:
    from datetime import datetime

    import pytest

    from local.acs.emulator import AcsEmulator
    from local.storage.azurite import Endpoints
    from shared.mappings.table import IdentityMapping
    from tests.emulated import Clock, Store

ROOT = Path(__file__).parents[1]
ROWS = int(os.environ.get("MAPPINGS_ROWS", "1500"))
IDLE_SHARE = 60 if ROWS < 10_000 else 200  # One row in so many is idle.
IDLE = len(range(0, ROWS, IDLE_SHARE))
FEW = 10
MAX_GROWTH = 20 * 2**20
# https://learn.microsoft.com/azure/communication-services/concepts/service-limits#identity
MAX_DELETES_PER_SECOND = 500 / 30
AT_ONCE = 20

# What the function does, in a process of its own, which says how much memory it took. Linux counts
# in `ru_maxrss` what the parent had when it started the process, but not in `VmHWM`.
PROGRAM = """
import asyncio, dataclasses, json, os, pathlib, re, resource, sys
from shared.services import build_services

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main():
    services = build_services(os.environ)
    report = await services.pruner.run()
    print(json.dumps([peak(), dataclasses.asdict(report)]), flush=True)
    os._exit(0)  # The clients live as long as the process.

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took, and what it reports."""

    seconds: float
    peak: int  # Memory, in bytes.
    report: dict[str, Any]


def measure(env: dict[str, str]) -> Measured:
    """Run the timer in a process of its own."""
    started = time.monotonic()
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.monotonic() - started
    peak, report = json.loads(done.stdout)
    return Measured(seconds, peak, report)


async def killed(env: dict[str, str], acs: AcsEmulator, deletions: int) -> None:
    """Run the timer, and kill its process when so many identities are gone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, cwd=ROOT, env=env, stdout=subprocess.DEVNULL
    )
    while len(acs.deleted) < deletions:
        assert process.returncode is None
        await asyncio.sleep(0.05)
    process.kill()
    await process.wait()


def people(rows: int, now: datetime, acs: AcsEmulator) -> list[IdentityMapping]:
    """Return people's mappings, spread over the partitions; some are idle."""
    made = []
    for number in range(rows):
        identity = Identity(f"8:acs:{RESOURCE_ID}_00000005-{number:08x}")
        acs.identities[identity.id] = identity
        # A multiplication that scatters the numbers.
        object_id = f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}"
        used = now - timedelta(days=1 if number % IDLE_SHARE else 100)
        made.append(mapping_of(Person(CONTOSO.tenant_id, object_id), used, acs_id=identity.id))
    return made


async def fill(store: Store, mappings: list[IdentityMapping]) -> None:
    """Store mappings, and their index."""
    await store.put_all(mappings)
    entries = [
        {
            "PartitionKey": each.acs_id,
            "RowKey": each.acs_id,
            "tenantId": each.person.tenant_id,
            "objectId": each.person.object_id,
        }
        for each in mappings
    ]
    for start in range(0, len(entries), AT_ONCE):
        some = entries[start : start + AT_ONCE]
        await asyncio.gather(*(store.entries.create_entity(each) for each in some))


async def empty(store: Store) -> None:
    for table in (store.rows, store.entries):
        await table.delete_table()
        await table.create_table()


async def test_scale(
    store: Store,
    acs: AcsEmulator,
    storage: Endpoints,
    clock: Clock,
    example: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Memory is flat, the pace is within the quota, and a killed run is completed by the next."""
    env = os.environ | example
    env |= {
        "ACS_CONNECTION_STRING": f"endpoint={acs.url}/;accesskey=d29ydGhsZXNz",
        "MAPPINGS_CONNECTION_STRING": storage.connection_string,
        "MAPPINGS_TABLE": store.rows.table_name,
        "PRUNE_DRY_RUN": "false",
    }
    await fill(store, people(FEW, clock.now, acs))
    found = {"few": await asyncio.to_thread(measure, env)}
    await empty(store)
    await fill(store, people(ROWS, clock.now, acs))
    before = len(acs.deleted)
    await killed(env, acs, before + IDLE // 2)
    halfway = len(acs.deleted)
    found["resumed"] = await asyncio.to_thread(measure, env)
    resumed_deletions = len(acs.deleted) - halfway
    # What the killed process had claimed would be finished when its lease is over.
    claimed = [row for row in await store.all_rows() if row["state"] == State.DELETING]
    for row in claimed:
        await store.rows.update_entity(row | {"leaseUntil": clock.now - timedelta(minutes=1)})
    found["whole"] = await asyncio.to_thread(measure, env)
    with capsys.disabled():
        for name, each in found.items():
            growth = (each.peak - found["few"].peak) / 2**20
            sys.stdout.write(f"\n{name}: {each.seconds:.0f} s, {growth:+.1f} MB. {each.report}")

    for name, each in found.items():
        assert each.peak - found["few"].peak < MAX_GROWTH, name
    resumed, whole = found["resumed"], found["whole"]
    assert halfway < before + IDLE
    # It did not count again: then it would not have seen those that were gone already.
    assert (ROWS, IDLE) == (resumed.report["rows"], resumed.report["idle"])
    assert resumed_deletions / resumed.seconds < MAX_DELETES_PER_SECOND
    assert len(claimed) == whole.report["finished"] <= 4
    assert (ROWS - IDLE + len(claimed), 0) == (whole.report["rows"], whole.report["idle"])
    for each in found.values():
        assert (0, None) == (each.report["failed"], each.report["stopped"])
    left = {row["acsId"]: row["RowKey"] for row in await store.all_rows()}
    assert ROWS - IDLE == len(left)
    owners = {acs_id: owner.object_id async for acs_id, owner, *_ in store.ledger.owners()}
    assert left == owners
    assert set(left) <= set(acs.identities)

"""The commands with many rows: memory, pace, and going on after being killed.

`MAPPINGS_ROWS=100000 .venv/bin/python -m pytest tests/infra/mappings/test_scale.py -s` measures it
with as many rows as that; it prints what it finds.
"""

from __future__ import annotations

import asyncio
import csv
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.infra.mappings.conftest import acs_id, entry, somebody, write

if TYPE_CHECKING:
    import pytest

    from tests.emulated import Store
    from tests.infra.mappings.conftest import Command

ROOT = Path(__file__).parents[3]
ROWS = int(os.environ.get("MAPPINGS_ROWS", "1100"))
MAX_GROWTH = 20 * 2**20
REQUESTS_PER_ROW = 6
# https://learn.microsoft.com/azure/storage/tables/scalability-targets, for one partition
MAX_REQUESTS_PER_SECOND = 2000
FIRST = ROWS // 3
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process took."""

    code: int
    seconds: float
    peak: int  # Memory, in bytes.
    out: str


# A process begins with the peak of the one that started it, since that is kept across execve
# (https://man7.org/linux/man-pages/man2/getrusage.2.html). So a small one starts it.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def measure(words: list[str]) -> Measured:
    """Run the command in a process of its own."""
    started = time.monotonic()
    finished = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "infra.mappings", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    *out, peak = finished.stdout.splitlines()
    return Measured(finished.returncode, seconds, int(peak) * RSS_UNIT, " ".join(out))


async def killed(words: list[str], store: Store, rows: int) -> None:
    """Run the command, and kill its process when the table has so many rows."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.mappings", *words), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while await count(store) < rows:
        assert process.returncode is None
        await asyncio.sleep(0.2 if rows < 5000 else 5)
    process.kill()
    await process.wait()


async def count(store: Store) -> int:
    """Return how many rows there are."""
    return len([None async for _ in store.rows.list_entities(select=["RowKey"])])


async def test_scale(
    command: Command, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is flat, the pace is within the quota, and a killed run is completed by the next."""
    few = write(tmp_path / "few.csv", [entry(n) for n in range(20)])
    many = write(tmp_path / "many.csv", [entry(n) for n in range(ROWS)])
    backup, out = tmp_path / "all.jsonl.gz", tmp_path / "out.csv"
    found = {"few": await asyncio.to_thread(measure, command.words("import", few))}
    await killed(command.words("import", many), store, FIRST)
    found["import"] = await asyncio.to_thread(measure, command.words("import", many))
    found["import again"] = await asyncio.to_thread(measure, command.words("import", many))
    found["export csv"] = await asyncio.to_thread(measure, command.words("export", out))
    found["export all"] = await asyncio.to_thread(measure, command.words("export", backup))
    for table in (store.rows, store.entries):
        await table.delete_table()
        await table.create_table()
    await killed(command.words("restore", backup), store, FIRST)
    found["restore"] = await asyncio.to_thread(measure, command.words("restore", backup))
    with capsys.disabled():
        for name, each in found.items():
            growth = (each.peak - found["few"].peak) / 2**20
            sys.stdout.write(f"\n{name}: {each.seconds:.0f} s, {growth:+.1f} MB. {each.out}")

    assert {0} == {each.code for each in found.values()}
    for name, each in found.items():
        assert each.peak - found["few"].peak < MAX_GROWTH, name
    for name in ("import", "restore"):
        rows = ROWS - FIRST
        assert rows * REQUESTS_PER_ROW / found[name].seconds < MAX_REQUESTS_PER_SECOND
        assert "there already" in found[name].out
    # Going on costs little: it does not ask for each row.
    assert found["import again"].seconds < found["import"].seconds
    expected = {acs_id(n): somebody(n).object_id for n in range(ROWS)}
    with out.open(newline="") as file:
        assert expected == {
            row["communicationUserId"]: row["objectId"] for row in csv.DictReader(file)
        }
    stored = {row["acsId"]: row["RowKey"] for row in await store.all_rows()}
    assert expected == stored
    owners = Counter([acs_id async for acs_id, _, *_ in store.ledger.owners()])
    assert Counter(expected.keys()) == owners

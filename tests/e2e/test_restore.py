"""Both tables are lost and restored while people go on asking for tokens."""

from __future__ import annotations

import asyncio
import csv
import subprocess
import sys
import uuid
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.data.tables.aio import TableServiceClient

from local.acs.emulator import RESOURCE_ID
from local.storage.azurite import ACCOUNT, ACCOUNT_KEY
from shared.mappings.ledger import Ledger
from tests.emulated import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.running import Client, Running

ROOT = Path(__file__).parents[2]
NAMES = ("IdentityMappings", "IdentityMappingsOrphans")
PEOPLE = 24


@pytest.fixture
async def account(running: Running) -> AsyncIterator[TableServiceClient]:
    """The stack's tables, past the proxy's faults."""
    async with TableServiceClient.from_connection_string(
        connection_string(running),
        connection_verify=running.stack.environment.get("SSL_CERT_FILE", True),
    ) as service:
        yield service


def connection_string(running: Running) -> str:
    """Return the connection string of the stack's tables."""
    endpoint = running.stack.tables.endpoint
    return (
        f"DefaultEndpointsProtocol={endpoint.partition(':')[0]};AccountName={ACCOUNT};"
        f"AccountKey={ACCOUNT_KEY};TableEndpoint={endpoint}"
    )


async def run(running: Running, command: str, path: Path, *options: str) -> tuple[int, str]:
    """Run `python -m infra.mappings`; return its exit code and what it printed."""
    if command == "restore":
        options = (*options, "--acs-resource-id", RESOURCE_ID)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.mappings", command, "local", str(path), *options),
        *("--connection-string", connection_string(running)),
        cwd=ROOT,
        env=dict(running.stack.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


class Asking:
    """People who go on asking for tokens, and what they were answered."""

    def __init__(self, running: Running, app: Client) -> None:
        self._running = running
        self._app = app
        self._tasks: list[asyncio.Task[None]] = []
        self.answers: defaultdict[str, set[str]] = defaultdict(set)  # Identities, by person.
        self.refused: list[int] = []

    async def once(self, person: str) -> str | None:
        """Ask for a token; return the identity that it is for, or None."""
        answer = await self._app.get("/api/token", self._running.token_of_new_person(oid=person))
        if answer.status != 200:
            self.refused.append(answer.status)
            return None
        found: str = answer.json["user"]["id"]
        return found

    def start(self, people: list[str]) -> None:
        """Let people ask until `stop`."""
        self._tasks = [asyncio.create_task(self._go_on(person)) for person in people]

    async def _go_on(self, person: str) -> None:
        while True:
            found = await self.once(person)
            if found is not None:
                self.answers[person].add(found)
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Let nobody ask any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def reported(path: Path) -> set[str]:
    """Return the identities in a report."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {row["communicationUserId"] for row in csv.DictReader(file)}


async def test_tables_are_lost_under_load(
    running: Running, app: Client, account: TableServiceClient, tmp_path: Path
) -> None:
    """Whoever was restored first has the old identity; nobody has two, and no old one is lost."""
    people = [str(uuid.uuid4()) for _ in range(PEOPLE)]
    patient, impatient = people[: PEOPLE // 2], people[PEOPLE // 2 :]
    asking = Asking(running, app)
    before = {person: await asking.once(person) for person in people}
    assert None not in before.values()
    backup, report = tmp_path / "backup.jsonl.gz", tmp_path / "report.csv"
    code, out = await run(running, "export", backup)
    assert 0 == code, out
    for name in NAMES:
        await account.delete_table(name)
    asking.start(impatient)
    await until(lambda: len(asking.refused) >= len(impatient), seconds=30)
    assert {503} == set(asking.refused)
    assert not asking.answers  # Nobody gets another identity because the table is missing.
    for name in NAMES:
        await account.create_table(name)

    code, out = await run(
        running, "restore", backup, "--delete-superseded", "--report", str(report)
    )

    await until(lambda: len(asking.answers) == len(impatient), seconds=30)
    await asking.stop()
    now = {person: await asking.once(person) for person in people}
    assert {person: before[person] for person in patient} == {
        person: now[person] for person in patient
    }
    assert len(people) == len(set(now.values()))
    assert {person: {now[person]} for person in impatient} == asking.answers
    superseded = {before[person] for person in people if now[person] != before[person]}
    ledger = Ledger(account.get_table_client(NAMES[1]))
    orphans = {each.acs_id async for each in ledger.orphans()}
    assert superseded <= orphans
    assert not orphans & set(now.values())
    assert superseded <= reported(report)
    assert (1 if superseded else 0) == code, out

"""The whole stack, running: emulators in a thread of this process, functions hosts beside it."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from local.entra.directory import CONTOSO, DAEMON, WEB_APP
from local.stack import REPOSITORY, emulators, functions_host
from tests.emulated import BackgroundLoop
from tests.running import Client, Running, table_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from local.stack import FunctionsHost

# In addition to the example's settings, so that every refusal can happen.
SETTINGS = {"ENTRA_ALLOWED_CLIENT_IDS": f"{WEB_APP.client_id},{DAEMON.client_id}"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of one stack in one process, since starting a stack takes time."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        mode = item.callspec.params.get("running") if hasattr(item, "callspec") else None
        item.add_marker(pytest.mark.xdist_group(f"e2e-{mode}"))


@pytest.fixture(scope="session", params=["access_key", "managed_identity"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The stack, with access keys over HTTP and with managed identity over TLS."""
    background = BackgroundLoop()
    try:
        stack = background.enter(emulators(managed_identity=request.param == "managed_identity"))
        host = background.enter(functions_host(stack, SETTINGS))
        yield Running(stack, host, background)
    finally:
        background.close()


@pytest.fixture(autouse=True)
def no_faults(running: Running) -> None:
    """Start each test with services that work."""
    for emulator in (
        running.stack.entra,
        running.stack.acs,
        running.stack.tables,
        running.stack.blobs,
    ):
        emulator.faults.clear()


@pytest.fixture
async def app(running: Running) -> AsyncIterator[Client]:
    """An app that calls the functions."""
    async with aiohttp.ClientSession() as session:
        yield Client(session, running.host.url)


@pytest.fixture
def another_host(running: Running) -> Iterator[Callable[..., FunctionsHost]]:
    """Return a function that starts one more process with the functions, for this test."""
    with ExitStack() as stopping:

        def start(folder: Path = REPOSITORY, **settings: str) -> FunctionsHost:
            context = functions_host(running.stack, {**SETTINGS, **settings}, folder=folder)
            host = running.background.run(context.__aenter__())
            stopping.callback(lambda: running.background.run(context.__aexit__(None, None, None)))
            return host

        yield start


@pytest.fixture
async def app_at() -> AsyncIterator[Callable[[FunctionsHost], Client]]:
    """Return a function that makes an app calling another host."""
    async with aiohttp.ClientSession() as session:
        yield lambda host: Client(session, host.url)


@pytest.fixture
def rewrite_row(running: Running) -> Callable[..., Awaitable[None]]:
    """Return a function that changes the row of a person of Contoso."""

    def rewrite(object_id: str, changes: dict[str, Any]) -> None:
        row = {"PartitionKey": f"{CONTOSO.tenant_id}_{object_id[:2]}", "RowKey": object_id}
        with table_of(running, "IdentityMappings") as table:
            table.upsert_entity({**row, **changes})

    return lambda object_id, **changes: asyncio.to_thread(rewrite, object_id, changes)


@pytest.fixture
def remove_row(running: Running) -> Callable[[str], Awaitable[None]]:
    """Return a function that removes the row of a person of Contoso."""

    def remove(object_id: str) -> None:
        with table_of(running, "IdentityMappings") as table:
            table.delete_entity(f"{CONTOSO.tenant_id}_{object_id[:2]}", object_id)

    return lambda object_id: asyncio.to_thread(remove, object_id)


@pytest.fixture
def no_renewals_today(running: Running) -> None:
    """Forget how many identities were renewed today."""
    with table_of(running, "IdentityMappingsOrphans") as table:
        table.delete_entity("run", "renewals")


@pytest.fixture
def no_kept_keys(running: Running) -> None:
    """Forget the signing keys that processes have kept for those that start later."""
    with table_of(running, "IdentityMappingsOrphans") as table:
        for entity in table.query_entities("PartitionKey eq 'kept'"):
            table.delete_entity(entity["PartitionKey"], entity["RowKey"])


@pytest.fixture
def later(running: Running) -> Iterator[Callable[..., None]]:
    """Return a function that puts the tables' clock forward by a `timedelta` for the test."""

    def put_forward(**duration: float) -> None:
        ahead = timedelta(**duration)
        running.stack.tables.clock = lambda: datetime.now(UTC) + ahead

    yield put_forward
    running.stack.tables.clock = None


@pytest.fixture
def sweep(running: Running, app: Client) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Return a function that runs the sweeper, and returns what it reports."""

    async def run() -> dict[str, Any]:
        del running.host.output[:]
        assert 202 == (await app.post("/admin/functions/sweep_ledger", json={"input": ""})).status
        line = await running.host.printed('"event": "sweep_', seconds=60)
        report: dict[str, Any] = json.loads(line[line.index("{") :])
        return report

    return run

"""The whole stack, running: emulators in a thread of this process, functions hosts beside it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from azure.data.tables import TableClient
from multidict import CIMultiDict

from local.entra.directory import ADA, CONTOSO, DAEMON, FADI, WEB_APP
from local.stack import emulators, functions_host
from local.storage.azurite import ACCOUNT, ACCOUNT_KEY
from tests.emulated import BackgroundLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from local.stack import FunctionsHost, Stack

# In addition to the example's settings, so that every refusal can happen.
SETTINGS = {"ENTRA_ALLOWED_CLIENT_IDS": f"{WEB_APP.client_id},{DAEMON.client_id}"}
ROLE = "Mappings.Admin"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of one stack in one process, since starting a stack takes time."""
    for item in items:
        mode = item.callspec.params.get("running") if hasattr(item, "callspec") else None
        item.add_marker(pytest.mark.xdist_group(f"e2e-{mode}"))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str | None:
        return self.json.get("code") if self.text else None


@dataclass(frozen=True, slots=True)
class Running:
    """A stack with one functions host."""

    stack: Stack
    host: FunctionsHost
    background: BackgroundLoop

    def token_of_new_person(self, **claims: Any) -> str:
        """Return an access token of a new person of Contoso."""
        return self.stack.entra.issue_access_token(claims={"oid": str(uuid.uuid4()), **claims})

    def token_of_new_member(self, **claims: Any) -> str:
        """Return an access token of somebody whom Entra knows: a new user of Contoso."""
        new = replace(ADA, object_id=str(uuid.uuid4()), user_name=f"{uuid.uuid4()}@contoso.example")
        self.stack.entra.directory.users.append(new)
        return self.stack.entra.issue_access_token(new.user_name, claims=claims)

    def fresh_token(self, object_id: str, **claims: Any) -> str:
        """Return an access token from after everything that a test has done."""
        soon = int(time.time()) + 10  # Clocks may differ by a minute.
        return self.token_of_new_person(oid=object_id, iat=soon, nbf=soon, **claims)

    def token_of_administrator(self, **claims: Any) -> str:
        """Return an access token of a new administrator of Contoso."""
        return self.token_of_new_person(roles=[ROLE], **claims)

    def token_of_fabrikams_administrator(self) -> str:
        """Return an access token of a new administrator of Fabrikam."""
        claims = {"oid": str(uuid.uuid4()), "roles": [ROLE]}
        return self.stack.entra.issue_access_token(FADI.user_name, claims=claims)


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


class Client:
    """Calls one functions host as an app would."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def call(
        self, method: str, path: str, token: str | None = None, **options: Any
    ) -> Answer:
        headers = CIMultiDict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._session.request(
            method, self.url + path, headers=headers, **options
        ) as response:
            return Answer(response.status, response.headers, await response.text())

    async def get(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("GET", path, token, **options)

    async def post(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("POST", path, token, **options)

    async def put(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("PUT", path, token, **options)

    async def delete(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("DELETE", path, token, **options)


@pytest.fixture
async def app(running: Running) -> AsyncIterator[Client]:
    """An app that calls the functions."""
    async with aiohttp.ClientSession() as session:
        yield Client(session, running.host.url)


@pytest.fixture
def another_host(running: Running) -> Iterator[Callable[..., FunctionsHost]]:
    """Return a function that starts one more process with the functions, for this test."""
    with ExitStack() as stopping:

        def start(**settings: str) -> FunctionsHost:
            context = functions_host(running.stack, {**SETTINGS, **settings})
            host = running.background.run(context.__aenter__())
            stopping.callback(lambda: running.background.run(context.__aexit__(None, None, None)))
            return host

        yield start


@pytest.fixture
async def app_at() -> AsyncIterator[Callable[[FunctionsHost], Client]]:
    """Return a function that makes an app calling another host."""
    async with aiohttp.ClientSession() as session:
        yield lambda host: Client(session, host.url)


@contextmanager
def table_of(running: Running, name: str) -> Iterator[TableClient]:
    """Open a table of the stack, as an operator could."""
    endpoint = running.stack.tables.endpoint
    with TableClient.from_connection_string(
        f"DefaultEndpointsProtocol={endpoint.partition(':')[0]};AccountName={ACCOUNT};"
        f"AccountKey={ACCOUNT_KEY};TableEndpoint={endpoint};",
        name,
        connection_verify=running.stack.environment.get("SSL_CERT_FILE", True),
    ) as table:
        yield table


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

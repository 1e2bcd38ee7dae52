"""Fixtures for all tests: Entra's keys and tokens signed with them, ACS and tables to call."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.data.tables.aio import TableClient
from hypothesis import settings

from local.acs.emulator import AcsEmulator
from local.entra.directory import BROKER, CONTOSO, FABRIKAM
from local.entra.emulator import EntraEmulator
from local.entra.tokens import SigningKey as EntraKey
from local.entra.tokens import TokenIssuer
from local.serving.application import serve
from local.storage.azurite import azurite
from local.storage.proxy import TableProxy
from shared import audit
from shared.acs.identity import AcsIdentity
from shared.identifiers import Person
from shared.mappings.adoption import Adoption
from shared.mappings.endings import Endings
from shared.mappings.identities import Identities
from shared.mappings.ledger import Ledger
from shared.mappings.table import IdentityMappings
from shared.retry_budget import RetryBudget
from shared.services import acs_client
from shared.settings import EntraSettings
from shared.sweep import Sweeper
from tests.emulated import BackgroundLoop, Clock, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from local.storage.azurite import Endpoints

# No deadline, since machines may be slow, and no database, so that no files are left.
settings.register_profile("here", deadline=None, database=None)
settings.load_profile("here")

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "local.settings.example.json"


@pytest.fixture(scope="session")
def entra_keys() -> list[EntraKey]:
    """Keys that take a while to make, and that no test changes."""
    return [EntraKey.generate() for _ in range(2)]


@pytest.fixture
def issuer(entra_keys: list[EntraKey]) -> TokenIssuer:
    """An issuer that signs tokens as Entra does, at a made-up address."""
    issuer = TokenIssuer(keys=entra_keys)
    issuer.url = "https://login.microsoftonline.com"
    return issuer


@pytest.fixture
def issue_access_token(issuer: TokenIssuer) -> Callable[..., str]:
    """Return a function that signs a good access token of Ada's, with changes."""

    def issue(**changes: Any) -> str:
        return issuer.issue_access_token(claims=changes)

    return issue


@pytest.fixture
def entra_settings() -> EntraSettings:
    """Contoso and Fabrikam may use the broker."""
    return EntraSettings(
        client_id=BROKER.client_id,
        tenant_ids=frozenset({CONTOSO.tenant_id, FABRIKAM.tenant_id}),
        audiences=frozenset(BROKER.uris),
        required_scope="access_as_user",
        allowed_client_ids=frozenset(),
        admin_role="Mappings.Admin",
        operator_tenant_id=None,
        authority="https://login.microsoftonline.com",
    )


@pytest.fixture
def example() -> dict[str, str]:
    """Return the settings that a developer starts from."""
    values: dict[str, str] = json.loads(EXAMPLE.read_text("utf-8"))["Values"]
    return values


@pytest.fixture
def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


@pytest.fixture(scope="session")
def background_loop() -> Iterator[BackgroundLoop]:
    """An event loop for fixtures that last for the whole session."""
    loop = BackgroundLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def storage(background_loop: BackgroundLoop) -> Endpoints:
    """The URLs of this process's Azurite."""
    return background_loop.enter(azurite(blob_and_queue_ports=(0, 0)))


@pytest.fixture
async def tables(storage: Endpoints, clock: Clock) -> AsyncIterator[TableProxy]:
    """A proxy in front of Azurite, with the test's own faults and clock."""
    proxy = TableProxy(storage.table)
    proxy.clock = clock
    async with serve(proxy.application()) as url:
        proxy.url = url
        yield proxy


@pytest.fixture
async def store(storage: Endpoints, tables: TableProxy) -> AsyncIterator[Store]:
    """Two empty tables for this test only."""
    name = f"t{secrets.token_hex(8)}"
    direct = storage.connection_string
    proxied = direct.replace(storage.table, tables.endpoint)
    # As shared/services.py builds its clients.
    bounds: dict[str, Any] = {"retry_total": 0, "connection_timeout": 1, "read_timeout": 3}
    async with AsyncExitStack() as clients:
        rows, entries, mappings, ledger = [
            await clients.enter_async_context(
                TableClient.from_connection_string(connection, table, **bounds)
            )
            for connection in (direct, proxied)
            for table in (name, f"{name}Orphans")
        ]
        await rows.create_table()
        await entries.create_table()
        retries = RetryBudget()
        yield Store(
            IdentityMappings(mappings, retries),
            Ledger(ledger, retries),
            rows,
            entries,
            tables.faults,
            retries,
        )


@pytest.fixture
async def entra(entra_keys: list[EntraKey]) -> AsyncIterator[EntraEmulator]:
    """An Entra, and a Graph, for this test only."""
    emulator = EntraEmulator(keys=entra_keys)
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def acs() -> AsyncIterator[AcsEmulator]:
    """An ACS resource for this test only, opened by its key."""
    emulator = AcsEmulator(access_key=base64.b64encode(b"worthless").decode())
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def acs_identity(acs: AcsEmulator) -> AsyncIterator[AcsIdentity]:
    """The broker's client of the ACS resource."""
    key = AzureKeyCredential(base64.b64encode(b"worthless").decode())
    async with acs_client(acs.url, key) as client:
        yield AcsIdentity(client=client)


@pytest.fixture
def every_audit_line(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the audit lines of what went well, too."""
    caplog.set_level(logging.INFO, audit.logger.name)


@pytest.fixture
def clock() -> Clock:
    """A clock that tests set."""
    return Clock()


@pytest.fixture
def person() -> Person:
    """A new person of Contoso, without an identity."""
    return Person(CONTOSO.tenant_id, str(uuid.uuid4()))


@pytest.fixture
def identities(acs_identity: AcsIdentity, store: Store) -> Identities:
    """The identity protocol of one process."""
    return Identities(
        acs=acs_identity, mappings=store.mappings, ledger=store.ledger, poll_seconds=0.02
    )


@pytest.fixture
def endings(acs_identity: AcsIdentity, store: Store, identities: Identities) -> Endings:
    """How identities end, in the same process."""
    return Endings(
        acs=acs_identity, mappings=store.mappings, ledger=store.ledger, identities=identities
    )


@pytest.fixture
def sweeper(endings: Endings, store: Store) -> Sweeper:
    """The sweep timer's use case, without its pace."""
    return Sweeper(
        endings=endings, mappings=store.mappings, ledger=store.ledger, seconds_per_delete=0
    )


@pytest.fixture
def adoption(acs_identity: AcsIdentity, store: Store) -> Adoption:
    """How identities are brought along, in the same process."""
    return Adoption(acs=acs_identity, mappings=store.mappings, ledger=store.ledger)

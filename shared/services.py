"""The one place that builds the clients and puts the parts of the service together."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential
from azure.core.pipeline.transport import AioHttpTransport
from azure.data.tables.aio import TableClient
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

from shared import audit
from shared.acs.exchange import AcsExchange
from shared.acs.identity import AcsIdentity
from shared.broker import Broker
from shared.clock import utc_now
from shared.directory import Directory
from shared.entra.access_tokens import AccessTokenValidator
from shared.entra.client_assertions import ClientAssertions
from shared.entra.graph import Graph
from shared.entra.on_behalf_of import OnBehalfOf
from shared.entra.signing_keys import SigningKeys
from shared.errors import MisconfiguredError
from shared.exchange import Exchange
from shared.leavers import Leavers
from shared.mappings.adoption import Adoption
from shared.mappings.attempts import PAGE_SECONDS
from shared.mappings.backup import Backup
from shared.mappings.endings import Endings
from shared.mappings.identities import Identities
from shared.mappings.kept_documents import KeptDocuments
from shared.mappings.ledger import Ledger
from shared.mappings.table import IdentityMappings
from shared.prune import Pruner
from shared.retry_budget import RetryBudget
from shared.settings import Settings, SettingsError
from shared.sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from azure.core.credentials_async import AsyncTokenCredential
    from azure.storage.blob.aio import ContainerClient

    from shared.settings import BackupSettings, MappingsSettings

    Credential = Callable[[], AsyncTokenCredential]

# Retries are ours, in shared/mappings; the SDK's would sleep for as long as Retry-After says.
TABLE_BOUNDS: dict[str, Any] = {"retry_total": 0, "connection_timeout": 1, "read_timeout": 3}
# Nobody waits for the backup, and what it repeats does no harm: here the SDK may retry.
BACKUP_BOUNDS = TABLE_BOUNDS | {"read_timeout": PAGE_SECONDS, "retry_total": 3}
# One block at a time is kept in memory.
BLOB_BOUNDS: dict[str, Any] = {
    "retry_total": 3,
    "initial_backoff": 1,
    "increment_base": 2,
    "random_jitter_range": 1,
    "connection_timeout": 5,
    "read_timeout": 30,
    "max_block_size": 1024 * 1024,
}


@dataclass(frozen=True, slots=True)
class Services:
    """What the functions of one process call."""

    broker: Broker
    exchange: Exchange
    directory: Directory
    pruner: Pruner
    sweeper: Sweeper
    back_up: Callable[[], Awaitable[None]]


def build_services(env: Mapping[str, str]) -> Services:
    """Read the settings and build every client. The event loop must be running already.

    Raises:
        MisconfiguredError: the settings are not valid; the log names each problem.
    """
    settings = _settings(env)

    @functools.cache
    def credential() -> AsyncTokenCredential:
        return _credential(env, settings.managed_identity_client_id)

    rows, entries = _table_clients(settings.mappings, credential, TABLE_BOUNDS)
    retries = RetryBudget()  # One for both tables, which share an account.
    mappings, ledger = IdentityMappings(rows, retries), Ledger(entries, retries)
    key = settings.acs.access_key
    client = acs_client(settings.acs.endpoint, AzureKeyCredential(key) if key else credential())
    acs = AcsIdentity(client=client)
    session = aiohttp.ClientSession(auto_decompress=False)
    # Of its own, so that the signing keys never wait for a connection. Cookies of one person's
    # requests must not come along with those of another.
    for_people = aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
    keys = SigningKeys(
        session=session,
        authority=settings.entra.authority,
        keys_of=settings.entra.keys_of,
        documents=KeptDocuments(entries, retries),
    )
    identities = Identities(acs=acs, mappings=mappings, ledger=ledger)
    endings = Endings(acs=acs, mappings=mappings, ledger=ledger, identities=identities)
    broker = Broker(
        settings=settings.acs,
        validator=AccessTokenValidator(settings=settings.entra, keys=keys),
        identities=identities,
        endings=endings,
        acs=acs,
        mappings=mappings,
        keys=keys,
        policy=settings.policy,
    )
    exchange = Exchange(
        settings=settings,
        entra=_on_behalf_of(settings, for_people, credential),
        acs=AcsExchange(client=client, session=for_people, endpoint=settings.acs.endpoint),
        mappings=mappings,
    )
    directory = Directory(
        settings=settings.acs,
        acs=acs,
        mappings=mappings,
        ledger=ledger,
        identities=identities,
        endings=endings,
        adoption=Adoption(acs=acs, mappings=mappings, ledger=ledger),
    )
    pruner = Pruner(
        settings=settings.prune,
        endings=endings,
        mappings=mappings,
        ledger=ledger,
        leavers=_leavers(settings, session, credential),
    )
    sweeper = Sweeper(endings=endings, mappings=mappings, ledger=ledger)
    back_up = functools.partial(_back_up, settings, credential)
    return Services(broker, exchange, directory, pruner, sweeper, back_up)


def _settings(env: Mapping[str, str]) -> Settings:
    try:
        return Settings.from_env(env)
    except SettingsError as exc:
        # Each request gets here, as nothing was built. Its alert looks at a quarter of an hour.
        audit.record(
            "settings_invalid", {"reason": str(exc)}, level=logging.ERROR, seconds_between=60
        )
        raise MisconfiguredError(str(exc)) from exc


def _on_behalf_of(
    settings: Settings, session: aiohttp.ClientSession, credential: Credential
) -> OnBehalfOf:
    client_id, authority = settings.entra.client_id, settings.entra.authority
    secret, certificate = settings.exchanges.client_secret, settings.exchanges.client_certificate
    assertions = None
    if certificate is not None:
        assertions = ClientAssertions(certificate, client_id=client_id, authority=authority)

    async def client_credential(tenant_id: str) -> dict[str, Any]:
        if secret is not None:
            return {"client_secret": secret}
        if assertions is not None:
            return {"client_assertion_func": lambda: assertions.sign(tenant_id, now=utc_now())}
        # The managed identity's token is kept until it is about to expire.
        proof = await credential().get_token(f"{settings.entra.token_exchange_audience}/.default")
        return {"client_assertion_func": lambda: proof.token}

    return OnBehalfOf(
        authority=authority,
        client_id=client_id,
        client_credential=client_credential,
        transport=AioHttpTransport(session=session, session_owner=False),
    )


def _leavers(
    settings: Settings, session: aiohttp.ClientSession, credential: Credential
) -> Leavers | None:
    if settings.leavers is None:
        return None
    graph = Graph(
        session=session,
        credential=credential(),
        url=settings.entra.graph,
        audience=settings.entra.graph_audience,
    )
    return Leavers(settings=settings.leavers, graph=graph)


def acs_client(
    endpoint: str, credential: AzureKeyCredential | AsyncTokenCredential
) -> CommunicationIdentityClient:
    """Return the client of an ACS resource; its session is closed with it.

    It differs from the SDK's own session in that it opens as many connections as are needed. With
    aiohttp's hundred, a call would wait for another one's end, and that would count as ACS's time.
    How many calls there are at once is for the quota to decide.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=True,
    )
    transport = AioHttpTransport(session=session)
    return CommunicationIdentityClient(endpoint, credential, transport=transport)


def _table_clients(
    settings: MappingsSettings, credential: Credential, bounds: dict[str, Any]
) -> tuple[TableClient, TableClient]:
    """Return the clients of the table of mappings and of the ledger."""

    def client(table: str) -> TableClient:
        if settings.connection_string is not None:
            return TableClient.from_connection_string(settings.connection_string, table, **bounds)
        assert settings.endpoint is not None  # noqa: S101 - the settings have one of the two
        return TableClient(settings.endpoint, table, credential=credential(), **bounds)

    return client(settings.table), client(f"{settings.table}Orphans")


async def _back_up(settings: Settings, credential: Credential) -> None:
    """Write a backup, with clients that are closed afterwards, since the next run is a day away."""
    if settings.backup is None:
        audit.record("backup_off", {}, level=logging.WARNING)
        return
    mappings, ledger = _table_clients(settings.mappings, credential, BACKUP_BOUNDS)
    container = _container_client(settings.backup, credential)
    async with mappings, ledger, container:
        await Backup(mappings=mappings, ledger=ledger, container=container).run()


def _container_client(settings: BackupSettings, credential: Credential) -> ContainerClient:
    # Imported here, so that no cold start of a request waits for it.
    from azure.storage.blob.aio import ContainerClient  # noqa: PLC0415

    if settings.connection_string is not None:
        return ContainerClient.from_connection_string(
            settings.connection_string, settings.container, **BLOB_BOUNDS
        )
    assert settings.endpoint is not None  # noqa: S101 - the settings have one of the two
    return ContainerClient(
        settings.endpoint, settings.container, credential=credential(), **BLOB_BOUNDS
    )


def _credential(env: Mapping[str, str], client_id: str | None) -> AsyncTokenCredential:
    """Return the managed identity in Azure; elsewhere a service principal or a developer's sign-in.

    `DefaultAzureCredential` looks for both.
    """
    if "IDENTITY_ENDPOINT" in env:
        return ManagedIdentityCredential(client_id=client_id)
    return DefaultAzureCredential()

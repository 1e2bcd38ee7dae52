"""The one place that builds the clients and puts the parts of the service together."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential
from azure.data.tables.aio import TableClient
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

from shared import audit
from shared.acs.identity import AcsIdentity
from shared.broker import Broker
from shared.directory import Directory
from shared.entra.access_tokens import AccessTokenValidator
from shared.entra.signing_keys import SigningKeys
from shared.errors import MisconfiguredError
from shared.mappings.adoption import Adoption
from shared.mappings.endings import Endings
from shared.mappings.identities import Identities
from shared.mappings.ledger import Ledger
from shared.mappings.table import IdentityMappings
from shared.prune import Pruner
from shared.settings import Settings, SettingsError
from shared.sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure.core.credentials_async import AsyncTokenCredential

    from shared.settings import AcsSettings, MappingsSettings

    Credential = Callable[[], AsyncTokenCredential]

# Retries are ours, in shared/mappings; the SDK's would sleep for as long as Retry-After says.
TABLE_BOUNDS: dict[str, Any] = {"retry_total": 0, "connection_timeout": 1, "read_timeout": 3}


@dataclass(frozen=True, slots=True)
class Services:
    """What the functions of one process call."""

    broker: Broker
    directory: Directory
    pruner: Pruner
    sweeper: Sweeper


def build_services(env: Mapping[str, str]) -> Services:
    """Read the settings and build every client. The event loop must be running already.

    Raises:
        MisconfiguredError: the settings are not valid; the log names each problem.
    """
    settings = _settings(env)

    @functools.cache
    def credential() -> AsyncTokenCredential:
        return _credential(env, settings.managed_identity_client_id)

    tables = settings.mappings
    mappings = IdentityMappings(_table_client(tables, tables.table, credential))
    ledger = Ledger(_table_client(tables, f"{tables.table}Orphans", credential))
    acs = AcsIdentity(client=_acs_client(settings.acs, credential))
    keys = SigningKeys(
        session=aiohttp.ClientSession(auto_decompress=False),
        authority=settings.entra.authority,
        keys_of=settings.entra.keys_of,
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
    )
    sweeper = Sweeper(endings=endings, mappings=mappings, ledger=ledger)
    return Services(broker, directory, pruner, sweeper)


def _settings(env: Mapping[str, str]) -> Settings:
    try:
        return Settings.from_env(env)
    except SettingsError as exc:
        audit.record("settings_invalid", {"reason": str(exc)}, level=logging.ERROR)
        raise MisconfiguredError(str(exc)) from exc


def _acs_client(settings: AcsSettings, credential: Credential) -> CommunicationIdentityClient:
    key = settings.access_key
    return CommunicationIdentityClient(
        settings.endpoint, AzureKeyCredential(key) if key else credential()
    )


def _table_client(settings: MappingsSettings, table: str, credential: Credential) -> TableClient:
    if settings.connection_string is not None:
        return TableClient.from_connection_string(settings.connection_string, table, **TABLE_BOUNDS)
    assert settings.endpoint is not None  # noqa: S101 - the settings have one of the two
    return TableClient(settings.endpoint, table, credential=credential(), **TABLE_BOUNDS)


def _credential(env: Mapping[str, str], client_id: str | None) -> AsyncTokenCredential:
    """Return the managed identity in Azure; elsewhere a service principal or a developer's sign-in.

    `DefaultAzureCredential` looks for both.
    """
    if "IDENTITY_ENDPOINT" in env:
        return ManagedIdentityCredential(client_id=client_id)
    return DefaultAzureCredential()

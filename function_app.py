"""The functions: what is called, and the one place that puts the broker together."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import azure.functions as func
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential
from azure.data.tables.aio import TableClient
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

from shared import audit
from shared.acs.identity import AcsIdentity
from shared.broker import Broker, user_json
from shared.entra.access_tokens import AccessTokenValidator
from shared.entra.signing_keys import SigningKeys
from shared.errors import MisconfiguredError
from shared.http import (
    TokenRequest,
    answers_problems,
    bearer_token,
    json_document,
    json_response,
    refuse_input,
)
from shared.mappings.identities import Identities
from shared.mappings.table import IdentityMappings
from shared.prune import Pruner
from shared.settings import Settings, SettingsError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

# The SDKs log a line or more for each request they make.
logging.getLogger("azure").setLevel(logging.WARNING)
logger = logging.getLogger("broker")

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


@app.route(route="token")
@answers_problems("GET", "POST", event="token_issued")
async def token(req: func.HttpRequest) -> func.HttpResponse:
    """Exchange the caller's Entra access token for an ACS access token."""
    access_token = bearer_token(req.headers)
    caller = await broker().authenticate(access_token)
    issued = await broker().issue(caller, TokenRequest.parse(req))
    return json_response(issued.as_json())


@app.route(route="user")
@answers_problems("GET", "POST", event="user_read")
async def user(req: func.HttpRequest) -> func.HttpResponse:
    """Read the caller's ACS identity, or create it."""
    access_token = bearer_token(req.headers)
    caller = await broker().authenticate(access_token)
    refuse_input(req)
    if req.method == "POST":
        acs_id = await broker().create_user(caller)
    else:
        acs_id = await broker().find_user(caller)
    return json_response({"user": user_json(acs_id)})


@app.route(route="health")
@answers_problems("GET")
async def health(_req: func.HttpRequest) -> func.HttpResponse:
    """Say that the process can serve. Touches nothing."""
    return json_response({"status": "healthy"})


@app.route(route="health/ready")
@answers_problems("GET")
async def health_ready(_req: func.HttpRequest) -> func.HttpResponse:
    """Say whether tokens can be served: settings, signing keys, table."""
    await broker().check_ready()
    return json_response({"status": "ready"})


@app.route(route="openapi.json")
@answers_problems("GET")
async def openapi(_req: func.HttpRequest) -> func.HttpResponse:
    """Serve the contract."""
    return json_document(_contract())


@app.timer_trigger(arg_name="timer", schedule="%PRUNE_SCHEDULE%", run_on_startup=False)
async def prune_mappings(timer: func.TimerRequest) -> None:
    """Finish what was interrupted and remove identities that nobody uses."""
    if timer.past_due:
        logger.warning("prune_past_due")
    await pruner().run()


@functools.cache
def _contract() -> str:
    return Path(__file__).with_name("shared").joinpath("openapi.json").read_text("utf-8")


def broker() -> Broker:
    """Return the broker, put together on first use."""
    return _services()[0]


def pruner() -> Pruner:
    """Return the timer's use case, put together on first use."""
    return _services()[1]


@functools.cache
def _services() -> tuple[Broker, Pruner]:
    """Read the settings and build every client, once per process and inside its event loop.

    Raises:
        MisconfiguredError: the settings cannot be served from; the log names each problem.
    """
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as exc:
        audit.record("settings_invalid", {"reason": str(exc)}, level=logging.ERROR)
        raise MisconfiguredError(str(exc)) from exc
    mappings = IdentityMappings(
        mappings=_table(settings, settings.mappings.table),
        orphans=_table(settings, f"{settings.mappings.table}Orphans"),
    )
    key = settings.acs.access_key
    acs = AcsIdentity(
        client=CommunicationIdentityClient(
            settings.acs.endpoint,
            AzureKeyCredential(key) if key else _credential(settings.managed_identity_client_id),
        )
    )
    keys = SigningKeys(
        session=aiohttp.ClientSession(auto_decompress=False),
        authority=settings.entra.authority,
        keys_of=settings.entra.keys_of,
    )
    identities = Identities(acs=acs, mappings=mappings)
    broker = Broker(
        settings=settings.acs,
        validator=AccessTokenValidator(settings=settings.entra, keys=keys),
        identities=identities,
        acs=acs,
        mappings=mappings,
        keys=keys,
    )
    return broker, Pruner(settings=settings.prune, identities=identities, mappings=mappings)


def _table(settings: Settings, table: str) -> TableClient:
    # Retries are ours (shared/mappings/table.py); the SDK's would sleep for as long as Retry-After
    # says.
    bounds: dict[str, Any] = {"retry_total": 0, "connection_timeout": 1, "read_timeout": 3}
    connection_string, endpoint = settings.mappings.connection_string, settings.mappings.endpoint
    if connection_string is not None:
        return TableClient.from_connection_string(connection_string, table, **bounds)
    assert endpoint is not None  # noqa: S101 - the settings have one of the two
    credential = _credential(settings.managed_identity_client_id)
    return TableClient(endpoint, table, credential=credential, **bounds)


@functools.cache
def _credential(client_id: str | None) -> AsyncTokenCredential:
    """Return the managed identity in Azure; elsewhere a service principal or the developer."""
    if "IDENTITY_ENDPOINT" in os.environ:
        return ManagedIdentityCredential(client_id=client_id)
    return DefaultAzureCredential()

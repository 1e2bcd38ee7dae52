"""The use case of the exchanges: what is asked of whom, and what is not handed out."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential
from azure.core.pipeline.transport import AioHttpTransport

from local.acs.emulator import AcsEmulator
from local.entra.directory import ACS_CLIENTS, ADA, BROKER, CONTOSO, WEB_APP
from local.serving.application import serve
from shared.acs.exchange import AcsExchange
from shared.entra.access_tokens import Caller
from shared.entra.on_behalf_of import OnBehalfOf
from shared.errors import (
    InvalidRequestError,
    NotEnabledError,
    UnusableTokenError,
    UpstreamBadResponseError,
)
from shared.exchange import Exchange
from shared.identifiers import Person
from shared.settings import Settings
from tests.emulated import mapping_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from local.entra.emulator import EntraEmulator
    from tests.emulated import Clock, Store

KEY = base64.b64encode(b"worthless").decode()
CALLER = Caller(Person(CONTOSO.tenant_id, ADA.object_id), WEB_APP.client_id, 0)


@pytest.fixture
async def acs(entra: EntraEmulator) -> AsyncIterator[AcsEmulator]:
    """An ACS resource that the people of Contoso may use with the broker and the web app."""
    emulator = AcsEmulator(access_key=KEY, verify_bearer=entra.verify)
    emulator.entra_assignments[CONTOSO.tenant_id] = {
        "objectId": CONTOSO.tenant_id,
        "tenantId": CONTOSO.tenant_id,
        "principalType": "tenant",
        "clientIds": [BROKER.client_id, WEB_APP.client_id],
    }
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def exchange_of(
    entra: EntraEmulator, acs: AcsEmulator, store: Store, example: dict[str, str], clock: Clock
) -> AsyncIterator[Callable[..., Exchange]]:
    """Return a function that puts the use case together, with changes to the example settings."""
    async with (
        CommunicationIdentityClient(acs.url, AzureKeyCredential(KEY)) as client,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):

        async def secret(_tenant_id: str) -> dict[str, Any]:
            return {"client_secret": BROKER.secret}

        def make(authority: str = entra.url, **changes: str) -> Exchange:
            settings = Settings.from_env(example | changes)
            return Exchange(
                settings=replace(settings, entra=replace(settings.entra, authority=authority)),
                entra=OnBehalfOf(
                    authority=entra.url,
                    client_id=BROKER.client_id,
                    client_credential=secret,
                    transport=AioHttpTransport(session=session, session_owner=False),
                ),
                acs=AcsExchange(client=client, session=session, endpoint=acs.url),
                mappings=store.mappings,
                clock=clock,
            )

        yield make


async def test_off(exchange_of: Callable[..., Exchange], entra: EntraEmulator) -> None:
    """What is off asks nobody, whatever the caller sends."""
    exchange = exchange_of(ACS_EXCHANGES="")
    token = entra.issue_access_token(ADA.user_name)

    with pytest.raises(NotEnabledError):
        await exchange.for_entra_user(CALLER, token, None)
    with pytest.raises(NotEnabledError):
        await exchange.for_teams_user(CALLER, token, "not a token")
    assert 0 == entra.faults.count("token")


@pytest.mark.parametrize(
    ("authority", "acs_id"),
    [
        ("https://login.microsoftonline.com", f"8:orgid:{ADA.object_id}"),
        ("https://login.microsoftonline.us", f"8:gcch:{ADA.object_id}"),
    ],
)
async def test_clouds(
    exchange_of: Callable[..., Exchange], entra: EntraEmulator, authority: str, acs_id: str
) -> None:
    """The cloud is a part of a Teams user's id."""
    token = entra.issue_access_token(ADA.user_name)

    issued = await exchange_of(authority).for_teams_user(CALLER, token, None)

    assert {"microsoftTeamsUserId": ADA.object_id, "id": acs_id} == issued.user
    assert issued.token not in repr(issued)


async def test_teams_extension(
    exchange_of: Callable[..., Exchange], entra: EntraEmulator, acs: AcsEmulator
) -> None:
    """The same person, with an id of ACS's."""
    acs.teams_assignments[CONTOSO.tenant_id, ADA.object_id] = {"clientIds": [BROKER.client_id]}
    exchange = exchange_of(ACS_EXCHANGES="teams-extension")

    issued = await exchange.for_teams_user(CALLER, entra.issue_access_token(ADA.user_name), None)

    assert issued.user["communicationUserId"] == issued.user["id"]
    assert str(issued.user["id"]).startswith("8:acs:")


@pytest.mark.parametrize("seconds", [599, 601])
async def test_expires_too_soon(
    exchange_of: Callable[..., Exchange],
    entra: EntraEmulator,
    acs: AcsEmulator,
    clock: Clock,
    seconds: int,
) -> None:
    """A token with less than ten minutes left is not handed out."""
    expires = (clock() + timedelta(seconds=seconds)).isoformat()
    acs_id = f"8:acs:ac5ac5ac-0000-4000-8000-000000000001_wf_{ADA.object_id}"
    answer = {"identity": {"id": acs_id}, "accessToken": {"token": "x", "expiresOn": expires}}
    acs.faults.fail_next("exchange_entra", status=200, body=json.dumps(answer))
    call = exchange_of().for_entra_user(CALLER, entra.issue_access_token(ADA.user_name), None)

    if seconds < 600:
        with pytest.raises(UpstreamBadResponseError):
            await call
    else:
        assert expires == (await call).as_json()["expiresOn"]


@pytest.mark.parametrize("status", [400, 413, 422, 431])
async def test_refused_by_acs(
    exchange_of: Callable[..., Exchange], entra: EntraEmulator, acs: AcsEmulator, status: int
) -> None:
    """What ACS refuses because of the caller's own token is no failure of ours."""
    held = entra.issue_access_token(ADA.user_name, resource=ACS_CLIENTS, scopes=("VoIP",))
    acs.faults.fail_next("exchange_entra", status=status)

    with pytest.raises(InvalidRequestError, match=f"accessToken: ACS answered {status}"):
        await exchange_of().for_entra_user(CALLER, entra.issue_access_token(ADA.user_name), held)


async def test_held_token(
    exchange_of: Callable[..., Exchange], entra: EntraEmulator, acs: AcsEmulator
) -> None:
    """Whether a token that ACS does not take is the caller's fault depends on who got it."""
    token = entra.issue_access_token(ADA.user_name)
    held = entra.issue_access_token(ADA.user_name, resource=ACS_CLIENTS, scopes=("VoIP",))
    exchange = exchange_of()
    good = await exchange.for_entra_user(CALLER, token, held)
    acs.faults.fail_next("exchange_entra", status=401, times=2)

    with pytest.raises(InvalidRequestError, match="accessToken: ACS answered 401 Denied"):
        await exchange.for_entra_user(CALLER, token, held)

    assert 0 == entra.faults.count("token")
    assert {"communicationUserId", "id"} == good.user.keys()


async def test_held_since_before_the_revocation(
    exchange_of: Callable[..., Exchange],
    entra: EntraEmulator,
    acs: AcsEmulator,
    store: Store,
    clock: Clock,
) -> None:
    """Who has signed out everywhere needs a new token for ACS, and not only one for the broker."""
    token = entra.issue_access_token(ADA.user_name)
    held = entra.issue_access_token(ADA.user_name, resource=ACS_CLIENTS, scopes=("VoIP",))
    later = clock.now + timedelta(seconds=60)
    mapping = mapping_of(CALLER.person, clock.now, revoked_before=later)
    await store.put_all([mapping])
    caller = replace(CALLER, issued_at=math.ceil(later.timestamp()))

    with pytest.raises(UnusableTokenError, match="accessToken: issued before the revocation"):
        await exchange_of().for_entra_user(caller, token, held)

    assert 0 == acs.faults.count("exchange_entra")

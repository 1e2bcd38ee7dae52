from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ManagedIdentityCredential
from azure.identity.aio import ManagedIdentityCredential as AsyncManagedIdentityCredential

from local.entra.directory import (
    ADA,
    CONTOSO,
    SYSTEM_ASSIGNED_IDENTITY,
    TOKEN_EXCHANGE,
    USER_ASSIGNED_IDENTITY,
)
from local.entra.managed_identity import ManagedIdentityEmulator
from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from local.entra.emulator import EntraEmulator

SECRET = "the secret of one process"
ACS = "https://communication.azure.com//.default"


@pytest.fixture
async def identity(
    entra: EntraEmulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ManagedIdentityEmulator]:
    """A managed identity endpoint, which the environment names as on App Service."""
    emulator = ManagedIdentityEmulator(entra, SECRET)
    async with serve(emulator.application()) as url:
        emulator.url = url
        monkeypatch.setenv("IDENTITY_ENDPOINT", emulator.endpoint)
        monkeypatch.setenv("IDENTITY_HEADER", SECRET)
        yield emulator


def get_token(scope: str, **options: Any) -> tuple[str, int]:
    """Return a token and its expiry, from the synchronous client."""
    with ManagedIdentityCredential(**options) as credential:
        token = credential.get_token(scope)
    return token.token, token.expires_on


async def get_token_async(scope: str, **options: Any) -> tuple[str, int]:
    """Return a token and its expiry, from the asynchronous client."""
    async with AsyncManagedIdentityCredential(**options) as credential:
        token = await credential.get_token(scope)
    return token.token, token.expires_on


@pytest.mark.usefixtures("identity")
class TestClients:
    """Microsoft's own clients, unchanged."""

    @pytest.mark.parametrize(
        ("options", "principal"),
        [
            ({}, SYSTEM_ASSIGNED_IDENTITY),
            ({"client_id": USER_ASSIGNED_IDENTITY.client_id}, USER_ASSIGNED_IDENTITY),
            (
                {"identity_config": {"object_id": USER_ASSIGNED_IDENTITY.principal_id}},
                USER_ASSIGNED_IDENTITY,
            ),
            (
                {"identity_config": {"mi_res_id": USER_ASSIGNED_IDENTITY.resource_id}},
                USER_ASSIGNED_IDENTITY,
            ),
        ],
    )
    async def test_token(self, entra: EntraEmulator, options: Any, principal: Any) -> None:
        """Both credentials get an app-only token of Contoso's for the requested resource."""
        if "mi_res_id" in options.get("identity_config", {}):
            # The synchronous credential has another name for it.
            both = [await get_token_async(ACS, **options)]
            options = {"identity_config": {"resource_id": principal.resource_id}}
        else:
            both = [await get_token_async(ACS, **options)]
        both.append(await asyncio.to_thread(get_token, ACS, **options))

        for token, expires_on in both:
            claims = entra.verify(token)
            assert {
                "appid": principal.client_id,
                "aud": "https://communication.azure.com/",
                "idtyp": "app",
                "iss": f"https://sts.windows.net/{CONTOSO.tenant_id}/",
                "oid": principal.principal_id,
                "tid": CONTOSO.tenant_id,
                "xms_mirid": principal.resource_id,
            }.items() <= claims.items()
            assert "scp" not in claims
            assert expires_on == pytest.approx(claims["exp"], abs=2)
            assert 86000 < expires_on - time.time() <= 86400

    async def test_federation(self, entra: EntraEmulator) -> None:
        """The token that replaces the broker's secret names the managed identity."""
        options = {"client_id": USER_ASSIGNED_IDENTITY.client_id}
        scope = "api://AzureADTokenExchange/.default"
        token, _ = await asyncio.to_thread(get_token, scope, **options)

        claims = entra.verify(token)
        assert (TOKEN_EXCHANGE.client_id, USER_ASSIGNED_IDENTITY.principal_id) == (
            claims["aud"],
            claims["sub"],
        )
        assert f"{entra.url}/{CONTOSO.tenant_id}/v2.0" == claims["iss"]

    async def test_unknown_identity(self) -> None:
        """An identity that the app does not have is an authentication error."""
        options = {"client_id": ADA.object_id}
        with pytest.raises(ClientAuthenticationError, match="No User Assigned"):
            await get_token_async(ACS, **options)
        with pytest.raises(ClientAuthenticationError, match="No User Assigned"):
            await asyncio.to_thread(get_token, ACS, **options)

    async def test_outage(self, identity: ManagedIdentityEmulator) -> None:
        """A fault that goes away is retried."""
        identity.faults.fail_next("token", status=500)
        token, _ = await get_token_async(ACS, retry_backoff_factor=0)

        assert token
        assert 2 == identity.faults.count("token")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({}, 200, id="valid"),
        pytest.param({"secret": "wrong"}, 401, id="wrong secret"),
        pytest.param({"secret": ""}, 401, id="no secret"),
        pytest.param({"api-version": "2017-09-01"}, 400, id="old version"),
        pytest.param({"resource": ""}, 400, id="no resource"),
        pytest.param({"resource": "https://nothing.example"}, 400, id="unknown resource"),
        pytest.param({"client_id": ADA.object_id}, 400, id="unknown identity"),
    ],
)
async def test_answer(
    http: aiohttp.ClientSession,
    identity: ManagedIdentityEmulator,
    *,
    changes: dict[str, str],
    status: int,
) -> None:
    """The answer, good or bad, is App Service's."""
    asked = {
        "secret": SECRET,
        "api-version": "2019-08-01",
        "resource": "https://storage.azure.com",
        **changes,
    }
    headers = {"X-IDENTITY-HEADER": asked.pop("secret")}
    async with http.get(identity.endpoint, params=asked, headers=headers) as response:
        answer = await response.json()

    assert status == response.status
    if status == 200:
        assert {
            "client_id": SYSTEM_ASSIGNED_IDENTITY.client_id,
            "resource": "https://storage.azure.com",
            "token_type": "Bearer",
        }.items() <= answer.items()
        assert answer["expires_on"].isdecimal()
    else:
        assert {"statusCode", "message", "correlationId"} == answer.keys()

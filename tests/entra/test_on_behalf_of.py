"""Entra tokens on behalf of a caller, through the real SDK, from the local Entra."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ManagedIdentityCredential
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from local.entra.directory import (
    ACS_CLIENTS,
    ADA,
    BROKER,
    CONTOSO,
    FABRIKAM,
    FADI,
    USER_ASSIGNED_IDENTITY,
)
from local.entra.emulator import EntraEmulator
from local.entra.managed_identity import ManagedIdentityEmulator
from local.entra.objects import FederatedCredential
from local.entra.tokens import base64url
from local.serving.application import serve
from local.serving.certificates import Certificates
from shared.entra.client_assertions import ClientAssertions
from shared.entra.on_behalf_of import OnBehalfOf
from shared.errors import (
    BrokerError,
    ConsentRequiredError,
    InvalidTokenError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamUnavailableError,
)
from tests.test_certificates import GOOD, RSA_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from local.entra.tokens import SigningKey as EntraKey

SCOPES = ("https://communication.azure.com/clients/VoIP",)
PROOF = "api://AzureADTokenExchange/.default"
SECRET = {"client_secret": BROKER.secret}


@pytest.fixture
async def on_behalf_of_at() -> AsyncIterator[Callable[..., OnBehalfOf]]:
    """Return a function that makes a client for an address, with a way to prove itself."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        def make(url: str, proof: Any = None, **options: Any) -> OnBehalfOf:
            async def secret(_tenant_id: str) -> dict[str, Any]:
                return SECRET

            return OnBehalfOf(
                authority=url,
                client_id=BROKER.client_id,
                client_credential=proof or secret,
                transport=AioHttpTransport(session=session, session_owner=False),
                **options,
            )

        yield make


@pytest.fixture
def on_behalf_of(entra: EntraEmulator, on_behalf_of_at: Callable[..., OnBehalfOf]) -> OnBehalfOf:
    """A client that proves itself with the secret of the broker's registration."""
    return on_behalf_of_at(entra.url)


async def token_for(entra: EntraEmulator, client: OnBehalfOf, user: Any = ADA) -> str:
    """Return a token on behalf of a user."""
    assertion = entra.issue_access_token(user.user_name)
    return await client.token(assertion, tenant_id=user.tenant.tenant_id, scopes=SCOPES)


async def refused(entra: EntraEmulator, client: OnBehalfOf) -> BrokerError:
    """Return the error that a request ends in."""
    with pytest.raises(BrokerError) as caught:
        await token_for(entra, client)
    return caught.value


class TestToken:
    """What Entra issues."""

    @pytest.mark.parametrize("user", [ADA, FADI], ids=["Contoso", "Fabrikam"])
    async def test_for_acs(self, entra: EntraEmulator, on_behalf_of: OnBehalfOf, user: Any) -> None:
        """A token for ACS of the same person, in the person's tenant, issued to the broker."""
        token = await token_for(entra, on_behalf_of, user)

        claims = entra.verify(token)
        assert (user.object_id, user.tenant.tenant_id) == (claims["oid"], claims["tid"])
        assert BROKER.client_id == claims["appid"]
        assert ACS_CLIENTS.uris[0] == claims["aud"]
        assert set(ACS_CLIENTS.scopes) == set(claims["scp"].split()), "all that were consented to"

    async def test_each_time(self, entra: EntraEmulator, on_behalf_of: OnBehalfOf) -> None:
        """Nothing is kept: Entra is asked for each, even with the same assertion."""
        assertion = entra.issue_access_token(ADA.user_name)
        tokens = {
            await on_behalf_of.token(assertion, tenant_id=CONTOSO.tenant_id, scopes=SCOPES)
            for _ in range(3)
        }

        assert (3, 3) == (len(tokens), entra.faults.count("token"))

    async def test_other_tenant(self, entra: EntraEmulator, on_behalf_of: OnBehalfOf) -> None:
        """The tenant is a part of the request, not a guess of the SDK's."""
        assertion = entra.issue_access_token(ADA.user_name)

        with pytest.raises(InvalidTokenError):
            await on_behalf_of.token(assertion, tenant_id=FABRIKAM.tenant_id, scopes=SCOPES)


class TestProofs:
    """How the broker's registration proves itself."""

    @pytest.mark.parametrize(
        ("trusted", "error"),
        [
            pytest.param(USER_ASSIGNED_IDENTITY.principal_id, None, id="trusted"),
            pytest.param("somebody else", UpstreamAuthError, id="not trusted"),
        ],
    )
    async def test_managed_identity(
        self,
        entra: EntraEmulator,
        on_behalf_of_at: Callable[..., OnBehalfOf],
        monkeypatch: pytest.MonkeyPatch,
        trusted: str,
        error: type[BrokerError] | None,
    ) -> None:
        """With a token of the managed identity that the registration trusts, fetched once."""
        trusts = (FederatedCredential(name="managed-identity", subject=trusted),)
        entra.directory.apps[BROKER.client_id] = replace(BROKER, trusts=trusts)
        emulator = ManagedIdentityEmulator(entra, "its secret")
        async with serve(emulator.application()) as url:
            emulator.url = url
            monkeypatch.setenv("IDENTITY_ENDPOINT", emulator.endpoint)
            monkeypatch.setenv("IDENTITY_HEADER", "its secret")
            async with ManagedIdentityCredential(
                client_id=USER_ASSIGNED_IDENTITY.client_id
            ) as credential:

                async def proof(_tenant_id: str) -> dict[str, Any]:
                    token = await credential.get_token(PROOF)
                    return {"client_assertion_func": lambda: token.token}

                client = on_behalf_of_at(entra.url, proof)
                if error is not None:
                    assert error is type(await refused(entra, client))
                    return
                await token_for(entra, client)
                assert ADA.object_id == entra.verify(await token_for(entra, client))["oid"]
            assert 1 == emulator.faults.count("token")

    async def test_no_managed_identity(
        self,
        entra: EntraEmulator,
        on_behalf_of_at: Callable[..., OnBehalfOf],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """An identity that is not there is the broker's fault, and Entra is not asked."""
        emulator = ManagedIdentityEmulator(entra, "its secret")
        async with serve(emulator.application()) as url:
            emulator.url = url
            monkeypatch.setenv("IDENTITY_ENDPOINT", emulator.endpoint)
            monkeypatch.setenv("IDENTITY_HEADER", "its secret")
            async with ManagedIdentityCredential(client_id=BROKER.client_id) as credential:

                async def proof(_tenant_id: str) -> dict[str, Any]:
                    token = await credential.get_token(PROOF)
                    return {"client_assertion_func": lambda: token.token}

                error = await refused(entra, on_behalf_of_at(entra.url, proof))

        assert UpstreamAuthError is type(error)
        assert str(error).startswith("managed identity: ")
        assert 0 == entra.faults.count("token")

    async def test_certificate(
        self, entra: EntraEmulator, on_behalf_of_at: Callable[..., OnBehalfOf]
    ) -> None:
        """With an assertion about itself that the certificate's key has signed."""
        forms: list[dict[str, Any]] = []

        async def answer(request: web.Request) -> web.Response:
            forms.append(dict(await request.post()))
            issued = entra.issue_access_token(resource=ACS_CLIENTS)
            return web.json_response({"access_token": issued, "expires_in": 3600})

        app = web.Application()
        app.router.add_post("/{tenant}/oauth2/v2.0/token", answer)
        async with serve(app) as url:
            assertions = ClientAssertions(GOOD.encode(), client_id=BROKER.client_id, authority=url)

            async def proof(tenant_id: str) -> dict[str, Any]:
                signed = assertions.sign(tenant_id, now=datetime.now(UTC))
                return {"client_assertion_func": lambda: signed}

            await token_for(entra, on_behalf_of_at(url, proof))
            await token_for(entra, on_behalf_of_at(url, proof))

        assertion, other = (form["client_assertion"] for form in forms)
        claims = jwt.decode(
            assertion,
            RSA_KEY.public_key(),
            algorithms=["PS256"],
            audience=f"{url}/{CONTOSO.tenant_id}/oauth2/v2.0/token",
            options={"require": ["exp", "nbf", "iat", "jti"]},
        )
        assert claims["iss"] == claims["sub"] == forms[0]["client_id"] == BROKER.client_id
        assert 600 == claims["exp"] - claims["nbf"]
        assert other != assertion
        certificate = x509.load_pem_x509_certificate(GOOD.encode())
        thumbprint = base64url(certificate.fingerprint(hashes.SHA256()))
        expected = {"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}
        assert expected == jwt.get_unverified_header(assertion)
        assert forms[0]["client_assertion_type"].endswith("client-assertion-type:jwt-bearer")

    async def test_wrong_secret(
        self, entra: EntraEmulator, on_behalf_of_at: Callable[..., OnBehalfOf]
    ) -> None:
        """A secret that Entra does not take is the broker's fault."""

        async def proof(_tenant_id: str) -> dict[str, Any]:
            return {"client_secret": "worthless and wrong"}

        error = await refused(entra, on_behalf_of_at(entra.url, proof))

        assert UpstreamAuthError is type(error)
        assert "Entra answered 401 invalid_client AADSTS7000215" == str(error)


class TestAnswers:
    """Entra's answers, as the SDK never sees them."""

    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            ({"status": 429}, UpstreamThrottledError),
            ({"status": 500}, UpstreamUnavailableError),
            (
                {"status": 503, "body": "<html>", "content_type": "text/html"},
                UpstreamUnavailableError,
            ),
            (
                {"status": 400, "body": "<html>", "content_type": "text/html"},
                UpstreamBadResponseError,
            ),
            ({"status": 400, "body": "{}"}, UpstreamBadResponseError),
            ({"status": 302, "headers": {"Location": "/"}, "body": ""}, UpstreamBadResponseError),
            ({"status": 200, "body": "{}"}, UpstreamBadResponseError),
            ({"status": 200, "body": "[]"}, UpstreamBadResponseError),
            ({"status": 200, "body": "{" * 100_000}, UpstreamBadResponseError),
            ({"status": 200, "body": " " * 70_000 + "{}"}, UpstreamBadResponseError),
            ({"status": 200, "body": '{"access_token": "a.b.c"}'}, UpstreamBadResponseError),
            (
                {"status": 200, "body": '{"access_token": 5, "expires_in": 3600}'},
                UpstreamBadResponseError,
            ),
            (
                {"status": 200, "body": '{"access_token": "a", "expires_in": "soon"}'},
                UpstreamBadResponseError,
            ),
            (
                {
                    "status": 200,
                    "body": '{"access_token": "a", "expires_in": 3600}',
                    "content_type": "text/plain",
                },
                UpstreamBadResponseError,
            ),
            ({"status": 200, "body": '{"error": "invalid_grant"}'}, InvalidTokenError),
            ({"headers": {"Content-Encoding": "gzip"}, "status": 200, "body": "{}"}, BrokerError),
            ({"truncate": 20}, UpstreamUnavailableError),
            ({"reset": True}, UpstreamUnavailableError),
        ],
        ids=lambda value: str(value)[:70] if isinstance(value, dict) else None,
    )
    async def test_fault(
        self,
        entra: EntraEmulator,
        on_behalf_of: OnBehalfOf,
        fault: dict[str, Any],
        expected: type[BrokerError],
    ) -> None:
        """Each becomes one of ours, after one request."""
        entra.faults.fail_next("token", **fault)

        error = await refused(entra, on_behalf_of)

        assert isinstance(error, expected)
        assert 1 == entra.faults.count("token")

    @pytest.mark.parametrize("header", ["7", "Wed, 21 Oct 2026 07:28:00 GMT"])
    async def test_never_sleeps(
        self, entra: EntraEmulator, on_behalf_of: OnBehalfOf, header: str
    ) -> None:
        """The SDK would wait for as long as Retry-After says; here the caller is told."""
        entra.faults.fail_next("token", status=503, headers={"Retry-After": header})
        started = time.monotonic()

        error = await refused(entra, on_behalf_of)

        assert time.monotonic() - started < 1
        assert (7 if header == "7" else UpstreamUnavailableError.retry_after) == error.retry_after

    async def test_slow(
        self, entra: EntraEmulator, on_behalf_of_at: Callable[..., OnBehalfOf]
    ) -> None:
        """The time for the whole is limited, not only that between two bytes."""
        entra.faults.fail_next("token", drip=0.05)

        error = await refused(entra, on_behalf_of_at(entra.url, seconds=0.3))

        assert UpstreamUnavailableError is type(error)

    async def test_nobody_there(
        self, entra: EntraEmulator, on_behalf_of_at: Callable[..., OnBehalfOf]
    ) -> None:
        """A host that cannot be reached is not the caller's fault."""
        error = await refused(entra, on_behalf_of_at("http://127.0.0.1:1"))

        assert UpstreamUnavailableError is type(error)

    async def test_tls(
        self,
        entra_keys: list[EntraKey],
        on_behalf_of_at: Callable[..., OnBehalfOf],
        tmp_path: Path,
    ) -> None:
        """A certificate that is not trusted ends it before anything secret is sent."""
        emulator = EntraEmulator(keys=entra_keys)
        tls = Certificates(tmp_path).server_context()
        async with serve(emulator.application(), tls=tls) as url:
            emulator.url = url
            error = await refused(emulator, on_behalf_of_at(url))

        assert UpstreamUnavailableError is type(error)
        assert 0 == emulator.faults.count("token")


async def test_nothing_secret_is_logged(
    entra: EntraEmulator, on_behalf_of: OnBehalfOf, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, the SDKs log no token, no secret and no name of a person."""
    caplog.set_level(logging.DEBUG)
    issued = await token_for(entra, on_behalf_of)
    entra.faults.fail_next(
        "token",
        status=400,
        body='{"error": "invalid_grant", "error_codes": [65001],'
        ' "error_description": "AADSTS65001: ada@contoso.example has not consented."}',
    )
    with pytest.raises(ConsentRequiredError):
        await token_for(entra, on_behalf_of)

    assert "azure" in {record.name.partition(".")[0] for record in caplog.records}
    logged = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    for secret in (issued, str(BROKER.secret), "ada@contoso.example"):
        assert secret not in logged
    assert not re.search(r"eyJ[\w-]+\.eyJ", logged), "a JWT"

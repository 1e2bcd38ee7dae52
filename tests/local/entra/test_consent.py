"""Consent, second factors and devices: what the directory wants of a person, and who decides."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import msal  # type: ignore[import-untyped] # It publishes no types.
import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import DeviceCodeCredential
from azure.identity.aio import OnBehalfOfCredential
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from local.entra.directory import (
    ACS,
    ACS_CLIENTS,
    ADA,
    AZURE_CLI,
    BROKER,
    CONTOSO,
    DEPLOYER,
    DESKTOP_APP,
    FABRIKAM,
    FADI,
    FARAH,
    GRACE,
    GRAPH,
    WEB_APP,
)
from local.entra.emulator import EntraEmulator
from local.entra.state import untouched
from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    import aiohttp

    from local.entra.objects import User
    from local.entra.tokens import SigningKey
    from local.serving.certificates import Certificates

REDIRECT_URI = "http://localhost:5173/"
SCOPE = f"{BROKER.uris[0]}/access_as_user"
VOIP = "https://communication.azure.com/clients/VoIP"


@pytest.fixture
async def new_entra(
    certificates: Certificates, entra_keys: list[SigningKey]
) -> AsyncIterator[EntraEmulator]:
    """An Entra where the broker is registered and installed, without consent."""
    directory = untouched()
    directory.apps[BROKER.client_id] = BROKER
    directory.install(BROKER, CONTOSO)
    directory.install(ACS_CLIENTS, CONTOSO, FABRIKAM)
    emulator = EntraEmulator(directory, keys=entra_keys)
    async with serve(emulator.application(), tls=certificates.server_context()) as url:
        emulator.url = url
        yield emulator


class App:
    """The web app in a browser."""

    def __init__(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        self._http = http
        self._url = f"{entra.url}/organizations/oauth2/v2.0"
        self._verifier = secrets.token_urlsafe(48)

    async def authorize(
        self, user: User | None, scope: str = SCOPE, *, consent: str = "", **params: str
    ) -> dict[str, str] | str:
        """Return what comes back to the app, or the page."""
        digest = hashlib.sha256(self._verifier.encode()).digest()
        asked = {
            "client_id": WEB_APP.client_id,
            "response_type": "code",
            "redirect_uri": REDIRECT_URI,
            "scope": f"openid offline_access {scope}",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            **params,
        }
        chosen = {"account": user.object_id} if user else {}
        form = chosen | ({"consent": consent} if consent else {})
        url = f"{self._url}/authorize"
        async with self._http.post(url, params=asked, data=form, allow_redirects=False) as response:
            if response.status == 200:
                return await response.text()
            query = parse_qs(urlsplit(response.headers["Location"]).query)
            return {name: value for name, [value] in query.items()}

    async def redeem(self, **form: str) -> Any:
        """Return the token endpoint's answer."""
        form = {"client_id": WEB_APP.client_id, "redirect_uri": REDIRECT_URI, **form}
        headers = {"Origin": "http://localhost:5173"}
        async with self._http.post(f"{self._url}/token", data=form, headers=headers) as response:
            return await response.json()

    async def sign_in(self, user: User, scope: str = SCOPE, **params: str) -> Any:
        """Return the tokens of somebody who signs in."""
        back = await self.authorize(user, scope, **params)
        assert isinstance(back, dict), back
        assert "code" in back, back
        kept = {name: params[name] for name in ("claims",) if name in params}
        return await self.redeem(
            grant_type="authorization_code",
            code=back["code"],
            code_verifier=self._verifier,
            **kept,
        )


@pytest.fixture
def app(http: aiohttp.ClientSession, entra: EntraEmulator) -> App:
    """The web app, to which everybody has consented."""
    return App(http, entra)


@pytest.fixture
def new_app(http: aiohttp.ClientSession, new_entra: EntraEmulator) -> App:
    """The web app, to which nobody has consented."""
    return App(http, new_entra)


@pytest.fixture
def act(certificates: Certificates) -> Callable[..., Any]:
    """Return a function that acts for a user as the broker, with azure-identity."""

    async def act(entra: EntraEmulator, assertion: str, scope: str = VOIP) -> Mapping[str, Any]:
        async with OnBehalfOfCredential(
            CONTOSO.tenant_id,
            BROKER.client_id,
            client_secret=BROKER.secret,
            user_assertion=assertion,
            authority=entra.url,
            disable_instance_discovery=True,
            connection_verify=str(certificates.authority_file),
        ) as credential:
            return entra.verify((await credential.get_token(scope)).token)

    return act


def certificate_of(key: rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    """Return a certificate of a key in DER, and both in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The broker, worthless")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.DER), private + certificate.public_bytes(Encoding.PEM)


def refusal(caught: pytest.ExceptionInfo[ClientAuthenticationError]) -> dict[str, Any]:
    """Return Entra's own answer, as azure-identity keeps it."""
    assert caught.value.response is not None
    answer: dict[str, Any] = json.loads(caught.value.response.text())
    return answer


class TestConsent:
    """A person's own consent."""

    async def test_asks_once(self, new_entra: EntraEmulator, new_app: App) -> None:
        """The page lists what the app wants; who accepts is not asked again."""
        page = await new_app.authorize(ADA)
        assert isinstance(page, str)
        assert "Token broker: access_as_user" in page
        assert ADA.object_id in page
        silent = await new_app.authorize(None, prompt="none")
        assert "login_required" == silent["error"]  # type: ignore[index]

        tokens = await new_app.sign_in(ADA, consent="accept")
        assert "access_as_user" == new_entra.verify(tokens["access_token"])["scp"]
        assert await new_app.sign_in(ADA)
        assert "Accept" in await new_app.authorize(ADA, prompt="consent")
        assert "Accept" in await new_app.authorize(GRACE)

    async def test_declined(self, new_app: App) -> None:
        """Who declines goes back with Entra's error."""
        back = await new_app.authorize(ADA, consent="decline")
        assert isinstance(back, dict)
        assert "access_denied" == back["error"]
        assert back["error_description"].startswith("AADSTS65004: ")

    async def test_silent(self, new_app: App) -> None:
        """Without a page, and for a refresh token, missing consent is an error."""
        tokens = await new_app.sign_in(ADA, consent="accept")
        back = await new_app.authorize(None, VOIP, prompt="none")
        assert isinstance(back, dict)
        assert "interaction_required" == back["error"]
        assert back["error_description"].startswith("AADSTS65001: ")

        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        problem = await new_app.redeem(**form, scope=VOIP)
        assert ("invalid_grant", "consent_required", [65001]) == (
            problem["error"],
            problem["suberror"],
            problem["error_codes"],
        )

    async def test_administrators_only(self, new_entra: EntraEmulator, new_app: App) -> None:
        """Some permissions only an administrator can consent to."""
        scope = f"{GRAPH.uris[0]}/Directory.Read.All"
        page = await new_app.authorize(ADA, scope)
        assert "Need admin approval" in page
        assert "Accept" not in page
        assert "Need admin approval" in await new_app.authorize(ADA, scope, consent="accept")

        tokens = await new_app.sign_in(GRACE, scope, consent="accept")
        assert "Directory.Read.All" == new_entra.verify(tokens["access_token"])["scp"]

    async def test_no_service_principal(self, new_app: App) -> None:
        """A tenant without the resource cannot be asked."""
        back = await new_app.authorize(FADI, "https://auth.msft.communication.azure.com/x")
        assert "650053" in back["error_description"]  # type: ignore[index]
        scope = "https://auth.msft.communication.azure.com/Teams.ManageCalls"
        back = await new_app.authorize(FADI, scope)
        assert isinstance(back, dict)
        assert "invalid_client" == back["error"]
        assert back["error_description"].startswith("AADSTS650052: ")

    async def test_microsofts_own(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Nobody can consent for Azure CLI's client, which has no permission at ACS."""
        flow = f"{entra.url}/{CONTOSO.tenant_id}/oauth2/v2.0"
        scope = {"client_id": AZURE_CLI.client_id, "scope": f"{ACS.uris[0]}/.default"}
        async with http.post(f"{flow}/devicecode", data=scope) as response:
            device = await response.json()
        form = {"user_code": device["user_code"], "account": GRACE.object_id}
        async with http.post(device["verification_uri"], data=form) as response:
            assert "AADSTS65002" in await response.text()


class TestAdminConsent:
    """An administrator's consent for everybody."""

    PARAMS: ClassVar = {"client_id": BROKER.client_id, "redirect_uri": REDIRECT_URI, "state": "1"}

    @pytest.mark.parametrize("scope", ["", VOIP, VOIP.replace("VoIP", ".default")])
    async def test_consents(
        self, http: aiohttp.ClientSession, new_entra: EntraEmulator, scope: str
    ) -> None:
        """The page asks who it is, then what is wanted; then the tenant has consented."""
        new_entra.directory.install(new_entra.directory.apps[BROKER.requires[1][0]], FABRIKAM)
        params = self.PARAMS | ({"scope": scope} if scope else {})
        version = "/v2.0" if scope else ""
        url = f"{new_entra.url}/{FABRIKAM.tenant_id}{version}/adminconsent"
        async with http.get(url, params=params) as response:
            assert FARAH.object_id in await response.text()
        form = {"account": FARAH.object_id}
        async with http.post(url, params=params, data=form) as response:
            assert "Azure Communication Services Clients: VoIP" in await response.text()
        form["consent"] = "accept"
        async with http.post(url, params=params, data=form, allow_redirects=False) as response:
            assert "admin_consent=True" in response.headers["Location"]

        granted = new_entra.directory.granted(BROKER, ACS_CLIENTS, FADI)
        assert (("VoIP",) if scope == VOIP else ACS_CLIENTS.scopes) == granted
        assert () == new_entra.directory.granted(BROKER, ACS_CLIENTS, ADA)

    async def test_declined(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """An administrator who declines goes back with an error."""
        url = f"{entra.url}/{FABRIKAM.tenant_id}/adminconsent"
        form = {"account": FARAH.object_id, "consent": "decline"}
        async with http.post(url, params=self.PARAMS, data=form, allow_redirects=False) as response:
            assert "error=access_denied" in response.headers["Location"]

    async def test_users(self, http: aiohttp.ClientSession, new_entra: EntraEmulator) -> None:
        """Nobody else can consent for everybody."""
        new_entra.directory.install(new_entra.directory.apps[BROKER.requires[1][0]], FABRIKAM)
        url = f"{new_entra.url}/{FABRIKAM.tenant_id}/adminconsent"
        form = {"account": FADI.object_id, "consent": "accept"}
        async with http.post(url, params=self.PARAMS, data=form) as response:
            assert "Need admin approval" in await response.text()
        form["consent"] = "decline"
        async with http.post(url, params=self.PARAMS, data=form, allow_redirects=False) as response:
            assert "error=access_denied" in response.headers["Location"]
        assert () == new_entra.directory.granted(BROKER, ACS_CLIENTS, FADI)

    async def test_refused(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """An app that the tenant cannot have is refused on a page."""
        url = f"{entra.url}/{FABRIKAM.tenant_id}/adminconsent"
        async with http.get(url, params={**self.PARAMS, "client_id": "x"}) as response:
            assert (400, True) == (response.status, "AADSTS700016" in await response.text())


class TestRefusals:
    """What azure-identity gets when it acts for a user."""

    async def test_consent(self, new_entra: EntraEmulator, act: Callable[..., Any]) -> None:
        """Missing consent has Entra's error, code and suberror."""
        with pytest.raises(ClientAuthenticationError, match="AADSTS65001") as caught:
            await act(new_entra, new_entra.issue_access_token())

        answer = refusal(caught)
        assert ("invalid_grant", "consent_required", [65001]) == (
            answer["error"],
            answer["suberror"],
            answer["error_codes"],
        )
        assert {"timestamp", "trace_id", "correlation_id", "error_uri"} <= answer.keys()
        assert f"Correlation ID: {answer['correlation_id']}" in answer["error_description"]

    async def test_step_up(self, entra: EntraEmulator, app: App, act: Callable[..., Any]) -> None:
        """A policy wants a second factor; who signs in with its claims is let through."""
        entra.directory.require_step_up(ACS_CLIENTS, ADA)
        tokens = await app.sign_in(ADA)
        with pytest.raises(ClientAuthenticationError, match="AADSTS50076") as caught:
            await act(entra, tokens["access_token"])

        answer = refusal(caught)
        assert ("interaction_required", [50076]) == (answer["error"], answer["error_codes"])
        claims = answer["claims"]
        assert json.loads(claims)["access_token"]["capolids"]["essential"] is True

        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        problem = await app.redeem(**form, scope=SCOPE, claims=claims)
        assert ("interaction_required", claims) == (problem["error"], problem["claims"])
        silent = await app.authorize(None, prompt="none", claims=claims)
        assert isinstance(silent, dict)
        assert ("interaction_required", claims) == (silent["error"], silent["claims"])
        assert isinstance(await app.authorize(None, claims=claims), str)

        strong = await app.sign_in(ADA, claims=claims)
        assert "VoIP" in (await act(entra, strong["access_token"]))["scp"].split()
        assert "code" in await app.authorize(None, prompt="none", claims=claims)
        assert (await act(entra, entra.issue_access_token(GRACE.user_name)))["scp"]

    async def test_step_up_at_sign_in(self, entra: EntraEmulator, app: App) -> None:
        """At the resource itself, the second factor is given while signing in."""
        entra.directory.require_step_up(BROKER)
        assert (await app.sign_in(ADA))["access_token"]

    async def test_disabled(self, entra: EntraEmulator, app: App, act: Callable[..., Any]) -> None:
        """A disabled user neither signs in nor is acted for."""
        assertion = (await app.sign_in(ADA))["access_token"]
        entra.directory.disabled.add(ADA.object_id)

        with pytest.raises(ClientAuthenticationError, match="AADSTS50057"):
            await act(entra, assertion)
        back = await app.authorize(ADA)
        assert "AADSTS50057" in back["error_description"]  # type: ignore[index]

    async def test_deleted(self, entra: EntraEmulator, act: Callable[..., Any]) -> None:
        """Nor is one who is deleted."""
        assertion = entra.issue_access_token()
        entra.graph.delete(CONTOSO, ADA.object_id)
        with pytest.raises(ClientAuthenticationError, match="AADSTS50034"):
            await act(entra, assertion)

    async def test_certificate(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, certificates: Certificates
    ) -> None:
        """A certificate authenticates the broker once it is registered, by Graph."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        der, pem = certificate_of(key)

        async def get_token() -> str:
            async with OnBehalfOfCredential(
                CONTOSO.tenant_id,
                BROKER.client_id,
                client_certificate=pem,
                user_assertion=entra.issue_access_token(),
                authority=entra.url,
                disable_instance_discovery=True,
                connection_verify=str(certificates.authority_file),
            ) as credential:
                return (await credential.get_token(VOIP)).token

        with pytest.raises(ClientAuthenticationError, match="AADSTS700027"):
            await get_token()

        credential = {
            "type": "AsymmetricX509Cert",
            "usage": "Verify",
            "key": base64.b64encode(der).decode(),
        }
        token = entra.issue_access_token(None, client=DEPLOYER, resource=GRAPH)
        async with http.patch(
            f"{entra.url}/v1.0/applications(appId='{BROKER.client_id}')",
            json={"keyCredentials": [credential]},
            headers={"Authorization": f"Bearer {token}"},
        ) as response:
            assert 204 == response.status
        assert "2" == entra.verify(await get_token())["appidacr"]


class TestControl:
    """What the directory wants, on command, over HTTP."""

    async def test_step_up(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, act: Callable[..., Any]
    ) -> None:
        """A second factor is wanted of one person, until it is no longer."""
        url = f"{entra.url}/_local/policies"
        body = {"resource": ACS_CLIENTS.client_id, "user": ADA.user_name}
        async with http.post(url, json=body) as response:
            policy = (await response.json())["policy"]
        with pytest.raises(ClientAuthenticationError, match=policy):
            await act(entra, entra.issue_access_token())
        async with http.delete(url) as response:
            assert 204 == response.status
        assert await act(entra, entra.issue_access_token())

    @pytest.mark.parametrize(
        "body", [{}, [], {"resource": "x"}, {"resource": BROKER.client_id, "user": "eve"}], ids=str
    )
    async def test_refused(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, body: object
    ) -> None:
        """A resource and a user must be known."""
        async with http.post(f"{entra.url}/_local/policies", json=body) as response:
            assert 400 == response.status
        assert {} == entra.directory.policies


class TestDevices:
    """The device code flow."""

    async def test_azure_identity(self, entra: EntraEmulator, certificates: Certificates) -> None:
        """DeviceCodeCredential gets an administrator's token for Graph, with Azure CLI's client."""

        def get_token() -> str:
            with requests.Session() as browser:
                browser.trust_env = False
                browser.verify = str(certificates.authority_file)

                def approve(address: str, user_code: str, _expires: object) -> None:
                    page = browser.get(address).text
                    assert "Enter code" in page
                    form = {"user_code": user_code.lower()}
                    page = browser.post(address, data=form).text
                    assert "Microsoft Azure CLI" in page
                    form["account"] = GRACE.object_id
                    assert "Signed in" in browser.post(address, data=form).text

                with DeviceCodeCredential(
                    tenant_id=CONTOSO.tenant_id,
                    authority=entra.url,
                    disable_instance_discovery=True,
                    prompt_callback=approve,
                    transport=RequestsTransport(connection_verify=browser.verify),
                ) as credential:
                    return credential.get_token(f"{GRAPH.uris[0]}/.default").token

        claims = entra.verify(await asyncio.to_thread(get_token))

        assert (GRACE.object_id, AZURE_CLI.client_id) == (claims["oid"], claims["appid"])
        assert "Application.ReadWrite.All" in claims["scp"].split()

    async def test_msal(self, entra: EntraEmulator, certificates: Certificates) -> None:
        """MSAL waits, is told so, and then finds the token for `.default` in its cache."""

        def sign_in() -> dict[str, Any]:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = str(certificates.authority_file)
                app = msal.PublicClientApplication(
                    DESKTOP_APP.client_id,
                    authority=f"{entra.url}/organizations",
                    instance_discovery=False,
                    http_client=session,
                )
                scopes = [f"{BROKER.uris[0]}/.default"]
                flow = app.initiate_device_flow(scopes)
                pending = app.acquire_token_by_device_flow(flow, exit_condition=lambda _: True)
                form = {"user_code": flow["user_code"], "account": ADA.object_id}
                session.post(flow["verification_uri"], data=form)
                flow["latest_attempt_at"] = 0  # MSAL complains if it does not wait for 5 seconds.
                first = app.acquire_token_by_device_flow(flow)
                [account] = app.get_accounts()
                second = app.acquire_token_silent(scopes, account)
                return {"pending": pending, "first": first, "second": second}

        result = await asyncio.to_thread(sign_in)

        assert [70016] == result["pending"]["error_codes"]
        assert result["first"]["access_token"] == result["second"]["access_token"]

    async def test_declined(self, http: aiohttp.ClientSession, new_entra: EntraEmulator) -> None:
        """Who declines ends the wait, and a code works once."""
        tenant = f"{new_entra.url}/organizations/oauth2/v2.0"
        scope = {"client_id": DESKTOP_APP.client_id, "scope": SCOPE}
        async with http.post(f"{tenant}/devicecode", data=scope) as response:
            device = await response.json()
        form = {"user_code": device["user_code"], "account": ADA.object_id}
        async with http.post(device["verification_uri"], data=form) as response:
            page = await response.text()
        assert "Token broker: access_as_user" in page
        assert [device["user_code"]] == re.findall('name="user_code" value="(.*?)"', page)
        declined = {**form, "consent": "decline"}
        async with http.post(device["verification_uri"], data=declined) as response:
            assert "AADSTS65004" in await response.text()
        body = {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "client_id": DESKTOP_APP.client_id,
            "device_code": device["device_code"],
        }
        async with http.post(f"{tenant}/token", data=body) as response:
            assert "authorization_declined" == (await response.json())["error"]
        async with http.post(device["verification_uri"], data=form) as response:
            assert (400, True) == (response.status, "does not work" in await response.text())
        body["device_code"] = "made up"
        async with http.post(f"{tenant}/token", data=body) as response:
            assert "bad_verification_code" == (await response.json())["error"]

    async def test_expired(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """A code is good for a quarter of an hour."""
        request = entra.devices.add(DESKTOP_APP, SCOPE)
        request.at -= 901
        body = {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "client_id": DESKTOP_APP.client_id,
            "device_code": request.device_code,
        }
        async with http.post(f"{entra.url}/common/oauth2/v2.0/token", data=body) as response:
            assert "expired_token" == (await response.json())["error"]
        assert entra.devices.find(request.user_code) is None

    async def test_clients(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """The flow is for native apps."""
        body = {"client_id": WEB_APP.client_id, "scope": SCOPE}
        url = f"{entra.url}/organizations/oauth2/v2.0/devicecode"
        async with http.post(url, data=body) as response:
            assert [7000218] == (await response.json())["error_codes"]

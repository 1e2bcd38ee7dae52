from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import jwt
import msal  # type: ignore[import-untyped] # It publishes no types.
import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ClientSecretCredential, OnBehalfOfCredential
from azure.identity.aio import ClientSecretCredential as AsyncClientSecretCredential
from azure.identity.aio import OnBehalfOfCredential as AsyncOnBehalfOfCredential
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from local.entra.directory import (
    ACS_CLIENTS,
    ADA,
    BROKER,
    CONTOSO,
    DAEMON,
    DESKTOP_APP,
    EXPENSES_API,
    FABRIKAM,
    FADI,
    FARAH,
    GRACE,
    GUEST,
    TOKEN_EXCHANGE,
    USER_ASSIGNED_IDENTITY,
    WEB_APP,
)
from local.entra.emulator import EntraEmulator
from local.entra.requests import SignIn
from local.storage.npm import find_node

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp

    from local.serving.certificates import Certificates

SCOPE = f"{BROKER.uris[0]}/access_as_user"
REDIRECT_URI = "http://localhost:5173/signed-in"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def unverified(token: str) -> dict[str, Any]:
    """Return a token's claims."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


async def verified(http: aiohttp.ClientSession, entra: EntraEmulator, token: str) -> dict[str, Any]:
    """Verify a token as an API does: with the keys that its tenant's metadata point to."""
    tenant, version = unverified(token)["tid"], "/v2.0" if unverified(token)["ver"] == "2.0" else ""
    async with http.get(
        f"{entra.url}/{tenant}{version}/.well-known/openid-configuration"
    ) as response:
        metadata = await response.json()
    async with http.get(metadata["jwks_uri"]) as response:
        keys = jwt.PyJWKSet.from_dict(await response.json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["RS256"],
        audience=unverified(token)["aud"],
        issuer=metadata["issuer"],
    )
    return claims


@dataclass
class Browser:
    """Signs in to a client app as a browser would, and redeems the code."""

    http: aiohttp.ClientSession
    entra: EntraEmulator
    tenant: str = "organizations"
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    async def authorize(self, account: str = "", **changes: str | None) -> aiohttp.ClientResponse:
        """Send the authorization request, and choose an account if one is given."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        params = {
            "client_id": WEB_APP.client_id,
            "response_type": "code",
            "redirect_uri": REDIRECT_URI,
            "scope": f"openid profile offline_access {SCOPE}",
            "state": "a state",
            "nonce": "a nonce",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            **changes,
        }
        asked = {name: value for name, value in params.items() if value is not None}
        url = f"{self.entra.url}/{self.tenant}/oauth2/v2.0/authorize"
        if account:
            form = {"account": account}
            return await self.http.post(url, params=asked, data=form, allow_redirects=False)
        return await self.http.get(url, params=asked, allow_redirects=False)

    async def sign_in(self, account: str = "", **changes: str | None) -> dict[str, str]:
        """Return the parameters that come back to the app's redirect URI."""
        response = await self.authorize(account, **changes)
        assert (302, REDIRECT_URI) == (
            response.status,
            re.split("[?#]", response.headers["Location"])[0],
        )
        parts = urlsplit(response.headers["Location"])
        return {name: value for name, [value] in parse_qs(parts.query or parts.fragment).items()}

    async def redeem(self, *, origin: str | None = "http://localhost:5173", **form: str) -> Any:
        """Return the token endpoint's answer."""
        headers = {"Origin": origin} if origin else {}
        form = {"client_id": WEB_APP.client_id, **form}
        url = f"{self.entra.url}/{self.tenant}/oauth2/v2.0/token"
        async with self.http.post(url, data=form, headers=headers) as response:
            return await response.json()

    async def redeem_code(self, code: str, **form: str) -> Any:
        """Return the token endpoint's answer to a code."""
        form = {"redirect_uri": REDIRECT_URI, "code_verifier": self.verifier, **form}
        return await self.redeem(grant_type="authorization_code", code=code, **form)


@pytest.fixture
def browser(http: aiohttp.ClientSession, entra: EntraEmulator) -> Browser:
    """A browser without a session."""
    return Browser(http, entra)


class TestMetadata:
    """Metadata and keys, which anyone may read."""

    @pytest.mark.parametrize(
        ("tenant", "issuer"),
        [
            (CONTOSO.tenant_id, f"{{url}}/{CONTOSO.tenant_id}/v2.0"),
            (CONTOSO.tenant_id.upper(), f"{{url}}/{CONTOSO.tenant_id}/v2.0"),
            ("fabrikam.example", f"{{url}}/{FABRIKAM.tenant_id}/v2.0"),
            ("organizations", "{url}/{{tenantid}}/v2.0"),
            ("common", "{url}/{{tenantid}}/v2.0"),
        ],
    )
    async def test_v2(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, tenant: str, issuer: str
    ) -> None:
        """Metadata and keys name the tenant's issuer; without a tenant, it has a placeholder."""
        async with http.get(
            f"{entra.url}/{tenant}/v2.0/.well-known/openid-configuration"
        ) as response:
            metadata = await response.json()
        async with http.get(metadata["jwks_uri"]) as response:
            keys = (await response.json())["keys"]

        expected = issuer.format(url=entra.url)
        assert (expected, "microsoftonline.com") == (
            metadata["issuer"],
            metadata["cloud_instance_name"],
        )
        for name in ("authorization_endpoint", "token_endpoint", "end_session_endpoint"):
            assert metadata[name].startswith(f"{entra.url}/"), name
        assert len(keys) >= 2
        for key in keys:
            assert {
                *("kty", "use", "kid", "x5t", "n", "e", "x5c", "issuer", "cloud_instance_name")
            } == set(key)
            assert expected == key["issuer"]

    async def test_v1(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """In version 1, the issuer is the real Entra's, and the keys name no issuer."""
        url = f"{entra.url}/contoso.example/.well-known/openid-configuration"
        async with http.get(url) as response:
            metadata = await response.json()
        async with http.get(metadata["jwks_uri"]) as response:
            keys = (await response.json())["keys"]

        assert f"https://sts.windows.net/{CONTOSO.tenant_id}/" == metadata["issuer"]
        assert {"kty", "use", "kid", "x5t", "n", "e", "x5c"} == set(keys[0])

    async def test_certificate(self, entra: EntraEmulator) -> None:
        """A key's x5c is a certificate of the same key, and its thumbprint is the key's id."""
        key = entra.keys[0]
        [encoded] = key.jwk()["x5c"]

        certificate = x509.load_der_x509_certificate(base64.b64decode(encoded))
        assert certificate.public_key() == key.private_key.public_key()
        assert key.kid == key.jwk()["x5t"]

    async def test_unknown_tenant(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """An error has Entra's own form."""
        url = f"{entra.url}/northwind.example/v2.0/.well-known/openid-configuration"
        async with http.get(url) as response:
            problem = await response.json()

        assert (400, "invalid_tenant", [90002]) == (
            response.status,
            problem["error"],
            problem["error_codes"],
        )
        assert {
            *("error", "error_description", "error_codes", "timestamp"),
            *("trace_id", "correlation_id", "error_uri"),
        } == set(problem)
        assert problem["error_description"].startswith("AADSTS90002: ")

    async def test_faults(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Each operation fails on request, and is counted."""
        entra.faults.fail_next("jwks", body="<html>")
        entra.faults.fail_next("token", status=503)
        keys, token = "common/discovery/v2.0/keys", "common/oauth2/v2.0/token"

        async with http.get(f"{entra.url}/{keys}") as response:
            assert "<html>" == await response.text()
        async with http.get(f"{entra.url}/{keys}") as response:
            assert (await response.json())["keys"]
        async with http.post(f"{entra.url}/{token}") as response:
            assert (503, [90033]) == (response.status, (await response.json())["error_codes"])
        assert (2, 1) == (entra.faults.count("jwks"), entra.faults.count("token"))


USUAL = {"aio", "aud", "exp", "iat", "iss", "nbf", "oid", "rh", "sub", "tid", "uti", "ver"}


class TestTokens:
    """The claims of tokens."""

    async def test_v2(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """A user's token of version 2, with the claims that Entra puts in."""
        token = entra.issue_access_token()
        claims = await verified(http, entra, token)

        assert {
            *(USUAL | {"acct", "azp", "azpacr", "name", "preferred_username", "scp", "sid"}),
            "xms_ftd",
        } == set(claims)
        assert {
            "aud": BROKER.client_id,
            "azp": WEB_APP.client_id,
            "azpacr": "0",
            "iss": f"{entra.url}/{CONTOSO.tenant_id}/v2.0",
            "oid": ADA.object_id,
            "preferred_username": "ada@contoso.example",
            "scp": "access_as_user",
            "tid": CONTOSO.tenant_id,
            "ver": "2.0",
        }.items() <= claims.items()
        assert claims["iat"] == claims["nbf"] == pytest.approx(time.time() - 300, abs=5)
        assert 3600 <= claims["exp"] - claims["iat"] - 300 <= 5400
        assert {"typ", "alg", "kid"} == set(jwt.get_unverified_header(token))

    async def test_v1(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """A user's token of version 1: another issuer, audience, and names."""
        token = entra.issue_access_token(version=1)
        claims = await verified(http, entra, token)

        assert {
            *(USUAL | {"acct", "acr", "amr", "appid", "appidacr", "family_name", "given_name"}),
            *("ipaddr", "name", "scp", "sid", "unique_name", "upn", "xms_ftd"),
        } == set(claims)
        assert {
            "aud": BROKER.uris[0],
            "appid": WEB_APP.client_id,
            "iss": f"https://sts.windows.net/{CONTOSO.tenant_id}/",
            "upn": "ada@contoso.example",
            "ver": "1.0",
        }.items() <= claims.items()
        assert {"typ", "alg", "kid", "x5t"} == set(jwt.get_unverified_header(token))

    async def test_subject_is_pairwise(self, entra: EntraEmulator) -> None:
        """A person's subject is different for each API, and always the same for one API."""
        first, second, other = (
            unverified(entra.issue_access_token(resource=resource))["sub"]
            for resource in (BROKER, BROKER, EXPENSES_API)
        )
        assert first == second != other

    async def test_guest(self, entra: EntraEmulator) -> None:
        """A guest has an object in this tenant, and an account in the home tenant."""
        claims = unverified(entra.issue_access_token(GUEST.user_name))

        assert {
            "acct": 1,
            "idp": f"https://sts.windows.net/{FABRIKAM.tenant_id}/",
            "oid": GUEST.object_id,
            "preferred_username": FADI.user_name,
            "tid": CONTOSO.tenant_id,
        }.items() <= claims.items()

    async def test_roles(self, entra: EntraEmulator) -> None:
        """An administrator's role is only in tokens for the app that defines it."""
        at_broker = unverified(entra.issue_access_token(GRACE.user_name))
        elsewhere = unverified(entra.issue_access_token(GRACE.user_name, resource=EXPENSES_API))

        assert ["Mappings.Admin"] == at_broker["roles"]
        assert "roles" not in elsewhere

    async def test_app_only(self, entra: EntraEmulator) -> None:
        """An app's own token has roles and no scope, and an idtyp if the API asks for it."""
        claims = unverified(entra.issue_access_token(None, client=DAEMON))

        assert {*USUAL, "azp", "azpacr", "idtyp", "roles", "xms_ftd"} == set(claims)
        assert {"azpacr": "1", "idtyp": "app", "sub": claims["oid"]}.items() <= claims.items()

    async def test_changes(self, entra: EntraEmulator) -> None:
        """A test can set or remove any claim, header and lifetime."""
        token = entra.issue_access_token(
            claims={"oid": None, "new": {"a": [1]}},
            header={"typ": "at+jwt", "kid": None},
            lifetime=timedelta(minutes=-1),
        )
        claims = unverified(token)

        assert ("oid" in claims, {"a": [1]}) == (False, claims["new"])
        assert claims["exp"] < time.time()
        assert {"typ": "at+jwt", "alg": "RS256"} == jwt.get_unverified_header(token)

    async def test_bytes(self, entra: EntraEmulator) -> None:
        """Even what is not JSON can be signed."""
        payload = entra.sign({}, b"\xff").split(".")[1]
        assert "_w" == payload

    async def test_own_keys(self) -> None:
        """Without given keys, it makes its own."""
        assert 2 == len({key.kid for key in EntraEmulator().keys})

    async def test_unknown_user(self, entra: EntraEmulator) -> None:
        """A misspelt user name gets no token."""
        with pytest.raises(LookupError, match="eve"):
            entra.issue_access_token("eve@contoso.example")

    async def test_verify(self, entra: EntraEmulator) -> None:
        """The other emulators let it verify the tokens that they get."""
        assert ADA.object_id == entra.verify(entra.issue_access_token())["oid"]
        assert "1.0" == entra.verify(entra.issue_access_token(version=1))["ver"]

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"lifetime": timedelta(seconds=-1)}, id="expired"),
            pytest.param({"claims": {"nbf": 9999999999}}, id="not yet"),
            pytest.param({"claims": {"tid": FABRIKAM.tenant_id}}, id="issuer of another tenant"),
            pytest.param({"claims": {"tid": "northwind.example"}}, id="unknown tenant"),
            pytest.param({"claims": {"exp": None}}, id="without expiry"),
            pytest.param({"header": {"kid": "unknown"}}, id="unknown key"),
            pytest.param({"header": {"kid": None}}, id="no key"),
            pytest.param({"header": {"alg": "none"}}, id="no algorithm"),
        ],
    )
    async def test_verify_refuses(self, entra: EntraEmulator, changes: dict[str, Any]) -> None:
        """A token that this Entra did not issue, or that is not valid now, is a ValueError."""
        with pytest.raises(ValueError, match=r"of this Entra|of a known tenant"):
            entra.verify(entra.issue_access_token(**changes))
        with pytest.raises(ValueError, match=r"of this Entra|of a known tenant"):
            entra.verify("nonsense")


class TestKeys:
    """Which keys sign, and which are published."""

    async def test_roll(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """A new key signs from now on, and all but some of the older ones are withdrawn."""
        old = entra.issue_access_token()
        async with http.post(f"{entra.url}/_local/keys/roll", json={"keep": 1}) as response:
            kid = (await response.json())["kid"]
        new = entra.issue_access_token()

        assert kid == jwt.get_unverified_header(new)["kid"]
        assert await verified(http, entra, old)
        assert await verified(http, entra, new)
        async with http.post(f"{entra.url}/_local/keys/roll", json={"keep": 0}) as response:
            assert (200, 1) == (response.status, len(entra.keys))
        with pytest.raises(KeyError):
            await verified(http, entra, new)

    async def test_odd_keys(self, entra: EntraEmulator) -> None:
        """A key can be published with members missing, changed or added, and withdrawn."""
        odd = rsa.generate_private_key(public_exponent=3, key_size=2048)
        entra.publish_key(odd, kid="odd", use=None, issuer="https://other.example", alg="RS256")
        published = entra.key_set(CONTOSO)["keys"][-1]
        token = entra.issue_access_token(key=odd)

        assert {
            *("kty", "kid", "n", "e", "issuer", "alg", "cloud_instance_name")
        } == published.keys()
        assert ("odd", "https://other.example") == (published["kid"], published["issuer"])
        assert "odd" == jwt.get_unverified_header(token)["kid"]
        entra.withdraw_key("odd")
        assert "odd" not in {key.kid for key in entra.keys}

    async def test_unpublished_key(self, entra: EntraEmulator) -> None:
        """A token signed with an unpublished key has the current key's id."""
        token = entra.issue_access_token(key=rsa.generate_private_key(65537, 2048))

        assert entra.keys[0].kid == jwt.get_unverified_header(token)["kid"]
        with pytest.raises(ValueError, match="not a valid token"):
            entra.verify(token)


class TestControl:
    """Tokens and keys for tests and developers, over HTTP."""

    async def test_token(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Another process can get any token over HTTP."""
        body = {
            "user": FADI.user_name,
            "app": DESKTOP_APP.client_id,
            "audience": EXPENSES_API.uris[0],
            "version": 1,
            "lifetime": 60,
            "claims": {"scp": None},
        }
        async with http.post(f"{entra.url}/_local/token", json=body) as response:
            claims = await verified(http, entra, (await response.json())["access_token"])

        assert (FADI.object_id, DESKTOP_APP.client_id, EXPENSES_API.uris[0]) == (
            claims["oid"],
            claims["appid"],
            claims["aud"],
        )
        assert "scp" not in claims

    async def test_token_by_default(
        self, http: aiohttp.ClientSession, entra: EntraEmulator
    ) -> None:
        """An empty request gets a token of Ada's for the broker."""
        async with http.post(f"{entra.url}/_local/token") as response:
            claims = unverified((await response.json())["access_token"])

        assert (ADA.object_id, BROKER.client_id) == (claims["oid"], claims["aud"])

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({"user": "eve@contoso.example"}, "there is no user eve@contoso.example"),
            ({"audience": "api://nothing"}, "the app or the audience is unknown"),
            ({"client": "x"}, "the members are user, app, audience, scopes, version"),
            ([], "the members are user, app"),
        ],
    )
    async def test_no_such_token(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, body: object, reason: str
    ) -> None:
        """A token that cannot be issued is 400, and the answer says why."""
        async with http.post(f"{entra.url}/_local/token", json=body) as response:
            assert 400 == response.status
            assert f"cannot be issued: {reason}" in await response.text()

    async def test_misspelled_fault(
        self, http: aiohttp.ClientSession, entra: EntraEmulator
    ) -> None:
        """A fault that would never come is refused, and the answer says what there is."""
        faults = f"{entra.url}/_local/faults"

        async with http.post(faults, json={"operation": "jkws", "status": 503}) as response:
            assert 400 == response.status
            assert "the operations are authorize, deleted_users, " in await response.text()
        async with http.post(faults, json={"state": 503}) as response:
            assert 400 == response.status
            assert "the members are operation, path, times, delay" in await response.text()


class TestSignIn:
    """The pages that a browser shows, and what its app gets."""

    async def test_page(self, browser: Browser) -> None:
        """The page offers the users of the tenant, with the hinted one focused."""
        browser.tenant = CONTOSO.domain
        response = await browser.authorize(login_hint=GRACE.user_name, state='"><script>')
        page = await response.text()

        assert 200 == response.status
        assert [ADA.object_id, GRACE.object_id, GUEST.object_id] == re.findall(
            'name="account" value="(.*?)"', page
        )
        assert [GRACE.object_id] == re.findall('value="([^"]*)" autofocus', page)
        assert "worthless" in page
        assert "<script>" not in page
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]

    async def test_everyone(self, browser: Browser) -> None:
        """Without a tenant, all users sign in to their home tenants."""
        page = await (await browser.authorize()).text()

        accounts = re.findall('name="account" value="(.*?)"', page)
        home = [user.object_id for user in (ADA, GRACE, FADI, FARAH)]
        assert home == accounts

    async def test_tokens(self, http: aiohttp.ClientSession, browser: Browser) -> None:
        """A code becomes an access token, an ID token with the nonce, and a refresh token."""
        back = await browser.sign_in(FADI.object_id, response_mode="fragment")
        tokens = await browser.redeem_code(back["code"], client_info="1")

        assert "a state" == back["state"]
        access = await verified(http, browser.entra, tokens["access_token"])
        identity = await verified(http, browser.entra, tokens["id_token"])
        assert (FADI.object_id, WEB_APP.client_id) == (access["oid"], access["azp"])
        assert ("a nonce", WEB_APP.client_id) == (identity["nonce"], identity["aud"])
        assert f"{SCOPE} openid profile" == tokens["scope"]
        assert {"uid": FADI.object_id, "utid": FABRIKAM.tenant_id} == json.loads(
            base64.urlsafe_b64decode(tokens["client_info"] + "==")
        )

        again = await browser.redeem(
            grant_type="refresh_token",
            refresh_token=tokens["refresh_token"],
            scope=f"{EXPENSES_API.uris[0]}/.default",
        )
        assert "Expenses.Read Expenses.Submit" == unverified(again["access_token"])["scp"]
        assert again["refresh_token"] != tokens["refresh_token"]

    async def test_guest(self, browser: Browser) -> None:
        """The same person signs in to another tenant as a guest."""
        browser.tenant = CONTOSO.tenant_id
        back = await browser.sign_in(GUEST.object_id)
        tokens = await browser.redeem_code(back["code"], client_info="1")

        claims = unverified(tokens["access_token"])
        assert (GUEST.object_id, CONTOSO.tenant_id) == (claims["oid"], claims["tid"])
        info = json.loads(base64.urlsafe_b64decode(tokens["client_info"] + "=="))
        assert {"uid": FADI.object_id, "utid": FABRIKAM.tenant_id} == info

    async def test_refresh_in_another_tenant(self, browser: Browser) -> None:
        """A refresh token works for every tenant where the person is a member or a guest."""
        back = await browser.sign_in(FADI.object_id)
        token = (await browser.redeem_code(back["code"]))["refresh_token"]

        browser.tenant = CONTOSO.tenant_id
        tokens = await browser.redeem(grant_type="refresh_token", refresh_token=token)
        assert GUEST.object_id == unverified(tokens["access_token"])["oid"]

        back = await browser.sign_in(ADA.object_id)
        token = (await browser.redeem_code(back["code"]))["refresh_token"]
        browser.tenant = FABRIKAM.tenant_id
        problem = await browser.redeem(grant_type="refresh_token", refresh_token=token)
        assert [50020] == problem["error_codes"]

    async def test_graph(self, browser: Browser) -> None:
        """Without an API, the token is for Microsoft Graph, and comes without a refresh token."""
        back = await browser.sign_in(ADA.object_id, scope="openid")
        tokens = await browser.redeem_code(back["code"])

        assert "https://graph.microsoft.com" == unverified(tokens["access_token"])["aud"]
        assert "refresh_token" not in tokens

    async def test_session(self, browser: Browser) -> None:
        """A session makes the next sign-in silent, until the user signs out."""
        assert "login_required" == (await browser.sign_in(prompt="none"))["error"]
        await browser.sign_in(ADA.object_id)

        assert "code" in await browser.sign_in(prompt="none")
        assert "code" in await browser.sign_in(login_hint=ADA.user_name)
        assert 200 == (await browser.authorize(login_hint=GRACE.user_name)).status
        assert 200 == (await browser.authorize(prompt="select_account")).status
        other = await browser.sign_in(prompt="none", login_hint=GRACE.user_name)
        assert "login_required" == other["error"]

        logout = f"{browser.entra.url}/common/oauth2/v2.0/logout"
        back = {"post_logout_redirect_uri": REDIRECT_URI}
        async with browser.http.get(logout, params=back, allow_redirects=False) as response:
            assert response.headers["Location"].startswith(REDIRECT_URI)
        async with browser.http.get(logout) as response:
            assert (200, "Signed out" in await response.text()) == (response.status, True)
        assert "login_required" == (await browser.sign_in(prompt="none"))["error"]

    @pytest.mark.parametrize(
        ("changes", "number"),
        [
            pytest.param({"client_id": DAEMON.client_id}, 50194, id="app of one tenant"),
            pytest.param({"client_id": ADA.object_id}, 700016, id="unknown app"),
            pytest.param({"client_id": BROKER.client_id}, 50011, id="app without sign-in"),
            pytest.param({"client_id": None}, 900144, id="no app"),
            pytest.param({"redirect_uri": None}, 900144, id="no redirect URI"),
            pytest.param({"redirect_uri": "https://a.example/"}, 50011, id="foreign address"),
            pytest.param({"redirect_uri": "http://localhost@a.example/"}, 50011, id="disguised"),
            pytest.param({"redirect_uri": "http://[::1/"}, 50011, id="not a URL"),
        ],
    )
    async def test_error_page(
        self, browser: Browser, changes: dict[str, str | None], number: int
    ) -> None:
        """If the redirect URI cannot be trusted, the error is shown on a page."""
        response = await browser.authorize(ADA.object_id, **changes)
        assert (400, True) == (response.status, f"AADSTS{number}" in await response.text())

    @pytest.mark.parametrize(
        ("changes", "error", "number"),
        [
            ({"response_type": "token"}, "unsupported_response_type", 700054),
            ({"response_mode": "smoke"}, "invalid_request", 70007),
            ({"code_challenge": None}, "invalid_request", 9002325),
            ({"code_challenge_method": "plain"}, "invalid_request", 9002325),
            ({"scope": None}, "invalid_request", 900144),
            ({"scope": f"{SCOPE}2"}, "invalid_client", 650053),
            ({"scope": "api://nothing/x"}, "invalid_resource", 500011),
            ({"scope": f"{SCOPE} User.Read"}, "invalid_scope", 28000),
        ],
    )
    async def test_error_redirect(
        self, browser: Browser, changes: dict[str, str | None], error: str, number: int
    ) -> None:
        """All other errors are sent to the app."""
        back = await browser.sign_in(ADA.object_id, **changes)
        assert (error, "a state") == (back["error"], back["state"])
        assert back["error_description"].startswith(f"AADSTS{number}: ")

    async def test_code_can_be_redeemed_once(self, browser: Browser) -> None:
        """A code cannot be redeemed again."""
        code = (await browser.sign_in(ADA.object_id))["code"]
        await browser.redeem_code(code)
        assert [54005] == (await browser.redeem_code(code))["error_codes"]

    async def test_code_is_for_ten_minutes(self, browser: Browser) -> None:
        """A code expires."""
        sign_in = SignIn(ADA, WEB_APP, SCOPE, REDIRECT_URI, at=time.time() - 601)
        code = browser.entra.new_code(sign_in)
        assert [70008] == (await browser.redeem_code(code))["error_codes"]

    async def test_refresh_token_is_for_its_app(self, browser: Browser) -> None:
        """A refresh token does not work for another app."""
        code = (await browser.sign_in(ADA.object_id))["code"]
        token = (await browser.redeem_code(code))["refresh_token"]
        form = {"grant_type": "refresh_token", "refresh_token": token}
        problem = await browser.redeem(origin=None, client_id=DESKTOP_APP.client_id, **form)
        assert [9002313] == problem["error_codes"]

    @pytest.mark.parametrize(
        ("form", "error", "number"),
        [
            ({"code": "made up"}, "invalid_grant", 9002313),
            ({"code_verifier": "wrong"}, "invalid_grant", 501481),
            ({"code_verifier": ""}, "invalid_grant", 501481),
            ({"redirect_uri": "http://localhost/"}, "invalid_grant", 500112),
            ({"client_secret": "a secret"}, "invalid_client", 700025),
            ({"client_id": "no one"}, "unauthorized_client", 700016),
            ({"client_id": DESKTOP_APP.client_id}, "invalid_request", 9002326),
            ({"client_id": DESKTOP_APP.client_id, "origin": None}, "invalid_grant", 70000),
            ({"origin": None}, "invalid_request", 9002327),
            ({"claims": "[]"}, "invalid_request", 9002313),
            ({"grant_type": "password"}, "unsupported_grant_type", 70003),
        ],
    )
    async def test_code_refused(
        self, browser: Browser, form: dict[str, Any], error: str, number: int
    ) -> None:
        """A code works only with the client, redirect URI and code verifier of its request."""
        code = (await browser.sign_in(ADA.object_id))["code"]
        good = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT_URI,
            "code_verifier": browser.verifier,
        }
        problem = await browser.redeem(**{**good, **form})
        assert (error, [number]) == (problem["error"], problem["error_codes"])

    async def test_claims_challenge(self, browser: Browser) -> None:
        """A client that passes on a challenge gets a token from after the revocation."""
        moment = int(time.time()) - 60
        claims = {
            "access_token": {
                "nbf": {"essential": True, "value": str(moment)},
                "xms_cc": {"values": ["cp1"]},
            }
        }
        code = (await browser.sign_in(ADA.object_id))["code"]
        tokens = await browser.redeem_code(code, claims=json.dumps(claims))

        access = unverified(tokens["access_token"])
        assert (moment, moment, ["cp1"]) == (access["iat"], access["nbf"], access["xms_cc"])

    async def test_authentication_context(self, browser: Browser) -> None:
        """Whoever signs in for a context gives a second factor, and the token has the context."""
        claims = {"access_token": {"acrs": {"essential": True, "value": "c1"}}}
        code = (await browser.sign_in(ADA.object_id))["code"]
        refused = await browser.redeem_code(code, claims=json.dumps(claims))
        assert ("interaction_required", [50076]) == (refused["error"], refused["error_codes"])
        assert claims == json.loads(refused["claims"])

        code = (await browser.sign_in(ADA.object_id, claims=json.dumps(claims)))["code"]
        tokens = await browser.redeem_code(code, claims=json.dumps(claims))
        assert ["c1"] == unverified(tokens["access_token"])["acrs"]

    async def test_form_post(self, browser: Browser) -> None:
        """An app may ask for its code in a form, which the page submits."""
        response = await browser.authorize(ADA.object_id, response_mode="form_post")
        page = await response.text()

        assert f'action="{REDIRECT_URI}"' in page
        assert 'name="code"' in page

    async def test_origins(self, browser: Browser) -> None:
        """Pages of other origins can read metadata and tokens, but not the sign-in page."""
        origin = {"Origin": "http://localhost:5173"}
        preflight = {"Access-Control-Request-Method": "POST"}
        paths = {
            ("GET", "v2.0/.well-known/openid-configuration"): True,
            ("GET", "discovery/v2.0/keys"): True,
            ("POST", "oauth2/v2.0/token"): True,
            ("OPTIONS", "oauth2/v2.0/token"): True,
            ("GET", "oauth2/v2.0/authorize"): False,
        }
        for (method, path), allowed in paths.items():
            url = f"{browser.entra.url}/common/{path}"
            async with browser.http.request(method, url, headers=origin | preflight) as response:
                expected = origin["Origin"] if allowed else None
                assert expected == response.headers.get("Access-Control-Allow-Origin"), path

    @pytest.mark.parametrize("version", ["", "/v2.0"])
    async def test_admin_consent(self, browser: Browser, version: str) -> None:
        """An administrator's consent comes back with the tenant's id."""
        url = f"{browser.entra.url}/fabrikam.example{version}/adminconsent"
        params = {"client_id": BROKER.client_id, "redirect_uri": REDIRECT_URI, "state": "1"}
        form = {"account": FARAH.object_id, "consent": "accept"}
        async with browser.http.post(
            url, params=params, data=form, allow_redirects=False
        ) as response:
            query = parse_qs(urlsplit(response.headers["Location"]).query)

        assert {"admin_consent": ["True"], "tenant": [FABRIKAM.tenant_id], "state": ["1"]} == query


class TestClients:
    """Microsoft's own clients, unchanged."""

    async def test_msal(self, entra: EntraEmulator, certificates: Certificates) -> None:
        """MSAL for Python finds the authority by instance discovery, signs in, and refreshes."""

        def sign_in() -> dict[str, Any]:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = str(certificates.authority_file)
                app = msal.PublicClientApplication(
                    DESKTOP_APP.client_id,
                    authority=f"{entra.url}/organizations",
                    instance_discovery=f"{entra.url}/common/discovery/instance",
                    http_client=session,
                )
                flow = app.initiate_auth_code_flow(
                    [SCOPE], redirect_uri="http://localhost:8400", response_mode="form_post"
                )
                page = session.post(flow["auth_uri"], data={"account": ADA.object_id}).text
                posted = dict(re.findall('name="(.*?)" value="(.*?)"', page))
                first = app.acquire_token_by_auth_code_flow(flow, posted)
                [account] = app.get_accounts()
                second = app.acquire_token_silent([SCOPE], account, force_refresh=True)
                assert second
                return {"account": account, "first": first, "second": second}

        result = await asyncio.to_thread(sign_in)

        assert f"{ADA.object_id}.{CONTOSO.tenant_id}" == result["account"]["home_account_id"]
        assert ADA.user_name == result["first"]["id_token_claims"]["preferred_username"]
        assert ADA.object_id == entra.verify(result["second"]["access_token"])["oid"]

    async def test_msal_and_a_foreign_authority(
        self, http: aiohttp.ClientSession, entra: EntraEmulator
    ) -> None:
        """Instance discovery knows this host only."""
        url = f"{entra.url}/common/discovery/instance"
        params = {"authorization_endpoint": "https://a.example/common/oauth2/v2.0/authorize"}
        async with http.get(url, params=params) as response:
            assert "invalid_instance" == (await response.json())["error"]

    async def test_client_secret(self, entra: EntraEmulator, certificates: Certificates) -> None:
        """ClientSecretCredential gets a token for the daemon."""

        def get_token() -> str:
            with ClientSecretCredential(
                CONTOSO.tenant_id,
                DAEMON.client_id,
                DAEMON.secret or "",
                authority=entra.url,
                disable_instance_discovery=True,
                connection_verify=str(certificates.authority_file),
            ) as credential:
                return credential.get_token(f"{BROKER.uris[0]}/.default").token

        claims = entra.verify(await asyncio.to_thread(get_token))

        assert (["Mappings.Admin"], DAEMON.client_id) == (claims["roles"], claims["azp"])

    async def test_client_secret_async(
        self, entra: EntraEmulator, certificates: Certificates
    ) -> None:
        """The asynchronous ClientSecretCredential does, too."""
        async with AsyncClientSecretCredential(
            CONTOSO.tenant_id,
            DAEMON.client_id,
            DAEMON.secret or "",
            authority=entra.url,
            disable_instance_discovery=True,
            connection_verify=str(certificates.authority_file),
        ) as credential:
            token = await credential.get_token("https://communication.azure.com//.default")

        claims = entra.verify(token.token)
        assert ("https://communication.azure.com/", "app") == (claims["aud"], claims["idtyp"])
        assert claims["exp"] - token.expires_on in {0, 1, 2}

    async def test_wrong_secret(self, entra: EntraEmulator, certificates: Certificates) -> None:
        """A wrong secret is Entra's error 7000215."""
        async with AsyncClientSecretCredential(
            CONTOSO.tenant_id,
            DAEMON.client_id,
            "wrong",
            authority=entra.url,
            disable_instance_discovery=True,
            connection_verify=str(certificates.authority_file),
        ) as credential:
            with pytest.raises(ClientAuthenticationError, match="AADSTS7000215"):
                await credential.get_token(f"{BROKER.uris[0]}/.default")

    @pytest.mark.parametrize("proof", ["secret", "assertion"])
    async def test_on_behalf_of(
        self, entra: EntraEmulator, certificates: Certificates, proof: str
    ) -> None:
        """The broker acts for Ada, by a secret or as its managed identity."""
        assertion = entra.issue_access_token(
            None, client=USER_ASSIGNED_IDENTITY, resource=TOKEN_EXCHANGE
        )
        shown = {"client_secret": BROKER.secret}
        if proof == "assertion":
            shown = {"client_assertion_func": lambda: assertion}  # type: ignore[dict-item] # Either.
        options: Any = {
            "user_assertion": entra.issue_access_token(),
            "authority": entra.url,
            "disable_instance_discovery": True,
            "connection_verify": str(certificates.authority_file),
            **shown,
        }
        scope = "https://communication.azure.com/clients/.default"

        async with AsyncOnBehalfOfCredential(
            CONTOSO.tenant_id, BROKER.client_id, **options
        ) as credential:
            tokens = [(await credential.get_token(scope)).token]

        def get_token() -> str:
            with OnBehalfOfCredential(CONTOSO.tenant_id, BROKER.client_id, **options) as credential:
                return credential.get_token(scope).token

        tokens.append(await asyncio.to_thread(get_token))
        for token in tokens:
            claims = entra.verify(token)
            assert {
                "aud": "https://communication.azure.com/clients",
                "appid": BROKER.client_id,
                "appidacr": "1" if proof == "secret" else "2",
                "oid": ADA.object_id,
                "scp": " ".join(ACS_CLIENTS.scopes),
            }.items() <= claims.items()

    @pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
    async def test_msal_browser(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, js: Path
    ) -> None:
        """@azure/msal-browser signs in, refreshes, follows a challenge, signs out; in Chromium."""
        moment = int(time.time()) - 30
        challenge = {"access_token": {"nbf": {"essential": True, "value": str(moment)}}}
        config = {
            "auth": {
                "clientId": WEB_APP.client_id,
                "authority": f"{entra.url}/organizations",
                "knownAuthorities": [entra.url.removeprefix("https://")],
            },
            "scopes": [SCOPE],
            "person": ADA.name,
            "challenge": json.dumps(challenge),
        }
        arguments = [str(js / "msal.mjs"), str(CHROMIUM), json.dumps(config)]
        process = await asyncio.create_subprocess_exec(
            find_node()[0], *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert 0 == process.returncode
        app = json.loads(output)

        assert [] == app["complaints"]
        assert f"{ADA.object_id}.{CONTOSO.tenant_id}" == app["first"]["account"]
        assert ADA.object_id == (await verified(http, entra, app["first"]["accessToken"]))["oid"]
        assert app["cached"]["fromCache"]
        assert app["first"]["accessToken"] == app["cached"]["accessToken"]
        assert app["first"]["accessToken"] != app["refreshed"]["accessToken"]
        assert moment == unverified(app["challenged"]["accessToken"])["iat"]
        assert (4, 4) == (entra.faults.count("authorize"), entra.faults.count("token"))


class TestTokenEndpoint:
    """The answers to other clients, and to wrong requests."""

    @pytest.mark.parametrize(
        ("form", "status", "error", "number"),
        [
            pytest.param({"grant_type": None}, 400, "invalid_request", 900144, id="no grant"),
            pytest.param({"scope": SCOPE}, 400, "invalid_scope", 1002012, id="one permission"),
            pytest.param(
                {"scope": "api://nothing/.default"}, 400, "invalid_resource", 500011, id="no API"
            ),
            pytest.param(
                {"client_secret": None}, 401, "invalid_client", 7000218, id="no credential"
            ),
            pytest.param(
                {"tenant": "organizations"}, 400, "invalid_request", 50194, id="app of one tenant"
            ),
            pytest.param(
                {
                    "tenant": "common",
                    "client_id": BROKER.client_id,
                    "client_secret": BROKER.secret,
                },
                *(400, "invalid_request", 50059),
                id="no tenant",
            ),
            pytest.param(
                {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"},
                *(400, "invalid_request", 900144),
                id="no assertion",
            ),
            pytest.param(
                {"tenant": FABRIKAM.tenant_id},
                400,
                "unauthorized_client",
                700016,
                id="app of another tenant",
            ),
            pytest.param(
                {"tenant": "northwind.example"}, 400, "invalid_tenant", 90002, id="no such tenant"
            ),
        ],
    )
    async def test_client_credentials(
        self,
        http: aiohttp.ClientSession,
        entra: EntraEmulator,
        *,
        form: dict[str, str | None],
        status: int,
        error: str,
        number: int,
    ) -> None:
        """A daemon's request with one thing wrong is refused."""
        asked = {
            "tenant": CONTOSO.tenant_id,
            "grant_type": "client_credentials",
            "client_id": DAEMON.client_id,
            "client_secret": DAEMON.secret,
            "scope": f"{BROKER.uris[0]}/.default",
            **form,
        }
        url = f"{entra.url}/{asked.pop('tenant')}/oauth2/v2.0/token"
        body = {name: value for name, value in asked.items() if value is not None}
        async with http.post(url, data=body) as response:
            problem = await response.json()

        assert (status, error, [number]) == (
            response.status,
            problem["error"],
            problem["error_codes"],
        )

    @pytest.mark.parametrize(
        ("changes", "number"),
        [
            pytest.param({"resource": BROKER}, 700212, id="meant for another"),
            pytest.param({"claims": {"sub": ADA.object_id}}, 700213, id="another subject"),
            pytest.param({"lifetime": timedelta(seconds=-1)}, 700024, id="expired"),
            pytest.param({"header": {"kid": "unknown"}}, 700027, id="not signed here"),
        ],
    )
    async def test_client_assertion(
        self,
        http: aiohttp.ClientSession,
        entra: EntraEmulator,
        changes: dict[str, Any],
        number: int,
    ) -> None:
        """Only the managed identity's token for the exchange stands in for the broker's secret."""
        assertion = {"client": USER_ASSIGNED_IDENTITY, "resource": TOKEN_EXCHANGE, **changes}
        body = {
            "grant_type": "client_credentials",
            "client_id": BROKER.client_id,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": entra.issue_access_token(None, **assertion),
            "scope": "https://communication.azure.com/.default",
        }
        url = f"{entra.url}/{CONTOSO.tenant_id}/oauth2/v2.0/token"
        async with http.post(url, data=body) as response:
            problem = await response.json()

        assert (401, [number]) == (response.status, problem["error_codes"])

    @pytest.mark.parametrize(
        ("changes", "number"),
        [
            pytest.param({"resource": EXPENSES_API}, 500131, id="meant for another"),
            pytest.param({"user": None, "client": DAEMON}, 7000114, id="an app's own"),
            pytest.param({"user": FADI.user_name}, 50013, id="of another tenant"),
            pytest.param({"lifetime": timedelta(seconds=-1)}, 500133, id="expired"),
            pytest.param({"header": {"kid": "unknown"}}, 50013, id="not signed here"),
        ],
    )
    async def test_user_assertion(
        self,
        http: aiohttp.ClientSession,
        entra: EntraEmulator,
        changes: dict[str, Any],
        number: int,
    ) -> None:
        """The broker acts only for users whose valid token it has."""
        body = {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "requested_token_use": "on_behalf_of",
            "client_id": BROKER.client_id,
            "client_secret": BROKER.secret,
            "assertion": entra.issue_access_token(**changes),
            "scope": "https://communication.azure.com/clients/VoIP",
        }
        url = f"{entra.url}/{CONTOSO.tenant_id}/oauth2/v2.0/token"
        async with http.post(url, data=body) as response:
            problem = await response.json()

        assert (400, "invalid_grant", [number]) == (
            response.status,
            problem["error"],
            problem["error_codes"],
        )

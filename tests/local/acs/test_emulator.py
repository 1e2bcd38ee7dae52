from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import jwt
import pytest
from aiohttp import ClientSession
from azure.communication.identity import CommunicationIdentityClient
from azure.communication.identity.aio import CommunicationIdentityClient as AioClient
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.exceptions import (
    HttpResponseError,
    IncompleteReadError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline.transport import RequestsTransport
from cryptography.hazmat.primitives.asymmetric import rsa
from yarl import URL

from local.acs.emulator import AcsEmulator
from local.serving.application import serve
from local.storage.npm import find_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from local.serving.certificates import Certificates

    RunNode = Callable[..., Awaitable[dict[str, Any]]]

KEY = base64.b64encode(b"a key for tests, worthless").decode()
IDENTITY_API = "https://communication.azure.com/"
CLIENTS = "https://communication.azure.com/clients"
TEAMS = "https://auth.msft.communication.azure.com"
CONTOSO = "c0ffee00-0000-4000-8000-00000000c057"
ADA = "c0ffee00-0000-4000-8000-0000000000ad"
APP = "c0ffee00-0000-4000-8000-000000000a99"
OTHER = "c0ffee00-0000-4000-8000-0000000000ff"
GROUPS = {(CONTOSO, ADA): {"g"}}  # Whose member is who.
API = {"api-version": "2023-10-01"}
PREVIEW = {"api-version": "2025-03-02-preview"}


class Signer:
    """Signs and verifies access tokens with a key of its own."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def sign(self, audience: str, **changes: object) -> str:
        """Return a token of Ada's for the audience, with claims changed, or dropped by None."""
        now = int(time.time())
        claims = {"aud": audience, "exp": now + 3600, "tid": CONTOSO, "oid": ADA, "azp": APP}
        claims |= changes
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self._key, algorithm="RS256")

    def verify(self, token: str) -> Mapping[str, object]:
        """Return the claims of a token signed here."""
        try:
            claims: dict[str, object] = jwt.decode(
                token,
                self._key.public_key(),
                algorithms=["RS256"],
                options={"verify_aud": False},
            )
        except jwt.InvalidTokenError as exc:
            raise ValueError(str(exc)) from exc
        return claims


class Credential:
    """A credential that holds one token, for the sync and the async client."""

    def __init__(self, token: str) -> None:
        self._token = AccessToken(token, int(time.time()) + 3600)
        self.scopes: tuple[str, ...] = ()

    def get_token(self, *scopes: str, **_options: object) -> AccessToken:
        """Return the token, whatever it is asked for."""
        self.scopes = scopes
        return self._token


class AioCredential(Credential):
    """As `Credential`, for the async client."""

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:  # type: ignore[override]  # Both protocols use one name.
        """Return the token, whatever it is asked for."""
        return super().get_token(*scopes, **options)

    async def close(self) -> None:
        """Hold nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Hold nothing."""


@pytest.fixture(scope="session")
def signer() -> Signer:
    """Return the stand-in for Entra."""
    return Signer()


@pytest.fixture
async def acs(signer: Signer) -> AsyncIterator[AcsEmulator]:
    """Serve an emulator over HTTP."""
    emulator = AcsEmulator(
        access_key=KEY,
        verify_bearer=signer.verify,
        groups_of=lambda *user: GROUPS.get(user, set()),
    )
    emulator.roles.give(ADA)
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def acs_tls(signer: Signer, certificates: Certificates) -> AsyncIterator[AcsEmulator]:
    """Serve an emulator over TLS."""
    emulator = AcsEmulator(
        access_key=KEY,
        verify_bearer=signer.verify,
        groups_of=lambda *user: GROUPS.get(user, set()),
    )
    emulator.roles.give(ADA)
    async with serve(emulator.application(), tls=certificates.server_context()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def client(acs: AcsEmulator) -> AsyncIterator[AioClient]:
    """Return the async client of `acs`, with the key."""
    async with AioClient(acs.url, AzureKeyCredential(KEY)) as client:
        yield client


def claims_of(token: str) -> dict[str, Any]:
    """Return a token's claims, unverified."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


@pytest.fixture
def run_node(js: Path, certificates: Certificates) -> RunNode:
    """Return a function that runs a script with real clients, and returns what it prints."""

    async def run(script: str, **arguments: object) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            find_node()[0],
            js / script,
            json.dumps(arguments),
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(certificates.authority_file)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert 0 == process.returncode, errors.decode()
        printed: dict[str, Any] = json.loads(output)
        return printed

    return run


class TestPythonClients:
    """azure-communication-identity as it comes from PyPI."""

    def check_life(self, acs: AcsEmulator, client: CommunicationIdentityClient) -> None:
        """Go through an identity's life with the sync client."""
        user = client.create_user()
        revoked = client.get_token(user, ["chat"])
        client.revoke_tokens(user)
        token = client.get_token(user, ["voip", "chat.join"]).token
        claims = claims_of(token)
        valid = acs.token_is_valid(revoked.token), acs.token_is_valid(token)
        client.delete_user(user)

        assert (False, True, False) == (*valid, acs.token_is_valid(token))
        assert f"8:{claims['skypeid']}" == user.properties["id"]
        assert "voip,chat.join" == claims["acsScope"]

    async def test_sync_key(self, acs: AcsEmulator) -> None:
        """The sync client signs the percent-encoded path."""
        with RequestsTransport() as transport:
            client = CommunicationIdentityClient(
                acs.url, AzureKeyCredential(KEY), transport=transport
            )
            await asyncio.to_thread(self.check_life, acs, client)

    async def test_sync_bearer(
        self, acs_tls: AcsEmulator, signer: Signer, certificates: Certificates
    ) -> None:
        """The sync client uses an Entra token, over TLS."""
        credential = Credential(signer.sign(IDENTITY_API))
        authority = str(certificates.authority_file)
        with RequestsTransport(connection_verify=authority) as transport:
            client = CommunicationIdentityClient(acs_tls.url, credential, transport=transport)
            await asyncio.to_thread(self.check_life, acs_tls, client)
        assert ("https://communication.azure.com//.default",) == credential.scopes

    @pytest.mark.parametrize("by_key", [True, False], ids=["key", "bearer"])
    async def test_aio(
        self,
        acs: AcsEmulator,
        acs_tls: AcsEmulator,
        signer: Signer,
        certificates: Certificates,
        by_key: bool,
    ) -> None:
        """The async client goes through an identity's life, with a key and with a token."""
        emulator = acs if by_key else acs_tls
        credential = AzureKeyCredential(KEY) if by_key else AioCredential(signer.sign(IDENTITY_API))
        authority = str(certificates.authority_file)
        async with AioClient(emulator.url, credential, connection_verify=authority) as client:
            user, first = await client.create_user_and_token(["chat"])
            await client.revoke_tokens(user)
            hour = timedelta(hours=1)
            second = await client.get_token(user, ["voip"], token_expires_in=hour)
            valid = [emulator.token_is_valid(token.token) for token in (first, second)]
            await client.delete_user(user)
            with pytest.raises(ResourceNotFoundError):
                await client.delete_user(user)

        assert [False, True] == valid
        assert not emulator.token_is_valid(second.token)
        assert [user.properties["id"]] == emulator.created == emulator.deleted
        assert {} == emulator.identities

    async def test_teams_user(self, acs: AcsEmulator, client: AioClient, signer: Signer) -> None:
        """A Teams user's Entra token becomes an ACS token that expires at the same time."""
        teams_token = signer.sign(TEAMS, scp="Teams.ManageCalls Teams.ManageChats")

        token = (await client.get_token_for_teams_user(teams_token, APP, ADA)).token

        claims = claims_of(token)
        assert (f"orgid:{ADA}", "voip,chat") == (claims["skypeid"], claims["acsScope"])
        assert claims_of(teams_token)["exp"] == claims["exp"]
        assert acs.token_is_valid(token)

    @pytest.mark.parametrize(
        ("changes", "body", "expected"),
        [
            pytest.param({"aud": "api://other"}, {}, (401, "InvalidAccessToken"), id="audience"),
            pytest.param({"exp": 1}, {}, (401, "InvalidAccessToken"), id="expired"),
            pytest.param({"scp": None}, {}, (401, "InvalidAccessToken"), id="app-only"),
            pytest.param({"scp": "User.Read"}, {}, (403, "Forbidden"), id="other scope"),
            pytest.param({}, {"client_id": "other"}, (400, "ValidationError"), id="other app"),
            pytest.param({}, {"user_object_id": "other"}, (400, "ValidationError"), id="user"),
            pytest.param({}, {"user_object_id": None}, (400, "ValidationError"), id="no user"),
            pytest.param({}, {"aad_token": ""}, (401, "InvalidAccessToken"), id="no token"),
        ],
    )
    async def test_teams_user_refused(
        self,
        client: AioClient,
        signer: Signer,
        changes: dict[str, object],
        body: dict[str, Any],
        expected: tuple[int, str],
    ) -> None:
        """The token must be valid, and name the user and the app in the body."""
        token = signer.sign(TEAMS, **({"scp": "Teams.ManageCalls"} | changes))
        good = {"aad_token": token, "client_id": APP, "user_object_id": ADA}
        with pytest.raises(HttpResponseError) as caught:
            await client.get_token_for_teams_user(**(good | body))
        assert caught.value.error is not None
        assert expected == (caught.value.status_code, caught.value.error.code)


class TestFaults:
    """How the real client reacts to each fault."""

    async def test_status(self, acs: AcsEmulator, client: AioClient) -> None:
        """A status comes with the service's own form of error."""
        acs.faults.fail_next("create", status=503)
        with pytest.raises(HttpResponseError) as caught:
            await client.create_user(retry_total=0)
        assert caught.value.error is not None
        assert (503, "ServiceUnavailable") == (caught.value.status_code, caught.value.error.code)
        assert 1 == acs.faults.count("create")
        assert [] == acs.created

    async def test_reset(self, acs: AcsEmulator, client: AioClient) -> None:
        """A reset cuts the connection before anything is done."""
        acs.faults.fail_next("create", reset=True)
        with pytest.raises(ServiceRequestError):
            await client.create_user(retry_total=0)
        assert [] == acs.created

    async def test_lost_reply(self, acs: AcsEmulator, client: AioClient) -> None:
        """A lost reply leaves an identity whose id is lost."""
        acs.faults.fail_next("create", reset=True, after=True)
        with pytest.raises(ServiceRequestError):
            await client.create_user(retry_total=0)
        assert 1 == len(acs.created) == len(acs.identities)

    async def test_truncated(self, acs: AcsEmulator, client: AioClient) -> None:
        """A truncated answer does not look whole."""
        acs.faults.fail_next("create", truncate=10)
        with pytest.raises(IncompleteReadError):
            await client.create_user(retry_total=0)

    async def test_drip(self, acs: AcsEmulator, client: AioClient) -> None:
        """A dripping answer outlives the client's timeouts, which are per read."""
        acs.faults.fail_next("create", drip=0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.create_user(retry_total=0, read_timeout=0.2)

    async def test_delay(self, acs: AcsEmulator, client: AioClient) -> None:
        """A late answer runs into the client's timeout."""
        acs.faults.fail_next("create", delay=5)
        with pytest.raises(ServiceResponseTimeoutError):
            await client.create_user(retry_total=0, read_timeout=0.1)

    async def test_body(self, acs: AcsEmulator, client: AioClient) -> None:
        """A body is sent as it was given."""
        acs.faults.fail_next("create", status=201, body='{"identity": {"id": 5}}')
        user = await client.create_user(retry_total=0)
        assert "5" == user.properties["id"]


class TestJavaScriptClients:
    """@azure/communication-identity and @azure/communication-common as they come from npm."""

    @pytest.mark.parametrize("by_key", [True, False], ids=["key", "bearer"])
    async def test_identity(
        self,
        acs: AcsEmulator,
        acs_tls: AcsEmulator,
        signer: Signer,
        run_node: RunNode,
        by_key: bool,
    ) -> None:
        """The identity client goes through an identity's life, with a key and with a token."""
        emulator = acs if by_key else acs_tls
        access = {"key": KEY} if by_key else {"token": signer.sign(IDENTITY_API)}

        seen = await run_node("communication_identity.mjs", url=emulator.url, **access)

        assert [seen["user"], seen["deleted"]] == emulator.created
        assert [seen["user"]] == list(emulator.identities)
        assert [False, True, False] == [
            emulator.token_is_valid(seen[name]) for name in ("revoked", "issued", "dead")
        ]
        assert claims_of(seen["issued"])["exp"] == int(seen["expires"])
        assert {"status": 404, "code": "NotFound"} == seen["refusal"]

    async def test_entra_exchange(
        self, acs_tls: AcsEmulator, signer: Signer, run_node: RunNode
    ) -> None:
        """A user with an assignment gets a token that expires with their Entra token."""
        acs_tls.entra_assignments[CONTOSO] = assignment(CONTOSO, "tenant")
        token = signer.sign(CLIENTS, scp="VoIP VoIP.Join")

        seen = await run_node("communication_common.mjs", url=acs_tls.url, token=token)

        claims = claims_of(seen["token"])
        assert "voip,voip.join" == claims["acsScope"]
        assert claims["skypeid"].endswith(f"_wf_{CONTOSO}_{ADA}")
        assert claims_of(token)["exp"] == claims["exp"] == seen["expires"]
        assert acs_tls.token_is_valid(seen["token"])

    async def test_entra_exchange_refused(
        self, acs_tls: AcsEmulator, signer: Signer, run_node: RunNode
    ) -> None:
        """A user without an assignment is refused, once."""
        seen = await run_node(
            "communication_common.mjs",
            url=acs_tls.url,
            token=signer.sign(CLIENTS, scp="VoIP"),
        )

        assert seen["error"].startswith("Service request failed. Status: 403")
        assert 1 == acs_tls.faults.count("exchange_entra")

    @pytest.mark.parametrize(
        ("fault", "times_asked"),
        [
            pytest.param({"status": 503}, 2, id="503 is tried again"),
            pytest.param({"status": 429, "headers": {"Retry-After": "1"}}, 2, id="429 with a time"),
            pytest.param({"status": 429}, 1, id="429 without is final"),
        ],
    )
    async def test_entra_exchange_retried(
        self,
        acs_tls: AcsEmulator,
        signer: Signer,
        run_node: RunNode,
        fault: dict[str, Any],
        times_asked: int,
    ) -> None:
        """The client retries what may succeed later."""
        acs_tls.entra_assignments[ADA] = assignment(ADA, "user")
        acs_tls.faults.fail_next("exchange_entra", **fault)

        seen = await run_node(
            "communication_common.mjs",
            url=acs_tls.url,
            token=signer.sign(CLIENTS, scp="VoIP"),
        )

        assert times_asked == acs_tls.faults.count("exchange_entra")
        assert ("token" in seen) == (times_asked == 2)

    async def test_teams_extension(
        self, acs_tls: AcsEmulator, signer: Signer, run_node: RunNode
    ) -> None:
        """A Teams phone user's token is exchanged, also where the endpoint ends in a slash."""
        acs_tls.teams_assignments[CONTOSO, ADA] = {"clientIds": []}

        seen = await run_node(
            "communication_common.mjs",
            url=f"{acs_tls.url}/",
            token=signer.sign(TEAMS, scp="TeamsExtension.ManageCalls"),
            scopes=[f"{TEAMS}/TeamsExtension.ManageCalls"],
        )

        assert "voip" == claims_of(seen["token"])["acsScope"]


def assignment(object_id: str, principal_type: str) -> dict[str, Any]:
    """Return an Entra assignment for the test's app."""
    return {
        "objectId": object_id,
        "tenantId": CONTOSO,
        "principalType": principal_type,
        "clientIds": [APP],
    }


class Wire:
    """Plain HTTP to an emulator: signs requests, and lets a test break them."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self._session = session
        self._url = URL(url)

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] = API,
        headers: Mapping[str, str] | None = None,
        key: str = KEY,
        date: datetime | None = None,
        signed_body: bytes | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Send a request, and return the status, the JSON and the headers of the answer."""
        target = path + "".join(f"?{name}={value}" for name, value in query.items())
        data = b"" if body is None else json.dumps(body).encode()
        digest = hashlib.sha256(data if signed_body is None else signed_body).digest()
        content_hash = base64.b64encode(digest).decode()
        moment = f"{date or datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT"
        text = f"{method}\n{target}\n{moment};{self._url.authority};{content_hash}"
        signature = base64.b64encode(
            hmac.digest(base64.b64decode(key), text.encode(), "sha256")
        ).decode()
        signed = {
            "Content-Type": "application/json",
            "x-ms-date": moment,
            "x-ms-content-sha256": content_hash,
            "Authorization": "HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256"
            f"&Signature={signature}",
        }
        url = URL(f"{self._url}".rstrip("/") + target, encoded=True)
        async with self._session.request(
            method, url, data=data, headers=signed | dict(headers or {})
        ) as response:
            raw = await response.read()
            return response.status, json.loads(raw) if raw else None, response.headers


@pytest.fixture
async def wire(acs: AcsEmulator) -> AsyncIterator[Wire]:
    """Return plain HTTP to `acs`."""
    async with ClientSession() as session:
        yield Wire(session, acs.url)


def code(answer: tuple[int, Any, Mapping[str, str]]) -> tuple[int, str]:
    """Return the status and the code of an error."""
    return answer[0], answer[1]["error"]["code"]


class TestAccess:
    """Requests need the resource's key, or a token for this API."""

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"key": base64.b64encode(b"other").decode()}, id="other key"),
            pytest.param({"signed_body": b"{}"}, id="tampered body"),
            pytest.param({"headers": {"Authorization": ""}}, id="no signature"),
            pytest.param({"headers": {"Authorization": "HMAC-SHA256 Signature=x"}}, id="malformed"),
            pytest.param({"headers": {"x-ms-date": "yesterday"}}, id="other date"),
            pytest.param({"headers": {"Authorization": "Bearer x"}}, id="no token"),
        ],
    )
    async def test_denied(self, acs: AcsEmulator, wire: Wire, changes: dict[str, Any]) -> None:
        """A request whose signature does not match is denied."""
        answer = await wire.ask("POST", "/identities", {"expiresInMinutes": 60}, **changes)
        assert (401, "Denied") == code(answer)
        assert [] == acs.created

    @pytest.mark.parametrize(("minutes", "status"), [(-6, 401), (-4, 201), (4, 201), (6, 401)])
    async def test_clock(self, wire: Wire, minutes: int, status: int) -> None:
        """The clocks may be five minutes apart."""
        date = datetime.now(UTC) + timedelta(minutes=minutes)
        assert status == (await wire.ask("POST", "/identities", date=date))[0]

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            pytest.param({}, 201, id="good"),
            pytest.param({"aud": "https://communication.azure.com"}, 201, id="no slash"),
            pytest.param({"aud": CLIENTS}, 401, id="for the clients"),
            pytest.param({"aud": "api://other"}, 401, id="for another API"),
            pytest.param({"exp": 1}, 401, id="expired"),
        ],
    )
    async def test_bearer(
        self, wire: Wire, signer: Signer, changes: dict[str, Any], status: int
    ) -> None:
        """An Entra token must be for the identity API."""
        bearer = {"Authorization": f"Bearer {signer.sign(IDENTITY_API, **changes)}"}
        assert status == (await wire.ask("POST", "/identities", headers=bearer))[0]

    async def test_role(self, acs: AcsEmulator, wire: Wire, signer: Signer) -> None:
        """An Entra token must be that of somebody who has the role, which can be taken away."""
        bearer = {"Authorization": f"Bearer {signer.sign(IDENTITY_API)}"}

        async def ask() -> tuple[int, str]:
            return code(await wire.ask("GET", "/identities/x", query=PREVIEW, headers=bearer))

        assert (404, "NotFound") == await ask()
        acs.roles.take(ADA)
        assert (401, "Denied") == await ask()
        assert 204 == (await wire.ask("POST", "/_local/roles", {"principal": ADA}))[0]
        assert (404, "NotFound") == await ask()
        assert ADA in (await wire.ask("GET", "/_local/roles"))[1]
        assert 204 == (await wire.ask("DELETE", "/_local/roles", {"principal": ADA}))[0]
        assert (401, "Denied") == await ask()

    @pytest.mark.parametrize("body", [{}, [], {"principal": "ada"}, {"principal": 5}], ids=str)
    async def test_role_refused(self, acs: AcsEmulator, body: object) -> None:
        """What names no principal changes nothing."""
        async with (
            ClientSession() as session,
            session.post(f"{acs.url}/_local/roles", json=body) as response,
        ):
            assert 400 == response.status

    async def test_no_entra(self, signer: Signer) -> None:
        """Without a way to verify them, no Entra token is accepted."""
        emulator = AcsEmulator(access_key=KEY)
        async with serve(emulator.application()) as url, ClientSession() as session:
            bearer = {"Authorization": f"Bearer {signer.sign(IDENTITY_API)}"}
            answer = await Wire(session, url).ask("POST", "/identities", headers=bearer)
        assert (401, "Denied") == code(answer)

    @pytest.mark.parametrize(
        ("changes", "message", "target", "names_versions"),
        [
            ({"appId": ""}, "AppId: The AppId field is required.", "AppId", False),
            ({"appId": "invalid"}, "Provided AppId has invalid format.", "appId", True),
            ({"appId": OTHER}, "AAD application is not the expected one.", "appId", True),
            ({"userId": ""}, "UserId: The UserId field is required.", "UserId", False),
            ({"userId": "invalid"}, "Provided UserId has invalid format.", "userId", True),
            (
                {"userId": OTHER},
                "Provided AAD token issued for unexpected user.",
                "userId",
                True,
            ),
        ],
    )
    async def test_teams_refused(
        self,
        wire: Wire,
        signer: Signer,
        *,
        changes: dict[str, str],
        message: str,
        target: str,
        names_versions: bool,
    ) -> None:
        """The refusals of an exchange for Teams are those recorded from the service."""
        token = signer.sign(TEAMS, scp="Teams.ManageCalls")
        body = {"token": token, "appId": APP, "userId": ADA, **changes}
        status, answer, headers = await wire.ask("POST", "/teamsUser/:exchangeAccessToken", body)

        expected = {"code": "ValidationError", "message": message, "target": target}
        assert (400, {"error": expected}) == (status, answer)
        assert names_versions == ("api-supported-versions" in headers)

    async def test_key_does_not_exchange(self, wire: Wire) -> None:
        """A user's exchange takes only the user's token, not the key."""
        answer = await wire.ask("POST", "/access/entra/:exchangeAccessToken", {}, query=PREVIEW)
        assert (401, "Denied") == code(answer)


class TestIdentities:
    """The identity API, with the service's own words."""

    @pytest.mark.parametrize("quoted", [True, False], ids=["8%3Aacs%3A", "8:acs:"])
    async def test_paths(self, acs: AcsEmulator, wire: Wire, quoted: bool) -> None:
        """An id in the path may be percent-encoded or not, and is signed as sent."""
        _, answer, _ = await wire.ask("POST", "/identities")
        acs_id = answer["identity"]["id"]
        path = f"/identities/{acs_id.replace(':', '%3A') if quoted else acs_id}"

        issued = await wire.ask("POST", f"{path}/:issueAccessToken", {"scopes": ["voip"]})
        got = await wire.ask("GET", path, query=PREVIEW)
        deleted = await wire.ask("DELETE", f"/{path}")

        assert [200, 200, 204] == [issued[0], got[0], deleted[0]]
        assert {"id": acs_id} == got[1]
        assert {acs_id: 1} == acs.issued

    async def test_answer(self, wire: Wire) -> None:
        """Answers have the service's headers."""
        answer = await wire.ask("POST", "/identities", headers={"x-ms-client-request-id": "my-id"})
        status, body, headers = answer
        assert (201, ["identity"]) == (status, list(body))
        assert "application/json; charset=utf-8" == headers["Content-Type"]
        assert "my-id" == headers["x-ms-client-request-id"]
        assert "2023-10-01" in headers["api-supported-versions"]

    async def test_nulls(self, wire: Wire) -> None:
        """Nulls count as absent."""
        body = {"createTokenWithScopes": None, "expiresInMinutes": None}
        status, answer, _ = await wire.ask("POST", "/identities", body)
        assert (201, ["identity"]) == (status, list(answer))

    async def test_token(self, wire: Wire) -> None:
        """A token has the documented header and claims."""
        _, answer, _ = await wire.ask("POST", "/identities", {"createTokenWithScopes": ["chat"]})
        token = answer["accessToken"]["token"]
        claims = claims_of(token)
        expires = datetime.fromisoformat(answer["accessToken"]["expiresOn"])

        assert {"alg": "RS256", "typ": "JWT"}.items() <= jwt.get_unverified_header(token).items()
        assert f"8:{claims['skypeid']}" == answer["identity"]["id"]
        assert (1792, "chat", str(claims["iat"])) == (
            claims["scp"],
            claims["acsScope"],
            claims["csi"],
        )
        assert 86_400 == pytest.approx(claims["exp"] - claims["iat"], abs=2)
        assert int(expires.timestamp()) == claims["exp"]
        assert timedelta(0) == expires.utcoffset()

    @pytest.mark.parametrize(
        ("body", "message", "target"),
        [
            pytest.param(
                {"scopes": ["voip"], "expiresInMinutes": 59},
                "ExpiresInMinutes value 59 is invalid."
                " Value must be within the [60, 1440] interval.",
                "ExpiresInMinutes",
                id="59 minutes",
            ),
            pytest.param(
                {"scopes": ["voip"], "expiresInMinutes": 1441},
                "ExpiresInMinutes value 1441 is invalid."
                " Value must be within the [60, 1440] interval.",
                "ExpiresInMinutes",
                id="1441 minutes",
            ),
            pytest.param(
                {"scopes": None}, "Scopes: The Scopes field is required.", "Scopes", id="no scopes"
            ),
        ],
    )
    async def test_refused(
        self, wire: Wire, body: dict[str, Any], message: str, target: str
    ) -> None:
        """Refusals are as they were recorded from the service."""
        _, answer, _ = await wire.ask("POST", "/identities")
        path = f"/identities/{answer['identity']['id']}/:issueAccessToken"
        status, answer, headers = await wire.ask("POST", path, body)
        expected = {"code": "ValidationError", "message": message, "target": target}
        assert (400, {"error": expected}) == (status, answer)
        assert "application/json" == headers["Content-Type"]

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param([], id="a list"),
            pytest.param({"scopes": ["admin"]}, id="unknown scope"),
            pytest.param({"scopes": "voip"}, id="scopes a string"),
            pytest.param({"scopes": ["voip"], "expiresInMinutes": "60"}, id="minutes a string"),
            pytest.param({"scopes": ["voip"], "expiresInMinutes": True}, id="minutes true"),
        ],
    )
    async def test_other_bad_bodies(self, wire: Wire, body: object) -> None:
        """Other bad input is a validation error, as far as is known."""
        _, answer, _ = await wire.ask("POST", "/identities")
        path = f"/identities/{answer['identity']['id']}/:issueAccessToken"
        assert (400, "ValidationError") == code(await wire.ask("POST", path, body))

    @pytest.mark.parametrize(
        ("method", "path", "query", "expected"),
        [
            ("POST", "/identities", {}, (400, "ApiVersionUnspecified")),
            ("POST", "/identities", {"api-version": "2019-01-01"}, (400, "UnsupportedApiVersion")),
            ("GET", "/identities/x", API, (400, "UnsupportedApiVersion")),
            ("POST", "/identities", {"api-version": "2026-09-23"}, (201, "")),
            ("GET", "/access/entra/assignments", API, (400, "UnsupportedApiVersion")),
            ("GET", "/nothing", API, (404, "NotFound")),
            ("PUT", "/identities", API, (405, "MethodNotAllowed")),
        ],
    )
    async def test_versions(
        self, wire: Wire, method: str, path: str, query: dict[str, str], expected: tuple[int, str]
    ) -> None:
        """Every operation's answer names the api-versions that have it."""
        answer = await wire.ask(method, path, query=query)
        assert expected == (code(answer) if expected[1] else (answer[0], ""))

    @pytest.mark.parametrize(
        ("method", "suffix"),
        [("DELETE", ""), ("POST", "/:issueAccessToken"), ("POST", "/:revokeAccessTokens")],
    )
    async def test_unknown(self, wire: Wire, method: str, suffix: str) -> None:
        """An identity that was never made is not found."""
        answer = await wire.ask(method, f"/identities/8:acs:x_y{suffix}", {"scopes": ["voip"]})
        assert (404, "NotFound") == code(answer)

    async def test_quota(self, acs: AcsEmulator, wire: Wire) -> None:
        """One request too many in 30 seconds is refused, with the time to wait."""
        acs.quotas["create"] = 2
        answers = [await wire.ask("POST", "/identities") for _ in range(3)]
        assert [201, 201, 429] == [status for status, _, _ in answers]
        assert 1 <= int(answers[-1][2]["Retry-After"]) <= 30
        assert 2 == len(acs.created)

    async def test_state(self, wire: Wire) -> None:
        """Other processes can read the emulator's state without a token."""
        _, kept, _ = await wire.ask("POST", "/identities", {"createTokenWithScopes": ["voip"]})
        _, gone, _ = await wire.ask("POST", "/identities")
        kept_id, gone_id = kept["identity"]["id"], gone["identity"]["id"]
        await wire.ask("DELETE", f"/identities/{gone_id}")

        _, state, _ = await wire.ask("GET", "/_local/state")

        assert {
            "live": [kept_id],
            "created": [kept_id, gone_id],
            "deleted": [gone_id],
            "issued": {kept_id: 1},
        } == state


class TestAssignments:
    """Who may exchange their Entra token."""

    async def exchange(self, wire: Wire, signer: Signer, **changes: object) -> int:
        """Return the status of an exchange of Ada's token."""
        token = signer.sign(CLIENTS, **({"scp": "VoIP"} | changes))
        answer = await wire.ask(
            "POST",
            "/access/entra/:exchangeAccessToken",
            {},
            query=PREVIEW,
            headers={"Authorization": f"Bearer {token}"},
        )
        return answer[0]

    async def test_entra(self, wire: Wire, signer: Signer) -> None:
        """An assignment is put, read, listed and deleted, and admits the user while it exists."""
        path = f"/access/entra/assignments/{ADA}"
        wanted = assignment(ADA, "user")
        body = {name: value for name, value in wanted.items() if name != "objectId"}

        assert 403 == await self.exchange(wire, signer)
        assert (201, wanted) == (await wire.ask("PUT", path, body, query=PREVIEW))[:2]
        assert 200 == (await wire.ask("PUT", path, body, query=PREVIEW))[0]
        assert (200, wanted) == (await wire.ask("GET", path, query=PREVIEW))[:2]
        listed = await wire.ask("GET", "/access/entra/assignments", query=PREVIEW)
        assert {"value": [wanted]} == listed[1]
        assert 200 == await self.exchange(wire, signer)
        assert 204 == (await wire.ask("DELETE", path, query=PREVIEW))[0]
        assert (404, "NotFound") == code(await wire.ask("GET", path, query=PREVIEW))
        assert 403 == await self.exchange(wire, signer)

    @pytest.mark.parametrize(
        ("item", "claims", "status"),
        [
            pytest.param(assignment(CONTOSO, "tenant"), {}, 200, id="tenant"),
            pytest.param(assignment("g", "group"), {}, 200, id="group"),
            pytest.param(assignment("h", "group"), {"groups": ["h"]}, 403, id="not a member"),
            pytest.param(assignment(ADA, "tenant"), {}, 403, id="user id as tenant"),
            pytest.param(assignment(ADA, "user"), {"azp": "other"}, 403, id="other app"),
            pytest.param(assignment(ADA, "user"), {"azp": None, "appid": APP}, 200, id="v1 token"),
            pytest.param(assignment(ADA, "user"), {"tid": "other"}, 403, id="other tenant"),
            pytest.param(assignment(ADA, "user"), {"scp": "Other"}, 403, id="other scope"),
            pytest.param(assignment(ADA, "user"), {"scp": None}, 401, id="app-only"),
            pytest.param(assignment(ADA, "user"), {"aud": IDENTITY_API}, 401, id="other audience"),
        ],
    )
    async def test_entra_assigned(
        self,
        wire: Wire,
        signer: Signer,
        item: dict[str, Any],
        claims: dict[str, Any],
        status: int,
    ) -> None:
        """An assignment is for a user, a group or a tenant, and for some apps."""
        path = f"/access/entra/assignments/{item['objectId']}"
        await wire.ask("PUT", path, item, query=PREVIEW)
        assert status == await self.exchange(wire, signer, **claims)

    async def test_entra_patch(self, acs: AcsEmulator, wire: Wire) -> None:
        """A merge patch adds, changes and removes, all or nothing."""
        acs.entra_assignments = {ADA: assignment(ADA, "user"), "old": assignment("old", "group")}
        path = "/access/entra/assignments"
        merge = {"Content-Type": "application/merge-patch+json"}

        async def patch(body: object, headers: Mapping[str, str] = merge) -> int:
            return (await wire.ask("PATCH", path, body, query=PREVIEW, headers=headers))[0]

        assert 415 == await patch({}, {"Content-Type": "application/json"})
        assert 400 == await patch({"old": None, ADA: {"principalType": "robot"}})
        assert 200 == await patch({"old": None, ADA: {"clientIds": ["other"]}})
        assert {ADA: assignment(ADA, "user") | {"clientIds": ["other"]}} == acs.entra_assignments
        assert 204 == await patch({ADA: None})
        assert {} == acs.entra_assignments

    @pytest.mark.parametrize(
        "changes",
        [{"principalType": "robot"}, {"tenantId": None}, {"clientIds": None}, {"clientIds": [1]}],
        ids=str,
    )
    async def test_entra_refused(self, wire: Wire, changes: dict[str, Any]) -> None:
        """An assignment without one of its members is refused."""
        body = assignment(ADA, "user") | changes
        answer = await wire.ask("PUT", f"/access/entra/assignments/{ADA}", body, query=PREVIEW)
        assert (400, "ValidationError") == code(answer)

    async def test_teams(self, acs: AcsEmulator, wire: Wire, signer: Signer) -> None:
        """A Teams assignment admits a user with any app, or with those that it names."""
        path = f"/access/teamsExtension/tenants/{CONTOSO}/assignments/{ADA}"
        version = {"api-version": "2025-06-30"}

        async def exchange() -> int:
            token = signer.sign(TEAMS, scp="TeamsExtension.ManageCalls")
            bearer = {"Authorization": f"Bearer {token}"}
            exchange_path = "/access/teamsExtension/:exchangeAccessToken"
            answer = await wire.ask("POST", exchange_path, {}, query=version, headers=bearer)
            return answer[0]

        assert 403 == await exchange()
        status, put, _ = await wire.ask("PUT", path, {"principalType": "user"}, query=version)
        assert (201, ADA, CONTOSO) == (status, put["objectId"], put["tenantId"])
        assert 200 == await exchange()
        acs.teams_assignments[CONTOSO, ADA]["clientIds"] = ["other"]
        assert 403 == await exchange()
        assert 204 == (await wire.ask("DELETE", path, query=version))[0]
        assert 403 == await exchange()

"""ACS's exchanges of an Entra token, through the SDK and without."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import jwt
import pytest
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential

from local.acs.emulator import AcsEmulator
from local.entra.directory import ACS_CLIENTS, ACS_TEAMS, ADA, BROKER, CONTOSO, WEB_APP
from local.serving.application import serve
from shared.acs.exchange import AcsExchange, UserTokenRefusedError
from shared.circuit import LEAST_CALLS
from shared.errors import (
    BrokerError,
    NotAssignedError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from local.entra.tokens import TokenIssuer

    Call = Callable[..., Awaitable[Any]]

KEY = base64.b64encode(b"worthless").decode()
ACS_ID = f"8:acs:ac5ac5ac-0000-4000-8000-000000000001_wf_{CONTOSO.tenant_id}_{ADA.object_id}"
EXPIRES = "2030-01-01T00:00:00.1234567+00:00"


@pytest.fixture
async def acs(issuer: TokenIssuer) -> AsyncIterator[AcsEmulator]:
    """An ACS resource that the people of Contoso may use with the web app."""
    emulator = AcsEmulator(access_key=KEY, verify_bearer=issuer.verify)
    emulator.entra_assignments[CONTOSO.tenant_id] = {
        "objectId": CONTOSO.tenant_id,
        "tenantId": CONTOSO.tenant_id,
        "principalType": "tenant",
        "clientIds": [WEB_APP.client_id],
    }
    emulator.teams_assignments[CONTOSO.tenant_id, ADA.object_id] = {"clientIds": []}
    async with serve(emulator.application()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def exchange(acs: AcsEmulator) -> AsyncIterator[AcsExchange]:
    """The broker's client of the resource."""
    async with (
        CommunicationIdentityClient(acs.url, AzureKeyCredential(KEY)) as client,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        yield AcsExchange(client=client, session=session, endpoint=f"{acs.url}/", seconds=1)


def token_of(issuer: TokenIssuer, call: str, **changes: Any) -> str:
    """Return Ada's Entra token for an exchange, with changes."""
    resource = ACS_CLIENTS if call == "exchange_entra" else ACS_TEAMS
    return issuer.issue_access_token(ADA.user_name, resource=resource, **changes)


CALLS: list[Any] = [
    pytest.param(
        "exchange_entra", lambda acs, token, **held: acs.entra_user(token, **held), id="entra"
    ),
    pytest.param(
        "exchange_teams_extension",
        lambda acs, token, **held: acs.teams_extension_user(token, **held),
        id="teams-extension",
    ),
    pytest.param(
        "exchange_teams_user",
        lambda acs, token, **held: acs.teams_user(token, WEB_APP.client_id, ADA.object_id, **held),
        id="teams",
    ),
]
each_call = pytest.mark.parametrize(("operation", "call"), CALLS)


@each_call
class TestAll:
    """What the three exchanges have in common."""

    async def test_expires_with_the_entra_token(
        self, issuer: TokenIssuer, exchange: AcsExchange, operation: str, call: Call
    ) -> None:
        """The token is the person's, for as long as the Entra token lives."""
        token = token_of(issuer, operation, scopes=None, lifetime=timedelta(minutes=42))
        if operation == "exchange_entra":
            token = token_of(issuer, operation, scopes=("VoIP",), lifetime=timedelta(minutes=42))

        result = await call(exchange, token)

        acs_token = result if operation == "exchange_teams_user" else result[1]
        left = acs_token.expires_on - datetime.now(UTC)
        assert timedelta(minutes=41) < left <= timedelta(minutes=42)
        claims = jwt.decode(acs_token.token, options={"verify_signature": False})
        assert ADA.object_id in claims["skypeid"]
        assert acs_token.token not in repr(acs_token)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ({"status": 404}, UpstreamBadResponseError),
            ({"status": 408}, UpstreamTimeoutError),
            ({"status": 409, "headers": {"Retry-After": "9"}}, UpstreamThrottledError),
            ({"status": 413, "body": "<"}, UserTokenRefusedError),
            ({"status": 431, "body": ""}, UserTokenRefusedError),
            ({"status": 429, "headers": {"Retry-After": "9"}}, UpstreamThrottledError),
            ({"status": 500}, UpstreamUnavailableError),
            ({"status": 503, "body": "<"}, UpstreamUnavailableError),
            ({"status": 307, "headers": {"Location": "/"}, "body": ""}, UpstreamBadResponseError),
            ({"status": 200, "body": "{}"}, UpstreamBadResponseError),
            ({"status": 200, "body": "[]"}, UpstreamBadResponseError),
            ({"status": 200, "body": '{"token": '}, UpstreamBadResponseError),
            ({"truncate": 20}, BrokerError),
            ({"reset": True, "times": 2}, UpstreamUnavailableError),
        ],
        ids=str,
    )
    async def test_failure(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
        fault: dict[str, Any],
        error: type[Exception],
    ) -> None:
        """ACS's failures, redirects and odd answers become our errors, without its words."""
        acs.faults.fail_next(operation, **fault)

        with pytest.raises(error) as caught:
            await call(exchange, token_of(issuer, operation))

        assert len(str(caught.value)) < 80
        ours: Any = getattr(caught.value, "ours", caught.value)
        if "Retry-After" in fault.get("headers", {}):
            assert 9 == ours.retry_after
        if isinstance(caught.value, UserTokenRefusedError):
            assert isinstance(ours, UpstreamBadResponseError)

    async def test_slow(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
    ) -> None:
        """The time for the whole is limited, not only that between two bytes."""
        acs.faults.fail_next(operation, drip=0.05)

        with pytest.raises(UpstreamTimeoutError):
            await call(exchange, token_of(issuer, operation))

    @pytest.mark.parametrize("code", ["InvalidAccessToken", "Denied"])
    async def test_token_refused(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
        code: str,
    ) -> None:
        """Whose fault that is depends on whose the Entra token was; only the caller knows."""
        body = json.dumps({"error": {"code": code, "message": "Ada Lovelace"}})
        acs.faults.fail_next(operation, status=401, body=body)
        expected: Any = UserTokenRefusedError
        if (operation, code) == ("exchange_teams_user", "Denied"):
            expected = UpstreamAuthError  # This call is authorized by our own credential.

        with pytest.raises(expected) as caught:
            await call(exchange, token_of(issuer, operation))

        ours = getattr(caught.value, "ours", caught.value)
        denied = UpstreamAuthError if code == "Denied" else UpstreamBadResponseError
        assert denied is type(ours)
        assert "Lovelace" not in str(caught.value)

    async def test_bad_request(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
    ) -> None:
        """A 400 is an answer to the Entra token, too: there is nothing else in the request."""
        acs.faults.fail_next(operation, status=400)

        with pytest.raises(UserTokenRefusedError) as caught:
            await call(exchange, token_of(issuer, operation))

        assert UpstreamBadResponseError is type(caught.value.ours)


@each_call
class TestBreakers:
    """Who can keep the others from asking ACS."""

    async def with_failures(
        self, acs: AcsEmulator, ask: Callable[..., Awaitable[Any]], operation: str, fault: Any
    ) -> int:
        """Return how often ACS is asked, of so many times that would open a breaker."""
        acs.faults.fail_next(operation, **fault, times=LEAST_CALLS + 1)
        for _ in range(LEAST_CALLS + 1):
            with pytest.raises((BrokerError, UserTokenRefusedError)):
                await ask()
        return acs.faults.count(operation)

    @pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 415, 422, 431])
    @pytest.mark.parametrize("held", [False, True])
    async def test_refusals(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
        held: bool,
        status: int,
    ) -> None:
        """No 4xx stops the next call, whoever got the token."""
        ask = partial(call, exchange, token_of(issuer, operation), held=held)

        assert LEAST_CALLS + 1 == await self.with_failures(acs, ask, operation, {"status": status})

    @pytest.mark.parametrize(
        "fault",
        [{"status": 500}, {"status": 408}, {"status": 307}, {"reset": True}],
        ids=str,
    )
    @pytest.mark.parametrize("held", [False, True])
    async def test_failures(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
        held: bool,
        fault: Any,
    ) -> None:
        """What fails with callers' own tokens stops nobody; with ours, it does."""
        ask = partial(call, exchange, token_of(issuer, operation), held=held)

        asked = await self.with_failures(acs, ask, operation, fault)

        assert LEAST_CALLS + held == asked


@pytest.mark.parametrize(("operation", "call"), CALLS[:2])
class TestForUsers:
    """The two exchanges that the person's token alone authorizes."""

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ('{"error": {"code": "Forbidden"}}', NotAssignedError),
            ('{"error": "no"}', NotAssignedError),
            ("<html>", NotAssignedError),
            ("", NotAssignedError),
            ('{"error": {"code": "Denied"}}', UserTokenRefusedError),
        ],
    )
    async def test_forbidden(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
        body: str,
        error: type[Exception],
    ) -> None:
        """403 says that the person has no access, in whatever words."""
        acs.faults.fail_next(operation, status=403, body=body)

        with pytest.raises(error, match="ACS answered 403"):
            await call(exchange, token_of(issuer, operation))

    async def test_not_assigned(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
    ) -> None:
        """Without an assignment there is no access."""
        acs.entra_assignments.clear()
        acs.teams_assignments.clear()

        with pytest.raises(NotAssignedError):
            await call(exchange, token_of(issuer, operation))

    @pytest.mark.parametrize(
        "changes",
        [
            {"identity": None},
            {"identity": {"id": None}},
            {"identity": {"id": f"8:orgid:{ADA.object_id}"}},
            {"identity": {"id": f"{ACS_ID}/x"}},
            {"accessToken": None},
            {"accessToken": {"token": None, "expiresOn": EXPIRES}},
            {"accessToken": {"token": "two words", "expiresOn": EXPIRES}},
            {"accessToken": {"token": "opaque", "expiresOn": "soon"}},
            {"accessToken": {"token": "opaque", "expiresOn": "2030-01-01T00:00:00"}},
            {"accessToken": {"token": "opaque"}},
        ],
        ids=str,
    )
    async def test_odd_answers(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
        changes: dict[str, Any],
    ) -> None:
        """An answer without an identity or a token is not handed on."""
        answer = {"identity": {"id": ACS_ID}, "accessToken": {"token": "x", "expiresOn": EXPIRES}}
        acs.faults.fail_next(operation, status=200, body=json.dumps(answer | changes))

        with pytest.raises(UpstreamBadResponseError):
            await call(exchange, token_of(issuer, operation))

    async def test_too_long(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        operation: str,
        call: Call,
    ) -> None:
        """An endless answer is not read."""
        acs.faults.fail_next(operation, status=200, body=" " * 70_000)

        with pytest.raises(UpstreamBadResponseError, match="over 64 KiB"):
            await call(exchange, token_of(issuer, operation))


def acs_token(**claims: Any) -> str:
    """Return a token that can be read."""
    return jwt.encode(claims, "worthless, but long enough for HMAC", algorithm="HS256")


class TestContents:
    """A token that can be read, and is for somebody else, is not handed on."""

    @pytest.mark.parametrize(
        ("claims", "good"),
        [
            ({"skypeid": ACS_ID.removeprefix("8:"), "acsScope": "voip"}, True),
            ({}, True),
            ({"skypeid": "acs:somebody_else"}, False),
            ({"skypeid": None}, False),
            ({"skypeid": ACS_ID.removeprefix("8:"), "acsScope": "voip,chat"}, True),
        ],
    )
    async def test_entra_user(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        claims: dict[str, Any],
        good: bool,
    ) -> None:
        """For the identity in the answer; its scopes are what people have consented to."""
        token = {"token": acs_token(**claims), "expiresOn": EXPIRES}
        body = json.dumps({"identity": {"id": ACS_ID}, "accessToken": token})
        acs.faults.fail_next("exchange_entra", status=200, body=body)
        call = exchange.entra_user(token_of(issuer, "exchange_entra"))

        if good:
            assert ACS_ID == (await call)[0]
        else:
            with pytest.raises(UpstreamBadResponseError):
                await call

    @pytest.mark.parametrize("token", ["opaque", "a.b.c.d.e", "a.e30.c"])
    async def test_unreadable(
        self, issuer: TokenIssuer, acs: AcsEmulator, exchange: AcsExchange, token: str
    ) -> None:
        """Tokens of Entra users are encrypted in the real service."""
        answer = {"identity": {"id": ACS_ID}, "accessToken": {"token": token, "expiresOn": EXPIRES}}
        acs.faults.fail_next("exchange_entra", status=200, body=json.dumps(answer))

        _, issued = await exchange.entra_user(token_of(issuer, "exchange_entra"))

        assert token == issued.token

    @pytest.mark.parametrize("cloud", ["orgid", "gcch", "dod"])
    @pytest.mark.parametrize("whose", [ADA.object_id, BROKER.client_id])
    async def test_teams_user(
        self, issuer: TokenIssuer, acs: AcsEmulator, exchange: AcsExchange, cloud: str, whose: str
    ) -> None:
        """For the person who was named."""
        answer = {"token": acs_token(skypeid=f"{cloud}:{whose}"), "expiresOn": EXPIRES}
        acs.faults.fail_next("exchange_teams_user", status=200, body=json.dumps(answer))
        token = token_of(issuer, "exchange_teams_user")
        call = exchange.teams_user(token, WEB_APP.client_id, ADA.object_id)

        if whose == ADA.object_id:
            assert answer["token"] == (await call).token
        else:
            with pytest.raises(UpstreamBadResponseError):
                await call


class TestTeamsUser:
    """The exchange that the broker's own credential authorizes."""

    @pytest.mark.parametrize(
        ("client_id", "object_id"),
        [(BROKER.client_id, ADA.object_id), (WEB_APP.client_id, BROKER.client_id)],
        ids=["another app", "another person"],
    )
    async def test_does_not_fit(
        self, issuer: TokenIssuer, exchange: AcsExchange, client_id: str, object_id: str
    ) -> None:
        """ACS compares the token with the app and the person that are named beside it."""
        token = token_of(issuer, "exchange_teams_user")

        with pytest.raises(UserTokenRefusedError, match="ACS answered 400 ValidationError"):
            await exchange.teams_user(token, client_id, object_id)

    @pytest.mark.parametrize(
        ("code", "error"), [("Denied", UpstreamAuthError), ("Forbidden", NotAssignedError)]
    )
    async def test_forbidden(
        self,
        issuer: TokenIssuer,
        acs: AcsEmulator,
        exchange: AcsExchange,
        code: str,
        error: type[BrokerError],
    ) -> None:
        """Our own role is denied; whatever else is forbidden is forbidden to the person."""
        body = json.dumps({"error": {"code": code, "message": "No."}})
        acs.faults.fail_next("exchange_teams_user", status=403, body=body)
        token = token_of(issuer, "exchange_teams_user")

        with pytest.raises(error):
            await exchange.teams_user(token, WEB_APP.client_id, ADA.object_id)

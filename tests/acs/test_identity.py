from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import jwt
import pytest
from aiohttp import web
from azure.communication.identity import CommunicationUserIdentifier
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential
from azure.identity.aio import ManagedIdentityCredential

from local.acs.emulator import AcsEmulator
from local.entra.directory import ADA, USER_ASSIGNED_IDENTITY, WEB_APP
from local.entra.emulator import EntraEmulator
from local.entra.managed_identity import ManagedIdentityEmulator
from local.serving.application import serve
from local.serving.certificates import Certificates
from shared.acs import identity as acs_module
from shared.acs.exchange import AcsExchange
from shared.acs.identity import AcsIdentity
from shared.errors import (
    ForeignIdentityError,
    IdentityGoneError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from shared.identifiers import Person

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from local.entra.tokens import SigningKey
    from shared.errors import (
        BrokerError,
    )

    Call = Callable[[AcsIdentity, str], Awaitable[Any]]

HOUR = timedelta(hours=1)
UNKNOWN_ID = "8:acs:ac5ac5ac-0000-4000-8000-000000000001_00000005-0000-0000-0000-000000000000"
FOREIGN_ID = UNKNOWN_ID.replace("ac5ac5ac", "0e0e0e0e")
NEW_ID = f"8:acs:{'a' * 36}_wf_0000"
# Bodies that are not a JSON object, or do not follow the contract.
NONSENSE = [
    pytest.param({"body": "{}"}, id="empty object"),
    pytest.param({"body": "null"}, id="null"),
    pytest.param({"body": ""}, id="nothing"),
    pytest.param({"body": "[]"}, id="list"),
    pytest.param({"body": "5"}, id="number"),
    pytest.param({"body": "<html>", "content_type": "text/html"}, id="HTML"),
    pytest.param({"body": "<html>"}, id="HTML called JSON"),
    pytest.param({"body": '{"identity": '}, id="broken JSON"),
    pytest.param({"body": "[" * 100_000}, id="deep"),
    pytest.param({"body": "{}", "headers": {"Content-Encoding": "gzip"}}, id="bad compression"),
    pytest.param({"truncate": 20}, id="truncated"),
]
# The error for each failure of ACS, for all operations.
FAILURES = [
    pytest.param({"status": 400}, UpstreamBadResponseError, id="400"),
    pytest.param({"status": 401}, UpstreamAuthError, id="401"),
    pytest.param({"status": 403}, UpstreamAuthError, id="403"),
    pytest.param({"status": 408}, UpstreamTimeoutError, id="408"),
    pytest.param({"status": 409}, UpstreamBadResponseError, id="409"),
    pytest.param({"status": 429}, UpstreamThrottledError, id="429"),
    pytest.param({"status": 500}, UpstreamUnavailableError, id="500"),
    pytest.param({"status": 502}, UpstreamUnavailableError, id="502"),
    pytest.param({"status": 503}, UpstreamUnavailableError, id="503"),
    pytest.param({"status": 504}, UpstreamUnavailableError, id="504"),
    pytest.param(
        {"status": 503, "body": "<html>", "content_type": "text/html"},
        UpstreamUnavailableError,
        id="503 in HTML",
    ),
    pytest.param({"status": 503, "body": "<"}, UpstreamUnavailableError, id="503 in broken JSON"),
    pytest.param(
        {"status": 307, "body": "", "headers": {"Location": "/identities"}},
        UpstreamBadResponseError,
        id="redirect",
    ),
]


def issue(acs_identity: AcsIdentity, acs_id: str, **changes: Any) -> Any:
    """Ask for a token for chat, for an hour."""
    asked: dict[str, Any] = {
        "scopes": ["chat"],
        "lifetime": HOUR,
        "now": datetime.now(UTC),
        "person": Person("tenant", "somebody"),
    } | changes
    return acs_identity.issue(acs_id, **asked)


CALLS: list[Any] = [
    pytest.param("create", lambda acs_identity, _: acs_identity.create(), id="create"),
    pytest.param("issue", issue, id="issue"),
    pytest.param("delete", lambda acs_identity, acs_id: acs_identity.delete(acs_id), id="delete"),
    pytest.param("revoke", lambda acs_identity, acs_id: acs_identity.revoke(acs_id), id="revoke"),
]


@pytest.fixture
async def acs_id(acs_identity: AcsIdentity) -> str:
    """The id of an identity that exists."""
    return await acs_identity.create()


@pytest.mark.parametrize(("operation", "call"), CALLS)
class TestFailures:
    """All operations: one request, one error, no sleep."""

    @pytest.mark.parametrize(("fault", "error"), FAILURES)
    async def test_status(
        self,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        acs_id: str,
        operation: str,
        call: Call,
        fault: dict[str, Any],
        error: type[BrokerError],
    ) -> None:
        """A status becomes its error, ACS is asked once, and its message is not passed on."""
        before = acs.faults.count(operation)
        acs.faults.fail_next(operation, **fault)

        with pytest.raises(error) as raised:
            await call(acs_identity, acs_id)

        assert error is type(raised.value)
        assert before + 1 == acs.faults.count(operation)
        assert f"ACS answered {fault['status']}" == str(raised.value)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, UpstreamThrottledError),
            (401, UpstreamAuthError),
            (429, UpstreamThrottledError),
            (503, UpstreamUnavailableError),
        ],
    )
    async def test_retry_after(
        self,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        acs_id: str,
        operation: str,
        call: Call,
        status: int,
        error: type[BrokerError],
    ) -> None:
        """We do not sleep as long as Retry-After says; the caller is told to wait."""
        before = acs.faults.count(operation)
        acs.faults.fail_next(operation, status=status, headers={"Retry-After": "86400"})

        async with asyncio.timeout(3):
            with pytest.raises(error) as raised:
                await call(acs_identity, acs_id)

        assert before + 1 == acs.faults.count(operation)
        assert error is UpstreamAuthError or 86400 == raised.value.retry_after

    @pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "Fri, 31 Dec 9999 23:59:59 GMT"])
    async def test_odd_retry_after(
        self,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        acs_id: str,
        operation: str,
        call: Call,
        text: str,
    ) -> None:
        """A Retry-After that is not a number of seconds is not passed on."""
        acs.faults.fail_next(operation, status=429, headers={"Retry-After": text})

        with pytest.raises(UpstreamThrottledError) as raised:
            await call(acs_identity, acs_id)

        assert UpstreamThrottledError.retry_after == raised.value.retry_after


async def test_deadlines(acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str) -> None:
    """An answer that does not come, or comes byte by byte, is given up after four seconds."""
    acs.faults.clear()
    acs.faults.fail_next("create", delay=5)
    acs.faults.fail_next("delete", delay=5)
    acs.faults.fail_next("revoke", delay=5)
    acs.faults.fail_next("issue", drip=0.5)

    async with asyncio.timeout(acs_module.OPERATION_SECONDS + 0.5):
        outcomes = await asyncio.gather(
            acs_identity.create(),
            acs_identity.delete(acs_id),
            acs_identity.revoke(acs_id),
            issue(acs_identity, acs_id),
            return_exceptions=True,
        )

    assert [UpstreamTimeoutError] * 4 == [type(outcome) for outcome in outcomes]
    operations = ("create", "delete", "revoke", "issue")
    assert [1, 1, 1, 1] == [acs.faults.count(operation) for operation in operations]


class TestReachability:
    """ACS cannot be reached at its endpoint."""

    async def test_nobody_there(self) -> None:
        """A refused connection is 503."""
        async with CommunicationIdentityClient(
            "http://127.0.0.1:1", AzureKeyCredential("a2V5")
        ) as client:
            with pytest.raises(UpstreamUnavailableError):
                await AcsIdentity(client=client).create()

    async def test_untrusted_certificate(self, tmp_path: Path) -> None:
        """A host whose certificate we do not trust gets nothing from us."""
        emulator = AcsEmulator(access_key="a2V5")
        tls = Certificates(tmp_path).server_context()
        async with (
            serve(emulator.application(), tls=tls) as url,
            CommunicationIdentityClient(url, AzureKeyCredential("a2V5")) as client,
        ):
            with pytest.raises(UpstreamUnavailableError):
                await AcsIdentity(client=client).create()
        assert 0 == emulator.faults.count("create")

    async def test_not_http(self) -> None:
        """Something that does not speak HTTP gives an answer that cannot be used."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n\r\n")
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with (
            server,
            CommunicationIdentityClient(
                f"http://127.0.0.1:{port}", AzureKeyCredential("a2V5")
            ) as client,
        ):
            with pytest.raises(UpstreamBadResponseError):
                await AcsIdentity(client=client).create()

    async def test_other_key(self, acs: AcsEmulator) -> None:
        """A key that was rotated is our fault, not the caller's: 502."""
        async with CommunicationIdentityClient(acs.url, AzureKeyCredential("b3RoZXI=")) as client:
            with pytest.raises(UpstreamAuthError):
                await AcsIdentity(client=client).create()
        assert not acs.created


class TestCreate:
    """A create is never repeated, since it may have created an identity."""

    async def test_id(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """It returns the id of a new identity, which has no token."""
        acs_id = await acs_identity.create()

        assert [acs_id] == acs.created
        assert not acs.issued

    @pytest.mark.parametrize("fault", NONSENSE)
    async def test_nonsense(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, fault: dict[str, Any]
    ) -> None:
        """An answer without a usable id is 502, and ACS is asked once."""
        acs.faults.fail_next("create", **({"status": 201} if "body" in fault else {}), **fault)

        with pytest.raises(UpstreamBadResponseError):
            await acs_identity.create()

        assert 1 == acs.faults.count("create")

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(None, id="null"),
            pytest.param("", id="empty"),
            pytest.param(5, id="number"),
            pytest.param(["a"], id="list"),
            pytest.param("ada@contoso.example", id="mail address"),
            pytest.param("8:orgid:3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10", id="Teams user"),
            pytest.param(f"{UNKNOWN_ID}\n", id="line end"),
            pytest.param(f"{UNKNOWN_ID}/../x", id="path"),
            pytest.param(f"8:acs:{'a' * 36}_{'b' * 65}", id="too long"),
        ],
    )
    async def test_bad_id(self, acs: AcsEmulator, acs_identity: AcsIdentity, value: object) -> None:
        """Something that is not the id of an ACS identity is refused."""
        body = json.dumps({"identity": {"id": value}})
        acs.faults.fail_next("create", status=201, body=body)

        with pytest.raises(UpstreamBadResponseError):
            await acs_identity.create()

    @pytest.mark.parametrize(
        ("value", "logged"),
        [
            pytest.param(NEW_ID, NEW_ID, id="new form"),
            pytest.param(f"{NEW_ID}{'0' * 10_000}", f"{NEW_ID}{'0' * 200}"[:200], id="endless"),
            pytest.param("\n{", "\n{", id="control character"),
            pytest.param({"a": 1}, "{'a': 1}", id="object"),
        ],
    )
    async def test_id_of_a_new_form(
        self,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        caplog: pytest.LogCaptureFixture,
        value: object,
        logged: str,
    ) -> None:
        """An id of a form that we do not know is logged: otherwise nobody could delete it."""
        body = json.dumps({"identity": {"id": value}})
        acs.faults.fail_next("create", status=201, body=body)

        with pytest.raises(UpstreamBadResponseError):
            await acs_identity.create()

        (line,) = [json.loads(message) for message in caplog.messages]
        assert {"event": "identity_refused", "acs_id": logged} == line

    async def test_other_success(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """A 200 instead of the contract's 201 is refused."""
        body = json.dumps({"identity": {"id": UNKNOWN_ID}})
        acs.faults.fail_next("create", status=200, body=body)

        with pytest.raises(UpstreamBadResponseError):
            await acs_identity.create()

    async def test_not_found(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """A 404 does not mean that an identity is gone: the endpoint is not ACS."""
        acs.faults.fail_next("create", status=404)

        with pytest.raises(UpstreamBadResponseError):
            await acs_identity.create()

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    async def test_reset(self, acs: AcsEmulator, acs_identity: AcsIdentity, after: bool) -> None:
        """A connection that breaks, before or after the identity was made: one POST, 503."""
        acs.faults.fail_next("create", reset=True, after=after)

        with pytest.raises(UpstreamUnavailableError):
            await acs_identity.create()

        assert 1 == acs.faults.count("create")
        assert after == len(acs.created)


class TestIssue:
    """A token is handed on only if it is what was asked for."""

    async def test_token(self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str) -> None:
        """The token is the identity's, with the scopes and the lifetime asked for."""
        now = datetime.now(UTC)
        issued = await issue(
            acs_identity, acs_id, scopes={"voip", "chat"}, lifetime=timedelta(minutes=75), now=now
        )

        claims = jwt.decode(issued.token, options={"verify_signature": False})
        assert f"8:{claims['skypeid']}" == acs_id
        assert {"chat", "voip"} == set(claims["acsScope"].split(","))
        assert abs(issued.expires_on - now - timedelta(minutes=75)) < timedelta(seconds=5)
        assert issued.token not in repr(issued)
        assert acs.token_is_valid(issued.token)

    async def test_identity_gone(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """An identity that ACS no longer knows has its own error, and ACS is asked once."""
        with pytest.raises(IdentityGoneError):
            await issue(acs_identity, UNKNOWN_ID)

        assert 1 == acs.faults.count("issue")

    async def test_retries_after_a_reset(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str
    ) -> None:
        """A connection that breaks is tried once more, at once."""
        acs.faults.fail_next("issue", reset=True)

        assert (await issue(acs_identity, acs_id)).token
        assert 2 == acs.faults.count("issue")

    async def test_retries_only_once(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str
    ) -> None:
        """A connection that breaks twice is 503."""
        acs.faults.fail_next("issue", reset=True, times=2)

        with pytest.raises(UpstreamUnavailableError):
            await issue(acs_identity, acs_id)
        assert 2 == acs.faults.count("issue")

    @pytest.mark.parametrize("fault", NONSENSE)
    async def test_nonsense(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str, fault: dict[str, Any]
    ) -> None:
        """An answer without a usable token is 502."""
        acs.faults.fail_next("issue", **fault)

        with pytest.raises(UpstreamBadResponseError):
            await issue(acs_identity, acs_id)

        assert 1 == acs.faults.count("issue")

    @pytest.mark.parametrize("hours", [1, 24])
    @pytest.mark.parametrize(
        "form",
        [
            "{:%Y-%m-%dT%H:%M:%S}+00:00",
            "{:%Y-%m-%dT%H:%M:%S}.1+00:00",
            "{:%Y-%m-%dT%H:%M:%S}.1234567+00:00",
            "{:%Y-%m-%dT%H:%M:%S}.9028648Z",
        ],
    )
    async def test_expiry(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str, form: str, hours: int
    ) -> None:
        """The forms of a date that ACS has been seen to send are understood."""
        now = datetime.now(UTC)
        expires_on = form.format(now + timedelta(hours=hours))
        body = json.dumps({"token": "opaque", "expiresOn": expires_on})
        acs.faults.fail_next("issue", body=body)

        issued = await issue(acs_identity, acs_id, lifetime=timedelta(hours=hours), now=now)

        assert abs(issued.expires_on - now - timedelta(hours=hours)) <= timedelta(seconds=1)

    @pytest.mark.parametrize(
        "expires_on",
        [
            pytest.param(lambda now: None, id="null"),
            pytest.param(lambda now: "", id="empty"),
            pytest.param(lambda now: "tomorrow", id="not a date"),
            pytest.param(lambda now: int((now + HOUR).timestamp()), id="Unix time"),
            pytest.param(lambda now: [str(now + HOUR)], id="list"),
            pytest.param(lambda now: f"{now + HOUR:%Y-%m-%dT%H:%M:%S}", id="no zone"),
            pytest.param(lambda now: f"{now + HOUR:%Y-%m-%d}", id="a day"),
            pytest.param(lambda now: f"{now + HOUR:%G-W%V}", id="a week"),
            pytest.param(lambda now: str(now - HOUR), id="past"),
            pytest.param(str, id="an hour too early"),
            pytest.param(lambda now: str(now + 2 * HOUR), id="an hour too late"),
            pytest.param(lambda now: str(now + timedelta(minutes=54)), id="6 minutes too early"),
            pytest.param(lambda now: "9999-12-31T23:59:59+00:00", id="year 9999"),
            pytest.param(lambda now: "9999-12-31T23:59:59-23:59", id="beyond year 9999"),
            pytest.param(lambda now: "0001-01-01T00:00:00+23:59", id="before year 1"),
        ],
    )
    async def test_bad_expiry(
        self,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        acs_id: str,
        expires_on: Callable[[datetime], object],
    ) -> None:
        """A token with another lifetime than was asked for is not handed out."""
        now = datetime.now(UTC)
        body = json.dumps({"token": "opaque", "expiresOn": expires_on(now)})
        acs.faults.fail_next("issue", body=body)

        with pytest.raises(UpstreamBadResponseError):
            await issue(acs_identity, acs_id, now=now)

    @pytest.mark.parametrize(
        "claims",
        [
            pytest.param({"skypeid": UNKNOWN_ID.removeprefix("8:")}, id="other identity"),
            pytest.param({"skypeid": None}, id="identity null"),
            pytest.param({"skypeid": 5}, id="identity not a string"),
            pytest.param({"acsScope": "chat,voip"}, id="more scopes"),
            pytest.param({"acsScope": "voip"}, id="other scope"),
            pytest.param({"acsScope": ["chat", "voip"]}, id="scopes a list"),
        ],
    )
    async def test_token_of_another(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str, claims: dict[str, Any]
    ) -> None:
        """A token for another identity, or with more scopes, is not handed out."""
        now = datetime.now(UTC)
        good = {"skypeid": acs_id.removeprefix("8:"), "acsScope": "chat"}
        token = jwt.encode(good | claims, "k" * 32)
        body = json.dumps({"token": token, "expiresOn": str(now + HOUR)})
        acs.faults.fail_next("issue", body=body)

        with pytest.raises(UpstreamBadResponseError):
            await issue(acs_identity, acs_id, now=now)

    @pytest.mark.parametrize(
        "token",
        [
            "opaque",
            "a.b.c",
            "a.b.c.d.e",
            "..",
            "a.eyJza3lwZWlkIjoiYSIsInNreXBlaWQiOiJiIn0.c",  # Names skypeid twice.
            jwt.encode({}, "k" * 32),
        ],
    )
    async def test_opaque_token(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str, token: str
    ) -> None:
        """The token's format may change: one that cannot be read is handed on as it is."""
        now = datetime.now(UTC)
        body = json.dumps({"token": token, "expiresOn": str(now + HOUR)})
        acs.faults.fail_next("issue", body=body)

        assert token == (await issue(acs_identity, acs_id, now=now)).token

    @pytest.mark.parametrize(
        "token", [None, "", ["a"], {"t": 1}, "é.ü.", "a\r\nb", "a b", "x" * 20_000]
    )
    async def test_no_token(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str, token: object
    ) -> None:
        """An answer without a usable token is refused, whatever its expiry."""
        now = datetime.now(UTC)
        body = json.dumps({"token": token, "expiresOn": str(now + HOUR)})
        acs.faults.fail_next("issue", body=body)

        with pytest.raises(UpstreamBadResponseError):
            await issue(acs_identity, acs_id, now=now)

    async def test_quota(self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str) -> None:
        """Over the quota of the resource, the caller is told when to come back."""
        acs.quotas["issue"] = 0

        with pytest.raises(UpstreamThrottledError) as raised:
            await issue(acs_identity, acs_id)

        assert raised.value.retry_after
        assert 0 < raised.value.retry_after <= 30


class TestDelete:
    """Deleting an identity that is gone already succeeds."""

    async def test_deletes(self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str) -> None:
        """An identity is deleted, with its tokens."""
        token = (await issue(acs_identity, acs_id)).token

        await acs_identity.delete(acs_id)

        assert [acs_id] == acs.deleted
        assert not acs.token_is_valid(token)

    async def test_gone(self, acs_identity: AcsIdentity, acs_id: str) -> None:
        """Deleting it again succeeds."""
        await acs_identity.delete(acs_id)
        await acs_identity.delete(acs_id)

    async def test_reply_lost(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str
    ) -> None:
        """If the reply is lost, aiohttp asks again; the 404 that it then gets is a success."""
        acs.faults.fail_next("delete", reset=True, after=True)

        await acs_identity.delete(acs_id)

        assert 2 == acs.faults.count("delete")

    async def test_foreign(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """One of another resource is not asked for: ACS would say that it is gone already."""
        with pytest.raises(ForeignIdentityError):
            await acs_identity.delete(FOREIGN_ID)

        assert FOREIGN_ID not in acs.deleted
        assert {} == acs.identities
        assert 1 == acs.faults.count("delete")  # Of the identity that showed which one is ours.


class TestRevoke:
    """Revoking the tokens of an identity."""

    async def test_revokes(self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str) -> None:
        """All its tokens up to now are revoked, and those of others are not."""
        tokens = [(await issue(acs_identity, acs_id)).token for _ in range(2)]
        of_another = (await issue(acs_identity, await acs_identity.create())).token

        await acs_identity.revoke(acs_id)

        later = (await issue(acs_identity, acs_id)).token
        valid = [acs.token_is_valid(token) for token in [*tokens, of_another, later]]
        assert [False, False, True, True] == valid

    async def test_gone(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """An identity that ACS does not know has its own error."""
        with pytest.raises(IdentityGoneError):
            await acs_identity.revoke(UNKNOWN_ID)

        assert 1 == acs.faults.count("revoke")

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    async def test_reset(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str, after: bool
    ) -> None:
        """A connection that breaks is 503 after one POST: the caller will try again."""
        acs.faults.fail_next("revoke", reset=True, after=after)

        with pytest.raises(UpstreamUnavailableError):
            await acs_identity.revoke(acs_id)
        assert 1 == acs.faults.count("revoke")


class TestOwns:
    """Which resource an identity belongs to."""

    @pytest.mark.parametrize(
        ("acs_id", "owned"),
        [
            (UNKNOWN_ID, True),
            (UNKNOWN_ID.replace("ac5", "AC5"), False),
            (UNKNOWN_ID.replace("acs", "gcch-acs"), False),
            (FOREIGN_ID, False),
            (f"8:acs:{UNKNOWN_ID[-36:]}_{UNKNOWN_ID[6:42]}", False),
            (f"{UNKNOWN_ID}/../x", False),
            ("8:orgid:3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10", False),
            ("8:acs", False),
            ("", False),
        ],
    )
    async def test_ids(self, acs_identity: AcsIdentity, acs_id: str, owned: bool) -> None:
        """The id tells; what does not have the form of one is nobody's."""
        assert owned is await acs_identity.owns(acs_id)

    async def test_learned_once(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """The first who ask make one identity between them, and delete it; later nobody does."""
        await asyncio.gather(*(acs_identity.owns(UNKNOWN_ID) for _ in range(10)))
        await acs_identity.owns(FOREIGN_ID)

        assert (1, {}) == (acs.faults.count("create"), acs.identities)

    async def test_known_already(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, acs_id: str
    ) -> None:
        """Whoever has created an identity knows."""
        assert await acs_identity.owns(acs_id)
        assert 1 == acs.faults.count("create")

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ({"status": 403}, UpstreamAuthError),
            ({"status": 404}, UpstreamBadResponseError),
            ({"status": 503}, UpstreamUnavailableError),
        ],
    )
    async def test_not_learned(
        self,
        acs: AcsEmulator,
        acs_identity: AcsIdentity,
        fault: dict[str, Any],
        error: type[BrokerError],
    ) -> None:
        """If ACS does not tell, nothing is assumed, and nothing deleted; the next call asks."""
        acs.faults.fail_next("create", **fault)

        with pytest.raises(error):
            await acs_identity.delete(UNKNOWN_ID)
        assert 0 == acs.faults.count("delete")
        assert await acs_identity.owns(UNKNOWN_ID)

    async def test_cannot_be_deleted(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the identity that was made for it cannot be deleted, its id is logged."""
        acs.faults.fail_next("delete", status=503)

        assert await acs_identity.owns(UNKNOWN_ID)
        (line,) = [json.loads(message) for message in caplog.messages]
        assert ("probe_not_deleted", acs.created[0]) == (line["event"], line["acs_id"])


class InAzure(NamedTuple):
    """What a client of ACS without a key works with."""

    identity: ManagedIdentityEmulator
    acs: AcsEmulator
    client: CommunicationIdentityClient


class TestManagedIdentity:
    """Without a key: Entra tokens over TLS, as in Azure."""

    @pytest.fixture
    async def in_azure(
        self, entra_keys: list[SigningKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[InAzure]:
        """A client that has no token yet."""
        certificates = Certificates(tmp_path)
        entra = EntraEmulator(keys=entra_keys)
        entra.url = "https://entra.example"
        identity = ManagedIdentityEmulator(entra, "secret")
        acs = AcsEmulator(access_key="a2V5", verify_bearer=entra.verify)
        verify = str(certificates.authority_file)
        async with (
            serve(identity.application()) as identity.url,
            serve(acs.application(), tls=certificates.server_context()) as acs.url,
        ):
            monkeypatch.setenv("IDENTITY_ENDPOINT", identity.endpoint)
            monkeypatch.setenv("IDENTITY_HEADER", "secret")
            async with (
                ManagedIdentityCredential(client_id=USER_ASSIGNED_IDENTITY.client_id) as credential,
                CommunicationIdentityClient(
                    acs.url, credential, connection_verify=verify
                ) as client,
            ):
                yield InAzure(identity, acs, client)

    async def test_token(self, in_azure: InAzure) -> None:
        """A managed identity opens ACS."""
        acs_identity = AcsIdentity(client=in_azure.client)

        token = (await issue(acs_identity, await acs_identity.create())).token

        assert in_azure.acs.token_is_valid(token)
        assert 1 == in_azure.identity.faults.count("token")

    @pytest.mark.parametrize("status", [400, 401, 403])
    async def test_no_token(self, in_azure: InAzure, status: int) -> None:
        """If it gets no token, the reason does not say that ACS refused us: ACS was not asked."""
        acs_identity = AcsIdentity(client=in_azure.client)
        in_azure.identity.faults.fail_next("token", status=status, times=100)

        with pytest.raises(UpstreamAuthError, match=r"^[A-Za-z]+$"):
            await acs_identity.create()

        assert 0 == in_azure.acs.faults.count("create")

    @pytest.mark.parametrize("status", [400, 403])
    async def test_no_token_for_a_teams_user(self, in_azure: InAzure, status: int) -> None:
        """That is not taken for a refusal of the person's Entra token either."""
        in_azure.identity.faults.fail_next("token", status=status, times=100)
        async with aiohttp.ClientSession() as session:
            exchange = AcsExchange(
                client=in_azure.client, session=session, endpoint=in_azure.acs.url
            )

            with pytest.raises(UpstreamAuthError, match=r"^[A-Za-z]+$"):
                await exchange.teams_user("e30.e30.e30", WEB_APP.client_id, ADA.object_id)

    @pytest.mark.parametrize("status", [401, 403])
    async def test_refused(self, in_azure: InAzure, status: int) -> None:
        """If ACS refuses a token, as without a role, the reason says so."""
        in_azure.acs.faults.fail_next("create", status=status)

        with pytest.raises(UpstreamAuthError, match=f"^ACS answered {status}$"):
            await AcsIdentity(client=in_azure.client).create()


class TestSdkBackstop:
    """What we rely on the SDK for, so that an upgrade fails here first."""

    async def test_expiry_is_text(self) -> None:
        """The SDK's type says int; what comes is ACS's text, unread."""

        async def answer(_request: web.Request) -> web.Response:
            return web.json_response({"token": "a", "expiresOn": "tomorrow"})

        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        async with (
            serve(app) as url,
            CommunicationIdentityClient(url, AzureKeyCredential("a2V5")) as client,
        ):
            token = await client.get_token(CommunicationUserIdentifier(UNKNOWN_ID), ["chat"])

        assert "tomorrow" == str(token.expires_on)

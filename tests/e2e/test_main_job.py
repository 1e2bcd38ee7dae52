"""An Entra token becomes an ACS token, over HTTP, with access keys and with managed identity."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import ADA, CONTOSO, GUEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.stack import FunctionsHost
    from tests.running import Client, Running


async def test_issues_tokens_for_one_identity(app: Client, running: Running) -> None:
    """The first call creates the identity; later calls use the same one."""
    token = running.token_of_new_person()

    first = await app.get("/api/token", token)
    second = await app.post("/api/token", token)

    assert (200, 200) == (first.status, second.status)
    assert {"token", "expiresOn", "user"} == first.json.keys()
    user = first.json["user"]
    assert user == second.json["user"]
    assert user["communicationUserId"] == user["id"]
    assert running.stack.acs.token_is_valid(first.json["token"])
    assert first.json["token"] != second.json["token"]
    assert 1 == running.stack.acs.faults.count("create")
    assert 2 == running.stack.acs.faults.count("issue")


async def test_headers(app: Client, running: Running) -> None:
    """Every answer forbids storing it, and has a definite media type."""
    answer = await app.get("/api/token", running.token_of_new_person())

    assert "no-store" == answer.headers["Cache-Control"]
    assert "nosniff" == answer.headers["X-Content-Type-Options"]
    assert "application/json" == answer.headers["Content-Type"].partition(";")[0]
    assert "ETag" not in answer.headers


@pytest.mark.parametrize(
    ("ask", "minutes"),
    [
        (lambda app, token: app.get("/api/token", token), 60),
        (lambda app, token: app.get("/api/token?expiresInMinutes=720", token), 720),
        (lambda app, token: app.post("/api/token", token, json={"expiresInMinutes": 61}), 61),
    ],
    ids=["default", "query", "body"],
)
async def test_lifetime(
    app: Client, running: Running, ask: Callable[..., Any], minutes: int
) -> None:
    """The answer tells the real expiry, in ISO 8601 with its zone."""
    answer = await ask(app, running.token_of_new_person())

    expires = datetime.fromisoformat(answer.json["expiresOn"])
    assert abs(expires - datetime.now(UTC) - timedelta(minutes=minutes)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("ask", "scopes"),
    [
        (lambda app, token: app.get("/api/token", token), "chat,voip"),
        (lambda app, token: app.get("/api/token?scope=voip", token), "voip"),
        (lambda app, token: app.get("/api/token?scope=voip,chat", token), "chat,voip"),
        (lambda app, token: app.get("/api/token?scope=voip&scope=chat", token), "chat,voip"),
        (lambda app, token: app.post("/api/token", token, json={"scopes": ["chat"] * 3}), "chat"),
        (lambda app, token: app.post("/api/token", token, json={}), "chat,voip"),
    ],
    ids=["all", "query", "two", "repeated", "collapsed", "empty body"],
)
async def test_scopes(app: Client, running: Running, ask: Callable[..., Any], scopes: str) -> None:
    """A request can only narrow what the settings allow."""
    oid = str(uuid.uuid4())
    answer = await ask(app, running.token_of_new_person(oid=oid))

    assert 200 == answer.status
    line = await running.host.printed(oid)
    assert f'"scopes": "{scopes}"' in line


async def test_guest_is_another_person(app: Client, running: Running) -> None:
    """The same human being as a guest of another tenant is another person."""
    home = await app.get(
        "/api/token", running.stack.entra.issue_access_token("fadi@fabrikam.example")
    )
    guest = await app.get("/api/token", running.stack.entra.issue_access_token(GUEST.user_name))

    assert (200, 200) == (home.status, guest.status)
    assert home.json["user"] != guest.json["user"]


async def test_same_mail_address_in_another_tenant(app: Client, running: Running) -> None:
    """Mail addresses and user names do not identify a person (nOAuth)."""
    victim = await app.get("/api/token", running.stack.entra.issue_access_token())
    attacker = running.stack.entra.issue_access_token(
        "fadi@fabrikam.example",
        claims={"email": ADA.user_name, "preferred_username": ADA.user_name, "upn": ADA.user_name},
    )

    answer = await app.get("/api/token", attacker)

    assert victim.json["user"] != answer.json["user"]


async def test_user_is_read_and_created(app: Client, running: Running) -> None:
    """GET reads the identity, POST creates it at first, and a token is for the same one."""
    token = running.token_of_new_person()

    absent = await app.get("/api/user", token)
    created = await app.post("/api/user", token)
    read = await app.get("/api/user", token)
    issued = await app.get("/api/token", token)

    assert (404, "user_not_found") == (absent.status, absent.code)
    assert (200, 200) == (created.status, read.status)
    assert created.json == read.json == {"user": issued.json["user"]}
    assert 1 == running.stack.acs.faults.count("create")


async def test_fifty_first_calls_in_two_processes(
    app: Client,
    app_at: Callable[..., Client],
    running: Running,
    another_host: Callable[..., FunctionsHost],
) -> None:
    """One row, one identity handed out, and no call answered with 5xx."""
    other = app_at(another_host())
    await other.get("/api/health/ready")  # Two warm processes race harder.
    token = running.token_of_new_person()

    answers = await asyncio.gather(
        *((app if number % 2 else other).get("/api/token", token) for number in range(50))
    )

    assert {200} == {answer.status for answer in answers}
    assert 1 == len({answer.json["user"]["id"] for answer in answers})
    assert 1 == running.stack.acs.faults.count("create")


async def test_version_1_tokens(app: Client, running: Running) -> None:
    """Entra's v1 and v2 tokens of one person lead to one identity."""
    oid = str(uuid.uuid4())
    v1 = running.stack.entra.issue_access_token(version=1, claims={"oid": oid})

    first = await app.get("/api/token", v1)
    second = await app.get("/api/token", running.token_of_new_person(oid=oid))

    assert first.json["user"] == second.json["user"]


async def test_health(app: Client) -> None:
    """Both probes answer without a token."""
    health, ready = await app.get("/api/health"), await app.get("/api/health/ready")

    assert (200, {"status": "healthy"}) == (health.status, health.json)
    assert (200, {"status": "ready"}) == (ready.status, ready.json)


async def test_ready_while_acs_is_down(
    app_at: Callable[..., Client], running: Running, another_host: Callable[..., FunctionsHost]
) -> None:
    """An outage of ACS does not make the service unready; restarting it would not help."""
    running.stack.acs.faults.fail_next(status=503, times=100)

    ready = await app_at(another_host()).get("/api/health/ready")

    assert 200 == ready.status


async def test_audit_line(app: Client, running: Running) -> None:
    """One line per decision, with what operators search by."""
    oid = str(uuid.uuid4())
    trace = uuid.uuid4().hex
    answer = await app.get(
        "/api/token",
        running.token_of_new_person(oid=oid),
        headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
    )

    line = await running.host.printed(oid)
    for expected in (
        '"event": "token_issued"',
        f'"tenant_id": "{CONTOSO.tenant_id}"',
        f'"acs_id": "{answer.json["user"]["id"]}"',
        '"client_id": "68b2f0e9-3d5c-4a17-b94e-c1f07a8d6e25"',
        f'"trace_id": "{trace}"',
        '"created": true',
        '"ms": ',
    ):
        assert expected in line
    assert 1 == sum(oid in line for line in running.host.output)

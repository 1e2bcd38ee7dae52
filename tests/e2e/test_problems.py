"""Every problem of the contract, met over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import DAEMON, DESKTOP_APP, EXPENSES_API
from tests.running import assert_problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from local.stack import FunctionsHost
    from tests.running import Client, Running

NO_TABLE = (
    '{"odata.error": {"code": "TableNotFound", "message": {"lang": "en-US", '
    '"value": "The table specified does not exist."}}}'
)
ELSEWHERE = "11111111-2222-4333-8444-555555555555"


ONE_USER = f"/api/users/{ELSEWHERE}/{ELSEWHERE}"
ALLOWED = {
    "/api/token": "GET, POST",
    "/api/token/entra": "GET, POST",
    "/api/token/teams": "GET, POST",
    "/api/token/revoke": "POST",
    "/api/user": "GET, POST, DELETE",
    "/api/users": "GET",
    ONE_USER: "GET, PUT, DELETE",
    f"{ONE_USER}/revoke": "POST",
    f"{ONE_USER}/renew": "POST",
    "/api/health": "GET",
    "/api/health/ready": "GET",
    "/api/openapi.json": "GET",
}


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        pytest.param(None, 401, "missing_token", id="no header"),
        pytest.param("", 401, "missing_token", id="empty"),
        pytest.param("Bearer", 401, "missing_token", id="scheme alone"),
        pytest.param("Bearer ", 401, "missing_token", id="scheme and space"),
        pytest.param("Basic YTpi", 401, "missing_token", id="Basic"),
        pytest.param("Negotiate YII", 401, "missing_token", id="Negotiate"),
        pytest.param("DPoP a.b.c", 401, "missing_token", id="DPoP"),
        pytest.param('Digest username="a", realm="b"', 401, "missing_token", id="Digest"),
        pytest.param("Bearer a.b.c, Bearer d.e.f", 400, "invalid_request", id="two, joined"),
        pytest.param("Basic YTpi, Bearer d.e.f", 400, "invalid_request", id="two schemes"),
        pytest.param("BearerX abc", 400, "invalid_request", id="BearerX"),
        pytest.param("Bearer\tabc", 400, "invalid_request", id="tab"),
        pytest.param("Bearer:abc", 400, "invalid_request", id="colon"),
        pytest.param("a.b.c", 400, "invalid_request", id="no scheme"),
        pytest.param("Bearer garbage", 401, "invalid_token", id="garbage"),
        pytest.param("Bearer a b", 401, "invalid_token", id="space inside"),
        pytest.param("Bearer a.b.c", 401, "invalid_token", id="no JSON"),
        pytest.param("Bearer " + "A" * 25 * 1024, 401, "invalid_token", id="25 KiB"),
    ],
)
async def test_authorization_header(
    app: Client, header: str | None, status: int, code: str
) -> None:
    """Credentials that are missing, more than one, or of another scheme (RFC 6750, section 3)."""
    answer = await app.get(
        "/api/token", headers={"Authorization": header} if header is not None else {}
    )

    assert_problem(answer, status, code)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer   "])
async def test_scheme_is_case_insensitive(app: Client, running: Running, scheme: str) -> None:
    """RFC 9110, section 11.1; and RFC 6750 lets several spaces follow."""
    answer = await app.get(
        "/api/token", headers={"Authorization": f"{scheme} {running.token_of_new_person()}"}
    )

    assert 200 == answer.status


async def test_two_authorization_headers(app: Client, running: Running) -> None:
    """The host joins them with a comma; neither is decoded."""
    token = running.token_of_new_person()
    twice = [("Authorization", f"Bearer {token}")] * 2

    answer = await app.get("/api/token", headers=twice)

    assert_problem(answer, 400, "invalid_request")


async def test_challenges(app: Client, running: Running) -> None:
    """A bare challenge where there is no token, an error where there is a bad one."""
    bare = await app.get("/api/token")
    bad = await app.get("/api/token", "garbage")
    scope = await app.get("/api/token", running.token_of_new_person(scp="other"))

    assert 'Bearer realm="acs-token-broker"' == bare.headers["WWW-Authenticate"]
    assert 'error="invalid_token"' in bad.headers["WWW-Authenticate"]
    assert 'error="insufficient_scope"' in scope.headers["WWW-Authenticate"]
    assert 'scope="access_as_user"' in scope.headers["WWW-Authenticate"]


@pytest.mark.parametrize("place", ["query", "form", "json", "cookie"])
async def test_token_elsewhere(app: Client, running: Running, place: str) -> None:
    """A token anywhere but in the header does not count, and is not logged."""
    token = running.token_of_new_person()
    if place == "query":
        answer = await app.get(f"/api/token?access_token={token}")
    elif place == "form":
        answer = await app.post("/api/token", data={"access_token": token})
    elif place == "json":
        answer = await app.post("/api/token", json={"access_token": token})
    else:
        answer = await app.get("/api/token", headers={"Cookie": f"access_token={token}"})

    assert_problem(answer, 401, "missing_token")
    assert not any(token in line for line in running.host.output)


async def test_valid_tokens_refused(app: Client, running: Running) -> None:
    """Good tokens of this Entra, for another API, tenant, app or scope."""
    entra = running.stack.entra
    elsewhere = {"tid": ELSEWHERE, "iss": entra.issuer(ELSEWHERE)}

    assert_problem(
        await app.get("/api/token", entra.issue_access_token(resource=EXPENSES_API)),
        401,
        "invalid_token",
    )
    assert_problem(
        await app.get("/api/token", running.token_of_new_person(**elsewhere)),
        403,
        "tenant_not_allowed",
    )
    assert_problem(
        await app.get("/api/token", running.token_of_new_person(azp=DESKTOP_APP.client_id)),
        403,
        "client_not_allowed",
    )
    assert_problem(
        await app.get("/api/token", running.token_of_new_person(scp="other")),
        403,
        "insufficient_scope",
    )
    assert_problem(
        await app.get("/api/token", entra.issue_access_token(None, client=DAEMON)),
        403,
        "insufficient_scope",
    )


@pytest.mark.parametrize(
    "query",
    [
        "?scope=",
        "?scope",
        "?scope=&scope=voip",
        "?scope=voip,",
        "?scope=video",
        "?scope=VOIP",
        "?scope=voip%20chat",
        "?scopes=voip",
        "?expiresInMinutes=59",
        "?expiresInMinutes=1441",
        "?expiresInMinutes=60.5",
        "?expiresInMinutes=%2060",
        "?expiresInMinutes=060",
        "?expiresInMinutes=1e3",
        "?expiresInMinutes=-60",
        "?expiresInMinutes=60&expiresInMinutes=60",
        "?expiresInMinutes=%D9%A6%D9%A0",
        "?userId=8:acs:x",
        "?oid=me",
        "?access_token=x",
    ],
)
async def test_bad_queries(app: Client, running: Running, query: str) -> None:
    """Unknown members, and values out of range."""
    assert_problem(
        await app.get(f"/api/token{query}", running.token_of_new_person()), 400, "invalid_request"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'"voip"',
        b"{",
        b'{"scopes": "voip"}',
        b'{"scopes": null}',
        b'{"scopes": [null]}',
        b'{"scopes": []}',
        b'{"scopes": ["video"]}',
        b'{"scopes": [["voip"]]}',
        b'{"scopes": ["voip"], "scopes": ["chat"]}',
        b'{"expiresInMinutes": 59}',
        b'{"expiresInMinutes": 1441}',
        b'{"expiresInMinutes": 60.5}',
        b'{"expiresInMinutes": "60"}',
        b'{"expiresInMinutes": true}',
        b'{"expiresInMinutes": null}',
        b'{"expiresInMinutes": NaN}',
        b'{"expiresInMinutes": 1e9}',
        b'{"expiresInMinutes": -60}',
        b'{"expiresInMinutes": 99999999999999999999999999}',
        b'{"userId": "8:acs:x"}',
        b'{"oid": "me"}',
        b'{"acsUserId": "8:acs:x"}',
        b'\xef\xbb\xbf{"scopes": ["voip"]}',
        b'{"scopes": ["\xff"]}',
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        '{"scopes": ["voip"]}'.encode("utf-16"),
    ],
)
async def test_bad_bodies(app: Client, running: Running, body: bytes) -> None:
    """Anything but one strict object of known members."""
    answer = await app.post(
        "/api/token",
        running.token_of_new_person(),
        data=body,
        headers={"Content-Type": "application/json"},
    )

    assert_problem(answer, 400, "invalid_request")


async def test_chunked_body(app: Client, running: Running) -> None:
    """The Functions host does not pass it on, so asking for less would be answered with more."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"scopes": ["voip"]}'

    answer = await app.post(
        "/api/token",
        running.token_of_new_person(),
        data=chunks(),
        headers={"Content-Type": "application/json"},
    )

    assert_problem(answer, 400, "invalid_request")


async def test_body_on_a_get(app: Client, running: Running) -> None:
    """It would be asking for less, and be answered with more."""
    answer = await app.get("/api/token", running.token_of_new_person(), json={"scopes": ["voip"]})

    assert_problem(answer, 400, "invalid_request")


@pytest.mark.parametrize(
    "damage",
    [
        {"acsId": ""},
        {"acsId": 5},
        {"acsId": "x/../y"},
        {"acsId": uuid.UUID(int=5)},
        {"generation": "1"},
        {"state": "resting"},
        {"lastUsedOn": "yesterday"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/token", "/api/user"])
async def test_damaged_row(
    app: Client,
    running: Running,
    rewrite_row: Callable[..., Awaitable[None]],
    path: str,
    damage: dict[str, Any],
) -> None:
    """A value written into a row by hand is not used as an identity."""
    object_id = str(uuid.uuid4())
    token = running.token_of_new_person(oid=object_id)
    await app.get("/api/token", token)
    await rewrite_row(object_id, **damage)

    assert_problem(await app.get(path, token), 503, "storage_unavailable")


async def test_lifetime_above_the_settings(
    running: Running,
    app_at: Callable[..., Client],
    another_host: Callable[..., FunctionsHost],
) -> None:
    """The operator's ceiling is lower than what ACS takes."""
    app = app_at(another_host(ACS_TOKEN_MAX_LIFETIME_MINUTES="120"))

    over = await app.get("/api/token?expiresInMinutes=121", running.token_of_new_person())
    fits = await app.get("/api/token?expiresInMinutes=120", running.token_of_new_person())

    assert_problem(over, 400, "invalid_request")
    assert 200 == fits.status


async def test_query_beside_a_body(app: Client, running: Running) -> None:
    """A POST takes no query, and /user takes no input at all."""
    assert_problem(
        await app.post("/api/token?scope=voip", running.token_of_new_person()),
        400,
        "invalid_request",
    )
    assert_problem(
        await app.get("/api/user?x=1", running.token_of_new_person()), 400, "invalid_request"
    )
    assert_problem(
        await app.post("/api/user", running.token_of_new_person(), json={"id": "x"}),
        400,
        "invalid_request",
    )


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/jsonp",
        "application/problem+json",
    ],
)
async def test_media_type(app: Client, running: Running, content_type: str) -> None:
    """Any page could send other media types without a preflight."""
    answer = await app.post(
        "/api/token",
        running.token_of_new_person(),
        data=b'{"scopes": ["voip"]}',
        headers={"Content-Type": content_type},
    )

    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"'],
)
async def test_media_type_is_case_insensitive(
    app: Client, running: Running, content_type: str
) -> None:
    """Media types are case-insensitive, RFC 9110 section 8.3.1."""
    answer = await app.post(
        "/api/token",
        running.token_of_new_person(),
        data=b"{}",
        headers={"Content-Type": content_type},
    )

    assert 200 == answer.status


async def test_payload_too_large(app: Client, running: Running) -> None:
    """A body of 16 KiB is accepted; one more byte is 413."""
    fits = await app.post(
        "/api/token",
        running.token_of_new_person(),
        data=b"{}".ljust(16 * 1024),
        headers={"Content-Type": "application/json"},
    )
    over = await app.post(
        "/api/token", running.token_of_new_person(), data=b"{}".ljust(16 * 1024 + 1)
    )

    assert 200 == fits.status
    assert_problem(over, 413, "payload_too_large")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        (method, path, allowed)
        for path, allowed in ALLOWED.items()
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"]
        if method not in allowed.split(", ")
    ],
)
async def test_method_not_allowed(
    app: Client, running: Running, method: str, path: str, allowed: str
) -> None:
    """The answer says which methods there are."""
    answer = await app.call(
        method, path, running.token_of_new_person(), headers={"X-HTTP-Method-Override": "GET"}
    )

    assert_problem(answer, 405, "method_not_allowed")
    assert allowed == answer.headers["Allow"]


@pytest.mark.parametrize(
    "path", ["//api/token", "/api/token;x", "/api/token/x", "/api/", "/api/%00"]
)
async def test_no_such_route(app: Client, running: Running, path: str) -> None:
    """Only the routes themselves lead to the functions."""
    assert (await app.get(path, running.token_of_new_person())).status in {400, 404}


async def test_options_touches_nothing(app: Client, running: Running) -> None:
    """A preflight of an origin that is not allowed gets no permission, and costs nothing."""
    answer = await app.call(
        "OPTIONS",
        "/api/token",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"},
    )

    assert "Access-Control-Allow-Origin" not in answer.headers
    assert 0 == running.stack.acs.faults.count("issue")


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000.evil.example",
        "null",
        "http://localhost:3001",
        "HTTP://LOCALHOST:3000",
    ],
)
async def test_cors_is_exact(app: Client, running: Running, origin: str) -> None:
    """An origin is allowed as it is written, or not at all."""
    other = await app.get("/api/token", running.token_of_new_person(), headers={"Origin": origin})
    ours = await app.get(
        "/api/token", running.token_of_new_person(), headers={"Origin": "http://localhost:3000"}
    )

    assert "Access-Control-Allow-Origin" not in other.headers
    assert "http://localhost:3000" == ours.headers["Access-Control-Allow-Origin"]
    assert "Origin" in ours.headers["Vary"]


async def test_scope_not_allowed(app: Client, running: Running) -> None:
    """A scope that ACS has and the settings do not; ACS never hears of it."""
    answer = await app.get("/api/token?scope=chat.join", running.token_of_new_person())

    assert_problem(answer, 403, "scope_not_allowed")
    assert 0 == running.stack.acs.faults.count("create")


async def test_rate_limited(app: Client, running: Running) -> None:
    """One person who asks 200 times in a moment is asked to wait; others are not."""
    token, other = running.token_of_new_person(), running.token_of_new_person()
    await app.get("/api/token", token)

    answers = await asyncio.gather(*(app.get("/api/user", token) for _ in range(199)))

    assert {200, 429} == {answer.status for answer in answers}
    assert_problem(next(a for a in answers if a.status == 429), 429, "rate_limited")
    assert 200 == (await app.get("/api/token", other)).status


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        pytest.param({"status": 401}, 502, "upstream_auth", id="401"),
        pytest.param({"status": 403}, 502, "upstream_auth", id="403"),
        pytest.param({"status": 500}, 503, "upstream_unavailable", id="500"),
        pytest.param({"status": 503}, 503, "upstream_unavailable", id="503"),
        pytest.param({"status": 504}, 503, "upstream_unavailable", id="504"),
        pytest.param({"status": 400}, 502, "upstream_bad_response", id="400"),
        pytest.param(
            {"status": 302, "headers": {"Location": "/"}},
            502,
            "upstream_bad_response",
            id="redirect",
        ),
        pytest.param({"body": "{}"}, 502, "upstream_bad_response", id="empty object"),
        pytest.param({"body": "null"}, 502, "upstream_bad_response", id="null"),
        pytest.param(
            {"body": "<html>", "content_type": "text/html"}, 502, "upstream_bad_response", id="HTML"
        ),
        pytest.param({"truncate": 20}, 502, "upstream_bad_response", id="truncated"),
        pytest.param({"reset": True, "times": 9}, 503, "upstream_unavailable", id="reset"),
        pytest.param({"delay": 3.5}, 504, "upstream_timeout", id="slow"),
    ],
)
@pytest.mark.parametrize("operation", ["create", "issue"])
async def test_acs_faults(
    app: Client,
    running: Running,
    later: Callable[..., None],
    operation: str,
    fault: dict[str, Any],
    status: int,
    code: str,
) -> None:
    """ACS failing is never the caller's fault, is told apart, and passes with the fault."""
    token = running.token_of_new_person()
    running.stack.acs.faults.fail_next(operation, **fault)
    started = time.monotonic()

    answer = await app.get("/api/token", token)

    assert_problem(answer, status, code)
    assert time.monotonic() - started < 8
    if operation == "create":
        assert 1 == running.stack.acs.faults.count("create")
        if code != "upstream_auth":  # Then ACS may have created it: the next try has to wait.
            later(seconds=float(answer.headers.get("Retry-After", "0")))
    running.stack.acs.faults.clear()
    assert 200 == (await app.get("/api/token", token)).status


@pytest.mark.parametrize("operation", ["create", "issue"])
async def test_acs_throttles(
    running: Running,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
    operation: str,
) -> None:
    """After a 429, nobody's request is a call until the time is over; then all goes on."""
    app = app_at(another_host())
    first, second = running.token_of_new_person(), running.token_of_new_person()
    for token in (first, second) if operation == "issue" else ():
        assert 200 == (await app.get("/api/token", token)).status
    running.stack.acs.faults.clear()
    running.stack.acs.faults.fail_next(operation, status=429, headers={"Retry-After": "4"})

    answers = [await app.get("/api/token", token) for token in (first, second)]

    for answer in answers:
        assert_problem(answer, 503, "upstream_throttled")
        assert 2 <= int(answer.headers["Retry-After"]) <= 9
    assert 1 == running.stack.acs.faults.count(operation)
    await asyncio.sleep(4.1)
    assert 200 == (await app.get("/api/token", first)).status
    assert 200 == (await app.get("/api/token", second)).status


async def test_acs_throttles_for_a_day(
    running: Running,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
) -> None:
    """However long ACS says, the caller is told a minute at most."""
    other = app_at(another_host())
    fault = {"status": 429, "headers": {"Retry-After": "86400"}}
    running.stack.acs.faults.fail_next("create", **fault)

    answer = await other.get("/api/token", running.token_of_new_person())

    assert_problem(answer, 503, "upstream_throttled")
    assert 45 <= int(answer.headers["Retry-After"]) <= 60


async def test_acs_drips(app: Client, running: Running) -> None:
    """An answer that comes byte by byte does not keep a request waiting forever."""
    token = running.token_of_new_person()
    assert 200 == (await app.get("/api/token", token)).status
    running.stack.acs.faults.fail_next("issue", drip=0.5)
    started = time.monotonic()

    assert_problem(await app.get("/api/token", token), 504, "upstream_timeout")

    assert time.monotonic() - started < 8
    assert 200 == (await app.get("/api/token", token)).status


async def test_issue_survives_one_broken_connection(app: Client, running: Running) -> None:
    """Issuing twice does no harm, so a broken connection is tried once more."""
    token = running.token_of_new_person()
    running.stack.acs.faults.fail_next("issue", reset=True)

    assert 200 == (await app.get("/api/token", token)).status


async def test_lost_reply_to_create(
    app: Client, running: Running, later: Callable[..., None]
) -> None:
    """The identity that may have been made never gets a token; the next call makes another."""
    token = running.token_of_new_person()
    running.stack.acs.faults.fail_next("create", reset=True, after=True)

    lost = await app.get("/api/token", token)
    assert_problem(lost, 503, "upstream_unavailable")
    later(seconds=float(lost.headers["Retry-After"]))
    retried = await app.get("/api/token", token)

    assert 200 == retried.status
    unreferenced, handed_out = running.stack.acs.created[-2:]
    assert handed_out == retried.json["user"]["id"]
    assert 0 == running.stack.acs.issued[unreferenced]


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        pytest.param({"status": 503}, 9, id="busy"),
        pytest.param({"status": 403}, 1, id="role lost"),
        pytest.param({"reset": True}, 9, id="reset"),
        pytest.param({"delay": 4}, 9, id="slow"),
        pytest.param({"body": "[]"}, 9, id="nonsense"),
        pytest.param({"status": 404, "body": NO_TABLE}, 1, id="no table"),
    ],
)  # fmt: skip
async def test_table_faults(
    app: Client, running: Running, fault: dict[str, Any], times: int
) -> None:
    """When the table cannot be read, no identity is created."""
    token = running.token_of_new_person()
    running.stack.tables.faults.fail_next("table_read", times=times, **fault)
    started = time.monotonic()

    answer = await app.get("/api/token", token)

    assert_problem(answer, 503, "storage_unavailable")
    assert time.monotonic() - started < 8
    assert 0 == running.stack.acs.faults.count("create")
    running.stack.tables.faults.clear()
    assert 200 == (await app.get("/api/token", token)).status


async def test_insert_answered_after_all(app: Client, running: Running) -> None:
    """503, then 409 because of our own first attempt: the nonce shows that the row is ours."""
    running.stack.tables.faults.fail_next("table_insert", status=503, after=True)

    assert 200 == (await app.get("/api/token", running.token_of_new_person())).status
    assert 1 == running.stack.acs.faults.count("create")


async def test_update_answered_after_all(app: Client, running: Running) -> None:
    """503, then 412 because of our own first attempt: likewise."""
    running.stack.tables.faults.fail_next("table_update", status=503, after=True)

    assert 200 == (await app.get("/api/token", running.token_of_new_person())).status
    assert 1 == running.stack.acs.faults.count("create")


async def test_busy(
    app: Client, running: Running, rewrite_row: Callable[..., Awaitable[None]]
) -> None:
    """Another request is creating the identity, and takes long."""
    object_id = str(uuid.uuid4())
    now = datetime.now(UTC)
    await rewrite_row(
        object_id,
        state="creating",
        attempt="theirs",
        generation=1,
        schema=1,
        createdOn=now,
        lastUsedOn=now,
        leaseUntil=now + timedelta(seconds=20),
    )

    answer = await app.get("/api/token", running.token_of_new_person(oid=object_id))

    assert_problem(answer, 503, "busy")
    assert 0 == running.stack.acs.faults.count("create")


async def test_row_of_a_newer_version(
    app: Client, running: Running, rewrite_row: Callable[..., Awaitable[None]]
) -> None:
    """A row that this version cannot read is left alone."""
    object_id = str(uuid.uuid4())
    token = running.token_of_new_person(oid=object_id)
    await app.get("/api/token", token)
    await rewrite_row(object_id, schema=2)
    del running.host.output[:]

    assert_problem(await app.get("/api/token", token), 503, "storage_unavailable")
    line = await running.host.printed('"event": "mapping_unreadable"')
    assert object_id in line


async def test_row_with_the_identity_of_another(
    app: Client, running: Running, rewrite_row: Callable[..., Awaitable[None]]
) -> None:
    """Two rows name one identity: it is issued for the person whose it is, and for nobody else."""
    mine, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    acs_id = (await app.get("/api/token", running.token_of_new_person(oid=mine))).json["user"]["id"]
    now = datetime.now(UTC)
    await rewrite_row(
        theirs,
        state="active",
        acsId=acs_id,
        attempt="theirs",
        generation=1,
        schema=1,
        createdOn=now,
        lastUsedOn=now,
    )
    del running.host.output[:]

    answer = await app.get("/api/token", running.token_of_new_person(oid=theirs))

    assert_problem(answer, 503, "storage_unavailable")
    line = await running.host.printed('"event": "identity_shared"')
    assert theirs in line
    assert mine not in line
    assert acs_id in line
    served = await app.get("/api/token", running.token_of_new_person(oid=mine))
    assert acs_id == served.json["user"]["id"]


async def test_revoked(
    app: Client, running: Running, rewrite_row: Callable[..., Awaitable[None]]
) -> None:
    """An Entra token from before the mark is refused, with the claims that MSAL passes on."""
    object_id = str(uuid.uuid4())
    token = running.token_of_new_person(oid=object_id)
    await app.get("/api/token", token)
    mark = datetime.now(UTC)
    await rewrite_row(object_id, revokedBefore=mark)

    before = running.stack.acs.faults.count("issue")
    answer = await app.get("/api/token", token)
    again = await app.get("/api/token", token)
    fresh = running.token_of_new_person(
        oid=object_id, iat=int(time.time()) + 1, nbf=int(time.time())
    )

    assert_problem(answer, 401, "token_revoked")
    assert_problem(again, 401, "token_revoked")
    # One ACS token was issued during the first read, and discarded; later none is.
    assert before + 1 == running.stack.acs.faults.count("issue")
    challenge = answer.headers["WWW-Authenticate"]
    assert 'error="insufficient_claims"' in challenge
    claims = json.loads(base64.b64decode(challenge.partition('claims="')[2].rstrip('"')))
    assert {"essential": True, "value": str(int(mark.timestamp()) + 1)} == claims["access_token"][
        "nbf"
    ]
    assert 200 == (await app.get("/api/token", fresh)).status


class TestSigningKeys:
    """Entra's keys: out of reach at the start, rolled, and flooded for."""

    @pytest.mark.usefixtures("no_kept_keys")
    async def test_cold_start_without_entra(
        self,
        app_at: Callable[..., Client],
        running: Running,
        another_host: Callable[..., FunctionsHost],
    ) -> None:
        """503, not 401: nobody is signed out because Entra cannot be asked."""
        host = another_host()
        running.stack.entra.faults.fail_next("openid_configuration", status=500)

        answer = await app_at(host).get("/api/token", running.token_of_new_person())

        assert_problem(answer, 503, "keys_unavailable")
        assert 200 == (await app_at(host).get("/api/token", running.token_of_new_person())).status

    @pytest.mark.usefixtures("no_kept_keys")
    async def test_refresh_in_the_background_is_logged(
        self,
        app_at: Callable[..., Client],
        running: Running,
        another_host: Callable[..., FunctionsHost],
    ) -> None:
        """What the refresher finds after the request that began it reaches the operator."""
        host = another_host()
        running.stack.entra.faults.fail_next("openid_configuration", status=500)

        await app_at(host).get("/api/token", running.token_of_new_person())
        first = await host.printed("signing_keys_not_refreshed")
        later = await host.printed("signing_keys_refreshed", seconds=20)

        assert "token: ERROR {" in first  # A log record of the request.
        assert "signing_keys_refreshed" == json.loads(later)["event"]  # The line alone.

    @pytest.mark.usefixtures("no_kept_keys")
    async def test_not_ready_without_keys(
        self,
        app_at: Callable[..., Client],
        running: Running,
        another_host: Callable[..., FunctionsHost],
    ) -> None:
        """An instance without keys is not ready."""
        host = another_host()
        running.stack.entra.faults.fail_next("jwks", status=500, times=9)

        assert_problem(await app_at(host).get("/api/health/ready"), 503, "keys_unavailable")

    async def test_hundred_callers_with_a_new_key(self, app: Client, running: Running) -> None:
        """Entra rolls its keys: everybody is served after one fetch."""
        await app.get("/api/token", running.token_of_new_person())
        running.stack.entra.faults.clear()
        running.stack.entra.roll_keys(keep=2)

        answers = await asyncio.gather(
            *(app.get("/api/user", running.token_of_new_person()) for _ in range(100))
        )

        assert {(404, "user_not_found")} == {
            (answer.status, answer.code) for answer in answers
        }  # Entra knows them, the broker does not.
        assert 1 == running.stack.entra.faults.count("jwks")

    @pytest.mark.parametrize(
        ("entra_is", "hours", "expected"),
        [
            pytest.param("healthy", 1, (401, "invalid_token"), id="forged long ago"),
            pytest.param("healthy", 0, (503, "keys_unavailable"), id="of a key that may be new"),
            pytest.param("down", 0, (503, "keys_unavailable"), id="while Entra is down"),
        ],
    )
    async def test_flood_of_unknown_keys(
        self,
        app_at: Callable[..., Client],
        running: Running,
        another_host: Callable[..., FunctionsHost],
        entra_is: str,
        hours: int,
        expected: tuple[int, str],
    ) -> None:
        """Entra is asked three times at most, and those with known keys notice nothing."""
        host = app_at(another_host())
        await host.get("/api/token", running.token_of_new_person())
        running.stack.entra.faults.clear()
        if entra_is == "down":
            running.stack.entra.faults.fail_next(status=503, times=999)
        entra = running.stack.entra
        times = {"iat": int(time.time()) - 3600 * hours}
        forged = [
            entra.issue_access_token(header={"kid": uuid.uuid4().hex}, claims=times)
            for _ in range(200)
        ]

        answers = await asyncio.gather(*(host.get("/api/token", token) for token in forged))

        assert {expected} == {(answer.status, answer.code) for answer in answers}
        asked = entra.faults.count("openid_configuration")
        assert asked <= (0 if expected[0] == 401 else 3)
        assert 200 == (await host.get("/api/token", running.token_of_new_person())).status

    @pytest.mark.usefixtures("no_kept_keys")
    async def test_cold_start_with_kept_keys(
        self,
        app_at: Callable[..., Client],
        running: Running,
        another_host: Callable[..., FunctionsHost],
    ) -> None:
        """A process that starts while Entra is down uses the keys that another one has kept.

        They open nothing for administrators.
        """
        first = app_at(another_host())
        assert 200 == (await first.get("/api/token", running.token_of_new_person())).status
        running.stack.entra.faults.fail_next("openid_configuration", status=503, times=99)
        host = another_host()

        ready = await app_at(host).get("/api/health/ready")
        answer = await app_at(host).get("/api/token", running.token_of_new_person())
        refused = await app_at(host).get("/api/users", running.token_of_administrator())

        assert (200, 200) == (ready.status, answer.status)
        assert_problem(refused, 503, "keys_unavailable")
        assert '"age_hours": 0.0' in await host.printed("kept_signing_keys_used")
        assert '"event": "token_issued"' in await host.printed('"keys_kept": true')


async def test_misconfigured(
    app_at: Callable[..., Client], another_host: Callable[..., FunctionsHost]
) -> None:
    """Wrong settings: nothing is served, readiness fails, the log names every problem."""
    host = another_host(
        ENTRA_CLIENT_ID="my-app",
        PRUNE_IDLE_DAYS="1",
        MAPPINGS_TABLE_ENDPOINT=" ",  # As if it was not set.
        MAPPINGS_CONNECTION_STRING="AccountKey=eA==;TableEndpoint=https://a.table.core.windows.net",
    )

    assert_problem(await app_at(host).get("/api/token", "x"), 503, "misconfigured")
    assert_problem(await app_at(host).get("/api/health/ready"), 503, "misconfigured")
    line = await host.printed('"event": "settings_invalid"')
    assert "ENTRA_CLIENT_ID is not a GUID; MAPPINGS_CONNECTION_STRING has no AccountName=" in line
    assert "PRUNE_IDLE_DAYS is not a whole number" in line
    assert "eA==" not in line
    await host.printed('"code": "misconfigured"')
    assert 1 == sum('"event": "settings_invalid"' in each for each in host.output)


async def test_flood(
    app_at: Callable[..., Client], another_host: Callable[..., FunctionsHost], running: Running
) -> None:
    """A flood of strangers has a few lines and a count, and hides no line of a person."""
    host = another_host()
    app = app_at(host)
    expired = running.token_of_new_person(exp=1)
    forged = f"{expired.rpartition('.')[0]}.{'A' * 342}"

    strangers = [app.get("/api/token", token) for token in [forged, "a.b.c"] * 100]
    answers = await asyncio.gather(*strangers, app.get("/api/token", expired))

    assert {401} == {answer.status for answer in answers}
    await host.printed('"event": "requests_counted"')
    await asyncio.sleep(1.2)  # In case that they took more than a second.
    lines = [json.loads(line[line.index("{") :]) for line in host.output if '"event"' in line]
    in_full = [line for line in lines if line["event"] == "request_refused"]
    counted = [line["requests"] for line in lines if line["event"] == "requests_counted"]
    assert 1 == sum("expired" in line["reason"] for line in in_full)
    assert len(strangers) + 1 == len(in_full) + sum(counted)
    assert len(in_full) < 40


async def test_control_characters(running: Running) -> None:
    """The server refuses a header that is not HTTP, and does not log the token in it."""
    token = running.token_of_new_person()
    host, port = running.host.url.removeprefix("http://").split(":")
    for odd in (b"\x00", b"\x01", b"\x1b", b"\r\n "):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /api/token HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s%s\r\n"
            b"Connection: close\r\n\r\n" % (host.encode(), odd, token.encode())
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b" 40" in answer[:20]

    assert not any(token[-100:] in line for line in running.host.output)

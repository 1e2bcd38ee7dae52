"""H: what answers and logs tell: the same to every stranger, and no secret to anybody."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

from local.entra.directory import CONTOSO
from local.stack import REPOSITORY
from tests.cases.catalogue import case
from tests.cases.service import named
from tests.running import assert_problem, write_app

if TYPE_CHECKING:
    from pathlib import Path

    from local.entra.emulator import EntraEmulator
    from tests.cases.service import AnotherService, Service
    from tests.running import Answer

FORGED = "FORGED-7c1d"  # What no log line may hold.
ELSEWHERE = "11111111-2222-4333-8444-555555555555"
ONE_LINE = re.compile(r"\[\d\d:\d\d:\d\d\.\d{3}\] \w+: [A-Z]+ .*|\{.*\}|Traceback.*|")
ROUTES = {
    "/api/token": ("GET", "POST"),
    "/api/token/entra": ("GET", "POST"),
    "/api/token/teams": ("GET", "POST"),
    "/api/token/revoke": ("POST",),
    "/api/user": ("GET", "POST", "DELETE"),
    "/api/users": ("GET",),
    f"/api/users/{CONTOSO.tenant_id}/{ELSEWHERE}": ("GET", "PUT", "DELETE"),
    f"/api/users/{CONTOSO.tenant_id}/{ELSEWHERE}/revoke": ("POST",),
    f"/api/users/{CONTOSO.tenant_id}/{ELSEWHERE}/renew": ("POST",),
}


def with_bad_signature(token: str) -> str:
    """Return a token with a signature of the right form that is not its own."""
    head, _, signature = token.rpartition(".")
    return f"{head}.{signature[::-1]}" if signature[0] in "AQgw" else f"{head}.A{signature[1:]}"


@case("H02", "line breaks, ANSI and bidi in claims, headers and paths: not in the log, or escaped")
async def test_H02_log_injection(service: Service, entra: EntraEmulator) -> None:
    began = len(service.running.host.output)
    texts = [
        f"x\n2026-01-01T00:00:00Z INFO admin login ok {FORGED}",
        f'x\r\n{{"event": "token_issued", "oid": "{FORGED}"}}',
        f"\x1b[2J\x1b[31m{FORGED}",
        f"\u202e{FORGED}\u2066",
        f"%0d%0a{FORGED}",
        f"{{}} %s {FORGED} ${{jndi:ldap://x}}",
        f"\u2028{FORGED}\x85\x00",
    ]
    for text in texts:
        with named(repr(text)):
            for claim in ("name", "oid", "tid", "azp", "scp", "iss", "aud", "sub", "ver", "uti"):
                token = service.running.token_of_new_person(**{claim: text})
                assert 500 > (await service.app.get("/api/token", token)).status
            for header in ({"kid": text}, {"typ": text}, {"alg": text}, {text: 1}):
                token = entra.issue_access_token(header=header)
                assert (await service.app.get("/api/token", token)).status in {200, 401}
    token = service.running.token_of_new_person()
    for headers in (
        {"traceparent": f"00-{FORGED}-01"},
        {"User-Agent": f"{FORGED} %1b[31m"},
        {"X-Forwarded-For": f"{FORGED}, 1.2.3.4"},
        {"Authorization": f"{FORGED} x"},
        {"Authorization": f"Bearer {FORGED}\u202e"},
    ):
        with named(str(headers)):
            await service.app.get("/api/user", headers=headers)
    await service.app.get(f"/api/token?scope={FORGED}%0a%1b%5b31m", token)
    await service.app.post("/api/token", token, json={"scopes": [f"{FORGED}\n"]})
    administrator = service.running.token_of_administrator()
    await service.app.get(f"/api/users/{CONTOSO.tenant_id}/{FORGED}%0a", administrator)

    await service.settled()
    log = service.logged_since(began)

    assert "request_refused" in log
    assert FORGED not in log
    assert all(ONE_LINE.fullmatch(line) for line in service.running.host.output[began:])
    assert log.isprintable() or set(log) - {"\n"} <= set(map(chr, range(32, 127)))


@case("H03", "a marked token on the ways to an error: it is in no log line and in no answer")
async def test_H03_no_token_in_logs_or_answers(service: Service, entra: EntraEmulator) -> None:
    began = len(service.running.host.output)
    stack = service.running.stack
    person = str(uuid.uuid4())
    good = service.running.token_of_new_person(oid=person)
    issued = await service.app.get("/api/token", good)
    assert 200 == issued.status
    acs_token = issued.json["token"]
    sent = [good, with_bad_signature(good), good[:-20], f"{good}x", f"x{good}", f"{good}.{good}"]
    sent += [
        service.running.token_of_new_person(**({"oid": person} | claims))
        for claims in (
            {"aud": "other"},
            {"exp": 1},
            {"tid": ELSEWHERE},
            {"scp": "other"},
            {"oid": 5},
        )
    ]
    sent.append(entra.issue_access_token(header={"kid": "unknown"}))
    answers = [await service.app.get("/api/token", token) for token in sent]
    answers.append(await service.app.get(f"/api/token?access_token={good}"))
    answers.append(await service.app.post("/api/token", json={"accessToken": good}))
    answers.append(await service.app.get("/api/token", headers={"Authorization": f"Basic {good}"}))
    answers.append(
        await service.app.post("/api/token/entra", good, json={"accessToken": f"{good}x"})
    )
    for operation, faults in (
        ("issue", stack.acs.faults),
        ("table_read", stack.tables.faults),
        ("token", entra.faults),
    ):
        path = "/api/token/entra" if operation == "token" else "/api/token"
        for fault in ({"status": 403}, {"status": 500}, {"body": json.dumps({"token": acs_token})}):
            faults.fail_next(operation, times=9, **fault)
            answers.append(await service.app.get(path, good))
            faults.clear()

    await service.settled()
    log = service.logged_since(began)
    told = "\n".join(f"{answer.text}{answer.headers}" for answer in answers[1:])
    connection = json.loads(stack.settings.read_text())["Values"]["ACS_CONNECTION_STRING"]
    secrets = {token.rpartition(".")[2] for token in [*sent, acs_token]}
    secrets |= {token.split(".")[1][:40] for token in [good, acs_token] if "." in token}
    secrets |= {connection.partition("accesskey=")[2], "AccountKey=", "SharedKey", "Bearer eyJ"}
    assert {401, 403, 502, 503} <= {answer.status for answer in answers}
    for secret in secrets - {""}:
        assert secret not in log
        assert secret not in told


DEBUGGING = """
import logging

for name in (None, "azure", "msal", "aiohttp", "urllib3"):
    logging.getLogger(name).setLevel(logging.DEBUG)
"""


@case("H04", "the SDKs log at DEBUG level: keys, signatures and bodies are not among it")
async def test_H04_sdk_logging(
    service: Service, another_service: AnotherService, tmp_path: Path
) -> None:
    write_app(tmp_path, DEBUGGING)
    host = await another_service(tmp_path)
    stack = service.running.stack
    good = service.running.token_of_new_member()
    issued = await host.app.get("/api/token", good)
    exchanged = await host.app.get("/api/token/entra", good)
    stack.acs.faults.fail_next("issue", status=401)
    await host.app.get("/api/token", good)
    stack.tables.faults.fail_next("table_read", status=403)
    await host.app.get("/api/token", good)
    await host.app.get("/api/token", with_bad_signature(good))
    revoked = await host.app.post("/api/token/revoke", good)

    await service.settled()
    log = "\n".join(host.running.host.output)
    connection = json.loads(stack.settings.read_text())["Values"]["ACS_CONNECTION_STRING"]
    assert (200, 200, 204) == (issued.status, exchanged.status, revoked.status)
    assert ": DEBUG " in log
    assert "'Authorization': 'REDACTED'" in log  # The SDKs have logged their requests.
    assert "'x-ms-content-sha256': 'REDACTED'" in log
    for secret in (
        *(token.rpartition(".")[2] for token in (good, issued.json["token"])),
        exchanged.json["token"].rpartition(".")[2],
        connection.partition("accesskey=")[2],
        *("worthless-secret-of-the-broker", "HMAC-SHA256 ", "SharedKey ", "Bearer eyJ"),
    ):
        assert secret not in log


@case("H05", "a bad signature over any content: one and the same answer, whoever is named in it")
async def test_H05_error_oracle(service: Service) -> None:
    person = str(uuid.uuid4())
    known = service.running.token_of_new_person(oid=person)
    assert 200 == (await service.app.post("/api/user", known)).status
    contents: dict[str, dict[str, Any]] = {
        "a person with an identity": {"oid": person},
        "a person without": {},
        "an administrator": {"roles": ["Mappings.Admin"]},
        "an unknown tenant": {"tid": ELSEWHERE},
        "another audience": {"aud": "api://other"},
        "expired": {"exp": 1},
        "no scope": {"scp": None},
        "no oid": {"oid": None},
        "another app": {"azp": ELSEWHERE},
    }
    bodies: dict[str, set[str]] = {}
    async with service.untouched():
        for path in ("/api/token", "/api/user", "/api/users", "/api/token/entra"):
            for name, claims in contents.items():
                with named(f"{path}, {name}"):
                    forged = with_bad_signature(service.running.token_of_new_person(**claims))
                    answer = await service.app.get(path, forged)
                    service.check_refusal(answer, 401, "invalid_token", sent=[forged])
                    bodies.setdefault(path, set()).add(told(answer))
    assert [1] * len(bodies) == [len(each) for each in bodies.values()]


def told(answer: Answer) -> str:
    """Return all that an answer tells, but for the time and the id of the request."""
    own = {"traceId": "", "instance": ""}
    headers = {name: value for name, value in answer.headers.items() if name != "Date"}
    return json.dumps([answer.status, answer.json | own, headers])


FAILING_APP = """
import asyncio
import sys

sys.path.insert(0, {repository!r})
import azure.functions as func
from shared.http import answers_problems, json_response

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


class Odd(Exception):
    def __str__(self):
        raise ValueError("not even a message")


def deep(n=0):
    return deep(n + 1)


ERRORS = {{
    "plain": lambda: RuntimeError("nobody thought of this: FORGED-7c1d"),
    "odd": Odd,
    "group": lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
    "os": lambda: OSError(2, "no such file", "/home/site/wwwroot/secret"),
    "memory": MemoryError,
    "assertion": AssertionError,
    "stop": StopAsyncIteration,
}}


@app.route(route="fail/{{kind}}")
@answers_problems("GET")
async def fail(req: func.HttpRequest) -> func.HttpResponse:
    if req.route_params["kind"] == "deep":
        deep()
    raise ERRORS[req.route_params["kind"]]()


@app.route(route="fine")
@answers_problems("GET")
async def fine(req: func.HttpRequest) -> func.HttpResponse:
    return json_response({{"status": "fine"}})
"""


@case("H06", "a handler fails in a way that nobody thought of: 500 without detail, one traceback")
async def test_H06_unforeseen_error(another_service: AnotherService, tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text('{"version": "2.0"}')
    (tmp_path / "function_app.py").write_text(FAILING_APP.format(repository=str(REPOSITORY)))
    host = await another_service(tmp_path)
    kinds = ("plain", "odd", "group", "os", "memory", "assertion", "stop", "deep", "no such kind")
    answers = {kind: await host.app.get(f"/api/fail/{kind}") for kind in kinds}
    fine = await host.app.get("/api/fine")

    await host.settled()
    log = "\n".join(host.running.host.output)
    for kind, answer in answers.items():
        with named(kind):
            assert_problem(answer, 500, "internal_error")
            for detail in ("Error", "Traceback", FORGED, "wwwroot", "line ", "File"):
                assert detail not in answer.text.replace("Internal Server Error", "")
            failed = [
                each
                for each in await host.events("request_failed", least=len(kinds))
                if each["trace_id"] == answer.json["traceId"]
            ]
            assert [(500, "internal_error")] == [(each["status"], each["code"]) for each in failed]
    assert len(kinds) == log.count(": ERROR unforeseen_error")
    assert 200 == fine.status


@case("H07", "callers without a valid token: not one of their requests reaches the table or ACS")
async def test_H07_table_is_out_of_reach(service: Service, entra: EntraEmulator) -> None:
    known = service.running.token_of_new_person()
    assert 200 == (await service.app.post("/api/user", known)).status
    bad = [None, "garbage", with_bad_signature(known), service.running.token_of_new_person(exp=1)]
    bad.append(with_bad_signature(service.running.token_of_administrator()))
    long_ago = int(time.time()) - 7200  # Entra cannot have had a new key then.
    old = {"iat": long_ago, "nbf": long_ago}
    bad.append(entra.issue_access_token(header={"kid": "unknown"}, claims=old))
    async with service.untouched():
        for path, methods in ROUTES.items():
            for method in methods:
                for token in bad:
                    with named(f"{method} {path}"):
                        answer = await service.app.call(method, path, token)
                        assert 401 == answer.status, answer


@case("H08", "no answer may be kept by a cache: no-store and no-cache on each, good or bad")
async def test_H08_nothing_is_cached(service: Service) -> None:
    good = service.running.token_of_new_member()
    administrator = service.running.token_of_administrator()
    answers = [
        await service.app.call(method, path, token, headers=headers)
        for path, methods in {
            **ROUTES,
            "/api/health": ("GET",),
            "/api/openapi.json": ("GET",),
        }.items()
        for method in (*methods, "PATCH", "OPTIONS")
        for token in (None, good, administrator)
        for headers in ({}, {"If-None-Match": "*", "Cache-Control": "max-age=3600"})
    ]
    new = service.running.token_of_new_person()
    answers.append(await service.app.get("/api/user", new))
    answers.append(await service.app.get("/api/token?x=y", new))
    service.running.stack.acs.faults.fail_next("issue", status=503)
    answers.append(await service.app.get("/api/token", new))

    assert {200, 204, 400, 401, 403, 404, 405, 503} <= {answer.status for answer in answers}
    for answer in answers:
        assert "no-store" == answer.headers["Cache-Control"], answer
        assert "no-cache" == answer.headers["Pragma"], answer
        assert not {"ETag", "Last-Modified", "Expires", "Age"} & answer.headers.keys()


@case("H09", "every error: a problem document of RFC 9457, with the status of the answer in it")
async def test_H09_problem_documents(
    service: Service, another_service: AnotherService, entra: EntraEmulator
) -> None:
    running, app = service.running, (await another_service()).app
    good, acs, tables = running.token_of_new_person(), running.stack.acs, running.stack.tables
    person = f"/api/users/{CONTOSO.tenant_id}/{ELSEWHERE}"
    administrator = running.token_of_administrator()
    seen = [
        (400, "invalid_request", await app.get("/api/token?x=y", good)),
        (401, "missing_token", await app.get("/api/token")),
        (401, "invalid_token", await app.get("/api/token", "x")),
        (403, "tenant_not_allowed", await app.get("/api/token", of_elsewhere(service, entra))),
        (
            403,
            "insufficient_scope",
            await app.get("/api/token", running.token_of_new_person(scp="x")),
        ),
        (
            403,
            "client_not_allowed",
            await app.get("/api/token", running.token_of_new_person(azp=ELSEWHERE)),
        ),
        (403, "scope_not_allowed", await app.get("/api/token?scope=voip.join", good)),
        (403, "admin_required", await app.get("/api/users", good)),
        (404, "user_not_found", await app.get("/api/user", good)),
        (405, "method_not_allowed", await app.call("PATCH", "/api/token", good)),
        (413, "payload_too_large", await app.post("/api/token", good, data=b" " * 20_000)),
        (415, "unsupported_media_type", await app.post("/api/token", good, data=b"{}")),
        (404, "user_not_found", await app.get(person, administrator)),
        (409, "conflict", await app.put(person, administrator, json=foreign_identity())),
    ]
    tables.faults.fail_next("table_read", status=403)
    seen.append((503, "storage_unavailable", await app.get("/api/token", good)))
    for operation, fault, status, code in (
        ("issue", {"status": 403}, 502, "upstream_auth"),
        ("issue", {"body": "{}"}, 502, "upstream_bad_response"),
        ("issue", {"status": 500}, 503, "upstream_unavailable"),
        ("issue", {"status": 429}, 503, "upstream_throttled"),
    ):
        acs.faults.fail_next(operation, **fault)
        seen.append((status, code, await app.get("/api/token", good)))

    for status, code, answer in seen:
        with named(code):
            assert_problem(answer, status, code)
            assert "about:blank" == answer.json["type"]
            assert answer.json["title"]
            assert answer.json["detail"]
            assert "<" not in answer.text
    assert len(seen) == len({answer.json["traceId"] for *_, answer in seen})


def of_elsewhere(service: Service, entra: EntraEmulator) -> str:
    """Return a good token of a tenant that is not served."""
    return service.running.token_of_new_person(tid=ELSEWHERE, iss=entra.issuer(ELSEWHERE))


def foreign_identity() -> dict[str, str]:
    """Return the body that would give somebody an identity of another ACS resource."""
    return {"communicationUserId": f"8:acs:{ELSEWHERE}_00000005-0000-0000-0000-000000000000"}

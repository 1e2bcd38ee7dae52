"""L: settings, load and packages: no half-open mode, and a flood harms nobody but its sender."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from local.stack import REPOSITORY
from shared.settings import Settings, SettingsError
from tests.cases.catalogue import case
from tests.cases.service import named
from tests.running import assert_problem, write_app

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from local.entra.emulator import EntraEmulator
    from tests.cases.service import AnotherService, Service

SHIPPED = [REPOSITORY / "function_app.py", *sorted((REPOSITORY / "shared").rglob("*.py"))]
GUID = "0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3"
# What a switch that weakens the service might be called.
BYPASSES = (
    *("SKIP_AUTH", "AUTH_DISABLED", "DISABLE_AUTH", "NO_AUTH", "ALLOW_ANONYMOUS", "DEV_MODE"),
    *("DEBUG", "TESTING", "INSECURE", "VERIFY_SIGNATURE", "JWT_VERIFY", "VALIDATE_ISSUER"),
    *("ENTRA_SKIP_VERIFICATION", "ENTRA_ALGORITHMS", "JWT_ALGORITHMS", "ENTRA_CLOCK_SKEW"),
    *("CLOCK_SKEW", "PYTHONHTTPSVERIFY", "NODE_TLS_REJECT_UNAUTHORIZED"),
)
SLOW_CALLBACK = 0.05  # seconds
TRIES = 3  # On a busy machine, one of them is free of stalls that are not ours.


@case("L01", "settings that are missing, placeholders or too open: 503, and each problem is named")
async def test_L01_bad_settings(service: Service, another_service: AnotherService) -> None:
    values = json.loads(service.running.stack.settings.read_text())["Values"]
    assert Settings.from_env(values)
    for name, value in (
        ("ENTRA_CLIENT_ID", ""),
        ("ENTRA_CLIENT_ID", "   "),
        ("ENTRA_CLIENT_ID", "<client id>"),
        ("ENTRA_CLIENT_ID", "my-app"),
        ("ENTRA_TENANT_IDS", ""),
        ("ENTRA_TENANT_IDS", "common"),
        ("ENTRA_TENANT_IDS", "organizations"),
        ("ENTRA_TENANT_IDS", "consumers"),
        ("ENTRA_TENANT_IDS", "contoso.com"),
        ("ENTRA_TENANT_IDS", f"{GUID},common"),
        ("ENTRA_TENANT_IDS", f"{GUID},*"),
        ("ENTRA_TENANT_IDS", "9188040d-6c67-4c5b-b112-36a304b66dad"),
        ("ENTRA_AUDIENCES", ","),
        ("ENTRA_ALLOWED_CLIENT_IDS", "*"),
        ("ENTRA_AUTHORITY_HOST", "https://login.microsoftonline.com.evil.example"),
        ("ENTRA_AUTHORITY_HOST", "http://login.microsoftonline.com"),
        ("ACS_CONNECTION_STRING", "<connection string>"),
        ("ACS_TOKEN_SCOPES", "*"),
        ("ACS_TOKEN_SCOPES", "chat,video"),
        ("ACS_TOKEN_LIFETIME_MINUTES", "59"),
        ("ACS_TOKEN_LIFETIME_MINUTES", "1441"),
        ("MAPPINGS_CONNECTION_STRING", ""),
        ("MAPPINGS_CONNECTION_STRING", "AccountName=contoso;AccountKey=?"),
        ("PRUNE_IDLE_DAYS", "1"),
        ("PRUNE_DRY_RUN", "yes"),
    ):
        with named(f"{name}={value}"), pytest.raises(SettingsError) as caught:
            Settings.from_env(values | {name: value})
        stem = name.partition("_")[0]
        assert any(stem in problem for problem in caught.value.problems), caught.value.problems

    wrong = {"ENTRA_CLIENT_ID": "my-app", "ENTRA_TENANT_IDS": "common", "PRUNE_IDLE_DAYS": "1"}
    host = await another_service(**wrong)
    async with service.untouched():
        for path in ("/api/token", "/api/user", "/api/users", "/api/health/ready"):
            with named(path):
                answer = await host.app.get(path, service.running.token_of_new_person())
                assert_problem(answer, 503, "misconfigured")
        assert 200 == (await host.app.get("/api/health")).status
    reason = (await host.events("settings_invalid"))[0]["reason"]
    assert all(name in reason for name in wrong)


@case("L02", "switches that turn a check off: there are none in what is deployed, whatever is set")
async def test_L02_no_bypass(
    service: Service, another_service: AnotherService, entra: EntraEmulator
) -> None:
    host = await another_service(**dict.fromkeys(BYPASSES, "true"))
    good = service.running.token_of_new_person()
    served = await host.app.get("/api/user", good)
    assert 404 == served.status, served
    claims = {"exp": int(time.time()) - 600}
    for name, token in {
        "none": None,
        "no signature": f"{good.rpartition('.')[0]}.",
        "expired": service.running.token_of_new_person(**claims),
        "alg none": entra.issue_access_token(header={"alg": "none"}),
        "alg HS256": entra.issue_access_token(header={"alg": "HS256"}),
        "another issuer": service.running.token_of_new_person(iss="https://evil.example"),
    }.items():
        with named(name):
            assert 401 == (await host.app.get("/api/token", token)).status

    for path in SHIPPED:
        source = path.read_text()
        for pattern in (
            r"verify(_\w+)?[\"']?\s*[=:]\s*False",
            r"(?i)skip_?(auth|verif|valid)|bypass|insecure",
            r"CERT_NONE|check_hostname|_create_unverified_context|ssl\s*=\s*False",
            r"AuthLevel\.(?!ANONYMOUS)",
            r"\b(breakpoint|eval|exec)\(",
        ):
            assert not re.search(pattern, source), (path, pattern)
    names = settings_read()
    assert {"ENTRA_CLIENT_ID", "ACS_ENDPOINT"} <= names
    assert not [name for name in names if re.search("DEBUG|TEST|SKIP|MOCK|FAKE|DEV|INSECURE", name)]
    assert set() == names & set(BYPASSES)


def settings_read() -> set[str]:
    """Return every text in the deployed code that looks like the name of a setting."""
    return {
        node.value
        for path in SHIPPED
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)+", node.value)
    }


@case("L03", "200 requests a minute of one person: 429 with Retry-After; others are served")
async def test_L03_rate_of_one_person(service: Service, another_service: AnotherService) -> None:
    host = await another_service()
    person = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=person)
    assert 200 == (await host.app.post("/api/user", token)).status
    service.running.stack.acs.faults.clear()

    # Other tokens, routes and methods are the same person's.
    tokens = [token, service.running.token_of_new_person(oid=person)]
    calls = [("GET", "/api/token"), ("POST", "/api/token"), ("GET", "/api/user")]
    answers = await asyncio.gather(
        *(host.app.call(*calls[number % 3], tokens[number % 2]) for number in range(200))
    )
    others = await asyncio.gather(
        *(host.app.get("/api/token", service.running.token_of_new_person()) for _ in range(10))
    )

    limited = [answer for answer in answers if answer.status == 429]
    assert len(limited) > 100
    for answer in limited:
        assert_problem(answer, 429, "rate_limited")
    assert service.running.stack.acs.faults.count("issue") <= 60 + 10
    assert {200} == {answer.status for answer in others}


@case("L04", "a flood of bad tokens: 401 each, no other service is called, others are served")
async def test_L04_anonymous_flood(service: Service, entra: EntraEmulator) -> None:
    running = service.running
    good = running.token_of_new_person()
    assert 200 == (await service.app.get("/api/token", good)).status
    long_ago = int(time.time()) - 7200
    head, _, signature = good.rpartition(".")
    bad = [
        *("garbage", "a.b.c", "x" * 24_000, f"{'A' * 20_000}.e30.AA", f"{head}.{signature[::-1]}"),
        entra.issue_access_token(header={"kid": "unknown"}, claims={"iat": long_ago}),
        running.token_of_new_person(exp=1),
        running.token_of_new_person(aud="other"),
    ]
    began = len(running.host.output)
    async with service.untouched():
        answers = []
        for _ in range(5):
            answers += await asyncio.gather(
                *(service.app.get("/api/token", token) for token in bad * 12),
            )
    served = await asyncio.gather(*(service.app.get("/api/user", good) for _ in range(10)))
    await service.settled()
    log = service.logged_since(began)

    assert {(401, "invalid_token")} == {(answer.status, answer.code) for answer in answers}
    assert {200} == {answer.status for answer in served}
    for token in bad:
        assert token[-40:] not in log or len(token) < 40


@case("L06", "a flood of readiness probes: the table and Entra are asked once in ten seconds")
async def test_L06_health_as_amplifier(service: Service, another_service: AnotherService) -> None:
    host = await another_service()
    stack = service.running.stack
    began = time.monotonic()
    answers = [
        *await asyncio.gather(*(host.app.get("/api/health/ready") for _ in range(150))),
        *await asyncio.gather(*(host.app.get("/api/health/ready", "x") for _ in range(150))),
    ]
    await service.settled()
    probes = (time.monotonic() - began) // 10 + 1

    assert {200} == {answer.status for answer in answers}
    assert stack.entra.faults.count("openid_configuration") <= 1
    assert stack.tables.faults.count("table_read") <= probes
    assert {} == stack.acs.faults.counts
    # A failure is kept as well.
    broken = await another_service()
    stack.tables.faults.clear()
    stack.tables.faults.fail_next("table_read", status=403, times=999)
    answers = await asyncio.gather(*(broken.app.get("/api/health/ready") for _ in range(50)))
    for answer in answers:
        assert_problem(answer, 503, "storage_unavailable")
    assert 1 == stack.tables.faults.count("table_read")


@case("L07", "ACS is down: alive and ready all the same, since a restart would not help")
async def test_L07_health_while_acs_is_down(
    service: Service, another_service: AnotherService
) -> None:
    host = await another_service()
    acs = service.running.stack.acs
    acs.faults.fail_next("*", reset=True, times=999)
    token = service.running.token_of_new_person()
    assert_problem(await host.app.get("/api/token", token), 503, "upstream_unavailable")
    for path in ("/api/health", "/api/health/ready", "/api/openapi.json"):
        assert 200 == (await host.app.get(path)).status
    acs.faults.clear()


WATCHING = f"""
import asyncio
import azure.functions as func


@app.route(route="watch")
async def watch(req: func.HttpRequest) -> func.HttpResponse:
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = {SLOW_CALLBACK}
    loop.set_debug(True)
    return func.HttpResponse("watching")
"""


@case("L09", "each service slow, tokens large: nothing keeps the event loop for 50 ms")
async def test_L09_event_loop_is_free(
    service: Service, another_service: AnotherService, tmp_path: Path
) -> None:
    write_app(tmp_path, WATCHING)
    host = await another_service(tmp_path)
    stack, running, slow = service.running.stack, service.running, 0.3

    known = str(uuid.uuid4())

    async def entra_slow() -> None:
        # Of somebody who was served: for others, Entra is asked less often.
        claims = {"oid": known}
        new = stack.entra.issue_access_token(header={"kid": uuid.uuid4().hex}, claims=claims)
        stack.entra.faults.clear()
        stack.entra.faults.fail_next("openid_configuration", delay=slow)
        assert_problem(await host.app.get("/api/token", new), 503, "keys_unavailable")
        assert 1 == stack.entra.faults.count("openid_configuration")

    async def acs_slow() -> None:
        stack.acs.faults.fail_next("*", delay=slow)
        await host.app.get("/api/token", running.token_of_new_person())

    async def table_slow() -> None:
        stack.tables.faults.fail_next("table_read", delay=slow)
        await host.app.get("/api/token", running.token_of_new_person())

    async def exchange_slow() -> None:
        stack.entra.faults.fail_next("token", delay=slow)
        await host.app.get("/api/token/entra", running.token_of_new_member())

    async def large_tokens() -> None:
        groups = [str(uuid.uuid4()) for _ in range(400)]
        large = running.token_of_new_person(groups=groups)
        await host.app.get("/api/token", large)
        await host.app.get("/api/token", large[:-4])

    async def large_bodies() -> None:
        token = running.token_of_new_person()
        body = b'{"a": ' + b"[" * 8000 + b"]" * 8000 + b"}"
        json_body = {"data": body, "headers": {"Content-Type": "application/json"}}
        await host.app.post("/api/token", token, **json_body)

    kinds = [acs_slow, table_slow, exchange_slow, large_tokens, large_bodies]
    for kind in kinds:  # A first use imports modules and opens connections.
        await kind()
    kinds.append(entra_slow)
    known_token = running.token_of_new_person(oid=known)
    assert 200 == (await host.app.get("/api/token", known_token)).status
    assert "watching" == (await host.app.get("/api/watch")).text
    for kind in kinds:
        with named(kind.__name__):
            await freely(host, kind)


async def freely(host: Service, kind: Callable[[], Awaitable[None]]) -> None:
    """Check that the event loop stays free in one of a few tries."""
    slow: list[str] = []
    for _ in range(TRIES):
        began = len(host.running.host.output)
        await kind()
        slow = [line for line in host.running.host.output[began:] if "Executing <" in line]
        if not slow:
            return
    raise AssertionError(slow)


@case("L10", "a package that changes unnoticed: each is pinned by hash, and every change is tested")
async def test_L10_packages_are_pinned(service: Service) -> None:
    for lock in ("requirements.txt", "requirements-dev.txt", "local/storage/requirements-node.txt"):
        with named(lock):
            text = (REPOSITORY / lock).read_text().replace("\\\n", " ")
            lines = [
                line for line in text.splitlines() if line and not line.lstrip().startswith("#")
            ]
            assert lines
            for line in lines:
                assert re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[\w.+!-]+ ", line), line
                assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
    versions = {
        lock: re.findall(r"(?m)^pyjwt(?:\[crypto\])?==(\S+)", (REPOSITORY / lock).read_text())
        for lock in ("requirements.txt", "requirements-dev.txt")
    }
    assert 1 == len({tuple(set(each)) for each in versions.values()}), versions
    assert "--require-hashes" in (REPOSITORY / "Makefile").read_text()
    assert "--require-hashes" in (REPOSITORY / "infra/package.py").read_text()
    workflow = (REPOSITORY / ".github/workflows/ci.yml").read_text()
    assert "pull_request:" in workflow
    assert "make test" in workflow
    # What PyJWT may accept one day, this service refuses today.
    good = service.running.token_of_new_person()
    padded = {f"{count} =": f"{good}{'=' * count}" for count in (1, 2, 4)}
    await service.refuses(401, "invalid_token", padded)

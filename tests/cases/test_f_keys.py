"""F: Entra's keys, and how they are fetched: nobody is signed out, and no strange key is used."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import time
import uuid
import warnings
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from local.entra.tokens import SigningKey as EntraKey
from local.serving.application import LOOPBACK
from shared.entra.signing_keys import SigningKeys
from shared.errors import KeysUnavailableError
from tests.cases.catalogue import case
from tests.cases.key_server import KEYS, METADATA, KeyServer
from tests.cases.service import named
from tests.emulated import until
from tests.running import assert_problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cases.service import AnotherService, Service
    from tests.running import Answer

    Spoil = Callable[[KeyServer], None]

MEBIBYTE = 1024 * 1024
DAY = 24 * 3600
FETCHES_AT_ONCE = 3  # So many at most in the first minute of a flood.


@pytest.fixture(scope="session")
def new_key() -> EntraKey:
    """A key that Entra has not published yet."""
    return EntraKey.generate()


def assert_cannot_tell(answer: Answer) -> None:
    """Check that the caller is told to come back, not to sign in again."""
    assert_problem(answer, 503, "keys_unavailable")
    assert "WWW-Authenticate" not in answer.headers


async def assert_foreseen(host: Service) -> None:
    """Check that the log says that keys could not be fetched, and nothing of an accident."""
    assert await host.events("signing_keys_not_refreshed")
    log = "\n".join(host.running.host.output)
    assert "unforeseen_error" not in log
    assert "Traceback" not in log


async def withstands(
    keys: list[EntraKey], new_key: EntraKey, another_service: AnotherService, spoil: Spoil
) -> None:
    """Check what a spoilt key server does to a cold process, and then to a warm one.

    Cold: 503, and the next request is served when the server is good again. Warm: the keys that the
    process has go on serving, and a token with another key gets 503.
    """
    server = KeyServer(keys)
    async with server.serve() as url:
        host = await another_service(ENTRA_AUTHORITY_HOST=url)
        token = server.token()
        spoil(server)
        cold = await host.app.get("/api/token", token)
        server.heal()
        served = await host.app.get("/api/token", token)
        spoil(server)
        of_new_key = await host.app.get("/api/token", server.token_of_key(new_key))
        kept = await host.app.get("/api/token", token)

    assert_cannot_tell(cold)
    assert 200 == served.status, served
    assert_cannot_tell(of_new_key)
    assert 200 == kept.status, kept
    await assert_foreseen(host)


@case("F01", "Entra out of reach at a cold start: 503 keys_unavailable, and it heals by itself")
async def test_F01_entra_down_at_cold_start(
    another_service: AnotherService, entra_keys: list[EntraKey]
) -> None:
    with socket.create_server((LOOPBACK, 0)) as reserved:
        port = reserved.getsockname()[1]
    host = await another_service(ENTRA_AUTHORITY_HOST=f"http://{LOOPBACK}:{port}")
    server = KeyServer(entra_keys)
    server.entra.url = f"http://{LOOPBACK}:{port}"
    token = server.token()

    refused = await host.app.get("/api/token", token)
    not_ready = await host.app.get("/api/health/ready")
    alive = await host.app.get("/api/health")
    async with server.serve(port=port):
        # Nobody asks: the background finds out.
        await host.running.host.printed('"event": "signing_keys_refreshed"', seconds=20)
        fetches = server.fetches
        served = await host.app.get("/api/token", token)

    assert_cannot_tell(refused)
    assert_cannot_tell(not_ready)
    assert 200 == alive.status
    assert 200 == served.status, served
    assert 1 == fetches == server.fetches
    await assert_foreseen(host)


@case("F02", "Entra down while the keys are younger than a day: those with known keys are served")
async def test_F02_entra_down_with_good_keys(
    key_server: KeyServer, service: Service, another_service: AnotherService, new_key: EntraKey
) -> None:
    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    token = key_server.token()
    assert 200 == (await host.app.get("/api/token", token)).status
    await service.settled()
    faults: dict[str, dict[str, Any]] = {
        "503": {"status": 503},
        "429": {"status": 429, "headers": {"Retry-After": "600"}},
        "reset": {"reset": True},
    }
    for name, fault in faults.items():
        with named(name):
            key_server.heal()
            key_server.spoil(METADATA, **fault)
            unknown = await host.app.get("/api/token", key_server.token_of_key(new_key))
            known = [await host.app.get("/api/token", key_server.token()) for _ in range(3)]

            assert_cannot_tell(unknown)
            assert {200} == {answer.status for answer in known}

    # A process that starts now has the keys that this one has kept, but for no administrator.
    started = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    served = await started.app.get("/api/token", key_server.token())
    administrator = await started.app.get("/api/users", key_server.token(roles=["Mappings.Admin"]))
    assert 200 == served.status, served
    assert_cannot_tell(administrator)
    assert_cannot_tell(await started.app.get("/api/token", key_server.token_of_key(new_key)))


@case("F03", "Entra down for more than a day: 503, from the second on; then it heals")
async def test_F03_entra_down_for_a_day(
    key_server: KeyServer, service: Service, another_service: AnotherService
) -> None:
    seconds, key_id = 1000.0, key_server.entra.keys[0].kid
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        keys = SigningKeys(
            session=session,
            authority=key_server.url,
            keys_of="organizations",
            clock=lambda: seconds,
        )
        try:
            first = await keys.get(key_id, b"{}")
            key_server.spoil(METADATA, status=503)
            seconds += DAY
            assert first is await keys.get(key_id, b"{}")
            seconds += 1
            with pytest.raises(KeysUnavailableError):
                await keys.get(key_id, b"{}")
            key_server.heal()
            assert first.public_key == (await keys.get(key_id, b"{}")).public_key
        finally:
            keys.close()

    # What was kept for processes that start meanwhile is good for a day as well.
    running = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    assert 200 == (await running.app.get("/api/token", key_server.token())).status
    await service.settled()
    key_server.spoil(METADATA, status=503)
    tables = service.running.stack.tables
    for hours, status in ((23, 200), (25, 503)):
        ahead = timedelta(hours=hours)
        tables.clock = lambda ahead=ahead: datetime.now(UTC) + ahead
        host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
        answer = await host.app.get("/api/user", key_server.token())
        tables.clock = None
        with named(f"after {hours} hours"):
            if status == 200:
                assert_problem(answer, 404, "user_not_found")
            else:
                assert_cannot_tell(answer)
    key_server.heal()
    assert 200 == (await host.app.get("/api/token", key_server.token())).status


@case("F06", "keys byte by byte: 503 within 5 s, and the fetch is given up")
async def test_F06_keys_drip(key_server: KeyServer, another_service: AnotherService) -> None:
    left = 0

    async def drip(request: web.Request) -> web.StreamResponse:
        nonlocal left
        response = web.StreamResponse()
        response.content_length = 10_000
        await response.prepare(request)
        try:
            while request.transport is not None:
                await response.write(b" ")
                await asyncio.sleep(0.02)
        finally:
            left += 1
        return response

    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    assert 200 == (await host.app.get("/api/health")).status  # The first request takes longer.
    key_server.answer_with(drip)
    began = time.monotonic()
    cold = await host.app.get("/api/token", key_server.token())
    waited = time.monotonic() - began
    await until(lambda: left == 1, seconds=10)
    given_up = time.monotonic() - began
    key_server.heal()

    assert_cannot_tell(cold)
    assert waited < 5
    assert given_up < 8
    await asyncio.sleep(0.5)  # Until then, a request may join the fetch that is given up.
    assert 200 == (await host.app.get("/api/token", key_server.token())).status
    await assert_foreseen(host)


@case("F07", "keys without end, of 60 MB, compressed: cut off at 256 KiB, 503")
async def test_F07_huge_keys(
    another_service: AnotherService, entra_keys: list[EntraKey], new_key: EntraKey
) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65_536)
            sent += 65_536

    async def announced(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.content_length = 60 * MEBIBYTE
        await response.prepare(request)
        for _ in range(60):
            await response.write(b" " * MEBIBYTE)
            sent += MEBIBYTE
        return response

    bomb = gzip.compress(b'{"keys": []}'.ljust(60 * MEBIBYTE))

    async def compressed(request: web.Request) -> web.StreamResponse:
        assert "identity" == request.headers["Accept-Encoding"]
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    for answer in (endless, announced, compressed):
        with named(answer.__name__):
            spoil = partial(KeyServer.answer_with, answer=answer)
            await withstands(entra_keys, new_key, another_service, spoil)
    # Of four fetches; this includes what the sockets buffer.
    assert sent < 40 * MEBIBYTE


def garbage(server: KeyServer) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what a server may send in place of its documents, and in place of which."""
    good = json.dumps(server.entra.key_set(None))
    first, second = server.entra.key_set(None)["keys"]
    return {
        "HTML": (KEYS, {"body": "<html>", "content_type": "text/html"}),
        "a list": (KEYS, {"body": "[]"}),
        "null": (METADATA, {"body": "null"}),
        "an empty object": (KEYS, {"body": "{}"}),
        "no keys": (KEYS, {"body": '{"keys":[]}'}),
        "UTF-16": (KEYS, {"body": "\0".join([*good, ""])}),
        "deep JSON": (KEYS, {"body": '{"keys": ' + "[" * 100_000}),
        "NaN": (KEYS, {"body": good.replace("{", '{"a": NaN, ', 1)}),
        "a name twice": (KEYS, {"body": good.replace("{", '{"keys": [], ', 1)}),
        "truncated": (KEYS, {"truncate": 100}),
        "reset": (KEYS, {"reset": True}),
        "a private key": (KEYS, {"body": json.dumps({"keys": [first, second | {"d": "AQ"}]})}),
    }


@case("F08", "keys that are garbage, in 12 ways: the last good ones stay; cold: 503")
async def test_F08_garbage_for_keys(
    another_service: AnotherService, entra_keys: list[EntraKey], new_key: EntraKey
) -> None:
    def spoil(server: KeyServer, name: str) -> None:
        document, fault = garbage(server)[name]
        server.spoil(document, **fault)

    for name in garbage(KeyServer(entra_keys)):
        with named(name):
            await withstands(entra_keys, new_key, another_service, partial(spoil, name=name))


@case("F09", "keys behind a redirect: not followed; the last good ones stay; cold: 503")
async def test_F09_redirect(
    another_service: AnotherService, entra_keys: list[EntraKey], new_key: EntraKey
) -> None:
    elsewhere = KeyServer(entra_keys)

    def spoil(server: KeyServer, status: int, location: str) -> None:
        headers = {"Location": location.format(own=server.url, other=elsewhere.url)}
        server.spoil(KEYS, status=status, body="", headers=headers)

    async with elsewhere.serve():
        for status, location in (
            (302, "{other}/organizations/discovery/v2.0/keys"),
            (307, "{own}/common/discovery/v2.0/keys"),
            (301, "file:///etc/keys"),
        ):
            with named(f"{status} to {location}"):
                spoilt = partial(spoil, status=status, location=location)
                await withstands(entra_keys, new_key, another_service, spoilt)
    assert 0 == elsewhere.entra.faults.count(KEYS)


@case("F10", "metadata that name keys on another host, or over http: refused, no key is used")
async def test_F10_keys_on_another_host(
    another_service: AnotherService, entra_keys: list[EntraKey], new_key: EntraKey
) -> None:
    elsewhere = KeyServer([new_key])

    def spoil(server: KeyServer, location: object) -> None:
        host = server.url.partition("://")[2]
        if isinstance(location, str):
            location = location.format(own=server.url, host=host, other=elsewhere.url)
        server.spoil(METADATA, body=json.dumps(server.metadata(jwks_uri=location)))

    async with elsewhere.serve():
        for location in (
            "{other}/organizations/discovery/v2.0/keys",
            "{own}@login.example/keys",
            "{own}0/keys",
            "{own}.example/keys",
            "//{host}/organizations/discovery/v2.0/keys",
            "file:///etc/keys",
            5,
        ):
            with named(str(location)):
                spoilt = partial(spoil, location=location)
                await withstands(entra_keys, new_key, another_service, spoilt)
    assert 0 == elsewhere.entra.faults.count(KEYS)


@case("F11", "metadata of another issuer: refused; the last good keys stay; cold: 503")
async def test_F11_metadata_of_another_issuer(
    another_service: AnotherService, entra_keys: list[EntraKey], new_key: EntraKey
) -> None:
    def spoil(server: KeyServer, issuer: str) -> None:
        text = issuer.replace("{own}", server.url)
        server.spoil(METADATA, body=json.dumps(server.metadata(issuer=text or None)))

    for issuer in (
        "https://entra.example/{tenantid}/v2.0",
        f"{{own}}/{uuid.uuid4()}/v2.0",
        "{own}/{tenantid}/v2.0/",
        "",
    ):
        with named(issuer or "none"):
            await withstands(entra_keys, new_key, another_service, partial(spoil, issuer=issuer))


def bad_contexts(trusted: trustme.CA) -> dict[str, Callable[[ssl.SSLContext], None]]:
    """Return what makes a server unfit to be trusted, as changes of its TLS settings."""
    now = datetime.now(UTC)
    week, yesterday = now - timedelta(days=7), now - timedelta(days=1)
    stranger = trustme.CA()

    def shows(leaf: trustme.LeafCert) -> Callable[[ssl.SSLContext], None]:
        return leaf.configure_cert

    def speaks_old_tls(context: ssl.SSLContext) -> None:
        trusted.issue_cert(LOOPBACK).configure_cert(context)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")

    return {
        "expired": shows(trusted.issue_cert(LOOPBACK, not_before=week, not_after=yesterday)),
        "not valid yet": shows(trusted.issue_cert(LOOPBACK, not_before=now + timedelta(days=1))),
        "another host": shows(trusted.issue_cert("127.0.0.2", "login.microsoftonline.com")),
        "another authority": shows(stranger.issue_cert(LOOPBACK)),
        "TLS 1.1": speaks_old_tls,
    }


@case("F12", "a certificate that is expired, strange or of another host, TLS 1.1: refused")
async def test_F12_bad_tls(
    another_service: AnotherService, entra_keys: list[EntraKey], tmp_path: Path
) -> None:
    trusted = trustme.CA()
    authority = tmp_path / "ca.pem"
    trusted.cert_pem.write_to_path(authority)
    good = trusted.issue_cert(LOOPBACK)
    for name, spoil_context in bad_contexts(trusted).items():
        with named(name):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            good.configure_cert(context)
            usual = context.minimum_version, context.maximum_version
            server = KeyServer(entra_keys)
            async with server.serve(tls=context) as url:
                host = await another_service(ENTRA_AUTHORITY_HOST=url, SSL_CERT_FILE=str(authority))
                token = server.token()
                spoil_context(context)
                cold = await host.app.get("/api/token", token)
                fetched = server.fetches
                context.minimum_version, context.maximum_version = usual
                good.configure_cert(context)
                served = await host.app.get("/api/token", token)

            assert_cannot_tell(cold)
            assert 0 == fetched
            assert 200 == served.status, served
            await assert_foreseen(host)


def flood(server: KeyServer, key: EntraKey, number: int, *, age: int) -> list[str]:
    """Return forged tokens, each with a key id of its own, that look so old in seconds."""
    issued = int(time.time()) - age
    return [
        server.entra.issue_access_token(
            claims={"oid": str(uuid.uuid4()), "iat": issued, "nbf": issued},
            header={"kid": uuid.uuid4().hex},
            key=key.private_key,
        )
        for _ in range(number)
    ]


@case("F13", "a flood of unknown key ids, Entra healthy: 401 or 503, at most 3 fetches")
async def test_F13_flood_of_unknown_key_ids(
    key_server: KeyServer, another_service: AnotherService, new_key: EntraKey
) -> None:
    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    token = key_server.token()
    assert 200 == (await host.app.get("/api/token", token)).status
    key_server.heal()

    old = flood(key_server, new_key, 200, age=600)
    new = flood(key_server, new_key, 100, age=0)
    answers = await asyncio.gather(*(host.app.get("/api/token", each) for each in old))
    recent = await asyncio.gather(*(host.app.get("/api/token", each) for each in new))
    served = await asyncio.gather(*(host.app.get("/api/token", token) for _ in range(10)))

    # The keys were fetched long after these would have been issued: they are forged.
    for answer in answers:
        assert_problem(answer, 401, "invalid_token")
    # Entra may have published the keys of these since.
    for answer in recent:
        assert_cannot_tell(answer)
    assert {200} == {answer.status for answer in served}
    assert key_server.fetches <= FETCHES_AT_ONCE


@case("F14", "a flood of unknown key ids, Entra down: 503, at most 3 attempts to fetch")
async def test_F14_flood_while_entra_is_down(
    key_server: KeyServer, another_service: AnotherService, new_key: EntraKey
) -> None:
    cold, warm = [await another_service(ENTRA_AUTHORITY_HOST=key_server.url) for _ in range(2)]
    token = key_server.token()
    assert 200 == (await warm.app.get("/api/token", token)).status
    for host in (cold, warm):
        key_server.heal()
        key_server.spoil(METADATA, status=503)
        forged = flood(key_server, new_key, 150, age=0)

        answers = await asyncio.gather(*(host.app.get("/api/token", each) for each in forged))

        for answer in answers:
            assert_cannot_tell(answer)
        assert 1 <= key_server.fetches <= FETCHES_AT_ONCE
    assert 200 == (await warm.app.get("/api/token", token)).status


@case("F15", "a flood just before keys roll: who was served before is served, nobody gets 401")
async def test_F15_flood_before_a_rollover(
    key_server: KeyServer, another_service: AnotherService, new_key: EntraKey
) -> None:
    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    served_before = str(uuid.uuid4())
    token = key_server.token(served_before)
    assert 200 == (await host.app.get("/api/token", token)).status
    key_server.heal()
    bad_signatures = [f"{token[:-8]}{number:08}" for number in range(10, 30)]
    bad = [await host.app.get("/api/token", each) for each in bad_signatures]
    spent_by_bad_signatures = key_server.fetches
    forged = [*flood(key_server, new_key, 30, age=600), *flood(key_server, new_key, 30, age=0)]
    await asyncio.gather(*(host.app.get("/api/token", each) for each in forged))
    in_flood = key_server.fetches
    key_server.entra.roll_keys(keep=2, new=new_key)

    others = [await host.app.get("/api/token", key_server.token_of_key(new_key)) for _ in range(3)]
    known = await host.app.get("/api/token", key_server.token_of_key(new_key, served_before, age=0))
    afterwards = await host.app.get("/api/token", key_server.token_of_key(new_key))

    for answer in bad:
        assert_problem(answer, 401, "invalid_token")
    assert 0 == spent_by_bad_signatures
    assert in_flood <= FETCHES_AT_ONCE
    for answer in others:
        assert answer.status in {200, 503}, answer
    assert 200 == known.status, known
    # That person's fetch has brought the new key for everybody.
    assert 200 == afterwards.status, afterwards


@case("F17", "a hundred requests at a cold start: all are served, after one fetch")
async def test_F17_burst_at_cold_start(
    key_server: KeyServer, another_service: AnotherService
) -> None:
    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    tokens = [key_server.token() for _ in range(100)]
    key_server.entra.faults.fail_next(KEYS, delay=0.3)

    answers = await asyncio.gather(*(host.app.post("/api/user", token) for token in tokens))

    assert {200} == {answer.status for answer in answers}
    assert (1, 1) == (key_server.fetches, key_server.entra.faults.count(KEYS))


@case("F18", "the first caller leaves during the fetch: the others are served by the same one")
async def test_F18_first_caller_leaves(
    key_server: KeyServer, another_service: AnotherService
) -> None:
    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    tokens = [key_server.token() for _ in range(6)]
    key_server.entra.faults.fail_next(KEYS, delay=0.5)
    leaving = asyncio.create_task(host.app.get("/api/token", tokens[0]))
    await until(lambda: key_server.entra.faults.count(KEYS) == 1)
    leaving.cancel()
    answers = await asyncio.gather(*(host.app.get("/api/token", token) for token in tokens[1:]))

    assert leaving.cancelled()
    assert {200} == {answer.status for answer in answers}
    assert (1, 1) == (key_server.fetches, key_server.entra.faults.count(KEYS))


@case("F20", "all keys replaced at once: taken if the set is good, and said so; old keys are gone")
async def test_F20_no_key_in_common(
    key_server: KeyServer, another_service: AnotherService, new_key: EntraKey
) -> None:
    host = await another_service(ENTRA_AUTHORITY_HOST=key_server.url)
    issued = int(time.time()) - 1000
    old = key_server.token(iat=issued, nbf=issued)
    assert 200 == (await host.app.get("/api/token", old)).status
    key_server.entra.roll_keys(keep=0, new=new_key)
    good = key_server.entra.key_set(None)["keys"][0]
    key_server.entra.faults.fail_next(KEYS, body=json.dumps({"keys": [good | {"d": "AQ"}]}))

    of_bad_set = await host.app.get("/api/token", key_server.token_of_key(new_key))
    still = await host.app.get("/api/token", old)
    of_good_set = await host.app.get("/api/token", key_server.token_of_key(new_key))
    withdrawn = await host.app.get("/api/token", old)

    assert_cannot_tell(of_bad_set)
    assert 200 == still.status
    assert 200 == of_good_set.status, of_good_set
    assert_problem(withdrawn, 401, "invalid_token")
    assert [False, True] == [
        each["all_new"] for each in await host.events("signing_keys_refreshed")
    ]

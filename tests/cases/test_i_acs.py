"""I: ACS fails: the caller is told what it means, nothing is done twice, and no wait is endless."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from local.acs.emulator import AcsEmulator
from local.serving.application import LOOPBACK, serve
from local.stack import REPOSITORY
from shared.circuit import LEAST_CALLS, PROBE_SECONDS
from shared.settings import Settings, SettingsError
from tests.cases.catalogue import case
from tests.cases.rows import change_row, forget_renewals, row_of
from tests.cases.service import named
from tests.running import assert_problem
from tests.tokens import Parts, as_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.cases.service import AnotherService, Service
    from tests.running import Answer

OTHER_RESOURCE = "0e0e0e0e-0000-4000-8000-000000000002"
AT_ONCE = 3.0  # seconds: an answer that waits for nothing, on a busy machine
DEADLINE = 8.0
ALERT = REPOSITORY / "infra/queries/alert-acs-denied.kql"


def connection_to(url: str, key: str = "d29ydGhsZXNzIGtleSBvZiB0aGUgbG9jYWwgc3RhY2s=") -> str:
    """Return the connection string of an ACS resource, by default with the local stack's key."""
    return f"endpoint={url}/;accesskey={key}"


async def known_person(service: Service, host: Service) -> tuple[str, str]:
    """Return a person who has an identity, and an Entra token of theirs."""
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    answer = await host.app.get("/api/token", token)
    assert 200 == answer.status, answer
    return object_id, token


async def assert_no_identity(service: Service, object_id: str) -> None:
    """Check that no identity is stored for a person."""
    row = await row_of(service.running, object_id)
    assert row is None or (row["state"], row.get("acsId", "")) == ("creating", "")


@case(
    "I01", "a create whose reply is lost: 503 or, timed out, 504; never a token for that identity"
)
async def test_I01_lost_reply_to_create(service: Service, another_service: AnotherService) -> None:
    host, acs = await another_service(), service.running.stack.acs
    lost: list[tuple[str, Answer]] = []
    for name, fault, status, code in (
        ("reset", {"reset": True, "after": True}, 503, "upstream_unavailable"),
        ("timed out", {"delay": 4.5}, 504, "upstream_timeout"),
        ("cut", {"truncate": 10}, 502, "upstream_bad_response"),
    ):
        with named(name):
            object_id = str(uuid.uuid4())
            token = service.running.token_of_new_person(oid=object_id)
            acs.faults.clear()
            acs.faults.fail_next("create", **fault)
            before, began = len(acs.created), time.monotonic()
            answer = await host.app.get("/api/token", token)

            assert_problem(answer, status, code)
            assert time.monotonic() - began < DEADLINE
            assert 1 == acs.faults.count("create")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            await assert_no_identity(service, object_id)
            lost.append((token, answer))
            unreferenced = acs.created[before:]
            assert 0 == sum(acs.issued[each] for each in unreferenced)
    wait = max(int(answer.headers["Retry-After"]) for _, answer in lost)
    # How long to wait is written in the row, in the time of the tables.
    service.running.stack.tables.clock = lambda: datetime.now(UTC) + timedelta(seconds=wait)
    first = acs.created[:]
    for token, _ in lost:
        retried = await host.app.get("/api/token", token)
        assert 200 == retried.status, retried
        assert retried.json["user"]["id"] not in first


async def assert_create_fails(
    service: Service, host: Service, fault: dict[str, Any], status: int, code: str
) -> None:
    """Check that a create with a fault is sent exactly once, and leaves nobody an identity."""
    acs, object_id = service.running.stack.acs, str(uuid.uuid4())
    acs.faults.clear()
    acs.faults.fail_next("create", **fault)
    answer = await host.app.get("/api/token", service.running.token_of_new_person(oid=object_id))
    assert_problem(answer, status, code)
    assert (1, 0) == (acs.faults.count("create"), acs.faults.count("issue"))
    await assert_no_identity(service, object_id)


@case("I02", "a create answered with 5xx: 503, and it is sent exactly once")
async def test_I02_create_fails(service: Service, another_service: AnotherService) -> None:
    host = await another_service()
    for status in (500, 502, 503, 504):
        with named(str(status)):
            fault = {"status": status, "times": 9}
            await assert_create_fails(service, host, fault, 503, "upstream_unavailable")


@case("I03", "a create refused with Retry-After: 503 at once, Retry-After from 1 to 60 s")
async def test_I03_create_with_retry_after(
    service: Service, another_service: AnotherService
) -> None:
    acs = service.running.stack.acs
    for status, after, least in (
        (400, "7", 7),
        (409, "2", 2),
        (429, "86400", 30),
        (429, "-1", 1),
        (429, "9" * 400, 1),
        (429, "Wed, 21 Oct 2099 07:28:00 GMT", 1),
        (503, "86400", 30),
    ):
        with named(f"{status}, Retry-After: {after[:20]}"):
            host = await another_service()  # Each remembers that it was throttled.
            acs.faults.clear()
            acs.faults.fail_next("create", status=status, headers={"Retry-After": after}, times=9)
            began = time.monotonic()
            answer = await host.app.get("/api/token", service.running.token_of_new_person())
            assert time.monotonic() - began < AT_ONCE
            code = "upstream_unavailable" if status == 503 else "upstream_throttled"
            assert_problem(answer, 503, code)
            assert least <= int(answer.headers["Retry-After"]) <= 60
            assert 1 == acs.faults.count("create")


@case("I04", "a create answered with anything but an identity's id: 502, and no id is stored")
async def test_I04_bad_answers_to_create(service: Service, another_service: AnotherService) -> None:
    host = await another_service()
    bodies: dict[str, dict[str, Any]] = {
        "an empty object": {"body": "{}"},
        "no id": {"body": '{"identity": {}}'},
        "id null": {"body": '{"identity": {"id": null}}'},
        "id a number": {"body": '{"identity": {"id": 5}}'},
        "id a path": {"body": '{"identity": {"id": "../../x"}}'},
        "id of a phone": {"body": '{"identity": {"id": "4:+15551234567"}}'},
        "id of a Teams user": {"body": f'{{"identity": {{"id": "8:orgid:{uuid.uuid4()}"}}}}'},
        "id with a line break": {"body": json.dumps({"identity": {"id": "8:acs:x\n"}})},
        "a list": {"body": "[]"},
        "HTML": {"body": "<html>", "content_type": "text/html"},
        "nothing": {"body": ""},
        "broken JSON": {"body": '{"identity": '},
        "200 without identity": {"status": 200, "body": "{}"},
        "204": {"status": 204, "body": ""},
        "302": {"status": 302, "body": "", "headers": {"Location": "/identities"}},
    }
    for name, fault in bodies.items():
        with named(name):
            odd = {"status": 201} | fault
            await assert_create_fails(service, host, odd, 502, "upstream_bad_response")


@case("I06", "an identity deleted at ACS: a new one for a few people a day; then 502 identity_gone")
async def test_I06_identity_gone(service: Service, another_service: AnotherService) -> None:
    host, acs = await another_service(), service.running.stack.acs
    await forget_renewals(service.running)
    object_id, token = await known_person(service, host)
    row = await row_of(service.running, object_id)
    assert row is not None
    del acs.identities[row["acsId"]]

    healed = await host.app.get("/api/token", token)

    assert 200 == healed.status, healed
    now = await row_of(service.running, object_id)
    assert now is not None
    assert row["acsId"] != now["acsId"] == healed.json["user"]["id"]
    assert acs.token_is_valid(healed.json["token"])
    assert [row["acsId"]] == [each["acs_id"] for each in await host.events("identity_given_up")]

    # Many at once: the endpoint is wrong, or the resource is gone. Nothing more is replaced.
    people = [await known_person(service, host) for _ in range(8)]
    for each, _ in people:
        lost = await row_of(service.running, each)
        assert lost is not None
        del acs.identities[lost["acsId"]]
    answers = [await host.app.get("/api/token", each) for _, each in people]
    refused = [answer for answer in answers if answer.status != 200]
    assert len(refused) >= 3
    for answer in refused:
        assert_problem(answer, 502, "identity_gone")

    # An id of another resource is not ours to replace.
    await forget_renewals(service.running)
    foreigner, theirs = await known_person(service, host)
    foreign = f"8:acs:{OTHER_RESOURCE}_00000005{str(uuid.uuid4())[8:]}"
    await change_row(service.running, foreigner, acsId=foreign)
    created = len(acs.created)
    answer = await host.app.get("/api/token", theirs)
    assert answer.status in {502, 503}, answer
    assert created == len(acs.created)
    kept = await row_of(service.running, foreigner)
    assert kept is not None
    assert foreign == kept["acsId"]


@case("I07", "ACS throttles: 503 upstream_throttled, a Retry-After that is near its own, no retry")
async def test_I07_throttled(service: Service, another_service: AnotherService) -> None:
    acs = service.running.stack.acs
    for after, least in (("7", 7), ("86400", 30), (None, 1), ("soon", 1)):
        with named(f"Retry-After: {after}"):
            host = await another_service()  # Each remembers that it was throttled.
            _, token = await known_person(service, host)
            acs.faults.clear()
            headers = {} if after is None else {"Retry-After": after}
            acs.faults.fail_next("issue", status=429, headers=headers, times=9)
            began = time.monotonic()
            answers = [await host.app.get("/api/token", token) for _ in range(3)]
            assert time.monotonic() - began < AT_ONCE
            for answer in answers:
                assert_problem(answer, 503, "upstream_throttled")
            assert least <= int(answers[0].headers["Retry-After"]) <= 60
            assert acs.faults.count("issue") <= 3
            acs.faults.clear()


@case(
    "I09", "ACS answers 5xx without end: left alone after 20 calls, a probe in 5 s, then it heals"
)
async def test_I09_fails_forever(service: Service, another_service: AnotherService) -> None:
    host, acs, slow = await another_service(), service.running.stack.acs, 1.0
    tokens = [
        service.running.token_of_new_person(oid=f"{number:02}{str(uuid.uuid4())[2:]}")
        for number in range(LEAST_CALLS)
    ]
    for answer in await asyncio.gather(*(host.app.post("/api/user", each) for each in tokens)):
        assert 200 == answer.status, answer
    acs.faults.clear()
    acs.faults.fail_next("issue", status=503, delay=slow, times=9999)
    first = await asyncio.gather(*(host.app.get("/api/token", each) for each in tokens))
    opened, seconds, open_answers = time.monotonic(), [], []
    for token in tokens:
        began = time.monotonic()
        open_answers.append(await host.app.get("/api/token", token))
        seconds.append(time.monotonic() - began)
    asked = acs.faults.count("issue")
    for answer in [*first, *open_answers]:
        assert_problem(answer, 503, "upstream_unavailable")
    assert asked - LEAST_CALLS <= (time.monotonic() - opened) / PROBE_SECONDS + 1
    assert sorted(seconds)[len(seconds) // 2] < slow / 2
    assert ["issue"] == [each["work"] for each in await host.events("circuit_opened")]

    acs.faults.clear()
    await asyncio.sleep(PROBE_SECONDS)
    healed = [await host.app.get("/api/token", token) for token in tokens[:3]]
    assert {200} == {answer.status for answer in healed}
    assert ["issue"] == [each["work"] for each in await host.events("circuit_closed")]


@case(
    "I10", "ACS answers byte by byte: 504 upstream_timeout within 8 s, and the slot is free again"
)
async def test_I10_slowloris(service: Service, another_service: AnotherService) -> None:
    host, acs = await another_service(), service.running.stack.acs
    _, token = await known_person(service, host)
    new = service.running.token_of_new_person()
    acs.faults.fail_next("issue", drip=1)
    acs.faults.fail_next("create", drip=1)
    began = time.monotonic()
    answers = await asyncio.gather(
        host.app.get("/api/token", token), host.app.get("/api/token", new)
    )
    assert time.monotonic() - began < DEADLINE
    for answer in answers:
        assert_problem(answer, 504, "upstream_timeout")
    began = time.monotonic()
    assert 200 == (await host.app.get("/api/token", token)).status
    assert time.monotonic() - began < AT_ONCE


@asynccontextmanager
async def acs_of_its_own(tls: ssl.SSLContext) -> AsyncIterator[AcsEmulator]:
    """Serve another ACS over TLS."""
    acs = AcsEmulator(access_key=base64.b64encode(b"x").decode())
    async with serve(acs.application(), tls=tls) as url:
        acs.url = url
        yield acs


@case("I11", "ACS out of reach, bad TLS, broken connection: 503; issuing is tried once more")
async def test_I11_connection_fails(service: Service, another_service: AnotherService) -> None:
    stack = service.running.stack
    plain_port = stack.acs.url.rpartition(":")[2]
    context = stranger_context()
    async with acs_of_its_own(context) as untrusted:
        for name, url in {
            "nobody listens": f"http://{LOOPBACK}:1",
            "a certificate of a stranger": untrusted.url,
            "no TLS at all": f"https://{LOOPBACK}:{plain_port}",
        }.items():
            with named(name):
                host = await another_service(ACS_CONNECTION_STRING=connection_to(url))
                began = time.monotonic()
                answer = await host.app.get("/api/token", service.running.token_of_new_person())
                assert time.monotonic() - began < DEADLINE
                assert_problem(answer, 503, "upstream_unavailable")
        assert {} == untrusted.faults.counts

    host, acs = await another_service(), stack.acs
    object_id, token = await known_person(service, host)
    acs.faults.clear()
    acs.faults.fail_next("issue", reset=True)
    once_more = await host.app.get("/api/token", token)
    assert 200 == once_more.status, once_more
    assert 2 == acs.faults.count("issue")
    acs.faults.fail_next("create", reset=True, times=9)
    created = await host.app.get("/api/token", service.running.token_of_new_person())
    assert_problem(created, 503, "upstream_unavailable")
    assert 1 == acs.faults.count("create")
    # What cannot be told now is stored, and finished later.
    acs.faults.fail_next("revoke", reset=True, times=9)
    revoked = await host.app.post("/api/token/revoke", token)
    assert 202 == revoked.status, revoked
    row = await row_of(service.running, object_id)
    assert row is not None
    assert "revokedBefore" in row
    acs.faults.clear()


def stranger_context() -> ssl.SSLContext:
    """Return the TLS settings of a server that nobody trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(LOOPBACK).configure_cert(context)
    return context


def issued(acs_id: str, *, expires_on: object = None, **claims: Any) -> str:
    """Return the body of an answer of ACS with a token for an hour, with changes."""
    expires = datetime.now(UTC) + timedelta(hours=1)
    payload = {
        "skypeid": acs_id.removeprefix("8:"),
        "acsScope": "chat,voip",
        "exp": int(expires.timestamp()),
    } | claims
    return json.dumps(
        {
            "token": str(Parts(as_json({"alg": "RS256"}), as_json(payload), b"sig")),
            "expiresOn": expires.isoformat() if expires_on is None else expires_on,
        }
    )


async def refuses_to_hand_out(
    service: Service, host: Service, bodies: dict[str, tuple[str, str]]
) -> None:
    """Check that tokens in ACS's answers are not handed out, and that the log says why."""
    acs = service.running.stack.acs
    _, token = await known_person(service, host)
    for number, (name, (body, reason)) in enumerate(bodies.items(), start=1):
        with named(name):
            acs.faults.fail_next("issue", body=body)
            answer = await host.app.get("/api/token", token)
            assert_problem(answer, 502, "upstream_bad_response")
            assert json.loads(body)["token"] not in answer.text
            assert reason in (await host.events("request_failed", least=number))[-1]["reason"]


@case("I12", "an ACS token that expires in the past, an hour early, in 9999, at no time: 502")
async def test_I12_bad_expiry(service: Service, another_service: AnotherService) -> None:
    host = await another_service(ACS_TOKEN_LIFETIME_MINUTES="120")
    now = datetime.now(UTC)
    moments: dict[str, tuple[object, str]] = {
        "past": ((now - timedelta(days=1)).isoformat(), "lifetime"),
        "now": (now.isoformat(), "lifetime"),
        "an hour early": ((now + timedelta(hours=1)).isoformat(), "lifetime"),
        "an hour late": ((now + timedelta(hours=3)).isoformat(), "lifetime"),
        "the year 9999": ("9999-12-31T23:59:59+00:00", "lifetime"),
        "no time zone": ((now + timedelta(hours=2)).replace(tzinfo=None).isoformat(), "time zone"),
        "the year 0": ("0000-01-01T00:00:00+00:00", "date"),
        "a number": (5, "date"),
        "empty": ("", "date"),
        "words": ("tomorrow", "date"),
        "a list": ([], "date"),
    }
    bodies = {
        name: (issued("8:acs:x", expires_on=moment), reason)
        for name, (moment, reason) in moments.items()
    }
    await refuses_to_hand_out(service, host, bodies)


@case("I13", "an ACS token of another identity, or with more scopes: 502, and the log says so")
async def test_I13_token_of_another(service: Service, another_service: AnotherService) -> None:
    host = await another_service(ACS_TOKEN_SCOPES="chat")
    other = f"8:acs:{OTHER_RESOURCE}_00000005{str(uuid.uuid4())[8:]}"
    await refuses_to_hand_out(
        service,
        host,
        {
            name: (issued(acs_id, acsScope="chat"), "another identity")
            for name, acs_id in (
                ("another identity", other),
                ("a Teams user", f"8:orgid:{uuid.uuid4()}"),
                ("no identity", ""),
            )
        },
    )
    object_id, token = await known_person(service, host)
    row = await row_of(service.running, object_id)
    assert row is not None
    service.running.stack.acs.faults.fail_next("issue", body=issued(row["acsId"]))
    answer = await host.app.get("/api/token", token)
    assert_problem(answer, 502, "upstream_bad_response")
    assert "more scopes" in (await host.events("request_failed", least=4))[-1]["reason"]


async def signed_out(service: Service, object_id: str, token: str) -> None:
    """Check that Entra tokens from before a sign-out are refused, and later ones accepted."""
    row = await row_of(service.running, object_id)
    assert row is not None
    assert "revokedBefore" in row
    assert_problem(await service.app.get("/api/token", token), 401, "token_revoked")


@case("I14", "a sign-out of an identity that ACS does not know: 204, and the mark is stored")
async def test_I14_revoke_of_nobody(service: Service) -> None:
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    issued_before = await service.app.get("/api/token", token)
    del service.running.stack.acs.identities[issued_before.json["user"]["id"]]

    answer = await service.app.post("/api/token/revoke", token)

    assert (204, "") == (answer.status, answer.text)
    await signed_out(service, object_id, token)


@case("I15", "a sign-out: 204, tokens may work for 15 minutes more; older Entra tokens are refused")
async def test_I15_revoke(service: Service) -> None:
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    acs_token = (await service.app.get("/api/token", token)).json["token"]

    answer = await service.app.post("/api/token/revoke", token)

    assert (204, "900") == (answer.status, answer.headers["Revoked-Within"])
    assert not service.running.stack.acs.token_is_valid(acs_token)
    await signed_out(service, object_id, token)
    again = await service.app.get("/api/token", service.running.fresh_token(object_id))
    assert again.status in {200, 503}, again  # 503 until ACS has surely revoked the old tokens.


@case("I16", "a deletion of what ACS has deleted already: done, and the row keeps no identity")
async def test_I16_delete_of_nobody(service: Service) -> None:
    for name, fault in {
        "gone before": None,
        "the reply is lost": {"reset": True, "after": True},
    }.items():
        with named(name):
            object_id = str(uuid.uuid4())
            token = service.running.token_of_new_person(oid=object_id)
            acs, acs_id = service.running.stack.acs, ""
            acs_id = (await service.app.get("/api/token", token)).json["user"]["id"]
            if fault is None:
                del acs.identities[acs_id]
            else:
                acs.faults.fail_next("delete", **fault)
            answer = await service.app.delete("/api/user", token)
            assert 204 == answer.status, answer
            row = await row_of(service.running, object_id)
            assert row is None or (row["state"], row.get("acsId", "")) == ("erased", "")
            assert acs_id not in acs.identities


@case("I19", "the access key was changed: 502 upstream_auth, which raises an alert")
async def test_I19_access_key_changed(service: Service, another_service: AnotherService) -> None:
    key = base64.b64encode(b"another key").decode()
    acs = service.running.stack.acs
    host = await another_service(ACS_CONNECTION_STRING=connection_to(acs.url, key))
    object_id = str(uuid.uuid4())
    answer = await host.app.get("/api/token", service.running.token_of_new_person(oid=object_id))
    known = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=known)
    assert 200 == (await service.app.get("/api/token", token)).status
    issue = await host.app.get("/api/token", token)

    for each in (answer, issue):
        assert_problem(each, 502, "upstream_auth")
        assert key not in each.text
    await assert_no_identity(service, object_id)
    lines = await host.events("request_failed", least=2)
    assert ["upstream_auth"] * 2 == [each["code"] for each in lines]
    assert 'event == "request_failed" and code == "upstream_auth"' in ALERT.read_text()
    assert key not in "\n".join(host.running.host.output)


@case("I20", "an endpoint of ACS that is http or another host: the settings are refused, 503")
async def test_I20_wrong_endpoint(service: Service, another_service: AnotherService) -> None:
    values = json.loads(service.running.stack.settings.read_text())["Values"]
    for url in (
        "https://contoso.communication.azure.com.evil.example",
        "https://evil.example",
        "https://contoso.communication.azure.com@evil.example",
        "https://contoso.communication.azure.com/path",
        "https://evil.example#.communication.azure.com",
        "ftp://contoso.communication.azure.com",
        "http://contoso.communication.azure.com",
        "http://169.254.169.254",
        "http://127.0.0.1@evil.example",
    ):
        with named(url), pytest.raises(SettingsError, match=r"^ACS_CONNECTION_STRING [^;]*$"):
            Settings.from_env(values | {"ACS_CONNECTION_STRING": connection_to(url)})
    http_only = connection_to("http://contoso.communication.azure.com")
    host = await another_service(ACS_CONNECTION_STRING=http_only)
    async with service.untouched():
        answers = [
            await host.app.get("/api/token", service.running.token_of_new_person()),
            await host.app.get("/api/health/ready"),
        ]
    for answer in answers:
        assert_problem(answer, 503, "misconfigured")
    assert (await host.events("settings_invalid"))[0]["reason"].startswith("ACS_CONNECTION_STRING ")

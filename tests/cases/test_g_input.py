"""G: what a caller asks for: only what the contract has, never more than the settings allow."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from local.entra.directory import CONTOSO
from tests.cases.catalogue import case
from tests.cases.service import named
from tests.running import assert_problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.cases.service import AnotherService, Service
    from tests.running import Answer

JSON = {"Content-Type": "application/json"}
ORIGIN = "http://localhost:3000"  # One that the local settings allow.


def acs_claims(answer: Answer) -> dict[str, Any]:
    """Return the claims of the ACS token in an answer."""
    payload = answer.json["token"].split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return claims


async def refuses_bodies(
    service: Service,
    bodies: Iterable[bytes | str],
    status: int = 400,
    code: str = "invalid_request",
) -> None:
    """Send each body with a good token; each is refused, and nothing has happened."""
    token = service.running.token_of_new_person()
    async with service.untouched():
        for body in bodies:
            with named(repr(body[:60])):
                raw = body.encode() if isinstance(body, str) else body
                answer = await service.app.post("/api/token", token, data=raw, headers=JSON)
                service.check_refusal(answer, status, code, sent=[token])


@case("G01", "ACS scopes beyond the settings: 403 scope_not_allowed, and ACS hears of none")
async def test_G01_scope_escalation(service: Service, another_service: AnotherService) -> None:
    host = await another_service(ACS_TOKEN_SCOPES="chat")
    token = service.running.token_of_new_person()
    assert 404 == (await host.app.get("/api/user", token)).status
    await service.settled()
    async with service.untouched():
        for scopes in (["voip"], ["chat", "voip"], ["voip.join"], ["chat.join"]):
            with named(str(scopes)):
                by_post = await host.app.post("/api/token", token, json={"scopes": scopes})
                by_get = await host.app.get(f"/api/token?scope={','.join(scopes)}", token)
                for answer in (by_post, by_get):
                    assert_problem(answer, 403, "scope_not_allowed")

    issued = [
        await host.app.get("/api/token", token),
        await host.app.post("/api/token", token, json={"scopes": ["chat"]}),
        await host.app.post("/api/token", token, json={"scopes": ["chat", "chat"]}),
    ]

    assert {200} == {answer.status for answer in issued}
    assert {"chat"} == {acs_claims(answer)["acsScope"] for answer in issued}


@case("G03", "scopes of a wrong type, none, 10,000, other letters: 400; the same one twice: once")
async def test_G03_bad_scopes(service: Service) -> None:
    await refuses_bodies(
        service,
        [
            '{"scopes": "voip"}',
            '{"scopes": null}',
            '{"scopes": [null]}',
            '{"scopes": []}',
            '{"scopes": {}}',
            '{"scopes": {"voip": true}}',
            '{"scopes": true}',
            '{"scopes": 1}',
            '{"scopes": [["voip"]]}',
            '{"scopes": ["voip", 1]}',
            '{"scopes": ["VOIP"]}',
            '{"scopes": [" voip"]}',
            '{"scopes": ["voip "]}',
            '{"scopes": ["voip chat"]}',
            '{"scopes": ["voip,chat"]}',
            '{"scopes": [""]}',
            '{"scopes": ["voip\\u0000"]}',
            '{"scopes": ["v\\u043eip"]}',
            json.dumps({"scopes": ["voip"] * 17}),
            json.dumps({"scopes": ["chat", "voip"] * 500}),
        ],
    )
    await refuses_bodies(
        service, [json.dumps({"scopes": ["voip"] * 10_000})], 413, "payload_too_large"
    )
    token = service.running.token_of_new_person()
    async with service.untouched():
        for query in (
            "?scope=",
            "?scope",
            "?scope=&scope=voip",
            "?scope=voip,",
            "?scope=,voip",
            "?scope=video",
            "?scope=VOIP",
            "?scope=voip%20chat",
            "?scope[]=voip",
            "?scopes=voip",
            "?Scope=voip",
        ):
            with named(query):
                answer = await service.app.get(f"/api/token{query}", token)
                service.check_refusal(answer, 400, "invalid_request", sent=[token])
    once = await service.app.post("/api/token", token, json={"scopes": ["voip", "voip"]})
    assert "voip" == acs_claims(once)["acsScope"]


@case("G04", "expiresInMinutes out of 60..1440, or not a whole number: 400 invalid_request")
async def test_G04_bad_lifetime(service: Service) -> None:
    values = (
        '59 1441 0 -0 -60 60.5 60.0000001 "60" true false null NaN Infinity -Infinity 1e9 1e400'
        " 99999999999999999999999999 [60] {} 0x3c 060 +60 60m"
    )
    await refuses_bodies(service, [f'{{"expiresInMinutes": {value}}}' for value in values.split()])
    token = service.running.token_of_new_person()
    async with service.untouched():
        for value in (
            *("59", "1441", "60.5", "60.0", "1e3", "-60", "%2B60", "060", "%2060", "60%20", "NaN"),
            *("%D9%A6%D9%A0", "", "60&expiresInMinutes=60", "0x3c", "true", "9" * 400),
        ):
            with named(value):
                answer = await service.app.get(f"/api/token?expiresInMinutes={value}", token)
                service.check_refusal(answer, 400, "invalid_request", sent=[token])
    for body in ('{"expiresInMinutes": 60}', '{"expiresInMinutes": 1440}'):
        answer = await service.app.post("/api/token", token, data=body, headers=JSON)
        assert 200 == answer.status


@case("G05", "a lifetime beyond the ceiling of the settings: 400; the answer tells the real expiry")
async def test_G05_lifetime_beyond_the_ceiling(
    service: Service, another_service: AnotherService
) -> None:
    host = await another_service(
        ACS_TOKEN_MAX_LIFETIME_MINUTES="120", ACS_TOKEN_LIFETIME_MINUTES="90"
    )
    token = service.running.token_of_new_person()
    assert 404 == (await host.app.get("/api/user", token)).status
    await service.settled()
    async with service.untouched():
        for minutes in (121, 1440):
            over = await host.app.post("/api/token", token, json={"expiresInMinutes": minutes})
            assert_problem(over, 400, "invalid_request")

    longest = await host.app.get("/api/token?expiresInMinutes=120", token)
    usual = await host.app.get("/api/token", token)

    for answer, minutes in ((longest, 120), (usual, 90)):
        claims = acs_claims(answer)
        assert abs(claims["exp"] - claims["iat"] - minutes * 60) <= 1
        assert abs(seconds_of(answer.json["expiresOn"]) - claims["exp"]) <= 1


def seconds_of(moment: str) -> float:
    """Return a moment in ISO 8601 as Unix time."""
    return datetime.fromisoformat(moment).timestamp()


@case("G06", "unknown members, names twice, deep JSON, NaN, no JSON: 400 invalid_request")
async def test_G06_bad_json(service: Service) -> None:
    await refuses_bodies(
        service,
        [
            "[]",
            "null",
            '"voip"',
            "5",
            "{",
            "{}{}",
            "{} x",
            "{},",
            "{'scopes': ['voip']}",
            '{"scopes": ["voip"],}',
            '{"scopes": ["voip"] /* all */}',
            '{"userId": "8:acs:x"}',
            '{"oid": "me"}',
            '{"__proto__": {}}',
            '{"Scopes": ["voip"]}',
            '{"": 1}',
            '{"scopes": ["voip"], "scopes": ["chat"]}',
            '{"scopes": ["voip"], "\\u0073copes": ["chat"]}',
            '{"expiresInMinutes": 60, "expiresInMinutes": 1440}',
            '{"a": NaN}',
            '{"a": Infinity}',
            '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
            '{"a": ' * 2000 + "1" + "}" * 2000,
            '{"a": ' + "9" * 5000 + "}",
            '{"a": "\ud800"}'.encode("utf-8", "surrogatepass"),
            b'{"scopes": ["\xff"]}',
            b'\xef\xbb\xbf{"scopes": ["voip"]}',
            b"\x00",
            '{"scopes": ["voip"]}'.encode("utf-16"),
            '{"scopes": ["voip"]}'.encode("utf-16-le"),
            '{"scopes": ["voip"]}'.encode("utf-32"),
        ],
    )


@case("G07", "another media type, as a form of any page can send: 415 unsupported_media_type")
async def test_G07_media_type(service: Service) -> None:
    token = service.running.token_of_new_person()
    body = b'{"scopes": ["voip"]}'
    async with service.untouched():
        for media_type in (
            "text/plain",
            "text/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=utf-16",
            "application/json; charset=utf-8; charset=utf-7",
            "application/json, text/plain",
            "application/jsonp",
            "application/problem+json",
            "application/json-patch+json",
            "application/octet-stream",
            "*/*",
        ):
            with named(media_type):
                answer = await service.app.post(
                    "/api/token", token, data=body, headers={"Content-Type": media_type}
                )
                service.check_refusal(answer, 415, "unsupported_media_type", sent=[token])
        answer = await service.app.post(
            "/api/token", token, data=body, skip_auto_headers=["Content-Type"]
        )
        service.check_refusal(answer, 415, "unsupported_media_type", sent=[token])


@case("G08", "a preflight of an origin that is not allowed: no permission, and nothing is touched")
async def test_G08_preflight_of_another_origin(service: Service) -> None:
    async with service.untouched():
        for method in ("GET", "POST", "DELETE"):
            answer = await preflight(service, "https://evil.example", method)
            assert not allows_anything(answer)
    allowed = await preflight(service, ORIGIN, "POST")
    assert ORIGIN == allowed.headers["Access-Control-Allow-Origin"]


async def preflight(service: Service, origin: str, method: str, **headers: str) -> Answer:
    """Ask as a browser does before a page of an origin may send a request."""
    asks = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return await service.app.call("OPTIONS", "/api/token", headers=asks | headers)


def allows_anything(answer: Answer) -> bool:
    """Return whether an answer has any header that lets a page of another origin do something."""
    return any(name.lower().startswith("access-control-allow-") for name in answer.headers)


@case("G09", "an origin that is only like an allowed one: no permission, never reflected")
async def test_G09_origin_tricks(service: Service) -> None:
    token = service.running.token_of_new_person()
    assert 200 == (await service.app.post("/api/user", token)).status
    for origin in (
        f"{ORIGIN}.evil.example",
        f"{ORIGIN}1",
        "http://localhost:300",
        "http://localhost",
        "https://localhost:3000",
        "http://evil.localhost:3000",
        "http://localhost:3000@evil.example",
        "http://evil.example#http://localhost:3000",
        f"{ORIGIN}/",
        f"{ORIGIN} http://evil.example",
        f"{ORIGIN},http://evil.example",
        "HTTP://LOCALHOST:3000",
        "http://127.0.0.1:3001",
        "null",
        "*",
        "",
    ):
        with named(origin):
            answers = [
                await preflight(service, origin, "GET"),
                await service.app.get("/api/user", token, headers={"Origin": origin}),
                await service.app.get("/api/user", headers={"Origin": origin}),
            ]
            assert not any(allows_anything(answer) for answer in answers)
            assert all("Origin" in answer.headers.get("Vary", "") for answer in answers)
    for status, allowed in (
        (200, await service.app.get("/api/user", token, headers={"Origin": ORIGIN})),
        (401, await service.app.get("/api/user", headers={"Origin": ORIGIN})),
    ):
        assert status == allowed.status
        assert ORIGIN == allowed.headers["Access-Control-Allow-Origin"]
        assert "Access-Control-Allow-Credentials" not in allowed.headers
        assert "Origin" in allowed.headers["Vary"]


@case("G10", "a flood of preflights and OPTIONS, with tokens or without: 204, nothing is touched")
async def test_G10_preflight_flood(service: Service) -> None:
    token = service.running.token_of_new_person()
    with_token = {"Authorization": f"Bearer {token}"}
    async with service.untouched():
        began = len(service.running.host.output)
        answers = await asyncio.gather(
            *(preflight(service, ORIGIN, "POST") for _ in range(100)),
            *(preflight(service, ORIGIN, "POST", **with_token) for _ in range(50)),
            *(preflight(service, "https://evil.example", "POST", **with_token) for _ in range(50)),
            *(service.app.call("OPTIONS", "/api/user", "no-token") for _ in range(100)),
        )
        await service.settled()
        lines = service.logged_since(began).splitlines()
    assert {204} == {answer.status for answer in answers}
    assert {""} == {answer.text for answer in answers}
    # No decision was made, so there is no audit line.
    assert not [line for line in lines if "event" in line and service.bystander not in line]
    bare = answers[-1]
    assert "GET, POST, DELETE" == bare.headers["Allow"]
    assert "no-store" == bare.headers["Cache-Control"]


@case("G14", "a path with /, .., NUL, ; or more where an id belongs: 400 or 404, nobody is touched")
async def test_G14_path_injection(service: Service) -> None:
    administrator = service.running.token_of_administrator()
    somebody = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=somebody)
    assert 200 == (await service.app.post("/api/user", token)).status
    good = f"/api/users/{CONTOSO.tenant_id}/{somebody}"
    assert 200 == (await service.app.get(good, administrator)).status
    before = dict(service.running.stack.acs.identities)
    wrong = (
        *("..%2f..", "%2e%2e%2f", "..%5c..", "%00", f"{somebody}%00", f"{somebody};", "x"),
        *(f"{somebody};a=b", f"{somebody}%2frevoke", f"{somebody}%0a", f"{somebody}%20", "%20"),
        *(
            f"{somebody}'",
            f"{somebody}' or RowKey ne '",
            f"{{{somebody}}}",
            somebody.replace("-", ""),
        ),
        *(
            f"urn:uuid:{somebody}",
            f"{somebody}{somebody}",
            "*",
            "%2a",
            "me",
            "null",
            "%ff",
            "%c0%ae",
        ),
        *(f"{somebody},{somebody}", f"{somebody}?", "\u0660" * 36, "%u0061"),
    )
    for text in wrong:
        segment = text if "%" in text else quote(text, safe=";=,*'{}:")
        for path in (
            f"/api/users/{CONTOSO.tenant_id}/{segment}",
            f"/api/users/{segment}/{somebody}",
            f"/api/users/{CONTOSO.tenant_id}/{segment}/revoke",
        ):
            with named(path):
                method = "POST" if path.endswith("/revoke") else "DELETE"
                answer = await raw_call(service, method, path, administrator)
                assert answer in {400, 404}, answer
    for path in (
        *("//api/token", "/api//token", "/api/token;x", "/api/token/x", "/api/token%2f..", "/api/"),
        *("/api/token/%2e%2e/%2e%2e/api", "/api/%00", "/api/token%00", "/api\\token"),
        "/api/users/../token/revoke/x",
    ):
        with named(path):
            assert await raw_call(service, "GET", path, token) in {400, 404}
    assert 200 == (await service.app.get("/api/user", token)).status
    assert before == service.running.stack.acs.identities


async def raw_call(service: Service, method: str, path: str, token: str) -> int:
    """Send a path exactly as it is written, and return the status."""
    host, port = service.app.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode())
    status_line = (await reader.read()).partition(b"\r\n")[0]
    writer.close()
    await writer.wait_closed()
    return int(status_line.split()[1])

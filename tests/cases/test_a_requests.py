"""A: where the credentials are, and what the request looks like."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from shared.errors import InvalidTokenError
from tests.cases.catalogue import case
from tests.cases.service import named, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra.emulator import EntraEmulator
    from shared.entra.access_tokens import AccessTokenValidator
    from tests.cases.service import Service

ONE_USER = "/api/users/" + "/".join(["11111111-2222-4333-8444-555555555555"] * 2)
# Every route that wants a token, with each of its methods.
ROUTES = {
    "/api/token": ("GET", "POST"),
    "/api/token/entra": ("GET", "POST"),
    "/api/token/teams": ("GET", "POST"),
    "/api/token/revoke": ("POST",),
    "/api/user": ("GET", "POST", "DELETE"),
    "/api/users": ("GET",),
    ONE_USER: ("GET", "PUT", "DELETE"),
    f"{ONE_USER}/revoke": ("POST",),
    f"{ONE_USER}/renew": ("POST",),
}
EVIL = "evil.example"
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Kestrel and the local host refuse such bytes in a header before a function is called.
REFUSED_BY_THE_SERVER = 400
TOO_LARGE_FOR_THE_SERVER = {400, 431}


@case("A01", "no Authorization header: 401 missing_token, a challenge without an error")
async def test_A01_no_authorization_header(service: Service) -> None:
    async with service.untouched():
        for path, methods in ROUTES.items():
            for method in methods:
                with named(f"{method} {path}"):
                    answer = await service.app.call(method, path)
                    service.check_refusal(answer, 401, "missing_token", sent=[])


@case("A02", "an Authorization header without a token: 401 missing_token")
async def test_A02_blank_authorization_header(service: Service) -> None:
    blank = ["", " ", "Bearer", "Bearer ", "Bearer     ", "bearer", "BEARER "]

    await service.refuses_headers(401, "missing_token", {repr(value): value for value in blank})


@case("A03", "two Authorization headers: 400 invalid_request, and neither is decoded")
async def test_A03_two_authorization_headers(service: Service) -> None:
    token = service.running.token_of_new_person()
    other = service.running.token_of_new_person()
    await service.refuses_headers(
        *(400, "invalid_request"),
        {
            "two good tokens": [f"Bearer {token}", f"Bearer {other}"],
            "one good token, twice": [f"Bearer {token}"] * 2,
            "bad before good": ["Bearer garbage", f"Bearer {token}"],
            "good before bad": [f"Bearer {token}", "Bearer garbage"],
            "good before Basic": [f"Bearer {token}", "Basic YTpi"],
            "Basic before good": ["Basic YTpi", f"Bearer {token}"],
            "three": [f"Bearer {token}"] * 3,
        },
    )


@case("A04", "several credentials joined by commas: 400 invalid_request")
async def test_A04_joined_credentials(service: Service) -> None:
    token = service.running.token_of_new_person()
    await service.refuses_headers(
        *(400, "invalid_request"),
        {
            "placeholders": "Bearer a.b.c, Bearer d.e.f",
            "good tokens": f"Bearer {token}, Bearer {token}",
            "no space": f"Bearer {token},Bearer {token}",
            "one scheme": f"Bearer {token},{token}",
            "Basic first": f"Basic YTpi, Bearer {token}",
            "Basic last": f"Bearer {token}, Basic YTpi",
            "a comma at the end": f"Bearer {token},",
            "a comma at the start": f", Bearer {token}",
            "a parameter": f'Bearer {token}, realm="x"',
        },
    )


@case("A05", "the scheme in other letters, and several spaces after it: accepted")
async def test_A05_scheme_in_other_letters(service: Service) -> None:
    token = service.running.token_of_new_person()
    identities = set()
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR", "Bearer  ", "bearer     "):
        answer = await service.app.get("/api/token", headers={"Authorization": f"{scheme} {token}"})
        assert 200 == answer.status, scheme
        identities.add(answer.json["user"]["id"])

    assert 1 == len(identities)


@case("A06", "another scheme: 401 missing_token, and the challenge names Bearer alone")
async def test_A06_other_scheme(service: Service) -> None:
    token = service.running.token_of_new_person()
    schemes = "Basic Negotiate NTLM DPoP PoP MAC GNAP Token JWT OAuth SharedAccessSignature"
    await service.refuses_headers(
        *(401, "missing_token"),
        {scheme: f"{scheme} {token}" for scheme in schemes.split()},
    )
    await service.refuses_headers(
        *(401, "missing_token"), {"Digest": 'Digest username="a", realm="b"', "Basic": "Basic YTpi"}
    )


@case("A07", "almost the scheme, or a token without one: 400 invalid_request, never accepted")
async def test_A07_almost_the_scheme(service: Service) -> None:
    token = service.running.token_of_new_person()
    beginnings = ["BearerX ", "Bearer\t", "Bearer:", "Bearer: ", "Bearer=", "Bearer/", "Bearer,"]
    beginnings += ["", "XBearer ", "Bearer-X ", '"Bearer" ', "Bearer%20", "Bearer_", "Bearer\xa0"]
    beginnings += ["Ｂearer ", "Bearer", "Bearer;", "Authorization: Bearer ", "Basic Bearer "]
    await service.refuses_headers(
        *(400, "invalid_request"),
        {repr(beginning): f"{beginning}{token}" for beginning in beginnings},
    )


@case("A08", "the token in the query: 401 missing_token; beside a good one 400; never logged")
async def test_A08_token_in_the_query(service: Service) -> None:
    token = service.running.token_of_new_person()
    names = ["access_token", "token", "id_token", "authorization", "Authorization", "jwt", "code"]
    queries = [f"?{name}={token}" for name in names]
    queries += [f"?authorization=Bearer%20{token}", f"#access_token={token}", f"?{token}"]
    good = service.running.token_of_new_person()

    async with service.not_logged(token), service.untouched():
        for query in queries:
            for method, path in (
                ("GET", "/api/token"),
                ("POST", "/api/token"),
                ("GET", "/api/user"),
            ):
                with named(f"{method} {path} {query[:20]}"):
                    answer = await service.app.call(method, path + query)
                    service.check_refusal(answer, 401, "missing_token", sent=[token])
            if not query.startswith("#"):  # A fragment is not sent.
                answer = await service.app.get(f"/api/token{query}", good)
                service.check_refusal(answer, 400, "invalid_request", sent=[token])


@case("A09", "the token in a form, JSON body, cookie or other header: 401 missing_token")
async def test_A09_token_elsewhere(service: Service) -> None:
    token = service.running.token_of_new_person()
    headers = ["Proxy-Authorization", "X-Authorization", "X-Access-Token", "Token", "DPoP"]
    headers += ["X-MS-TOKEN-AAD-ACCESS-TOKEN", "X-MS-TOKEN-AAD-ID-TOKEN", "X-ZUMO-AUTH"]
    headers += ["X-MS-CLIENT-PRINCIPAL", "Sec-WebSocket-Protocol", "X-Forwarded-Authorization"]
    multipart = f'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n{token}\r\n--x--\r\n'
    requests: dict[str, dict[str, Any]] = {
        "form": {"data": {"access_token": token}},
        "multipart form": {
            "data": multipart.encode(),
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        "JSON": {"json": {"access_token": token}},
        "JSON, as for the exchange": {"json": {"accessToken": token}},
        "cookie": {"headers": {"Cookie": f"access_token={token}; AppServiceAuthSession={token}"}},
        **{name: {"headers": {name: f"Bearer {token}"}} for name in headers},
        **{f"{name}, bare": {"headers": {name: token}} for name in headers},
    }

    async with service.not_logged(token), service.untouched():
        for place, options in requests.items():
            for path in ("/api/token", "/api/token/entra"):
                with named(f"{place}, {path}"):
                    answer = await service.app.post(path, **options)
                    service.check_refusal(answer, 401, "missing_token", sent=[token])


@case("A11", "white space or control characters in the token: 401 invalid_token, never logged")
async def test_A11_odd_characters(service: Service, validator: AccessTokenValidator) -> None:
    """Such a header does not get past the server; what would is shown by the class itself."""
    token = service.running.token_of_new_person()
    odd = [" ", "\t", "\x01", "\x1b[2J", "\x7f", "\xa0", "\u2028", "\u200b", "\ufeff", "\u202e"]
    odd += ["é"]
    variants = {
        f"{character!r} {place}": text
        for character in odd
        for place, text in {
            "inside": token[:50] + character + token[50:],
            "in place of another": token[:50] + character + token[51:],
            "between the parts": token.replace(".", f".{character}", 1),
        }.items()
    }
    variants |= {f"{c!r} before": c + token for c in odd if c != " "}
    variants |= {f"{c!r} after": token + c for c in odd if c not in " \t"}  # HTTP drops those.
    now = datetime.now(UTC)

    can_be_sent = {name: text for name, text in variants.items() if not CONTROL.search(text)}
    await service.refuses(401, "invalid_token", can_be_sent)
    for break_ in ("\n", "\r", "\r\n", "\0", *odd):
        for text in (break_ + token, token + break_, token[:50] + break_ + token[50:]):
            with pytest.raises(InvalidTokenError):
                await validator.validate(text, now=now)
    async with service.untouched():
        for character in ("\0", "\n", "\r", "\x01"):
            odd_token = token[:50] + character + token[50:]
            answer = await service.raw(request("GET /api/token", odd_token))
            assert REFUSED_BY_THE_SERVER == answer.status, repr(character)


@case("A13", "a token over 24 KiB: 401 invalid_token by its length alone, or 431 of the server")
async def test_A13_huge_token(
    service: Service, validator: AccessTokenValidator, entra: EntraEmulator
) -> None:
    kib = 1024
    header, payload, signature = entra.issue_access_token().split(".")
    variants = {
        "25 KiB, well signed": entra.issue_access_token(claims={"pad": "x" * 18 * kib}),
        "25 KiB of header": f"{header}{'A' * 24 * kib}.{payload}.{signature}",
        "25 KiB of signature": f"{header}.{payload}.{signature}{'A' * 24 * kib}",
        "25 KiB of one letter": "A" * 25 * kib,
        "25 KiB of dots": "." * 25 * kib,
    }
    assert all(len(token) > 24 * kib for token in variants.values())
    await service.refuses(401, "invalid_token", variants)

    async with service.untouched():
        for size in (64 * kib, kib * kib):
            with named(f"{size} bytes"):
                try:
                    answer = await service.app.get("/api/token", "A" * size)
                except aiohttp.ClientConnectionError:
                    continue  # It was cut off before it was sent.
                assert answer.status in TOO_LARGE_FOR_THE_SERVER

    huge = {
        size: [f"{header}.{'A' * size}.{signature}", f"{'A' * size}.{payload}.{signature}"]
        for size in (kib * kib, 10 * kib * kib)
    }
    for tokens in huge.values():
        for token in tokens:
            rounds = []
            for _ in range(5):
                began = time.process_time()
                for _ in range(20):
                    with pytest.raises(InvalidTokenError):
                        await validator.validate(token, now=datetime.now(UTC))
                rounds.append(time.process_time() - began)
            assert min(rounds) < 0.02, "over 1 ms of CPU time each"


@case("A15", "forged X-Forwarded headers or Host: repeated nowhere, and they change nothing")
async def test_A15_spoofed_host(service: Service) -> None:
    names = ["X-Forwarded-Host", "X-Forwarded-Server", "X-Host", "X-Original-Host", "X-HTTP-Host"]
    names += ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Proto", "X-Forwarded-Prefix"]
    names += ["X-Forwarded-For", "X-Real-IP", "Origin", "Referer", "X-Forwarded-Port"]
    names += ["DISGUISED-HOST"]
    headers = dict.fromkeys(names, EVIL) | {"Forwarded": f"host={EVIL};proto=http"}
    token = service.running.token_of_new_person()

    for path, credentials, status in (
        ("/api/token", None, 401),
        ("/api/token", "garbage", 401),
        ("/api/token", token, 200),
        ("/api/user", token, 200),
        ("/api/openapi.json", None, 200),
        ("/api/health", None, 200),
    ):
        plain = await service.app.get(path, credentials)
        answer = await service.app.get(path, credentials, headers=headers)
        assert (status, status) == (plain.status, answer.status), path
        assert EVIL not in answer.text + str(answer.headers), path
        assert plain.headers.get("WWW-Authenticate") == answer.headers.get("WWW-Authenticate")

    async with service.untouched():  # Azure's front end finds the app by Host; here it is refused.
        answer = await service.raw(request("GET /api/token", token, f"Host: {EVIL}"))
        assert 403 == answer.status
        assert EVIL not in answer.text + str(answer.headers)


@case("A16", "other methods and almost the path: 405 with Allow, or 404, whatever is overridden")
async def test_A16_methods_and_paths(service: Service) -> None:
    token = service.running.token_of_new_person()
    overrides = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]
    async with service.untouched():
        for path, allowed in ROUTES.items():
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - set(allowed):
                with named(f"{method} {path}"):
                    headers = dict.fromkeys(overrides, allowed[0])
                    answer = await service.app.call(method, path, token, headers=headers)
                    service.check_refusal(answer, 405, "method_not_allowed", sent=[token])
                    assert ", ".join(allowed) == answer.headers["Allow"]
        for path in (
            *("//api/token", "/api//token", "/api/token;x", "/api/token;jsessionid=1", "/token"),
            *("/api/token%00", "/api/token%2e", "/api/token.json", "/api/token%20", "/api/tokens"),
            *("/api/token%3Fx", "/api/token%2fentra", "/api/", "/api/token/x", "/api/v1/token"),
            *("/api%2ftoken", "/api/%2e%2e/token", "/api/token%0d%0ax:y", "/%61pi/token/%ff"),
        ):
            with named(path):
                answer = await service.raw(request(f"GET {path}", token))
                assert answer.status in {400, 404}

    # A method that is overridden stays what it was: nobody is erased by a POST.
    created = await service.app.post("/api/user", token)
    headers = dict.fromkeys(overrides, "DELETE")
    again = await service.app.post("/api/user", token, headers=headers)
    assert (200, created.json) == (again.status, again.json)
    by_query = await service.app.post("/api/user?_method=DELETE", token)
    service.check_refusal(by_query, 400, "invalid_request", sent=[token])
    assert 200 == (await service.app.get("/api/user", token)).status


@case("A17", "a body over 16 KiB: 413 payload_too_large; slow ones hold nobody up")
async def test_A17_large_and_slow_bodies(service: Service) -> None:
    token = service.running.token_of_new_person()

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"{"
            await asyncio.sleep(0.01)

    async with service.untouched():
        for path, credentials in (
            ("/api/token", token),
            ("/api/token", None),
            ("/api/user", token),
        ):
            for size in (16 * 1024 + 1, 100 * 1024, 1024 * 1024):
                with named(f"{size} bytes, {path}"):
                    answer = await service.app.post(path, credentials, data=b"{".ljust(size))
                    service.check_refusal(answer, 413, "payload_too_large", sent=[token])
        dripped = await service.app.post(
            "/api/token", token, data=drip(), headers={"Content-Type": "application/json"}
        )
        service.check_refusal(dripped, 400, "invalid_request", sent=[token])
        # What is over the host's own limit never comes in; the host fails, as it does in Azure.
        huge = request("POST /api/token", token, f"Content-Length: {100 * 1024 * 1024}")
        assert 500 == (await service.raw(huge + b"{")).status
        begun = request("POST /api/token", token, "Content-Length: 9") + b"{"
        slow = [asyncio.create_task(service.raw(begun)) for _ in range(20)]
        async with asyncio.timeout(5):
            assert 200 == (await service.app.get("/api/health")).status
        assert not any(each.done() for each in slow)
        for each in slow:
            each.cancel()

"""The smoke test as a probe: a good service passes, and each broken one is found."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from infra.probe.asking import Answer
from infra.probe.checks import checks_with, standard_checks
from infra.probe.issued import USER
from local.serving.application import serve
from local.stack import emulators, functions_host
from shared import identifiers
from tests.emulated import ACS_ID
from tests.tokens import Parts, as_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.Response]]

SCRIPT = Path(__file__).parents[2] / "infra/smoke_test.py"
OTHER_ID = f"{ACS_ID[:-1]}9"
DAY = timedelta(days=1)


async def probe(
    url: str, *options: str, python: str = sys.executable, **environment: str
) -> tuple[int | None, str]:
    """Run the probe as a scheduled job does; return its exit code, and all that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(python, str(SCRIPT), url, "--probe", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


def jwt(**claims: object) -> str:
    """Return a token whose signature nobody verifies here."""
    return str(Parts(as_json({"alg": "RS256"}), as_json(claims), b"s" * 9))


def user_token(**claims: object) -> str:
    """Return a token of a user, as the broker's client would have one."""
    return jwt(**{"exp": time.time() + 600, "scp": "access_as_user", "oid": "ada", **claims})


class Broker:
    """A tiny broker that keeps the contract, but for what a test changes.

    Args:
        good: the access token that it takes.
        delay: seconds before each answer.
        issued: members that replace those of its answer with an ACS token.
        takes: says which other tokens it takes.
        users: the users that it names, one after the other.
    """

    def __init__(
        self,
        *,
        good: str = "",
        delay: float = 0,
        issued: dict[str, object] | None = None,
        takes: Callable[[str], bool] = lambda _token: False,
        users: tuple[str, ...] = (ACS_ID,),
    ) -> None:
        self._good = good
        self._delay = delay
        self._issued = issued or {}
        self._takes = takes
        self._users = list(users)

    def application(self) -> web.Application:
        """Return the web application."""
        app = web.Application()
        app.router.add_get("/api/health", partial(self._health, "healthy"))
        app.router.add_get("/api/health/ready", partial(self._health, "ready"))
        app.router.add_get("/api/token", self._token)
        app.router.add_get("/api/user", self._user)
        return app

    async def _health(self, status: str, _request: web.Request) -> web.Response:
        return await self._answer({"status": status})

    async def _answer(self, body: dict[str, object], status: int = 200) -> web.Response:
        await asyncio.sleep(self._delay)
        return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})

    async def _token(self, request: web.Request) -> web.Response:
        refusal = await self._refusal(request)
        if refusal is not None:
            return refusal
        user = self._next_user()
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        token = jwt(exp=expires.timestamp(), skypeid=user["id"][2:])
        body = {"token": token, "expiresOn": expires.isoformat(), "user": user, **self._issued}
        return await self._answer(body)

    async def _user(self, request: web.Request) -> web.Response:
        refusal = await self._refusal(request)
        return refusal or await self._answer({"user": self._next_user()})

    def _next_user(self) -> dict[str, str]:
        user = self._users[0] if len(self._users) == 1 else self._users.pop(0)
        return {"id": user, "communicationUserId": user}

    async def _refusal(self, request: web.Request) -> web.Response | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if token and (token == self._good or self._takes(token)):
            return None
        code = "invalid_token" if scheme else "missing_token"
        answer = await self._answer({"code": code, "traceId": "1"}, 401)
        answer.content_type = "application/problem+json"
        error = f', error="{code}"' if scheme else ""
        answer.headers["WWW-Authenticate"] = f'Bearer realm="broker"{error}'
        return answer


class Site:
    """A server with a certificate of a test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @asynccontextmanager
    async def serve(
        self, app: web.Application, *names: str, lasts: timedelta = 60 * DAY
    ) -> AsyncIterator[tuple[str, str]]:
        """Yield the URL, and the file with the authority that issued the certificate."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        now = datetime.now(UTC)
        certificate = authority.issue_cert(
            *(names or ("127.0.0.1",)), not_before=now - 90 * DAY, not_after=now + lasts
        )
        certificate.configure_cert(context)
        file = self._folder / "ca.pem"
        authority.cert_pem.write_to_path(file)
        async with serve(app, tls=context) as url:
            yield url, str(file)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class TestCertificate:
    """The certificate, and everything else behind it."""

    async def test_good(self, site: Site, each_python: str) -> None:
        """A good service is one line that begins with OK, with the figures at its end."""
        async with site.serve(Broker().application()) as (url, authority):
            code, out = await probe(url, python=each_python, SSL_CERT_FILE=authority)

        assert 0 == code, out
        (line,) = out.splitlines()
        assert line.startswith(f"OK {url} 6 checks | slowest_ms=")
        assert "certificate_days=59 tls=TLSv1.3" in line

    @pytest.mark.parametrize(
        ("names", "lasts", "trusted", "problem"),
        [
            pytest.param((), -DAY, True, "certificate has expired", id="expired"),
            pytest.param(("other.example",), 60 * DAY, True, "is not valid for", id="other host"),
            pytest.param((), 60 * DAY, False, "CERTIFICATE_VERIFY_FAILED", id="not trusted"),
        ],
    )
    async def test_bad(
        self, site: Site, names: tuple[str, ...], lasts: timedelta, trusted: bool, problem: str
    ) -> None:
        """A certificate that a client would refuse fails, and nothing is sent over it."""
        asked = 0

        async def count(_request: web.Request) -> web.Response:
            nonlocal asked
            asked += 1
            return web.Response()

        app = web.Application()
        app.router.add_get("/{path:.*}", count)
        token = user_token()
        async with site.serve(app, *names, lasts=lasts) as (url, authority):
            environment = {"SSL_CERT_FILE": authority} if trusted else {}
            code, out = await probe(url, PROBE_TOKEN=token, **environment)

        assert (1, 0) == (code, asked), out
        assert out.startswith("FAILED ")
        assert "has a good certificate: SSLCertVerificationError" in out
        assert problem in out

    @pytest.mark.parametrize(("limit", "expected"), [("5", 0), ("14", 3)])
    async def test_expires_soon(self, site: Site, limit: str, expected: int) -> None:
        """A certificate with few days left is a warning."""
        async with site.serve(Broker().application(), lasts=10 * DAY) as (url, authority):
            code, out = await probe(url, "--certificate-days", limit, SSL_CERT_FILE=authority)

        assert expected == code, out
        assert out.startswith("WARNING " if expected else "OK ")
        assert ("it expires in 9 days" in out) == bool(expected)
        assert "slowest_ms=" in out


class TestTimes:
    """How long answers take."""

    @pytest.mark.parametrize(
        ("options", "expected", "what"),
        [
            pytest.param((), 0, "5 checks", id="fast enough"),
            pytest.param(("--slow-ms", "100"), 3, "is up: took ", id="slow"),
            pytest.param(("--timeout", "0.1"), 1, "is up: no answer: ", id="too slow"),
        ],
    )
    async def test_slow(self, options: tuple[str, ...], expected: int, what: str) -> None:
        """A slow answer is a warning; one that does not come in time is a failure."""
        async with serve(Broker(delay=0.2).application()) as url:
            code, out = await probe(url, *options)

        assert expected == code, out
        assert what in out

    async def test_trickle(self) -> None:
        """An answer that never ends does not keep the probe for ever."""

        async def trickle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(100):
                await response.write(b" ")
                await asyncio.sleep(0.1)
            return response

        app = web.Application()
        app.router.add_get("/{path:.*}", trickle)
        async with serve(app) as url:
            started = time.monotonic()
            code, out = await probe(url, "--timeout", "0.3")

        assert 1 == code
        assert "TimeoutError: the answer takes too long" in out
        assert time.monotonic() - started < 30  # The five answers would take 50.

    async def test_no_answer(self) -> None:
        """A service that is gone is one line, without a traceback."""
        async with serve(web.Application()) as url:
            pass
        code, out = await probe(url)
        assert 1 == code
        assert 1 == len(out.splitlines())
        assert 1 == out.count("no answer: ConnectionRefusedError")
        assert "|" not in out  # There are no figures.


def test_identities() -> None:
    """The probe, which runs without the service's code, has its own pattern of the same ids."""
    assert identifiers.ACS_ID.pattern == USER.pattern


class TestToken:
    """What a good token adds; the token itself is never printed."""

    async def test_user(self, each_python: str) -> None:
        """A user's token gets an ACS token, for the same user each time."""
        token = user_token()
        async with serve(Broker(good=token).application()) as url:
            code, out = await probe(
                *(url, "--json", "--user", ACS_ID), python=each_python, PROBE_TOKEN=token
            )

        assert 0 == code, out
        document = json.loads(out)
        assert ("OK", 10) == (document["result"], len(document["checks"]))
        assert [401, 401, 401, 401, 401, 200, 200, 200] == [
            check["status"] for check in document["checks"][2:]
        ]
        assert token not in out

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            pytest.param(
                {"takes": lambda token: token.startswith(user_token().split(".")[0])},
                "refuses a token with another signature: status 200",
                id="verifies no signature",
            ),
            pytest.param(
                {"takes": lambda token: token.endswith(user_token()[-12:])},
                "refuses a token with another person: status 200",
                id="verifies no claims",
            ),
            pytest.param(
                {"users": (ACS_ID, OTHER_ID, ACS_ID)},
                f"issues it for the same user: the user is {OTHER_ID}, not {ACS_ID}",
                id="another user each time",
            ),
            pytest.param(
                {"users": (OTHER_ID,)}, f"the user is {OTHER_ID}, not {ACS_ID}", id="other user"
            ),
            pytest.param({"issued": {"token": "secret"}}, "token is not a JWT", id="no token"),
            pytest.param(
                {"issued": {"user": {"id": "somebody"}}}, "not an ACS user", id="no ACS user"
            ),
            pytest.param(
                {"issued": {"token": jwt(exp=time.time() - 3600)}},
                "the token expires in -",
                id="expired",
            ),
            pytest.param(
                {"issued": {"token": jwt(exp=time.time() + 7 * 86400)}},
                "the token expires in 100",  # and some minutes: 10080 when the tests are collected
                id="lasts a week",
            ),
            pytest.param(
                {"issued": {"expiresOn": "2999-01-01T00:00:00+00:00"}},
                "expiresOn is not when the token expires",
                id="another date",
            ),
            pytest.param(
                {"issued": {"token": jwt(exp=10**400)}}, "or the token no exp", id="no time"
            ),
            pytest.param({"issued": {"expiresOn": 5}}, "expiresOn is not a date", id="no date"),
            pytest.param(
                {"issued": {"token": jwt(exp=time.time() + 3600, skypeid=OTHER_ID[2:])}},
                "the token is for another user",
                id="token of another user",
            ),
            pytest.param({"good": "other"}, "issues a token: status 401, not 200", id="refused"),
        ],
    )
    async def test_broken(self, changes: dict[str, Any], problem: str) -> None:
        """A service that breaks its contract fails, and the line says how."""
        token = user_token()
        async with serve(Broker(**{"good": token, **changes}).application()) as url:
            code, out = await probe(url, "--user", ACS_ID, PROBE_TOKEN=token)

        assert 1 == code, out
        assert problem in out
        assert token not in out
        assert "secret" not in out

    async def test_command(self, tmp_path: Path) -> None:
        """The token may come from a command, as from the Azure CLI."""
        token = user_token()
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        async with serve(Broker(good=token).application()) as url:
            code, out = await probe(url, "--token-command", f"cat '{file}'")
        assert 0 == code, out
        assert "10 checks" in out

    @pytest.mark.parametrize(
        ("command", "problem"),
        [
            pytest.param("echo secret", "what was given is not an access token", id="no token"),
            pytest.param(
                f"echo {user_token(exp=time.time() - 5)}", "the token has expired", id="expired"
            ),
            pytest.param("false", "the token command ended with exit code 1", id="fails"),
            pytest.param("true", "what was given is empty", id="prints nothing"),
            pytest.param("", "the token command cannot be run: IndexError", id="no command"),
            pytest.param(
                "echo 'secret",
                "the token command cannot be split into words: No closing quotation",
                id="open quotation",
            ),
            pytest.param(
                "no-such-program",
                "the token command cannot be run: FileNotFoundError",
                id="missing",
            ),
        ],
    )
    async def test_no_token(self, command: str, problem: str) -> None:
        """A token that cannot be had is a failure, not a probe without a token."""
        async with serve(Broker().application()) as url:
            code, out = await probe(url, "--token-command", command)

        assert 1 == code
        assert f"has a token to try: {problem}" in out
        assert "secret" not in out

    async def test_empty_token(self) -> None:
        """A variable that is empty, since a command before it failed, was meant to have a token."""
        async with serve(Broker().application()) as url:
            code, out = await probe(url, PROBE_TOKEN="")

        assert 1 == code
        assert "has a token to try: what was given is empty" in out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
TOKEN_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "token": JSON | st.builds(lambda exp, user: jwt(exp=exp, skypeid=user), JSON, JSON),
        "expiresOn": JSON | st.datetimes().map(str),
        "user": JSON | st.fixed_dictionaries({"id": JSON | st.just(ACS_ID)}),
    },
)
BODIES = st.binary(max_size=40) | (JSON | TOKEN_BODIES).map(lambda body: json.dumps(body).encode())


@given(status=st.sampled_from([200, 204, 301, 401, 403, 500]), body=BODIES)
def test_any_answer(status: int, body: bytes) -> None:
    """Whatever a service answers, each check has something against it, and none stumbles."""
    answer = Answer(status, {"cache-control": "no-store"}, body)
    for check in [*standard_checks(), *checks_with(user_token(), user=None)]:
        assert check.judge(answer), check.title


async def test_real_broker() -> None:
    """The broker itself, on the local stack: without a token, with a user's, with an app's."""
    async with emulators() as stack, functions_host(stack, {}) as host:
        code, out = await probe(host.url, "--wait", "20")
        assert 0 == code, out

        user, app = stack.entra.issue_access_token(), stack.entra.issue_access_token(None)
        code, out = await probe(host.url, "--json", PROBE_TOKEN=user)
        assert 0 == code, out
        code, out = await probe(host.url, "--json", PROBE_TOKEN=app)
        assert 0 == code, out
        last = json.loads(out)["checks"][-1]
        assert ("refuses an app without a user", 403) == (last["check"], last["status"])

        stack.acs.faults.fail_next("issue", status=403, times=9)
        code, out = await probe(host.url, PROBE_TOKEN=user)
        assert 1 == code
        assert "issues a token: status 502, not 200" in out
        assert "code is 'upstream_auth'" in out


@pytest.mark.parametrize(
    "options",
    [
        ("--json",),
        ("--token-command", "x"),
        ("--user", ACS_ID),
        ("--probe", "--user", ACS_ID),
        ("--probe", "--token-command", "x", "--user", "ada"),
        ("--probe", "--token-command", "x", "--user", ""),
        ("--probe", "--timeout", "-1"),
        ("--probe", "--timeout", "0"),
        ("--probe", "--timeout", "nan"),
    ],
)
async def test_wrong_arguments(options: tuple[str, ...]) -> None:
    """What cannot be right, or would be ignored, is refused."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), "https://broker.example", *options),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert 2 == await process.wait()


async def test_two_tokens() -> None:
    """Of a command and a variable, neither is silently ignored."""
    code, out = await probe("https://broker.example", "--token-command", "x", PROBE_TOKEN="")

    assert 2 == code
    assert "give either --token-command or PROBE_TOKEN" in out

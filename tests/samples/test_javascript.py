from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from local.entra.directory import ACS_CLIENTS, BROKER, CONTOSO, DESKTOP_APP, FADI, GRACE
from local.storage.npm import find_node, install
from tests.samples.conftest import ROOT, SCOPE, issued, problem, token_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from local.entra.objects import User
    from tests.samples.conftest import Running

    Answers = list[dict[str, Any]]
    StartApp = Callable[..., AbstractAsyncContextManager["App"]]

SAMPLE = ROOT / "samples/javascript"
JS = ROOT / "tests/js"
SIGN_IN = ROOT / "tests/samples/sign_in.py"
CLIENTS = ACS_CLIENTS.uris[0]


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    """Install the packages in the lock files."""
    install(SAMPLE, "the packages of the JavaScript sample")
    install(JS, "the JavaScript clients")


@asynccontextmanager
async def program(
    running: Running, *arguments: object, **streams: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Node.js with an environment in which it trusts the stack."""
    process = await asyncio.create_subprocess_exec(
        *(find_node()[0], *map(str, arguments)),
        env=running.variables,
        stdout=asyncio.subprocess.PIPE,
        **streams,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def sign_in(running: Running, user: User, url: str) -> None:
    """Sign in at a URL, as a person does in the browser."""
    browser = await asyncio.create_subprocess_exec(
        *(sys.executable, SIGN_IN, user.object_id, url), env=running.variables
    )
    assert 0 == await browser.wait()


class App:
    """The app in tests/js/signed_in_app.mjs, which does as it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def read(self) -> Any:
        """Return what the app says next."""
        assert self._process.stdout is not None
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), 30))

    async def do(self, what: str, **request: Any) -> Any:
        """Let the app do something, and return what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **request}).encode() + b"\n")
        return await self.read()


@pytest.fixture
def start_app(running: Running) -> StartApp:
    """Return a function that starts the app and signs somebody in."""

    @asynccontextmanager
    async def start(broker: str = running.host.url, user: User = GRACE) -> AsyncIterator[App]:
        config = {
            "clientId": DESKTOP_APP.client_id,
            "authority": running.authority,
            "broker": broker,
            "scopes": [SCOPE],
        }
        script = JS / "signed_in_app.mjs"
        async with program(running, script, json.dumps(config), stdin=-1) as process:
            app = App(process)
            await sign_in(running, user, (await app.read())["url"])
            account = {"account": f"{user.object_id}.{user.tenant.tenant_id}"}
            assert account == await app.read()
            yield app

    return start


class TestProgram:
    """node acs-token.mjs, with msal-node's sign-in."""

    @pytest.mark.parametrize("status", [None, 401])
    async def test_program(self, running: Running, status: int | None) -> None:
        """A person signs in, and has an ACS token or is told why not."""
        if status:
            running.stack.acs.faults.fail_next("create", status=status)
            running.stack.acs.faults.fail_next("issue", status=status)
        async with program(running, SAMPLE / "acs-token.mjs", stderr=-1) as process:
            assert process.stdout is not None
            asked = (await process.stdout.readline()).decode()
            assert asked.startswith("To sign in, open https://")
            await sign_in(running, GRACE, asked.split()[-1])
            output, errors = await asyncio.wait_for(process.communicate(), 30)

        if status:
            assert (1, b"") == (process.returncode, output)
            assert b"refused this service's own credentials. (502 upstream_auth, trace" in errors
        else:
            assert (0, b"") == (process.returncode, errors)
            assert output.startswith(b"An ACS token, good until ")

    async def test_without_settings(self, running: Running) -> None:
        """It names the settings that it needs, and asks nobody to sign in."""
        program = await asyncio.create_subprocess_exec(
            *(find_node()[0], SAMPLE / "acs-token.mjs"),
            env={**running.variables, "CLIENT_ID": ""},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(program.communicate(), 30)
        assert (1, b"") == (program.returncode, output)
        assert errors == b"No token: Set BROKER_URL, BROKER_CLIENT_ID and CLIENT_ID.\n"


class TestMsal:
    """@azure/msal-node as it comes from npm."""

    async def test_cache(self, start_app: StartApp) -> None:
        """The second request for the same scope does not go to Entra."""
        async with start_app() as app:
            answers = [await app.do("silently") for _ in range(2)]
        assert [True, True] == [each["fromCache"] for each in answers]

    async def test_cache_of_default(self, start_app: StartApp) -> None:
        """So with .default, which Entra grants by that name, too."""
        scopes = [f"{BROKER.uris[0]}/.default"]
        async with start_app() as app:
            await app.do("silently", scopes=scopes)
            assert (await app.do("silently", scopes=scopes))["fromCache"]

    async def test_challenge(self, running: Running, start_app: StartApp) -> None:
        """After a sign-out the cached token is refused, and the one for the claims is not."""
        async with start_app(user=FADI) as app:
            await app.do("refresh")
            running.revoke(FADI)
            asked = running.stack.entra.faults.count("token")

            refreshed = await app.do("refresh")
            cached = await app.do("silently")
            again = await app.do("refresh")

        assert running.stack.acs.token_is_valid(refreshed["token"])
        assert running.stack.acs.token_is_valid(again["token"])
        assert cached["fromCache"]
        assert asked + 1 == running.stack.entra.faults.count("token")


class TestCredential:
    """`AzureCommunicationTokenCredential` of @azure/communication-common as it comes from npm."""

    async def test_refresh(self, running: Running, start_app: StartApp) -> None:
        """A token that expires soon is replaced in the background by the broker's."""
        async with start_app() as app:
            answer = await app.do("credential", token=token_for(seconds=3))

        assert running.stack.acs.token_is_valid(answer["token"])
        claims = jwt.decode(answer["token"], options={"verify_signature": False})
        assert claims["exp"] == pytest.approx(answer["expiresOnTimestamp"] / 1000, abs=1)
        assert [] == answer["failures"]

    async def test_encrypted(self, start_app: StartApp, host: str, answers: Answers) -> None:
        """A token that cannot be decoded is good until the broker's `expiresOn`."""
        answers += [issued("a.b.c.d.e", minutes=60)]
        async with start_app(host) as app:
            answer = await app.do("credential", token=token_for(seconds=3))
        assert ("a.b.c.d.e", []) == (answer["token"], answer["failures"])
        assert answer["expiresOnTimestamp"] / 1000 > time.time() + 3000

    async def test_failure(self, start_app: StartApp, host: str, answers: Answers) -> None:
        """A refresh in the background that fails is an unhandled rejection, which ends Node.js."""
        answers += [problem(403, "tenant_not_allowed")]
        async with start_app(host) as app:
            answer = await app.do("credential", token=token_for(seconds=4))
        assert ["Why not. (403 tenant_not_allowed, trace id a trace id)"] == answer["failures"]

    async def test_last_one_again(self, start_app: StartApp, host: str, answers: Answers) -> None:
        """While the broker cannot serve, the sample's refresher returns the token that is good."""
        answers += [issued("a token", minutes=9), {"status": 503, "text": "Starting."}]
        async with start_app(host) as app:
            first, again = [await app.do("refresh") for _ in range(2)]
        assert ("a token", first) == (first["token"], again)
        assert [] == answers

    async def test_busy_after_sign_out(
        self, start_app: StartApp, host: str, answers: Answers
    ) -> None:
        """A token from before a sign-out is not returned any more; the refresher waits."""
        answers += [
            issued("a token", minutes=9),
            problem(401, "token_revoked", claims='{"access_token":{}}'),
            problem(503, "busy") | {"headers": {"Retry-After": "1"}},
            issued("another token", minutes=60),
        ]
        async with start_app(host) as app:
            await app.do("refresh")
            started = time.monotonic()
            token = await app.do("refresh")
        assert ("another token", []) == (token["token"], answers)
        assert 1 < time.monotonic() - started < 4

    async def test_refused(self, start_app: StartApp, host: str, answers: Answers) -> None:
        """What would be answered the same again is not asked again."""
        answers += [problem(403, "not_assigned")]
        async with start_app(host) as app:
            answer = await app.do("refresh")
        assert ("not_assigned", []) == (answer["code"], answers)

    async def test_directly(self, running: Running, start_app: StartApp) -> None:
        """Without the broker, the SDK exchanges the token that MSAL gets for ACS itself."""
        request = {"resourceEndpoint": running.stack.acs.url, "acsScopes": [f"{CLIENTS}/VoIP"]}
        async with start_app() as app:
            answer = await app.do("directly", **request)
        async with start_app(user=FADI) as app:  # Fabrikam has no assignment.
            refusal = await app.do("directly", **request)

        claims = jwt.decode(answer["token"], options={"verify_signature": False})
        assert "voip" in claims["acsScope"].split(",")
        assert claims["skypeid"].endswith(f"_{CONTOSO.tenant_id}_{GRACE.object_id}")
        assert refusal["error"].startswith("Service request failed. Status: 403")

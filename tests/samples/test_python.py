from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from azure.communication.chat import CommunicationTokenCredential
from azure.core.credentials import AccessToken

from local.entra.directory import ADA, BROKER, FARAH
from local.serving.application import serve
from samples.python.acs_token import Broker, BrokerError
from tests.emulated import until
from tests.samples.conftest import ROOT, issued, problem, token_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.samples.conftest import MsalCredential, Running

    Answers = list[dict[str, Any]]

SIGN_IN = ROOT / "tests/samples/sign_in.py"


class SignedIn:
    """A sign-in that has one Entra token, and another one for claims."""

    def get_token(self, *_scopes: str, claims: str | None = None, **_: Any) -> AccessToken:
        """Return the token."""
        return AccessToken(f"Entra's {claims}", 0)


async def run_sample(running: Running, **settings: str) -> tuple[int | None, str, str]:
    """Run the sample, sign Ada in, and return the exit code and what was printed."""
    browser = f"{sys.executable} {SIGN_IN} {ADA.object_id} %s &"  # &: it need not end.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "samples/python/acs_token.py",
        env={**running.variables, "BROWSER": browser, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode(), errors.decode()


async def ask(broker: Broker) -> tuple[AccessToken, float]:
    """Return a token from the refresher, and how long it took."""
    started = time.monotonic()
    return await asyncio.to_thread(broker), time.monotonic() - started


def test_versions() -> None:
    """The versions that the sample asks for are those that these tests run."""
    pins = (ROOT / "samples/python/requirements.txt").read_text().split()
    lock = (ROOT / "requirements-dev.txt").read_text()
    assert all(f"\n{pin} \\\n" in lock for pin in pins), pins


class TestProgram:
    """python acs_token.py, with azure-identity's sign-in in the browser."""

    async def test_signs_in(self, running: Running) -> None:
        """A person signs in once, and has an ACS token."""
        code, output, errors = await run_sample(running)

        assert (0, "") == (code, errors)
        assert output.startswith("An ACS token, good until ")

    async def test_refused(self, running: Running) -> None:
        """A refusal is said in words, with the trace id for the operator."""
        for _ in range(2):  # The identity may be new or known.
            running.stack.acs.faults.fail_next("create", status=401)
            running.stack.acs.faults.fail_next("issue", status=401)
        code, output, errors = await run_sample(running)

        assert (1, "") == (code, output)
        assert errors.startswith("No token: Azure Communication Services")
        assert " (502 upstream_auth, trace id " in errors

    async def test_without_settings(self, running: Running) -> None:
        """It names the settings that it needs, and asks nobody to sign in."""
        answer = await run_sample(running, BROKER_CLIENT_ID="")
        assert answer == (1, "", "Set BROKER_URL, BROKER_CLIENT_ID and CLIENT_ID.\n")


class TestRefresher:
    """The token refresher, against the broker."""

    async def test_refresh(self, running: Running, sign_in: Callable[..., MsalCredential]) -> None:
        """Microsoft's credential replaces a token that expires soon."""
        refresher = Broker(running.host.url, BROKER.client_id, sign_in(ADA))

        with CommunicationTokenCredential(
            token_for(seconds=120), token_refresher=refresher, proactive_refresh=True
        ) as credential:
            token = await asyncio.to_thread(credential.get_token)

        assert token.expires_on > time.time() + 600
        assert running.stack.acs.token_is_valid(token.token)

    @pytest.mark.skipif(
        "FAKETIME" in os.environ, reason="libfaketime does not move threading.Timer's clock"
    )
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    async def test_failure(self, host: str, answers: Answers) -> None:
        """A refresh in the background that fails ends the timer; the next call asks again."""
        refresher = Broker(host, BROKER.client_id, SignedIn())
        answers += [problem(403, "tenant_not_allowed"), issued("a token", minutes=60)]

        with CommunicationTokenCredential(
            token_for(seconds=2), token_refresher=refresher, proactive_refresh=True
        ) as credential:
            await until(lambda: len(answers) == 1)
            await asyncio.sleep(0.2)
            token = await asyncio.to_thread(credential.get_token)

        assert ("a token", []) == (token.token, answers)

    async def test_challenge(
        self, running: Running, sign_in: Callable[..., MsalCredential]
    ) -> None:
        """After a sign-out, MSAL is given the claims, and gets another Entra token."""
        refresher = Broker(running.host.url, BROKER.client_id, sign_in(FARAH))
        await ask(refresher)
        asked = running.stack.entra.faults.count("token")
        running.revoke(FARAH)

        token, _ = await ask(refresher)

        assert running.stack.acs.token_is_valid(token.token)
        assert asked + 1 == running.stack.entra.faults.count("token")

    async def test_throttled(
        self, running: Running, sign_in: Callable[..., MsalCredential]
    ) -> None:
        """It comes back when the broker said, not earlier and not at that very second."""
        refresher = Broker(running.host.url, BROKER.client_id, sign_in(ADA))
        await ask(refresher)
        refresher = Broker(running.host.url, BROKER.client_id, sign_in(ADA))
        running.stack.acs.faults.fail_next("issue", status=429, headers={"Retry-After": "1"})

        token, seconds = await ask(refresher)

        assert running.stack.acs.token_is_valid(token.token)
        assert 1 < seconds < 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokerError(None, {}, None), "The service cannot be reached. (no answer)"),
        (BrokerError(503, {}, None), "The service cannot be reached. (503)"),
    ],
)
def test_message(error: BrokerError, message: str) -> None:
    """It says nothing of what the answer does not have."""
    assert message == str(error)
    assert error.may_pass


class TestAnswers:
    """The token refresher, with answers that one has to wait for."""

    async def test_no_problem_document(self, host: str, answers: Answers) -> None:
        """The host's own answers, which say nothing, are tried again."""
        answers += [
            {"status": 429},
            {"status": 503, "text": "Function host is not running."},
            issued("a token", minutes=60),
        ]
        token, _ = await ask(Broker(host, BROKER.client_id, SignedIn()))
        assert ("a token", []) == (token.token, answers)

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(problem(503, "keys_unavailable"), id="problem"),
            pytest.param({"status": 502, "text": "Bad gateway"}, id="host"),
        ],
    )
    async def test_last_one_again(self, host: str, answers: Answers, answer: Any) -> None:
        """While the broker cannot serve, the token that is still good is used on."""
        refresher = Broker(host, BROKER.client_id, SignedIn())
        answers += [issued("a token", minutes=9), answer]
        first, _ = await ask(refresher)

        again, seconds = await ask(refresher)

        assert (first, []) == (again, answers)
        assert seconds < 1

    async def test_no_answer(self) -> None:
        """A host that cannot be reached counts as one that cannot serve now."""
        app = web.Application()
        app.router.add_get("/api/token", _issue)
        async with serve(app) as url:
            refresher = Broker(url, BROKER.client_id, SignedIn())
            first, _ = await ask(refresher)
        assert first == (await ask(refresher))[0]

    async def test_revoked_in_the_meantime(self, host: str, answers: Answers) -> None:
        """A token from before a sign-out is not used on."""
        refresher = Broker(host, BROKER.client_id, SignedIn())
        answers += [
            issued("a token", minutes=9),
            problem(401, "token_revoked", claims=json.dumps({"access_token": {}})),
            problem(503, "busy"),
            issued("another token", minutes=60),
        ]
        await ask(refresher)

        token, _ = await ask(refresher)

        assert ("another token", []) == (token.token, answers)

    @pytest.mark.parametrize(
        ("refusals", "code"),
        [
            pytest.param([problem(403, "tenant_not_allowed")], "tenant_not_allowed", id="403"),
            pytest.param([problem(502, "identity_gone")], "identity_gone", id="502"),
            pytest.param(
                [problem(401, "token_revoked", claims="{}")] * 2, "token_revoked", id="claims twice"
            ),
            pytest.param(
                [problem(503, "misconfigured") | {"headers": {"Retry-After": "60"}}],
                "misconfigured",
                id="a minute is too long",
            ),
        ],
    )
    async def test_final(self, host: str, answers: Answers, refusals: Answers, code: str) -> None:
        """What would be answered the same again is not asked again."""
        answers += refusals
        words = r"Why not\. \(\d+ \w+, trace id a trace id\)"
        with pytest.raises(BrokerError, match=words) as raised:
            await ask(Broker(host, BROKER.client_id, SignedIn()))
        assert (code, []) == (raised.value.code, answers)


async def _issue(_request: web.Request) -> web.Response:
    return web.Response(**issued("a token", minutes=9))

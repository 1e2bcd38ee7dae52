from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from local.serving.application import serve
from local.stack import emulators, functions_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.Response]]

SCRIPT = Path(__file__).parents[2] / "infra/smoke_test.py"


async def run(*arguments: str, python: str = sys.executable) -> tuple[int | None, str, str]:
    """Run the script as an operator does; return its exit code, and what it prints."""
    process = await asyncio.create_subprocess_exec(python, SCRIPT, *arguments, stdout=-1, stderr=-1)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def answer(
    body: dict[str, str], *, status: int = 200, challenge: str | None = None
) -> web.Response:
    """Answer as the broker does."""
    headers = {"Cache-Control": "no-store"}
    media_type = "application/json"
    if challenge is not None:
        headers["WWW-Authenticate"] = challenge
        media_type, body = "application/problem+json", {"traceId": "1", **body}
    text = json.dumps(body)
    return web.Response(text=text, status=status, headers=headers, content_type=media_type)


def refusal(request: web.Request) -> web.Response:
    """Refuse as the contract says."""
    realm = 'Bearer realm="broker"'
    if "Authorization" not in request.headers:
        return answer({"code": "missing_token"}, status=401, challenge=realm)
    challenge = f'{realm}, error="invalid_token"'
    return answer({"code": "invalid_token"}, status=401, challenge=challenge)


async def healthy(_request: web.Request) -> web.Response:
    """Answer as `/health`."""
    return answer({"status": "healthy"})


async def ready(_request: web.Request) -> web.Response:
    """Answer as `/health/ready`."""
    return answer({"status": "ready"})


async def refusing(request: web.Request) -> web.Response:
    """Answer as `/token`."""
    return refusal(request)


def broker(**changes: Handler) -> web.Application:
    """Return a tiny broker; `health`, `ready` and `token` can be replaced."""
    app = web.Application()
    app.router.add_get("/api/health", changes.get("health", healthy))
    app.router.add_get("/api/health/ready", changes.get("ready", ready))
    app.router.add_get("/api/token", changes.get("token", refusing))
    return app


async def test_good(each_python: str) -> None:
    """A service that keeps its contract passes every check."""
    async with serve(broker()) as url:
        code, out, err = await run(url, "--wait", "0", python=each_python)
    assert (0, "") == (code, err)
    assert 5 == out.count("ok ")


async def test_broker() -> None:
    """The broker itself, on the local stack, keeps its contract."""
    async with emulators() as stack, functions_host(stack, {}) as host:
        code, out, _ = await run(host.url, "--wait", "20")
    assert 0 == code, out


async def lets_everyone_in(_request: web.Request) -> web.Response:
    """Answer every call with a token."""
    return answer({"token": "t"})


async def takes_forged_tokens(request: web.Request) -> web.Response:
    """Refuse only calls without a token."""
    return answer({"token": "t"}) if "Authorization" in request.headers else refusal(request)


async def blames_the_token(_request: web.Request) -> web.Response:
    """Name an error in the challenge although no token was sent."""
    return answer({"code": "missing_token"}, status=401, challenge='Bearer error="invalid_token"')


async def says_nothing(_request: web.Request) -> web.Response:
    """Answer as the host does for a function that it does not have."""
    return web.Response(status=404)


async def may_be_cached(_request: web.Request) -> web.Response:
    """Leave out the header Cache-Control."""
    return web.json_response({"status": "healthy"})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"token": lets_everyone_in}, "status 200, not 401", id="no token needed"),
        pytest.param({"token": takes_forged_tokens}, "status 200, not 401", id="forged tokens"),
        pytest.param({"token": blames_the_token}, "a challenge with an error", id="challenge"),
        pytest.param({"health": says_nothing}, "status 404, not 200", id="no code"),
        pytest.param({"health": may_be_cached}, "no Cache-Control: no-store", id="cacheable"),
    ],
)
async def test_bad(changes: dict[str, Handler], problem: str) -> None:
    """A service that breaks its contract fails, and the output says how."""
    async with serve(broker(**changes)) as url:
        code, out, _ = await run(url, "--wait", "0")
    assert 1 == code
    assert "FAILED" in out
    assert problem in out


async def test_no_function() -> None:
    """Only if the host answers 404 to everything does the script say that it has no function."""
    async with serve(web.Application()) as url:
        code, out, _ = await run(url, "--wait", "0")
    assert 1 == code
    assert "has no function" in out
    assert "infra/package.py" in out
    async with serve(broker(health=says_nothing)) as url:
        _, out, _ = await run(url, "--wait", "0")
    assert "has no function" not in out


async def test_waits() -> None:
    """A service that becomes ready within the time passes."""
    asked = 0

    async def ready_at_last(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return answer({"status": "ready"}) if asked > 1 else web.Response(status=503)

    async with serve(broker(ready=ready_at_last)) as url:
        code, _, _ = await run(url, "--wait", "30")
    assert (0, 2) == (code, asked)


async def test_no_answer() -> None:
    """If no answer comes, the script fails without a traceback."""
    async with serve(web.Application()) as url:
        pass
    code, out, err = await run(url, "--wait", "0")
    assert (1, "") == (code, err)
    assert "no answer" in out


@pytest.mark.parametrize(
    "option",
    [
        ["--json"],
        ["--token-command", "false"],
        ["--user", "8:acs:x"],
        ["--slow-ms", "0"],
        ["--certificate-days", "9"],
    ],
)
async def test_options_of_the_probe(option: list[str]) -> None:
    """What only the probe heeds is refused without it, rather than ignored."""
    code, _, err = await run("https://func.example.com", *option)
    assert 2 == code
    assert f"{option[0]} is for --probe only" in err


@pytest.mark.parametrize(
    "url",
    [
        "http://func.example.com",
        "https://func.example.com/api",
        "func.example.com",
        "https://somebody@func.example.com",
        "https://func.example.com:99999",
        "https://func.example.com?x",
        "https://func.example.com#x",
        "https://[::1",
        "https://ﬀ.example.com",
    ],
)
async def test_wrong_url(url: str) -> None:
    """The URL must be https, and have no path."""
    code, _, err = await run(url)
    assert 2 == code
    assert "the URL must" in err

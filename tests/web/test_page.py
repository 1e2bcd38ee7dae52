"""The page in samples/web: its TypeScript by itself, and all of it in Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from local.sample import WEB, sample
from local.serving.application import serve
from local.stack import emulators
from local.storage.npm import find_node, install

if TYPE_CHECKING:
    from local.stack import Stack

JS = Path(__file__).parent.parent / "js"
SCENARIOS = Path(__file__).parent / "scenarios"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PASS = 0
STEP_UP = {"rules": [{"name": "everybody", "scopes": ["chat"], "acrs": "c1"}]}


async def run(*command: str | Path, **environment: str) -> tuple[int | None, str]:
    """Run a program in the page's folder; return its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=WEB,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.xdist_group("page")
async def test_typescript() -> None:
    """It is free of type errors, and its pure parts do what their tests say."""
    install(WEB, "what samples/web needs")
    node, npm = find_node()
    path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"

    code, output = await run(npm, "test", PATH=path)

    assert PASS == code, output


def clock_of(stack: Stack) -> web.Application:
    """Return a control for the clock of the tables: POST a number of seconds to put it forward."""

    async def put_forward(request: web.Request) -> web.Response:
        ahead = timedelta(seconds=float(await request.text()))
        stack.tables.clock = (lambda: datetime.now(UTC) + ahead) if ahead else None
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/", put_forward)
    return app


@pytest.mark.xdist_group("page")
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
async def test_in_chromium() -> None:
    """People sign in, get tokens, have them refreshed and revoked, and read what went wrong."""
    install(JS, "the JavaScript clients")
    async with (
        emulators(managed_identity=True) as stack,
        sample(stack, {}) as page,
        sample(stack, {"ACS_EXCHANGES": ""}) as page_without_exchanges,
        sample(stack, {"TRUST_POLICY": json.dumps(STEP_UP)}) as page_with_policy,
        serve(clock_of(stack)) as clock,
    ):
        addresses = {
            "chromium": CHROMIUM,
            "page": page.url,
            "pageWithoutExchanges": page_without_exchanges.url,
            "pageWithPolicy": page_with_policy.url,
            "entra": stack.entra.url,
            "acs": stack.acs.url,
            "clock": clock,
        }
        code, output = await run(
            *(find_node()[0], "--test", "--test-reporter=spec", "--test-concurrency=1"),
            *sorted(SCENARIOS.glob("*.test.mjs")),
            ADDRESSES=json.dumps(addresses),
            NODE_EXTRA_CA_CERTS=stack.environment["SSL_CERT_FILE"],
        )

    assert PASS == code, output

"""What it costs to refuse a stranger, and what people notice of a flood of strangers.

"In process" is the CPU time of the whole endpoint, without a server. "Live" is that of the process
with the functions, less what it takes to answer /api/health: that is mostly the local host's own
work. In Azure requests come from the Functions host over gRPC, which cannot be measured here.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import statistics
import sys
import time
import uuid
from asyncio.subprocess import PIPE
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import azure.functions as func
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256

from local.entra.tokens import TokenIssuer
from local.functions.app import Context, TraceContext
from local.stack import EXAMPLE, REPOSITORY, emulators, functions_host
from shared import audit, http, requests
from shared.entra.access_tokens import AccessTokenValidator
from shared.settings import Settings
from tests.pressure.rows import Row
from tests.pressure.strange_tokens import large_token, strange_tokens, typical_token
from tests.tokens import KnownKeys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.stack import FunctionsHost

REPEATS = 9
CALLS = 60
LIVE_CALLS = 800
FLOOD_PER_SECOND = 1000
WINDOW = 2.5  # seconds
WINDOWS = 3  # With a flood, and as many without.
ROUNDS = 2
PEOPLE_PER_SECOND = 40
PEOPLE = 30  # Each has a rate limit.
MAX_REFUSAL_MS = 0.3
HOST_COLUMNS = 500  # bytes of a row in AppTraces besides the line: docs/deploy.md.


class InProcess:
    """A validator, and an endpoint that does nothing but ask it."""

    def __init__(self) -> None:
        example = json.loads(EXAMPLE.read_text("utf-8"))
        self.issuer = TokenIssuer()
        entra = Settings.from_env(example["Values"]).entra
        self.issuer.url = entra.authority
        self._validator = AccessTokenValidator(settings=entra, keys=KnownKeys(self.issuer))
        self._context: Any = Context("token", "", TraceContext("", ""))

        @http.answers_problems("GET")
        async def token(req: func.HttpRequest) -> func.HttpResponse:
            await self.validate(requests.bearer_token(req.headers))
            return http.json_response({})

        self._endpoint = token

    async def validate(self, token: str) -> None:
        """Validate a token."""
        await self._validator.validate(token, now=datetime.now(UTC))

    async def refuse(self, token: str) -> None:
        """Have the endpoint refuse a token."""
        headers = {"Authorization": f"Bearer {token}"}
        request = func.HttpRequest("GET", "http://localhost/api/token", headers=headers, body=b"")
        response = await self._endpoint(request, self._context)
        assert response.status_code in {400, 401}


async def measure() -> list[Row]:
    """Measure without a server, and then with one."""
    return [*await _in_process(), *await _live()]


async def _in_process() -> list[Row]:
    here = InProcess()
    audit.logger.propagate = False
    audit.logger.addHandler(logging.NullHandler())
    try:
        with redirect_stdout(io.StringIO()):
            costs = [
                _refusal(f"in process: {name}", await _least_ms(here.refuse, token))
                for name, token in strange_tokens(here.issuer).items()
            ]
            await asyncio.sleep(1.1)  # The line with the counts would disturb the table.
    finally:
        audit.logger.propagate = True
    return [
        await _ratio(here, "typical token", typical_token(here.issuer), bound=3.2),
        await _ratio(here, "token of 20 KiB", large_token(here.issuer), bound=8),
        *costs,
    ]


async def _ratio(here: InProcess, name: str, token: str, *, bound: float) -> Row:
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    public = here.issuer.keys[0].private_key.public_key()

    async def verify(_token: str) -> None:
        public.verify(raw, signed.encode(), padding.PKCS1v15(), SHA256())

    measured = await _least_ms(here.validate, token) / await _least_ms(verify, token)
    what = f"validate(), {name} of {len(token)} characters, against one bare RSA-2048 verification"
    return Row(what, measured, bound, "times", "Microsoft's .NET validator: 1.5 for a typical one")


def _refusal(name: str, milliseconds: float, others: str = "") -> Row:
    return Row(f"CPU of a refusal, {name}", milliseconds, MAX_REFUSAL_MS, "ms", others)


async def _least_ms(call: Callable[[str], Awaitable[None]], token: str) -> float:
    """Return the CPU time of one call: the least of several rounds, as others use the machine."""
    rounds = []
    for _ in range(REPEATS):
        started = time.process_time()
        for _ in range(CALLS):
            await call(token)
        rounds.append((time.process_time() - started) / CALLS * 1000)
        await asyncio.sleep(0)
    return min(rounds)


async def _live() -> list[Row]:
    async with emulators() as stack, functions_host(stack, {}) as host:
        tokens = strange_tokens(stack.entra)
        people = [
            stack.entra.issue_access_token(claims={"oid": str(uuid.uuid4())}) for _ in range(PEOPLE)
        ]
        async with aiohttp.ClientSession() as app:
            for person in people:
                await _call(app, "POST", host, person)
            lines = _Lines(host)
            rounds = [await _growth(app, host, people, tokens) for _ in range(ROUNDS)]
            found = await lines.rows(len(rounds) * WINDOWS * _in_window(FLOOD_PER_SECOND))
        what = f"p99 of people's requests, with {FLOOD_PER_SECOND} refusals a second"
        growth = Row(f"{what}, against without", min(rounds), 1.5, "times")
        own = await _live_ms(host, "health", "")
        costs = [
            _live_row(name, await _live_ms(host, "token", token) - own, own)
            for name, token in tokens.items()
        ]
        return [*costs, growth, *found]


async def _call(app: aiohttp.ClientSession, method: str, host: FunctionsHost, token: str) -> float:
    """Ask for somebody's identity, and return how many seconds the answer took."""
    started = time.perf_counter()
    headers = {"Authorization": f"Bearer {token}"}
    async with app.request(method, f"{host.url}/api/user", headers=headers) as response:
        await response.read()
        response.raise_for_status()
    return time.perf_counter() - started


async def _growth(
    app: aiohttp.ClientSession, host: FunctionsHost, people: list[str], tokens: dict[str, str]
) -> float:
    """Return by how much the p99 of people's requests grows in a flood; the windows take turns."""
    quiet, flooded = [], []
    for _ in range(WINDOWS):
        quiet += await _of_people(app, host, people)
        sending = asyncio.create_task(
            _flood(host, list(tokens.values()), _in_window(FLOOD_PER_SECOND), rate=FLOOD_PER_SECOND)
        )
        flooded += await _of_people(app, host, people)
        await sending
    return _p99(flooded) / _p99(quiet)


def _in_window(per_second: int) -> int:
    return int(per_second * WINDOW)


async def _of_people(
    app: aiohttp.ClientSession, host: FunctionsHost, people: list[str]
) -> list[float]:
    calls = []
    for _ in range(_in_window(PEOPLE_PER_SECOND)):
        people.append(people.pop(0))
        calls.append(asyncio.create_task(_call(app, "GET", host, people[-1])))
        await asyncio.sleep(1 / PEOPLE_PER_SECOND)
    return await asyncio.gather(*calls)


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[-1]


async def _live_ms(host: FunctionsHost, route: str, token: str) -> float:
    """Return the CPU time that the host's process takes for one request."""
    costs = []
    for _ in range(2):
        before = _cpu_seconds(host.pid)
        await _flood(host, [token], LIVE_CALLS, rate=0, route=route)
        costs.append((_cpu_seconds(host.pid) - before) / LIVE_CALLS * 1000)
    return min(costs)


def _live_row(name: str, milliseconds: float, own: float) -> Row:
    return _refusal(f"live: {name}", milliseconds, f"with the host {milliseconds + own:.2f}")


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used (Linux only, see proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _flood(
    host: FunctionsHost, tokens: list[str], count: int, *, rate: float, route: str = "token"
) -> None:
    command = ["-m", "tests.pressure.flood", f"{host.url}/api/{route}", str(count), str(rate)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command), cwd=REPOSITORY, stdin=PIPE, stdout=PIPE
    )
    try:
        printed, _ = await process.communicate("\n".join(tokens).encode())
    except BaseException:
        process.kill()
        raise
    expected = {"200"} if route == "health" else {"400", "401"}
    assert expected >= json.loads(printed).keys(), printed


class _Lines:
    """The audit lines of a flood of strangers."""

    def __init__(self, host: FunctionsHost) -> None:
        self._host = host
        self._before = len(host.output)

    async def rows(self, refusals: int) -> list[Row]:
        """Return what was written for so many refusals."""
        await asyncio.sleep(1.5)  # What was counted is written after a second.
        printed = self._host.output[self._before :]
        lines = [line[line.index("{") :] for line in printed if '"event": "request' in line]
        written = [json.loads(line) for line in lines]
        known = sum(line.get("requests", 1) for line in written)
        size = sum(len(line) + HOST_COLUMNS for line in lines)
        return [
            Row("refusals in the flood that no line counts", refusals - known, 0, "requests"),
            Row("log bytes for each of them", size / refusals, 50, "bytes"),
        ]

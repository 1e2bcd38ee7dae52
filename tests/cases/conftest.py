"""What the cases share: one running stack for each process, and a look at whether it was touched.

`service` is what most cases need: `refuses` sends variants of a token, and checks the answers and
that nothing has happened; `accepts` sends variants that must be served.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from local.entra.directory import DAEMON, WEB_APP
from local.serving.application import serve
from local.stack import REPOSITORY, emulators, functions_host
from shared.entra.access_tokens import AccessTokenValidator
from shared.entra.signing_keys import SigningKeys
from shared.settings import Settings
from tests.cases.catalogue import id_of_test
from tests.cases.key_server import KeyServer
from tests.cases.odd_keys import publish_odd_keys
from tests.cases.service import Service
from tests.emulated import BackgroundLoop
from tests.running import Client, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from local.entra.emulator import EntraEmulator
    from local.entra.tokens import SigningKey
    from local.stack import Stack
    from shared.settings import EntraSettings
    from tests.cases.odd_keys import OddKey

# In addition to the example's settings, so that every refusal can happen.
SETTINGS = {"ENTRA_ALLOWED_CLIENT_IDS": f"{WEB_APP.client_id},{DAEMON.client_id}"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the cases in two processes, since starting a stack takes time."""
    for item in items:
        case_id = id_of_test(item.name)
        if Path(__file__).parent in item.path.parents and case_id is not None:
            part = "tokens" if case_id[0] in "ABCDEM" else "services"
            item.add_marker(pytest.mark.xdist_group(f"cases-{part}"))


@dataclass(frozen=True, slots=True)
class Emulated:
    """Running emulators, and what the local Entra publishes from the start."""

    background: BackgroundLoop
    stack: Stack
    odd_keys: dict[str, OddKey]
    published: list[SigningKey]


@pytest.fixture(scope="session")
def emulated() -> Iterator[Emulated]:
    """Everything but the functions host."""
    background = BackgroundLoop()
    try:
        stack = background.enter(emulators())
        odd_keys = publish_odd_keys(stack.entra)
        yield Emulated(background, stack, odd_keys, list(stack.entra.keys))
    finally:
        background.close()


@pytest.fixture(scope="session")
def running(emulated: Emulated) -> Running:
    """The stack, with access keys, over HTTP."""
    host = emulated.background.enter(functions_host(emulated.stack, SETTINGS))
    running = Running(emulated.stack, host, emulated.background)
    emulated.background.run(fetch_keys(running))
    return running


async def fetch_keys(running: Running) -> None:
    """Have the host fetch Entra's keys, and keep them, before a case counts what it does."""
    async with aiohttp.ClientSession() as session:
        service = Service(running, Client(session, running.host.url))
        answer = await service.app.get("/api/user", running.token_of_new_person())
        assert 404 == answer.status, answer
        await service.settled()


@pytest.fixture
def entra(emulated: Emulated) -> EntraEmulator:
    """The local Entra, which signs whatever it is asked to."""
    return emulated.stack.entra


@pytest.fixture
def odd_keys(emulated: Emulated) -> dict[str, OddKey]:
    """The keys that Entra publishes beside its own."""
    return emulated.odd_keys


@pytest.fixture
async def service(emulated: Emulated, running: Running) -> AsyncIterator[Service]:
    """The broker as a stranger meets it, with emulators that work and count."""
    stack = running.stack
    for emulator in (stack.entra, stack.acs, stack.tables, stack.blobs):
        emulator.faults.clear()
    stack.tables.clock = None
    stack.entra.keys[:] = emulated.published
    async with aiohttp.ClientSession() as session:
        yield Service(running, Client(session, running.host.url))


@pytest.fixture
async def another_service(
    emulated: Emulated,
    service: Service,  # noqa: ARG001 - it starts with services that work
) -> AsyncIterator[Callable[..., Awaitable[Service]]]:
    """Return a function that starts the broker once more, with other settings, for this test.

    Or another app: that in a folder.
    """
    background = emulated.background
    async with AsyncExitStack() as hosts:

        async def start(folder: Path = REPOSITORY, /, **settings: str) -> Service:
            context = functions_host(emulated.stack, {**SETTINGS, **settings}, folder=folder)
            host = background.run(context.__aenter__())
            hosts.callback(lambda: background.run(context.__aexit__(None, None, None)))
            session = await hosts.enter_async_context(aiohttp.ClientSession())
            running = Running(emulated.stack, host, background)
            return Service(running, Client(session, host.url))

        yield start


@pytest.fixture
async def key_server(entra_keys: list[SigningKey]) -> AsyncIterator[KeyServer]:
    """An Entra of the test's own, running."""
    server = KeyServer(entra_keys)
    async with server.serve():
        yield server


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A server of an attacker's: its URL, and the paths that it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    """A server that nobody should ever ask for anything."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"keys": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with serve(app) as url:
        yield Elsewhere(url, asked)


@pytest.fixture
async def signing_keys(emulated: Emulated) -> AsyncIterator[SigningKeys]:
    """The broker's store of keys, in this process."""
    async with aiohttp.ClientSession() as session:
        keys = SigningKeys(
            session=session, authority=emulated.stack.entra.url, keys_of="organizations"
        )
        yield keys
        keys.close()


@pytest.fixture
def entra_settings(emulated: Emulated) -> EntraSettings:
    """The settings of the running stack."""
    values = json.loads(emulated.stack.settings.read_text("utf-8"))["Values"]
    return Settings.from_env(values | SETTINGS).entra


@pytest.fixture
def validator(entra_settings: EntraSettings, signing_keys: SigningKeys) -> AccessTokenValidator:
    """The broker's validator, in this process, for what HTTP cannot carry."""
    return AccessTokenValidator(settings=entra_settings, keys=signing_keys)

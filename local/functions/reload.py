"""Takes up edits of an app, as `func start` does: each time, a new process serves it.

This process opens the port and hands it on, so no request is refused in between: it waits. While
the app does not start, requests get the answer of a Functions host that is not running.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from local.functions.http import failure
from local.functions.serving import stop_on_signals

if TYPE_CHECKING:
    import socket
    import ssl
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    Versions = dict[Path, tuple[int, int]]

POLL_SECONDS = 0.3
STOP_SECONDS = 12  # Longer than the host waits for requests in flight.


class Watch:
    """The files of an app, its settings among them, and which of them have changed."""

    def __init__(self, folder: Path, settings: Path) -> None:
        self._folder = folder
        self._settings = settings
        self._known = self._versions()

    async def changes(self) -> list[str]:
        """Wait until files have changed and are at rest again; return their names."""
        seen = self._known
        while True:
            await asyncio.sleep(POLL_SECONDS)
            before, seen = seen, self._versions()
            if seen == before != self._known:
                break
        changed = {path for path, _ in seen.items() ^ self._known.items()}
        self._known = seen
        return sorted(self._name(path) for path in changed)

    def _versions(self) -> Versions:
        app = [self._folder / "function_app.py", self._folder / "host.json", self._settings]
        shared = (self._folder / "shared").rglob("*")
        versions = {}
        for path in (*app, *(path for path in shared if path.suffix in {".py", ".json"})):
            with suppress(OSError):  # It is not there, or no longer.
                status = path.stat()
                versions[path] = (status.st_mtime_ns, status.st_size)
        return versions

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder) if self._folder in path.parents else path)


async def serve_and_reload(
    host_arguments: Sequence[str], watch: Watch, listener: socket.socket, tls: ssl.SSLContext | None
) -> int:
    """Serve an app until SIGINT or SIGTERM, anew after each edit.

    If the app ends, so does this, but after an edit the next one is awaited.

    Args:
        host_arguments: those of the host that serves, but for the socket.
        watch: the files whose edits count.
        listener: the socket that the host is given.
        tls: the TLS settings that the host will have.
    """
    stop = asyncio.ensure_future(stop_on_signals().wait())
    edited = False
    while True:
        change = asyncio.create_task(watch.changes())
        async with _host(host_arguments, listener) as host:
            ended = asyncio.create_task(host.wait())
            await asyncio.wait({stop, change, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not edited and not stop.done() and not change.done():
                return await ended
        if not stop.done() and not change.done():
            print("The app is not served. The next edit starts it again.", flush=True)
            async with _offline(listener, tls):
                await asyncio.wait({stop, change}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            return 0
        print(f"\nStarting again, after an edit of {', '.join(change.result())}", flush=True)
        edited = True


@asynccontextmanager
async def _host(arguments: Sequence[str], listener: socket.socket) -> AsyncIterator[Process]:
    """Run a host while the context lasts; requests in flight finish."""
    number = listener.fileno()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local.functions.host", *arguments, "--socket", str(number)),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=[number],
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _offline(listener: socket.socket, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Answer for a host that is not running, while the context lasts."""

    async def answer(_request: web.BaseRequest) -> web.Response:
        return failure(HTTPStatus.SERVICE_UNAVAILABLE)

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, listener.dup(), ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()

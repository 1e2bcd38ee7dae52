"""Serves an app's host until it is told to stop, and says what it serves."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

from aiohttp import web

from local.functions.app import AppError
from local.serving.application import LOOPBACK

if TYPE_CHECKING:
    import ssl

    from local.functions.host import Host

HEADERS_LIMIT = 32768  # Kestrel's MaxRequestHeadersTotalSize.
SHUTDOWN_SECONDS = 10.0  # For requests in flight to finish.


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback; port 0 takes a free one.

    Raises:
        AppError: the port is taken.
    """
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as exc:
        raise AppError(f"port {port} cannot be opened: {exc.strerror}") from exc


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    return stop


async def serve_until_stopped(
    host: Host, listener: socket.socket, tls: ssl.SSLContext | None
) -> None:
    """Serve until SIGINT or SIGTERM, then let requests in flight finish."""
    stop = stop_on_signals()
    runner = web.AppRunner(
        host.application(),
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        max_field_size=2 * HEADERS_LIMIT,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, ssl_context=tls).start()
        announce(host, f"{'https' if tls else 'http'}://{LOOPBACK}:{listener.getsockname()[1]}")
        await stop.wait()
    finally:
        await runner.cleanup()


def announce(host: Host, url: str) -> None:
    """Print the functions and their URLs as `func start` does, then a line for programs to read."""
    print("Functions:\n")
    for function in host.functions:
        if function.route:
            methods = ",".join(sorted(function.methods)) or "all"
            print(f"    {function.name}: [{methods}] {url}/{function.route.template}")
        else:
            print(f"    {function.name}: timerTrigger, not run on schedule here; to run it now:")
            print("        curl -X POST -H 'Content-Type: application/json' -d '{}' \\")
            print(f"            {url}/admin/functions/{function.name}")
    print(f"\nready {url}", flush=True)

"""Serves an aiohttp application on loopback, with or without TLS."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def serve(
    app: web.Application, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve an application while the context lasts; yields its URL without a trailing slash.

    Port 0 takes a free one.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, LOOPBACK, port, ssl_context=tls)
    try:
        await site.start()
        bound = runner.addresses[0][1]
        yield f"{'https' if tls else 'http'}://{LOOPBACK}:{bound}"
    finally:
        # A TLS client that keeps its connection open would keep our side waiting for its shutdown.
        connections = runner.server.connections if runner.server else []
        transports = [connection.transport for connection in connections]
        await runner.cleanup()
        for transport in transports:
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)

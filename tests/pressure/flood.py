"""Send requests with strange tokens to one URL, from a process of its own.

    python -m tests.pressure.flood URL COUNT RATE < TOKENS

TOKENS has one token in each line; they take turns. RATE is requests a second; 0 sends them as fast
as they are answered. It prints how many answers there were with each status, as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from collections import Counter
from urllib.parse import urlsplit

CONNECTIONS = 4
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Sends one request at a time over a connection that stays open, and counts the statuses."""

    def __init__(self, idle: asyncio.Queue[Connection], statuses: Counter[str]) -> None:
        self._idle = idle
        self._statuses = statuses
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready to send."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._idle.put_nowait(self)

    def send(self, request: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Count an answer, and be ready again, once it is complete."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if found and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            self._statuses[head.split(maxsplit=2)[1].decode()] += 1
            self._idle.put_nowait(self)


async def flood(url: str, tokens: list[str], *, count: int, rate: float) -> Counter[str]:
    """Send so many requests, and return how many answers had each status."""
    at = urlsplit(url)
    assert at.hostname
    assert at.port
    head = f"GET {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer "
    requests = itertools.cycle([f"{head}{token}\r\n\r\n".encode() for token in tokens])
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    statuses: Counter[str] = Counter()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: Connection(idle, statuses), at.hostname, at.port)
    started = loop.time()
    for number in range(count):
        if rate:
            await asyncio.sleep(max(0, started + number / rate - loop.time()))
        (await idle.get()).send(next(requests))
    for _ in range(CONNECTIONS):
        await idle.get()
    return statuses


if __name__ == "__main__":
    where, how_many, how_fast = sys.argv[1:]
    sent = flood(where, sys.stdin.read().split("\n"), count=int(how_many), rate=float(how_fast))
    sys.stdout.write(json.dumps(asyncio.run(sent)))

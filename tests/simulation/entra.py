"""Entra's signing keys in virtual time: what the key store's HTTP session is given.

The key store's own code runs on it, down to the reading of the documents.
"""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import aiohttp

from local.entra.tokens import CLOUD
from local.entra.tokens import SigningKey as EntraKey
from shared.entra.signing_keys import SigningKeys
from shared.errors import InvalidTokenError, KeysUnavailableError
from tests.simulation.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from shared.entra.kept_keys import Documents

AUTHORITY = "https://login.test"
ISSUER = f"{AUTHORITY}/{{tenantid}}/v2.0"
TENANT = "7e4a4700-0000-4000-8000-00000000000a"
EPOCH = 1_800_000_000  # The Unix time at which the virtual time begins.
LATENCY = 0.05
METADATA = {
    "issuer": ISSUER,
    "jwks_uri": f"{AUTHORITY}/organizations/discovery/v2.0/keys",
    "cloud_instance_name": CLOUD,
}


@functools.cache
def public_key() -> dict[str, Any]:
    """A key that takes a while to make. It is published under every id."""
    return EntraKey.generate().jwk(issuer=ISSUER, cloud_instance_name=CLOUD)


class Answer:
    """As much of an `aiohttp.ClientResponse` as is read."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = self
        self._body = body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._body


class Entra:
    """Publishes keys, unless it is out of reach.

    Args:
        loop: whose time it lives in.

    Attributes:
        key_ids: which keys it has now.
        away_until: before then, nobody reaches it.
        hangs: while it is away, requests get no answer, rather than a refusal.
        busy_until: before then, it answers 429.
        retry_after: what it says about how long that lasts.
        asked_at: when each fetch began.
        says_date: whether its answers have a date.
        unusable: what else is in its set.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.key_ids = ["old"]
        self.away_until = float("-inf")
        self.hangs = False
        self.busy_until = float("-inf")
        self.retry_after = ""
        self.asked_at: list[float] = []
        self.says_date = True
        self.unusable: list[dict[str, Any]] = []

    @property
    def now(self) -> int:
        """The Unix time."""
        return EPOCH + int(self._loop.now)

    @asynccontextmanager
    async def get(self, url: str, **_options: Any) -> AsyncIterator[Answer]:
        """Answer a request, as `aiohttp.ClientSession.get` does."""
        is_metadata = url.endswith("openid-configuration")
        if is_metadata:
            self.asked_at.append(self._loop.now)
        if self._loop.now < self.away_until:
            await asyncio.sleep(1000 if self.hangs else LATENCY)
            raise aiohttp.ServerDisconnectedError
        await asyncio.sleep(LATENCY)
        headers = {"Date": formatdate(self.now, usegmt=True)} if self.says_date else {}
        if self._loop.now < self.busy_until:
            yield Answer(429, headers | {"Retry-After": self.retry_after}, b"")
            return
        published = [public_key() | {"kid": key_id} for key_id in self.key_ids]
        keys = {"keys": [*published, *self.unusable]}
        yield Answer(200, headers, json.dumps(METADATA if is_metadata else keys).encode())


def token(entra: Entra, object_id: str | None = None, *, issued: float = 0) -> bytes:
    """Return a payload that says that it was issued now, or so many seconds from now."""
    claims = {
        "iat": entra.now + int(issued),
        "tid": TENANT,
        "oid": object_id or str(uuid.uuid4()),
    }
    return json.dumps(claims).encode()


async def ask(keys: SigningKeys, key_id: str, payload: bytes) -> int:
    """Return the status of an answer about a token."""
    try:
        await keys.get(key_id, payload)
    except InvalidTokenError:
        return 401
    except KeysUnavailableError:
        return 503
    return 200


def in_virtual_time(
    work: Callable[[SigningKeys, Entra], Coroutine[Any, Any, Any]],
    documents: Documents | None = None,
) -> Any:
    """Return what work with a key store returns that has just been started."""
    loop = VirtualLoop()
    entra = Entra(loop)

    async def run() -> Any:
        session: Any = entra
        keys = SigningKeys(
            session=session,
            authority=AUTHORITY,
            keys_of="organizations",
            documents=documents,
            clock=loop.time,
        )
        try:
            return await work(keys, entra)
        finally:
            keys.close()

    return loop.run(run())

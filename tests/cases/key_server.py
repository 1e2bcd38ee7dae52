"""An Entra of a case's own, which answers in any way that a server can."""

from __future__ import annotations

import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from local.entra.emulator import EntraEmulator
from local.entra.tokens import CLOUD
from local.serving.application import serve

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from local.entra.tokens import SigningKey
    from local.serving.faults import Handler

    Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

METADATA, KEYS = "openid_configuration", "jwks"
ALWAYS = 1_000_000


class KeyServer:
    """Serves metadata and keys, unless a case has spoilt it."""

    def __init__(self, keys: Iterable[SigningKey]) -> None:
        self.entra = EntraEmulator(keys=keys)
        self.requests = 0  # Those that `answer_with` has answered.
        self._answer: Answer | None = None

    @asynccontextmanager
    async def serve(
        self, *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[str]:
        """Serve while the context lasts; yields the authority's URL."""
        app = self.entra.application()
        app.middlewares.insert(0, self._intercept)
        async with serve(app, port=port, tls=tls) as url:
            self.entra.url = url
            yield url

    @property
    def url(self) -> str:
        """The authority's URL."""
        return self.entra.url

    @property
    def fetches(self) -> int:
        """How often somebody has begun to fetch the keys since `heal`."""
        return self.entra.faults.count(METADATA)

    def token(self, object_id: str | None = None, **claims: Any) -> str:
        """Return a good access token, of a new person if no other is named."""
        named = {"oid": object_id or str(uuid.uuid4()), **claims}
        return self.entra.issue_access_token(claims=named)

    def token_of_key(self, key: SigningKey, object_id: str | None = None, *, age: int = 0) -> str:
        """Return an access token signed with a key that need not be published, so old in seconds.

        A token that is just issued proves nothing by its key: Entra may have published that since
        the keys were fetched.
        """
        issued = int(time.time()) - age
        claims = {"oid": object_id or str(uuid.uuid4()), "iat": issued, "nbf": issued}
        return self.entra.issue_access_token(
            claims=claims, header={"kid": key.kid}, key=key.private_key
        )

    def metadata(self, **changes: Any) -> dict[str, Any]:
        """Return the metadata document, with changes."""
        return {
            "issuer": f"{self.url}/{{tenantid}}/v2.0",
            "jwks_uri": f"{self.url}/organizations/discovery/v2.0/keys",
            "cloud_instance_name": CLOUD,
        } | changes

    def spoil(self, document: str, **fault: Any) -> None:
        """Answer with a fault (local/serving/faults.py) whenever a document is asked for."""
        self.entra.faults.fail_next(document, times=ALWAYS, **fault)

    def answer_with(self, answer: Answer) -> None:
        """Answer every request with a function of the case."""
        self._answer = answer

    def heal(self) -> None:
        """Answer as Entra does from now on, and count from zero."""
        self._answer, self.requests = None, 0
        self.entra.faults.clear()

    @web.middleware
    async def _intercept(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._answer is None:
            return await handler(request)
        self.requests += 1
        return await self._answer(request)

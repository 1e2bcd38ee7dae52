"""Who has a role on an Azure resource.

At the start these are the managed identities of the local Entra. Roles can be given and taken away
in tests, and over HTTP:

    curl -X DELETE http://127.0.0.1:7073/_local/roles -d '{"principal": "<object id>"}'
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

from local.entra.directory import IDENTITIES

if TYPE_CHECKING:
    from collections.abc import Mapping


class Roles:
    """The principals that have the role which opens a resource, named by their object ids."""

    def __init__(self) -> None:
        self._holders = {identity.principal_id for identity in IDENTITIES}

    def give(self, principal: str) -> None:
        """Give a user or an app the role."""
        self._holders.add(principal)

    def take(self, principal: str) -> None:
        """Take the role away, if the principal has it."""
        self._holders.discard(principal)

    def allow(self, claims: Mapping[str, Any]) -> bool:
        """Return whether a token is that of somebody with the role."""
        return claims.get("oid") in self._holders

    def routes(self) -> list[web.RouteDef]:
        """Return the HTTP routes that let other processes change who has the role."""
        return [
            web.get("/_local/roles", self._get),
            web.post("/_local/roles", self._change),
            web.delete("/_local/roles", self._change),
        ]

    async def _get(self, _request: web.Request) -> web.Response:
        return web.json_response(sorted(self._holders))

    async def _change(self, request: web.Request) -> web.Response:
        try:
            principal = str(uuid.UUID(json.loads(await request.text())["principal"]))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            return web.Response(status=400, text=f"That is not a principal: {exc!r}\n")
        change = self.give if request.method == "POST" else self.take
        change(principal)
        return web.Response(status=204)

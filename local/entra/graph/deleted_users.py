"""The part of Microsoft Graph that lists deleted users.

https://learn.microsoft.com/graph/api/directory-deleteditems-list
"""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web

from local.entra.graph.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.objects import Tenant
    from local.entra.tokens import TokenIssuer

KEPT = timedelta(days=30)
PROPERTIES = frozenset({"id", "deletedDateTime"})
DEFAULT_SIZE, LARGEST_SIZE = 100, 999


class DeletedUsers:
    """Who was deleted when, in each tenant."""

    def __init__(self, entra: TokenIssuer) -> None:
        self._entra = entra
        self._deleted: dict[Tenant, dict[str, datetime]] = {}

    def delete(self, tenant: Tenant, object_id: str, *, on: datetime | None = None) -> None:
        """Delete a user, who then can no longer sign in; by default, now.

        The id need not be one of the directory: access tokens are issued for any `oid`, too.
        """
        deleted = self._deleted.setdefault(tenant, {})
        deleted[object_id] = on or datetime.now(UTC)
        self._entra.directory.forget(tenant, object_id)

    async def delete_on_command(self, request: web.Request) -> web.Response:
        """Delete the user that a JSON object names: `tenant`, `object_id` and perhaps `on`."""
        try:
            body = await request.json()
            tenant = self._entra.directory.tenant(body["tenant"])
            on = datetime.fromisoformat(body["on"]) if "on" in body else datetime.now(UTC)
            object_id = str(uuid.UUID(body["object_id"]))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            return web.Response(status=400, text=f"No user can be deleted like this: {exc!r}\n")
        if tenant is None or on.tzinfo is None:
            return web.Response(status=400, text="The tenant or the time zone is unknown.\n")
        self.delete(tenant, object_id, on=on)
        return web.Response(status=204)

    def list(self, request: web.Request, tenant: Tenant) -> web.Response:
        """Answer with a page of the users who can still be restored."""
        if request.match_info["cast"] != "microsoft.graph.user":
            raise GraphError(404, "Request_ResourceNotFound", "Only users can be listed here.")
        size, after = _page(request.query)
        now = datetime.now(UTC)
        deleted = self._deleted.get(tenant, {})
        kept = sorted(each for each, on in deleted.items() if now - on < KEPT)
        page = list(islice((each for each in kept if each > after), size))
        body: dict[str, Any] = {
            "@odata.context": f"{self._entra.url}/v1.0/$metadata#users(id,deletedDateTime)",
            "value": [
                {
                    "id": each,
                    "deletedDateTime": f"{deleted[each].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
                }
                for each in page
            ],
        }
        if page and page[-1] != kept[-1]:
            skip = base64.urlsafe_b64encode(page[-1].encode()).decode()
            query = urlencode({**request.query, "$skiptoken": skip}, safe="$,")
            body["@odata.nextLink"] = f"{self._entra.url}{request.path}?{query}"
        return web.json_response(body)


def _page(query: Mapping[str, str]) -> tuple[int, str]:
    """Return how many users are asked for, and after which one they begin."""
    selected = set(query.get("$select", "id,deletedDateTime").split(","))
    top = query.get("$top", str(DEFAULT_SIZE))
    known = {"$select", "$top", "$skiptoken"}
    if not known.issuperset(query) or not PROPERTIES.issuperset(selected):
        raise GraphError(400, "Request_UnsupportedQuery", "This query is not emulated.")
    if not top.isdecimal() or not 1 <= int(top) <= LARGEST_SIZE:
        raise GraphError(400, "Request_UnsupportedQuery", f"Invalid page size: '{top}'.")
    return int(top), base64.urlsafe_b64decode(query.get("$skiptoken", "")).decode()

"""The part of Microsoft Graph that lists deleted users.

https://learn.microsoft.com/graph/api/directory-deleteditems-list
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import web

from local.entra.directory import GRAPH
from local.serving.faults import middleware

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.directory import Tenant
    from local.entra.tokens import TokenIssuer
    from local.serving.faults import Faults, Handler

KEPT = timedelta(days=30)
PERMISSION = "User.Read.All"
OPERATION = "deleted_users"
PROPERTIES = frozenset({"id", "deletedDateTime"})
DEFAULT_SIZE, LARGEST_SIZE = 100, 999


class GraphError(Exception):
    """An error of Graph's: a status, a code and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def answer(self) -> web.Response:
        """Return the error as Graph writes it."""
        request_id = str(uuid.uuid4())
        inner = {
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}",
            "request-id": request_id,
            "client-request-id": request_id,
        }
        error = {"code": self.code, "message": str(self), "innerError": inner}
        return web.json_response({"error": error}, status=self.status)


class GraphEmulator:
    """Lists deleted users to apps with the permission; its only operation is `deleted_users`."""

    def __init__(self, entra: TokenIssuer, faults: Faults) -> None:
        self._entra = entra
        self._faults = faults
        self._deleted: dict[Tenant, dict[str, datetime]] = {}

    def application(self) -> web.Application:
        """Return the web application, for the path `/v1.0`."""
        fail = middleware(self._faults, lambda _request: OPERATION, _fault)
        app = web.Application(middlewares=[fail, _answer_errors])
        app.add_routes([web.get("/directory/deletedItems/{cast}", self._list)])
        return app

    def delete(self, tenant: Tenant, object_id: str, *, on: datetime | None = None) -> None:
        """Delete a user, who then can no longer sign in; by default, now.

        The id need not be one of the directory: access tokens are issued for any `oid`, too.
        """
        deleted = self._deleted.setdefault(tenant, {})
        deleted[object_id] = on or datetime.now(UTC)
        directory = self._entra.directory
        left = [u for u in directory.users if (u.tenant, u.object_id) != (tenant, object_id)]
        self._entra.directory = replace(directory, users=tuple(left))

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

    async def _list(self, request: web.Request) -> web.Response:
        tenant = self._authorized(request)
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

    def _authorized(self, request: web.Request) -> Tenant:
        """Return the tenant of an app that has the permission."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            claims = self._entra.verify(token)
        except ValueError:
            claims = {}
        audiences = {GRAPH.client_id, *GRAPH.uris, *(f"{uri}/" for uri in GRAPH.uris)}
        if scheme.lower() != "bearer" or claims.get("aud") not in audiences:
            raise GraphError(401, "InvalidAuthenticationToken", "Access token validation failure.")
        tenant = self._entra.directory.tenant(str(claims["tid"]))
        if tenant is None or PERMISSION not in claims.get("roles", []):
            message = "Insufficient privileges to complete the operation."
            raise GraphError(403, "Authorization_RequestDenied", message)
        return tenant


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


def _fault(status: int) -> web.Response:
    code = {429: "TooManyRequests", 403: "Authorization_RequestDenied"}.get(status)
    return GraphError(status, code or "ServiceNotAvailable", "A fault on command.").answer()


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except GraphError as exc:
        return exc.answer()
    except web.HTTPNotFound:
        return GraphError(400, "BadRequest", "Resource not found for the segment.").answer()

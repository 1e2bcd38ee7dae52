"""The local Microsoft Graph: who may ask it, and which part of it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from local.entra.directory import GRAPH
from local.entra.graph import (
    applications,
    federated_credentials,
    people,
    permission_grants,
    role_assignments,
    service_principals,
)
from local.entra.graph.calls import Call
from local.entra.graph.deleted_users import DeletedUsers
from local.entra.graph.errors import GraphError, denied
from local.serving.faults import middleware

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Any

    from local.entra.graph.calls import Handler
    from local.entra.objects import Tenant
    from local.entra.tokens import TokenIssuer
    from local.serving.faults import Faults
    from local.serving.faults import Handler as WebHandler

MODULES = (
    applications,
    federated_credentials,
    people,
    permission_grants,
    role_assignments,
    service_principals,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """What Graph does for a method and a path, for callers with one of the permissions."""

    method: str
    path: re.Pattern[str]
    permissions: frozenset[str]
    handler: Handler


def _operations() -> list[Operation]:
    return [
        Operation(method, _pattern(path), frozenset(permissions), handler)
        for module in MODULES
        for method, path, permissions, handler in module.OPERATIONS
    ]


def _pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a path such as `applications/{id}`, or with a key `(appId='...')`."""
    keys = r"\(appId='(?P<app_id>[^']*)'\)|\(uniqueName='(?P<unique_name>[^']*)'\)"
    pattern = path.replace("/{id}", rf"(?:/(?P<id>[^/()]+)|{keys})")
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/()]+)", pattern))


# For faults; `graph` is everything else.
OPERATIONS = ("deleted_users", "graph")


class GraphEmulator:
    """Serves Microsoft Graph to callers with a permission."""

    def __init__(self, entra: TokenIssuer, faults: Faults) -> None:
        self._entra = entra
        self._faults = faults
        self._operations = _operations()
        self._deleted = DeletedUsers(entra)

    def application(self) -> web.Application:
        """Return the web application, for the path `/v1.0`."""
        fail = middleware(self._faults, _operation, _fault)
        app = web.Application(middlewares=[fail, _answer_errors])
        app.add_routes(
            [
                web.get("/directory/deletedItems/{cast}", self._list_deleted),
                web.route("*", "/{path:.*}", self._serve),
            ]
        )
        return app

    def delete(self, tenant: Tenant, object_id: str, *, on: datetime | None = None) -> None:
        """Delete a user, who then can no longer sign in; by default, now.

        The id need not be one of the directory: access tokens are issued for any `oid`, too.
        """
        self._deleted.delete(tenant, object_id, on=on)

    async def delete_on_command(self, request: web.Request) -> web.Response:
        """Delete the user that a JSON object names: `tenant`, `object_id` and perhaps `on`."""
        return await self._deleted.delete_on_command(request)

    async def _list_deleted(self, request: web.Request) -> web.Response:
        tenant, _ = self._caller(request, {"User.Read.All"}, for_users=False)
        return self._deleted.list(request, tenant)

    async def _serve(self, request: web.Request) -> web.Response:
        path, known = request.match_info["path"], False
        for operation in self._operations:
            match = operation.path.fullmatch(path)
            known = known or match is not None
            if match is None or operation.method != request.method:
                continue
            tenant, claims = self._caller(request, operation.permissions)
            user = self._entra.directory.user(str(claims["oid"])) if "scp" in claims else None
            writes = operation.method not in {"GET", "HEAD"}
            if user and writes and not user.is_administrator:
                raise denied()
            keys = {name: value for name, value in match.groupdict().items() if value is not None}
            call = Call(
                entra=self._entra,
                tenant=tenant,
                user=user,
                path=request.path,
                query=request.query,
                body=await request.read(),
                prefers=request.headers.get("Prefer", ""),
                keys=keys,
            )
            return operation.handler(call)
        if known:
            raise GraphError(405, "Request_BadRequest", "Specified HTTP method is not allowed.")
        message = f"Resource not found for the segment '{path.split('/')[0]}'."
        raise GraphError(400, "BadRequest", message)

    def _caller(
        self, request: web.Request, permissions: Iterable[str], *, for_users: bool = True
    ) -> tuple[Tenant, dict[str, Any]]:
        """Return the tenant and the claims of a caller who has one of the permissions."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            claims = self._entra.verify(token)
        except ValueError:
            claims = {}
        audiences = {GRAPH.client_id, *GRAPH.uris, *(f"{uri}/" for uri in GRAPH.uris)}
        if scheme.lower() != "bearer" or claims.get("aud") not in audiences:
            raise GraphError(401, "InvalidAuthenticationToken", "Access token validation failure.")
        tenant = self._entra.directory.tenant(str(claims["tid"]))
        held = set(claims.get("roles", [])) if "scp" not in claims or not for_users else set()
        held |= set(str(claims.get("scp", "")).split()) if for_users else set()
        if tenant is None or held.isdisjoint(permissions):
            raise denied()
        return tenant, claims


def _operation(request: web.Request) -> str:
    return "deleted_users" if "/directory/deletedItems" in request.path else "graph"


def _fault(status: int) -> web.Response:
    codes = {
        403: "Authorization_RequestDenied",
        404: "Request_ResourceNotFound",  # As for a while after something was made.
        429: "TooManyRequests",
    }
    code = codes.get(status)
    return GraphError(status, code or "ServiceNotAvailable", "A fault on command.").answer()


@web.middleware
async def _answer_errors(request: web.Request, handler: WebHandler) -> web.StreamResponse:
    try:
        return await handler(request)
    except GraphError as exc:
        return exc.answer()

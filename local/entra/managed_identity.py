"""An emulator of App Service's managed identity endpoint."""

from __future__ import annotations

import hmac
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from aiohttp import web

from local.entra.directory import SYSTEM_ASSIGNED_IDENTITY, USER_ASSIGNED_IDENTITY
from local.entra.tokens import CLIENT_ASSERTION
from local.serving.faults import Faults, middleware

if TYPE_CHECKING:
    from local.entra.objects import ManagedIdentity
    from local.entra.tokens import TokenIssuer

API_VERSION = "2019-08-01"
LIFETIME = timedelta(hours=24)


class ManagedIdentityEmulator:
    """Issues app-only tokens to requests with the right secret in `X-IDENTITY-HEADER`.

    An app's environment has `IDENTITY_ENDPOINT` set to `endpoint`, and `IDENTITY_HEADER` to the
    secret. The only operation is `token`.
    """

    def __init__(self, entra: TokenIssuer, secret: str) -> None:
        self.url = ""
        self.faults = Faults({"token"})
        self._entra = entra
        self._secret = secret

    @property
    def endpoint(self) -> str:
        """The value of `IDENTITY_ENDPOINT`."""
        return f"{self.url}/msi/token"

    def application(self) -> web.Application:
        """Return the web application."""
        fail = middleware(self.faults, _operation, _error)
        app = web.Application(middlewares=[fail])
        app.add_routes([web.get("/msi/token", self._token), *self.faults.routes()])
        return app

    async def _token(self, request: web.Request) -> web.Response:
        secret = request.headers.get("X-IDENTITY-HEADER", "")
        if not hmac.compare_digest(secret.encode(), self._secret.encode()):
            return _error(401, "The X-IDENTITY-HEADER is missing or wrong.")
        asked = request.query
        if asked.get("api-version") != API_VERSION:
            return _error(400, f"The api-version must be {API_VERSION}.")
        resource = self._entra.directory.app(asked.get("resource", ""))
        if resource is None:
            return _error(400, "The resource is missing or unknown.")
        identity = _identity(request)
        if identity is None:
            return _error(400, "No User Assigned or Delegated Managed Identity found.")
        expires_on = int(time.time() + LIFETIME.total_seconds())
        answer = {
            "access_token": self._entra.issue_access_token(
                None,
                client=identity,
                resource=resource,
                audience=asked["resource"],
                authentication=CLIENT_ASSERTION,
                claims={"exp": expires_on},
            ),
            "client_id": identity.client_id,
            "expires_on": str(expires_on),
            "resource": asked["resource"],
            "token_type": "Bearer",
        }
        return web.json_response(answer)


def _identity(request: web.Request) -> ManagedIdentity | None:
    """Return the identity that a request names; by default, the system-assigned one."""
    kinds = ("client_id", "object_id", "mi_res_id")
    names = {request.query[kind].lower() for kind in kinds if kind in request.query}
    if not names:
        return SYSTEM_ASSIGNED_IDENTITY
    for identity in (USER_ASSIGNED_IDENTITY, SYSTEM_ASSIGNED_IDENTITY):
        if names <= {identity.client_id, identity.principal_id, identity.resource_id.lower()}:
            return identity
    return None


def _operation(request: web.Request) -> str | None:
    return "token" if request.path == "/msi/token" else None


def _error(status: int, message: str = "The service is not available.") -> web.Response:
    body = {"statusCode": status, "message": message, "correlationId": str(uuid.uuid4())}
    return web.json_response(body, status=status)

"""An emulator of Microsoft Entra, as far as a sign-in, a token broker and their tests use it."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from local.entra.admin_consent import AdminConsentPages
from local.entra.device_pages import DevicePages
from local.entra.directory import BROKER, WEB_APP
from local.entra.errors import EntraError, required
from local.entra.grants import Grants
from local.entra.graph.emulator import OPERATIONS as GRAPH_OPERATIONS
from local.entra.graph.emulator import GraphEmulator
from local.entra.redirects import form_of
from local.entra.sessions import Sessions
from local.entra.sign_in import SignInPages
from local.entra.tokens import CLOUD
from local.serving.faults import Faults, middleware

if TYPE_CHECKING:
    from collections.abc import Iterable

    from local.entra.state import Directory
    from local.entra.tokens import SigningKey
    from local.serving.faults import Handler

OPERATIONS = {
    "openid-configuration": "openid_configuration",
    "keys": "jwks",
    "authorize": "authorize",
    "token": "token",
    "devicecode": "devicecode",
}
# Of the JSON object that describes a token.
TOKEN_MEMBERS = (
    *("user", "app", "audience", "scopes", "version", "lifetime"),
    *("claims", "header", "authentication"),
)


class EntraEmulator(Grants):
    """Serves metadata, keys, sign-in and tokens; `url` must be set before the first request.

    Microsoft Graph, which has its own host in Azure, is at the same address.
    """

    def __init__(
        self, directory: Directory | None = None, *, keys: Iterable[SigningKey] = ()
    ) -> None:
        super().__init__(directory, keys=keys)
        self.faults = Faults({*OPERATIONS.values(), *GRAPH_OPERATIONS})
        self.graph = GraphEmulator(self, self.faults)
        sessions = Sessions(self)
        pages = (SignInPages, AdminConsentPages, DevicePages)
        self._pages = [each(self, sessions) for each in pages]

    def application(self) -> web.Application:
        """Return the web application."""
        fail = middleware(self.faults, _operation, self._render_fault)
        app = web.Application(middlewares=[_allow_origins, fail, self._answer_errors])
        app.on_startup.append(self._make_keys)
        metadata, keys = self._metadata, self._key_set
        app.add_routes(
            [
                web.post("/_local/keys/roll", self._roll),
                web.post("/_local/token", self._issue),
                web.post("/_local/users/delete", self.graph.delete_on_command),
                web.post("/_local/policies", self._add_policy),
                web.delete("/_local/policies", self._remove_policies),
                *self.faults.routes(),
                web.get("/{tenant}/discovery/instance", self._instance),
                web.get("/{tenant}/.well-known/openid-configuration", partial(metadata, version=1)),
                web.get("/{tenant}/v2.0/.well-known/openid-configuration", metadata),
                web.get("/{tenant}/discovery/keys", partial(keys, version=1)),
                web.get("/{tenant}/discovery/v2.0/keys", keys),
                web.post("/{tenant}/oauth2/v2.0/token", self._token),
                *(route for pages in self._pages for route in pages.routes()),
            ]
        )
        app.add_subapp("/v1.0", self.graph.application())
        return app

    async def _make_keys(self, _app: web.Application) -> None:
        await asyncio.to_thread(lambda: self.keys)

    # Metadata and keys.

    async def _metadata(self, request: web.Request, *, version: int = 2) -> web.Response:
        tenant = self.tenant(request.match_info["tenant"])
        name = tenant.tenant_id if tenant else request.match_info["tenant"]
        base = f"{self.url}/{name}"
        v2 = "/v2.0" if version > 1 else ""
        document = {
            "token_endpoint": f"{base}/oauth2{v2}/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
            "jwks_uri": f"{base if v2 else f'{self.url}/common'}/discovery{v2}/keys",
            "response_modes_supported": ["query", "fragment", "form_post"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "issuer": self.issuer(tenant.tenant_id if tenant else "{tenantid}", version=version),
            "request_uri_parameter_supported": False,
            "userinfo_endpoint": "https://graph.microsoft.com/oidc/userinfo",
            "authorization_endpoint": f"{base}/oauth2{v2}/authorize",
            "device_authorization_endpoint": f"{base}/oauth2{v2}/devicecode",
            "http_logout_supported": True,
            "frontchannel_logout_supported": True,
            "end_session_endpoint": f"{base}/oauth2{v2}/logout",
            "tenant_region_scope": "EU" if tenant else None,
            "cloud_instance_name": CLOUD,
            "cloud_graph_host_name": "graph.windows.net",
            "msgraph_host": "graph.microsoft.com",
            "rbac_url": "https://pas.windows.net",
        }
        return web.json_response(document)

    async def _key_set(self, request: web.Request, *, version: int = 2) -> web.Response:
        tenant = self.tenant(request.match_info["tenant"])
        return web.json_response(self.key_set(tenant, version=version))

    async def _instance(self, request: web.Request) -> web.Response:
        """Answer MSAL's instance discovery: this host is an authority."""
        asked = urlsplit(required(request.query, "authorization_endpoint"))
        own = urlsplit(self.url)
        # MSAL for Python leaves out the port.
        if asked.netloc not in {own.netloc, own.hostname}:
            raise EntraError("invalid_instance", 50049, "Unknown or invalid instance.")
        tenant = asked.path.split("/")[1]
        hosts = [own.netloc, own.hostname]
        metadata = {"preferred_network": own.netloc, "preferred_cache": own.netloc}
        return web.json_response(
            {
                "tenant_discovery_endpoint": (
                    f"{self.url}/{tenant}/v2.0/.well-known/openid-configuration"
                ),
                "api-version": request.query.get("api-version", "1.1"),
                "metadata": [{**metadata, "aliases": hosts}],
            }
        )

    # Tokens.

    async def _token(self, request: web.Request) -> web.Response:
        cross_origin = "Origin" in request.headers
        form = await form_of(request)
        answer = self.redeem(request.match_info["tenant"], form, cross_origin=cross_origin)
        headers = {"Cache-Control": "no-store, no-cache", "Pragma": "no-cache"}
        return web.json_response(answer, headers=headers)

    # Control.

    async def _roll(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        kid = await asyncio.to_thread(self.roll_keys, **body)
        return web.json_response({"kid": kid})

    async def _issue(self, request: web.Request) -> web.Response:
        """Issue the access token that a JSON object describes; `issue_access_token` over HTTP.

        All of its members are optional; `app` and `audience` are client ids, `lifetime` is in
        seconds.
        """
        try:
            body = _token_asked_for(await request.json() if request.can_read_body else {})
            if "lifetime" in body:
                body["lifetime"] = timedelta(seconds=body["lifetime"])
            client = self.directory.app(body.pop("app", WEB_APP.client_id))
            resource = self.directory.app(body.get("audience", BROKER.client_id))
            if client and resource:
                token = self.issue_access_token(client=client, resource=resource, **body)
                return web.json_response({"access_token": token})
            reason = "the app or the audience is unknown"
        except (LookupError, TypeError, ValueError) as exc:
            reason = str(exc)
        return web.Response(status=400, text=f"This token cannot be issued: {reason}\n")

    async def _add_policy(self, request: web.Request) -> web.Response:
        """Want a second factor at the `resource` that a JSON object names, or of one `user`."""
        try:
            body = await request.json()
            resource = self.directory.app(body["resource"])
            user = self.directory.user(body["user"]) if "user" in body else None
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            return web.Response(status=400, text=f"That is not a policy: {exc!r}\n")
        if resource is None or ("user" in body and user is None):
            return web.Response(status=400, text="The resource or the user is unknown.\n")
        return web.json_response({"policy": self.directory.require_step_up(resource, user)})

    async def _remove_policies(self, _request: web.Request) -> web.Response:
        self.directory.policies.clear()
        return web.Response(status=204)

    # Errors.

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except EntraError as exc:
            correlation_id = request.headers.get("client-request-id") or str(uuid.uuid4())
            document = exc.document(self.url, correlation_id)
            return web.json_response(document, status=exc.status)

    def _render_fault(self, status: int) -> web.Response:
        error = "temporarily_unavailable" if status in {429, 503} else "server_error"
        fault = EntraError(error, 90033, "A transient error has occurred. Please try again.")
        return web.json_response(fault.document(self.url, str(uuid.uuid4())), status=status)


def _token_asked_for(body: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    if not isinstance(body, dict) or not body.keys() <= set(TOKEN_MEMBERS):
        raise ValueError(f"the members are {', '.join(TOKEN_MEMBERS)}")
    return body


def _operation(request: web.Request) -> str | None:
    return None if request.path == "/_local/token" else OPERATIONS.get(_last_segment(request))


def _last_segment(request: web.Request) -> str:
    return request.path.rpartition("/")[2]


@web.middleware
async def _allow_origins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let pages of other origins read metadata, keys and tokens, and nothing else."""
    origin = request.headers.get("Origin")
    if origin is None or OPERATIONS.get(_last_segment(request)) in {None, "authorize"}:
        return await handler(request)
    preflight = request.method == "OPTIONS"
    response = web.Response(status=204) if preflight else await handler(request)
    if preflight:
        asked = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Allow-Headers"] = asked
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Vary"] = "Origin"
    return response

"""An emulator of Microsoft Entra, as far as a sign-in, a token broker and their tests use it."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from local.entra.directory import BROKER, DIRECTORY, WEB_APP, is_loopback
from local.entra.grants import EntraError, Grants, SignIn, Wanted, client_info, required
from local.entra.graph import GraphEmulator
from local.entra.pages import form_post_page, message_page, sign_in_page
from local.entra.tokens import CLOUD
from local.serving.faults import Faults, middleware

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from local.entra.directory import App, Directory, Tenant, User
    from local.entra.tokens import SigningKey
    from local.serving.faults import Handler

OPERATIONS = {
    "openid-configuration": "openid_configuration",
    "keys": "jwks",
    "authorize": "authorize",
    "token": "token",
}
SESSION_COOKIE = "ESTSAUTH"


class EntraEmulator(Grants):
    """Serves metadata, keys, sign-in and tokens; `url` must be set before the first request.

    Microsoft Graph, which has its own host in Azure, is at the same address.
    """

    def __init__(
        self, directory: Directory = DIRECTORY, *, keys: Iterable[SigningKey] = ()
    ) -> None:
        super().__init__(directory, keys=keys)
        self.faults = Faults()
        self.graph = GraphEmulator(self, self.faults)
        self._sessions: dict[str, User] = {}

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
                *self.faults.routes(),
                web.get("/{tenant}/discovery/instance", self._instance),
                web.get("/{tenant}/.well-known/openid-configuration", partial(metadata, version=1)),
                web.get("/{tenant}/v2.0/.well-known/openid-configuration", metadata),
                web.get("/{tenant}/discovery/keys", partial(keys, version=1)),
                web.get("/{tenant}/discovery/v2.0/keys", keys),
                web.route("*", "/{tenant}/oauth2/v2.0/authorize", self._authorize),
                web.post("/{tenant}/oauth2/v2.0/token", self._token),
                web.get("/{tenant}/oauth2/v2.0/logout", self._log_out),
                web.get("/{tenant}/adminconsent", self._consent),
                web.get("/{tenant}/v2.0/adminconsent", self._consent),
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

    # Sign-in.

    async def _authorize(self, request: web.Request) -> web.Response:
        """Ask who signs in, unless the browser has a session, and redirect with a code."""
        params = {**request.query, **await _form(request)}
        try:
            tenant = self.tenant(request.match_info["tenant"])
            client = self.client(params, tenant)
            redirect_uri = _redirect_uri(params, known=client.platform is not None)
        except EntraError as exc:
            return message_page("Sign-in failed", str(exc), status=exc.status)
        try:
            _check(params)
            Wanted.parse(required(params, "scope"), self.directory, tenant)
            user = self._who(request, params, tenant)
        except EntraError as exc:
            return _go_back(redirect_uri, params, exc.redirected())
        if user is None:
            return sign_in_page(self._choices(tenant), params, app=client.name)
        return self._signed_in(user, client, redirect_uri, params)

    def _signed_in(
        self, user: User, client: App, redirect_uri: str, params: Mapping[str, str]
    ) -> web.Response:
        """Start a session for the browser, and redirect with a code."""
        nonce, challenge = params.get("nonce", ""), params["code_challenge"]
        code = self.new_code(SignIn(user, client, params["scope"], redirect_uri, nonce, challenge))
        answer = {"code": code, "client_info": client_info(user)}
        answer["session_state"] = str(uuid.uuid4())
        session = secrets.token_urlsafe(32)
        self._sessions[session] = user.account
        response = _go_back(redirect_uri, params, answer)
        # With SameSite=None, which needs TLS, a page of another origin can sign in in a frame.
        secure = self.url.startswith("https:")
        site = "None" if secure else "Lax"
        response.set_cookie(SESSION_COOKIE, session, secure=secure, httponly=True, samesite=site)
        return response

    def _choices(self, tenant: Tenant | None) -> list[User]:
        """Return who can sign in: the users of the tenant or, without one, all but guests."""
        if tenant is None:
            return [user for user in self.directory.users if user.guest_of is None]
        return [user for user in self.directory.users if user.tenant == tenant]

    def _who(
        self, request: web.Request, params: Mapping[str, str], tenant: Tenant | None
    ) -> User | None:
        """Return the user who was chosen or is signed in already, or None to show the page."""
        choices = self._choices(tenant)
        chosen = (user for user in choices if user.object_id == params.get("account"))
        user = next(chosen, None)
        prompt = params.get("prompt")
        if user or prompt in {"login", "select_account"}:
            return user
        session = self._sessions.get(request.cookies.get(SESSION_COOKIE, ""))
        if session and params.get("login_hint", session.user_name).lower() == session.user_name:
            user = next((user for user in choices if user.account == session), None)
        if user is None and prompt == "none":
            message = "A silent sign-in request was sent but no user is signed in."
            raise EntraError("login_required", 50058, message)
        return user

    async def _log_out(self, request: web.Request) -> web.Response:
        self._sessions.pop(request.cookies.get(SESSION_COOKIE, ""), None)
        response = message_page("Signed out", "You can close this page.")
        back = request.query.get("post_logout_redirect_uri", "")
        if is_loopback(back):
            response = _go_back(back, request.query, {})
        response.del_cookie(SESSION_COOKIE)
        return response

    async def _consent(self, request: web.Request) -> web.Response:
        """Grant consent, as an administrator would on Entra's page."""
        tenant = self.tenant(request.match_info["tenant"]) or self.directory.tenants[0]
        self.client(request.query, tenant)
        redirect_uri = _redirect_uri(request.query, known=True)
        answer = {"admin_consent": "True", "tenant": tenant.tenant_id}
        scope = {"scope": request.query["scope"]} if "scope" in request.query else {}
        return _go_back(redirect_uri, request.query, answer | scope)

    # Tokens.

    async def _token(self, request: web.Request) -> web.Response:
        cross_origin = "Origin" in request.headers
        form = await _form(request)
        answer = self.redeem(request.match_info["tenant"], form, cross_origin=cross_origin)
        headers = {"Cache-Control": "no-store, no-cache", "Pragma": "no-cache"}
        return web.json_response(answer, headers=headers)

    # Control.

    async def _roll(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        kid = await asyncio.to_thread(self.roll_keys, **body)
        return web.json_response({"kid": kid})

    async def _issue(self, request: web.Request) -> web.Response:
        """Issue the access token that a JSON object describes; `issue_access_token` over HTTP."""
        body: dict[str, Any] = await request.json() if request.can_read_body else {}
        try:
            if "lifetime" in body:
                body["lifetime"] = timedelta(seconds=body["lifetime"])
            client = self.directory.app(body.pop("app", WEB_APP.client_id))
            resource = self.directory.app(body.get("audience", BROKER.client_id))
            if client and resource:
                token = self.issue_access_token(client=client, resource=resource, **body)
                return web.json_response({"access_token": token})
            reason = "the app or the audience is unknown"
        except (LookupError, TypeError) as exc:
            reason = str(exc)
        return web.Response(status=400, text=f"This token cannot be issued: {reason}\n")

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


def _redirect_uri(params: Mapping[str, str], *, known: bool) -> str:
    redirect_uri = required(params, "redirect_uri")
    if known and is_loopback(redirect_uri):
        return redirect_uri
    raise EntraError("invalid_request", 50011, "The redirect URI is not registered for the app.")


def _check(params: Mapping[str, str]) -> None:
    """Refuse the requests of public clients that Entra refuses for any user."""
    response_type = required(params, "response_type")
    if response_type != "code":
        message = f"response_type '{response_type}' is not enabled for the application."
        raise EntraError("unsupported_response_type", 700054, message)
    mode = params.get("response_mode", "query")
    if mode not in {"query", "fragment", "form_post"}:
        raise EntraError("invalid_request", 70007, f"'{mode}' is not a supported response_mode.")
    if not params.get("code_challenge") or params.get("code_challenge_method") != "S256":
        message = "Proof Key for Code Exchange is required, with the method S256."
        raise EntraError("invalid_request", 9002325, message)


def _go_back(
    redirect_uri: str, params: Mapping[str, str], answer: Mapping[str, str]
) -> web.Response:
    """Send the browser back to the app with an answer, in the mode that the app asked for."""
    answer = {**answer, "state": params["state"]} if "state" in params else answer
    mode = params.get("response_mode", "query")
    if mode == "form_post":
        return form_post_page(redirect_uri, answer)
    mark = "#" if mode == "fragment" else "&" if "?" in redirect_uri else "?"
    location = f"{redirect_uri}{mark}{urlencode(answer)}"
    return web.Response(status=302, headers={"Location": location, "Cache-Control": "no-store"})


async def _form(request: web.Request) -> dict[str, str]:
    form = await request.post()
    return {name: value for name, value in form.items() if isinstance(value, str)}

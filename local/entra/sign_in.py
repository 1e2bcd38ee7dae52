"""Sign-in to an app: what a person sees of the local Entra in a browser."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from aiohttp import web

from local.entra.consent import Consent, ConsentNeeded
from local.entra.directory import is_loopback
from local.entra.errors import EntraError, required
from local.entra.grants import client_info
from local.entra.pages import message_page, sign_in_page
from local.entra.redirects import form_of, go_back, redirect_uri_of
from local.entra.requests import SignIn, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.grants import Grants
    from local.entra.objects import App
    from local.entra.sessions import Session, Sessions


class SignInPages:
    """Serves the pages."""

    def __init__(self, entra: Grants, sessions: Sessions) -> None:
        self._entra = entra
        self._sessions = sessions
        self._consent = Consent(entra)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.route("*", "/{tenant}/oauth2/v2.0/authorize", self._authorize),
            web.get("/{tenant}/oauth2/v2.0/logout", self._log_out),
        ]

    async def _authorize(self, request: web.Request) -> web.Response:
        """Ask who signs in, unless the browser has a session, and redirect with a code."""
        params = {**request.query, **await form_of(request)}
        try:
            tenant = self._entra.tenant(request.match_info["tenant"])
            client = self._entra.client(params, tenant)
            redirect_uri = redirect_uri_of(params, client)
        except EntraError as exc:
            return message_page("Sign-in failed", str(exc), status=exc.status)
        try:
            _check(params)
            wanted = Wanted.parse(required(params, "scope"), self._entra.directory, tenant)
            session = self._sessions.who(request, params, tenant, wanted)
            if session is None:
                return sign_in_page(self._sessions.choices(tenant), params, app=client.name)
            self._consent.enter(client, wanted, session, params)
        except ConsentNeeded as needed:
            return self._consent.ask(needed, client, session, params)
        except EntraError as exc:
            return go_back(redirect_uri, params, exc.redirected())
        return self._signed_in(session, client, redirect_uri, params)

    def _signed_in(
        self, session: Session, client: App, redirect_uri: str, params: Mapping[str, str]
    ) -> web.Response:
        """Start a session for the browser, and redirect with a code."""
        nonce, challenge = params.get("nonce", ""), params["code_challenge"]
        user, scope = session.user, params["scope"]
        sign_in = SignIn(user, client, scope, redirect_uri, nonce, challenge, strong=session.strong)
        answer = {"code": self._entra.new_code(sign_in), "client_info": client_info(user)}
        answer["session_state"] = str(uuid.uuid4())
        response = go_back(redirect_uri, params, answer)
        self._sessions.remember(session, response)
        return response

    async def _log_out(self, request: web.Request) -> web.Response:
        response = message_page("Signed out", "You can close this page.")
        back = request.query.get("post_logout_redirect_uri", "")
        if is_loopback(back):
            response = go_back(back, request.query, {})
        self._sessions.forget(request, response)
        return response


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

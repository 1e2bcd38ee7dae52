"""Who is signed in to the local Entra in which browser."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from local.entra import errors
from local.entra.errors import EntraError
from local.entra.requests import second_factor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from local.entra.grants import Grants
    from local.entra.objects import Tenant, User
    from local.entra.requests import Wanted

SESSION_COOKIE = "ESTSAUTH"


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's sign-in; `strong` after a second factor."""

    user: User
    strong: bool


class Sessions:
    """The sessions of browsers, each known by a cookie."""

    def __init__(self, entra: Grants) -> None:
        self._entra = entra
        self._sessions: dict[str, Session] = {}

    def who(
        self,
        request: web.Request,
        params: Mapping[str, str],
        tenant: Tenant | None,
        wanted: Wanted | None = None,
    ) -> Session | None:
        """Return who was chosen or is signed in already, or None to show the page.

        Whoever is chosen on the page gives a second factor, if one is wanted.
        """
        choices, prompt = self.choices(tenant), params.get("prompt")
        chosen = (user for user in choices if user.object_id == params.get("account"))
        user = next(chosen, None)
        if user:
            return Session(user, strong=self._second_factor(params, wanted, user) is not None)
        if prompt in {"login", "select_account"}:
            return None
        session = self._sessions.get(request.cookies.get(SESSION_COOKIE, ""))
        hint = params.get("login_hint", "").lower()
        if session and hint in {"", session.user.user_name}:
            user = next((user for user in choices if user.account == session.user), None)
        reason = self._second_factor(params, wanted, user) if user else None
        if user and session and (reason is None or session.strong):
            return Session(user, strong=session.strong)
        if prompt == "none" and reason and wanted:
            raise errors.step_up(wanted.resource, reason)
        if prompt == "none":
            message = "A silent sign-in request was sent but no user is signed in."
            raise EntraError("login_required", 50058, message)
        return None

    def choices(self, tenant: Tenant | None) -> list[User]:
        """Return who can sign in: the users of the tenant or, without one, all but guests."""
        users = self._entra.directory.users
        if tenant is None:
            return [user for user in users if user.guest_of is None]
        return [user for user in users if user.tenant == tenant]

    def remember(self, session: Session, response: web.Response) -> None:
        """Start a session for the browser that gets the response."""
        key = secrets.token_urlsafe(32)
        self._sessions[key] = Session(session.user.account, strong=session.strong)
        # With SameSite=None, which needs TLS, a page of another origin can sign in in a frame.
        secure = self._entra.url.startswith("https:")
        site = "None" if secure else "Lax"
        response.set_cookie(SESSION_COOKIE, key, secure=secure, httponly=True, samesite=site)

    def forget(self, request: web.Request, response: web.Response) -> None:
        """End the browser's session."""
        self._sessions.pop(request.cookies.get(SESSION_COOKIE, ""), None)
        response.del_cookie(SESSION_COOKIE)

    def _second_factor(
        self, params: Mapping[str, str], wanted: Wanted | None, user: User
    ) -> Mapping[str, object] | None:
        """Return why a second factor is wanted, as a claims request: by the app or a policy."""
        own = self._entra.directory.policy_for(wanted.resource, user) if wanted else None
        return second_factor(params) or (errors.of_policy(own) if own else None)

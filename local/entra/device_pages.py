"""The pages of the device code flow, and what a device asks first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from local.entra.consent import Consent, ConsentNeeded
from local.entra.devices import LIFETIME, POLL_SECONDS
from local.entra.errors import EntraError, required
from local.entra.pages import code_page, message_page, sign_in_page
from local.entra.redirects import form_of
from local.entra.requests import SignIn, Wanted

if TYPE_CHECKING:
    from local.entra.grants import Grants
    from local.entra.sessions import Session, Sessions


class DevicePages:
    """Serves the pages."""

    def __init__(self, entra: Grants, sessions: Sessions) -> None:
        self._entra = entra
        self._sessions = sessions
        self._consent = Consent(entra)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/{tenant}/oauth2/v2.0/devicecode", self._start_device),
            web.route("*", "/common/oauth2/deviceauth", self._device),
        ]

    async def _start_device(self, request: web.Request) -> web.Response:
        """Tell a device which code a person has to type in."""
        form = await form_of(request)
        tenant = self._entra.tenant(request.match_info["tenant"])
        client = self._entra.client(form, tenant)
        if client.platform != "native":
            message = "The client must be marked as 'mobile' to use the device code flow."
            raise EntraError("invalid_client", 7000218, message)
        scope = required(form, "scope")
        Wanted.parse(scope, self._entra.directory, tenant)
        waiting = self._entra.devices.add(client, scope)
        address = f"{self._entra.url}/common/oauth2/deviceauth"
        return web.json_response(
            {
                "user_code": waiting.user_code,
                "device_code": waiting.device_code,
                "verification_uri": address,
                "expires_in": int(LIFETIME.total_seconds()),
                "interval": POLL_SECONDS,
                "message": (
                    f"To sign in, use a web browser to open the page {address} and enter the code "
                    f"{waiting.user_code} to authenticate."
                ),
            }
        )

    async def _device(self, request: web.Request) -> web.Response:
        """Ask for the code that a device shows, and for who signs in to the device."""
        params = {**request.query, **await form_of(request)}
        waiting = self._entra.devices.find(params.get("user_code", ""))
        if waiting is None:
            return code_page(wrong=bool(params.get("user_code")))
        params["scope"] = waiting.scope
        wanted = Wanted.parse(waiting.scope, self._entra.directory)
        session: Session | None = None
        try:
            # Entra asks who it is, also if the browser has a session.
            session = self._sessions.who(
                request, {**params, "prompt": "select_account"}, None, wanted
            )
            if session is None:
                return sign_in_page(self._sessions.choices(None), params, app=waiting.client.name)
            self._consent.enter(waiting.client, wanted, session, params)
        except ConsentNeeded as needed:
            return self._consent.ask(needed, waiting.client, session, params)
        except EntraError as exc:
            waiting.declined = exc.error == "access_denied"
            return message_page("Sign-in failed", str(exc), status=exc.status)
        strong = session.strong
        waiting.sign_in = SignIn(session.user, waiting.client, waiting.scope, strong=strong)
        response = message_page(
            "Signed in", f"You have signed in to {waiting.client.name} on your device."
        )
        self._sessions.remember(session, response)
        return response

"""An administrator's consent for a whole tenant.

https://learn.microsoft.com/entra/identity-platform/v2-admin-consent
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from local.entra import errors
from local.entra.consent import declined
from local.entra.errors import EntraError
from local.entra.pages import consent_page, message_page, sign_in_page
from local.entra.redirects import form_of, go_back, redirect_uri_of
from local.entra.requests import DEFAULT, OPENID_SCOPES, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.grants import Grants
    from local.entra.objects import App
    from local.entra.sessions import Session, Sessions


class AdminConsentPages:
    """Serves the pages."""

    def __init__(self, entra: Grants, sessions: Sessions) -> None:
        self._entra = entra
        self._sessions = sessions

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.route("*", "/{tenant}/adminconsent", self._admin_consent),
            web.route("*", "/{tenant}/v2.0/adminconsent", self._admin_consent),
        ]

    async def _admin_consent(self, request: web.Request) -> web.Response:
        """Ask an administrator to consent for the whole tenant, and redirect with the answer."""
        params = {**request.query, **await form_of(request)}
        try:
            tenant = self._entra.tenant(request.match_info["tenant"])
            client = self._entra.client(params, tenant)
            redirect_uri = redirect_uri_of(params, client, signs_in=False)
            session = self._sessions.who(request, params, tenant)
        except EntraError as exc:
            return message_page("Consent failed", str(exc), status=exc.status)
        if session is None:
            return sign_in_page(self._sessions.choices(tenant), params, app=client.name)
        try:
            return self._consent_for_all(client, redirect_uri, session, params)
        except EntraError as exc:
            return go_back(redirect_uri, params, exc.redirected())

    def _consent_for_all(
        self, client: App, redirect_uri: str, session: Session, params: Mapping[str, str]
    ) -> web.Response:
        directory, user = self._entra.directory, session.user
        scopes, roles = self._for_all(client, params.get("scope", DEFAULT))
        for resource in {app.client_id: app for app, _ in [*scopes, *roles]}.values():
            if directory.principal(resource, user.tenant) is None:
                raise errors.no_principal_of_resource(resource, user.tenant)
        if params.get("consent", "accept") != "accept":
            raise declined()
        if not user.is_administrator or "consent" not in params:
            names = [f"{app.name}: {name}" for app, names in [*scopes, *roles] for name in names]
            back = {**params, "account": user.object_id}
            may_accept = user.is_administrator
            return consent_page(names, back, app=client.name, user=user, may_accept=may_accept)
        directory.install(client, user.tenant)
        for resource, permissions in scopes:
            directory.consent(client, resource, permissions, by=user, for_all=True)
        principal_id = client.principal_in(user.tenant)
        for resource, permissions in roles:
            held = directory.roles_at(resource, user.tenant, principal_id)
            missing = [name for name in permissions if name not in held]
            directory.assign(resource, user.tenant, principal_id, *missing)
        answer = {"admin_consent": "True", "tenant": user.tenant.tenant_id}
        scope = {"scope": params["scope"]} if "scope" in params else {}
        return go_back(redirect_uri, params, answer | scope)

    def _for_all(
        self, client: App, scope: str
    ) -> tuple[list[tuple[App, tuple[str, ...]]], list[tuple[App, tuple[str, ...]]]]:
        """Return the delegated permissions and the roles, by resource, that are asked for."""
        names = [name for name in scope.split() if name not in OPENID_SCOPES]
        if all(name.rpartition("/")[2] == DEFAULT for name in names):
            wanted = [
                [(self._app(app_id), names) for app_id, names in pairs]
                for pairs in (client.requires, client.requires_roles)
            ]
            return wanted[0], wanted[1]
        asked = [Wanted.parse(name, self._entra.directory) for name in names]
        return [(each.resource, each.scopes) for each in asked], []

    def _app(self, client_id: str) -> App:
        app = self._entra.directory.app(client_id)
        if app is None:
            message = f"The application asked for permissions of '{client_id}', which is unknown."
            raise EntraError("invalid_client", 650057, message)
        return app

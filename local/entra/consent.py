"""A person's consent to what an app wants, as the local Entra asks for it while they sign in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local.entra import errors
from local.entra.access import permitted
from local.entra.errors import EntraError
from local.entra.pages import consent_page
from local.entra.requests import Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from local.entra.grants import Grants
    from local.entra.objects import App, User
    from local.entra.sessions import Session


class ConsentNeeded(Exception):  # noqa: N818 - the page asks for it; nothing is wrong
    """Somebody has to consent before the sign-in goes on."""

    def __init__(self, scopes: tuple[str, ...]) -> None:
        super().__init__(*scopes)
        self.scopes = scopes


class Consent:
    """Lets people in to apps that may have what they want."""

    def __init__(self, entra: Grants) -> None:
        self._entra = entra

    def enter(
        self, client: App, wanted: Wanted, session: Session, params: Mapping[str, str]
    ) -> None:
        """Let a user in to an app, with the user's consent.

        Raises:
            ConsentNeeded: the user has not been asked yet.
            EntraError: the user may not use it, or does not consent.
        """
        directory, resource, user = self._entra.directory, wanted.resource, session.user
        if user.object_id in directory.disabled:
            raise errors.disabled()
        if directory.principal(resource, user.tenant) is None:
            raise errors.no_principal_of_resource(resource, user.tenant)
        granted = directory.granted(client, resource, user)
        missing = tuple(s for s in wanted.needed(client, granted) if s not in granted)
        if missing and client.tenant is resource.tenant is None:
            raise errors.no_preauthorization(client, resource)
        if missing and params.get("prompt") == "none":
            raise errors.no_consent(client)
        if missing or (params.get("prompt") == "consent" and "consent" not in params):
            if not _consents(params, resource, missing, user):
                raise ConsentNeeded(missing or granted)
            directory.consent(client, resource, missing, by=user, for_all=False)
        directory.install(client, user.tenant)
        permitted(directory, client, wanted, user, strong=session.strong)

    def ask(
        self,
        needed: ConsentNeeded,
        client: App,
        session: Session | None,
        params: Mapping[str, str],
    ) -> web.Response:
        """Return the page that asks for it."""
        assert session  # noqa: S101 - only users who are signed in are asked
        resource = Wanted.parse(params["scope"], self._entra.directory).resource
        return consent_page(
            [f"{resource.name}: {scope}" for scope in needed.scopes],
            {**params, "account": session.user.object_id},
            app=client.name,
            user=session.user,
            may_accept=may_consent(session.user, resource, needed.scopes),
        )


def may_consent(user: User, resource: App, scopes: tuple[str, ...]) -> bool:
    """Return whether a user may consent to permissions: to some, only administrators may."""
    return user.is_administrator or set(scopes).isdisjoint(resource.admin_scopes)


def _consents(
    params: Mapping[str, str], resource: App, scopes: tuple[str, ...], user: User
) -> bool:
    """Return whether the user was asked and consents.

    Raises:
        EntraError: the user was asked and declines.
    """
    if "consent" in params and params["consent"] != "accept":
        raise declined()
    return "consent" in params and may_consent(user, resource, scopes)


def declined() -> EntraError:
    """Return the error for somebody who was asked and said no."""
    return EntraError("access_denied", 65004, "User declined to consent to access the app.")

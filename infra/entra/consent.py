"""Makes the links on which an administrator of another tenant consents."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP
from infra.entra.registration import CONSENT_PAGE
from shared.endpoints import GRAPH_HOSTS, PUBLIC_CLOUD, TEAMS_RESOURCES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from infra.entra.directory import Directory, Object


def consent_url(
    *, authority: str, tenant: str, client_id: str, resource: str, redirect_uri: str
) -> str:
    """Return the page on which an administrator consents to all that an app asks for.

    With `.default`, these are the permissions in its registration, of whatever resource.
    https://learn.microsoft.com/entra/identity-platform/v2-admin-consent
    """
    query = {
        "client_id": client_id,
        "scope": f"{resource}/.default",
        "redirect_uri": redirect_uri,
    }
    return f"{authority}/{tenant}/v2.0/adminconsent?{urlencode(query, quote_via=quote)}"


def consent_urls(directory: Directory, *, authority: str, tenant: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the link of the broker, and of each client that is registered here."""
    application = directory.application or {}
    requested = {each["resourceAppId"] for each in application.get("requiredResourceAccess") or []}
    apps = [(application, resource_of(requested, authority))]
    uris = application.get("identifierUris") or []
    apps += [(client, uris[0]) for client in directory.clients.values() if uris]
    for app, asked in apps:
        yield (
            str(app["displayName"]),
            consent_url(
                authority=authority,
                tenant=tenant,
                client_id=app["appId"],
                resource=asked,
                # Others may have registered an address of their own for the broker.
                redirect_uri=CONSENT_PAGE if app is application else redirect_uri_of(app),
            ),
        )


def resource_of(client_ids: Collection[str], authority: str) -> str:
    """Return the name of one of Microsoft's apps: any of those that the broker asks."""
    if ACS_CLIENTS_APP in client_ids:
        return "https://communication.azure.com/clients"
    host = urlsplit(authority).hostname or ""
    if ACS_TEAMS_APP in client_ids:
        return TEAMS_RESOURCES.get(host, TEAMS_RESOURCES[PUBLIC_CLOUD])
    return f"https://{GRAPH_HOSTS.get(host, GRAPH_HOSTS[PUBLIC_CLOUD])}"


def redirect_uri_of(application: Object) -> str:
    """Return an address that the app has registered, to which the administrator returns."""
    platforms = [application.get(name) or {} for name in ("spa", "web", "publicClient")]
    uris = [uri for platform in platforms for uri in platform.get("redirectUris") or []]
    return str(uris[0]) if uris else CONSENT_PAGE

"""Says what to do about a refusal."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.entra.rest import RefusedError

# By the beginning of the path: who may do what.
# https://learn.microsoft.com/graph/api/oauth2permissiongrant-post
# https://learn.microsoft.com/graph/api/serviceprincipal-post-serviceprincipals
# https://learn.microsoft.com/graph/api/application-upsert
ROLES = {
    "/v1.0/oauth2PermissionGrants": (
        "To consent for all users takes Cloud Application Administrator, or Privileged Role"
        " Administrator."
    ),
    "/v1.0/servicePrincipals": (
        "To add an app to the tenant takes Cloud Application Administrator; an app's own sign-in"
        " takes the permission Application.ReadWrite.All."
    ),
    "/v1.0/applications": (
        "To register an app takes Application Developer where users may not, and to change somebody"
        " else's registration Cloud Application Administrator; an app's own sign-in takes the"
        " permission Application.ReadWrite.OwnedBy, or Application.ReadWrite.All."
    ),
    "/v1.0/": (
        "To read apps, users and groups takes Directory Readers; an app's own sign-in takes the"
        " permission Directory.Read.All."
    ),
    "/access/": (
        "It takes Communication and Email Service Owner on the ACS resource. Entra may refuse Azure"
        " CLI tokens for ACS (AADSTS65002): then sign in as a service principal (--sign-in"
        " environment), or set ACS_CONNECTION_STRING if the resource takes access keys."
    ),
}


def what_to_do(exc: RefusedError) -> str:
    """Return what to do about a refusal, nothing if that is not known."""
    path = exc.call.path
    if exc.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _who_may(exc)
    if path.startswith("/access/") and exc.status == HTTPStatus.NOT_FOUND:
        return "This is a preview: the resource or its region may not have it."
    if exc.status == HTTPStatus.TOO_MANY_REQUESTS or exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "Run the same again in a few minutes: what was done is not done twice."
    if "uniquename" in exc.message.lower():
        return (
            "A deleted registration keeps its unique name for 30 days: restore it, delete it"
            " permanently (docs/deploy.md, step 1), or give another --unique-name."
        )
    return "Correct that, and run it again: what was done is not done twice."


def _who_may(exc: RefusedError) -> str:
    """Return which role it takes, or that there is no sign-in."""
    path = exc.call.path
    if path.startswith("/v1.0/") and exc.status == HTTPStatus.UNAUTHORIZED:
        return "Sign in again: az login --tenant <tenant id>"
    if path.startswith("/v1.0/") and exc.call.method == "GET":
        return ROLES["/v1.0/"]
    return next((text for start, text in ROLES.items() if path.startswith(start)), "")

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
    "/v1.0/": "To read users and groups takes Directory Readers.",
    "/access/": (
        "It takes Communication and Email Service Owner on the ACS resource. Entra may refuse Azure"
        " CLI tokens for ACS (AADSTS65002): then sign in as a service principal (--sign-in"
        " environment), or set ACS_CONNECTION_STRING if the resource takes access keys."
    ),
}


def what_to_do(exc: RefusedError) -> str:
    """Return what to do about a refusal, nothing if that is not known."""
    path = exc.call.path
    if exc.status == HTTPStatus.UNAUTHORIZED and not path.startswith("/access/"):
        return "Sign in again: az login --tenant <tenant id>"
    if exc.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return next((text for start, text in ROLES.items() if path.startswith(start)), "")
    if path.startswith("/access/") and exc.status == HTTPStatus.NOT_FOUND:
        return "This is a preview: the resource or its region may not have it."
    if "uniqueName" in exc.message or "uniqueName" in path:
        return (
            "A deleted registration keeps its unique name for 30 days: restore it, delete it"
            " permanently (docs/deploy.md, step 1), or give another --unique-name."
        )
    if exc.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return "The service is busy: run the same again in a few minutes."
    return "Run the same again: what was done is not done twice."

"""Decides what has to change in the home tenant, so that it is as `infra/entra.bicep` has it.

Each step takes what the tenant holds, and returns the calls that add what is missing. What is there
besides stays: arrays are completed, and only properties that are to change are sent.
"""

from __future__ import annotations

import uuid
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.entra.directory import NAMES
from infra.entra.permissions import permission_id
from infra.entra.rest import Call, segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from infra.entra.directory import Directory, Object

    Step = Callable[[Directory, "Wanted"], Iterable[Call]]

# Bicep's guid() makes a name-based UUID in this namespace, of its arguments joined by hyphens:
# https://learn.microsoft.com/azure/azure-resource-manager/bicep/bicep-functions-string#guid
BICEP_NAMESPACE = uuid.UUID("11fb06fb-712d-4ddd-98c7-e71bbd588830")
SCOPE = "access_as_user"
OWN_TENANT = "AzureADMyOrg"  # Of `signInAudience`; all others let other tenants' users sign in.
ADMIN_ROLE = "Mappings.Admin"
CONSENT_PAGE = "https://entra.microsoft.com/"
# Of access tokens: `idtyp` tells apps' tokens from users', `xms_cc` which apps can handle claims
# challenges.
OPTIONAL_CLAIMS = ("idtyp", "xms_cc")
LOCK = {"isEnabled": True, "allProperties": True}
ROLES = (
    # An app that declares a role has no default role, so people need one that grants nothing more.
    {
        "value": "Tokens.Get",
        "displayName": "User",
        "description": "Gets Azure Communication Services tokens for calls and chat.",
        "allowedMemberTypes": ["User"],
    },
    {
        "value": ADMIN_ROLE,
        "displayName": "Administrator of mappings",
        "description": (
            "Reads, changes and erases the Azure Communication Services identities of all users."
        ),
        "allowedMemberTypes": ["User", "Application"],
    },
)
SCOPE_TEXTS = {
    "adminConsentDisplayName": "Call and chat as the signed-in user",
    "adminConsentDescription": (
        "Lets the app get Azure Communication Services tokens for the signed-in user."
    ),
    "userConsentDisplayName": "Call and chat as you",
    "userConsentDescription": "Lets the app get Azure Communication Services tokens for you.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the home tenant is to be.

    `permissions` are names of delegated permissions, by the client id of the resource; `client_ids`
    the apps that call the broker; `identities` the object ids of managed identities that act as the
    broker.
    """

    unique_name: str
    display_name: str
    authority: str
    permissions: Mapping[str, tuple[str, ...]]
    multitenant: bool = False
    client_ids: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    broker_id: str = ""  # Of a registration that was not made under the unique name.
    consent: bool = False


def guid(*parts: str) -> str:
    """Return the same id as Bicep's function of this name."""
    return str(uuid.uuid5(BICEP_NAMESPACE, "-".join(parts)))


def add_resources(directory: Directory, wanted: Wanted) -> Iterator[Call]:
    """Add the service principals of Microsoft's apps."""
    for app_id in wanted.permissions:
        if app_id not in directory.principals:
            yield add_principal(app_id, NAMES[app_id])


def add_principal(app_id: str, name: str, *, waits: bool = False) -> Call:
    """Return the call that adds an app to the tenant."""
    does = f"add the service principal of {name}"
    body = {"appId": app_id}
    return Call(does, "POST", "/v1.0/servicePrincipals", body, adds="principal", waits=waits)


def register(directory: Directory, wanted: Wanted) -> Iterator[Call]:
    """Register the broker, or complete its registration."""
    before: Object = directory.application or {}
    after = completed(before, directory, wanted)
    changes = {name: value for name, value in after.items() if value != before.get(name)}
    if directory.application is None:
        yield Call(
            f"register the broker as {wanted.unique_name}",
            "PATCH",
            f"/v1.0/applications(uniqueName='{wanted.unique_name}')",
            {"displayName": wanted.display_name, "signInAudience": OWN_TENANT, **changes},
            # https://learn.microsoft.com/graph/api/application-upsert
            headers=(("Prefer", "create-if-missing"),),
            adds="application",
        )
    elif changes:
        does = f"complete the broker's registration: {', '.join(changes)}"
        path = f"/v1.0/applications/{segment(before['id'])}"
        yield Call(does, "PATCH", path, changes, adds="application")


def completed(before: Object, directory: Directory, wanted: Wanted) -> Object:
    """Return the registration with what is missing in it."""
    after = deepcopy(before)
    if not after.get("identifierUris"):
        path = wanted.broker_id or f"{directory.tenant_id}/{wanted.unique_name}"
        after["identifierUris"] = [f"api://{path}"]
    if wanted.multitenant and after.get("signInAudience", OWN_TENANT) == OWN_TENANT:
        after["signInAudience"] = "AzureADMultipleOrgs"
    after["api"] = _api(after.get("api") or {}, wanted)
    after["appRoles"] = _with_roles(after.get("appRoles") or [], wanted.unique_name)
    after["requiredResourceAccess"] = _requests(after, directory, wanted)
    after["optionalClaims"] = _claims(after.get("optionalClaims") or {})
    web = after.get("web") or {}
    uris = web.get("redirectUris") or []
    if CONSENT_PAGE not in uris:
        # The consent page for administrators needs an address to return to.
        after["web"] = web | {"redirectUris": [*uris, CONSENT_PAGE]}
    if not (after.get("servicePrincipalLockConfiguration") or {}).get("isEnabled"):
        after["servicePrincipalLockConfiguration"] = LOCK
    return after


def _api(api: Object, wanted: Wanted) -> Object:
    """Return the API with the scope."""
    scope_id = guid(wanted.unique_name, SCOPE)
    new = {"id": scope_id, "value": SCOPE, "type": "User", "isEnabled": True, **SCOPE_TEXTS}
    scopes = _enabled(api.get("oauth2PermissionScopes") or [], [new])
    return api | {"requestedAccessTokenVersion": 2, "oauth2PermissionScopes": scopes}


def pre_authorize(directory: Directory, wanted: Wanted) -> Iterator[Call]:
    """Let the clients use the scope without asking for consent.

    This is a call of its own, since Graph refuses a scope that the same one defines:
    https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/1395
    """
    application = directory.application or {}
    before: Object = application.get("api") or {}
    scope = scope_of(application)
    authorized = before.get("preAuthorizedApplications") or []
    for client_id in wanted.client_ids if scope else ():
        authorized = _authorizing(authorized, client_id, scope["id"] if scope else "")
    # Entra knows apps of the same tenant only.
    here = [each for each in wanted.client_ids if each in directory.clients]
    known = [*dict.fromkeys([*(before.get("knownClientApplications") or []), *here])]
    after = before | {"preAuthorizedApplications": authorized, "knownClientApplications": known}
    if after != before and wanted.client_ids:
        does = f"pre-authorize {', '.join(wanted.client_ids)} to call the broker"
        path = f"/v1.0/applications/{segment(application['id'])}"
        yield Call(does, "PATCH", path, {"api": after}, adds="application", waits=True)


def _enabled(present: list[Object], wanted: Iterable[Object]) -> list[Object]:
    """Return scopes or roles with those that are wanted, by value, all of these enabled."""
    by_value = {each["value"]: each for each in wanted}
    kept = [
        each | {"isEnabled": True} if each.get("value") in by_value else each for each in present
    ]
    missing = by_value.keys() - {each.get("value") for each in present}
    return [*kept, *(each for value, each in by_value.items() if value in missing)]


def _authorizing(authorized: list[Object], client_id: str, scope_id: str) -> list[Object]:
    """Return the pre-authorized apps with one more, or with the scope for one of them."""
    others = [each for each in authorized if each["appId"] != client_id]
    permitted = [
        permission
        for each in authorized
        if each["appId"] == client_id
        for permission in each["delegatedPermissionIds"]
    ]
    if scope_id in permitted:
        return authorized
    return [*others, {"appId": client_id, "delegatedPermissionIds": [*permitted, scope_id]}]


def _with_roles(roles: list[Object], unique_name: str) -> list[Object]:
    new = [
        {"id": guid(unique_name, str(role["value"])), "isEnabled": True, **role} for role in ROLES
    ]
    return _enabled(roles, new)


def _claims(claims: Object) -> Object:
    """Return the optional claims with those that the broker reads."""
    of_access_token = claims.get("accessToken") or []
    names = {claim["name"] for claim in of_access_token}
    missing = [{"name": name} for name in OPTIONAL_CLAIMS if name not in names]
    return claims | {"accessToken": [*of_access_token, *missing]}


def _requests(application: Object, directory: Directory, wanted: Wanted) -> list[Object]:
    requested: list[Object] = application.get("requiredResourceAccess") or []
    for app_id, names in wanted.permissions.items():
        ids = [permission_id(directory.principals[app_id], name) for name in names]
        requested = requesting(requested, app_id, ids)
    return requested


def requesting(requested: list[Object], app_id: str, ids: Iterable[str]) -> list[Object]:
    """Return the permissions that an app asks for, with some more of one resource."""
    present = [each for each in requested if each["resourceAppId"] == app_id]
    access = [item for each in present for item in each["resourceAccess"]]
    missing = [each for each in ids if each not in {item["id"] for item in access}]
    if not missing:
        return requested
    others = [each for each in requested if each["resourceAppId"] != app_id]
    added = [*access, *({"id": each, "type": "Scope"} for each in missing)]
    return [*others, {"resourceAppId": app_id, "resourceAccess": added}]


def scope_of(application: Mapping[str, Any]) -> Object | None:
    """Return the scope that callers need, of the broker's registration."""
    scopes = (application.get("api") or {}).get("oauth2PermissionScopes") or []
    return next((scope for scope in scopes if scope["value"] == SCOPE), None)

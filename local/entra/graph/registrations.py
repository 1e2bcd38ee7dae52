"""App registrations as Microsoft Graph writes them.

https://learn.microsoft.com/graph/api/resources/application
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from local.entra.objects import App, Tenant
    from local.entra.state import Directory

ONE_TENANT, MANY_TENANTS = "AzureADMyOrg", "AzureADMultipleOrgs"
LOCALHOST = "http://localhost"
CREATED = "2026-01-01T00:00:00Z"


def object_id(client_id: str) -> str:
    """Return the object id of a registration."""
    return str(uuid.uuid5(uuid.UUID(client_id), "application"))


def document(directory: Directory, app: App) -> dict[str, Any]:
    """Return a registration: as Graph has made or changed it, or the one of the start state."""
    stored = directory.documents.get(app.client_id)
    return copy.deepcopy(stored) if stored else _rendered(directory, app)


def blank(tenant: Tenant, client_id: str, name: str) -> dict[str, Any]:
    """Return a registration with nothing but its name."""
    return {
        "id": object_id(client_id),
        "appId": client_id,
        "displayName": name,
        "description": None,
        "createdDateTime": CREATED,
        "deletedDateTime": None,
        "publisherDomain": tenant.domain,
        "signInAudience": ONE_TENANT,
        "uniqueName": None,
        "identifierUris": [],
        "notes": None,
        "tags": [],
        "groupMembershipClaims": None,
        "isFallbackPublicClient": None,
        "optionalClaims": None,
        "serviceManagementReference": None,
        "servicePrincipalLockConfiguration": None,
        "api": {
            "acceptMappedClaims": None,
            "knownClientApplications": [],
            "requestedAccessTokenVersion": None,
            "oauth2PermissionScopes": [],
            "preAuthorizedApplications": [],
        },
        "appRoles": [],
        "requiredResourceAccess": [],
        "web": {
            "homePageUrl": None,
            "logoutUrl": None,
            "redirectUris": [],
            "implicitGrantSettings": {
                "enableAccessTokenIssuance": False,
                "enableIdTokenIssuance": False,
            },
        },
        "spa": {"redirectUris": []},
        "publicClient": {"redirectUris": []},
        "keyCredentials": [],
        "passwordCredentials": [],
    }


def _rendered(directory: Directory, app: App) -> dict[str, Any]:
    assert app.tenant  # noqa: S101 - nobody sees the registrations of Microsoft's own apps
    made = blank(app.tenant, app.client_id, app.name)
    made["signInAudience"] = MANY_TENANTS if app.multi_tenant else ONE_TENANT
    made["identifierUris"] = list(app.uris)
    made["api"]["requestedAccessTokenVersion"] = app.token_version
    made["api"]["oauth2PermissionScopes"] = scopes_of(app)
    made["api"]["preAuthorizedApplications"] = [
        {"appId": client_id, "delegatedPermissionIds": [app.scope_id(name) for name in names]}
        for client_id, names in app.preauthorized
    ]
    made["appRoles"] = roles_of(app)
    made["requiredResourceAccess"] = [
        {
            "resourceAppId": client_id,
            "resourceAccess": [
                {"id": directory.apps[client_id].scope_id(name), "type": "Scope"} for name in names
            ],
        }
        for client_id, names in app.requires
    ]
    if app.optional_claims:
        claims: list[dict[str, Any]] = [
            {"name": name, "source": None, "essential": False, "additionalProperties": []}
            for name in app.optional_claims
        ]
        made["optionalClaims"] = {"idToken": [], "accessToken": claims, "saml2Token": []}
    if app.platform:
        platform = "spa" if app.platform == "spa" else "publicClient"
        made[platform]["redirectUris"] = [LOCALHOST]
    return made


def scopes_of(app: App) -> list[dict[str, Any]]:
    """Return the delegated permissions that an app defines."""
    return [
        {
            "id": app.scope_id(name),
            "value": name,
            "type": "Admin" if name in app.admin_scopes else "User",
            "isEnabled": True,
            "adminConsentDisplayName": name,
            "adminConsentDescription": name,
            "userConsentDisplayName": name,
            "userConsentDescription": name,
        }
        for name in app.scopes
    ]


def roles_of(app: App) -> list[dict[str, Any]]:
    """Return the roles that an app defines."""
    return [
        {
            "id": app.role_id(name),
            "value": name,
            "displayName": name,
            "description": name,
            "isEnabled": True,
            "allowedMemberTypes": ["User", "Application"] if app.tenant else ["Application"],
            "origin": "Application",
        }
        for name in app.defined_roles
    ]


def app_of(directory: Directory, registration: Mapping[str, Any], before: App) -> App:
    """Return what a registration means to those who sign in."""
    api = registration["api"]
    scopes = [each for each in api["oauth2PermissionScopes"] if each.get("isEnabled", True)]
    roles = [each for each in registration["appRoles"] if each.get("isEnabled", True)]
    ids = {f"scope/{each['value']}": each["id"] for each in scopes}
    ids |= {f"role/{each['value']}": each["id"] for each in roles}
    names = {each["id"]: each["value"] for each in scopes}
    kinds = {kind: registration[kind]["redirectUris"] for kind in ("spa", "publicClient", "web")}
    native = kinds["publicClient"] or registration.get("isFallbackPublicClient")
    uris = tuple(uri for listed in kinds.values() for uri in listed)
    wanted = registration["requiredResourceAccess"]
    optional_claims = registration.get("optionalClaims") or {}
    return replace(
        before,
        name=registration["displayName"],
        multi_tenant=registration["signInAudience"] != ONE_TENANT,
        uris=tuple(registration["identifierUris"]),
        scopes=tuple(each["value"] for each in scopes),
        admin_scopes=tuple(each["value"] for each in scopes if each.get("type") == "Admin"),
        defined_roles=tuple(each["value"] for each in roles if each.get("value")),
        permission_ids=ids,
        optional_claims=tuple(each["name"] for each in optional_claims.get("accessToken") or []),
        group_claims=registration.get("groupMembershipClaims") not in {None, "None"},
        token_version=api.get("requestedAccessTokenVersion") or 1,
        platform="spa" if kinds["spa"] else "native" if native else None,
        redirect_uris=None if uris == (LOCALHOST,) else uris,
        requires=_required(directory, wanted, "Scope"),
        requires_roles=_required(directory, wanted, "Role"),
        preauthorized=tuple(
            (
                each["appId"],
                tuple(names[i] for i in each["delegatedPermissionIds"] if i in names),
            )
            for each in api["preAuthorizedApplications"]
        ),
        certificates=tuple(each["key"] for each in registration["keyCredentials"] if each["key"]),
    )


def _required(
    directory: Directory, wanted: Iterable[Mapping[str, Any]], kind: str
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the names of the permissions that a registration lists by their ids."""
    found = []
    for each in wanted:
        app = directory.app(each["resourceAppId"])
        if app is None:
            continue
        named = {app.scope_id(name): name for name in app.scopes}
        if kind == "Role":
            named = {app.role_id(name): name for name in app.defined_roles}
        ids = [access["id"] for access in each["resourceAccess"] if access["type"] == kind]
        if names := tuple(named[i] for i in ids if i in named):
            found.append((app.client_id, names))
    return tuple(found)

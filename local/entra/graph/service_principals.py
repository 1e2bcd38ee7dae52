"""`/servicePrincipals`: the apps that are installed in the caller's tenant.

https://learn.microsoft.com/graph/api/resources/serviceprincipal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local.entra.graph.calls import nothing
from local.entra.graph.errors import bad_request, conflict, not_found
from local.entra.graph.registrations import MANY_TENANTS, ONE_TENANT, document, roles_of, scopes_of
from local.entra.objects import ManagedIdentity

if TYPE_CHECKING:
    from aiohttp import web

    from local.entra.graph.calls import Call
    from local.entra.objects import ServicePrincipal

READ = ("Application.Read.All", "Application.ReadWrite.All", "Directory.Read.All")
WRITE = ("Application.ReadWrite.All",)
KIND = "servicePrincipals"
MICROSOFT_SERVICES = "f8cdef31-a31e-4b4a-93e4-5f571e91255a"  # The tenant of Microsoft's own apps.


def find(call: Call) -> ServicePrincipal:
    """Return the service principal that the path names.

    Raises:
        GraphError: it is not in the tenant.
    """
    name = call.keys.get("id", call.keys.get("app_id", ""))
    for each in _installed(call):
        if name == (each.client_id if "app_id" in call.keys else each.object_id):
            return each
    raise not_found(name)


def _installed(call: Call) -> list[ServicePrincipal]:
    principals = call.entra.directory.principals.values()
    return [each for each in principals if each.tenant == call.tenant]


def _document(call: Call, principal: ServicePrincipal) -> dict[str, Any]:
    directory = call.entra.directory
    app = directory.apps.get(principal.client_id)
    if app is None:  # Its registration was deleted in its home tenant.
        return {"id": principal.object_id, "appId": principal.client_id, "displayName": None}
    managed = isinstance(app, ManagedIdentity)
    registration: dict[str, Any] = {
        "signInAudience": MANY_TENANTS if app.multi_tenant else ONE_TENANT,
        "api": {"oauth2PermissionScopes": scopes_of(app)},
        "appRoles": roles_of(app),
        "tags": [],
    }
    if app.tenant and not managed:
        registration = document(directory, app)
    return {
        "id": principal.object_id,
        "appId": app.client_id,
        "displayName": app.name,
        "appDisplayName": app.name,
        "appOwnerOrganizationId": app.tenant.tenant_id if app.tenant else MICROSOFT_SERVICES,
        "accountEnabled": principal.enabled,
        "appRoleAssignmentRequired": principal.assignment_required,
        "servicePrincipalType": "ManagedIdentity" if managed else "Application",
        "servicePrincipalNames": [app.client_id, *app.uris],
        "alternativeNames": [app.resource_id] if isinstance(app, ManagedIdentity) else [],
        "signInAudience": registration["signInAudience"],
        "oauth2PermissionScopes": registration["api"]["oauth2PermissionScopes"],
        "appRoles": registration["appRoles"],
        "replyUrls": list(app.redirect_uris or ()),
        "tags": registration["tags"],
    }


def _list(call: Call) -> web.Response:
    return call.many(KIND, [_document(call, each) for each in _installed(call)])


def _get(call: Call) -> web.Response:
    return call.one(KIND, _document(call, find(call)))


def _create(call: Call) -> web.Response:
    members, directory = call.members(), call.entra.directory
    client_id = call.text(members, "appId")
    app = directory.apps.get(client_id)
    if app is None or not app.is_offered_to(call.tenant):
        message = (
            f"The appId '{client_id}' of the service principal does not reference a valid "
            "application object."
        )
        raise bad_request(message, "NoBackingApplicationObject")
    if directory.principal(app, call.tenant):
        message = (
            "The service principal cannot be created, updated, or restored because the service "
            f"principal name {client_id} is already in use."
        )
        raise conflict(message)
    directory.install(app, call.tenant)
    principal = directory.principal(app, call.tenant)
    assert principal  # noqa: S101 - it was just installed
    _set(principal, members)
    return call.one(KIND, _document(call, principal), status=201)


def _change(call: Call) -> web.Response:
    _set(find(call), call.members())
    return nothing()


def _set(principal: ServicePrincipal, members: dict[str, Any]) -> None:
    required = members.get("appRoleAssignmentRequired")
    principal.assignment_required = principal.assignment_required if required is None else required
    enabled = members.get("accountEnabled")
    principal.enabled = principal.enabled if enabled is None else enabled


def _delete(call: Call) -> web.Response:
    call.entra.directory.remove_principal(find(call).object_id)
    return nothing()


OPERATIONS = [
    ("GET", KIND, READ, _list),
    ("POST", KIND, WRITE, _create),
    ("GET", f"{KIND}/{{id}}", READ, _get),
    ("PATCH", f"{KIND}/{{id}}", WRITE, _change),
    ("DELETE", f"{KIND}/{{id}}", WRITE, _delete),
]

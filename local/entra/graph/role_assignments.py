"""`appRoleAssignments` and `appRoleAssignedTo`: who has which role of an app.

https://learn.microsoft.com/graph/api/resources/approleassignment
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local.entra.graph.calls import nothing
from local.entra.graph.errors import bad_request, not_found
from local.entra.graph.service_principals import find
from local.entra.objects import RoleAssignment
from local.entra.state import NO_ROLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from local.entra.graph.calls import Call

READ = (
    *("Application.Read.All", "Application.ReadWrite.All"),
    *("AppRoleAssignment.ReadWrite.All", "Directory.Read.All"),
)
WRITE = ("AppRoleAssignment.ReadWrite.All",)
KIND = "appRoleAssignments"


def _holder(call: Call, principal: str) -> tuple[str, str] | None:
    """Return the type and the name of a user, a group or an app in the tenant."""
    directory = call.entra.directory
    for user in directory.users:
        if (user.tenant, user.object_id) == (call.tenant, principal):
            return "User", user.name
    for group in directory.groups:
        if (group.tenant, group.object_id) == (call.tenant, principal):
            return "Group", group.name
    installed = directory.principals.get(principal)
    if installed and installed.tenant == call.tenant:
        return "ServicePrincipal", _name(call, principal)
    return None


def _name(call: Call, principal: str) -> str:
    directory = call.entra.directory
    app = directory.apps.get(directory.principals[principal].client_id)
    return app.name if app else ""


def _document(call: Call, assignment: RoleAssignment) -> dict[str, Any]:
    kind, name = _holder(call, assignment.principal) or ("User", None)
    return {
        "id": assignment.assignment_id,
        "appRoleId": assignment.role_id,
        "principalId": assignment.principal,
        "principalType": kind,
        "principalDisplayName": name,
        "resourceId": assignment.resource,
        "resourceDisplayName": _name(call, assignment.resource),
    }


def _answer(call: Call, assignments: Iterable[RoleAssignment]) -> web.Response:
    return call.many(KIND, [_document(call, each) for each in assignments])


def _assigned(call: Call) -> list[RoleAssignment]:
    roles = call.entra.directory.roles.values()
    return [each for each in roles if each.tenant == call.tenant]


def _list_held(call: Call) -> web.Response:
    return _answer(call, (each for each in _assigned(call) if each.principal == _subject(call)))


def _list_given(call: Call) -> web.Response:
    resource = find(call).object_id
    return _answer(call, (each for each in _assigned(call) if each.resource == resource))


def _subject(call: Call) -> str:
    """Return the id of the principal that the path names: an app, a user or a group."""
    if "holder" not in call.keys:
        return find(call).object_id
    user = call.entra.directory.user(call.keys["holder"])
    principal = user.object_id if user else call.keys["holder"]
    if _holder(call, principal) is None:
        raise not_found(call.keys["holder"])
    return principal


def _create(call: Call) -> web.Response:
    members, directory = call.members(), call.entra.directory
    principal, resource, role = (
        call.text(members, name) for name in ("principalId", "resourceId", "appRoleId")
    )
    installed = directory.principals.get(resource)
    if installed is None or installed.tenant != call.tenant:
        raise not_found(resource)
    if _holder(call, principal) is None:
        raise not_found(principal)
    app = directory.apps[installed.client_id]
    if role != NO_ROLE and role not in {app.role_id(name) for name in app.defined_roles}:
        raise bad_request("Permission being assigned was not found on application")
    made = RoleAssignment(tenant=call.tenant, principal=principal, resource=resource, role_id=role)
    same = (principal, resource, role)
    if any((each.principal, each.resource, each.role_id) == same for each in _assigned(call)):
        raise bad_request("Permission being assigned already exists on the object")
    directory.roles[made.assignment_id] = made
    return call.one(KIND, _document(call, made), status=201)


def _delete(call: Call) -> web.Response:
    found = call.entra.directory.roles.get(call.keys["assignment"])
    if found is None or found.tenant != call.tenant:
        raise not_found(call.keys["assignment"])
    del call.entra.directory.roles[found.assignment_id]
    return nothing()


_PATHS = {
    "servicePrincipals/{id}/appRoleAssignments": _list_held,
    "servicePrincipals/{id}/appRoleAssignedTo": _list_given,
    "users/{holder}/appRoleAssignments": _list_held,
    "groups/{holder}/appRoleAssignments": _list_held,
}
OPERATIONS = [
    *(("GET", path, READ, handler) for path, handler in _PATHS.items()),
    *(("POST", path, WRITE, _create) for path in _PATHS),
    *(("DELETE", f"{path}/{{assignment}}", WRITE, _delete) for path in _PATHS),
]

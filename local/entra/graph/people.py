"""`/users`, `/groups`, `/organization` and `/tenantRelationships`.

https://learn.microsoft.com/graph/api/resources/user
https://learn.microsoft.com/graph/api/resources/group
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local.entra.graph.calls import nothing
from local.entra.graph.errors import bad_request, denied, not_found

if TYPE_CHECKING:
    from aiohttp import web

    from local.entra.graph.calls import Call
    from local.entra.objects import Group, Tenant, User

READ_SELF = ("User.Read", "User.Read.All", "User.ReadWrite.All", "Directory.Read.All")
READ_USERS = ("User.Read.All", "User.ReadWrite.All", "Directory.Read.All")
WRITE_USERS = ("User.ReadWrite.All",)
READ_GROUPS = ("Group.Read.All", "Group.ReadWrite.All", "Directory.Read.All")
WRITE_GROUPS = ("Group.ReadWrite.All",)
READ_TENANT = (*READ_SELF, "Application.ReadWrite.All")


def _user(call: Call) -> User:
    if "user" not in call.keys:
        if call.user is None:
            raise bad_request("/me request is only valid with delegated authentication flow.")
        return call.user
    user = call.entra.directory.user(call.keys["user"])
    if user is None or user.tenant != call.tenant:
        raise not_found(call.keys["user"])
    return user


def _user_document(call: Call, user: User) -> dict[str, Any]:
    return {
        "id": user.object_id,
        "displayName": user.name,
        "givenName": user.given_name,
        "surname": user.family_name,
        "userPrincipalName": user.user_name,
        "mail": user.account.user_name,
        "userType": "Guest" if user.guest_of else "Member",
        "accountEnabled": user.object_id not in call.entra.directory.disabled,
    }


def _list_users(call: Call) -> web.Response:
    users = [user for user in call.entra.directory.users if user.tenant == call.tenant]
    return call.many("users", [_user_document(call, user) for user in users])


def _get_user(call: Call) -> web.Response:
    return call.one("users", _user_document(call, _user(call)))


def _change_user(call: Call) -> web.Response:
    """Enable or disable a user, which is all that can be changed here."""
    user, members = _user(call), call.members()
    if set(members) != {"accountEnabled"} or not isinstance(members["accountEnabled"], bool):
        raise bad_request("Only 'accountEnabled' can be changed in this emulator.")
    if members["accountEnabled"]:
        call.entra.directory.disabled.discard(user.object_id)
    else:
        call.entra.directory.disabled.add(user.object_id)
    return nothing()


def _list_groups_of_user(call: Call) -> web.Response:
    user, directory = _user(call), call.entra.directory
    ids = directory.groups_of(call.tenant.tenant_id, user.object_id)
    groups = [_group_document(group) for group in directory.groups if group.object_id in ids]
    return call.many(
        "directoryObjects", [{"@odata.type": "#microsoft.graph.group", **each} for each in groups]
    )


def _list_roles_of_user(call: Call) -> web.Response:
    roles = [{"displayName": name} for name in _user(call).directory_roles]
    return call.many("directoryRoles", roles)


def _group(call: Call) -> Group:
    for group in call.entra.directory.groups:
        if (group.tenant, group.object_id) == (call.tenant, call.keys["group"]):
            return group
    raise not_found(call.keys["group"])


def _group_document(group: Group) -> dict[str, Any]:
    return {
        "id": group.object_id,
        "displayName": group.name,
        "groupTypes": [],
        "mailEnabled": False,
        "securityEnabled": True,
    }


def _list_groups(call: Call) -> web.Response:
    groups = [group for group in call.entra.directory.groups if group.tenant == call.tenant]
    return call.many("groups", [_group_document(group) for group in groups])


def _get_group(call: Call) -> web.Response:
    return call.one("groups", _group_document(_group(call)))


def _list_members(call: Call) -> web.Response:
    directory = call.entra.directory
    ids = directory.members[_group(call).object_id]
    found = [_user_document(call, user) for user in directory.users if user.object_id in ids]
    return call.many(
        "directoryObjects", [{"@odata.type": "#microsoft.graph.user", **each} for each in found]
    )


def _add_member(call: Call) -> web.Response:
    group, directory = _group(call), call.entra.directory
    name = call.text(call.members(), "@odata.id").rpartition("/")[2]
    user = directory.user(name)
    if user is None or user.tenant != call.tenant:
        raise not_found(name)
    if user.object_id in directory.members[group.object_id]:
        raise bad_request(
            "One or more added object references already exist for the following modified "
            "properties: 'members'."
        )
    directory.members[group.object_id].add(user.object_id)
    return nothing()


def _remove_member(call: Call) -> web.Response:
    members = call.entra.directory.members[_group(call).object_id]
    if call.keys["member"] not in members:
        raise not_found(call.keys["member"])
    members.remove(call.keys["member"])
    return nothing()


def _organization(call: Call) -> web.Response:
    domain = {"name": call.tenant.domain, "isDefault": True, "isInitial": True}
    document = {
        "id": call.tenant.tenant_id,
        "displayName": call.tenant.name,
        "tenantType": "AAD",
        "verifiedDomains": [domain],
    }
    return call.many("organization", [document])


def _other_tenant(call: Call) -> web.Response:
    """Find any tenant by its id or domain, as an administrator may."""
    if call.user is None:
        raise denied()
    tenant: Tenant | None = call.entra.directory.tenant(call.keys["tenant"])
    if tenant is None:
        raise not_found(call.keys["tenant"])
    document = {
        "tenantId": tenant.tenant_id,
        "displayName": tenant.name,
        "defaultDomainName": tenant.domain,
        "federationBrandName": None,
    }
    return call.one("microsoft.graph.tenantInformation", document)


_OTHER_TENANT = (
    "tenantRelationships/findTenantInformationBy(?:TenantId|DomainName)"
    "\\(\\w+='(?P<tenant>[^']+)'\\)"
)
OPERATIONS = [
    ("GET", "me", READ_SELF, _get_user),
    ("GET", "me/memberOf/microsoft\\.graph\\.directoryRole", READ_SELF, _list_roles_of_user),
    ("GET", "users", READ_USERS, _list_users),
    ("GET", "users/{user}", READ_USERS, _get_user),
    ("PATCH", "users/{user}", WRITE_USERS, _change_user),
    ("GET", "users/{user}/memberOf", READ_USERS, _list_groups_of_user),
    # No group is in another one here.
    ("GET", "users/{user}/transitiveMemberOf", READ_USERS, _list_groups_of_user),
    ("GET", "groups", READ_GROUPS, _list_groups),
    ("GET", "groups/{group}", READ_GROUPS, _get_group),
    ("GET", "groups/{group}/members", READ_GROUPS, _list_members),
    ("POST", "groups/{group}/members/\\$ref", WRITE_GROUPS, _add_member),
    ("DELETE", "groups/{group}/members/{member}/\\$ref", WRITE_GROUPS, _remove_member),
    ("GET", "organization", READ_TENANT, _organization),
    ("GET", _OTHER_TENANT, READ_TENANT, _other_tenant),
]

"""`/oauth2PermissionGrants`: the delegated permissions that were consented to.

https://learn.microsoft.com/graph/api/resources/oauth2permissiongrant
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local.entra.graph.calls import nothing
from local.entra.graph.errors import bad_request, conflict, not_found
from local.entra.graph.service_principals import find
from local.entra.objects import PermissionGrant

if TYPE_CHECKING:
    from aiohttp import web

    from local.entra.graph.calls import Call

READ = ("DelegatedPermissionGrant.ReadWrite.All", "Directory.Read.All")
WRITE = ("DelegatedPermissionGrant.ReadWrite.All",)
KIND = "oauth2PermissionGrants"
FOR_ALL, FOR_ONE = "AllPrincipals", "Principal"


def _document(grant: PermissionGrant) -> dict[str, Any]:
    return {
        "id": grant.grant_id,
        "clientId": grant.client,
        "consentType": FOR_ONE if grant.person else FOR_ALL,
        "principalId": grant.person,
        "resourceId": grant.resource,
        "scope": " ".join(grant.scopes),
    }


def _granted(call: Call) -> list[PermissionGrant]:
    grants = call.entra.directory.grants.values()
    return [each for each in grants if each.tenant == call.tenant]


def _list(call: Call) -> web.Response:
    return call.many(KIND, [_document(each) for each in _granted(call)])


def _list_of_client(call: Call) -> web.Response:
    client = find(call).object_id
    return call.many(KIND, [_document(each) for each in _granted(call) if each.client == client])


def _find(call: Call) -> PermissionGrant:
    for each in _granted(call):
        if each.grant_id == call.keys["grant"]:
            return each
    raise not_found(call.keys["grant"])


def _get(call: Call) -> web.Response:
    return call.one(KIND, _document(_find(call)))


def _create(call: Call) -> web.Response:
    members, directory = call.members(), call.entra.directory
    ends = [call.text(members, name) for name in ("clientId", "resourceId")]
    for end in ends:
        if end not in directory.principals or directory.principals[end].tenant != call.tenant:
            raise not_found(end)
    consent, person = members.get("consentType"), members.get("principalId")
    if consent not in {FOR_ALL, FOR_ONE} or (consent == FOR_ONE) != bool(person):
        raise bad_request("Invalid value specified for property 'consentType' of resource.")
    for each in _granted(call):
        if (each.client, each.resource, each.person) == (*ends, person):
            raise conflict("Permission entry already exists.")
    grant = PermissionGrant(
        tenant=call.tenant,
        client=ends[0],
        resource=ends[1],
        person=person,
        scopes=_scopes(members),
    )
    directory.grants[grant.grant_id] = grant
    return call.one(KIND, _document(grant), status=201)


def _change(call: Call) -> web.Response:
    grant, members = _find(call), call.members()
    for name, value in members.items():
        if name != "scope" and value != _document(grant).get(name):
            raise bad_request(f"Property cannot be updated: {name}")
    grant.scopes = _scopes(members)
    return nothing()


def _delete(call: Call) -> web.Response:
    del call.entra.directory.grants[_find(call).grant_id]
    return nothing()


def _scopes(members: dict[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(members.get("scope") or "").split()))


OPERATIONS = [
    ("GET", KIND, READ, _list),
    ("POST", KIND, WRITE, _create),
    ("GET", f"{KIND}/{{grant}}", READ, _get),
    ("PATCH", f"{KIND}/{{grant}}", WRITE, _change),
    ("DELETE", f"{KIND}/{{grant}}", WRITE, _delete),
    ("GET", f"servicePrincipals/{{id}}/{KIND}", READ, _list_of_client),
]

"""`/applications`: the registrations in the caller's tenant.

https://learn.microsoft.com/graph/api/resources/application
"""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from local.entra.graph.calls import nothing
from local.entra.graph.errors import GraphError, bad_request, conflict, not_found
from local.entra.graph.registrations import app_of, blank, document, object_id
from local.entra.objects import App, ManagedIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from local.entra.graph.calls import Call

READ = ("Application.Read.All", "Application.ReadWrite.All", "Directory.Read.All")
WRITE = ("Application.ReadWrite.All",)
FIXED = frozenset({"id", "appId", "createdDateTime", "publisherDomain", "uniqueName"})
NAMES = ("id", "app_id", "unique_name")
NAME_LENGTH = 256
AUDIENCES = frozenset(
    {
        *("AzureADMyOrg", "AzureADMultipleOrgs"),
        *("AzureADandPersonalMicrosoftAccount", "PersonalMicrosoftAccount"),
    }
)


def find(call: Call) -> App:
    """Return the registration that the path names.

    Raises:
        GraphError: it is not in the tenant.
    """
    ((key, name),) = [(key, name) for key, name in call.keys.items() if key in NAMES]
    for app in _registered(call):
        unique_name = document(call.entra.directory, app)["uniqueName"]
        names = dict(
            zip(NAMES, (object_id(app.client_id), app.client_id, unique_name), strict=True)
        )
        if names[key] == name:
            return app
    raise not_found(name)


def _registered(call: Call) -> list[App]:
    apps = call.entra.directory.apps.values()
    return [a for a in apps if a.tenant == call.tenant and not isinstance(a, ManagedIdentity)]


def _list(call: Call) -> web.Response:
    directory = call.entra.directory
    return call.many("applications", [document(directory, app) for app in _registered(call)])


def _get(call: Call) -> web.Response:
    return call.one("applications", document(call.entra.directory, find(call)))


def _create(call: Call) -> web.Response:
    members = call.members()
    name = call.text(members, "displayName")
    client_id = str(uuid.uuid4())
    app = App(client_id=client_id, name=name, tenant=call.tenant)
    before = blank(call.tenant, client_id, name)
    if unique := call.keys.get("unique_name") or members.get("uniqueName"):
        taken = (document(call.entra.directory, app)["uniqueName"] for app in _registered(call))
        if unique in taken:
            raise conflict(
                "Another object with the same value for property uniqueName already exists."
            )
        before["uniqueName"] = unique
    _store(call, app, before, members)
    return call.one("applications", document(call.entra.directory, app), status=201)


def _change(call: Call) -> web.Response:
    try:
        app = find(call)
    except GraphError:
        # https://learn.microsoft.com/graph/api/application-upsert
        if "unique_name" in call.keys and call.prefers == "create-if-missing":
            return _create(call)
        raise
    _store(call, app, document(call.entra.directory, app), call.members())
    return nothing()


def _delete(call: Call) -> web.Response:
    app, directory = find(call), call.entra.directory
    del directory.apps[app.client_id]
    directory.documents.pop(app.client_id, None)
    for principal in list(directory.principals.values()):
        # In other tenants the service principal stays behind, as in Entra.
        if (principal.client_id, principal.tenant) == (app.client_id, call.tenant):
            directory.remove_principal(principal.object_id)
    return nothing()


def _add_password(call: Call) -> web.Response:
    app, directory = find(call), call.entra.directory
    registration = document(directory, app)
    asked = call.members().get("passwordCredential") or {}
    secret = f"worthless-{secrets.token_urlsafe(24)}"
    made = {
        "keyId": str(uuid.uuid4()),
        "displayName": asked.get("displayName"),
        "hint": secret[:3],
        "startDateTime": registration["createdDateTime"],
        "endDateTime": asked.get("endDateTime"),
    }
    registration["passwordCredentials"] = [made]
    directory.documents[app.client_id] = registration
    directory.apps[app.client_id] = replace(app, secret=secret)
    return call.one("microsoft.graph.passwordCredential", {**made, "secretText": secret})


def _store(call: Call, app: App, before: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Check and make changes; the properties of a complex property can change one by one."""
    after = dict(before)
    for name, value in changes.items():
        if name.startswith("@odata."):
            continue
        if name not in before or (name in FIXED and value != before[name]):
            raise bad_request(f"Property '{name}' does not exist, or is read-only.")
        merge = isinstance(value, dict) and isinstance(before[name], dict)
        after[name] = {**before[name], **value} if merge else value
    _check(call, before, after)
    directory = call.entra.directory
    directory.documents[app.client_id] = after
    directory.apps[app.client_id] = app_of(directory, after, app)


def _check(call: Call, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    if not after["displayName"] or len(after["displayName"]) > NAME_LENGTH:
        raise bad_request("Invalid value specified for property 'displayName' of resource.")
    if after["signInAudience"] not in AUDIENCES:
        raise bad_request("Invalid value specified for property 'signInAudience' of resource.")
    _check_uris(call, after)
    for kind, old in (("api", before["api"]["oauth2PermissionScopes"]), ("", before["appRoles"])):
        new = after["api"]["oauth2PermissionScopes"] if kind else after["appRoles"]
        _check_permissions(old, new)
    _check_preauthorized(call, before, after)


def _check_uris(call: Call, after: Mapping[str, Any]) -> None:
    """A URI names the app, the tenant, or a domain of the tenant, and no other app has it."""
    own = f"api://({after['appId']}|{call.tenant.tenant_id}|{re.escape(call.tenant.domain)})(/.*)?"
    domain = f"(https|api)://([^/]+\\.)?{re.escape(call.tenant.domain)}(/.*)?"
    for uri in after["identifierUris"]:
        if not re.fullmatch(f"{own}|{domain}", uri):
            message = (
                "Values of identifierUris property must use a verified domain of the organization "
                f"or its subdomain: '{uri}'"
            )
            raise bad_request(message, "HostNameNotOnVerifiedDomain")
        other = call.entra.directory.app(uri)
        if other and other.client_id != after["appId"]:
            message = (
                "Another object with the same value for property identifierUris already exists."
            )
            raise bad_request(message)


def _check_permissions(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Scopes and roles have unique ids and values, and end only after they were disabled."""
    for name in ("id", "value"):
        values = [each.get(name) for each in new if name == "id" or each.get(name)]
        if len(set(values)) < len(values):
            raise bad_request(f"Duplicate value found in the collection: property '{name}'.")
    for each in new:
        try:
            uuid.UUID(str(each.get("id")))
        except ValueError as exc:
            raise bad_request("Invalid value specified for property 'id' of resource.") from exc
    kept = {each["id"]: each for each in new}
    for each in old:
        unchanged = kept.get(each["id"], {}).get("value") == each.get("value")
        if each.get("isEnabled", True) and not unchanged:
            message = (
                "Permission (scope or role) cannot be deleted or updated unless disabled first."
            )
            raise bad_request(message, "CannotDeleteOrUpdateEnabledEntitlement")


def _check_preauthorized(call: Call, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Apps and scopes exist; scopes that the same request defines do not count.

    https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/1395
    """
    defined = {each["id"] for each in before["api"]["oauth2PermissionScopes"]}
    for each in after["api"]["preAuthorizedApplications"]:
        if call.entra.directory.app(each["appId"]) is None:
            message = (
                f"Property PreAuthorizedApplication references applications {each['appId']} that "
                "cannot be found."
            )
            raise bad_request(message, "InvalidAppId")
        if not defined.issuperset(each["delegatedPermissionIds"]):
            message = (
                "Property api.preAuthorizedApplications.delegatedPermissionIds has a Permission Id "
                "that cannot be found in the AppPermissions sets."
            )
            raise bad_request(message)


OPERATIONS = [
    ("GET", "applications", READ, _list),
    ("POST", "applications", WRITE, _create),
    ("GET", "applications/{id}", READ, _get),
    ("PATCH", "applications/{id}", WRITE, _change),
    ("DELETE", "applications/{id}", WRITE, _delete),
    ("POST", "applications/{id}/addPassword", WRITE, _add_password),
]

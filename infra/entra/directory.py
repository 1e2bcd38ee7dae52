"""What Microsoft Graph says about a tenant, as far as the broker has to do with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.entra.rest import RefusedError, segment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infra.entra.rest import Service

    Object = dict[str, Any]

# Microsoft's own apps, which have the same ids in every tenant.
GRAPH_APP = "00000003-0000-0000-c000-000000000000"
ACS_CLIENTS_APP = "2a04943b-b6a7-4f65-8786-2bb6131b59f6"
ACS_TEAMS_APP = "1fd5118e-2576-4263-8130-9503064c837a"
NAMES = {
    GRAPH_APP: "Microsoft Graph",
    ACS_CLIENTS_APP: "Azure Communication Services Clients",
    ACS_TEAMS_APP: "Azure Communication Services for Teams",
}

GROUP = "#microsoft.graph.group"
USER = "id,displayName,userPrincipalName,userType,accountEnabled"


@dataclass(slots=True)
class Directory:
    """What a tenant holds. Service principals are by client id, and absent if there is none.

    `application` is the broker's registration, which only its home tenant has.
    """

    tenant_id: str
    application: Object | None = None
    clients: dict[str, Object] = field(default_factory=dict)  # Registrations, by client id.
    principals: dict[str, Object] = field(default_factory=dict)
    credentials: list[Object] = field(default_factory=list)  # Federated ones, of the broker.
    grants: list[Object] = field(default_factory=list)  # To the broker, of delegated permissions.

    @property
    def broker_id(self) -> str | None:
        """Return the broker's client id, if it is registered here."""
        return None if self.application is None else str(self.application["appId"])

    @property
    def broker(self) -> Object | None:
        """Return the broker's service principal."""
        return self.principals.get(self.broker_id or "")

    def granted(self, app_id: str, user_id: str = "") -> set[str]:
        """Return which permissions of a resource the broker has for all users, or for one."""
        resource = self.principals.get(app_id, {}).get("id")
        whom = [None, "", user_id] if user_id else [None, ""]
        return {
            scope
            for grant in self.grants
            if grant["resourceId"] == resource and grant.get("principalId") in whom
            for scope in grant.get("scope", "").split()
        }


class Graph:
    """Reads a tenant through Microsoft Graph."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def tenant_id(self) -> str:
        """Return the id of the tenant that the administrator has signed in to."""
        organizations = self.service.list("/v1.0/organization?$select=id")
        return str(next(iter(organizations))["id"])

    def principal(self, client_id: str) -> Object | None:
        """Return an app's service principal."""
        return self.service.find(f"/v1.0/servicePrincipals(appId='{segment(client_id)}')")

    def registration(self, client_id: str) -> Object | None:
        """Return an app's registration, which only its home tenant has."""
        return self.service.find(f"/v1.0/applications(appId='{segment(client_id)}')")

    def read(
        self, tenant_id: str, *, unique_name: str, client_id: str | None, others: Iterable[str]
    ) -> Directory:
        """Return what the tenant holds of the broker, Microsoft's apps and the client apps.

        Args:
            tenant_id: the tenant.
            unique_name: of the broker's registration.
            client_id: of the broker, if it is known; then the name is not looked up.
            others: client ids of Microsoft's apps and of the client apps.
        """
        found = Directory(tenant_id)
        found.application = (
            self.registration(client_id)
            if client_id
            else self.service.find(f"/v1.0/applications(uniqueName='{segment(unique_name)}')")
        )
        broker_id = client_id or found.broker_id
        for app_id in [*others, *([broker_id] if broker_id else [])]:
            if principal := self.principal(app_id):
                found.principals[app_id] = principal
            if app_id not in NAMES and app_id != broker_id and (app := self.registration(app_id)):
                found.clients[app_id] = app
        if found.application:
            of_broker = f"/v1.0/applications/{segment(found.application['id'])}"
            found.credentials = [*self.service.list(f"{of_broker}/federatedIdentityCredentials")]
        if broker_id and (principal := found.principals.get(broker_id)):
            found.grants = self.grants(principal["id"])
        return found

    def owners(self, application: Object) -> list[str]:
        """Return who owns a registration, nobody if that cannot be read."""
        path = f"/v1.0/applications/{segment(application['id'])}/owners"
        try:
            return [
                f"{each.get('userPrincipalName') or each.get('displayName')} ({each['id']})"
                for each in self.service.list(path)
            ]
        except RefusedError:
            return []

    def grants(self, principal_id: str) -> list[Object]:
        """Return which delegated permissions an app has in the tenant."""
        path = f"/v1.0/servicePrincipals/{segment(principal_id)}/oauth2PermissionGrants"
        return [*self.service.list(path)]

    def user(self, name: str) -> Object | None:
        """Return a user by object id or user principal name."""
        return self.service.find(f"/v1.0/users/{segment(name)}?$select={USER}")

    def group_name(self, group_id: str) -> str | None:
        """Return the name of a group, None if there is no such group."""
        group = self.service.find(f"/v1.0/groups/{segment(group_id)}?$select=id,displayName")
        return str(group["displayName"]) if group else None

    def groups(self, user_id: str, *, nested: bool) -> dict[str, str]:
        """Return the names of the groups that a user is a member of, by object id."""
        relation = "transitiveMemberOf" if nested else "memberOf"
        path = f"/v1.0/users/{segment(user_id)}/{relation}?$select=id,displayName"
        objects = self.service.list(path)
        return {
            each["id"]: each.get("displayName") or each["id"]
            for each in objects
            if each.get("@odata.type", GROUP) == GROUP
        }

    def assigned(self, principal_id: str) -> set[str]:
        """Return the ids of the users and groups that are assigned to an app."""
        path = f"/v1.0/servicePrincipals/{segment(principal_id)}/appRoleAssignedTo"
        return {str(each["principalId"]) for each in self.service.list(path)}

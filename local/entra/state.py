"""The live state of a directory: what sign-ins ask it, and what Microsoft Graph changes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from local.entra import directory as known
from local.entra.objects import PermissionGrant, RoleAssignment, ServicePrincipal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from local.entra.objects import App, Group, Tenant, User

NO_ROLE = "00000000-0000-0000-0000-000000000000"  # "Default access", to an app without roles.


class Directory:
    """Tenants, people, groups and apps, with Entra's ways to look them up; tests may change it.

    A new one has the people, and the apps with their registrations, but service principals only
    of those that `install` puts into a tenant.
    """

    def __init__(
        self,
        tenants: Iterable[Tenant] = known.TENANTS,
        users: Iterable[User] = known.USERS,
        groups: Iterable[Group] = known.GROUPS,
        apps: Iterable[App] = known.APPS,
    ) -> None:
        self.tenants = tuple(tenants)
        self.users = list(users)
        self.groups = list(groups)
        self.members = {g.object_id: {u.object_id for u in g.members} for g in self.groups}
        self.disabled: set[str] = set()  # Object ids of users.
        self.policies: dict[str, tuple[str, str | None]] = {}
        self.documents: dict[str, dict[str, Any]] = {}  # Registrations, as Graph changed them.
        self.apps = {app.client_id: app for app in apps}
        self.principals: dict[str, ServicePrincipal] = {}
        self.grants: dict[str, PermissionGrant] = {}
        self.roles: dict[str, RoleAssignment] = {}

    # Look-ups.

    def tenant(self, name: str) -> Tenant | None:
        """Find a tenant by id or domain."""
        names = {
            key: tenant for tenant in self.tenants for key in (tenant.tenant_id, tenant.domain)
        }
        return names.get(name.lower())

    def user(self, name: str) -> User | None:
        """Find a user by user name or object id."""
        wanted = name.lower()
        return next((u for u in self.users if wanted in {u.user_name, u.object_id}), None)

    def user_in(self, tenant: Tenant, account: User) -> User | None:
        """Find the user object of an account in a tenant: the account itself, or a guest."""
        found = (user for user in self.users if (user.tenant, user.account) == (tenant, account))
        return next(found, None)

    def app(self, name: str) -> App | None:
        """Find an app by client id or URI, ignoring trailing slashes."""
        wanted = name.rstrip("/")
        return next(
            (app for app in self.apps.values() if wanted in {app.client_id, *app.uris}), None
        )

    def principal(self, app: App, tenant: Tenant) -> ServicePrincipal | None:
        """Find an app's service principal in a tenant."""
        return next(
            (
                each
                for each in self.principals.values()
                if (each.client_id, each.tenant) == (app.client_id, tenant)
            ),
            None,
        )

    def groups_of(self, tenant_id: str, object_id: str) -> frozenset[str]:
        """Return the ids of the groups of a tenant that somebody is a member of."""
        return frozenset(
            group.object_id
            for group in self.groups
            if group.tenant.tenant_id == tenant_id and object_id in self.members[group.object_id]
        )

    # Permissions.

    def granted(self, client: App, resource: App, user: User) -> tuple[str, ...]:
        """Return the delegated permissions that a client has at a resource, for a user.

        An app needs no permission to itself, nor one that its API preauthorises for it.
        """
        ahead = dict(resource.preauthorized).get(client.client_id, ())
        ends = self.principal(client, user.tenant), self.principal(resource, user.tenant)
        if client.client_id == resource.client_id:
            ahead = resource.scopes
        consented = {
            scope
            for grant in self.grants.values()
            if (grant.client, grant.resource) == tuple(end and end.object_id for end in ends)
            and grant.person in {None, user.object_id}
            for scope in grant.scopes
        }
        return tuple(scope for scope in resource.scopes if scope in {*ahead, *consented})

    def roles_at(self, resource: App, tenant: Tenant, principal_id: str) -> list[str]:
        """Return the roles that a user (also as a member of groups) or an app has at a resource."""
        held = self._assigned(resource, tenant, principal_id)
        return [role for role in resource.defined_roles if resource.role_id(role) in held]

    def may_enter(self, resource: App, user: User) -> bool:
        """Return whether a user gets tokens for a resource, which can require an assignment."""
        principal = self.principal(resource, user.tenant)
        closed = principal is not None and principal.assignment_required
        return not closed or bool(self._assigned(resource, user.tenant, user.object_id))

    def _assigned(self, resource: App, tenant: Tenant, principal_id: str) -> set[str]:
        principal = self.principal(resource, tenant)
        holders = {principal_id, *self.groups_of(tenant.tenant_id, principal_id)}
        return {
            each.role_id
            for each in self.roles.values()
            if principal and each.resource == principal.object_id and each.principal in holders
        }

    def policy_for(self, resource: App, user: User) -> str | None:
        """Return the id of the conditional access policy that wants more of a user."""
        affected = {(resource.client_id, None), (resource.client_id, user.object_id)}
        return next((each for each, on in self.policies.items() if on in affected), None)

    # Changes.

    def require_step_up(self, resource: App, user: User | None = None) -> str:
        """Want a second factor at a resource from a user, or from all; return the policy's id."""
        policy = str(uuid.uuid4())
        self.policies[policy] = (resource.client_id, user.object_id if user else None)
        return policy

    def install(self, app: App, *tenants: Tenant) -> None:
        """Give an app a service principal in tenants, unless it has one there."""
        for tenant in tenants:
            if self.principal(app, tenant) is None:
                object_id = app.principal_in(tenant)
                self.principals[object_id] = ServicePrincipal(
                    object_id=object_id, tenant=tenant, client_id=app.client_id
                )

    def remove_principal(self, object_id: str) -> None:
        """Remove a service principal, and with it what was granted to it or at it."""
        del self.principals[object_id]
        for key, grant in list(self.grants.items()):
            if object_id in {grant.client, grant.resource}:
                del self.grants[key]
        for key, role in list(self.roles.items()):
            if object_id in {role.principal, role.resource}:
                del self.roles[key]

    def consent(
        self, client: App, resource: App, scopes: Iterable[str], *, by: User, for_all: bool
    ) -> None:
        """Let a client have more permissions at a resource, for a user or for the whole tenant.

        The client gets its service principal, if it has none; the resource must have one.
        """
        self.install(client, by.tenant)
        ends = self.principal(client, by.tenant), self.principal(resource, by.tenant)
        assert ends[0]  # noqa: S101 - it was just installed
        assert ends[1]  # noqa: S101 - see above
        person = None if for_all else by.object_id
        same = (ends[0].object_id, ends[1].object_id, person)
        for grant in self.grants.values():
            if (grant.client, grant.resource, grant.person) == same:
                grant.scopes = tuple(dict.fromkeys([*grant.scopes, *scopes]))
                return
        grant = PermissionGrant(
            tenant=by.tenant, client=same[0], resource=same[1], person=person, scopes=tuple(scopes)
        )
        self.grants[grant.grant_id] = grant

    def assign(self, resource: App, tenant: Tenant, principal_id: str, *roles: str) -> None:
        """Give a user, a group or an app roles at a resource."""
        principal = self.principal(resource, tenant)
        assert principal  # noqa: S101 - roles are assigned where the resource is installed
        for role in roles:
            made = RoleAssignment(
                tenant=tenant,
                principal=principal_id,
                resource=principal.object_id,
                role_id=resource.role_id(role),
            )
            self.roles[made.assignment_id] = made

    def forget(self, tenant: Tenant, object_id: str) -> None:
        """Remove a user from the tenant and its groups."""
        self.users = [u for u in self.users if (u.tenant, u.object_id) != (tenant, object_id)]
        for members in self.members.values():
            members.discard(object_id)


def untouched() -> Directory:
    """Return a directory in which nobody has set up the broker.

    There are people and groups, the apps that call the broker, and the managed identities. There is
    no registration of the broker, no service principal of those apps of Azure Communication
    Services whose users sign in, and no consent.
    """
    apps = (app for app in known.APPS if app not in {known.BROKER, known.EXPENSES_API})
    directory = Directory(apps=apps)
    for app in known.MICROSOFT:
        directory.install(app, *known.TENANTS)
    # Azure puts it into the tenant of a subscription that has a resource of it.
    directory.install(known.ACS, known.CONTOSO)
    for app in (*known.CLIENTS, known.DAEMON, known.DEPLOYER, *known.IDENTITIES):
        directory.install(app, known.CONTOSO)
    for app in (known.DEPLOYER, known.USER_ASSIGNED_IDENTITY):
        directory.assign(
            known.GRAPH, known.CONTOSO, app.principal_in(known.CONTOSO), *app.app_roles
        )
    return directory


def set_up() -> Directory:
    """Return a directory in which everything is set up, and both tenants have consented."""
    directory = untouched()
    for app in (known.BROKER, known.EXPENSES_API):
        directory.apps[app.client_id] = app
    for app in directory.apps.values():
        directory.install(app, *(each for each in known.TENANTS if app.is_offered_to(each)))
    apis = (known.BROKER, known.EXPENSES_API, known.ACS_CLIENTS, known.ACS_TEAMS)
    for administrator in (known.GRACE, known.FARAH):
        for client in (*known.CLIENTS, known.BROKER):
            for api in (*apis, known.STORAGE):
                directory.consent(client, api, api.scopes, by=administrator, for_all=True)
            directory.consent(client, known.GRAPH, ("User.Read",), by=administrator, for_all=True)
    for user in directory.users:
        directory.assign(known.BROKER, user.tenant, user.object_id, *user.app_roles)
    daemon = known.DAEMON.principal_in(known.CONTOSO)
    directory.assign(known.BROKER, known.CONTOSO, daemon, *known.DAEMON.app_roles)
    return directory

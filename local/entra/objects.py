"""What is in a directory: tenants, people, groups, apps, and what has been granted to whom."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

# What each of these may change differs in Entra in ways that do not matter here.
ADMINISTRATORS = frozenset(
    {"Global Administrator", "Cloud Application Administrator", "Application Administrator"}
)


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organisation."""

    tenant_id: str
    domain: str
    name: str


@dataclass(frozen=True, slots=True)
class User:
    """A user object in one tenant; a guest's also names the account in the home tenant.

    `app_roles` are those at the broker that the user has in the start state.
    """

    tenant: Tenant
    object_id: str
    user_name: str
    given_name: str
    family_name: str
    app_roles: tuple[str, ...] = ()
    guest_of: User | None = None
    directory_roles: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the display name."""
        return f"{self.given_name} {self.family_name}"

    @property
    def account(self) -> User:
        """Return the account that signs in: a guest's is in the home tenant."""
        return self.guest_of or self

    @property
    def is_administrator(self) -> bool:
        """Return whether the user may register apps, and consent for everybody."""
        return not ADMINISTRATORS.isdisjoint(self.directory_roles)


@dataclass(frozen=True, slots=True)
class Group:
    """A security group in one tenant, with the members that it has at the start."""

    tenant: Tenant
    object_id: str
    name: str
    members: tuple[User, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedCredential:
    """An issuer and a subject whose tokens authenticate an app.

    Without an issuer, it is this Entra itself, for the app's home tenant.
    """

    name: str
    subject: str
    issuer: str | None = None
    audiences: tuple[str, ...] = ("api://AzureADTokenExchange",)
    credential_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app registration: what it exposes as an API, and how it authenticates as a client.

    `tenant` is its home tenant, None for Microsoft's own apps. `platform` is the type of its
    redirect URIs, which without `redirect_uris` are all those on loopback; None means that users
    cannot sign in to it, except at the `redirect_uris`. `requires` are the permissions, by
    resource, that its registration asks an administrator for, with the roles beside them, and
    `preauthorized` those that other clients have to it without consent. In the start state it has
    the `app_roles`. A token that it `trusts`, or one signed with the key of a certificate (in
    base64), authenticates it.
    """

    client_id: str
    name: str
    tenant: Tenant | None = None
    multi_tenant: bool = False
    uris: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    admin_scopes: tuple[str, ...] = ()
    defined_roles: tuple[str, ...] = ()
    permission_ids: Mapping[str, str] = field(default_factory=dict, hash=False)
    optional_claims: tuple[str, ...] = ()
    group_claims: bool = False
    token_version: int = 2
    platform: Literal["spa", "native"] | None = None
    redirect_uris: tuple[str, ...] | None = None
    secret: str | None = field(default=None, repr=False)
    app_roles: tuple[str, ...] = ()
    requires: tuple[tuple[str, tuple[str, ...]], ...] = ()
    requires_roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    preauthorized: tuple[tuple[str, tuple[str, ...]], ...] = ()
    trusts: tuple[FederatedCredential, ...] = ()
    certificates: tuple[str, ...] = ()

    def is_offered_to(self, tenant: Tenant) -> bool:
        """Return whether the app can have a service principal in a tenant."""
        return self.multi_tenant or self.tenant in {None, tenant}

    def principal_in(self, tenant: Tenant) -> str:
        """Return the object id of the app's service principal in a tenant."""
        return str(uuid.uuid5(uuid.UUID(tenant.tenant_id), self.client_id))

    def scope_id(self, name: str) -> str:
        """Return the id of a delegated permission."""
        return self._id(f"scope/{name}")

    def role_id(self, name: str) -> str:
        """Return the id of an app role."""
        return self._id(f"role/{name}")

    def _id(self, key: str) -> str:
        return self.permission_ids.get(key) or str(uuid.uuid5(uuid.UUID(self.client_id), key))


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedIdentity(App):
    """An app whose credentials Azure manages."""

    tenant: Tenant
    principal_id: str
    resource_id: str

    def principal_in(self, tenant: Tenant) -> str:  # noqa: ARG002 - it lives in one tenant only
        """Return the object id of the managed identity."""
        return self.principal_id


@dataclass(slots=True, kw_only=True)
class ServicePrincipal:
    """An app in one tenant: what the tenant's administrator sees as an enterprise application."""

    object_id: str
    tenant: Tenant
    client_id: str
    assignment_required: bool = False
    enabled: bool = True


@dataclass(slots=True, kw_only=True)
class PermissionGrant:
    """Consent: what a client may do at a resource for everybody, or for one person.

    The client and the resource are named by their service principals.
    """

    tenant: Tenant
    client: str
    resource: str
    person: str | None
    scopes: tuple[str, ...]
    grant_id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleAssignment:
    """A role of a resource that a user, a group or an app has."""

    tenant: Tenant
    principal: str
    resource: str
    role_id: str
    assignment_id: str = field(default_factory=lambda: str(uuid.uuid4()))

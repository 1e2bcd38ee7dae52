"""The directory of the local Entra: two tenants, their users, and apps.

The ids of Microsoft's own apps are the real ones. Everything else is made up, and every secret here
is worthless.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organisation."""

    tenant_id: str
    domain: str
    name: str


@dataclass(frozen=True, slots=True)
class User:
    """A user object in one tenant; a guest's also names the account in the home tenant."""

    tenant: Tenant
    object_id: str
    user_name: str
    given_name: str
    family_name: str
    app_roles: tuple[str, ...] = ()
    guest_of: User | None = None

    @property
    def name(self) -> str:
        """Return the display name."""
        return f"{self.given_name} {self.family_name}"

    @property
    def account(self) -> User:
        """Return the account that signs in: a guest's is in the home tenant."""
        return self.guest_of or self


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app registration: what it exposes as an API, and how it authenticates as a client.

    `tenant` is its home tenant, None for Microsoft's own apps. `platform` is the type of its
    redirect URIs, all of them on loopback; None means that users cannot sign in to it. A token with
    the subject `federated_subject` authenticates the app.
    """

    client_id: str
    name: str
    tenant: Tenant | None = None
    multi_tenant: bool = False
    uris: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    defined_roles: tuple[str, ...] = ()
    optional_claims: tuple[str, ...] = ()
    token_version: int = 2
    platform: Literal["spa", "native"] | None = None
    secret: str | None = field(default=None, repr=False)
    federated_subject: str | None = None
    app_roles: tuple[str, ...] = ()

    def is_in(self, tenant: Tenant) -> bool:
        """Return whether the app can be used in a tenant."""
        return self.multi_tenant or self.tenant in {None, tenant}

    def principal_in(self, tenant: Tenant) -> str:
        """Return the object id of the app's service principal in a tenant."""
        return str(uuid.uuid5(uuid.UUID(tenant.tenant_id), self.client_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedIdentity(App):
    """An app whose credentials Azure manages."""

    tenant: Tenant
    principal_id: str
    resource_id: str

    def principal_in(self, tenant: Tenant) -> str:  # noqa: ARG002 - it lives in one tenant only
        """Return the object id of the managed identity."""
        return self.principal_id


@dataclass(frozen=True, slots=True)
class Directory:
    """All tenants, users and apps, with Entra's ways to look them up."""

    tenants: tuple[Tenant, ...]
    users: tuple[User, ...]
    apps: tuple[App, ...]

    def tenant(self, name: str) -> Tenant | None:
        """Find a tenant by id or domain."""
        names = {
            key: tenant for tenant in self.tenants for key in (tenant.tenant_id, tenant.domain)
        }
        return names.get(name.lower())

    def user(self, user_name: str) -> User | None:
        """Find a user by user name."""
        return next((user for user in self.users if user.user_name == user_name.lower()), None)

    def user_in(self, tenant: Tenant, account: User) -> User | None:
        """Find the user object of an account in a tenant: the account itself, or a guest."""
        found = (user for user in self.users if (user.tenant, user.account) == (tenant, account))
        return next(found, None)

    def app(self, name: str) -> App | None:
        """Find an app by client id or URI, ignoring trailing slashes."""
        wanted = name.rstrip("/")
        return next((app for app in self.apps if wanted in {app.client_id, *app.uris}), None)


def is_loopback(url: str) -> bool:
    """Return whether a URL is on loopback: only such redirect URIs are accepted."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and host in LOOPBACK_HOSTS and not parts.fragment


CONTOSO = Tenant("3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10", "contoso.example", "Contoso")
FABRIKAM = Tenant("b19f4d08-6c27-4e35-9d7a-2f8e60c1a394", "fabrikam.example", "Fabrikam")

ADA = User(
    CONTOSO, "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834", "ada@contoso.example", "Ada", "Lovelace"
)
GRACE = User(
    *(CONTOSO, "a85e0c93-1f74-4b2d-96e8-d30b7c5a4f12", "grace@contoso.example", "Grace", "Hopper"),
    app_roles=("Mappings.Admin",),
)
FADI = User(
    FABRIKAM, "5b90e7f4-28d1-4c63-a70f-9e4c1d8b2a56", "fadi@fabrikam.example", "Fadi", "Haddad"
)
GUEST = User(
    CONTOSO,
    "e64c2a0b-7f95-4d18-83be-1a5d0f7c92e8",
    "fadi_fabrikam.example#ext#@contoso.example",
    "Fadi",
    "Haddad",
    guest_of=FADI,
)


def _microsoft(
    client_id: str,
    name: str,
    uri: str,
    *scopes: str,
    token_version: int = 1,
    defined_roles: tuple[str, ...] = (),
) -> App:
    return App(
        client_id=client_id,
        name=name,
        uris=(uri,),
        scopes=scopes,
        defined_roles=defined_roles,
        token_version=token_version,
    )


GRAPH = _microsoft(
    "00000003-0000-0000-c000-000000000000",
    "Microsoft Graph",
    "https://graph.microsoft.com",
    "User.Read",
    defined_roles=("User.Read.All",),
)
ACS = _microsoft(
    "632ec9eb-fad7-4cbd-993a-e72973ba2acc",
    "Azure Communication Services",
    "https://communication.azure.com",
)
ACS_CLIENTS = _microsoft(
    "2a04943b-b6a7-4f65-8786-2bb6131b59f6",
    "Azure Communication Services Clients",
    "https://communication.azure.com/clients",
    *("VoIP", "VoIP.Join", "Chat", "Chat.Join", "Chat.Join.Limited"),
)
ACS_TEAMS = _microsoft(
    "1fd5118e-2576-4263-8130-9503064c837a",
    "Azure Communication Services, Teams",
    "https://auth.msft.communication.azure.com",
    *("Teams.ManageCalls", "Teams.ManageChats", "TeamsExtension.ManageCalls"),
)
STORAGE = _microsoft(
    "e406a681-f3d4-42a8-90b6-c2b029497af1",
    "Azure Storage",
    "https://storage.azure.com",
    "user_impersonation",
)
TOKEN_EXCHANGE = _microsoft(
    "fb60f99c-7a34-4190-8149-302f77469936",
    "Entra token exchange",
    "api://AzureADTokenExchange",
    token_version=2,
)

_SITE = "/subscriptions/00000000-0000-0000-0000-000000000000/resourcegroups/local/providers"
USER_ASSIGNED_IDENTITY = ManagedIdentity(
    client_id="94d0b7a6-5e13-4f82-b1c9-6a2e8d70f345",
    name="id-token-broker",
    tenant=CONTOSO,
    principal_id="1c8f3e5d-a072-4b96-8d4e-f7b905c6a218",
    resource_id=f"{_SITE}/Microsoft.ManagedIdentity/userAssignedIdentities/id-token-broker",
    app_roles=("User.Read.All",),
)
SYSTEM_ASSIGNED_IDENTITY = ManagedIdentity(
    client_id="c27a94e1-d856-4030-9f6b-38e1b5d20c7f",
    name="func-token-broker",
    tenant=CONTOSO,
    principal_id="f03b6d82-4c9e-4715-a2d8-b6e47f901c53",
    resource_id=f"{_SITE}/Microsoft.Web/sites/func-token-broker",
)

BROKER = App(
    client_id="0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3",
    name="Token broker",
    tenant=CONTOSO,
    multi_tenant=True,
    uris=("api://0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3",),
    scopes=("access_as_user",),
    defined_roles=("Mappings.Admin",),
    optional_claims=("acct", "idtyp", "xms_cc"),
    secret="worthless-secret-of-the-broker",
    federated_subject=USER_ASSIGNED_IDENTITY.principal_id,
)
EXPENSES_API = App(
    client_id="d4e81b60-97fa-4c25-8e3d-05a6c9f7b142",
    name="Expenses",
    tenant=CONTOSO,
    multi_tenant=True,
    uris=("api://expenses.contoso.example",),
    scopes=("Expenses.Read", "Expenses.Submit"),
)
WEB_APP = App(
    client_id="68b2f0e9-3d5c-4a17-b94e-c1f07a8d6e25",
    name="Contoso web app",
    tenant=CONTOSO,
    multi_tenant=True,
    platform="spa",
)
DESKTOP_APP = App(
    client_id="8ac6e413-f05b-4972-a1de-4b93c7205fd8",
    name="Contoso desktop app",
    tenant=CONTOSO,
    multi_tenant=True,
    platform="native",
)
DAEMON = App(
    client_id="2e97d5ab-c640-4f38-87b1-93fd60ea1c74",
    name="Nightly clean-up",
    tenant=CONTOSO,
    secret="worthless-secret-of-the-daemon",
    app_roles=("Mappings.Admin",),
)

DIRECTORY = Directory(
    tenants=(CONTOSO, FABRIKAM),
    users=(ADA, GRACE, FADI, GUEST),
    apps=(
        *(GRAPH, ACS, ACS_CLIENTS, ACS_TEAMS, STORAGE, TOKEN_EXCHANGE),
        *(BROKER, EXPENSES_API, WEB_APP, DESKTOP_APP, DAEMON),
        *(USER_ASSIGNED_IDENTITY, SYSTEM_ASSIGNED_IDENTITY),
    ),
)

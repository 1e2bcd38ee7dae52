"""The directory of the local Entra: two tenants, their users, and apps.

The ids of Microsoft's own apps are the real ones. Everything else is made up, and every secret here
is worthless.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from local.entra.objects import App, FederatedCredential, Group, ManagedIdentity, Tenant, User

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


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
    directory_roles=("Global Administrator",),
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


FARAH = User(
    *(
        FABRIKAM,
        "c3a8d51f-60be-4972-8f14-d7e2093b6c85",
        "farah@fabrikam.example",
        "Farah",
        "Nasser",
    ),
    directory_roles=("Cloud Application Administrator",),
)
USERS = (ADA, GRACE, FADI, FARAH, GUEST)

CONTOSO_CALLERS = Group(CONTOSO, "90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954", "Contoso callers", (ADA,))
FABRIKAM_CALLERS = Group(
    FABRIKAM, "27e5b8a0-d93c-4f61-8c57-b4016fa2d3e9", "Fabrikam callers", (FADI,)
)
GROUPS = (CONTOSO_CALLERS, FABRIKAM_CALLERS)


def _ids(kind: str, ids: dict[str, str]) -> dict[str, str]:
    return {f"{kind}/{name}": permission_id for name, permission_id in ids.items()}


# https://learn.microsoft.com/graph/permissions-reference
_GRAPH_SCOPES = {
    "User.Read": "e1fe6dd8-ba31-4d61-89e7-88639da4683d",
}
_GRAPH_ADMIN_SCOPES = {
    "Application.Read.All": "c79f8feb-a9db-4090-85f9-90d820caa0eb",
    "Application.ReadWrite.All": "bdfbf15f-ee85-4955-8675-146e8e5296b5",
    "AppRoleAssignment.ReadWrite.All": "84bccea3-f856-4a8a-967b-dbe0a3d53a64",
    "DelegatedPermissionGrant.ReadWrite.All": "41ce6ca6-6826-4807-84f1-1c82854f7ee5",
    "Directory.Read.All": "06da0dbc-49e2-44d2-8312-53f166ab848a",
    "Group.ReadWrite.All": "4e46008b-f24c-477d-8fff-7bb4ec7aafe0",
    "User.ReadWrite.All": "204e0828-b5ca-4ad8-b9f3-f32a958e7cc4",
}
_GRAPH_ROLES = {
    "Application.Read.All": "9a5d68dd-52b0-4cc2-bd40-abcf44ac3a30",
    "Application.ReadWrite.All": "1bfefb4e-e0b5-418b-a88f-73c46d2cc8e9",
    "AppRoleAssignment.ReadWrite.All": "06b708a9-e830-4db3-a914-8e69da51d44f",
    "DelegatedPermissionGrant.ReadWrite.All": "8e8e4742-1d95-4f68-9d56-6ee75648c72a",
    "Directory.Read.All": "7ab1d382-f21e-4acd-a863-ba3e13f7da61",
    "Group.ReadWrite.All": "62a82d76-70ea-41e2-9197-370581804d09",
    "User.Read.All": "df021288-bdef-4463-88db-98f22de89214",
    "User.ReadWrite.All": "741f803b-c850-494e-b5df-cde7c675a1ca",
}

# The client of Azure CLI, which azure-identity's interactive credentials use, too.
AZURE_CLI = App(
    client_id="04b07795-8ddb-461a-bbee-02f9e1bf7b46",
    name="Microsoft Azure CLI",
    multi_tenant=True,
    platform="native",
)
GRAPH = App(
    client_id="00000003-0000-0000-c000-000000000000",
    name="Microsoft Graph",
    uris=("https://graph.microsoft.com",),
    scopes=(*_GRAPH_SCOPES, *_GRAPH_ADMIN_SCOPES),
    admin_scopes=tuple(_GRAPH_ADMIN_SCOPES),
    defined_roles=tuple(_GRAPH_ROLES),
    permission_ids=_ids("scope", _GRAPH_SCOPES | _GRAPH_ADMIN_SCOPES) | _ids("role", _GRAPH_ROLES),
    token_version=1,
    preauthorized=((AZURE_CLI.client_id, (*_GRAPH_SCOPES, *_GRAPH_ADMIN_SCOPES)),),
)


def _microsoft(client_id: str, name: str, uri: str, *scopes: str, token_version: int = 1) -> App:
    return App(
        client_id=client_id, name=name, uris=(uri,), scopes=scopes, token_version=token_version
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
# The ids of its permissions stand in registrations that others have published; those of the app
# before are in no public document, and made up here.
_TEAMS_SCOPES = {
    "Teams.ManageCalls": "de8ec1df-066a-4817-bc5d-9a985b986262",
    "Teams.ManageChats": "6290af7f-b407-49f9-92d5-bf584fdc4019",
    "TeamsExtension.ManageCalls": "9ed60762-c537-4e50-8984-4b1db3d922ce",
}
ACS_TEAMS = App(
    client_id="1fd5118e-2576-4263-8130-9503064c837a",
    name="Azure Communication Services, Teams",
    uris=("https://auth.msft.communication.azure.com",),
    scopes=tuple(_TEAMS_SCOPES),
    permission_ids=_ids("scope", _TEAMS_SCOPES),
    token_version=1,
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
    requires=(
        (ACS_CLIENTS.client_id, ACS_CLIENTS.scopes),
        (ACS_TEAMS.client_id, ACS_TEAMS.scopes),
        (GRAPH.client_id, ("User.Read",)),
    ),
    trusts=(
        FederatedCredential(
            name="managed-identity",
            subject=USER_ASSIGNED_IDENTITY.principal_id,
            credential_id="6e0b9d34-8c57-4a21-bf60-2d95e81c7a43",
        ),
    ),
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

# What a pipeline signs in as, to set up the directory.
DEPLOYER = App(
    client_id="b5e3917c-0d84-4c6a-a2f7-816d4b90e3c5",
    name="Deployment",
    tenant=CONTOSO,
    secret="worthless-secret-of-the-deployment",
    app_roles=(
        *("Application.ReadWrite.All", "AppRoleAssignment.ReadWrite.All"),
        *("DelegatedPermissionGrant.ReadWrite.All", "Directory.Read.All"),
    ),
)

TENANTS = (CONTOSO, FABRIKAM)
# In every tenant from the start.
MICROSOFT = (GRAPH, AZURE_CLI, STORAGE, TOKEN_EXCHANGE)
IDENTITIES = (USER_ASSIGNED_IDENTITY, SYSTEM_ASSIGNED_IDENTITY)
CLIENTS = (WEB_APP, DESKTOP_APP)
APPS = (
    *(*MICROSOFT, ACS, ACS_CLIENTS, ACS_TEAMS),
    *(BROKER, EXPENSES_API, *CLIENTS, DAEMON, DEPLOYER, *IDENTITIES),
)

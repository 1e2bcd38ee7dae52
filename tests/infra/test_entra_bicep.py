from __future__ import annotations

import graphlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
ENTRA = (ROOT / "infra/entra.bicep").read_text()
BROKER = (ROOT / "infra/modules/entra-broker.bicep").read_text()
CLIENTS = (ROOT / "infra/modules/entra-clients.bicep").read_text()
RESOURCE_APPS = (ROOT / "infra/modules/entra-resources.bicep").read_text()
MAIN = (ROOT / "infra/main.bicep").read_text()
EXAMPLE = (ROOT / "infra/entra.bicepparam").read_text()
PAGE = (ROOT / "docs/deploy.md").read_text()
SECTION = PAGE.partition("## 1. Register the broker in Entra")[2].partition("\n## ")[0]

# The properties in Microsoft.Graph v1.0 of the extension 1.0.0:
# https://github.com/microsoftgraph/msgraph-bicep-types/tree/main/generated/microsoftgraph
PERMISSION = "resourceAppId resourceAccess resourceAccess.id resourceAccess.type"
PROPERTIES = {
    "applications": (
        "uniqueName displayName description notes tags signInAudience identifierUris"
        " serviceManagementReference api appRoles optionalClaims owners publicClient"
        " requiredResourceAccess requiredResourceAccess.resourceAppId"
        " requiredResourceAccess.resourceAccess requiredResourceAccess.resourceAccess.id"
        " requiredResourceAccess.resourceAccess.type servicePrincipalLockConfiguration spa web"
        " api.acceptMappedClaims api.knownClientApplications api.oauth2PermissionScopes"
        " api.preAuthorizedApplications api.requestedAccessTokenVersion"
        " api.oauth2PermissionScopes.adminConsentDescription"
        " api.oauth2PermissionScopes.adminConsentDisplayName api.oauth2PermissionScopes.id"
        " api.oauth2PermissionScopes.isEnabled api.oauth2PermissionScopes.type"
        " api.oauth2PermissionScopes.userConsentDescription"
        " api.oauth2PermissionScopes.userConsentDisplayName api.oauth2PermissionScopes.value"
        " api.preAuthorizedApplications.appId"
        " api.preAuthorizedApplications.delegatedPermissionIds"
        " appRoles.allowedMemberTypes appRoles.description appRoles.displayName appRoles.id"
        " appRoles.isEnabled appRoles.value"
        " optionalClaims.accessToken optionalClaims.idToken optionalClaims.saml2Token"
        " optionalClaims.accessToken.additionalProperties optionalClaims.accessToken.essential"
        " optionalClaims.accessToken.name optionalClaims.accessToken.source"
        " owners.relationships owners.relationshipSemantics"
        " publicClient.redirectUris spa.redirectUris web.redirectUris"
        " servicePrincipalLockConfiguration.allProperties"
        " servicePrincipalLockConfiguration.isEnabled"
    ),
    "applications/federatedIdentityCredentials": "name issuer subject audiences description",
    "servicePrincipals": "accountEnabled appId appRoleAssignmentRequired description notes tags",
}
# https://learn.microsoft.com/entra/identity-platform/reply-url
LONGEST_REDIRECT_URI = 256
NOT_IN_REDIRECT_URIS = re.compile(r"[*#!$'(),;]")


def declarations(kind: str, text: str) -> dict[str, tuple[str, str]]:
    """Return the modules or resources of a file: for each name, its type or file, and its body."""
    pattern = rf"^{kind} (\w+) '([^']+)' = (.*?^[}}\]])$"
    return {
        name: (what, body)
        for name, what, body in re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    }


def without_comments(text: str) -> str:
    """Return Bicep without its comments; `//` inside strings stays."""
    return re.sub(r"('(?:\\.|[^'\\])*')|//[^\n]*", lambda found: found[1] or "", text)


def properties(body: str) -> set[str]:
    """Return the names of all properties in a Bicep object, as paths from its root."""
    text = re.sub(r"'(?:\\.|[^'\\])*'", "''", without_comments(body))
    found: set[str] = set()
    path: list[str] = []
    key = ""
    for name, bracket in re.findall(r"(?:(?<=[{\n,])|^)[ ]*(\w+):|([{}])", text):
        if name:
            key = name
            found.add(".".join([*path, name]).lstrip("."))
        elif bracket == "{":
            path.append(key)
            key = ""
        else:
            key = path.pop()
    return found


def values(name: str, text: str) -> list[str]:
    """Return the strings that a property has in a file, including those in lists."""
    found = re.findall(rf"\b{name}: (\[.*?\]|'[^']*')", text, re.DOTALL)
    return [value for each in found for value in re.findall(r"'([^']*)'", each)]


RESOURCES = [
    pytest.param(what, body, id=f"{file}: {name}")
    for file, text in (("broker", BROKER), ("clients", CLIENTS), ("resources", RESOURCE_APPS))
    for name, (what, body) in declarations("resource", text).items()
]


class TestTypes:
    """Graph has every property, which the compiler only warns about."""

    def test_all_resources(self) -> None:
        """The broker and the clients each have an application and a service principal.

        Microsoft's apps have service principals, and managed identities are trusted.
        """
        kinds = sorted(str(parameter.values[0]) for parameter in RESOURCES)
        application, principal = "applications@v1.0", "servicePrincipals@v1.0"
        trust = "applications/federatedIdentityCredentials@v1.0"
        expected = [trust, *[application] * 2, *[principal] * 3]
        assert kinds == [f"Microsoft.Graph/{kind}" for kind in expected]

    @pytest.mark.parametrize(("what", "body"), RESOURCES)
    def test_properties(self, what: str, body: str) -> None:
        """Graph has each property of the resources."""
        known = PROPERTIES[what.removeprefix("Microsoft.Graph/").removesuffix("@v1.0")].split()
        used = properties(body)
        assert used
        assert set() == used - set(known)

    def test_permissions(self) -> None:
        """Graph has each property of the permissions, which are in variables."""
        permissions = re.findall(r"^var \w+ = (\{.*?^\})$", CLIENTS, re.MULTILINE | re.DOTALL)
        assert len(permissions) == 2
        for permission in permissions:
            assert properties(permission) == set(PERMISSION.split())

    def test_extension(self) -> None:
        """Only the modules that need it fetch the extension, so that main.bicep never does."""
        modules = (ROOT / "infra").rglob("*.bicep")
        used = {path.name for path in modules if "\nextension " in path.read_text()}
        assert used == {"entra-broker.bicep", "entra-clients.bicep", "entra-resources.bicep"}
        assert "entra-" not in MAIN


class TestOrder:
    """The broker and its clients refer to each other, but not in a circle."""

    @pytest.mark.parametrize(
        ("kind", "text"),
        [("module", ENTRA), ("resource", BROKER), ("resource", CLIENTS)],
        ids=["entra", "broker", "clients"],
    )
    def test_no_circle(self, kind: str, text: str) -> None:
        """Every resource can be deployed after those that it refers to."""
        found = declarations(kind, text)
        references = {
            name: {other for other in found if re.search(rf"\b{other}(\.|\[)", body)}
            for name, (_, body) in found.items()
        }
        order = list(graphlib.TopologicalSorter(references).static_order())
        assert sorted(order) == sorted(found)
        if kind == "module":
            assert sorted(order[:2]) == ["clientIds", "resources"]
            assert order[2:] == ["brokerScope", "broker", "clientPermissions"]

    def test_clients_twice(self) -> None:
        """One module writes the clients twice, and only the second time with the broker's id."""
        modules = declarations("module", ENTRA)
        (first, body), (second, again) = modules["clientIds"], modules["clientPermissions"]
        assert first == second
        named = "    brokerClientId: broker.outputs.clientId\n"
        assert named in again
        assert body == again.replace(named, "")

    def test_broker_twice(self) -> None:
        """One module writes the broker twice, and pre-authorizes only once the scope exists.

        https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/1395
        """
        modules = declarations("module", ENTRA)
        (first, body), (second, again) = modules["brokerScope"], modules["broker"]
        assert first == second
        assert "    preAuthorizedClientIds: []\n" in body
        assert "    scopeId: brokerScope.outputs.scopeId\n" in again
        pattern = r"    preAuthorizedClientIds: (\[\]|concat\(.*?\n    \))\n"
        without = re.sub(pattern, "", body, flags=re.DOTALL)
        as_first = again.replace("brokerScope.outputs.scopeId", "scopeId")
        assert without == re.sub(pattern, "", as_first, flags=re.DOTALL)

    def test_plain_values(self) -> None:
        """No lambda function is applied to another registration of the same file.

        https://github.com/Azure/bicep/issues/18046
        """
        for text in (BROKER, CLIENTS, RESOURCE_APPS):
            resources = "|".join(declarations("resource", text))
            assert not re.search(rf"\b(map|filter|reduce|toObject)\(\s*({resources})\b", text)


class TestConsent:
    """One consent covers a client and the broker."""

    def test_known(self) -> None:
        """The broker's known clients are all that are registered with it."""
        assert (
            "knownClientIds: map(clientIds.outputs.registered, client => client.clientId)" in ENTRA
        )
        assert "knownClientApplications: knownClientIds" in BROKER

    def test_pre_authorized(self) -> None:
        """Clients are pre-authorized if they ask for it, as are the given ones from elsewhere."""
        _, body = declarations("module", ENTRA)["broker"]
        passed = re.search(r"preAuthorizedClientIds: concat\((.*?)\n    \)", body, re.DOTALL)
        assert passed
        elsewhere, here = (line.strip() for line in passed[1].split(",\n"))
        assert elsewhere == "preAuthorizedClientIds"
        asking = "filter(clientIds.outputs.registered, client => client.preAuthorized)"
        assert here == f"map({asking}, client => client.clientId)"
        assert "preAuthorized: client.preAuthorized" in CLIENTS
        assert "delegatedPermissionIds: [scopeId]" in BROKER

    def test_permissions(self) -> None:
        """A client asks for the broker's permissions, and for the broker's scope."""
        assert "requiredResourceAccess: concat(\n    [signingIn],\n    map(permissions, " in BROKER
        asked = "empty(brokerClientId) ? [signingIn] : [signingIn, callingTheBroker]"
        assert f"requiredResourceAccess: {asked}\n" in CLIENTS
        assert re.search(
            r"var callingTheBroker = \{\n  resourceAppId: brokerClientId\n"
            r"  resourceAccess: \[\{ id: scopeId, type: 'Scope' \}\]\n\}",
            CLIENTS,
        )

    def test_reply_address(self) -> None:
        """Every link for administrators names a redirect URI that is registered."""
        assert "&redirect_uri=${uriComponent(client.redirectUris[0])}'" in CLIENTS
        assert re.search(r"@minLength\(1\)\n  redirectUris: string\[\]", CLIENTS)

        (registered,) = values("redirectUris", BROKER)
        assert f"&redirect_uri=${{uriComponent('{registered}')}}'" in MAIN
        assert f"`{registered}`" in SECTION
        page = "${environment().authentication.loginEndpoint}{tenant}/adminconsent?client_id=${"
        assert page in CLIENTS
        assert page in MAIN

    @pytest.mark.parametrize("kind", ["spa", "publicClient", "web"])
    def test_kinds(self, kind: str) -> None:
        """The redirect URIs are registered only for the client's own platform."""
        uris = f"client.kind == '{kind}' ? client.redirectUris : []"
        assert f"{kind}: {{ redirectUris: {uris} }}" in CLIENTS
        assert f"'{kind}'" in re.findall(r"^  kind: (.*)$", CLIENTS, re.MULTILINE)[0]


class TestScopeAndRoles:
    """Scopes and roles keep their ids, to which consents and assignments refer."""

    def test_ids(self) -> None:
        """An id is computed from the registration's fixed name and its own, so it never changes."""
        text = ENTRA + BROKER + CLIENTS
        ids = re.findall(r"guid\(([^)]*)\)", text)
        names = ["scopeName", "'Tokens.Get'", "'Mappings.Admin'"]
        assert ids == [f"uniqueName, {name}" for name in names]
        assert re.findall(r"^var scopeName = '(.*)'$", ENTRA, re.MULTILINE) == ["access_as_user"]
        assert not re.search(r"\b(newGuid|utcNow)\(", text)

    def test_scope(self) -> None:
        """The scope is the one that the broker requires by default."""
        (required,) = re.findall(r"^param entraRequiredScope string = '(.*)'$", MAIN, re.MULTILINE)
        assert f"var scopeName = '{required}'" in ENTRA
        assert f"`{required}`" in SECTION

    def test_roles(self) -> None:
        """Each role has its own id; the page assigns the role without power by its name."""
        _, body = declarations("resource", BROKER)["broker"]
        roles = re.findall(
            r"id: guid\(uniqueName, '(.*)'\)\n\s+value: '(.*)'\n"
            r"(?:.*\n){2}\s+allowedMemberTypes: \[(.*)\]",
            body,
        )
        assert roles == [
            ("Tokens.Get", "Tokens.Get", "'User'"),
            ("Mappings.Admin", "Mappings.Admin", "'User', 'Application'"),
        ]
        assert "appRoles[?value=='Tokens.Get'].id" in SECTION
        assert all(f"`{value}`" in SECTION for _, value, _ in roles)

    def test_signing_in(self) -> None:
        """The ids are those of Microsoft Graph and its delegated permission User.Read.

        https://learn.microsoft.com/graph/permissions-reference#userread
        """
        signing_in = re.search(r"var signingIn = (\{.*?^\})", CLIENTS, re.MULTILINE | re.DOTALL)
        assert signing_in
        assert re.findall(r"'(.*?)'", signing_in[1]) == [
            "00000003-0000-0000-c000-000000000000",
            "e1fe6dd8-ba31-4d61-89e7-88639da4683d",
            "Scope",
        ]

    @pytest.mark.parametrize("text", [BROKER, CLIENTS], ids=["broker", "clients"])
    def test_no_credential(self, text: str) -> None:
        """No registration gets a secret, and none can be added in a customer's tenant."""
        assert not re.search(r"(?i)(password|key)Credentials", text)
        locked = "servicePrincipalLockConfiguration: { isEnabled: true, allProperties: true }"
        assert text.count(locked) == text.count("'Microsoft.Graph/applications@v1.0'") == 1

    def test_assignment(self) -> None:
        """Assignment to the broker can be required, and is not by default."""
        assert "\nparam assignmentRequired bool = false\n" in ENTRA
        assert "    assignmentRequired: assignmentRequired\n" in ENTRA
        assert "  appRoleAssignmentRequired: assignmentRequired\n" in BROKER


class TestParameterFile:
    """The file that people start from registers apps that Entra accepts."""

    def test_clients(self) -> None:
        """Each client has its own name, and every property that its type has."""
        clients = re.findall(r"^  \{\n(.*?)^  \}", EXAMPLE, re.MULTILINE | re.DOTALL)
        members = re.search(r"type clientApp = \{\n(.*?)^\}", CLIENTS, re.MULTILINE | re.DOTALL)
        assert clients
        assert members
        expected = set(re.findall(r"^  (\w+): ", members[1], re.MULTILINE))
        for client in clients:
            assert properties(client) == expected
        names = [name for client in clients for name in values("name", client)]
        assert len(names) == len(set(names)) == len(clients)

    def test_redirect_uris(self) -> None:
        """Redirect URIs are absolute, https or local, and differ in more than the port."""
        uris = [urlsplit(uri) for uri in values("redirectUris", EXAMPLE)]
        assert uris
        for uri in uris:
            local = uri.hostname in {"localhost", "127.0.0.1"}
            assert uri.scheme == "https" or (uri.scheme == "http" and local)
            assert len(uri.geturl()) <= LONGEST_REDIRECT_URI
            assert not NOT_IN_REDIRECT_URIS.search(uri.geturl())
        without_ports = {(uri.scheme, uri.hostname, uri.path) for uri in uris}
        assert len(without_ports) == len(uris)

    def test_only_local(self) -> None:
        """If the file is deployed unchanged, no other site gets codes: all URIs are local."""
        hosts = {urlsplit(uri).hostname for uri in values("redirectUris", EXAMPLE)}
        assert hosts <= {"localhost", "127.0.0.1"}


class TestPage:
    """The deployment page explains the outputs, and the steps by hand are complete."""

    @pytest.mark.parametrize("name", re.findall(r"^output (\w+)", ENTRA, re.MULTILINE))
    def test_outputs(self, name: str) -> None:
        """The page names each output."""
        assert f"`{name}`" in SECTION

    def test_members(self) -> None:
        """It names the values that a client app's developer or a customer needs."""
        assert "CLIENT_APPS registeredClient[] = clientPermissions.outputs.registered\n" in ENTRA
        assert {"`clientId`", "`adminConsentUrl`"} <= set(re.findall(r"`\w+`", SECTION))

    def test_parameters(self) -> None:
        """The parameters that the page names exist."""
        named = set(re.findall(r"`param (\w+) = ", SECTION))
        assert named == {"assignmentRequired", "signInAudience"}
        assert named <= set(re.findall(r"^param (\w+)", ENTRA, re.MULTILINE))

    @pytest.mark.parametrize(
        "step",
        [
            "access_as_user",
            "Tokens.Get",
            "Mappings.Admin",
            "User.Read",
            "idtyp",
            "xms_cc",
            "requestedAccessTokenVersion",
            "knownClientApplications",
        ],
    )
    def test_by_hand(self, step: str) -> None:
        """The steps by hand set what the template sets."""
        by_hand = SECTION.partition("### Without the Microsoft Graph extension")[2]
        assert f"`{step}`" in by_hand
        assert step in ENTRA + BROKER + CLIENTS

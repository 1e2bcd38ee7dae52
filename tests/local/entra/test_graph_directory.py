"""The local Microsoft Graph: setting up a directory, and what Entra then grants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import (
    ACS_CLIENTS,
    ADA,
    AZURE_CLI,
    BROKER,
    CONTOSO,
    CONTOSO_CALLERS,
    DAEMON,
    DEPLOYER,
    EXPENSES_API,
    FABRIKAM,
    FADI,
    FARAH,
    GRACE,
    GRAPH,
    TOKEN_EXCHANGE,
    USER_ASSIGNED_IDENTITY,
    WEB_APP,
)
from local.entra.emulator import EntraEmulator
from local.entra.state import NO_ROLE, untouched
from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from local.entra.objects import User
    from local.entra.tokens import SigningKey
    from local.serving.certificates import Certificates

VOIP = "https://communication.azure.com/clients/VoIP"
SCOPE_ID = "5c1f0e7d-8a34-4b92-9d60-e3a7f254b18c"
NOBODY = "0d3b9f62-7c18-4ea5-b940-8f61d2c7a35e"  # The id of nothing.
ROLE_ID = "a9d27b63-1e58-4f0c-b7a4-60c35d8e92f1"


class Graph:
    """Calls the local Graph as somebody."""

    def __init__(self, http: aiohttp.ClientSession, entra: EntraEmulator, token: str) -> None:
        self._http = http
        self._entra = entra
        self._token = token

    async def ask(
        self, method: str, path: str, body: object = None, **query: str
    ) -> tuple[int, Any]:
        """Return the status and the body of an answer."""
        headers = {"Authorization": f"Bearer {self._token}"}
        params = {f"${name}": value for name, value in query.items()}
        async with self._http.request(
            method, f"{self._entra.url}/v1.0/{path}", json=body, params=params, headers=headers
        ) as response:
            return response.status, await response.json() if response.status != 204 else None

    async def get(self, path: str, **query: str) -> Any:
        """Return what there is."""
        status, body = await self.ask("GET", path, **query)
        assert 200 == status, body
        return body

    async def make(self, path: str, body: object) -> Any:
        """Create something."""
        status, made = await self.ask("POST", path, body)
        assert 201 == status, made
        return made

    async def refuse(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Return the status and the code of a refusal."""
        status, answer = await self.ask(method, path, body)
        assert {"code", "message", "innerError"} == answer["error"].keys()
        return status, answer["error"]["code"]


@pytest.fixture
async def new_entra(
    certificates: Certificates, entra_keys: list[SigningKey]
) -> AsyncIterator[EntraEmulator]:
    """An Entra in whose tenants nobody has set up the broker."""
    emulator = EntraEmulator(untouched(), keys=entra_keys)
    async with serve(emulator.application(), tls=certificates.server_context()) as url:
        emulator.url = url
        yield emulator


def as_user(http: aiohttp.ClientSession, entra: EntraEmulator, user: User) -> Graph:
    """Return Graph as an administrator or another user sees it with Azure CLI's client."""
    token = entra.issue_access_token(user.user_name, client=AZURE_CLI, resource=GRAPH)
    return Graph(http, entra, token)


@pytest.fixture
def graph(http: aiohttp.ClientSession, entra: EntraEmulator) -> Graph:
    """Graph of Contoso's administrator."""
    return as_user(http, entra, GRACE)


@pytest.fixture
def new_graph(http: aiohttp.ClientSession, new_entra: EntraEmulator) -> Graph:
    """Graph of Contoso's administrator, before anything is set up."""
    return as_user(http, new_entra, GRACE)


async def token(
    http: aiohttp.ClientSession, entra: EntraEmulator, tenant: str, **form: str
) -> tuple[int, Any]:
    """Return the token endpoint's answer."""
    async with http.post(f"{entra.url}/{tenant}/oauth2/v2.0/token", data=form) as response:
        return response.status, await response.json()


async def on_behalf_of(
    http: aiohttp.ClientSession, entra: EntraEmulator, user: User, scope: str = VOIP
) -> tuple[int, Any]:
    """Act for a user as the broker that is set up at the start."""
    return await token(
        http,
        entra,
        user.tenant.tenant_id,
        grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer",
        requested_token_use="on_behalf_of",
        client_id=BROKER.client_id,
        client_secret=BROKER.secret or "",
        assertion=entra.issue_access_token(user.user_name),
        scope=scope,
    )


async def test_set_up(
    http: aiohttp.ClientSession, new_entra: EntraEmulator, new_graph: Graph
) -> None:
    """A broker is set up from nothing, in two tenants, and acts for Fabrikam's user."""
    graph = new_graph
    assert (
        []
        == (await graph.get("servicePrincipals", filter=f"appId eq '{ACS_CLIENTS.client_id}'"))[
            "value"
        ]
    )
    clients = await graph.make("servicePrincipals", {"appId": ACS_CLIENTS.client_id})
    voip = next(each for each in clients["oauth2PermissionScopes"] if each["value"] == "VoIP")
    broker = await graph.make(
        "applications", {"displayName": "My broker", "signInAudience": "AzureADMultipleOrgs"}
    )
    scope = {"id": SCOPE_ID, "value": "access_as_user", "type": "User", "isEnabled": True}
    changes = {
        "identifierUris": [f"api://{broker['appId']}"],
        "api": {"requestedAccessTokenVersion": 2, "oauth2PermissionScopes": [scope]},
        "requiredResourceAccess": [
            {
                "resourceAppId": ACS_CLIENTS.client_id,
                "resourceAccess": [{"id": voip["id"], "type": "Scope"}],
            }
        ],
        "web": {"redirectUris": ["https://entra.microsoft.com/"]},
    }
    path = f"applications(appId='{broker['appId']}')"
    assert (204, None) == await graph.ask("PATCH", path, changes)
    client = {"appId": WEB_APP.client_id, "delegatedPermissionIds": [SCOPE_ID]}
    await graph.ask("PATCH", path, {"api": {"preAuthorizedApplications": [client]}})
    read = await graph.get(path)
    assert [scope] == read["api"]["oauth2PermissionScopes"]
    assert changes["web"]["redirectUris"] == read["web"]["redirectUris"]  # type: ignore[index]
    await graph.make(
        f"{path}/federatedIdentityCredentials",
        {
            "name": "identity",
            "issuer": f"{new_entra.url}/{CONTOSO.tenant_id}/v2.0",
            "subject": USER_ASSIGNED_IDENTITY.principal_id,
            "audiences": ["api://AzureADTokenExchange"],
        },
    )
    await graph.make("servicePrincipals", {"appId": broker["appId"]})

    app = new_entra.directory.apps[broker["appId"]]
    identity = new_entra.issue_access_token(
        None, client=USER_ASSIGNED_IDENTITY, resource=TOKEN_EXCHANGE
    )

    async def act() -> tuple[int, Any]:
        return await token(
            http,
            new_entra,
            FABRIKAM.tenant_id,
            grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer",
            requested_token_use="on_behalf_of",
            client_id=broker["appId"],
            client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            client_assertion=identity,
            assertion=new_entra.issue_access_token(FADI.user_name, resource=app),
            scope=VOIP,
        )

    assert [700016] == (await act())[1]["error_codes"]

    consent = f"{new_entra.url}/{FABRIKAM.tenant_id}/adminconsent"
    params = {"client_id": broker["appId"], "redirect_uri": "https://entra.microsoft.com/"}
    form = {"account": FARAH.object_id, "consent": "accept"}
    async with http.post(consent, params=params, data=form, allow_redirects=False) as response:
        assert "AADSTS650052" in response.headers["Location"]
    fabrikam = as_user(http, new_entra, FARAH)
    await fabrikam.make("servicePrincipals", {"appId": ACS_CLIENTS.client_id})
    async with http.post(consent, params=params, data=form, allow_redirects=False) as response:
        assert "admin_consent=True" in response.headers["Location"]

    status, answer = await act()
    assert (200, VOIP) == (status, answer["scope"])
    claims = new_entra.verify(answer["access_token"])
    assert (FADI.object_id, "VoIP", broker["appId"]) == (
        claims["oid"],
        claims["scp"],
        claims["appid"],
    )
    [grant] = (await fabrikam.get("oauth2PermissionGrants"))["value"]
    assert ("AllPrincipals", None, "VoIP") == (
        grant["consentType"],
        grant["principalId"],
        grant["scope"],
    )


class TestServicePrincipals:
    """`/servicePrincipals`."""

    async def test_start(self, graph: Graph) -> None:
        """At first, Microsoft's apps and the organisation's own are installed."""
        [clients] = (
            await graph.get("servicePrincipals", filter=f"appId eq '{ACS_CLIENTS.client_id}'")
        )["value"]

        assert "Azure Communication Services Clients" == clients["displayName"]
        assert "f8cdef31-a31e-4b4a-93e4-5f571e91255a" == clients["appOwnerOrganizationId"]
        names = {each["value"] for each in clients["oauth2PermissionScopes"]}
        assert set(ACS_CLIENTS.scopes) == names
        by_id = await graph.get(f"servicePrincipals/{clients['id']}", select="id,appId")
        assert {"@odata.context", "id", "appId"} == by_id.keys()
        by_key = await graph.get(f"servicePrincipals(appId='{ACS_CLIENTS.client_id}')")
        assert clients["id"] == by_key["id"]

    async def test_pages(self, graph: Graph) -> None:
        """Links lead from page to page."""
        everything = (await graph.get("servicePrincipals"))["value"]
        first = await graph.get("servicePrincipals", top="3", count="true")
        skip = (
            first["@odata.nextLink"].partition("%24skiptoken=")[2]
            or first["@odata.nextLink"].partition("$skiptoken=")[2]
        )
        second = await graph.get("servicePrincipals", top="3", skiptoken=skip)

        assert everything[:6] == first["value"] + second["value"]
        assert len(everything) == first["@odata.count"]

    @pytest.mark.parametrize(
        ("app_id", "expected"),
        [
            pytest.param(
                ACS_CLIENTS.client_id, (409, "Request_MultipleObjectsWithSameKeyValue"), id="again"
            ),
            pytest.param(NOBODY, (400, "NoBackingApplicationObject"), id="no such app"),
            pytest.param(None, (400, "Request_BadRequest"), id="no id"),
        ],
    )
    async def test_create_refused(
        self, graph: Graph, app_id: str | None, expected: tuple[int, str]
    ) -> None:
        """A tenant has an app once, if the app is offered to it."""
        assert expected == await graph.refuse("POST", "servicePrincipals", {"appId": app_id})

    async def test_delete(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """Without its service principal, a resource is out of reach, and the consent is gone."""
        path = f"servicePrincipals(appId='{ACS_CLIENTS.client_id}')"
        assert 200 == (await on_behalf_of(http, entra, ADA))[0]
        assert 204 == (await graph.ask("DELETE", path))[0]
        assert [500011] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]

        await graph.make("servicePrincipals", {"appId": ACS_CLIENTS.client_id})
        assert [65001] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]

    async def test_disabled(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """A disabled app gets no tokens."""
        path = f"servicePrincipals(appId='{BROKER.client_id}')"
        assert 204 == (await graph.ask("PATCH", path, {"accountEnabled": False}))[0]
        assert [7000112] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]

    async def test_assignment_required(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """An app can be closed to all but those assigned to it, also as members of a group."""
        path = f"servicePrincipals(appId='{ACS_CLIENTS.client_id}')"
        assert 204 == (await graph.ask("PATCH", path, {"appRoleAssignmentRequired": True}))[0]
        assert [50105] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]

        clients = (await graph.get(path))["id"]
        group = CONTOSO_CALLERS.object_id
        wanted = {"principalId": group, "resourceId": clients, "appRoleId": NO_ROLE}
        made = await graph.make(f"groups/{group}/appRoleAssignments", wanted)
        assert ("Group", "Contoso callers") == (made["principalType"], made["principalDisplayName"])
        assert 200 == (await on_behalf_of(http, entra, ADA))[0]
        listed = await graph.get(f"{path}/appRoleAssignedTo")
        assert [made["id"]] == [each["id"] for each in listed["value"]]

        assert 204 == (await graph.ask("DELETE", f"{path}/appRoleAssignedTo/{made['id']}"))[0]
        assert [50105] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]


class TestApplications:
    """`/applications`."""

    async def test_start(self, graph: Graph) -> None:
        """The registrations of Contoso, with what they ask for and define."""
        [broker] = (await graph.get("applications", filter="displayName eq 'Token broker'"))[
            "value"
        ]

        assert (BROKER.client_id, "AzureADMultipleOrgs") == (
            broker["appId"],
            broker["signInAudience"],
        )
        assert ["Mappings.Admin"] == [each["value"] for each in broker["appRoles"]]
        assert ["acct", "idtyp", "xms_cc"] == [
            each["name"] for each in broker["optionalClaims"]["accessToken"]
        ]
        assert ACS_CLIENTS.client_id == broker["requiredResourceAccess"][0]["resourceAppId"]
        by_uri = await graph.get(
            "applications", filter=f"identifierUris/any(u:u eq '{BROKER.uris[0]}')"
        )
        assert [broker] == by_uri["value"]
        found = await graph.get("applications", filter="startswith(displayName,'token')")
        assert [broker["id"]] == [each["id"] for each in found["value"]]

    async def test_others(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Another tenant sees none of them, though it sees their service principals."""
        fabrikam = as_user(http, entra, FARAH)

        assert [] == (await fabrikam.get("applications"))["value"]
        assert await fabrikam.get(f"servicePrincipals(appId='{BROKER.client_id}')")
        path = f"applications(appId='{BROKER.client_id}')"
        assert (404, "Request_ResourceNotFound") == await fabrikam.refuse("GET", path)

    async def test_role_and_claims(self, entra: EntraEmulator, graph: Graph) -> None:
        """Roles, versions and claims of tokens are those that the registration asks for."""
        role = {
            "id": ROLE_ID,
            "value": "Reader",
            "displayName": "Reader",
            "description": "Reads",
            "isEnabled": True,
            "allowedMemberTypes": ["User"],
        }
        made = await graph.make(
            "applications",
            {
                "displayName": "Reports",
                "appRoles": [role],
                "identifierUris": ["api://contoso.example/reports"],
                "groupMembershipClaims": "SecurityGroup",
                "optionalClaims": {"accessToken": [{"name": "acct"}]},
            },
        )
        principal = await graph.make("servicePrincipals", {"appId": made["appId"]})
        await graph.make(
            f"users/{ADA.user_name}/appRoleAssignments",
            {"principalId": ADA.object_id, "resourceId": principal["id"], "appRoleId": ROLE_ID},
        )
        app = entra.directory.apps[made["appId"]]
        claims = entra.verify(entra.issue_access_token(resource=app))

        assert {
            "ver": "1.0",
            "aud": "api://contoso.example/reports",
            "roles": ["Reader"],
            "groups": [CONTOSO_CALLERS.object_id],
            "acct": 0,
        }.items() <= claims.items()
        held = await graph.get(f"users/{ADA.object_id}/appRoleAssignments")
        assert {"Reports"} == {each["resourceDisplayName"] for each in held["value"]}

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"displayName": ""}, "Request_BadRequest"),
            ({"colour": "red"}, "Request_BadRequest"),
            ({"appId": NOBODY}, "Request_BadRequest"),
            ({"signInAudience": "Everyone"}, "Request_BadRequest"),
            ({"identifierUris": ["https://fabrikam.example"]}, "HostNameNotOnVerifiedDomain"),
            ({"identifierUris": list(EXPENSES_API.uris)}, "Request_BadRequest"),
            ({"appRoles": []}, "CannotDeleteOrUpdateEnabledEntitlement"),
            ({"api": {"oauth2PermissionScopes": []}}, "CannotDeleteOrUpdateEnabledEntitlement"),
            (
                {"api": {"preAuthorizedApplications": [
                    {"appId": NOBODY, "delegatedPermissionIds": []}
                ]}},
                "InvalidAppId",
            ),
            (
                {"api": {"preAuthorizedApplications": [
                    {"appId": WEB_APP.client_id, "delegatedPermissionIds": [SCOPE_ID]}
                ]}},
                "Request_BadRequest",
            ),
        ],
    )  # fmt: skip
    async def test_change_refused(self, graph: Graph, changes: dict[str, Any], code: str) -> None:
        """What Entra would not take is refused, and nothing changes."""
        path = f"applications(appId='{BROKER.client_id}')"
        before = await graph.get(path)

        assert (400, code) == await graph.refuse("PATCH", path, changes)
        assert before == await graph.get(path)

    async def test_unique_name(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """A registration is found by its unique name, and made if it is missing and wished for."""
        token = entra.issue_access_token(GRACE.user_name, client=AZURE_CLI, resource=GRAPH)
        url = f"{entra.url}/v1.0/applications(uniqueName='my-broker')"
        headers = {"Authorization": f"Bearer {token}"}
        body = {"displayName": "My broker"}
        async with http.patch(url, json=body, headers=headers) as response:
            assert 404 == response.status
        wish = {**headers, "Prefer": "create-if-missing"}
        async with http.patch(url, json=body, headers=wish) as response:
            made = await response.json()
            assert (201, "my-broker") == (response.status, made["uniqueName"])
        async with http.patch(url, json={"notes": "Ours"}, headers=wish) as response:
            assert 204 == response.status
        async with http.get(url, headers=headers) as response:
            found = await response.json()
        assert (made["id"], "Ours") == (found["id"], found["notes"])

        graph = Graph(http, entra, token)
        again = {"displayName": "Another", "uniqueName": "my-broker"}
        status, _ = await graph.refuse("POST", "applications", again)
        assert 409 == status

    async def test_scope_comes_first(self, graph: Graph) -> None:
        """A client is pre-authorized for a scope that exists, not for one of the same request.

        https://github.com/microsoftgraph/microsoft-graph-docs-contrib/issues/1395
        """
        made = await graph.make("applications", {"displayName": "Reports"})
        path = f"applications/{made['id']}"
        scope = {"id": SCOPE_ID, "value": "Reports.Read", "type": "User", "isEnabled": True}
        client = {"appId": WEB_APP.client_id, "delegatedPermissionIds": [SCOPE_ID]}
        scopes = {"oauth2PermissionScopes": [scope]}
        both = {"api": {**scopes, "preAuthorizedApplications": [client]}}
        assert 400 == (await graph.refuse("PATCH", path, both))[0]

        assert 204 == (await graph.ask("PATCH", path, {"api": scopes}))[0]
        assert 204 == (await graph.ask("PATCH", path, both))[0]

    async def test_disabled_first(self, graph: Graph) -> None:
        """A role can be removed once it is disabled."""
        path = f"applications(appId='{BROKER.client_id}')"
        roles = (await graph.get(path))["appRoles"]
        off = [{**each, "isEnabled": False} for each in roles]

        assert 204 == (await graph.ask("PATCH", path, {"appRoles": off}))[0]
        assert 204 == (await graph.ask("PATCH", path, {"appRoles": []}))[0]
        assert [] == (await graph.get(path))["appRoles"]

    async def test_secret(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """A new secret works, and is shown once."""
        path = f"applications(appId='{DAEMON.client_id}')"
        status, made = await graph.ask("POST", f"{path}/addPassword", {})
        form = {
            "grant_type": "client_credentials",
            "client_id": DAEMON.client_id,
            "client_secret": made["secretText"],
            "scope": f"{BROKER.uris[0]}/.default",
        }

        assert 200 == status
        assert 200 == (await token(http, entra, CONTOSO.tenant_id, **form))[0]
        assert made["secretText"] not in str(await graph.get(path))

    async def test_delete(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """A registration that is gone signs nobody in."""
        path = f"applications(appId='{BROKER.client_id}')"
        assert 204 == (await graph.ask("DELETE", path))[0]
        assert [700016] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]


class TestFederatedCredentials:
    """`/applications/{id}/federatedIdentityCredentials`."""

    PATH = f"applications(appId='{BROKER.client_id}')/federatedIdentityCredentials"

    def client_assertion(self, entra: EntraEmulator) -> dict[str, str]:
        """Return a request of the broker's, authenticated by its managed identity."""
        return {
            "grant_type": "client_credentials",
            "client_id": BROKER.client_id,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": entra.issue_access_token(
                None, client=USER_ASSIGNED_IDENTITY, resource=TOKEN_EXCHANGE
            ),
            "scope": "https://communication.azure.com/.default",
        }

    @pytest.mark.parametrize(
        ("changes", "number"),
        [
            pytest.param({}, None, id="right"),
            pytest.param({"issuer": "https://token.actions.example"}, 700211, id="issuer"),
            pytest.param({"audiences": ["api://other"]}, 700212, id="audience"),
            pytest.param({"subject": ADA.object_id}, 700213, id="subject"),
        ],
    )
    async def test_decides(
        self,
        http: aiohttp.ClientSession,
        entra: EntraEmulator,
        graph: Graph,
        changes: dict[str, Any],
        number: int | None,
    ) -> None:
        """Issuer, audience and subject have to fit, and Entra says which does not."""
        [credential] = (await graph.get(self.PATH))["value"]
        assert f"{entra.url}/{CONTOSO.tenant_id}/v2.0" == credential["issuer"]
        path = f"{self.PATH}/{credential['id']}"
        assert 204 == (await graph.ask("PATCH", path, changes))[0]
        assert {**credential, **changes}.items() <= (await graph.get(path)).items()

        form = self.client_assertion(entra)
        status, answer = await token(http, entra, CONTOSO.tenant_id, **form)
        assert ([number] if number else None, 401 if number else 200) == (
            answer.get("error_codes"),
            status,
        )

    async def test_none(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """Without a credential, no assertion works."""
        assert 204 == (await graph.ask("DELETE", f"{self.PATH}/managed-identity"))[0]
        form = self.client_assertion(entra)
        _, answer = await token(http, entra, CONTOSO.tenant_id, **form)
        assert [70025] == answer["error_codes"]

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"name": None}, (400, "Request_BadRequest")),
            ({"subject": ""}, (400, "Request_BadRequest")),
            ({"audiences": []}, (400, "Request_BadRequest")),
            ({"name": "managed-identity"}, (409, "Request_MultipleObjectsWithSameKeyValue")),
            (
                {"subject": USER_ASSIGNED_IDENTITY.principal_id},
                (409, "Request_MultipleObjectsWithSameKeyValue"),
            ),
        ],
    )
    async def test_create_refused(
        self,
        entra: EntraEmulator,
        graph: Graph,
        changes: dict[str, Any],
        expected: tuple[int, str],
    ) -> None:
        """A credential is whole, and there is only one of its kind."""
        body = {
            "name": "another",
            "issuer": f"{entra.url}/{CONTOSO.tenant_id}/v2.0",
            "subject": "somebody",
            "audiences": ["api://AzureADTokenExchange"],
            **changes,
        }
        assert expected == await graph.refuse("POST", self.PATH, body)


class TestPermissionGrants:
    """`/oauth2PermissionGrants`."""

    async def test_decides(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """The broker has what the grant says, for whom it says."""
        ends = [
            (await graph.get(f"servicePrincipals(appId='{app.client_id}')"))["id"]
            for app in (BROKER, ACS_CLIENTS)
        ]
        wanted = f"clientId eq '{ends[0]}' and resourceId eq '{ends[1]}'"
        [grant] = (await graph.get("oauth2PermissionGrants", filter=wanted))["value"]
        path = f"oauth2PermissionGrants/{grant['id']}"

        assert (204, None) == await graph.ask("PATCH", path, {"scope": "VoIP.Join"})
        status, problem = await on_behalf_of(http, entra, ADA)
        assert (400, "invalid_grant", "consent_required", [65001]) == (
            status,
            problem["error"],
            problem["suberror"],
            problem["error_codes"],
        )
        assert 200 == (await on_behalf_of(http, entra, ADA, f"{VOIP}.Join"))[0]
        default = VOIP.replace("VoIP", ".default")
        _, answer = await on_behalf_of(http, entra, ADA, default)
        assert f"{VOIP}.Join {default}" == answer["scope"]

        assert 204 == (await graph.ask("DELETE", path))[0]
        assert [65001] == (await on_behalf_of(http, entra, ADA, default))[1]["error_codes"]
        for_ada = {
            "clientId": ends[0],
            "resourceId": ends[1],
            "consentType": "Principal",
            "principalId": ADA.object_id,
            "scope": "VoIP",
        }
        await graph.make("oauth2PermissionGrants", for_ada)
        assert 200 == (await on_behalf_of(http, entra, ADA))[0]
        assert [65001] == (await on_behalf_of(http, entra, GRACE))[1]["error_codes"]
        listed = await graph.get(f"servicePrincipals/{ends[0]}/oauth2PermissionGrants")
        assert "VoIP" in {each["scope"] for each in listed["value"]}

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, (409, "Request_MultipleObjectsWithSameKeyValue")),
            ({"resourceId": NOBODY}, (404, "Request_ResourceNotFound")),
            ({"clientId": None}, (400, "Request_BadRequest")),
            ({"consentType": "Everybody"}, (400, "Request_BadRequest")),
            ({"consentType": "Principal"}, (400, "Request_BadRequest")),
        ],
    )
    async def test_create_refused(
        self, graph: Graph, changes: dict[str, Any], expected: tuple[int, str]
    ) -> None:
        """There is one grant for a client, a resource and a person."""
        body = {
            "clientId": BROKER.principal_in(CONTOSO),
            "resourceId": ACS_CLIENTS.principal_in(CONTOSO),
            "consentType": "AllPrincipals",
            "scope": "VoIP",
            **changes,
        }
        assert expected == await graph.refuse("POST", "oauth2PermissionGrants", body)

    async def test_fixed(self, graph: Graph) -> None:
        """Only the scope of a grant can be changed."""
        grant = (await graph.get("oauth2PermissionGrants"))["value"][0]
        path = f"oauth2PermissionGrants/{grant['id']}"
        body = {"principalId": ADA.object_id}
        assert (400, "Request_BadRequest") == await graph.refuse("PATCH", path, body)


class TestPeople:
    """Users, groups and tenants."""

    async def test_users(self, graph: Graph) -> None:
        """A user is found by id, by name and by a filter, in the caller's tenant."""
        by_name = await graph.get(f"users/{ADA.user_name}")
        [found] = (await graph.get("users", filter="displayName eq 'Ada Lovelace'"))["value"]

        assert (ADA.object_id, True, "Member") == (
            by_name["id"],
            by_name["accountEnabled"],
            by_name["userType"],
        )
        assert found.items() <= by_name.items()
        assert GRACE.object_id == (await graph.get("me"))["id"]
        refused = await graph.refuse("GET", f"users/{FADI.object_id}")
        assert (404, "Request_ResourceNotFound") == refused

    async def test_disabled(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, graph: Graph
    ) -> None:
        """Nobody acts for a disabled user."""
        path = f"users/{ADA.object_id}"
        assert 204 == (await graph.ask("PATCH", path, {"accountEnabled": False}))[0]
        assert [50057] == (await on_behalf_of(http, entra, ADA))[1]["error_codes"]
        assert 204 == (await graph.ask("PATCH", path, {"accountEnabled": True}))[0]
        assert 200 == (await on_behalf_of(http, entra, ADA))[0]

    async def test_groups(self, entra: EntraEmulator, graph: Graph) -> None:
        """Members join and leave."""
        [group] = (await graph.get("groups", filter="displayName eq 'Contoso callers'"))["value"]
        path = f"groups/{group['id']}/members"
        assert [ADA.object_id] == [each["id"] for each in (await graph.get(path))["value"]]

        grace = {"@odata.id": f"{entra.url}/v1.0/directoryObjects/{GRACE.object_id}"}
        assert 204 == (await graph.ask("POST", f"{path}/$ref", grace))[0]
        assert (400, "Request_BadRequest") == await graph.refuse("POST", f"{path}/$ref", grace)
        assert 204 == (await graph.ask("DELETE", f"{path}/{ADA.object_id}/$ref"))[0]
        assert {GRACE.object_id} == entra.directory.members[group["id"]]
        member_of = await graph.get(f"users/{GRACE.object_id}/memberOf")
        assert [group["id"]] == [each["id"] for each in member_of["value"]]

    async def test_tenants(self, graph: Graph) -> None:
        """The caller's tenant has a name and a domain, and others are found by theirs."""
        [own] = (await graph.get("organization"))["value"]
        path = "tenantRelationships/findTenantInformationByDomainName"
        other = await graph.get(f"{path}(domainName='{FABRIKAM.domain}')")

        assert (CONTOSO.tenant_id, CONTOSO.domain) == (own["id"], own["verifiedDomains"][0]["name"])
        assert (FABRIKAM.tenant_id, "Fabrikam") == (other["tenantId"], other["displayName"])


class TestPermissions:
    """Who may do what."""

    async def test_app(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """An app does what its roles allow."""
        deployer = Graph(
            http, entra, entra.issue_access_token(None, client=DEPLOYER, resource=GRAPH)
        )
        await deployer.make("applications", {"displayName": "Made by a pipeline"})
        denied = (403, "Authorization_RequestDenied")
        path = f"users/{ADA.object_id}"
        assert denied == await deployer.refuse("PATCH", path, {"accountEnabled": False})

        daemon = Graph(http, entra, entra.issue_access_token(None, client=DAEMON, resource=GRAPH))
        assert denied == await daemon.refuse("GET", "applications")

    async def test_user(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """A user without a directory role reads, but changes nothing."""
        ada = as_user(http, entra, ADA)
        assert (await ada.get("applications"))["value"]
        body = {"displayName": "x"}
        denied = (403, "Authorization_RequestDenied")
        assert denied == await ada.refuse("POST", "applications", body)

    async def test_scope(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """An administrator's client needs the delegated permission, too."""
        token = entra.issue_access_token(GRACE.user_name, resource=GRAPH, scopes=("User.Read",))
        graph = Graph(http, entra, token)
        assert (403, "Authorization_RequestDenied") == await graph.refuse("GET", "applications")

    async def test_not_yet(self, entra: EntraEmulator, graph: Graph) -> None:
        """What was just made can be missing for a while, on command."""
        entra.faults.fail_next("graph", status=404)
        assert (404, "Request_ResourceNotFound") == await graph.refuse("GET", "applications")
        assert await graph.get("applications")
        assert 2 == entra.faults.count("graph")

    @pytest.mark.parametrize(
        ("method", "path", "expected"),
        [
            ("GET", "planets", (400, "BadRequest")),
            ("DELETE", "organization", (405, "Request_BadRequest")),
            ("POST", "applications", (400, "BadRequest")),
            ("GET", "applications?$filter=x", (400, "Request_UnsupportedQuery")),
            ("GET", "applications?$filter=colour eq 'red'", (400, "Request_UnsupportedQuery")),
            ("GET", "applications?$top=0", (400, "Request_UnsupportedQuery")),
            ("GET", "applications?$shape=round", (400, "Request_UnsupportedQuery")),
            ("GET", f"users/{NOBODY}", (404, "Request_ResourceNotFound")),
        ],
    )
    async def test_requests(
        self, graph: Graph, method: str, path: str, expected: tuple[int, str]
    ) -> None:
        """What Graph does not know is refused in its words."""
        assert expected == await graph.refuse(method, path)

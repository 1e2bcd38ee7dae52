"""What `setup` changes in a tenant, judged on what it would read; no service is asked."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from infra.entra.consent import consent_urls
from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP, GRAPH_APP, Directory
from infra.entra.intended import exchanges_of, wanted_of
from infra.entra.options import parser
from infra.entra.permissions import NoPermissionError, permissions_of
from infra.entra.registration import Wanted, guid
from infra.entra.session import NotDoneError
from infra.entra.setup import bring_about, settings

if TYPE_CHECKING:
    from infra.entra.rest import Call

TENANT = "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10"
CLIENT = "68b2f0e9-3d5c-4a17-b94e-c1f07a8d6e25"
ELSEWHERE = "8ac6e413-f05b-4972-a1de-4b93c7205fd8"
IDENTITY = "1c8f3e5d-a072-4b96-8d4e-f7b905c6a218"
AUTHORITY = "https://login.microsoftonline.com"
SCOPES = {
    GRAPH_APP: ["User.Read", "Mail.Read"],
    ACS_CLIENTS_APP: ["Chat", "VoIP", "VoIP.Join"],
    ACS_TEAMS_APP: ["Teams.ManageCalls", "Teams.ManageChats", "TeamsExtension.ManageCalls"],
}


class Tenant:
    """Answers the calls of `setup` as Graph does, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def send(self, call: Call) -> dict[str, Any]:
        """Return what Graph returns: an object that was made, or nothing."""
        self.calls.append(call)
        number = f"id-{len(self.calls)}"
        body = call.body or {}
        if call.adds == "principal":
            return principal(body["appId"], number)
        if call.method == "POST" or call.headers:
            return {"id": number, "appId": f"app-{number}", **body}
        return {}

    @property
    def does(self) -> list[str]:
        """Return what the calls are for."""
        return [call.does for call in self.calls]


def principal(app_id: str, object_id: str) -> dict[str, Any]:
    """Return a service principal."""
    scopes = [{"id": f"{name}-id", "value": name} for name in SCOPES.get(app_id, ())]
    return {"id": object_id, "appId": app_id, "oauth2PermissionScopes": scopes}


def wanted(*exchanges: str, **changes: Any) -> Wanted:
    """Return how a tenant is to be."""
    members: dict[str, Any] = {
        "unique_name": "acs-token-broker",
        "display_name": "ACS token broker",
        "authority": AUTHORITY,
        "permissions": permissions_of(exchanges or ["entra"], ()),
        "client_ids": (CLIENT,),
        "identities": (IDENTITY,),
        "multitenant": True,
        "consent": True,
    }
    return Wanted(**members | changes)


@pytest.fixture
def directory() -> Directory:
    """A tenant that has a client app and Microsoft Graph, and nothing of the broker."""
    client = {"id": "client", "appId": CLIENT, "displayName": "Calls"}
    return Directory(
        TENANT,
        clients={CLIENT: client},
        principals={GRAPH_APP: principal(GRAPH_APP, "graph")},
    )


def run(directory: Directory, wish: Wanted) -> Tenant:
    """Bring a tenant to what is wanted, and return what it was asked."""
    tenant = Tenant()
    count = bring_about(directory, wish, tenant, say=lambda _: None)
    assert len(tenant.calls) == count
    return tenant


class TestEmptyTenant:
    """A tenant without anything gets all of it, in an order that Graph takes."""

    def test_calls(self, directory: Directory) -> None:
        """Each call refers to what the calls before have made."""
        assert run(directory, wanted()).does == [
            "add the service principal of Azure Communication Services Clients",
            "register the broker as acs-token-broker",
            f"pre-authorize {CLIENT} to call the broker",
            "add the service principal of ACS token broker",
            "add the service principal of Calls",
            "let Calls ask for the broker's scope",
            f"let the managed identity {IDENTITY} act as the broker",
            "consent to User.Read of Microsoft Graph for all users",
            "consent to VoIP of Azure Communication Services Clients for all users",
        ]

    def test_registration(self, directory: Directory) -> None:
        """The registration has everything that the broker needs, with permissions by their ids."""
        run(directory, wanted("entra", "teams"))
        made = directory.application
        assert made
        scope_id = guid("acs-token-broker", "access_as_user")
        assert made["signInAudience"] == "AzureADMultipleOrgs"
        assert made["identifierUris"] == [f"api://{TENANT}/acs-token-broker"]
        assert made["api"]["preAuthorizedApplications"] == [
            {"appId": CLIENT, "delegatedPermissionIds": [scope_id]}
        ]
        assert made["api"]["knownClientApplications"] == [CLIENT]
        assert [(role["value"], role["allowedMemberTypes"]) for role in made["appRoles"]] == [
            ("Tokens.Get", ["User"]),
            ("Mappings.Admin", ["User", "Application"]),
        ]
        asked = {
            each["resourceAppId"]: [access["id"] for access in each["resourceAccess"]]
            for each in made["requiredResourceAccess"]
        }
        assert asked == {
            GRAPH_APP: ["User.Read-id"],
            ACS_CLIENTS_APP: ["VoIP-id"],
            ACS_TEAMS_APP: ["Teams.ManageCalls-id", "Teams.ManageChats-id"],
        }

    def test_trust(self, directory: Directory) -> None:
        """The managed identity of this tenant is trusted, and nobody else."""
        run(directory, wanted())
        (made,) = directory.credentials
        assert made["subject"] == IDENTITY
        assert made["issuer"] == f"{AUTHORITY}/{TENANT}/v2.0"
        assert made["audiences"] == ["api://AzureADTokenExchange"]

    def test_again(self, directory: Directory) -> None:
        """The second time there is nothing to change."""
        run(directory, wanted("entra", "teams"))
        assert run(directory, wanted("entra", "teams")).calls == []

    def test_single_tenant_without_consent(self, directory: Directory) -> None:
        """Without the options, nobody else's users can sign in, and nobody consents."""
        tenant = run(directory, wanted(multitenant=False, consent=False))
        assert directory.application
        assert directory.application["signInAudience"] == "AzureADMyOrg"
        assert not [call for call in tenant.calls if "consent" in call.does]

    def test_client_from_elsewhere(self, directory: Directory) -> None:
        """A client of another tenant is pre-authorized, but Entra would not know it otherwise."""
        run(directory, wanted(client_ids=(ELSEWHERE,)))
        assert directory.application
        api = directory.application["api"]
        assert [each["appId"] for each in api["preAuthorizedApplications"]] == [ELSEWHERE]
        assert api["knownClientApplications"] == []

    def test_unknown_permission(self, directory: Directory) -> None:
        """A permission that the app does not have is refused, with those that it has."""
        wish = wanted(permissions=permissions_of(["entra"], ["Video"]))
        with pytest.raises(NoPermissionError, match=r"no permission Video; it has: Chat, VoIP,"):
            run(directory, wish)


def _without(name: str) -> Any:
    def change(directory: Directory) -> None:
        assert directory.application
        directory.application.pop(name)

    return change


def _disabled_scope(directory: Directory) -> None:
    assert directory.application
    directory.application["api"]["oauth2PermissionScopes"][0]["isEnabled"] = False


def _other_issuer(directory: Directory) -> None:
    directory.credentials[0]["issuer"] = f"{AUTHORITY}/another/v2.0"


def _smaller_grant(directory: Directory) -> None:
    grant = next(each for each in directory.grants if "VoIP" in each["scope"])
    grant["scope"] = "VoIP.Join"


def _without_principal(directory: Directory) -> None:
    assert directory.broker_id
    del directory.principals[directory.broker_id]


REPAIRS = [
    pytest.param(_without("appRoles"), "appRoles", id="roles"),
    pytest.param(_without("optionalClaims"), "optionalClaims", id="claim"),
    pytest.param(_without("requiredResourceAccess"), "requiredResourceAccess", id="permissions"),
    pytest.param(_disabled_scope, "registration: api", id="disabled scope"),
    pytest.param(_other_issuer, "correct the federated credential", id="issuer"),
    pytest.param(lambda it: it.credentials.clear(), "let the managed identity", id="identity"),
    pytest.param(lambda it: it.grants.clear(), "consent to", id="consent"),
    pytest.param(_without_principal, "service principal of ACS token broker", id="principal"),
    pytest.param(_smaller_grant, "consent to VoIP", id="part of the consent"),
]


@pytest.mark.parametrize(("break_it", "does"), REPAIRS)
def test_repairs(directory: Directory, break_it: Any, does: str) -> None:
    """What somebody has removed or changed comes back, and only that is changed."""
    run(directory, wanted())
    before = deepcopy(directory)
    break_it(directory)

    tenant = run(directory, wanted())

    assert tenant.calls
    assert all(does in each for each in tenant.does)
    assert run(directory, wanted()).calls == []
    if does != "consent to VoIP":  # What was granted besides is kept.
        assert directory.application == before.application


def test_registration_that_was_not_found(directory: Directory) -> None:
    """A registration that Graph did not show, but has, gets nothing before it was looked at."""

    class Behind(Tenant):
        def send(self, call: Call) -> dict[str, Any]:
            answer = super().send(call)
            return {} if "uniqueName" in call.path else answer

    tenant = Behind()
    with pytest.raises(NotDoneError, match="run it again"):
        bring_about(directory, wanted(), tenant, say=lambda _: None)
    assert "register" in tenant.does[-1]


def test_other_redirect(directory: Directory) -> None:
    """The consent page has its address beside whatever another one there is."""
    run(directory, wanted())
    assert directory.application
    directory.application["web"]["redirectUris"] = ["https://other.example/"]
    run(directory, wanted())
    assert "https://entra.microsoft.com/" in directory.application["web"]["redirectUris"]
    links = consent_urls(directory, authority=AUTHORITY, tenant=TENANT)
    assert "other.example" not in next(links)[1]


def test_scope_comes_first(directory: Directory) -> None:
    """No call refers to a scope that it defines itself, which Graph refuses."""
    for call in run(directory, wanted()).calls:
        api = (call.body or {}).get("api", {})
        if "register" in call.does:
            assert api["oauth2PermissionScopes"]
            assert "preAuthorizedApplications" not in api


def test_keeps_what_is_there(directory: Directory) -> None:
    """What others have put into the registration stays, and is not sent where it need not be."""
    run(directory, wanted())
    assert directory.application
    role = {"id": "r", "value": "Reports.Read", "isEnabled": True, "allowedMemberTypes": ["User"]}
    directory.application["appRoles"] = [role]
    directory.application["identifierUris"] = ["api://mine"]
    directory.application["tags"] = ["ours"]

    (call,) = run(directory, wanted()).calls

    assert [*(call.body or {})] == ["appRoles"]
    assert [each["value"] for each in directory.application["appRoles"]] == [
        "Reports.Read",
        "Tokens.Get",
        "Mappings.Admin",
    ]
    assert directory.application["identifierUris"] == ["api://mine"]


class TestWithoutOptions:
    """What is not named on the command line is taken from the registration."""

    def test_permissions(self, directory: Directory) -> None:
        """A later run asks for nothing else, and prints the same settings."""
        wish = wanted(permissions=permissions_of(["entra", "teams"], ["VoIP", "VoIP.Join"]))
        run(directory, wish)
        arguments = parser().parse_args(["setup"])
        assert ("entra", "teams") == exchanges_of(arguments, directory)
        found = {
            app: {*names} for app, names in wanted_of(arguments, directory).permissions.items()
        }
        assert {app: {*names} for app, names in wish.permissions.items()} == found

    def test_nothing_is_registered(self, directory: Directory) -> None:
        """At first it is the exchange for Entra ID users."""
        assert ("entra",) == exchanges_of(parser().parse_args(["setup"]), directory)

    @pytest.mark.parametrize("is_there", [True, False])
    def test_which_teams(self, directory: Directory, *, is_there: bool) -> None:
        """Where the registration does not tell, the command line has to."""
        run(directory, wanted("teams", "teams-extension"))
        if not is_there:
            del directory.principals[ACS_TEAMS_APP]
        with pytest.raises(NotDoneError, match="--exchange"):
            exchanges_of(parser().parse_args(["setup"]), directory)
        named = parser().parse_args(["setup", "--exchange", "teams"])
        assert ("teams",) == exchanges_of(named, directory)


def test_registered_by_hand(directory: Directory) -> None:
    """A registration of another making gets the usual address, and keeps a wider audience."""
    run(directory, wanted())
    assert directory.application
    directory.application |= {
        "identifierUris": [],
        "signInAudience": "AzureADandPersonalMicrosoftAccount",
    }
    (call,) = run(directory, wanted(broker_id="b")).calls
    assert {"identifierUris": ["api://b"]} == call.body


def test_settings(directory: Directory) -> None:
    """The settings name the exchanges, other permissions than usual, and the own tenant."""
    wish = wanted(permissions=permissions_of(["entra"], ["VoIP", "VoIP.Join"]), multitenant=False)
    run(directory, wish)
    lines = settings(directory, wish, ("entra",)).splitlines()
    assert "ACS_EXCHANGES=entra" in lines
    assert "ACS_ENTRA_SCOPES=VoIP,VoIP.Join" in lines
    assert f"ENTRA_TENANT_IDS={TENANT}" in lines
    assert lines[-1] == (
        "param exchanges = { kinds: ['entra'], entraScopes: ['VoIP', 'VoIP.Join'] }"
    )


def test_settings_for_several_tenants(directory: Directory) -> None:
    """A list of tenants has the own one, which it would otherwise lock out."""
    run(directory, wanted())
    text = settings(directory, wanted(), ("entra",))
    assert f"\nENTRA_TENANT_IDS={TENANT}\n" in text
    assert "add the others" in text

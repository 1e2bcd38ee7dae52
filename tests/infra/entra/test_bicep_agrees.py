"""`python -m infra.entra setup` and infra/entra.bicep name the same things in a registration.

The template writes the whole registration, while the command adds to it, so only names, texts and
defaults are compared.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP, Directory
from infra.entra.options import parser
from infra.entra.permissions import EXCHANGES, permissions_of
from infra.entra.registration import (
    CONSENT_PAGE,
    LOCK,
    ROLES,
    SCOPE,
    SCOPE_TEXTS,
    Wanted,
    completed,
    guid,
)
from infra.entra.steps import federated_credential

ROOT = Path(__file__).parents[3]
ENTRA = (ROOT / "infra/entra.bicep").read_text()
BROKER = (ROOT / "infra/modules/entra-broker.bicep").read_text()
TENANT = "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10"
WANTED = Wanted(unique_name="x", display_name="X", authority="https://a", permissions={})


def default(name: str) -> str:
    """Return the default of a parameter of infra/entra.bicep."""
    (found,) = re.findall(rf"^param {name} .* = '?(.*?)'?$", ENTRA, re.MULTILINE)
    return str(found)


class TestNames:
    """Whichever way came first, the other one finds the registration by the same names."""

    def test_registration(self) -> None:
        """Both have the same unique name, and the same name on the consent page."""
        arguments = parser().parse_args(["setup"])
        assert default("uniqueName") == arguments.unique_name
        assert default("displayName") == arguments.display_name

    def test_guid(self) -> None:
        """Ids are those of Bicep's guid(), a UUID of version 5 of the texts joined by hyphens."""
        namespace = uuid.UUID("11fb06fb-712d-4ddd-98c7-e71bbd588830")
        expected = uuid.uuid5(namespace, "acs-token-broker-access_as_user")
        assert str(expected) == guid("acs-token-broker", SCOPE)
        assert "scopeId = guid(uniqueName, scopeName)" in ENTRA
        assert "id: guid(uniqueName, 'Mappings.Admin')" in BROKER

    def test_application_id_uri(self) -> None:
        """The Application ID URI has the tenant and the unique name."""
        made = completed({}, Directory(TENANT), WANTED)
        assert made["identifierUris"] == [f"api://{TENANT}/x"]
        assert "'api://${tenant().tenantId}/${uniqueName}'" in ENTRA


class TestContents:
    """The registration has the same scope, roles, claims and addresses."""

    def test_scope(self) -> None:
        """The scope has the same name and texts."""
        assert f"var scopeName = '{SCOPE}'" in ENTRA
        for name, text in SCOPE_TEXTS.items():
            assert f"{name}: '{text}'" in BROKER

    def test_roles(self) -> None:
        """The roles have the same names, texts and holders."""
        values = re.findall(r"value: '([A-Z]\w+\.\w+)'", BROKER)
        assert values == [role["value"] for role in ROLES]
        for role in ROLES:
            assert f"displayName: '{role['displayName']}'" in BROKER
            assert f"description: '{role['description']}'" in BROKER
            holders = ", ".join(f"'{each}'" for each in role["allowedMemberTypes"])
            assert f"allowedMemberTypes: [{holders}]" in BROKER

    def test_rest(self) -> None:
        """Version of tokens, claim, address and lock are the same."""
        made = completed({}, Directory(TENANT), WANTED)
        assert made["api"]["requestedAccessTokenVersion"] == 2
        assert "requestedAccessTokenVersion: 2" in BROKER
        assert made["optionalClaims"] == {"accessToken": [{"name": "idtyp"}, {"name": "xms_cc"}]}
        assert "accessToken: [{ name: 'idtyp' }, { name: 'xms_cc' }]" in BROKER
        assert f"web: {{ redirectUris: ['{CONSENT_PAGE}'] }}" in BROKER
        assert made["servicePrincipalLockConfiguration"] == LOCK

    def test_federated_credential(self) -> None:
        """A managed identity is trusted under the same name, with the same audience."""
        made = federated_credential(TENANT, "ID", "https://a")
        assert made["name"] == "managed-identity-ID"
        assert "name: '${broker.uniqueName}/managed-identity-${principalId}'" in BROKER
        assert f"audiences: ['{made['audiences'][0]}']" in BROKER
        assert "${tenant().tenantId}/v2.0'" in BROKER

    def test_permissions(self) -> None:
        """Each exchange asks for the same permissions of the same apps."""
        assert f"var clientsApp = '{ACS_CLIENTS_APP}'" in ENTRA
        assert f"var teamsApp = '{ACS_TEAMS_APP}'" in ENTRA
        assert f"empty(entraScopes) ? {[*EXCHANGES['entra'][1]]} : entraScopes" in ENTRA
        for name in ("teams", "teams-extension"):
            assert f"contains(exchanges.kinds, '{name}') ? {[*EXCHANGES[name][1]]} : []" in ENTRA
        types = (ROOT / "infra/types.bicep").read_text()
        offered = re.findall(r"^  kinds: \((.*)\)\[\]", types, re.MULTILINE)
        assert offered == [" | ".join(f"'{name}'" for name in EXCHANGES)]
        assert "param exchanges exchangeOptions = { kinds: [] }" in ENTRA

    def test_both_kinds_of_teams(self) -> None:
        """Permissions of one app come together."""
        wanted = permissions_of(["teams", "teams-extension"], ())
        assert len(wanted[ACS_TEAMS_APP]) == 3

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from local.stack import BACKUP_CONTAINER
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BICEP = {str(path.relative_to(INFRA)): path.read_text() for path in INFRA.rglob("*.bicep")}
PARAMETER_FILES = sorted(INFRA.glob("*.bicepparam"))
APP = BICEP["modules/app.bicep"]

# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
ROLES = {
    "Communication and Email Service Owner": "09976791-48a7-449e-bb21-39d1a415f350",
    "Monitoring Metrics Publisher": "3913510d-42f4-4e42-8a64-420c390055eb",
    "Storage Blob Data Contributor": "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
    "Storage Blob Data Owner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "Storage Table Data Contributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
}
# Microsoft Graph, its permission User.Read, and the apps of Azure Communication Services, which
# test_entra_bicep.py checks.
MICROSOFT_APPS = {
    "00000003-0000-0000-c000-000000000000",
    "e1fe6dd8-ba31-4d61-89e7-88639da4683d",
    "2a04943b-b6a7-4f65-8786-2bb6131b59f6",
    "1fd5118e-2576-4263-8130-9503064c837a",
}
# The settings that the Functions host and its Application Insights read.
HOST_SETTINGS = {
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "AzureWebJobsStorage__blobServiceUri",
    "AzureWebJobsStorage__clientId",
    "AzureWebJobsStorage__credential",
    "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT",
}
# The broker's settings, with values like those of the parameters' defaults and of Azure.
SETTINGS_IN_AZURE = {
    "ENTRA_CLIENT_ID": "11111111-1111-4111-8111-111111111111",
    "ENTRA_TENANT_IDS": "22222222-2222-4222-8222-222222222222,33333333-3333-4333-8333-333333333333",
    "ENTRA_AUDIENCES": "api://11111111-1111-4111-8111-111111111111",
    "ENTRA_REQUIRED_SCOPE": "access_as_user",
    "ENTRA_ALLOWED_CLIENT_IDS": "",
    "ENTRA_ADMIN_ROLE": "Mappings.Admin",
    "ENTRA_OPERATOR_TENANT_ID": "",
    "ENTRA_AUTHORITY_HOST": "https://login.microsoftonline.com/",
    "ACS_ENDPOINT": "https://acs-dev-abc.europe.communication.azure.com",
    "ACS_EXCHANGES": "",
    "ACS_ENTRA_SCOPES": "VoIP",
    "ACS_TOKEN_SCOPES": "voip",
    "ACS_TOKEN_LIFETIME_MINUTES": "60",
    "ACS_TOKEN_MAX_LIFETIME_MINUTES": "1440",
    "TRUST_POLICY": "",
    "MAPPINGS_TABLE_ENDPOINT": "https://stabc.table.core.windows.net/",
    "MAPPINGS_TABLE": "IdentityMappings",
    "AZURE_CLIENT_ID": "44444444-4444-4444-8444-444444444444",
    "AZURE_TENANT_ID": "22222222-2222-4222-8222-222222222222",
    "PRUNE_SCHEDULE": "0 0 3 * * *",
    "PRUNE_IDLE_DAYS": "90",
    "PRUNE_DRY_RUN": "false",
    "PRUNE_MAX_SHARE": "0.20",
    "PRUNE_MAX_DELETES": "5000",
    "BACKUP_BLOB_ENDPOINT": "https://stbackupabc.blob.core.windows.net/",
    "BACKUP_CONTAINER": "mappings-backup",
    "BACKUP_SCHEDULE": "0 30 1 * * *",
    "PRUNE_DELETED_USERS_AFTER_DAYS": "",
    "PRUNE_MAX_DELETED_USERS": "500",
}
# https://learn.microsoft.com/azure/azure-functions/functions-app-settings#flex-consumption-plan-deprecations
FORBIDDEN_ON_FLEX = [
    "ENABLE_ORYX_BUILD",
    "FUNCTIONS_EXTENSION_VERSION",
    "FUNCTIONS_WORKER_RUNTIME",
    "SCM_DO_BUILD_DURING_DEPLOYMENT",
    "WEBSITE_",
    "alwaysOn",
    "ftpsState",
    "healthCheckPath",
    "linuxFxVersion",
    "pythonVersion",
]


def settings_of(variable: str) -> set[str]:
    """Return the names of the app settings in a variable of the app's module."""
    block = re.search(rf"^var {variable} = \{{\n(.*?)^\}}", APP, re.MULTILINE | re.DOTALL)
    assert block
    return set(re.findall(r"^  (\w+):", block[1], re.MULTILINE))


def settings_in_the_code() -> tuple[set[str], set[str]]:
    """Return the settings that the code reads, and those that it requires in Azure."""
    known: set[str] = set()
    required: set[str] = set()
    tree = ast.parse((ROOT / "shared/settings.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names = [
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
            if node.func.attr == "one_of":
                known |= set(names)
                required.add(names[0])  # The one that managed identity opens.
            elif node.func.attr in {"read", "optional"}:
                known |= set(names[:1])
    schedules = re.findall(r'schedule="%(\w+)%"', (ROOT / "function_app.py").read_text())
    try:
        Settings.from_env({})
    except ValueError as exc:
        required |= set(re.findall(r"(\w+) is missing", str(exc)))
    return known, required | set(schedules)


class TestSettings:
    """The app settings are those that the code reads."""

    def test_required(self) -> None:
        """Every setting that the code requires in Azure is set."""
        _, required = settings_in_the_code()
        assert {"ENTRA_CLIENT_ID", "ACS_ENDPOINT", "PRUNE_SCHEDULE", "BACKUP_SCHEDULE"} <= required
        assert set() == required - settings_of("brokerSettings")

    def test_known(self) -> None:
        """Every setting that is set is read by the broker or the host."""
        known, _ = settings_in_the_code()
        assert set() == settings_of("brokerSettings") - known
        assert HOST_SETTINGS == settings_of("hostSettings")

    def test_good_together(self) -> None:
        """The code accepts the settings that the Bicep sets."""
        assert set(SETTINGS_IN_AZURE) == settings_of("brokerSettings")
        settings = Settings.from_env(SETTINGS_IN_AZURE)
        assert settings.acs.access_key is None
        assert settings.mappings.connection_string is None
        assert settings.backup is not None
        assert settings.backup.connection_string is None

    def test_tables(self) -> None:
        """The Bicep creates the tables that the code uses."""
        assert "tableNames: [mappingsTable, '${mappingsTable}Orphans']" in BICEP["main.bicep"]
        assert 'f"{settings.table}Orphans"' in (ROOT / "shared/services.py").read_text()

    def test_container(self) -> None:
        """The container of backups has one name: for the Bicep, scripts, code and local stack."""
        [name] = re.findall(
            r"^  name: '(mappings-\w+)'$", BICEP["modules/backups.bicep"], re.MULTILINE
        )
        assert f"--container-name {name}" in (INFRA / "teardown.sh").read_text()
        assert f'"BACKUP_CONTAINER", _container_name, "{name}"' in (
            (ROOT / "shared/settings.py").read_text()
        )
        assert name == BACKUP_CONTAINER

    @pytest.mark.parametrize("forbidden", FORBIDDEN_ON_FLEX)
    def test_forbidden(self, forbidden: str) -> None:
        """The app sets nothing that Flex Consumption refuses or ignores."""
        assert forbidden not in APP


class TestKeyless:
    """No template reads, sets or outputs a secret."""

    def test_no_secret(self) -> None:
        """No template reads a key, and the only connection string is Application Insights'."""
        text = "".join(BICEP.values())
        assert not re.search(
            r"\blist[A-Z]\w*\(|AccountKey|\w+Key\b\s*:\s*\w+\.|primaryKey|@secure", text
        )
        named = set(re.findall(r"(?i)[\w.]*connection_?string[\w.]*", text))
        assert named == {
            "APPLICATIONINSIGHTS_CONNECTION_STRING",
            "component.properties.ConnectionString",
        }

    def test_outputs(self) -> None:
        """No output is named or described as a secret."""
        outputs = re.findall(r"^output (\w+) \w+ = (.*)$", "\n".join(BICEP.values()), re.MULTILINE)
        assert outputs
        secret = re.compile(r"(?i)key|secret|password|connection_?string|sas")
        assert [] == [output for output in outputs if secret.search(" ".join(output))]

    @pytest.mark.parametrize(
        ("file", "line"),
        [
            ("modules/communication.bicep", "disableLocalAuth: true"),
            ("modules/monitoring.bicep", "DisableLocalAuth: true"),
            ("modules/monitoring.bicep", "disableLocalAuth: true"),
            ("modules/storage.bicep", "allowSharedKeyAccess: false"),
            ("modules/storage.bicep", "allowBlobPublicAccess: false"),
            ("modules/storage.bicep", "minimumTlsVersion: 'TLS1_2'"),
            ("modules/storage.bicep", "supportsHttpsTrafficOnly: true"),
            ("modules/app.bicep", "httpsOnly: true"),
            ("modules/app.bicep", "minTlsVersion: '1.2'"),
            ("modules/app.bicep", "scmMinTlsVersion: '1.2'"),
            ("modules/app.bicep", "supportCredentials: false"),
        ],
    )
    def test_closed(self, file: str, line: str) -> None:
        """The lines are spelt exactly, since Azure silently accepts some misspelt values."""
        assert line in BICEP[file]


class TestRoles:
    """Roles are assigned by the right ids."""

    def test_pinned(self) -> None:
        """Every role is one of these, and a comment names it."""
        text = "\n".join(BICEP.values())
        for name, role_id in ROLES.items():
            assert re.search(rf"// {name}\b[^']*?var \w+ = '{role_id}'", text), name
        guids = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))
        assert set(ROLES.values()) == guids - MICROSOFT_APPS

    def test_deployer(self) -> None:
        """The documents and scripts allow a deployer to assign these roles and no others."""
        page = (ROOT / "docs/deploy.md").read_text()
        texts = [page, *(path.read_text() for path in INFRA.glob("*.sh"))]
        allowed = [
            found for text in texts for found in re.findall(r'^ROLES="(.*)"$', text, re.MULTILINE)
        ]
        assert allowed
        for found in allowed:
            assert sorted(ROLES.values()) == sorted(re.findall(r"[0-9a-f-]{36}", found))
        assert all(name in " ".join(page.split()) for name in ROLES)


class TestParameters:
    """Parameters have descriptions, and parameter files name only real ones."""

    @pytest.mark.parametrize("file", BICEP)
    def test_described(self, file: str) -> None:
        """Every parameter, output, type and property of a type has a description."""
        lines = BICEP[file].splitlines()
        in_type, decorated, bare = False, False, []
        for line in lines:
            declaration = re.match(r"(param|output|type|func) (\w+)", line)
            member = re.match(r"  (\w+)\??: ", line) if in_type else None
            if (declaration or member) and not decorated:
                bare.append(line)
            if declaration and declaration[1] == "type":
                in_type = line.endswith("{")
            if line == "}":
                in_type = False
            if "@description(" in line or (decorated and line.lstrip().startswith("@")):
                decorated = True
            elif not _inside_decorator(line):
                decorated = False
        assert [] == bare

    @pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.name)
    def test_files(self, path: Path) -> None:
        """A file sets each parameter at most once, only real ones, and all without a default."""
        text = path.read_text()
        using = re.search(r"^using '([\w.-]+)'$", text, re.MULTILINE)
        assert using
        declared = dict(re.findall(r"^param (\w+) (.*)$", BICEP[using[1]], re.MULTILINE))
        named = re.findall(r"^param (\w+) =", text, re.MULTILINE)
        required = {
            name
            for name, rest in declared.items()
            if " = " not in f" {rest}" and not rest.endswith("?")
        }
        assert len(named) == len(set(named))
        assert set() == set(named) - set(declared)
        assert set() == required - set(named)

    def test_security_page(self) -> None:
        """The parameters that the security page says to set exist."""
        page = (ROOT / "docs/security.md").read_text()
        declared = set(re.findall(r"^param (\w+) ", BICEP["main.bicep"], re.MULTILINE))
        named = set(re.findall(r"`(\w+)=", page))
        assert {"access", "privateApp", "privateLogs", "existingSubnets", "logTableReads"} <= named
        assert set() == named - declared

    def test_several_files(self) -> None:
        """There is more than one parameter file."""
        assert len(PARAMETER_FILES) > 1


def _inside_decorator(line: str) -> bool:
    return bool(re.match(r"^(  '.*'|\]\))$", line))

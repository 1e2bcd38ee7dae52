from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.infra.test_bicep import ROLES

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("samples/*/README.md")]
)
# Commands from outside the repository, and those that are built into a shell.
PROGRAMS = set(
    "az azd curl dotnet func gh git gunzip jq make node npm pip python python3 sed zip"
    " : [ cat cd cp do done echo eval export for if mkdir mongoexport source while".split()
)
ASSIGNMENTS = re.compile(r'^([A-Z_]+=("[^"]*"|\$\(.*\)|\S*) *)+')
CONTINUES = re.compile(r"""[-|{})"']""")  # A line inside a quoted text or a block.
NAMED_FILES = re.compile(
    r"(?<![\w./-])((?:bench|docs|infra|local|samples|shared|tests)/[\w./-]+\.\w+)"
)
BLOCKS = re.compile(r"```(sh|bash|console)\n(.*?)```", re.DOTALL)


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def commands_of(text: str) -> list[str]:
    """Return the commands of a page, each in one line, without comments.

    In a `console` block they follow `$ `; other lines are output.
    """
    found = []
    for kind, block in BLOCKS.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)# .*", "", line).strip()
            if kind != "console" or command.startswith("$ "):
                found.append(command.removeprefix("$ ").removeprefix(".venv/bin/"))
    return [command for command in found if command]


each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


@each_document
class TestDocument:
    """README and each page of the docs name only what exists."""

    def test_links(self, path: Path) -> None:
        """Every relative link leads to an existing file and heading."""
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target, anchor in re.findall(
            r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", text
        ):
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), target
            if anchor and file.suffix == ".md":
                assert anchor in anchors_of(file.read_text()), anchor

    def test_commands(self, path: Path) -> None:
        """Every command starts a known program, and names existing targets and files."""
        text = path.read_text()
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        functions = set(re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE))
        for command in commands_of(text):
            bare = ASSIGNMENTS.sub("", command)
            program, _, rest = bare.partition(" ")
            if program and not CONTINUES.match(program):
                known = program in PROGRAMS | functions or program.removesuffix("()") in functions
                assert known or (ROOT / program).exists(), command
            if program == "make":
                assert rest.split()[0] in targets, command
            if program == "ask":
                assert (ROOT / f"infra/queries/{rest.split()[0]}.kql").exists(), command
            for name in NAMED_FILES.findall(re.sub(r">\s*\S+", "", command)):  # Not what it writes.
                assert (ROOT / name).exists(), command
            for package, module in re.findall(r"^python -m (infra|local)\.(\w+)", bare):
                path_of = ROOT / package / module
                assert path_of.with_suffix(".py").exists() or path_of.is_dir(), command

    def test_variables(self, path: Path) -> None:
        """Every shell variable that a command uses is set on the same page."""
        commands = "\n".join(block for _, block in BLOCKS.findall(path.read_text()))
        used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", commands))
        set_here = set(re.findall(r"\b([A-Z][A-Z_]+)(?:=| in )", commands))
        if 'eval "$(infra/outputs.sh ' in commands:
            set_here |= set(found(r"^output (\w+)", "infra/main.bicep"))
        assert set() == used - set_here

    def test_outputs(self, path: Path) -> None:
        """The outputs that a page asks infra/outputs.sh for exist."""
        asked = re.findall(r"infra/outputs\.sh(?: [a-z]+)? ([A-Z_]+)", path.read_text())
        assert set(asked) <= set(found(r"^output (\w+)", "infra/main.bicep"))

    def test_locks_first(self, path: Path) -> None:
        """Roles are deleted after the locks, which protect the role assignments, too.

        https://learn.microsoft.com/azure/azure-resource-manager/management/lock-resources
        """
        for section in re.split(r"^#{2,3} ", path.read_text(), flags=re.MULTILINE):
            commands = "\n".join(commands_of(section))
            if "az role assignment delete --ids" in commands:
                before = commands.partition("az role assignment delete --ids")[0]
                assert "az lock delete --ids" in before, section.splitlines()[0]

    def test_names(self, path: Path) -> None:
        """Commands name a table by its output, and the host's master key as the host does.

        https://github.com/Azure/azure-functions-host/blob/dev/src/WebJobs.Script.WebHost/Controllers/KeysController.cs
        """
        text = path.read_text()
        assert not re.search(r"--(table-)?name \"?IdentityMappings", text)
        keys = re.findall(r"--key-type masterKey --key-name (\w+)", text.replace("\\\n ", ""))
        assert {"_master"} >= set(keys)

    def test_code_spans(self, path: Path) -> None:
        """Every file and make target in a page's code spans exists."""
        makefile = (ROOT / "Makefile").read_text()
        for target in re.findall(r"`make ([a-z-]+)", path.read_text()):
            assert f"\n{target}:" in makefile, target
        for name in re.findall(r"`((?:infra|shared|docs|tests|local)/[\w./-]+)`", path.read_text()):
            assert (ROOT / name).exists(), name


def found(pattern: str, file: str) -> list[str]:
    """Return the matches of a pattern in a file."""
    return re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)


def test_each_alert_is_explained() -> None:
    """The operations page has a section for each alert, to which its description refers."""
    rules = found(r"^ {2,4}name: '(?:\$\{appName\}-)?([\w-]+)'$", "infra/modules/alerts.bicep")
    assert {"unavailable", "table-failing", "acs-keys", "server-errors"} <= set(rules)
    assert sorted(rules) == sorted(found(r"^### `([\w-]+)`", "docs/operations.md"))


def test_each_role_is_in_the_runbook() -> None:
    """The runbook for a missing role has a row for each role that the templates assign."""
    page = (ROOT / "docs/operations.md").read_text()
    section = page.partition("### A role is wrong or gone\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| ([A-Z][\w ]+?) (?:on|of) ", section, re.MULTILINE)
    # One of them is assigned on two containers.
    assert sorted([*ROLES, "Storage Blob Data Contributor"]) == sorted(rows)


def test_each_output_is_explained() -> None:
    """The deployment page names the outputs, and no others."""
    outputs = set(found(r"^output (\w+)", "infra/main.bicep"))
    assert outputs == set(found(r"^\| `([A-Z_]+)`", "docs/deploy.md"))

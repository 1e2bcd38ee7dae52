"""Imports point one way, so that a reader can stop where their question ends."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the entry point down to modules that import no other module of ours. A module imports only
# from lower floors, or from its own folder.
FLOORS = [
    ["function_app"],
    ["shared.services"],
    ["shared.directory", "shared.exchange"],
    ["shared.broker", "shared.prune", "shared.sweep"],
    ["shared.leavers", "shared.mappings", "shared.policy"],
    ["shared.acs", "shared.entra"],
    ["shared.http", "shared.requests", "shared.runs"],
    ["shared.refusal_lines"],
    ["shared.quota", "shared.rate_limit", "shared.settings"],
    [
        *("shared.audit", "shared.certificates", "shared.documents", "shared.endpoints"),
        *("shared.errors", "shared.exchange_kinds", "shared.microsoft_apps"),
        "shared.trust_policy",
    ],
    [
        *("shared.circuit", "shared.clock", "shared.identifiers", "shared.retry_after"),
        *("shared.retry_budget", "shared.single_flight", "shared.strict_json"),
    ],
]
# The modules that may import a library, or `os` for the process's environment.
ONLY = {
    "azure.communication": {"shared.acs", "shared.services"},
    "azure.data": {"shared.mappings", "shared.services"},
    "azure.functions": {"function_app", "shared.http", "shared.requests"},
    "azure.identity": {"shared.entra", "shared.services"},
    "azure.storage": {"shared.mappings", "shared.services"},
    "aiohttp": {"shared.acs", "shared.documents", "shared.entra", "shared.services"},
    "cryptography": {"shared.certificates", "shared.entra"},
    "jwt": {"shared.entra"},
    "os": {"function_app"},
}


def module_of(path: Path) -> str:
    """Return the dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path for path in [ROOT / "function_app.py", *(ROOT / "shared").rglob("*.py")]
}


def imported_by(module: str, path: Path) -> set[str]:
    """Return what a module imports, including imports for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & MODULES.keys() or {str(node.module)}
    return found - {"__future__"}


IMPORTS = {module: imported_by(module, path) for module, path in MODULES.items()}


def within(module: str, place: str) -> bool:
    """Tell whether a module is a place, or in it."""
    return module == place or module.startswith(f"{place}.")


def place_of(module: str) -> tuple[int, str]:
    """Return the floor of a module, the highest being 0, and its room there."""
    (place,) = (
        (floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if within(module, room)
    )
    return place


each_module = pytest.mark.parametrize("module", sorted(MODULES.keys() - {"shared"}))


@each_module
def test_downwards(module: str) -> None:
    """A module imports only from below, or from its own folder."""
    floor, room = place_of(module)
    for imported in IMPORTS[module]:
        if within(imported, "shared"):
            below, other = place_of(imported)
            assert other == room or below > floor, f"{module} imports {imported}"


@each_module
def test_imports_only_deployed_code(module: str) -> None:
    """What runs in Azure never imports what is not deployed."""
    for place in ("local", "tests", "bench", "infra", "samples"):
        assert not any(within(imported, place) for imported in IMPORTS[module])


def test_explained() -> None:
    """The table of the architecture page has each module, and nothing else."""
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("| module of `shared/` |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([\w/]+)`", cell)]
    paths = [path for path in (ROOT / "shared").rglob("*.py") if path.stem != "__init__"]
    modules = [path.relative_to(ROOT / "shared").with_suffix("").as_posix() for path in paths]
    assert sorted(modules) == sorted(named)


def test_no_circle() -> None:
    """There are no import cycles."""
    left = {module: IMPORTS[module] & MODULES.keys() for module in MODULES}
    while left:
        free = {module for module, imports in left.items() if not imports & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {module: imports for module, imports in left.items() if module not in free}


def test_not_at_a_cold_start() -> None:
    """What only the backup needs is not imported before its timer runs."""
    program = "import sys, function_app, shared.services; print(*sys.modules)"

    finished = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )

    imported = finished.stdout.split()
    assert "shared.mappings.backup" in imported
    assert [] == [name for name in imported if within(name, "azure.storage")]


@pytest.mark.parametrize("library", ONLY)
def test_library_is_imported_where_it_belongs(library: str) -> None:
    """A library is used where it belongs, and really is used there."""
    users = {module for module in MODULES if any(within(each, library) for each in IMPORTS[module])}
    places = {place for module in users for place in ONLY[library] if within(module, place)}
    assert [] == [module for module in users if not any(within(module, each) for each in places)]
    assert ONLY[library] == places

"""The page on security names only checks and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = re.compile(r"`([\w/]+\.py)::([\w.:]+)`")


def rows() -> list[list[str]]:
    """Return the cells of each threat."""
    lines = PAGE.partition("## What is defended against")[2].partition("\n## ")[0].splitlines()
    table = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    return [cells for cells in table if cells[0].strip() != "Threat"]


def names_in(file: str) -> set[str]:
    """Return what a module defines: `function`, `Class` and `Class.method`."""
    found = set()
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{each.name}" for each in _methods(node)}
    return found


def _methods(node: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    members = node.body if isinstance(node, ast.ClassDef) else []
    return [each for each in members if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_rows() -> None:
    """The table is found."""
    assert len(rows()) > 20
    assert {4} == {len(cells) for cells in rows()}


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0].strip()[:40])
def test_row(cells: list[str]) -> None:
    """Each threat has a check in the product, and a test that is collected."""
    _threat, check, test, _remains = cells
    checks, tests = NAMED.findall(check), NAMED.findall(test)

    assert checks
    assert tests
    for file, name in checks:
        assert file.startswith(("shared/", "infra/"))
        assert name in names_in(file), f"{file} does not define {name}"
    for file, name in tests:
        assert re.fullmatch(r"tests/(\w+/)*test_\w+\.py", file)
        assert name in names_in(file), f"{file} does not define {name}"
        assert name.rpartition(".")[2].startswith(("test_", "Test")), "pytest collects others only"

from __future__ import annotations

from pathlib import Path

import pathspec
import pytest

ROOT = Path(__file__).parents[2]
IGNORED = pathspec.GitIgnoreSpec.from_lines((ROOT / ".funcignore").read_text().splitlines())
DEPLOYED_FOLDER = "shared"
DEPLOYED_FILES = {"function_app.py", "host.json", "requirements.txt"}


def test_needed() -> None:
    """What runs in Azure is deployed."""
    sources = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / DEPLOYED_FOLDER).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sources
    assert [] == [path for path in [*DEPLOYED_FILES, *sources] if IGNORED.match_file(path)]


def test_nothing_else() -> None:
    """Of all that lies in the root, nothing else is deployed."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    names = {f"{path.name}{'/' if path.is_dir() else ''}" for path in ROOT.iterdir()}
    deployed = {name for name in names if not IGNORED.match_file(name)}
    assert DEPLOYED_FOLDER in folders
    assert DEPLOYED_FILES | {f"{DEPLOYED_FOLDER}/"} == deployed


@pytest.mark.parametrize(
    "path",
    [
        "local.settings.json",
        "local.settings.example.json",
        "shared/__pycache__/http.cpython-313.pyc",
        "tests/test_entra.py",
        "infra/main.bicep",
        ".azure/prod/.env",
        ".venv-3.13/bin/python",
    ],
)
def test_kept_back(path: str) -> None:
    """Settings of a laptop, tests and templates never leave it."""
    assert IGNORED.match_file(path)

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pathspec
import pytest

from tests.infra.core_tools import FuncIgnore

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
FUNCIGNORE = (ROOT / ".funcignore").read_text()
DEPLOYED_FOLDER = "shared"
DEPLOYED_FILES = {"function_app.py", "host.json", "requirements.txt"}

# Files that a clone has after a while, in addition to those from git.
LEFTOVERS = """
    .DS_Store
    .azure/prod/.env
    .coverage
    .coverage.laptop.pid4711.XAbCdEfx
    .env
    .git/config
    .hypothesis/unicode_data/15.0.0/charmap.json.gz
    .idea/workspace.xml
    .mypy_cache/3.11/shared/http.data.json
    .pytest_cache/v/cache/lastfailed
    .python_packages/lib/site-packages/aiohttp/client.py
    .ruff_cache/0.17.6/1234567890
    .venv-3.11/bin/python
    .venv-3.13/lib/python3.13/site-packages/aiohttp/client.py
    .venv/installed
    .venv/lib/python3.11/site-packages/aiohttp/client.py
    .vscode/settings.json
    __azurite_db_table__.json
    __blobstorage__/0a1b2c
    __pycache__/function_app.cpython-313.pyc
    __queuestorage__/0a1b2c
    app.zip
    backup/IdentityMappings.jsonl
    coverage.xml
    dev.env
    dist/app.zip
    dist/app/function_app.py
    infra/__pycache__/smoke_test.cpython-311.pyc
    local.settings.json
    local/storage/node_modules/azurite/package.json
    node_modules/.package-lock.json
    samples/web/node_modules/vite/package.json
    shared/.DS_Store
    shared/__pycache__/http.cpython-313.pyc
    shared/deeper/__pycache__/http.cpython-313.pyc
""".split()

# From Core Tools' own tests:
# https://github.com/Azure/azure-functions-core-tools/blob/3ee97a6/test/Cli/Func.UnitTests/ParserTests/GitIgnoreParserTests.cs
MIXED = """# A comment
node_modules
*.log

nonexistent

!/nonexistent/foo

/baz

foo/*.wat

/test1

test2

othernonexistent/**/what

!/othernonexistent/**/what/foo


*.swp
"""
MODULES = "bin/\n**/bin/\n!Modules/**\nobj\n"


def fresh_clone() -> list[str]:
    """Return the files of this folder that git does not ignore, as in a fresh clone."""
    lines = [".git", *(ROOT / ".gitignore").read_text().splitlines()]
    ignored = pathspec.GitIgnoreSpec.from_lines(lines)
    files: list[str] = []
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not ignored.match_file(f"{here / name}/")]
        files += [path for name in names if not ignored.match_file(path := f"{here / name}")]
    return files


def core_tools(paths: list[str]) -> set[str]:
    """Return the files that `func azure functionapp publish` deploys."""
    ignored = FuncIgnore(FUNCIGNORE)
    return {path for path in paths if not ignored.ignores(path)}


def azd(paths: list[str]) -> set[str]:
    """Return the files that `azd deploy` deploys: it reads .funcignore as gitignore."""
    ignored = pathspec.GitIgnoreSpec.from_lines(FUNCIGNORE.splitlines())
    return {path for path in paths if not ignored.match_file(path)}


@pytest.mark.parametrize("deployed_by", [core_tools, azd])
@pytest.mark.parametrize("leftovers", [[], LEFTOVERS], ids=["fresh", "used"])
def test_deployed(deployed_by: Callable[[list[str]], set[str]], leftovers: list[str]) -> None:
    """Only what runs in Azure is deployed, from a fresh clone and from a used one."""
    fresh = fresh_clone()
    sources = {path for path in fresh if path.startswith(f"{DEPLOYED_FOLDER}/")}
    assert DEPLOYED_FILES < set(fresh)
    assert f"{DEPLOYED_FOLDER}/http.py" in sources
    assert DEPLOYED_FILES | sources == deployed_by([*fresh, *leftovers])


@pytest.mark.parametrize("path", ["backup/IdentityMappings.jsonl", "dev.env", "prod.env"])
def test_not_committed(path: str) -> None:
    """`git add .` does not add people's identities, or the variables of an environment."""
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text().splitlines())
    assert ignored.match_file(path)


class TestCoreTools:
    """Core Tools' rules."""

    @pytest.mark.parametrize(
        ("lines", "path", "ignored"),
        [
            (MIXED, "test/index.js", False),
            (MIXED, "wat/test/index.js", False),
            (MIXED, "/othernonexistent/blah/adsasd/whatads", False),
            (MIXED, "/othernonexistent/blah/adsasd/what/foo", False),
            (MIXED, "test1", True),
            (MIXED, "test2", True),
            (MIXED, "test1File.wat", False),
            (MIXED, "test.swp", True),
            (MIXED, "node_modules/what.js", True),
            (MIXED, "foo/bar.wat", True),
            (MIXED, "othernonexistent/blah/what", True),
            (MIXED, "nonexistent", True),
            (MIXED, "nonexistent/bar", True),
            (MIXED, "nonexistent/foo", False),
            (MIXED, "nonexistent/foo/wat", False),
            ("node_modules", "node_modules", True),
            ("node_modules", "node_modules/foo", True),
            ("node_modules", "test/index.js", False),
            ("node_modules", "wat/test/index.js", False),
            (MODULES, "bin/somefile.dll", True),
            (MODULES, "src/bin/output.dll", True),
            (MODULES, "Modules/SomeModule/1.0.0/bin/Module.dll", False),
            (MODULES, "Modules/Az.Storage/8.1.0/Storage.Autorest/bin/Az.Storage.dll", False),
            (MODULES, "Modules/Az.Accounts/2.0.0/lib/netstandard2.0/Microsoft.Azure.dll", False),
        ],
    )
    def test_as_core_tools_test_it(self, lines: str, path: str, ignored: bool) -> None:
        """The stand-in passes Core Tools' own tests."""
        assert ignored is FuncIgnore(lines).ignores(path)

    @pytest.mark.parametrize(
        ("line", "path", "ignored"),
        [
            pytest.param("__pycache__/", "shared/__pycache__/a.pyc", False, id="root only"),
            pytest.param("**/__pycache__", "shared/__pycache__/a.pyc", True, id="any folder"),
            pytest.param("**/__pycache__", "__pycache__/a.pyc", False, id="not the root"),
            pytest.param(".venv*/", ".venv-3.13/bin/python", True, id="star matches characters"),
            pytest.param(".venv*/", ".venv/bin/python", False, id="star needs a character"),
            pytest.param("local", "local.settings.json", True, id="word and more"),
            pytest.param("local", "locale/en.json", False, id="longer word"),
        ],
    )
    def test_unlike_gitignore(self, line: str, path: str, ignored: bool) -> None:
        """Core Tools reads some lines differently from git."""
        assert ignored is FuncIgnore(line).ignores(path)

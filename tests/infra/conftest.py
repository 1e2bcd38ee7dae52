from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local.storage.npm import find_node, install

if TYPE_CHECKING:
    from collections.abc import Callable

JS = Path(__file__).parent


@pytest.fixture(scope="session")
def find_python() -> Callable[[str], str]:
    """Return a function that finds a Python of a version with pip, as the Makefile does."""

    def find(version: str) -> str:
        candidates = [sys.executable, shutil.which(f"python{version}") or ""]
        candidates += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        program = f"import sys, pip; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
        for candidate in filter(None, candidates):
            # Not through a shim, which may be there without the Python behind it.
            finished = subprocess.run([candidate, "-c", program], capture_output=True, check=False)  # noqa: S603
            if finished.returncode == 0:
                return candidate
        pytest.skip(f"this needs Python {version}, which is not here")

    return find


@pytest.fixture(params=["this", "3.9"])
def each_python(request: pytest.FixtureRequest, find_python: Callable[[str], str]) -> str:
    """Return the Python that runs this, then the one that comes with a Mac."""
    return sys.executable if request.param == "this" else find_python(request.param)


@pytest.fixture(scope="session")
def node() -> Callable[..., str]:
    """Run a script of this folder in Node.js, and return what it prints."""
    install(JS, "what checks queries and workflows")
    executable, _ = find_node()

    def run(script: str, *arguments: str, given: str = "") -> str:
        finished = subprocess.run(  # noqa: S603 - a script of ours
            [executable, JS / script, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run

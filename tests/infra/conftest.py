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
            # A version manager's shim may exist without the Python: then this fails.
            finished = subprocess.run([candidate, "-c", program], capture_output=True, check=False)  # noqa: S603
            if finished.returncode == 0:
                return candidate
        pytest.skip(f"this needs Python {version}, which is not installed")

    return find


@pytest.fixture(params=["this", "3.9"])
def each_python(request: pytest.FixtureRequest, find_python: Callable[[str], str]) -> str:
    """Return the Python that runs the tests, then the version that comes with a Mac."""
    return sys.executable if request.param == "this" else find_python(request.param)


@pytest.fixture(scope="session")
def node() -> Callable[..., str]:
    """Return a function that runs a script of this folder in Node.js, and returns its output."""
    install(JS, "the checkers of queries and workflows")
    executable, _ = find_node()

    def run(script: str, *arguments: str, given: str = "") -> str:
        finished = subprocess.run(  # noqa: S603 - our own script
            [executable, JS / script, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local.npm import find_node, install

if TYPE_CHECKING:
    from collections.abc import Callable

JS = Path(__file__).parent


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

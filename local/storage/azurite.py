"""Installs, starts and stops Azurite, which stands in for Azure Storage.

It keeps everything in memory, so nothing is left when it stops.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from local.serving.application import LOOPBACK
from local.storage import npm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from local.serving.certificates import Certificates

FOLDER = Path(__file__).parent
DESCRIPTION = "Azurite (365 MB)"
START_SECONDS = 60

# Both are public: every emulator of Azure Storage has them.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

# Azurite's stdin is a pipe from this process, so it closes when this process ends in any way.
END_WITH_PARENT = (
    'data:text/javascript,process.stdin.on("end",()=>process.exit()).on("error",()=>{}).resume()'
)


class AzuriteError(Exception):
    """Azurite does not start; the message says why."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The URLs of a running Azurite; blobs and queues are served only on request."""

    table: str
    blob: str | None = None
    queue: str | None = None

    @property
    def connection_string(self) -> str:
        """Return the connection string for the storage SDKs and the Functions host."""
        parts = {
            "DefaultEndpointsProtocol": self.table.split(":")[0],
            "AccountName": ACCOUNT,
            "AccountKey": ACCOUNT_KEY,
            "BlobEndpoint": self.blob,
            "QueueEndpoint": self.queue,
            "TableEndpoint": self.table,
        }
        return ";".join(f"{name}={value}" for name, value in parts.items() if value)


@asynccontextmanager
async def azurite(
    *,
    table_port: int = 0,
    blob_and_queue_ports: tuple[int, int] | None = None,
    certificates: Certificates | None = None,
) -> AsyncIterator[Endpoints]:
    """Run Azurite while the context lasts; yields its URLs.

    Args:
        table_port: 0 takes a free one, here and below.
        blob_and_queue_ports: serves blobs and queues, too.
        certificates: serves TLS and takes Entra tokens; without, HTTP and access keys.

    Raises:
        NodeError, AzuriteError: it cannot be installed, or does not start.
    """
    await asyncio.to_thread(npm.install, FOLDER, DESCRIPTION)
    node, _ = npm.find_node()
    free = _free_ports()
    ports = {"table": table_port or next(free)}
    if blob_and_queue_ports:
        blob, queue = blob_and_queue_ports
        ports |= {"blob": blob or next(free), "queue": queue or next(free)}
    program = "azurite.js" if blob_and_queue_ports else "table/main.js"
    # Azurite lags behind the SDKs, and would refuse the version of the API that they speak.
    options = ["--inMemoryPersistence", "--disableTelemetry", "--silent", "--skipApiVersionCheck"]
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
                start_new_session=True,  # So Ctrl-C reaches only this process, which then stops it.
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
        process.kill()
    await process.wait()


def _free_ports() -> Iterator[int]:
    """Yield free ports, each of them once."""
    # Below the range that systems use for outgoing connections, none of which then takes the port.
    ports = range(20_000, 30_000)
    # Of the system: tests that seed `random`, in two processes, would choose the same ports.
    for port in random.SystemRandom().sample(ports, len(ports)):
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)):
                yield port


if __name__ == "__main__":
    try:
        npm.install(FOLDER, DESCRIPTION)
    except npm.NodeError as error:
        sys.exit(str(error))

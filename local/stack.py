"""Starts the stack: the emulators in this process, Azurite and the functions host in their own.

With access keys, everything speaks HTTP. With managed identity, everything speaks TLS, there are no
keys, and tables and blobs take Entra tokens, as in Azure.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import ssl
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import ResourceExistsError
from azure.data.tables.aio import TableServiceClient
from azure.storage.blob.aio import ContainerClient

from local.acs.emulator import AcsEmulator
from local.entra.directory import (
    BROKER,
    CONTOSO,
    DESKTOP_APP,
    USER_ASSIGNED_IDENTITY,
    WEB_APP,
)
from local.entra.emulator import EntraEmulator
from local.entra.managed_identity import ManagedIdentityEmulator
from local.entra.state import untouched
from local.serving.application import LOOPBACK, serve
from local.serving.certificates import Certificates
from local.storage.azurite import azurite
from local.storage.proxy import BlobProxy, TableProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from aiohttp import web

    from local.storage.azurite import Endpoints

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "local.settings.example.json"
FUNCTIONS_PORT, ENTRA_PORT, ACS_PORT = 7071, 7072, 7073
TABLE_PROXY_PORT, BLOB_PROXY_PORT, IDENTITY_PORT = 7074, 7075, 7076
TABLE_PORT, BLOB_AND_QUEUE_PORTS = 10002, (10000, 10001)
FIXED_PORTS = (
    *(ENTRA_PORT, ACS_PORT, TABLE_PROXY_PORT, BLOB_PROXY_PORT, IDENTITY_PORT),
    *(TABLE_PORT, *BLOB_AND_QUEUE_PORTS),
)
BACKUP_CONTAINER = "mappings-backup"
START_SECONDS = 60
STOP_SECONDS = 15


class StackError(Exception):
    """The stack does not start; the message says why."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Running emulators, and how a functions host finds them.

    `settings` is a local.settings.json; `environment` is what the platform itself would set.
    """

    entra: EntraEmulator
    acs: AcsEmulator
    tables: TableProxy
    blobs: BlobProxy
    storage: Endpoints  # Past the proxies, with Azurite's key.
    settings: Path
    environment: Mapping[str, str]
    certificates: Certificates | None = None  # With managed identity, everything speaks TLS.


@dataclass(frozen=True, slots=True)
class FunctionsHost:
    """A running functions host: its URL, its process, and what it has printed so far."""

    url: str
    pid: int
    output: list[str] = field(repr=False)

    async def printed(self, text: str, *, seconds: float = 5) -> str:
        """Return the first line that holds a text, waiting until it is printed.

        Raises:
            TimeoutError: it was not printed in time.
        """
        async with asyncio.timeout(seconds):
            while True:
                for line in self.output:
                    if text in line:
                        return line
                await asyncio.sleep(0.02)


@asynccontextmanager
async def emulators(
    *,
    fixed_ports: bool = False,
    managed_identity: bool = False,
    untouched_directory: bool = False,
) -> AsyncIterator[Stack]:
    """Run everything that the broker calls, while the context lasts.

    Args:
        fixed_ports: use those of the example settings and of Azurite, not free ones.
        managed_identity: use TLS and Entra tokens instead of HTTP and access keys.
        untouched_directory: nobody has set up the broker in Entra, or has access to ACS.

    Raises:
        StackError, AzuriteError, NodeError: a port is taken, or Azurite does not start.
    """
    example: dict[str, Any] = json.loads(EXAMPLE.read_text("utf-8"))
    values = example["Values"]
    access_key = values["ACS_CONNECTION_STRING"].partition("accesskey=")[2]
    if fixed_ports:
        _require_free(FIXED_PORTS)
    async with AsyncExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="local-stack-"))
        certificates = Certificates(Path(folder)) if managed_identity else None
        storage = await running.enter_async_context(
            azurite(
                table_port=TABLE_PORT if fixed_ports else 0,
                blob_and_queue_ports=BLOB_AND_QUEUE_PORTS if fixed_ports else (0, 0),
                certificates=certificates,
            )
        )
        entra = EntraEmulator(untouched() if untouched_directory else None)
        acs = AcsEmulator(
            access_key=access_key,
            verify_bearer=entra.verify,
            groups_of=entra.directory.groups_of,
        )
        if not untouched_directory:
            # Contoso's people have access to the ACS resource, with the broker and with Contoso's
            # apps.
            acs.entra_assignments[CONTOSO.tenant_id] = {
                "objectId": CONTOSO.tenant_id,
                "tenantId": CONTOSO.tenant_id,
                "principalType": "tenant",
                "clientIds": [app.client_id for app in (BROKER, WEB_APP, DESKTOP_APP)],
            }
        secret = secrets.token_hex(16)
        identity = ManagedIdentityEmulator(entra, secret)
        assert storage.blob is not None  # noqa: S101 - it was given a port
        trusted = _trust(certificates)
        tables = TableProxy(storage.table, tls=trusted, verify_bearer=entra.verify)
        blobs = BlobProxy(storage.blob, tls=trusted, verify_bearer=entra.verify)
        tls = certificates.server_context() if certificates else None

        async def run(app: web.Application, port: int, *, secure: bool = True) -> str:
            return await running.enter_async_context(
                serve(app, port=port if fixed_ports else 0, tls=tls if secure else None)
            )

        entra.url = await run(entra.application(), ENTRA_PORT)
        acs.url = await run(acs.application(), ACS_PORT)
        tables.url = await run(tables.application(), TABLE_PROXY_PORT)
        blobs.url = await run(blobs.application(), BLOB_PROXY_PORT)
        environment: dict[str, str] = {}
        if certificates:
            # App Service serves managed identities over HTTP, on loopback.
            identity.url = await run(identity.application(), IDENTITY_PORT, secure=False)
            environment = {
                "IDENTITY_ENDPOINT": identity.endpoint,
                "IDENTITY_HEADER": secret,
                "SSL_CERT_FILE": str(certificates.authority_file),
            }
            for name in ("ACS", "MAPPINGS", "BACKUP"):
                del values[f"{name}_CONNECTION_STRING"]
            del values["ENTRA_CLIENT_SECRET"]  # The registration trusts the managed identity.
            values |= {
                "ACS_ENDPOINT": acs.url,
                "MAPPINGS_TABLE_ENDPOINT": tables.endpoint,
                "BACKUP_BLOB_ENDPOINT": blobs.endpoint,
                "AZURE_CLIENT_ID": USER_ASSIGNED_IDENTITY.client_id,
            }
        else:
            values |= {
                "ACS_CONNECTION_STRING": f"endpoint={acs.url}/;accesskey={access_key}",
                "MAPPINGS_CONNECTION_STRING": storage.connection_string.replace(
                    storage.table, tables.endpoint
                ),
                "BACKUP_CONNECTION_STRING": storage.connection_string.replace(
                    storage.blob, blobs.endpoint
                ),
            }
        values["ENTRA_AUTHORITY_HOST"] = entra.url
        # The example itself is for Core Tools: HTTP, the fixed ports, and Azurite without proxies.
        settings = Path(folder) / "local.settings.json"
        settings.write_text(json.dumps(example, indent=2), "utf-8")
        await _create_tables_and_container(storage, certificates)
        yield Stack(entra, acs, tables, blobs, storage, settings, environment, certificates)


def _require_free(ports: Iterable[int]) -> None:
    """Refuse to start if a port is taken, before anything has been started.

    Raises:
        StackError: it is; the message says which.
    """
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as exc:
                raise StackError(
                    f"port {port} cannot be opened: {exc.strerror}. If another stack is running,"
                    " stop it. Beside it runs only: python -m local start --free-ports"
                ) from exc


def _trust(certificates: Certificates | None) -> ssl.SSLContext | None:
    if certificates is None:
        return None
    return ssl.create_default_context(cafile=certificates.authority_file)


async def _create_tables_and_container(
    storage: Endpoints, certificates: Certificates | None
) -> None:
    """Create what the Bicep creates in Azure; the broker itself never does."""
    verify = str(certificates.authority_file) if certificates else True
    async with TableServiceClient.from_connection_string(
        storage.connection_string, connection_verify=verify
    ) as service:
        for name in ("IdentityMappings", "IdentityMappingsOrphans"):
            with suppress(ResourceExistsError):
                await service.create_table(name)
    async with ContainerClient.from_connection_string(
        storage.connection_string, BACKUP_CONTAINER, connection_verify=verify
    ) as container:
        with suppress(ResourceExistsError):
            await container.create_container()


@asynccontextmanager
async def functions_host(  # noqa: PLR0913 - each is one thing that a host can be asked to be
    stack: Stack,
    settings: Mapping[str, str],
    *,
    folder: Path = REPOSITORY,
    port: int = 0,
    tls: bool = False,
    interactive: bool = False,
) -> AsyncIterator[FunctionsHost]:
    """Serve `function_app.py` on a stack while the context lasts.

    Args:
        stack: the emulators that it calls.
        settings: app settings that override those of the stack.
        folder: where `function_app.py` is, if it is not the broker's.
        port: 0 takes a free one.
        tls: serve HTTPS with the stack's certificate.
        interactive: print what the host prints, and take up edits of the app.

    Raises:
        StackError: it does not start.
    """
    command = [sys.executable, "-m", "local.functions.host", "--port", str(port)]
    command += ["--app", str(folder), "--settings", str(stack.settings)]
    if tls and stack.certificates:
        command += ["--certificate", str(stack.certificates.certificate_file)]
        command += ["--key", str(stack.certificates.key_file)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *(["--reload"] if interactive else []),
        cwd=REPOSITORY,
        env={**os.environ, **stack.environment, **settings},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1024 * 1024,
        start_new_session=True,  # So Ctrl-C reaches only this process, which then stops the host.
    )
    output: list[str] = []
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            output.append(line)
            if line.startswith("ready ") and not ready.done():
                ready.set_result(line.removeprefix("ready "))
            elif interactive:
                print(line, flush=True)
        if not ready.done():
            ready.set_exception(StackError("\n".join(["the functions host ended:", *output])))

    reader = asyncio.create_task(read())
    try:
        try:
            url = await asyncio.wait_for(ready, START_SECONDS)
        except TimeoutError:
            slow = f"the functions host is not up after {START_SECONDS} s:"
            raise StackError("\n".join([slow, *output])) from None
        yield FunctionsHost(url, process.pid, output)
    finally:
        await _stop(process)
        await reader


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)  # With the process that it started, if any.
        await process.wait()

"""Serves the page in samples/web against the local stack: `python -m local.sample`.

Entra and ACS speak TLS, since MSAL takes no other Entra. The page and the functions are on loopback
over HTTP, which browsers trust as much.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.entra.directory import BROKER, USERS, WEB_APP
from local.stack import REPOSITORY, StackError, emulators, functions_host
from local.storage import npm
from local.storage.azurite import END_WITH_PARENT, AzuriteError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from local.stack import FunctionsHost, Stack

WEB = REPOSITORY / "samples" / "web"
PORT = 5173  # Vite's, which docs/deploy.md has as an example, too.
START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Sample:
    """The page's URL, and the functions host that it calls."""

    url: str
    host: FunctionsHost


@asynccontextmanager
async def sample(
    stack: Stack, settings: Mapping[str, str], *, port: int = 0
) -> AsyncIterator[Sample]:
    """Build and serve the page, with a functions host that it may call, while the context lasts.

    Args:
        stack: emulators that speak TLS.
        settings: app settings that override those of the stack.
        port: where the page is served; 0 takes a free one.

    Raises:
        StackError, NodeError: the page or the functions host does not start.
    """
    await asyncio.to_thread(npm.install, WEB, "what samples/web needs")
    with tempfile.TemporaryDirectory(prefix="sample-") as name:
        folder = Path(name)
        await _build(folder / "dist")
        async with (
            _serve(folder, port) as url,
            functions_host(_stack_for(url, stack, settings, folder), {}) as host,
        ):
            config = {
                "clientId": WEB_APP.client_id,
                "authority": f"{stack.entra.url}/organizations",
                "brokerUrl": host.url,
                "brokerScope": f"{BROKER.uris[0]}/{BROKER.scopes[0]}",
            }
            (folder / "config.json").write_text(json.dumps(config), "utf-8")
            yield Sample(url, host)


async def _build(folder: Path) -> None:
    node, _ = npm.find_node()
    vite = WEB / "node_modules" / "vite" / "bin" / "vite.js"
    options = ["build", "--outDir", str(folder), "--emptyOutDir", "--logLevel", "warn"]
    process = await asyncio.create_subprocess_exec(
        node,
        str(vite),
        *options,
        cwd=WEB,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise StackError(f"the page cannot be built:\n{output.decode(errors='replace')}")


@asynccontextmanager
async def _serve(folder: Path, port: int) -> AsyncIterator[str]:
    node, _ = npm.find_node()
    paths = ["--root", str(folder / "dist"), "--config", str(folder / "config.json")]
    process = await asyncio.create_subprocess_exec(
        *(node, "--import", END_WITH_PARENT, str(WEB / "serve.mjs")),
        *(*paths, "--port", str(port)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # So Ctrl-C reaches only this process, which then stops it.
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode().strip()
        if not line.startswith("ready "):
            reason = "another sample may be running; the page's own message is above"
            raise StackError(f"port {port} cannot be opened: {reason}")
        yield line.removeprefix("ready ")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _stack_for(url: str, stack: Stack, changes: Mapping[str, str], folder: Path) -> Stack:
    """Return the stack with changed settings, which let the page at a URL call the functions."""
    settings: dict[str, Any] = json.loads(stack.settings.read_text("utf-8"))
    settings["Host"]["CORS"] = url.rstrip("/")
    settings["Values"] |= changes
    file = folder / "local.settings.json"
    file.write_text(json.dumps(settings), "utf-8")
    return replace(stack, settings=file)


async def _run() -> None:
    """Serve the page until Ctrl-C."""
    async with (
        emulators(managed_identity=True) as stack,
        sample(stack, {}, port=PORT) as page,
    ):
        assert stack.certificates is not None  # noqa: S101 - it speaks TLS
        users = "\n".join(f"  {user.user_name}" for user in USERS if not user.guest_of)
        print(f"""
The page:    {page.url}
The broker:  {page.host.url}

These people can sign in, without a password:
{users}

The certificate of the local Entra is made for this run, so your browser does not know it. Either
open this address once in the same browser, and accept the certificate there:

  {stack.entra.url}/common/v2.0/.well-known/openid-configuration

or start a browser that knows it:

  chromium {stack.certificates.chromium_options()} {page.url}

Ctrl-C stops it.""")
        stop = asyncio.Event()
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        await stop.wait()


def main() -> int:
    """Run the command line and return its exit code."""
    print("Starting the local stack, and building the page ...")
    try:
        asyncio.run(_run())
    except (StackError, AzuriteError, npm.NodeError) as error:
        print(f"python -m local.sample: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

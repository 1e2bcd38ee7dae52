"""The local stack on the command line: `python -m local --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import aiohttp

from local.demo import DemoError, demo
from local.entra.directory import FADI, USERS
from local.stack import (
    ENTRA_PORT,
    FUNCTIONS_PORT,
    StackError,
    emulators,
    functions_host,
)
from local.storage.azurite import AzuriteError
from local.storage.npm import NodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from local.stack import Stack

ENTRA_URL = f"http://127.0.0.1:{ENTRA_PORT}"
WORTHLESS = "Every key, secret and token of this stack is worthless; it listens on loopback only."


async def _start(*, tls: bool, free_ports: bool) -> None:
    """Keep the whole stack up until Ctrl-C, and take up edits of the app."""
    port = 0 if free_ports else FUNCTIONS_PORT
    async with (
        emulators(fixed_ports=not free_ports, managed_identity=tls) as stack,
        functions_host(stack, {}, port=port, tls=tls, interactive=True) as host,
    ):
        curl = "curl"
        if stack.certificates:
            curl += f" --cacert {stack.certificates.authority_file}"
            print(f"""
Everything that is HTTPS in Azure has a certificate of an authority that was made for this run:

{stack.certificates.authority_file}

To trust it:

{stack.certificates.how_to_trust()}""")
        print(f"""
Ada of Contoso asks for an ACS token (her Entra token is valid for at least an hour):

{curl} -H 'Authorization: Bearer {stack.entra.issue_access_token()}' {host.url}/api/token

An edit of the app, or of {stack.settings}, is taken up at once.
""")
        await _until_stopped(
            stack,
            f"Broker           {host.url}",
            f"Tables           {stack.tables.url}",
            f"Blobs            {stack.blobs.url}",
            *([f"Managed identity {_identity_url(stack)}"] if stack.certificates else []),
        )


async def _emulators() -> None:
    """Keep the emulators up until Ctrl-C; Core Tools serve the functions."""
    async with emulators(fixed_ports=True) as stack:
        print("""
Now, in another terminal:

cp local.settings.example.json local.settings.json
source .venv/bin/activate
func start
""")
        await _until_stopped(stack)


def _identity_url(stack: Stack) -> str:
    return stack.environment["IDENTITY_ENDPOINT"].removesuffix("/msi/token")


async def _until_stopped(stack: Stack, *others: str) -> None:
    entra = "" if stack.entra.url == ENTRA_URL else f" --entra {stack.entra.url}"
    another = f".venv/bin/python -m local token{entra} {FADI.user_name}"
    if stack.certificates:
        another = f"SSL_CERT_FILE={stack.certificates.authority_file} {another}"
    print(
        f"For another Entra token: {another}\n",
        "Each of these fails on request, at /_local/faults (see README.md):",
        f"Entra            {stack.entra.url}",
        f"ACS              {stack.acs.url}",
        *others,
        f"\n{WORTHLESS}\nCtrl-C stops it.",
        sep="\n",
        flush=True,
    )
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    await stop.wait()


async def _token(user: str, *, entra: str) -> None:
    """Print an Entra access token from a running stack."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{entra}/_local/token", json={"user": user}) as response,
        ):
            if not response.ok:
                raise StackError((await response.text()).strip())
            print((await response.json())["access_token"])
    except aiohttp.ClientSSLError as exc:
        raise StackError(f"SSL_CERT_FILE must name the authority's file: {exc}") from None
    except aiohttp.ClientConnectionError:
        raise StackError(f"no stack answers at {entra}: make start") from None


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local",
        description="The local stack, which stands in for Azure.",
        epilog=WORTHLESS,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, does: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    start = command("start", "run the whole stack until Ctrl-C, and take up edits of the app")
    start.add_argument(
        "--tls", action="store_true", help="HTTPS and managed identity, not HTTP and access keys"
    )
    start.add_argument(
        "--free-ports",
        action="store_true",
        help="not 7071 to 7076 and 10000 to 10002, so that it runs beside another stack",
    )
    command("emulators", "run all but the functions until Ctrl-C, for `func start`")
    command("demo", "show the main job on free ports, then stop")
    token = command("token", "print a person's Entra access token from a running stack")
    token.add_argument("user", choices=[user.user_name for user in USERS])
    token.add_argument("--entra", default=ENTRA_URL, help="the stack's Entra (%(default)s)")
    arguments = parser.parse_args()
    run: dict[str, Callable[[], Coroutine[None, None, None]]] = {
        "start": lambda: _start(tls=arguments.tls, free_ports=arguments.free_ports),
        "emulators": _emulators,
        "demo": demo,
        "token": lambda: _token(arguments.user, entra=arguments.entra),
    }
    try:
        asyncio.run(run[arguments.command]())
    except (StackError, AzuriteError, NodeError, DemoError) as error:
        print(f"python -m local {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

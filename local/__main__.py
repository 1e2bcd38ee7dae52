"""The local stack on the command line: `python -m local --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import aiohttp

from local.demo import DemoError, demo
from local.entra.directory import DIRECTORY
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
    from local.stack import Stack

ENTRA_URL = f"http://127.0.0.1:{ENTRA_PORT}"
WORTHLESS = "Every key, secret and token of this stack is worthless; it listens on loopback only."


async def _start() -> None:
    """Keep the whole stack up until Ctrl-C."""
    async with (
        emulators(fixed_ports=True) as stack,
        functions_host(stack, {}, port=FUNCTIONS_PORT, echo=True) as host,
    ):
        token = stack.entra.issue_access_token()
        print(f"""
Ada of Contoso asks for an ACS token (her Entra token is valid for at least an hour):

curl -H 'Authorization: Bearer {token}' {host.url}/api/token

For another Entra token: .venv/bin/python -m local token ada@contoso.example
""")
        await _until_stopped(stack)


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


async def _until_stopped(stack: Stack) -> None:
    print(f"Entra {stack.entra.url}\nACS   {stack.acs.url}\n{WORTHLESS}\nCtrl-C stops it.")
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    await stop.wait()


async def _token(user: str) -> None:
    """Print an Entra access token from the running stack."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{ENTRA_URL}/_local/token", json={"user": user}) as response,
        ):
            if not response.ok:
                raise StackError((await response.text()).strip())
            print((await response.json())["access_token"])
    except aiohttp.ClientConnectionError:
        raise StackError("the stack is not running: make start") from None


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local",
        description="The local stack, which stands in for Azure.",
        epilog=WORTHLESS,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start", help="run the whole stack on fixed ports until Ctrl-C")
    commands.add_parser("emulators", help="the same without the functions, for `func start`")
    commands.add_parser("demo", help="show the main job on free ports, then stop")
    token = commands.add_parser("token", help="print an Entra access token from the running stack")
    token.add_argument("user", choices=[user.user_name for user in DIRECTORY.users])
    arguments = parser.parse_args()
    run = {"start": _start, "emulators": _emulators, "demo": demo}
    try:
        asyncio.run(
            _token(arguments.user) if arguments.command == "token" else run[arguments.command]()
        )
    except (StackError, AzuriteError, NodeError, DemoError) as error:
        print(f"python -m local {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

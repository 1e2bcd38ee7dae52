from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

import pytest

from local.stack import emulators, functions_host
from shared.errors import BrokerError
from tests.emulated import BackgroundLoop
from tests.infra.test_documents import BLOCKS
from tests.samples.conftest import ROOT, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (ROOT / "docs/clients.md").read_text()
END = "\x1e"  # Between the outputs of two commands.
# What is another one each time.
CHANGING = {
    r"eyJ(…|[\w.-]+=*)": "eyJ…",
    r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00": "DATE",
    r"(?<![0-9a-f])[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b": "GUID",
    r"\b[0-9a-f]{32}\b": "ID",
    r'(?<=\\"value\\": \\")\d+': "MOMENT",
    r"(?<=Content-Length: )\d+": "LENGTH",
}


def steps() -> list[tuple[str, str]]:
    """Return the commands on the page, but for those that start the stack, and their outputs."""
    found = []
    for kind, block in BLOCKS.findall(PAGE):
        if kind == "console":
            for step in block.removeprefix("$ ").split("\n$ "):
                command, _, output = step.partition("\n")
                if "make start" not in command:
                    found.append((command, output.strip()))
    return found


def alike(output: str) -> str:
    """Return an output without what changes from run to run."""
    for pattern, name in CHANGING.items():
        output = re.sub(pattern, name, output)
    return output.strip()


@pytest.fixture
def stack() -> Iterator[Running]:
    """A stack for the page alone, on which nobody has an identity yet."""
    background = BackgroundLoop()
    try:
        stack = background.enter(emulators(managed_identity=True))
        yield Running(stack, background.enter(functions_host(stack, {})))
    finally:
        background.close()


async def run(stack: Running) -> list[str]:
    """Run the commands against a stack, and return their outputs."""
    script = "\n".join(f"{command}\nprintf '{END}'" for command, _ in steps())
    for ours, on_page in ((stack.host.url, 7071), (stack.stack.entra.url, 7072)):
        script = script.replace(f"https://127.0.0.1:{on_page}", ours)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script),
        cwd=ROOT,
        env={**os.environ, "SSL_CERT_FILE": stack.certificates},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()

    return printed.decode().replace("\r", "").split(END)[:-1]


async def test_commands(stack: Running) -> None:
    """The commands print what the page says."""
    outputs = await run(stack)
    for (command, expected), output in zip(steps(), outputs, strict=True):
        assert alike(expected) == alike(output), command


def codes(error: type[BrokerError] = BrokerError) -> Iterator[tuple[str, str]]:
    """Return status and code of an error and of those derived from it."""
    if hasattr(error, "code"):
        yield str(error.status.value), error.code
    for derived in error.__subclasses__():
        yield from codes(derived)


def test_each_error_is_explained() -> None:
    """The table has a row for each code that the broker can answer, and for no other."""
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| .+ \| .+ \| .+ \|$", PAGE, re.MULTILINE)
    assert sorted(set(codes())) == sorted(rows)

"""What a refusal may cost: counted here, and measured by `make pressure`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from local.entra.tokens import TokenIssuer
from local.stack import EXAMPLE, REPOSITORY
from tests.pressure.refusals import InProcess
from tests.pressure.strange_tokens import large_token, strange_tokens, typical_token

if TYPE_CHECKING:
    from collections.abc import Awaitable

SHAPES = list(strange_tokens(TokenIssuer()))
# Functions called, in Python or C. `a.b.c` takes 290 in the endpoint, a good token 210 to validate.
MAX_CALLS_TO_REFUSE = 500
MAX_CALLS_TO_VALIDATE = 300
BUILD_SERVICES = """
import asyncio, gc, function_app

async def main():
    print(gc.get_freeze_count())
    assert function_app.services() is function_app.services()
    print(gc.get_freeze_count())

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def here() -> InProcess:
    """An endpoint, and the validator that it asks."""
    return InProcess()


async def calls_during(work: Awaitable[None]) -> int:
    """Return how many functions are called until something is done."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        await work
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("shape", SHAPES)
async def test_refusal(here: InProcess, shape: str) -> None:
    """Refusing a token takes about as many calls, whatever it is: no part is read bit by bit."""
    token = strange_tokens(here.issuer)[shape]
    await here.refuse(token)

    assert await calls_during(here.refuse(token)) < MAX_CALLS_TO_REFUSE


async def test_validation(here: InProcess) -> None:
    """A token of 20 KiB takes as many calls as a typical one: no loop over its characters."""
    typical, large = typical_token(here.issuer), large_token(here.issuer)
    for token in (typical, large):
        await here.validate(token)

    few, many = [await calls_during(here.validate(token)) for token in (typical, large)]

    assert few < MAX_CALLS_TO_VALIDATE
    assert many < few + 20


async def test_objects_of_the_process() -> None:
    """What is imported and built lasts, and the garbage collector leaves it alone."""
    values = json.loads(EXAMPLE.read_text("utf-8"))["Values"]
    finished = subprocess.run(  # noqa: ASYNC221, S603 - our own program
        [sys.executable, "-c", BUILD_SERVICES],
        cwd=REPOSITORY,
        env={**os.environ, **values},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )

    before, after = map(int, finished.stdout.split())
    assert 0 == before
    assert after > 50_000

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local.storage.npm import find_node, install

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.running import Client, Running

JS = Path(__file__).parent.parent / "js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ORIGIN = "http://localhost:3000"  # One of those that local.settings.example.json allows.

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


async def read_by_a_page(url: str, token: str) -> dict[str, Any]:
    """Return status and headers of an answer, as a page of another origin may read them."""
    install(JS, "the JavaScript clients")
    process = await asyncio.create_subprocess_exec(
        *(find_node()[0], JS / "cross_origin.mjs", str(CHROMIUM), ORIGIN, url, token),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode
    read: dict[str, Any] = json.loads(output)
    return read


async def test_challenge(
    app: Client, running: Running, rewrite_row: Callable[..., Awaitable[None]]
) -> None:
    """A page reads the claims to hand to MSAL, which offers its cached token otherwise."""
    object_id = str(uuid.uuid4())
    token = running.token_of_new_person(oid=object_id)
    await app.get("/api/token", token)
    await rewrite_row(object_id, revokedBefore=datetime.now(UTC))

    read = await read_by_a_page(f"{app.url}/api/token", token)

    assert 401 == read["status"]
    assert 'claims="' in read["headers"]["www-authenticate"]


async def test_retry_after(app: Client, running: Running) -> None:
    """A page reads when to come back."""
    running.stack.tables.faults.fail_next("table_read", status=503, times=9)

    read = await read_by_a_page(f"{app.url}/api/token", running.token_of_new_person())

    assert 503 == read["status"]
    assert 5 <= int(read["headers"]["retry-after"]) <= 8

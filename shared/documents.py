"""Reads the JSON documents that Microsoft serves, no further than they may be long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared import strict_json

if TYPE_CHECKING:
    import aiohttp


async def read_object(response: aiohttp.ClientResponse, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the body of an answer.

    Raises:
        ValueError: it is too long, or not one strict JSON object.
    """
    document = b""
    async for chunk in response.content.iter_any():
        document += chunk
        if len(document) > max_bytes:
            raise ValueError(f"the document is over {max_bytes // 1024} KiB")
    return strict_json.loads_object(document.strip())

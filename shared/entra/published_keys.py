"""Fetches the signing keys that Entra publishes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from shared.documents import read_object
from shared.entra.key_sets import StatusError
from shared.retry_after import seconds_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

    from shared.entra.key_sets import KeySet, Publisher

FETCH_DEADLINE = 3  # seconds
MAX_DOCUMENT_BYTES = 256 * 1024
_SAYS_WHEN = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class PublishedKeys:
    """The keys of one publisher, as they are now.

    Args:
        session: used for Entra's host only.
        publisher: whose keys to fetch.
    """

    def __init__(self, *, session: aiohttp.ClientSession, publisher: Publisher) -> None:
        self._session = session
        self._publisher = publisher

    async def fetch(self) -> KeySet:
        """Return the set that Entra has now.

        Raises:
            StatusError: Entra refuses, and may say for how long.
            ValueError: what Entra answers is not a set that can be used.
            Exception: Entra cannot be reached, or not in time.
        """
        async with asyncio.timeout(FETCH_DEADLINE):
            metadata, _ = await self._get(self._publisher.metadata_url)
            document, published_on = await self._get(self._publisher.location_of(metadata))
        return self._publisher.key_set(metadata, document, published_on=published_on)

    async def _get(self, url: str) -> tuple[dict[str, Any], int | None]:
        """Return a document, and the date of the answer."""
        async with self._session.get(
            url,
            allow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            middlewares=(_once,),
        ) as response:
            if response.status != HTTPStatus.OK:
                says_when = response.status in _SAYS_WHEN
                raise StatusError(
                    response.status, seconds_of(response.headers) if says_when else None
                )
            document = await read_object(response, max_bytes=MAX_DOCUMENT_BYTES)
            return document, _date_of(response.headers)


async def _once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keep aiohttp from sending a request again whose connection broke.

    It does so by itself for these two errors, which would double each fetch of an outage. When to
    try again is for the key store to decide.
    """
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as exc:
        raise ValueError(type(exc).__name__) from exc


def _date_of(headers: Mapping[str, str]) -> int | None:
    with suppress(ValueError, OverflowError):
        return int(parsedate_to_datetime(headers.get("Date", "")).timestamp())
    return None

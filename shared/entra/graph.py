"""Asks Microsoft Graph which users were deleted from the tenant of the managed identity.

Graph lists the users that were deleted in the last 30 days, up to 999 in an answer. That takes a
few requests, however many people have a mapping, and being in the list is proof. To ask for each
person would take a request for 20 people, and "not found" would prove nothing: the wrong tenant
gives the same answer. The permission for it is User.Read.All, of applications.
https://learn.microsoft.com/graph/api/directory-deleteditems-list
"""

from __future__ import annotations

import asyncio
import random
import re
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from yarl import URL

from shared.documents import read_object
from shared.identifiers import is_guid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from azure.core.credentials import AccessToken

PATH = "/v1.0/directory/deletedItems/microsoft.graph.user?$select=id,deletedDateTime&$top=999"
MAX_PAGES = 200
MAX_PAGE_BYTES = 1024 * 1024  # A page of 999 users has about 100 KiB.
# All times are in seconds.
DEADLINE = 240
REQUEST_TIMEOUT = 30
ATTEMPTS = 4
RETRY_AFTER = range(1, 60 + 1)
# https://learn.microsoft.com/graph/throttling and https://learn.microsoft.com/graph/errors
RETRIED = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


class GraphError(Exception):
    """Graph did not answer, refused us, or gave an answer that cannot be used."""


class Credential(Protocol):
    """Where tokens for Graph come from: the managed identity."""

    async def get_token(self, *scopes: str) -> AccessToken:
        """Return an access token."""


class Graph:
    """Microsoft Graph, for the tenant of the credential.

    Args:
        session: used for Graph's host only; it must not decompress answers.
        credential: the managed identity.
        url: an origin such as `https://graph.microsoft.com`.
        audience: whom tokens are for: the same, except in the local stack.
        request_timeout: seconds that one request may take.
        sleep: waits for so many seconds between two attempts.
    """

    def __init__(  # noqa: PLR0913 - each is a part that tests replace
        self,
        *,
        session: aiohttp.ClientSession,
        credential: Credential,
        url: str,
        audience: str,
        request_timeout: float = REQUEST_TIMEOUT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._credential = credential
        self._url = url
        self._audience = audience
        self._timeout = aiohttp.ClientTimeout(total=request_timeout)
        self._sleep = sleep

    async def deleted_users(self) -> dict[str, datetime]:
        """Return when each of the tenant's deleted users was deleted, by object id.

        Raises:
            GraphError: not all of them could be read.
        """
        try:
            async with asyncio.timeout(DEADLINE):
                return await self._deleted_users()
        except GraphError:
            raise
        except Exception as exc:
            # The text of others' errors may quote a token or a name.
            reason = str(exc) if type(exc) is ValueError else type(exc).__name__
            raise GraphError(reason) from exc

    async def _deleted_users(self) -> dict[str, datetime]:
        users: dict[str, datetime] = {}
        link = self._url + PATH
        for _ in range(MAX_PAGES):
            page = await self._get(link)
            for object_id, deleted_on in users_of(page):
                users[object_id] = max(deleted_on, users.get(object_id, deleted_on))
            if "@odata.nextLink" not in page:
                return users
            link = page["@odata.nextLink"]
            if not isinstance(link, str) or not link.startswith(f"{self._url}/v1.0/"):
                raise GraphError("the next page is on another host")
        raise GraphError(f"over {MAX_PAGES} pages of deleted users")

    async def _get(self, link: str) -> dict[str, Any]:
        """Read a page; try again as often as it makes sense."""
        token = await self._credential.get_token(f"{self._audience}/.default")
        headers = {
            "Authorization": f"Bearer {token.token}",
            "Accept-Encoding": "identity",
            # Throttled first, so that what people wait for is throttled later.
            "x-ms-throttle-priority": "Low",
        }
        attempt = 0
        while True:
            attempt += 1
            async with self._session.get(
                URL(link, encoded=True),
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                if response.status == HTTPStatus.OK:
                    return await read_object(response, max_bytes=MAX_PAGE_BYTES)
                if response.status not in RETRIED or attempt == ATTEMPTS:
                    raise GraphError(f"status {response.status}")
                wait = retry_after(response.headers.get("Retry-After"), attempt)
            await self._sleep(wait)


def users_of(page: dict[str, Any]) -> list[tuple[str, datetime]]:
    """Return the users of a page, and when each was deleted.

    Raises:
        ValueError: it is not a page of deleted users, or says less than was asked for.
    """
    users = page.get("value")
    if not isinstance(users, list) or not all(isinstance(user, dict) for user in users):
        raise ValueError("not a page of users")
    return [(_object_id(user), _deleted_on(user)) for user in users]


def _object_id(user: dict[str, Any]) -> str:
    object_id = user.get("id")
    if not is_guid(object_id):
        raise ValueError("a user whose id is not a GUID")
    return object_id


def _deleted_on(user: dict[str, Any]) -> datetime:
    try:
        date = datetime.fromisoformat(user["deletedDateTime"])
    except (KeyError, TypeError, ValueError):
        date = datetime.min  # noqa: DTZ901 - refused below
    if date.tzinfo is None:
        # Without the permission for users, Graph lists them with null for everything but the id.
        raise ValueError("a user without the date of the deletion")
    return date


def retry_after(header: str | None, attempt: int) -> float:
    """Return how many seconds to wait: as Graph says, but neither at once nor for long."""
    seconds = int(header) if header and re.fullmatch(r"[0-9]{1,5}", header) else 2**attempt
    jitter = random.random()  # noqa: S311 - not for secrets
    return min(max(seconds, RETRY_AFTER[0]), RETRY_AFTER[-1]) + jitter

"""Calls to Table Storage, with our own retries, time limits and errors, and its clock.

The SDK's own retries are off: they would sleep for as long as Retry-After says, without jitter.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import (
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.data.tables import TableErrorCode, UpdateMode

from shared import audit
from shared.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from datetime import datetime

    from azure.core.pipeline import PipelineResponse
    from azure.data.tables import TableEntity
    from azure.data.tables.aio import TableClient

    from shared.retry_budget import RetryBudget

    # Where a scan goes on: the continuation token of the last page. It may lack the row.
    Position = Mapping[str, str | None]

ATTEMPT_SECONDS = 1.5
READ_ATTEMPTS, WRITE_ATTEMPTS = 3, 2
BACKOFF_SECONDS = 0.1
PAGE_SIZE = 1000
# A query runs for up to five seconds before it answers with a part, and waits before that:
# https://learn.microsoft.com/rest/api/storageservices/query-timeout-and-pagination
PAGE_SECONDS = 30
# None: there was no complete answer.
RETRIED_STATUSES = frozenset({None, 408, 429, 500, 502, 503, 504})
# Only these mean that the entity is not there; TableNotFound has the same status and class.
ABSENT = frozenset({TableErrorCode.RESOURCE_NOT_FOUND, TableErrorCode.ENTITY_NOT_FOUND})

_CODE = re.compile(r"[A-Za-z]{1,64}")
Result = TypeVar("Result")


class AbsentError(StorageUnavailableError):
    """The entity is not there."""


class ChangedError(StorageUnavailableError):
    """Another writer was first, or our own first attempt succeeded and its answer was lost."""


@dataclass(frozen=True, slots=True)
class TableTime:
    """A time on Table Storage's clock, and when our process learned it."""

    date: datetime
    learned_at: float

    @property
    def now(self) -> datetime:
        """The table's time now: the clock of this machine plays no part, only its speed."""
        return self.date + timedelta(seconds=asyncio.get_running_loop().time() - self.learned_at)


class TimeKeeper:
    """A `raw_response_hook` that keeps the `Date` of the last answer; it has whole seconds."""

    def __init__(self) -> None:
        self.time: TableTime | None = None

    @property
    def known(self) -> TableTime:
        """The time of the last answer.

        Raises:
            StorageUnavailableError: no answer had one.
        """
        if self.time is None:
            raise StorageUnavailableError("an answer without Date")
        return self.time

    def __call__(self, response: PipelineResponse[Any, Any]) -> None:
        """Keep the date of an answer, whatever its status."""
        with suppress(KeyError, ValueError):
            date = parsedate_to_datetime(response.http_response.headers["Date"])
            self.time = TableTime(date, asyncio.get_running_loop().time())


async def attempt(
    call: Callable[[], Awaitable[Result]],
    attempts: int,
    *,
    budget: RetryBudget | None,
    seconds: float = ATTEMPT_SECONDS,
) -> Result:
    """Return what a call to Table Storage returns; repeat it after a failure that may pass.

    Args:
        call: makes one attempt.
        attempts: how many there may be.
        budget: what retries are taken from; None for those that nothing else limits.
        seconds: how long each may take.

    Raises:
        AbsentError: the entity does not exist.
        ChangedError: it exists already, or has been changed.
        StorageUnavailableError: every attempt failed, or the failure will not pass.
    """
    if budget is not None:
        budget.earn()
    for number in range(attempts):
        try:
            with audit.timed("table_ms"):
                async with asyncio.timeout(seconds):
                    return await call()
        except StopAsyncIteration:
            raise
        except (ResourceExistsError, ResourceModifiedError) as exc:
            raise ChangedError from exc
        except Exception as exc:
            if isinstance(exc, ResourceNotFoundError) and _code(exc) in ABSENT:
                raise AbsentError from exc
            status = getattr(exc, "status_code", None)
            is_last = number + 1 == attempts or status not in RETRIED_STATUSES
            if is_last or not (budget is None or budget.spend()):
                raise StorageUnavailableError(reason_of(exc)) from exc
        await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS * 2**number))  # noqa: S311 - jitter
    raise AssertionError("unreachable: the last attempt returns or raises")


async def write(
    table: TableClient,
    entity: dict[str, Any],
    *,
    etag: str | None,
    budget: RetryBudget,
    attempts: int = WRITE_ATTEMPTS,
) -> Mapping[str, Any]:
    """Replace a version of an entity, or add the entity for None; return what the SDK returns.

    Raises:
        ChangedError, AbsentError: another writer was first, or our own first attempt.
        StorageUnavailableError: as `attempt` does.
    """

    def call() -> Awaitable[Mapping[str, Any]]:
        if etag is None:
            return table.create_entity(entity)
        return table.update_entity(
            entity,
            mode=UpdateMode.REPLACE,
            etag=etag,
            match_condition=MatchConditions.IfNotModified,
        )

    return await attempt(call, attempts, budget=budget)


async def remove(
    table: TableClient, partition: str, row: str, *, etag: str, budget: RetryBudget
) -> bool:
    """Remove a version of an entity; False if another writer has changed it.

    What is gone already counts as removed: the SDK swallows that answer.
    """
    try:
        await attempt(
            lambda: table.delete_entity(
                partition, row, etag=etag, match_condition=MatchConditions.IfNotModified
            ),
            WRITE_ATTEMPTS,
            budget=budget,
        )
    except ChangedError:
        return False
    return True


def reason_of(exc: Exception) -> str:
    """Return the type of an exception and the service's error code, if it looks like one."""
    code = _code(exc)
    text = str(getattr(code, "value", code or ""))
    return f"{type(exc).__name__} {text if _CODE.fullmatch(text) else ''}".rstrip()


def _code(exc: Exception) -> str | None:
    """Return the table service's error code; errors from create_entity have no such attribute."""
    return getattr(exc, "error_code", None)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a scan: its entities, the table's time, and where the next page begins."""

    entities: list[TableEntity]
    time: TableTime
    following: Position | None  # None: this was the last page.


async def pages_of(
    table: TableClient,
    condition: str,
    *,
    start: Position | None = None,
    size: int = PAGE_SIZE,
    **options: Any,  # noqa: ANN401 - the SDK's
) -> AsyncIterator[Page]:
    """Yield the pages of a scan. An empty page need not be the last one."""
    keeper = TimeKeeper()
    query: Callable[..., Any] = partial(table.query_entities, condition)
    if not condition:  # For that, the SDK has another method, without parameters.
        query = table.list_entities
        options.pop("parameters", None)
    pages: Any = query(
        results_per_page=size,
        # The clients' own limits are those of a request for one entity.
        read_timeout=PAGE_SECONDS,
        raw_response_hook=keeper,
        **options,
    ).by_page(start)  # The SDK takes and gives a dictionary, whatever its types say.

    async def next_page() -> list[TableEntity]:
        return [entity async for entity in await anext(pages)]

    while True:
        try:
            # A scan is one call after the other, so its retries cannot add up.
            entities = await attempt(next_page, READ_ATTEMPTS, budget=None, seconds=PAGE_SECONDS)
        except StopAsyncIteration:
            return
        yield Page(entities, keeper.known, pages.continuation_token)

"""Handles the rows of a file with a few connections, and skips quickly what is done already."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from azure.core.exceptions import AzureError

from shared.errors import BusyError, ConflictError, StorageUnavailableError
from shared.mappings.attempts import PAGE_SIZE
from shared.mappings.fingerprints import Fingerprints
from shared.mappings.table import State, person_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from infra.mappings.people import AnyRow, Row
    from infra.mappings.report import Report
    from infra.mappings.store import Store

# A partition takes 2000 requests a second, and the orphans are one partition, which each row asks:
# https://learn.microsoft.com/azure/storage/tables/scalability-targets
# A row takes six requests of a few milliseconds, so this stays far below.
CONNECTIONS = 16
WAITS = (1, 2, 5, 10, 20)  # Seconds. Leases last for 20 s.
THERE = "there already"

Each = TypeVar("Each")


async def do_all(rows: Iterable[Each], do: Callable[[Each], Awaitable[None]]) -> None:
    """Do something with each row, several at a time, in about their order.

    Raises:
        Whatever the first row raised that failed.
    """
    left = iter(rows)  # Each worker takes the next one from it.

    async def work() -> None:
        for row in left:
            await do(row)

    workers = [asyncio.create_task(work()) for _ in range(CONNECTIONS)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def settled(row: AnyRow, attempt: Callable[[], Awaitable[str]], report: Report) -> None:
    """Try until a row is done or refused, and report which.

    Raises:
        StorageUnavailableError: Table Storage kept failing.
    """
    for wait in (*WAITS, None):
        try:
            report.count(await attempt(), row)
        except ConflictError as error:
            report.refuse(row, str(error))
        except BusyError as error:
            if wait is not None:
                await asyncio.sleep(wait)
                continue
            report.refuse(row, str(error))
        except StorageUnavailableError as error:
            if not isinstance(error.__cause__, AzureError | TimeoutError):
                report.refuse(row, str(error))  # The person's row cannot be read.
            elif wait is None:
                raise
            else:
                await asyncio.sleep(wait)
                continue
        return


class Done:
    """Which people have their identity already, with its entry in the index.

    It is learned by reading the tables page by page, so a run that was stopped goes on quickly,
    whatever stopped it and wherever it is run. For a few rows, it is quicker to look at each.
    """

    def __init__(self) -> None:
        self._rows = Fingerprints()
        self._index = Fingerprints()

    @classmethod
    async def of(cls, store: Store, *, total: int) -> Done:
        """Read the tables, if that is worthwhile for so many rows."""
        done = cls()
        if total > PAGE_SIZE:
            async for page in store.mappings.uses():
                for entity in page.entities:
                    if entity.get("state") == State.ACTIVE:
                        done._rows.add(*person_of(entity), str(entity.get("acsId")))
            async for acs_id, person, *_ in store.ledger.owners():
                done._index.add(*person, acs_id)
        return done

    def has(self, row: Row) -> bool:
        """Return whether nothing is left to do for a row."""
        pair = (*row.person, row.acs_id)
        return (
            row.state is State.ACTIVE
            and row.revoked_before is None
            and pair in self._rows
            and pair in self._index
        )

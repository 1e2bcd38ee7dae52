"""What tests of single modules run against: emulators, a store for each test, a clock."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core.exceptions import ResourceNotFoundError
from azure.data.tables import UpdateMode

from shared import audit
from shared.mappings.table import IdentityMapping, State, entity_from_mapping, partition_key

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    import pytest
    from azure.data.tables.aio import TableClient

    from local.serving.faults import Faults
    from shared.identifiers import Person
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMappings
    from shared.retry_budget import RetryBudget

Result = TypeVar("Result")
START_SECONDS = 90
TRANSACTION_SIZE = 100
ACS_ID = "8:acs:ac5ac5ac-0000-4000-8000-000000000001_00000005-0000-0000-0000-000000000000"


class BackgroundLoop:
    """An event loop in a thread, for contexts that outlive a test; they are left when it closes."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open = AsyncExitStack()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_SECONDS)

    def enter(self, context: AbstractAsyncContextManager[Result]) -> Result:
        """Enter a context there, and leave it when the loop is closed."""
        return self.run(self._open.enter_async_context(context))

    def close(self) -> None:
        """Leave the contexts, the last one first."""
        self.run(self._open.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)  # As in the header `Date`.

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        """Advance by a `timedelta`."""
        self.now += timedelta(**duration)

    def is_now(self, date: datetime) -> bool:
        """Return whether a date is the present, but for the time that a test takes."""
        return timedelta() <= date - self.now < timedelta(seconds=5)

    @property
    def seconds(self) -> float:
        """Return the time as Unix time."""
        return self.now.timestamp()


def mapping_of(person: Person, now: datetime, **changes: Any) -> IdentityMapping:
    """Return a person's active mapping, used just now, with changes."""
    members: dict[str, Any] = {
        "state": State.ACTIVE,
        "acs_id": ACS_ID,
        "created_on": now,
        "last_used_on": now,
    }
    return IdentityMapping(person=person, attempt="0" * 16, **(members | changes))


def anybody(_mapping: IdentityMapping) -> None:
    """Admit a caller, whatever the row says."""


async def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Wait until a condition holds that something in the background brings about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells when a counter changes
            await asyncio.sleep(0.01)


def lines(caplog: pytest.LogCaptureFixture, event: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return the level and the fields of the audit lines whose event begins like this."""
    ours = [record for record in caplog.records if record.name == audit.logger.name]
    found = [(record.levelname, json.loads(record.message)) for record in ours]
    return [line for line in found if line[1]["event"].startswith(event)]


@dataclass(frozen=True, slots=True)
class Store:
    """The two tables of one test: through the proxy with its faults, and past it."""

    mappings: IdentityMappings
    ledger: Ledger
    rows: TableClient
    entries: TableClient
    faults: Faults
    retries: RetryBudget

    async def row(self, person: Person) -> dict[str, Any] | None:
        """Return a person's row as it is stored."""
        try:
            return dict(await self.rows.get_entity(partition_key(person), person.object_id))
        except ResourceNotFoundError:
            return None

    async def all_rows(self) -> list[dict[str, Any]]:
        """Return every row of the table of mappings."""
        return [dict(entity) async for entity in self.rows.list_entities()]

    async def orphans(self) -> dict[str, str]:
        """Return the identities that must be deleted: why each is in the ledger."""
        return {each.acs_id: each.reason async for each in self.ledger.orphans()}

    async def unfinished(self) -> list[Person]:
        """Return the people whose erasure or revocation is not complete."""
        return [each.person async for each in self.ledger.unfinished()]

    async def put(self, mapping: IdentityMapping, **changes: Any) -> None:
        """Store a row as it is, with changes; None leaves a member out."""
        entity = entity_from_mapping(mapping) | changes
        await self.rows.upsert_entity(entity, mode=UpdateMode.REPLACE)

    async def put_all(self, mappings: list[IdentityMapping]) -> None:
        """Store many rows, as many as a transaction may have at a time."""
        entities = [entity_from_mapping(mapping) for mapping in mappings]
        entities.sort(key=itemgetter("PartitionKey"))
        for _, group in groupby(entities, key=itemgetter("PartitionKey")):
            while some := [("upsert", entity) for entity in islice(group, TRANSACTION_SIZE)]:
                await self.rows.submit_transaction(some)

"""Identity mappings in Table Storage: which ACS identity belongs to which person.

A row goes from `creating` to `active` to `deleting`. Every change is conditional on what was read,
and writes a new nonce into `attempt`: a writer that loses the answer can tell from the row whether
its change was made. A second table, the ledger of orphans, lists ACS identities that no row points
to and that still have to be deleted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
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
from shared.identifiers import ACS_ID, Person

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

    from azure.core.pipeline import PipelineResponse
    from azure.data.tables import TableEntity
    from azure.data.tables.aio import TableClient

SCHEMA = 1
LEASE = timedelta(seconds=20)  # For creating or deleting one identity; a few calls of 4 s at most.
ATTEMPT_SECONDS = 1.5
READ_ATTEMPTS, WRITE_ATTEMPTS = 3, 2
BACKOFF_SECONDS = 0.1
PAGE_SIZE = 1000
PAGE_SECONDS = 30
# None: there was no complete answer.
RETRIED_STATUSES = frozenset({None, 408, 429, 500, 502, 503, 504})
# Only these mean that the entity is not there; TableNotFound has the same status and class.
ABSENT = frozenset({TableErrorCode.RESOURCE_NOT_FOUND, TableErrorCode.ENTITY_NOT_FOUND})
LEDGER_PARTITION = "orphan"
DATES = ("leaseUntil", "createdOn", "lastUsedOn", "revokedBefore")

Result = TypeVar("Result")


class State(StrEnum):
    """What a row says about its identity."""

    CREATING = "creating"
    ACTIVE = "active"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityMapping:
    """One person's row."""

    person: Person
    state: State
    created_on: datetime
    last_used_on: datetime
    acs_id: str = ""  # Empty while creating, and never afterwards.
    lease_until: datetime | None = None  # Until then, only the holder of the lease may change it.
    revoked_before: datetime | None = None  # Entra tokens issued before then are refused.
    generation: int = 1  # How many times the creation was started.
    attempt: str = ""
    etag: str = ""


class _AbsentError(StorageUnavailableError):
    """The entity is not there."""


class _ChangedError(StorageUnavailableError):
    """Another writer was first, or our own first attempt succeeded and its answer was lost."""


class IdentityMappings:
    """The table of mappings and the ledger of orphans.

    Every method raises StorageUnavailableError if Table Storage fails or refuses us. A failure is
    never taken to mean that a row does not exist.
    """

    def __init__(self, *, mappings: TableClient, orphans: TableClient) -> None:
        self._mappings = mappings
        self._orphans = orphans

    async def read(self, person: Person) -> IdentityMapping | None:
        """Return a person's mapping, or None if the person has no row."""
        try:
            entity = await _attempt(
                lambda: self._mappings.get_entity(partition_key(person), person.object_id),
                READ_ATTEMPTS,
            )
        except _AbsentError:
            return None
        return _reported(entity)

    async def insert(self, mapping: IdentityMapping) -> IdentityMapping | None:
        """Add the mapping of a person who has none; None if another writer was first."""
        return await self._write(mapping, self._mappings.create_entity)

    async def change(self, mapping: IdentityMapping, **changes: Any) -> IdentityMapping | None:  # noqa: ANN401 - fields of IdentityMapping
        """Change a mapping; None if another writer has changed it since it was read."""

        def update(entity: dict[str, Any]) -> Awaitable[Mapping[str, Any]]:
            return self._mappings.update_entity(
                entity,
                mode=UpdateMode.REPLACE,
                etag=mapping.etag,
                match_condition=MatchConditions.IfNotModified,
            )

        return await self._write(replace(mapping, **changes), update)

    async def remove(self, mapping: IdentityMapping) -> bool:
        """Remove a mapping; False if another writer has changed it since it was read."""
        try:
            await _attempt(
                lambda: self._mappings.delete_entity(
                    partition_key(mapping.person),
                    mapping.person.object_id,
                    etag=mapping.etag,
                    match_condition=MatchConditions.IfNotModified,
                ),
                WRITE_ATTEMPTS,
            )
        except (_ChangedError, _AbsentError):
            return False
        return True

    async def count(self, *, idle_before: datetime) -> tuple[int, int]:
        """Return how many rows there are, and how many of them are active but idle."""
        total = idle = 0
        columns = ["state", "lastUsedOn"]
        async for entities in _pages_of(self._mappings, "", select=columns):
            total += len(entities)
            for entity in entities:
                used = entity.get("lastUsedOn")
                if entity.get("state") == State.ACTIVE and isinstance(used, datetime):
                    idle += used < idle_before
        return total, idle

    def idle(self, *, idle_before: datetime) -> AsyncIterator[IdentityMapping]:
        """Yield the active mappings not used since a date; rows that cannot be read are skipped."""
        return self._select("state eq @active and lastUsedOn lt @date", idle_before)

    def interrupted(self, *, lease_before: datetime) -> AsyncIterator[IdentityMapping]:
        """Yield the mappings whose creation or deletion was interrupted, as `idle` does."""
        return self._select("state ne @active and leaseUntil lt @date", lease_before)

    async def _select(self, condition: str, date: datetime) -> AsyncIterator[IdentityMapping]:
        parameters = {"active": State.ACTIVE.value, "date": date}
        async for entities in _pages_of(self._mappings, condition, parameters=parameters):
            for mapping in _readable(entities):
                yield mapping

    async def add_orphan(self, acs_id: str, *, reason: str, now: datetime) -> None:
        """Add an ACS identity that must be deleted to the ledger."""
        entity: dict[str, Any] = {
            "PartitionKey": LEDGER_PARTITION,
            "RowKey": acs_id,
            "reason": reason,
            "createdOn": now,
        }
        await _attempt(lambda: self._orphans.upsert_entity(entity), WRITE_ATTEMPTS)

    async def remove_orphan(self, acs_id: str) -> None:
        """Remove an ACS identity that has been deleted from the ledger."""
        await _attempt(
            lambda: self._orphans.delete_entity(LEDGER_PARTITION, acs_id), WRITE_ATTEMPTS
        )

    async def orphans(self) -> AsyncIterator[str]:
        """Yield the ids of the ACS identities in the ledger."""
        async for entities in _pages_of(self._orphans, "", select=["RowKey"]):
            for entity in entities:
                yield entity["RowKey"]

    async def server_time(self) -> datetime:
        """Return the time on Table Storage's clock, read from an answer's `Date` header."""
        dates: list[datetime] = []

        def keep_date(response: PipelineResponse[Any, Any]) -> None:
            dates.append(parsedate_to_datetime(response.http_response.headers["Date"]))

        with suppress(_AbsentError):
            await _attempt(
                lambda: self._mappings.get_entity("clock", "clock", raw_response_hook=keep_date),
                READ_ATTEMPTS,
            )
        return dates[-1]

    async def _write(
        self,
        mapping: IdentityMapping,
        write: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]],
    ) -> IdentityMapping | None:
        mine = replace(mapping, attempt=secrets.token_hex(8))
        try:
            written = await _attempt(lambda: write(entity_from_mapping(mine)), WRITE_ATTEMPTS)
        except StorageUnavailableError as exc:
            # The row decides: the error may be the answer to our second attempt, after the first
            # one succeeded.
            found = await self.read(mine.person)
            if found is not None and found.attempt == mine.attempt:
                return found
            if isinstance(exc, _ChangedError | _AbsentError):
                return None
            raise
        return replace(mine, etag=str(written["etag"]))


def partition_key(person: Person) -> str:
    """Return the partition of a person; each tenant is spread over 256 of them."""
    return f"{person.tenant_id}_{person.object_id[:2]}"


def entity_from_mapping(mapping: IdentityMapping) -> dict[str, Any]:
    """Return the row of a mapping."""
    return {
        "PartitionKey": partition_key(mapping.person),
        "RowKey": mapping.person.object_id,
        "state": mapping.state.value,
        "acsId": mapping.acs_id or None,
        "generation": mapping.generation,
        "attempt": mapping.attempt,
        "leaseUntil": mapping.lease_until,
        "createdOn": mapping.created_on,
        "lastUsedOn": mapping.last_used_on,
        "revokedBefore": mapping.revoked_before,
        "schema": SCHEMA,
    }


def mapping_from_entity(entity: TableEntity) -> IdentityMapping:
    """Return the mapping in a row.

    Raises:
        StorageUnavailableError: this version cannot read the row, perhaps because a newer version
            wrote it. It must not be overwritten.
    """
    try:
        if entity["schema"] != SCHEMA:
            raise StorageUnavailableError("a row with another schema version")
        dates = {name: entity[name] for name in DATES if name in entity}
        if not all(isinstance(date, datetime) for date in dates.values()):
            raise StorageUnavailableError("a row whose date is not a date")
        state, acs_id = State(entity["state"]), entity.get("acsId", "")
        if type(entity["generation"]) is not int or not isinstance(acs_id, str):
            raise StorageUnavailableError("a row with a value of the wrong type")
        if not ACS_ID.fullmatch(acs_id) and (acs_id or state is State.ACTIVE):
            raise StorageUnavailableError("a row whose acsId is not an ACS identity")
        return IdentityMapping(
            person=Person(entity["PartitionKey"].partition("_")[0], entity["RowKey"]),
            state=state,
            acs_id=acs_id,
            generation=entity["generation"],
            attempt=entity["attempt"],
            lease_until=dates.get("leaseUntil"),
            created_on=dates["createdOn"],
            last_used_on=dates["lastUsedOn"],
            revoked_before=dates.get("revokedBefore"),
            etag=entity.metadata["etag"] or "",
        )
    except (KeyError, ValueError, AttributeError) as exc:
        raise StorageUnavailableError("a row that cannot be read") from exc


def _reported(entity: TableEntity) -> IdentityMapping:
    """Return the mapping in a row; write an audit line about a row that cannot be read."""
    try:
        return mapping_from_entity(entity)
    except StorageUnavailableError as error:
        fields = {
            "tenant_id": str(entity.get("PartitionKey", "")).partition("_")[0],
            "object_id": entity.get("RowKey"),
            "reason": str(error),
        }
        audit.record("mapping_unreadable", fields, level=logging.ERROR)
        raise


def _readable(entities: Iterable[TableEntity]) -> Iterator[IdentityMapping]:
    """Yield the mappings of a page without the rows that cannot be read."""
    for entity in entities:
        with suppress(StorageUnavailableError):
            yield _reported(entity)


async def _pages_of(
    table: TableClient,
    condition: str,
    **options: Any,  # noqa: ANN401 - the SDK's
) -> AsyncIterator[list[TableEntity]]:
    # An empty page need not be the last one; the iterator follows its continuation token.
    pages = table.query_entities(condition, results_per_page=PAGE_SIZE, **options).by_page()

    async def next_page() -> list[TableEntity]:
        return [entity async for entity in await anext(pages)]

    while True:
        try:
            yield await _attempt(next_page, 1, seconds=PAGE_SECONDS)
        except StopAsyncIteration:
            return


async def _attempt(
    call: Callable[[], Awaitable[Result]], attempts: int, *, seconds: float = ATTEMPT_SECONDS
) -> Result:
    """Return what a call to Table Storage returns; repeat it after a failure that may pass.

    The SDK's own retries are off: they would sleep for as long as Retry-After says, without jitter.
    """
    for attempt in range(attempts):
        try:
            with audit.timed("table_ms"):
                async with asyncio.timeout(seconds):
                    return await call()
        except StopAsyncIteration:
            raise
        except (ResourceExistsError, ResourceModifiedError) as exc:
            raise _ChangedError from exc
        except Exception as exc:
            if isinstance(exc, ResourceNotFoundError) and _code(exc) in ABSENT:
                raise _AbsentError from exc
            status = getattr(exc, "status_code", None)
            if attempt + 1 == attempts or status not in RETRIED_STATUSES:
                raise StorageUnavailableError(f"{type(exc).__name__} {_code(exc)}") from exc
        await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS * 2**attempt))  # noqa: S311 - jitter
    raise AssertionError("unreachable: the last attempt returns or raises")


def _code(exc: Exception) -> str | None:
    """Return the table service's error code; errors from create_entity have no such attribute."""
    return getattr(exc, "error_code", None)

"""The ledger: what still has to be done, and whose each ACS identity is.

It is a table of its own, so that it can be read without reading everybody's row:

| PartitionKey | RowKey | |
|---|---|---|
| `orphan` | an ACS identity | it must be deleted, and no row says so any more |
| `unfinished` | a person | their erasure or revocation must not wait for their next request |
| an ACS identity | the same | whose it is: the index for looking people up |
| `run` | a name | what a timer or a brake remembers from one run to the next |

The row of a person is the truth. Whatever the ledger says about one is checked against it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azure.data.tables import UpdateMode

from shared.identifiers import Person
from shared.mappings.attempts import (
    READ_ATTEMPTS,
    WRITE_ATTEMPTS,
    AbsentError,
    ChangedError,
    attempt,
    pages_of,
    remove,
    write,
)
from shared.retry_budget import RetryBudget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from datetime import date, datetime

    from azure.data.tables import TableEntity
    from azure.data.tables.aio import TableClient

    from shared.mappings.attempts import Result

ORPHANS, UNFINISHED, RUNS = "orphan", "unfinished", "run"


@dataclass(frozen=True, slots=True)
class Orphan:
    """An ACS identity that has to be deleted; the person whose it was, if known."""

    acs_id: str
    person: Person | None
    reason: str
    failures: int
    retry_on: datetime | None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A person whose erasure or revocation is not complete, since when, and the entry's version."""

    person: Person
    since: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class Ownership:
    """An entry of the index: whose an ACS identity is, and the entry's version."""

    person: Person
    etag: str


class Ledger:
    """The ledger's table. Raises StorageUnavailableError as `IdentityMappings` does.

    Args:
        table: the table.
        budget: for the retries of all its calls but scans.
    """

    def __init__(self, table: TableClient, budget: RetryBudget | None = None) -> None:
        self._table = table
        self._budget = budget or RetryBudget()

    async def add_orphan(
        self, acs_id: str, *, person: Person | None, reason: str, now: datetime
    ) -> None:
        """Add an ACS identity that must be deleted."""
        await self._put(
            ORPHANS,
            acs_id,
            reason=reason,
            createdOn=now,
            tenantId=person.tenant_id if person else None,
            objectId=person.object_id if person else None,
        )

    async def postpone(self, orphan: Orphan, *, retry_on: datetime) -> None:
        """Note that an orphan could not be deleted, and when to try again."""
        entity = {
            "PartitionKey": ORPHANS,
            "RowKey": orphan.acs_id,
            "failures": orphan.failures + 1,
            "retryOn": retry_on,
        }
        # Without an upsert: another run may have deleted it meanwhile.
        with suppress(AbsentError):
            await self._attempt(
                lambda: self._table.update_entity(entity, mode=UpdateMode.MERGE), WRITE_ATTEMPTS
            )

    async def remove_orphan(self, acs_id: str) -> None:
        """Strike off an ACS identity."""
        await self._attempt(lambda: self._table.delete_entity(ORPHANS, acs_id), WRITE_ATTEMPTS)

    async def is_orphan(self, acs_id: str) -> bool:
        """Return whether an ACS identity is about to be deleted."""
        return await self._get(ORPHANS, acs_id) is not None

    async def orphans(self) -> AsyncIterator[Orphan]:
        """Yield the ACS identities that must be deleted."""
        async for entity in self._partition(ORPHANS):
            yield Orphan(
                acs_id=entity["RowKey"],
                person=_person(entity),
                reason=str(entity.get("reason", "")),
                failures=int(entity.get("failures", 0)),
                retry_on=entity.get("retryOn"),
            )

    async def add_unfinished(self, person: Person) -> None:
        """Note that an erasure or revocation is about to begin."""
        await self._put(
            UNFINISHED, "_".join(person), tenantId=person.tenant_id, objectId=person.object_id
        )

    async def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Strike off a person, unless another one has begun since the entry was read."""
        row = "_".join(unfinished.person)
        await remove(self._table, UNFINISHED, row, etag=unfinished.etag, budget=self._budget)

    async def unfinished(self) -> AsyncIterator[Unfinished]:
        """Yield the people whose erasure or revocation is not complete."""
        async for entity in self._partition(UNFINISHED):
            person = _person(entity)
            since, etag = entity.metadata["timestamp"], entity.metadata["etag"]
            if person is not None and since is not None:
                yield Unfinished(person, since, etag or "")

    async def owner(self, acs_id: str) -> Person | None:
        """Return whose an ACS identity is, according to the index."""
        found = await self.ownership(acs_id)
        return found.person if found else None

    async def ownership(self, acs_id: str) -> Ownership | None:
        """Return an ACS identity's entry in the index."""
        entity = await self._get(acs_id, acs_id)
        person = _person(entity) if entity else None
        if entity is None or person is None:
            return None
        return Ownership(person, entity.metadata["etag"] or "")

    async def claim(self, acs_id: str, person: Person, *, instead_of: Ownership | None) -> bool:
        """Enter a person into the index; False if somebody else has been entered meanwhile.

        Args:
            acs_id: the identity.
            person: whose it is.
            instead_of: the entry that was found. It is written even if it is the person's own, so
                that nobody else can replace what they found before.
        """
        entity = {
            "PartitionKey": acs_id,
            "RowKey": acs_id,
            "tenantId": person.tenant_id,
            "objectId": person.object_id,
        }
        # The index decides: the other writer may be our own first attempt, whose answer was lost.
        with suppress(ChangedError, AbsentError):
            etag = instead_of.etag if instead_of else None
            await write(self._table, entity, etag=etag, budget=self._budget)
        return await self.owner(acs_id) == person

    async def index(self, acs_id: str, person: Person) -> None:
        """Write into the index whose an identity is that was made for this person."""
        await self._put(acs_id, acs_id, tenantId=person.tenant_id, objectId=person.object_id)

    async def owners(self) -> AsyncIterator[tuple[str, Person, datetime | None, str]]:
        """Yield the whole index: each identity, whose it is, when that was written, the version."""
        # The character after ":" ends the range of the identities.
        condition = "PartitionKey ge '8:' and PartitionKey lt '8;'"
        async for page in pages_of(self._table, condition):
            for entity in page.entities:
                person = _person(entity)
                if person is not None:
                    version = entity.metadata
                    yield (
                        entity["PartitionKey"],
                        person,
                        version["timestamp"],
                        version["etag"] or "",
                    )

    async def forget_owner(
        self, acs_id: str, person: Person | None, *, etag: str | None = None
    ) -> None:
        """Take an identity out of the index.

        Args:
            acs_id: the identity.
            person: whose it must be there; None: whoever's it is.
            etag: the version that must be there; None: any.
        """
        found = await self.ownership(acs_id)
        if found is None or person not in {None, found.person} or etag not in {None, found.etag}:
            return
        await remove(self._table, acs_id, acs_id, etag=found.etag, budget=self._budget)

    async def take(self, name: str, *, day: date, limit: int) -> bool:
        """Count one use of something that is limited a day; False if that is not possible.

        A use may be counted and not made, as when its answer is lost, but never the other way.
        """
        found = await self._get(RUNS, name)
        used = int(found["used"]) if found and found.get("day") == str(day) else 0
        if used >= limit:
            return False
        entity = {"PartitionKey": RUNS, "RowKey": name, "day": str(day), "used": used + 1}
        etag = found.metadata["etag"] if found else None
        try:
            await write(self._table, entity, etag=etag, budget=self._budget, attempts=1)
        except (ChangedError, AbsentError):
            return False
        return True

    async def remember(self, name: str, **values: str | int | datetime | None) -> None:
        """Keep values for the next run."""
        await self._put(RUNS, name, **values)

    async def recall(self, name: str) -> Mapping[str, Any]:
        """Return the values that an earlier run kept, if there are any."""
        return await self._get(RUNS, name) or {}

    async def forget(self, name: str) -> None:
        """Remove the values that were kept."""
        await self._attempt(lambda: self._table.delete_entity(RUNS, name), WRITE_ATTEMPTS)

    async def _attempt(self, call: Callable[[], Awaitable[Result]], attempts: int) -> Result:
        return await attempt(call, attempts, budget=self._budget)

    async def _put(self, partition: str, row: str, **values: str | int | datetime | None) -> None:
        entity: dict[str, Any] = {"PartitionKey": partition, "RowKey": row, **values}
        await self._attempt(
            lambda: self._table.upsert_entity(entity, mode=UpdateMode.REPLACE), WRITE_ATTEMPTS
        )

    async def _get(self, partition: str, row: str) -> TableEntity | None:
        try:
            return await self._attempt(
                lambda: self._table.get_entity(partition, row), READ_ATTEMPTS
            )
        except AbsentError:
            return None

    async def _partition(self, partition: str) -> AsyncIterator[TableEntity]:
        condition = "PartitionKey eq @partition"
        async for page in pages_of(self._table, condition, parameters={"partition": partition}):
            for entity in page.entities:
                yield entity


def _person(entity: Mapping[str, Any]) -> Person | None:
    tenant_id, object_id = entity.get("tenantId"), entity.get("objectId")
    return Person(str(tenant_id), str(object_id)) if tenant_id and object_id else None

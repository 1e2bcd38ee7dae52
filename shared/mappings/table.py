"""Identity mappings in Table Storage: which ACS identity belongs to which person.

A row goes from `creating` to `active` to `deleting`. After an erasure or a revocation without an
identity, a row in the state `erased` keeps the mark alone. Every change is conditional on what was
read, and writes a new nonce into `attempt`: a writer that loses the answer can tell from the row
whether its change was made.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from shared import audit
from shared.errors import StorageUnavailableError
from shared.identifiers import ACS_ID, Person
from shared.mappings.attempts import (
    READ_ATTEMPTS,
    AbsentError,
    ChangedError,
    TimeKeeper,
    attempt,
    pages_of,
    remove,
    write,
)
from shared.retry_budget import RetryBudget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from azure.data.tables import TableEntity
    from azure.data.tables.aio import TableClient

    from shared.mappings.attempts import (
        Page,
        Position,
        TableTime,
    )

SCHEMA = 1
LEASE = timedelta(seconds=20)  # For creating or deleting one identity; a few calls of 4 s at most.
DATES = ("leaseUntil", "createdOn", "lastUsedOn", "revokedBefore", "goneOn")


class State(StrEnum):
    """What a row says about its identity."""

    ABSENT = "absent"  # There is no row; this is never stored.
    CREATING = "creating"
    ACTIVE = "active"
    DELETING = "deleting"
    ERASED = "erased"  # There is no identity; the row only keeps the mark of a revocation.


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityMapping:
    """One person's row."""

    person: Person
    state: State
    created_on: datetime
    last_used_on: datetime
    acs_id: str = ""  # Empty while creating, and once erased.
    # While creating: until then, only the holder of the lease may go on. While deleting: until
    # then, nobody else need try.
    lease_until: datetime | None = None
    failures: int = 0  # How often creating or deleting has failed so far.
    reason: str = ""  # Why the identity is being deleted.
    revoked_before: datetime | None = None  # Entra tokens issued before then are refused.
    revoke_again: bool = False  # Its ACS tokens have to be revoked once more.
    gone_on: datetime | None = None  # When ACS said that it does not know the identity.
    generation: int = 1  # How many times the creation was started.
    attempt: str = ""
    etag: str = ""
    written_on: datetime | None = field(default=None, compare=False)  # By the table's clock.
    read: TableTime | None = field(default=None, compare=False, repr=False)

    @property
    def now(self) -> datetime:
        """The time on the table's clock; only for mappings that were read."""
        assert self.read is not None, "not read from the table"  # noqa: S101 - a programmer's error
        return self.read.now


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that this version cannot read, or that another version wrote."""

    person: Person
    reason: str


class IdentityMappings:
    """The table of mappings.

    Every method raises StorageUnavailableError if Table Storage fails or refuses us. A failure is
    never taken to mean that a row does not exist.

    Args:
        table: the table.
        budget: for the retries of all its calls but scans.
    """

    def __init__(self, table: TableClient, budget: RetryBudget | None = None) -> None:
        self._table = table
        self._budget = budget or RetryBudget()

    async def read(self, person: Person) -> IdentityMapping:
        """Return a person's mapping; its state is `absent` if the person has no row."""
        keeper = TimeKeeper()
        try:
            entity = await attempt(
                lambda: self._table.get_entity(
                    partition_key(person), person.object_id, raw_response_hook=keeper
                ),
                READ_ATTEMPTS,
                budget=self._budget,
            )
        except AbsentError:
            return _absent(person, keeper.known)
        try:
            return mapping_from_entity(entity, keeper.known)
        except StorageUnavailableError as error:
            report(UnreadableRow(person, str(error)))
            raise

    async def change(self, mapping: IdentityMapping, **changes: Any) -> IdentityMapping | None:  # noqa: ANN401 - fields of IdentityMapping
        """Change a mapping, or add an absent one; None if another writer was first."""
        mine = replace(mapping, **changes, attempt=secrets.token_hex(8))
        etag = None if mapping.state is State.ABSENT else mapping.etag
        try:
            entity = entity_from_mapping(mine)
            written = await write(self._table, entity, etag=etag, budget=self._budget)
        except StorageUnavailableError as exc:
            # The row decides: the error may be the answer to our second attempt, after the first
            # one succeeded.
            found = await self.read(mine.person)
            if found.attempt == mine.attempt:
                return found
            if isinstance(exc, ChangedError | AbsentError):
                return None
            raise
        return replace(mine, etag=str(written["etag"]))

    async def remove(self, mapping: IdentityMapping) -> bool:
        """Remove a mapping; False if another writer has changed it since it was read."""
        person = mapping.person
        return await remove(
            self._table,
            partition_key(person),
            person.object_id,
            etag=mapping.etag,
            budget=self._budget,
        )

    async def server_time(self) -> datetime:
        """Return the time on Table Storage's clock."""
        return (await self.read(Person("clock", "clock"))).now

    def uses(self, *, start: Position | None = None) -> AsyncIterator[Page]:
        """Yield all rows, with nothing but their keys, state, identity and last use."""
        columns = ["PartitionKey", "RowKey", "state", "acsId", "lastUsedOn"]
        return pages_of(self._table, "", start=start, select=columns)

    def unsettled(
        self, *, idle_before: datetime, future: datetime, start: Position | None = None
    ) -> AsyncIterator[Page]:
        """Yield the rows that are not active, idle, or have a last use or mark in the future."""
        return pages_of(
            self._table,
            "state ne @active or lastUsedOn lt @idle"
            " or lastUsedOn gt @future or revokedBefore gt @future",
            start=start,
            parameters={"active": State.ACTIVE.value, "idle": idle_before, "future": future},
        )

    async def page(
        self, *, tenant_id: str, state: str | None, start: Position | None, size: int
    ) -> Page:
        """Return a page of a tenant's rows, in the order of object ids.

        Args:
            tenant_id: empty for all tenants.
            state: None for all states.
            start: where the page before ended.
            size: how many rows at most; there may be fewer, or none, and more pages after it.
        """
        # The character after "_" ends the range of the tenant's partitions.
        conditions = ["PartitionKey ge @first", "PartitionKey lt @last"] if tenant_id else []
        conditions += ["state eq @state"] if state else []
        parameters = {"first": f"{tenant_id}_", "last": f"{tenant_id}`", "state": state}
        pages = pages_of(
            self._table,
            " and ".join(conditions),
            start=start,
            size=size,
            parameters=parameters if conditions else None,
        )
        return await anext(pages)


def partition_key(person: Person) -> str:
    """Return the partition of a person; each tenant is spread over 256 of them."""
    return f"{person.tenant_id}_{person.object_id[:2]}"


def person_of(entity: Mapping[str, Any]) -> Person:
    """Return whose row it is."""
    return Person(str(entity["PartitionKey"]).partition("_")[0], str(entity["RowKey"]))


def _absent(person: Person, time: TableTime) -> IdentityMapping:
    now = time.now
    return IdentityMapping(
        person=person, state=State.ABSENT, created_on=now, last_used_on=now, generation=0, read=time
    )


def entity_from_mapping(mapping: IdentityMapping) -> dict[str, Any]:
    """Return the row of a mapping; what is None is not stored."""
    return {
        "PartitionKey": partition_key(mapping.person),
        "RowKey": mapping.person.object_id,
        "state": mapping.state.value,
        "acsId": mapping.acs_id or None,
        "generation": mapping.generation,
        "attempt": mapping.attempt,
        "leaseUntil": mapping.lease_until,
        "failures": mapping.failures or None,
        "reason": mapping.reason or None,
        "createdOn": mapping.created_on,
        "lastUsedOn": mapping.last_used_on,
        "revokedBefore": mapping.revoked_before,
        "revokeAgain": mapping.revoke_again or None,
        "goneOn": mapping.gone_on,
        "schema": SCHEMA,
    }


def mapping_from_entity(entity: TableEntity, time: TableTime | None = None) -> IdentityMapping:
    """Return the mapping in a row.

    Args:
        entity: the row.
        time: when it was read.

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
        if state is State.ABSENT:
            raise StorageUnavailableError("a row with a state that is never stored")
        failures = entity.get("failures", 0)
        counts = (entity["generation"], failures)
        if not all(type(count) is int for count in counts) or not isinstance(acs_id, str):
            raise StorageUnavailableError("a row with a value of the wrong type")
        if not ACS_ID.fullmatch(acs_id) and (acs_id or state is State.ACTIVE):
            raise StorageUnavailableError("a row whose acsId is not an ACS identity")
        return IdentityMapping(
            person=person_of(entity),
            state=state,
            acs_id=acs_id,
            generation=entity["generation"],
            attempt=entity["attempt"],
            lease_until=dates.get("leaseUntil"),
            failures=failures,
            reason=str(entity.get("reason", "")),
            created_on=dates["createdOn"],
            last_used_on=dates["lastUsedOn"],
            revoked_before=dates.get("revokedBefore"),
            revoke_again=entity.get("revokeAgain", False) is True,
            gone_on=dates.get("goneOn"),
            etag=entity.metadata["etag"] or "",
            written_on=entity.metadata["timestamp"],
            read=time,
        )
    except (KeyError, ValueError, AttributeError) as exc:
        raise StorageUnavailableError("a row that cannot be read") from exc


def rows_of(page: Page) -> list[IdentityMapping | UnreadableRow]:
    """Return the rows of a page."""
    rows: list[IdentityMapping | UnreadableRow] = []
    for entity in page.entities:
        try:
            rows.append(mapping_from_entity(entity, page.time))
        except StorageUnavailableError as error:
            rows.append(UnreadableRow(person_of(entity), str(error)))
    return rows


def readable_of(page: Page) -> list[IdentityMapping]:
    """Return the mappings of a page without the rows that cannot be read, after reporting those."""
    found = []
    for row in rows_of(page):
        if isinstance(row, UnreadableRow):
            report(row)
        else:
            found.append(row)
    return found


def report(row: UnreadableRow) -> None:
    """Write an audit line about a row that cannot be read."""
    fields = {"reason": row.reason, **row.person._asdict()}
    audit.record("mapping_unreadable", fields, level=logging.ERROR)

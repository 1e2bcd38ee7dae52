"""Finds the rows that something is wrong with, in one pass over the table of mappings."""

from __future__ import annotations

import logging
from array import array
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import StorageUnavailableError
from shared.mappings.table import DATES, mapping_from_entity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from azure.data.tables import TableEntity

MAX_LINES = 20  # For each kind of finding; the report has the number of all.
CLOCK_TOLERANCE = timedelta(minutes=5)
LEASE_TOLERANCE = timedelta(days=1) + CLOCK_TOLERANCE  # A deletion that failed waits for so long.
DIGEST_BYTES = 8  # Two of a million ids have the same digest once in 40 million backups.


class Inspection:
    """Counts what it finds, and writes an audit line about each of the first rows.

    Its memory grows by eight bytes a row, for the digests of the ids.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self.future_dates = 0
        # By their first byte, so that not all of them are sorted at once.
        self._digests = [array("Q") for _ in range(256)]

    def look_at(self, entity: TableEntity, now: datetime) -> None:
        """Look at one row.

        Args:
            entity: the row.
            now: the time on the table's clock, when the row was read.
        """
        acs_id = entity.get("acsId")
        if isinstance(acs_id, str) and acs_id:
            digest = _digest(acs_id)
            self._digests[digest >> 56].append(digest)
        try:
            mapping_from_entity(entity)
        except StorageUnavailableError as error:
            self.damaged += 1
            if self.damaged <= MAX_LINES:
                fields = _whose(entity) | {"reason": str(error)}
                audit.record("mapping_unreadable", fields, level=logging.ERROR)
            return
        late = list(_future_dates(entity, now))
        if late:
            self.future_dates += 1
            if self.future_dates <= MAX_LINES:
                fields = _whose(entity) | {"reason": ", ".join(late)}
                audit.record("mapping_in_future", fields, level=logging.ERROR)

    def shared_ids(self) -> set[int]:
        """Return the digests of the ids that more than one row has."""
        found: set[int] = set()
        for digests in self._digests:
            found.update(one for one, next_one in pairwise(sorted(digests)) if one == next_one)
        return found


class SharedIds:
    """Finds the rows with the ids that more than one row has, in a second pass."""

    def __init__(self, digests: Iterable[int]) -> None:
        self._digests = frozenset(sorted(digests)[:MAX_LINES])
        self._found: list[TableEntity] = []

    def look_at(self, entity: TableEntity) -> None:
        """Look at one row, of which the keys and `acsId` suffice."""
        acs_id = entity.get("acsId")
        has_room = len(self._found) < MAX_LINES * 2
        if isinstance(acs_id, str) and has_room and _digest(acs_id) in self._digests:
            self._found.append(entity)

    def report(self) -> None:
        """Write an audit line about each row."""
        for entity in sorted(self._found, key=lambda each: str(each["acsId"]))[:MAX_LINES]:
            fields = _whose(entity) | {"acs_id": entity["acsId"]}
            audit.record("identity_shared", fields, level=logging.ERROR)


def _digest(acs_id: str) -> int:
    return int.from_bytes(blake2b(acs_id.encode(), digest_size=DIGEST_BYTES).digest())


def _future_dates(entity: TableEntity, now: datetime) -> Iterator[str]:
    for name in DATES:
        date = entity.get(name)
        tolerance = LEASE_TOLERANCE if name == "leaseUntil" else CLOCK_TOLERANCE
        if isinstance(date, datetime) and date > now + tolerance:
            yield f"{name} is {date.isoformat()}"


def _whose(entity: TableEntity) -> dict[str, audit.Field]:
    return {
        "tenant_id": str(entity.get("PartitionKey", "")).partition("_")[0],
        "object_id": entity.get("RowKey"),
    }

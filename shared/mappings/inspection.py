"""Finds the rows that something is wrong with, in one pass over the table of mappings."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import StorageUnavailableError
from shared.mappings.endings import LONGEST_RETRY
from shared.mappings.fingerprints import Fingerprints
from shared.mappings.identities import CLOCK_TOLERANCE
from shared.mappings.ownership import report_shared
from shared.mappings.table import (
    DATES,
    UnreadableRow,
    mapping_from_entity,
    person_of,
    report,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.data.tables import TableEntity

MAX_LINES = 20  # For each kind of finding; the report has the number of all.
LEASE_TOLERANCE = LONGEST_RETRY + CLOCK_TOLERANCE  # A deletion that failed waits for so long.


class Inspection:
    """Counts what it finds, and writes an audit line about each of the first rows.

    Its memory grows by eight bytes a row, for the ids.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self.future_dates = 0
        self._ids = Fingerprints()

    def look_at(self, entity: TableEntity, now: datetime) -> None:
        """Look at one row.

        Args:
            entity: the row.
            now: the time on the table's clock, when the row was read.
        """
        acs_id = entity.get("acsId")
        if isinstance(acs_id, str) and acs_id:
            self._ids.add(acs_id)
        try:
            mapping_from_entity(entity)
        except StorageUnavailableError as error:
            self.damaged += 1
            if self.damaged <= MAX_LINES:
                report(UnreadableRow(person_of(entity), str(error)))
            return
        late = list(_future_dates(entity, now))
        if late:
            self.future_dates += 1
            if self.future_dates <= MAX_LINES:
                fields = person_of(entity)._asdict() | {"reason": ", ".join(late)}
                audit.record("mapping_in_future", fields, level=logging.ERROR)

    def shared_ids(self) -> Fingerprints:
        """Return the ids that more than one row has."""
        return self._ids.repeated()


class SharedIds:
    """Finds the rows with the ids that more than one row has, in a second pass."""

    def __init__(self, ids: Fingerprints) -> None:
        self._ids = ids.some(MAX_LINES)
        self._found: list[TableEntity] = []

    def look_at(self, entity: TableEntity) -> None:
        """Look at one row, of which the keys and `acsId` suffice."""
        acs_id = entity.get("acsId")
        has_room = len(self._found) < MAX_LINES * 2
        if isinstance(acs_id, str) and has_room and (acs_id,) in self._ids:
            self._found.append(entity)

    def report(self) -> None:
        """Write an audit line about each row."""
        for entity in sorted(self._found, key=lambda each: str(each["acsId"]))[:MAX_LINES]:
            report_shared(entity["acsId"], person_of(entity))


def _future_dates(entity: TableEntity, now: datetime) -> Iterator[str]:
    for name in DATES:
        date = entity.get(name)
        tolerance = LEASE_TOLERANCE if name == "leaseUntil" else CLOCK_TOLERANCE
        if isinstance(date, datetime) and date > now + tolerance:
            yield f"{name} is {date.isoformat()}"

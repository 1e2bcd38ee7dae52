"""Looks at a whole file before anything is written."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from infra.mappings.files import read
from infra.mappings.people import BadRow, OrphanRow, Row
from shared.identifiers import resource_of
from shared.mappings.fingerprints import Fingerprints
from shared.mappings.table import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.mappings.people import AnyRow
    from shared.identifiers import Person

UNCONFIRMED = "unconfirmed"  # An orphan that a row may name after all, and then the row counts.


class Check:
    """What is wrong with the rows of a file, by themselves and taken together.

    Memory grows by sixteen bytes a row, and by the orphans and by what is there twice.

    Args:
        path: the file.
        resource_id: the immutable id of the ACS resource that all identities must belong to.
        person: looks at this person's rows alone; None for everybody's.

    Attributes:
        total: how many rows there are.
        orphans: those in the file that must be deleted, by ACS identity.
    """

    def __init__(self, path: Path, *, resource_id: str, person: Person | None = None) -> None:
        self._path = path
        self._resource_id = resource_id
        self._person = person
        self._shared: set[str] = set()
        self._split: set[Person] = set()
        self.total = 0
        self.orphans: dict[str, OrphanRow] = {}
        people, ids = Fingerprints(), Fingerprints()
        for row in read(path):
            if self._is_wanted(row):
                self.total += 1
            if isinstance(row, OrphanRow):
                self.orphans[row.acs_id] = row
            elif isinstance(row, Row):
                people.add(*row.person)
                if row.acs_id:
                    ids.add(row.acs_id.lower())
        self._compare(people.repeated(), ids.repeated())

    def _compare(self, people: Fingerprints, ids: Fingerprints) -> None:
        """Look again at what may be there twice."""
        owners, identities = defaultdict(set), defaultdict(set)
        for row in read(self._path):
            if not isinstance(row, Row):
                continue
            acs_id = row.acs_id.lower()
            if (acs_id,) in ids:
                owners[acs_id].add(row.person)
            if tuple(row.person) in people:
                identities[row.person].add(acs_id)
            orphan = self.orphans.get(row.acs_id)
            if row.state is State.ACTIVE and orphan and orphan.reason == UNCONFIRMED:
                del self.orphans[row.acs_id]
        self._shared = {acs_id for acs_id, found in owners.items() if len(found) > 1}
        self._split = {person for person, found in identities.items() if len(found) > 1}

    def rows(self) -> Iterator[AnyRow]:
        """Yield the rows of the file once more."""
        return filter(self._is_wanted, read(self._path))

    def problem_of(self, row: AnyRow) -> str | None:
        """Return what is wrong with a row, if anything."""
        if isinstance(row, BadRow):
            return row.problem
        if row.acs_id and resource_of(row.acs_id) != self._resource_id:
            return "the identity belongs to another ACS resource"
        return self._contradiction_of(row) if isinstance(row, Row) else None

    def _contradiction_of(self, row: Row) -> str | None:
        if row.acs_id.lower() in self._shared:
            return "the file gives this identity to more than one person"
        if row.person in self._split:
            return "the file gives this person more than one identity"
        if row.acs_id in self.orphans:
            return "the file says that the identity must be deleted"
        return None

    def _is_wanted(self, row: AnyRow) -> bool:
        if self._person is None:
            return True
        return not isinstance(row, BadRow) and row.person == self._person

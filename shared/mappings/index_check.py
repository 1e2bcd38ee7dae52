"""Compares the index with the rows, once a day: a crash must not leave it wrong for ever.

An entry is left over if a process died between the index and the row; one is missing if somebody
edited a table by hand. The comparison keeps eight bytes for each row and entry. What differs is
read again before anything is changed: the row is the truth.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shared.errors import StorageUnavailableError
from shared.identifiers import ACS_ID
from shared.mappings.fingerprints import Fingerprints
from shared.mappings.ownership import claim, report_shared
from shared.mappings.table import State, person_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from shared.identifiers import Person
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMappings


# An entry is written before the row that it is for: so long is it left alone.
SETTLING = timedelta(minutes=10)


class IndexCheck:
    """Finds and mends what differs between the index and the rows.

    Attributes:
        is_complete: whether `add` is given all rows of the table; if not, nothing is compared.
    """

    def __init__(self, *, mappings: IdentityMappings, ledger: Ledger) -> None:
        self._mappings = mappings
        self._ledger = ledger
        self._rows = Fingerprints()
        self.is_complete = False

    def add(self, entities: Iterable[Mapping[str, Any]]) -> None:
        """Take note of rows."""
        for acs_id, person in filter(None, map(_pair, entities)):
            self._rows.add(acs_id, *person)

    async def mend(self, check_time: Callable[[], None] = lambda: None) -> int:
        """Compare, mend what differs, and return how many entries that were.

        Args:
            check_time: is called again and again, and raises if the time is over.

        Raises:
            StorageUnavailableError: Table Storage failed; the next run compares again.
        """
        if not self.is_complete:
            return 0
        entries = Fingerprints()
        mended = 0
        recently = await self._mappings.server_time() - SETTLING
        async for acs_id, person, written_on, etag in self._ledger.owners():
            check_time()
            entries.add(acs_id, *person)
            is_known = (acs_id, *person) in self._rows
            if is_known or written_on is None or written_on > recently:
                continue
            mended += await _tried(self._remove(acs_id, person, etag))
        if not self._rows.issubset(entries):
            mended += await self._add_missing(entries, check_time)
        return mended

    async def _add_missing(self, entries: Fingerprints, check_time: Callable[[], None]) -> int:
        added = 0
        async for page in self._mappings.uses():
            for acs_id, person in filter(None, map(_pair, page.entities)):
                check_time()
                if (acs_id, *person) not in entries:
                    added += await _tried(self._add(acs_id, person))
        return added

    async def _remove(self, acs_id: str, person: Person, etag: str) -> bool:
        """Remove an entry, unless the row has come to name the identity meanwhile."""
        if await self._has(person, acs_id):
            return False
        # Only this version: whoever is about to write the row has written the entry again.
        await self._ledger.forget_owner(acs_id, person, etag=etag)
        return True

    async def _add(self, acs_id: str, person: Person) -> bool:
        """Add an entry, unless the row has changed, or the identity is somebody else's."""
        if not await self._has(person, acs_id):
            return False
        if await claim(acs_id, person, mappings=self._mappings, ledger=self._ledger):
            return True
        if await self._ledger.owner(acs_id) is not None:
            report_shared(acs_id, person)
        return False

    async def _has(self, person: Person, acs_id: str) -> bool:
        """Return whether a person's row names an identity, or may be about to."""
        mapping = await self._mappings.read(person)
        return mapping.acs_id == acs_id or mapping.state is State.CREATING


async def _tried(mending: Awaitable[bool]) -> bool:
    """Return whether an entry was mended: a row that cannot be read must not hold up the others."""
    with suppress(StorageUnavailableError):
        return await mending
    return False


def _pair(entity: Mapping[str, Any]) -> tuple[str, Person] | None:
    acs_id = entity.get("acsId")
    if not isinstance(acs_id, str) or not ACS_ID.fullmatch(acs_id):
        return None
    return acs_id, person_of(entity)

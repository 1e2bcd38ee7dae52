"""Sees to it that one ACS identity belongs to one person.

The index has one entry for each identity, and is written only if there is none: so it decides
between two rows that name the same identity, as after a restore by hand.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shared import audit
from shared.mappings.table import State

if TYPE_CHECKING:
    from shared.identifiers import Person
    from shared.mappings.ledger import Ledger
    from shared.mappings.table import IdentityMappings


async def claim(acs_id: str, person: Person, *, mappings: IdentityMappings, ledger: Ledger) -> bool:
    """Enter a person into the index as the owner of an identity; False if it is somebody else's.

    An entry for somebody whose row does not name the identity is left over, and is replaced.

    Raises:
        StorageUnavailableError: Table Storage failed.
    """
    found = await ledger.ownership(acs_id)
    if found is not None and found.person != person:
        row = await mappings.read(found.person)
        if row.acs_id == acs_id or row.state is State.CREATING:
            return False
        # The entry is written before the row: the person in it may be about to write the row, as we
        # are. That must fail, so the row is changed; the person then finds our entry.
        state = State.ERASED if row.state is State.ABSENT else row.state
        if await mappings.change(row, state=state) is None:
            return False
    return await ledger.claim(acs_id, person, instead_of=found)


def report_shared(acs_id: str, person: Person) -> None:
    """Write an audit line about a row that names somebody else's identity."""
    fields = {"acs_id": acs_id, **person._asdict()}
    audit.record("identity_shared", fields, level=logging.ERROR)

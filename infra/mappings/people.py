"""What a file says about people, one row at a time, whatever its format is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.mappings.table import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from shared.identifiers import Person

COLUMNS = ("tenantId", "objectId", "communicationUserId")
MORE_COLUMNS = ("createdOn", "lastUsedOn", "state", "revokedBefore", "reason")


@dataclass(frozen=True, slots=True)
class Row:
    """A row about one person."""

    number: int
    person: Person
    acs_id: str  # Empty in rows that only keep a mark.
    state: State = State.ACTIVE
    created_on: datetime | None = None
    last_used_on: datetime | None = None
    revoked_before: datetime | None = None
    revoke_again: bool = False
    reason: str = ""  # Why the identity is being deleted.


@dataclass(frozen=True, slots=True)
class OrphanRow:
    """An ACS identity that must be deleted, and whose it was, if that is known."""

    number: int
    acs_id: str
    person: Person | None
    reason: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and as much of it as helps to find it."""

    number: int
    problem: str
    shown: Mapping[str, str] = field(default_factory=dict)


AnyRow = Row | OrphanRow | BadRow

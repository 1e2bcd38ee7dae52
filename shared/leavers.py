"""Finds the people who have a mapping and were deleted from Entra; erases nothing itself.

Only what Entra lists among its deleted users counts, which it does for 30 days. That Entra does not
know a user at all proves nothing: a wrong tenant would look as if everybody had left. Whoever is
missed cannot sign in, so that mapping becomes idle, and is removed as such.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from shared import audit
from shared.entra.access_tokens import CLOCK_SKEW, MAX_LIFETIME
from shared.entra.graph import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from shared.entra.graph import Graph
    from shared.identifiers import Person
    from shared.settings import LeaversSettings

# For so long after the deletion, a token that was issued before may be used.
LONGEST_USE = timedelta(seconds=MAX_LIFETIME + CLOCK_SKEW)


@dataclass(frozen=True, slots=True)
class Leaver:
    """Somebody who has left, and what proves it: the date of the deletion in Entra."""

    person: Person
    deleted_on: datetime


class Leavers:
    """Compares the people who have a mapping with the users who were deleted from Entra."""

    def __init__(self, *, settings: LeaversSettings, graph: Graph) -> None:
        self._settings = settings
        self._graph = graph

    async def search(self, *, now: datetime) -> Search | None:
        """Ask Graph who was deleted, and return a search for one run.

        None if Graph cannot be asked, which the audit line `leavers_unknown` reports: then nobody
        counts as gone.
        """
        try:
            with audit.timed("graph_ms"):
                deleted = await self._graph.deleted_users()
        except GraphError as error:
            audit.record("leavers_unknown", {"reason": str(error)}, level=logging.ERROR)
            return None
        return Search(settings=self._settings, deleted=deleted, now=now)


@dataclass(slots=True)
class Search:
    """Takes everybody who has a mapping, one by one; then says who has left."""

    settings: LeaversSettings
    deleted: Mapping[str, datetime]
    now: datetime
    people: int = 0
    elsewhere: int = 0  # People of other tenants, whose directories cannot be read.
    _found: list[Leaver] = field(default_factory=list)

    def add(self, person: Person, *, last_used_on: datetime) -> None:
        """Take somebody who has a mapping."""
        if person.tenant_id != self.settings.tenant_id:
            self.elsewhere += 1
            return
        self.people += 1
        deleted_on = self.deleted.get(person.object_id)
        if deleted_on and has_left(
            deleted_on, last_used_on=last_used_on, after=self.settings.after, now=self.now
        ):
            self._found.append(Leaver(person, deleted_on))

    def found(self) -> list[Leaver]:
        """Return who has left, or nobody if there are too many; write one audit line about it."""
        left = len(self._found)
        stopped = brake(left, people=self.people, settings=self.settings)
        fields = {
            "deleted": len(self.deleted),
            "people": self.people,
            "elsewhere": self.elsewhere,
            "left": left,
            "stopped": stopped,
        }
        if stopped:
            audit.record("leavers_stopped", fields, level=logging.WARNING)
            return []
        audit.record("leavers_found", fields)
        return self._found


def has_left(
    deleted_on: datetime, *, last_used_on: datetime, after: timedelta, now: datetime
) -> bool:
    """Return whether somebody was deleted long enough ago, and was not here since."""
    return deleted_on + after <= now and not has_returned(deleted_on, last_used_on=last_used_on)


def has_returned(deleted_on: datetime, *, last_used_on: datetime) -> bool:
    """Return whether somebody used the service after the last token from before had expired.

    Who did was restored, or is not the one who was deleted.
    """
    return last_used_on > deleted_on + LONGEST_USE


def brake(left: int, *, people: int, settings: LeaversSettings) -> str | None:
    """Return the name of the brake that so many leavers at once release, if they do.

    A synchronisation with the wrong filter deletes users by the hundred, and they are restored.
    """
    if left > settings.max_people:
        return "number"
    if left > people * settings.max_share:
        return "share"
    return None

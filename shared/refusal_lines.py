"""Writes the audit lines of requests that were refused or failed: in full up to a rate, or counted.

Anybody can make the service refuse a request, and a line costs about a kilobyte of the workspace's
daily cap, beyond which no alert sees anything. So strangers together, and each person for
themselves, have a few lines in full; what goes beyond is one line a second for the whole process,
which says how many requests there were of which kind, and whose. A stranger is everybody who has
shown no token of Entra's for this service and of a tenant that it serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from shared import audit
from shared.errors import RateLimitedError
from shared.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Kind = tuple[tuple[str, audit.Field], ...]

# Strangers together, and each person, have so many lines in full at once, and one more every five
# seconds.
BURST = 30.0
PER_SECOND = 0.2
COUNT_FOR = 1.0  # seconds
# So many of strangers, and as many of people, who could otherwise hide among them. Each has 150 to
# 450 characters; those beyond are told apart by code alone.
MAX_KINDS = 8

# What makes a kind, and besides that, a kind of a person's.
_KIND = ("event", "route", "status", "code", "reason")
_WHOSE = ("tenant_id", "object_id", "client_id", "policy_rule")
_CODE = ("event", "status", "code")


class RefusalLines:
    """Writes the lines of one process.

    Args:
        clock: returns seconds.
        count_for: seconds after which what was counted is written.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, count_for: float = COUNT_FOR
    ) -> None:
        self._limit = RateLimit(clock=clock, burst=BURST, per_second=PER_SECOND)
        self._failures_limit = RateLimit(clock=clock)
        self._count_for = count_for
        self._of_strangers: Counter[Kind] = Counter()
        self._of_people: Counter[Kind] = Counter()

    def record(self, event: str, fields: Mapping[str, audit.Field], *, level: int) -> None:
        """Write the line of a request, or count it.

        Our own failures towards people are written in full, up to as many as a person may send
        requests: administrators may send more.
        """
        who = _person(fields)
        limit = self._failures_limit if who and level >= logging.ERROR else self._limit
        try:
            limit.take(who)
        except RateLimitedError:
            self._count({"event": event, **fields}, of_person=who is not None)
        else:
            audit.record(event, fields, level=level)

    def _count(self, fields: Mapping[str, audit.Field], *, of_person: bool) -> None:
        if not self._of_strangers and not self._of_people:
            asyncio.get_running_loop().call_later(self._count_for, self._write_counts)
        counts = self._of_people if of_person else self._of_strangers
        names = (*_KIND, *_WHOSE) if of_person else _KIND
        kind = tuple((name, fields[name]) for name in names if fields.get(name) is not None)
        if kind not in counts and len(counts) >= MAX_KINDS:
            kind = tuple((name, fields[name]) for name in _CODE)
        counts[kind] += 1

    def _write_counts(self) -> None:
        counts = self._of_strangers + self._of_people
        self._of_strangers, self._of_people = Counter(), Counter()
        kinds = [{**dict(kind), "requests": number} for kind, number in counts.most_common()]
        audit.record_outside("requests_counted", {"requests": counts.total(), "kinds": kinds})


def _person(fields: Mapping[str, audit.Field]) -> tuple[audit.Field, ...] | None:
    """Return whose request it was, None for a stranger."""
    who = tuple(fields.get(name) for name in ("tenant_id", "object_id"))
    return who if any(who) and fields.get("ours") is not False else None

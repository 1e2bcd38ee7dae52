"""Writes the audit lines of requests that were refused or failed: in full up to a rate, or counted.

Anybody can make the service refuse a request, and a line costs about a kilobyte of the workspace's
daily cap, beyond which no alert sees anything. So strangers together, and each person for
themselves, have a few lines in full; what goes beyond is one line a second for the whole process,
which says how many requests there were of which kind, and whose.
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

# Strangers together, and each person, have so many lines in full at once, and one more every five
# seconds.
BURST = 30.0
PER_SECOND = 0.2
COUNT_FOR = 1.0  # seconds
MAX_KINDS = 8  # Each has 150 to 450 characters; those beyond are told apart by code alone.

# What makes a kind. Nobody is named before a signature has been verified.
_KIND = (
    "event",
    "route",
    "status",
    "code",
    "reason",
    "tenant_id",
    "object_id",
    "client_id",
    "policy_rule",
)
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
        self._count_for = count_for
        self._counts: Counter[tuple[tuple[str, audit.Field], ...]] = Counter()

    def record(self, event: str, fields: Mapping[str, audit.Field], *, level: int) -> None:
        """Write the line of a request, or count it.

        Our own failures towards somebody whose token was verified are always written in full.
        """
        who = tuple(fields.get(name) for name in ("tenant_id", "object_id"))
        if level >= logging.ERROR and any(who):
            audit.record(event, fields, level=level)
            return
        try:
            self._limit.take(who)
        except RateLimitedError:
            self._count({"event": event, **fields})
        else:
            audit.record(event, fields, level=level)

    def _count(self, fields: Mapping[str, audit.Field]) -> None:
        if not self._counts:
            asyncio.get_running_loop().call_later(self._count_for, self._write_counts)
        kind = tuple((name, fields[name]) for name in _KIND if fields.get(name) is not None)
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = tuple((name, fields[name]) for name in _CODE)
        self._counts[kind] += 1

    def _write_counts(self) -> None:
        counts, self._counts = self._counts, Counter()
        kinds = [{**dict(kind), "requests": number} for kind, number in counts.most_common()]
        audit.record_outside("requests_counted", {"requests": counts.total(), "kinds": kinds})

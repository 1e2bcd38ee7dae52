"""Limits how many requests one person may send to this process."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from shared.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

BURST = 60.0
PER_SECOND = 0.5  # 30 a minute. A client needs one token an hour.
MAX_REMEMBERED = 50_000


class RateLimit:
    """A token bucket for each key; those unseen for longest are forgotten first.

    It counts within one process: with n instances, a person may send n times as many requests.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable) -> None:
        """Count one request, or raise RateLimitedError."""
        now = self._clock()
        left, since = self._buckets.pop(key, (BURST, now))
        left = min(BURST, left + (now - since) * PER_SECOND)
        granted = left >= 1
        self._buckets[key] = (left - granted, now)  # A refusal costs nothing.
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        if not granted:
            raise RateLimitedError("over the limit for one person", retry_after=1 / PER_SECOND)

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

    Args:
        clock: returns seconds.
        burst: how many requests may come at once.
        per_second: how many more after that.
    """

    def __init__(
        self, *, clock: Callable[[], float], burst: float = BURST, per_second: float = PER_SECOND
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._per_second = per_second
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable) -> None:
        """Count one request, or raise RateLimitedError."""
        now = self._clock()
        left, since = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        granted = left >= 1
        self._buckets[key] = (left - granted, now)  # A refusal costs nothing.
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        if not granted:
            wait = 1 / self._per_second
            raise RateLimitedError("over the limit for one person", retry_after=wait)

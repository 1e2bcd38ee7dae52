"""Decides when signing keys may be fetched: how often on demand, and when again after a failure.

There is no clock here: each method is told the time, in seconds on a clock that never goes back.
"""

from __future__ import annotations

import random

# How many fetches on demand there may be at once, and after how many seconds there is another.
BURST, REFILL = 2, 60
RESERVE, RESERVE_REFILL = 1, 300  # Besides, for those whom this process has served before.
RETRY_FIRST, RETRY_LAST = 5, 300  # Seconds from one attempt to the next, while they fail.


class FetchBudget:
    """Limits the fetches that tokens with unknown key ids cause. Failed fetches count, too.

    Anybody can make up a key id, so there is a reserve that strangers cannot spend. What a token
    says about its person has not been verified: whoever knows a served person's id can spend the
    reserve, too, and then everybody waits for the next fetch. The reserve is refilled apart from
    the rest, so that nobody else waits longer because of it.
    """

    def __init__(self) -> None:
        self._for_all = _Allowance(BURST, REFILL)
        self._reserve = _Allowance(RESERVE, RESERVE_REFILL)

    def spend(self, now: float, *, reserved: bool) -> bool:
        """Take one fetch, if there is one for this caller.

        Args:
            now: the time.
            reserved: the caller may take one of the reserve.
        """
        return self._for_all.take(now) or (reserved and self._reserve.take(now))


class _Allowance:
    """A number of fetches, of which one comes back after so many seconds."""

    def __init__(self, most: int, refill: float) -> None:
        self._most, self._refill = most, refill
        self._left, self._since = float(most), float("-inf")

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        earned = max(0.0, now - self._since) / self._refill
        self._left, self._since = min(self._most, self._left + earned), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Backoff:
    """Says when to try again after failures: soon at first, then ever more rarely.

    The time runs from the beginning of an attempt, so that an Entra which does not answer at all is
    asked again as soon as one that refuses.
    """

    def __init__(self) -> None:
        self.succeeded()  # Nothing has failed yet.

    def succeeded(self) -> None:
        """Forget all failures."""
        self._pause = float(RETRY_FIRST)
        self._due = self._not_before = float("-inf")
        self.is_failing = False

    def failed(self, *, started: float, now: float, retry_after: float | None) -> float:
        """Return when to try again.

        Args:
            started: when the attempt began.
            now: the time.
            retry_after: for how many seconds Entra asked to be left alone, if it did.
        """
        if self._due <= now:  # Otherwise it was a fetch on demand during a pause, which goes on.
            # All instances of an app fail at the same moment, and should not return at one.
            jitter = random.uniform(0.8, 1)  # noqa: S311 - not a secret
            self._due = started + self._pause * jitter
            self._pause = min(2 * self._pause, RETRY_LAST)
        if retry_after is not None:
            self._not_before = now + min(max(retry_after, RETRY_FIRST), RETRY_LAST)
        self._due = max(self._due, self._not_before, now)
        self.is_failing = True
        return self._due

    def forbids(self, now: float) -> bool:
        """Return whether Entra asked to be left alone for now."""
        return now < self._not_before

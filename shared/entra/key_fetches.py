"""Decides when signing keys may be fetched: how often on demand, and when again after a failure.

There is no clock here: each method is told the time, in seconds on a clock that never goes back.
"""

from __future__ import annotations

import random

BURST = 3  # So many fetches on demand at once, ...
REFILL = 60  # ... and one more after so many seconds.
RESERVE = 1  # The last fetch is for those whom this process has served before.
RETRY_FIRST, RETRY_LAST = 5, 300  # Seconds from one attempt to the next, while they fail.


class FetchBudget:
    """Limits the fetches that tokens with unknown key ids cause. Failed fetches count, too.

    Anybody can make up a key id, so strangers cannot spend the reserve. What brings a token into
    it, its person, has not been verified: it ranks callers, and whoever knows a served person's id
    can empty the reserve. Then the refill is what everybody waits for.
    """

    def __init__(self) -> None:
        self._left, self._since = float(BURST), float("-inf")

    def spend(self, now: float, *, reserved: bool) -> bool:
        """Take one fetch, if there is one for this caller.

        Args:
            now: the time.
            reserved: the caller may take the last one.
        """
        earned = max(0.0, now - self._since) / REFILL
        self._left, self._since = min(BURST, self._left + earned), now
        if self._left < (1 if reserved else 1 + RESERVE):
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

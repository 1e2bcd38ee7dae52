"""A circuit breaker: decides when a service that keeps failing is left alone.

It is pure: it calls nothing and waits for nothing, and the time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 10
LEAST_CALLS = 20  # Fewer say too little.
FAILING_SHARE = 0.5
PROBE_SECONDS = 5.0


@dataclass(slots=True)
class _Second:
    """What was counted in one second."""

    number: int
    calls: int = 0
    failures: int = 0


class Circuit:
    """Opens when half of the last calls failed, and closes when one succeeds after that.

    While it is open, one call every five seconds is let through as a probe. The next probe does not
    wait for the end of the one before, which may have been cancelled.

    Args:
        least_calls: how many calls there must be in ten seconds before it opens.
    """

    def __init__(self, *, least_calls: int = LEAST_CALLS) -> None:
        self._least_calls = least_calls
        self._window: deque[_Second] = deque(maxlen=WINDOW_SECONDS)
        self._changed_at = float("-inf")
        self._next_probe: float | None = None  # None: closed.

    @property
    def is_open(self) -> bool:
        """Whether calls fail without being made, but for the probes."""
        return self._next_probe is not None

    def admit(self, now: float) -> float:
        """Return 0 for a call that may be made, else the seconds until the next probe is due."""
        if self._next_probe is None:
            return 0
        if now < self._next_probe:
            return self._next_probe - now
        self._next_probe = now + PROBE_SECONDS
        return 0

    def count(self, *, begun: float, now: float, failed: bool) -> bool:
        """Count a call that has ended; return whether that opened or closed the circuit.

        A call that began before the circuit last opened or closed is not counted: its end would be
        taken for that of a probe, or for a failure of a service that has recovered.
        """
        if begun <= self._changed_at:
            return False
        changed = not failed if self.is_open else self._is_failing(now, failed=failed)
        if changed:
            self._next_probe = None if self.is_open else now + PROBE_SECONDS
            self._changed_at = now
            self._window.clear()
        return changed

    def _is_failing(self, now: float, *, failed: bool) -> bool:
        """Count a call, and return whether too many of the last ones failed."""
        second = int(now)
        while self._window and self._window[0].number <= second - WINDOW_SECONDS:
            self._window.popleft()
        if not self._window or self._window[-1].number != second:
            self._window.append(_Second(second))
        self._window[-1].calls += 1
        self._window[-1].failures += failed
        calls = sum(each.calls for each in self._window)
        failures = sum(each.failures for each in self._window)
        return calls >= self._least_calls and failures >= calls * FAILING_SHARE

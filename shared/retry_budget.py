"""Limits retries to a share of all calls, so that they do not multiply the load of an outage."""

from __future__ import annotations

CALLS_PER_RETRY = 10
# As many as a busy process has requests: a network that fails for a second fails all of them. The
# AWS SDKs save as many, https://github.com/aws/aws-sdk-js-v3/pull/1258 (500 tokens at 5 a retry).
SAVED_RETRIES = 100


class RetryBudget:
    """Lets one retry be made for every ten calls; up to a hundred retries are saved up.

    Of n calls that all fail, n / 10 + 100 are repeated at most. Where calls fail now and then,
    every one of them can be repeated.
    """

    def __init__(self) -> None:
        self._calls = CALLS_PER_RETRY * SAVED_RETRIES

    def earn(self) -> None:
        """Count a call that is not a retry."""
        self._calls = min(self._calls + 1, CALLS_PER_RETRY * SAVED_RETRIES)

    def spend(self) -> bool:
        """Count a retry that is about to be made; False if none is left."""
        if self._calls < CALLS_PER_RETRY:
            return False
        self._calls -= CALLS_PER_RETRY
        return True

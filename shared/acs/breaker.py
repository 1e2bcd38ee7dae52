"""Leaves an operation of ACS alone while it keeps failing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared import audit
from shared.circuit import Circuit
from shared.errors import (
    BrokerError,
    UpstreamBadResponseError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Breaker:
    """Watches the calls of one operation, and refuses further ones while they keep failing.

    Args:
        operation: its name, for the log.
        circuit: decides when.
    """

    def __init__(self, operation: str, circuit: Circuit | None = None) -> None:
        self._operation = operation
        self._circuit = circuit or Circuit()

    def admit(self) -> None:
        """Raise UpstreamUnavailableError if the operation is not to be tried now."""
        wait = self._circuit.admit(asyncio.get_running_loop().time())
        if wait:
            reason = f"{self._operation} keeps failing, so ACS was not called"
            raise UpstreamUnavailableError(reason, retry_after=wait)

    @contextmanager
    def watch(self, *, held: bool = False) -> Iterator[None]:
        """Count one call, which the body makes.

        A call that is cancelled is not counted. It says nothing about ACS: a call that ACS does not
        answer ends by its own time limit.

        Args:
            held: whether the call has a token that the caller has sent. A failure may be due to
                that, so it is counted only if ACS is silent until the time is over.
        """
        clock = asyncio.get_running_loop().time
        begun, failed = clock(), False
        try:
            yield
        except BrokerError as error:
            failed = is_failure(error)
            if not (failed and held) or _is_silence(error):
                self._record(begun, clock(), failed=failed)
            raise
        self._record(begun, clock(), failed=failed)

    def _record(self, begun: float, now: float, *, failed: bool) -> None:
        if self._circuit.count(begun=begun, now=now, failed=failed):
            is_open = self._circuit.is_open
            audit.record(
                "circuit_opened" if is_open else "circuit_closed",
                {"work": self._operation},
                level=logging.ERROR if is_open else logging.INFO,
            )


def is_failure(error: BrokerError) -> bool:
    """Return whether ACS is out of order: no answer, a 5xx, or an answer that cannot be used.

    A 4xx other than 408 does not count: ACS works, and refuses this request, or limits us.
    """
    if isinstance(error, UpstreamBadResponseError):
        return error.answered not in range(400, 500)
    return isinstance(error, UpstreamUnavailableError | UpstreamTimeoutError)


def _is_silence(error: BrokerError) -> bool:
    return isinstance(error, UpstreamTimeoutError) and error.answered is None

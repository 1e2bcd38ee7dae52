"""Audit lines: one for each decision, for operators and their queries.

A line is JSON in the log message itself, because the Functions worker forwards the message and
drops `extra=`. It names people by tenant id and object id, never by name or mail address, and never
holds a token, a header or a claim set.

The Functions host takes log records only from invocations that are still running, and silently
drops a record from one that has ended (`GrpcWorkerChannel.Log` in azure-functions-host). Work that
outlives its request, such as the refresh of signing keys, therefore writes its lines to standard
output, which the host forwards for as long as the process lives.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Field = str | int | float | bool | None
logger = logging.getLogger("broker.audit")


@dataclass(slots=True)
class _Decision:
    """What is known about one invocation; work that outlives it still sees that it has ended."""

    noted: dict[str, Field]
    # By name of field: the seconds spent, and when each call that is still running began.
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    running: list[tuple[str, float]] = field(default_factory=list)
    ended: bool = False

    def end(self) -> None:
        now = time.monotonic()
        for name, since in self.running:
            self.spent[name] += now - since
        self.noted |= {name: round(seconds * 1000) for name, seconds in self.spent.items()}
        self.ended = True


_next_line: dict[str, float] = {}  # By event, in the time of `time.monotonic`.
_current: ContextVar[_Decision | None] = ContextVar("audit_decision", default=None)


@contextmanager
def decision(**fields: Field) -> Iterator[dict[str, Field]]:
    """Yield the fields of one invocation's audit line, which `note` adds to.

    The times that `timed` measured are added when the context ends.
    """
    this = _Decision(dict(fields))
    token = _current.set(this)
    try:
        yield this.noted
    finally:
        this.end()
        _current.reset(token)


def note(**fields: Field) -> None:
    """Add fields to the audit line of the running invocation, if there is one."""
    this = _current.get()
    if this is not None:
        this.noted.update(fields)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the milliseconds that the body takes to a field of the audit line.

    Bodies that run at the same time add up. One that is still running when the invocation ends is
    counted up to then: it may be what the request timed out on.
    """
    this = _current.get()
    if this is None or this.ended:
        yield
        return
    call = (name, time.monotonic())
    this.running.append(call)
    try:
        yield
    finally:
        this.running.remove(call)
        this.spent[name] += time.monotonic() - call[1]


def record(
    event: str,
    fields: Mapping[str, Field],
    *,
    level: int = logging.INFO,
    seconds_between: float = 0,
) -> None:
    """Write one line: the event's fixed name, and the fields that have a value.

    Args:
        event: what happened.
        fields: the details.
        level: how bad it is.
        seconds_between: how long this process leaves out further lines of the event, for what
            would otherwise be written with each request.
    """
    if seconds_between:
        now = time.monotonic()
        if now < _next_line.get(event, now):
            return
        _next_line[event] = now + seconds_between
    this = _current.get()
    if this is not None and this.ended:
        record_outside(event, fields)
    else:
        logger.log(level, "%s", _line(event, fields))


def record_outside(event: str, fields: Mapping[str, object]) -> None:
    """Write one line of work that belongs to no running invocation."""
    sys.stdout.write(f"{_line(event, fields)}\n")
    sys.stdout.flush()


def _line(event: str, fields: Mapping[str, object]) -> str:
    line = {"event": event} | {name: value for name, value in fields.items() if value is not None}
    return json.dumps(line, default=str)

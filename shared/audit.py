"""One line per decision, for operators and their queries.

A line is JSON, in the message itself, because the Functions worker forwards the message and drops
`extra=`. It names people by tenant id and object id, never by name or mail address, and never
holds a token, a header or a claim set.

The Functions host takes log records only from invocations that are still running: a record that
names an ended one is dropped unseen (`GrpcWorkerChannel.Log` of azure-functions-host). Work that
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
    """What is known of the invocation that some work belongs to, also once it has ended."""

    noted: dict[str, Field]
    # By the field's name: seconds spent, and when each stay that is still going on began.
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    waiting: list[tuple[str, float]] = field(default_factory=list)
    over: bool = False

    def end(self) -> None:
        now = time.monotonic()
        for name, since in self.waiting:
            self.spent[name] += now - since
        self.noted |= {name: round(seconds * 1000) for name, seconds in self.spent.items()}
        self.over = True


_current: ContextVar[_Decision | None] = ContextVar("audit_decision", default=None)


@contextmanager
def decision(**fields: Field) -> Iterator[dict[str, Field]]:
    """Collect what becomes known while one invocation runs; yields the collected fields.

    What `timed` measured is among them once the context has been left.
    """
    this = _Decision(dict(fields))
    token = _current.set(this)
    try:
        yield this.noted
    finally:
        this.end()
        _current.reset(token)


def note(**fields: Field) -> None:
    """Add fields to the line of the request that is being decided, if there is one."""
    this = _current.get()
    if this is not None:
        this.noted.update(fields)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the milliseconds that the body takes to a field of the decision.

    Bodies that run side by side add up. One that is still running when the decision is made
    counts up to then: it may be what the decision waited for in vain.
    """
    this = _current.get()
    if this is None or this.over:
        yield
        return
    stay = (name, time.monotonic())
    this.waiting.append(stay)
    try:
        yield
    finally:
        this.waiting.remove(stay)
        this.spent[name] += time.monotonic() - stay[1]


def record(event: str, fields: Mapping[str, Field], *, level: int = logging.INFO) -> None:
    """Write one line: the event's fixed name, and the fields that have a value."""
    line = {"event": event} | {name: value for name, value in fields.items() if value is not None}
    text = json.dumps(line, default=str)
    this = _current.get()
    if this is not None and this.over:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    else:
        logger.log(level, "%s", text)

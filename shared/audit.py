"""One log line per decision, for operators and their queries.

A line is JSON, in the message itself, because the Functions worker forwards the message and drops
`extra=`. It names people by tenant id and object id, never by name or mail address, and never
holds a token, a header or a claim set.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Field = str | int | float | bool | None
logger = logging.getLogger("broker.audit")
_noted: ContextVar[dict[str, Field] | None] = ContextVar("audit_noted", default=None)


@contextmanager
def decision(**fields: Field) -> Iterator[dict[str, Field]]:
    """Collect what becomes known while one request is decided; yields the collected fields."""
    noted = dict(fields)
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def note(**fields: Field) -> None:
    """Add fields to the line of the request that is being decided, if there is one."""
    noted = _noted.get()
    if noted is not None:
        noted.update(fields)


def record(event: str, fields: Mapping[str, Field], *, level: int = logging.INFO) -> None:
    """Write one line: the event's fixed name, and the fields that have a value."""
    line = {"event": event} | {name: value for name, value in fields.items() if value is not None}
    logger.log(level, "%s", json.dumps(line, default=str))

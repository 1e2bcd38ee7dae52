from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from shared import audit

if TYPE_CHECKING:
    import pytest


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """Return the audit lines that were written."""
    return [
        json.loads(record.message) for record in caplog.records if record.name == audit.logger.name
    ]


def test_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    """A line holds the event and the fields that have a value, in the message itself."""
    with caplog.at_level(logging.INFO):
        audit.record("token_issued", {"object_id": "1", "ms": 3, "created": False, "code": None})

    assert [{"event": "token_issued", "object_id": "1", "ms": 3, "created": False}] == lines(caplog)
    assert ["INFO"] == [record.levelname for record in caplog.records]


def test_a_value_cannot_break_the_line(caplog: pytest.LogCaptureFixture) -> None:
    """What a value holds cannot end the line or begin another."""
    with caplog.at_level(logging.INFO):
        audit.record("refused", {"reason": 'a\r\n{"event": "b"} %s'}, level=logging.WARNING)

    assert "\n" not in caplog.records[0].message
    assert [{"event": "refused", "reason": 'a\r\n{"event": "b"} %s'}] == lines(caplog)


def test_notes_belong_to_the_decision() -> None:
    """What becomes known on the way is added, the latest value wins, and the end ends it."""
    with audit.decision(route="token") as noted:
        audit.note(acs_id="8:acs:1", created=True)
        audit.note(acs_id="8:acs:2")
    audit.note(acs_id="8:acs:3")

    assert {"route": "token", "acs_id": "8:acs:2", "created": True} == noted


async def test_requests_do_not_mix() -> None:
    """Two requests at once, with work in tasks of their own, note what is theirs."""

    async def decide(name: str) -> dict[str, audit.Field]:
        async def work() -> None:
            await asyncio.sleep(0)
            audit.note(object_id=name)

        with audit.decision(route=name) as noted:
            await asyncio.create_task(work())
        return noted

    noted = await asyncio.gather(decide("1"), decide("2"))

    assert [{"route": "1", "object_id": "1"}, {"route": "2", "object_id": "2"}] == list(noted)

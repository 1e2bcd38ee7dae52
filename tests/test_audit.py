from __future__ import annotations

import asyncio
import json
import logging
import time
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


def test_not_with_each_request(caplog: pytest.LogCaptureFixture) -> None:
    """An event that each request meets is written once in a while, and others are not affected."""
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            audit.record("settings_bad", {}, seconds_between=60)
            audit.record("others", {})
        audit.record("settings_odd", {}, seconds_between=0.01)
        time.sleep(0.02)
        audit.record("settings_odd", {}, seconds_between=0.01)

    written = [line["event"] for line in lines(caplog)]
    assert [1, 3, 2] == [written.count(name) for name in ("settings_bad", "others", "settings_odd")]


def test_notes_belong_to_the_decision() -> None:
    """Noted fields are added while the decision runs, not later, and the latest value wins."""
    with audit.decision(route="token") as noted:
        audit.note(acs_id="8:acs:1", created=True)
        audit.note(acs_id="8:acs:2")
    audit.note(acs_id="8:acs:3")

    assert {"route": "token", "acs_id": "8:acs:2", "created": True} == noted


async def test_after_the_end(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Work that outlives its request prints its line: the host would drop a log record."""
    over = asyncio.Event()

    async def work() -> None:
        audit.record("in_time", {})
        await over.wait()
        audit.note(created=True)
        audit.record("too_late", {"acs_id": "8:acs:1"}, level=logging.ERROR)

    with caplog.at_level(logging.INFO):
        with audit.decision() as noted:
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
        noted_in_time = dict(noted)
        over.set()
        await task

    assert [{"event": "in_time"}] == lines(caplog)
    printed = capsys.readouterr().out
    assert {"event": "too_late", "acs_id": "8:acs:1"} == json.loads(printed)
    assert 1 == printed.count("\n")
    assert {} == noted_in_time


class TestTimed:
    """How long a decision waited for each service."""

    async def test_adds_up(self) -> None:
        """Times under one name add up, one after the other or at the same time."""

        async def stay(name: str) -> None:
            with audit.timed(name):
                await asyncio.sleep(0.03)

        with audit.decision() as noted:
            await asyncio.gather(stay("acs_ms"), stay("table_ms"), stay("table_ms"))
            await stay("table_ms")

        assert {"acs_ms", "table_ms"} == noted.keys()
        # Timers may end a little early, or late on a busy machine, so these are lower bounds.
        assert 29 <= int(str(noted["acs_ms"]))
        assert 87 <= int(str(noted["table_ms"]))

    async def test_still_waiting(self) -> None:
        """A call that is still running when the decision ends counts; later ones do not."""
        started, going_on = asyncio.Event(), asyncio.Event()

        async def outlive() -> None:
            with audit.timed("acs_ms"):
                started.set()
                await going_on.wait()
            with audit.timed("table_ms"):
                await asyncio.sleep(0)

        with audit.decision() as noted:
            task = asyncio.create_task(outlive())
            await started.wait()
            await asyncio.sleep(0.03)
        in_time = dict(noted)
        going_on.set()
        await task

        assert 29 <= int(str(in_time["acs_ms"]))
        assert in_time == noted

    def test_error(self) -> None:
        """A call that ends with an error counts."""
        with audit.decision() as noted:
            try:
                with audit.timed("acs_ms"):
                    raise ValueError  # noqa: TRY301 - what the body does
            except ValueError:
                pass

        assert ["acs_ms"] == list(noted)

    def test_without_a_decision(self) -> None:
        """Outside a decision nothing is measured, and nothing fails."""
        with audit.timed("acs_ms"):
            pass
        with audit.decision() as noted:
            pass

        assert {} == noted


async def test_requests_do_not_mix() -> None:
    """Two requests at once, each with its own tasks, note their own fields only."""

    async def decide(name: str) -> dict[str, audit.Field]:
        async def work() -> None:
            await asyncio.sleep(0)
            audit.note(object_id=name)

        with audit.decision(route=name) as noted:
            await asyncio.create_task(work())
        return noted

    noted = await asyncio.gather(decide("1"), decide("2"))

    assert [{"route": "1", "object_id": "1"}, {"route": "2", "object_id": "2"}] == list(noted)

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from shared import audit
from shared.refusal_lines import BURST, MAX_KINDS, PER_SECOND, RefusalLines
from tests.emulated import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    Recorded = Callable[[], list[dict[str, Any]]]

AT_ONCE = int(BURST)
ADA: dict[str, audit.Field] = {"tenant_id": "contoso", "object_id": "ada", "client_id": "web"}
GRACE: dict[str, audit.Field] = {"tenant_id": "contoso", "object_id": "grace", "client_id": "web"}


def refuse(lines: RefusalLines, times: int, **fields: audit.Field) -> None:
    """Refuse as many requests, each inside its own invocation."""
    for number in range(times):
        known: dict[str, audit.Field] = {
            "status": 401,
            "code": "invalid_token",
            "reason": "expired",
            "route": "token",
        }
        with audit.decision(trace_id=str(number)) as noted:
            lines.record("request_refused", {**noted, **known, **fields}, level=logging.WARNING)


def counted(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what was printed since the last call."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def in_full(caplog: pytest.LogCaptureFixture) -> Recorded:
    """Return a function that returns the lines in full."""
    caplog.set_level(logging.INFO)
    return lambda: [json.loads(record.getMessage()) for record in caplog.records]


async def test_few_requests(in_full: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """A few refusals have a line each, with everything that is known, and nothing is counted."""
    refuse(RefusalLines(count_for=0.01), AT_ONCE)
    await asyncio.sleep(0.05)

    assert [str(number) for number in range(AT_ONCE)] == [line["trace_id"] for line in in_full()]
    assert [] == counted(capsys)


async def test_flood_of_strangers(in_full: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """A flood has one line a second, which comes even if the flood has stopped, and none after."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.05)

    refuse(lines, AT_ONCE + 1000)
    refuse(lines, 200, code="missing_token", reason="no Authorization header")
    assert [] == counted(capsys)
    await asyncio.sleep(0.2)

    kind = {"event": "request_refused", "route": "token", "status": 401}
    forged = kind | {"code": "invalid_token", "reason": "expired", "requests": 1000}
    missing = kind | {
        "code": "missing_token", "reason": "no Authorization header", "requests": 200
    }  # fmt: skip
    assert [{"event": "requests_counted", "requests": 1200, "kinds": [forged, missing]}] == counted(
        capsys
    )
    assert AT_ONCE == len(in_full())

    refuse(lines, 3)
    await asyncio.sleep(0.2)
    assert [3] == [line["requests"] for line in counted(capsys)]


async def test_after_a_while(in_full: Recorded) -> None:
    """After a flood, one line in full is written every five seconds."""
    clock = Clock()
    lines = RefusalLines(clock=lambda: clock.seconds, count_for=0.01)

    refuse(lines, 2 * AT_ONCE)
    clock.advance(seconds=1 / PER_SECOND)
    refuse(lines, 2 * AT_ONCE)
    await asyncio.sleep(0.05)

    assert AT_ONCE + 1 == len(in_full())


async def test_people(in_full: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """Strangers do not use up people's lines, nor one person another's; counts say whose."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.01)

    refuse(lines, 10 * AT_ONCE)
    refuse(lines, AT_ONCE, **ADA)
    refuse(lines, AT_ONCE + 7, **GRACE)
    await asyncio.sleep(0.05)

    whose = [line.get("object_id") for line in in_full()]
    assert [AT_ONCE] * 3 == [whose.count(name) for name in (None, "ada", "grace")]
    (line,) = counted(capsys)
    assert {None: 9 * AT_ONCE, "grace": 7} == {
        kind.get("object_id"): kind["requests"] for kind in line["kinds"]
    }


async def test_rules(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts say which rule of the trust policy refused somebody, as the lines in full do."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.01)

    refuse(lines, AT_ONCE + 3, **GRACE, code="not_permitted", policy_rule="agents")
    await asyncio.sleep(0.05)

    (line,) = counted(capsys)
    assert [("agents", 3)] == [(kind["policy_rule"], kind["requests"]) for kind in line["kinds"]]


async def test_tokens_for_others(in_full: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """People who are not ours are strangers, however many there are: anybody can make some up."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.01)
    failure: dict[str, audit.Field] = {"status": 503, "code": "storage_unavailable", "route": "x"}

    for number in range(50):
        mallory: dict[str, audit.Field] = ADA | {"object_id": f"mallory {number}", "ours": False}
        refuse(lines, 10, **mallory)
        lines.record("request_failed", failure | mallory, level=logging.ERROR)
    await asyncio.sleep(0.05)

    assert AT_ONCE == len(in_full())
    assert "mallory 0" == in_full()[0]["object_id"]
    (line,) = counted(capsys)
    assert 550 - AT_ONCE == line["requests"]
    assert [None] * 2 == [kind.get("object_id") for kind in line["kinds"]]


async def test_hiding(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody of ours does not become anonymous by sending requests without a token as well."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.01)

    refuse(lines, AT_ONCE)
    refuse(lines, AT_ONCE, **ADA)
    for number in range(MAX_KINDS + 5):
        refuse(lines, 1, route=f"route {number}")
    refuse(lines, 200, **ADA, code="admin_required", route="users", status=403)
    await asyncio.sleep(0.05)

    (line,) = counted(capsys)
    assert {"object_id": "ada", "route": "users", "requests": 200}.items() <= line["kinds"][
        0
    ].items()
    assert MAX_KINDS + 2 == len(line["kinds"])


async def test_our_own_failures(in_full: Recorded) -> None:
    """Of what fails, people have a line for each request that they may send; strangers have not."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.01)
    failure: dict[str, audit.Field] = {
        "status": 503,
        "code": "storage_unavailable",
        "reason": "x",
        "route": "token",
    }

    for _ in range(3 * AT_ONCE):
        lines.record("request_failed", failure | ADA, level=logging.ERROR)
        lines.record("request_failed", failure, level=logging.ERROR)
    await asyncio.sleep(0.05)

    whose = [line.get("object_id") for line in in_full()]
    assert [2 * AT_ONCE, AT_ONCE] == [whose.count("ada"), whose.count(None)]


async def test_many_kinds(in_full: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """A flood of everything has a short line, too: most kinds are told apart by code alone."""
    lines = RefusalLines(clock=lambda: 0.0, count_for=0.01)

    refuse(lines, AT_ONCE)
    for number in range(500):
        refuse(lines, 1, reason=f"reason {number}")
    refuse(lines, 1, code="missing_token")
    await asyncio.sleep(0.05)

    (line,) = counted(capsys)
    assert 501 == line["requests"] == sum(kind["requests"] for kind in line["kinds"])
    assert {"event": "request_refused", "status": 401, "code": "invalid_token"} | {
        "requests": 500 - MAX_KINDS
    } == line["kinds"][0]
    assert MAX_KINDS + 2 == len(line["kinds"])
    assert 2000 > len(json.dumps(line))
    assert AT_ONCE == len(in_full())

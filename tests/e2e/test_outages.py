"""Another service fails for a long time: what callers are told, and what it is spared."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from shared.circuit import LEAST_CALLS, PROBE_SECONDS
from shared.retry_budget import SAVED_RETRIES
from tests.emulated import until
from tests.running import assert_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.stack import FunctionsHost
    from tests.running import Answer, Client, Running

SLOW = 0.5  # seconds that ACS takes to fail


async def token_of_known_person(app: Client, running: Running, object_id: str) -> str:
    """Return an Entra token of a person who has an ACS identity already."""
    token = running.token_of_new_person(oid=object_id)
    assert 200 == (await app.post("/api/user", token)).status
    return token


async def tokens_of_known_people(app: Client, running: Running, number: int) -> list[str]:
    """Return Entra tokens of people who have ACS identities already."""
    return await asyncio.gather(
        *(token_of_known_person(app, running, str(uuid.uuid4())) for _ in range(number))
    )


def lines(host: FunctionsHost, event: str) -> list[dict[str, Any]]:
    """Return the audit lines about an event."""
    found = [line for line in host.output if f'"event": "{event}"' in line]
    return [json.loads(line[line.index("{") :]) for line in found]


class TestAcs:
    """ACS answers 503, and takes its time."""

    async def test_issue_fails_forever(
        self,
        app_at: Callable[[FunctionsHost], Client],
        running: Running,
        another_host: Callable[[], FunctionsHost],
    ) -> None:
        """After twenty failures ACS is left alone, answers come at once, and it heals by itself."""
        host = another_host()
        app, faults = app_at(host), running.stack.acs.faults
        tokens = await tokens_of_known_people(app, running, LEAST_CALLS)
        faults.clear()
        faults.fail_next("issue", status=503, delay=SLOW, times=9999)

        first = await asyncio.gather(*(app.get("/api/token", token) for token in tokens))
        opened = time.monotonic()
        assert LEAST_CALLS == faults.count("issue")
        answers, seconds = await in_turn(app, tokens * 2)

        for answer in [*first, *answers]:
            assert_problem(answer, 503, "upstream_unavailable")
        assert all(int(a.headers["Retry-After"]) <= PROBE_SECONDS * 1.5 + 1 for a in answers)
        probes = faults.count("issue") - LEAST_CALLS
        assert probes <= (time.monotonic() - opened) / PROBE_SECONDS + 1
        assert sorted(seconds)[len(seconds) // 2] < SLOW / 2
        await until(lambda: len(first) + len(answers) == len(lines(host, "request_failed")))
        made = [each for each in lines(host, "request_failed") if each.get("acs_ms")]
        assert LEAST_CALLS + probes == len(made)
        # Creating works, so a new person gets an identity meanwhile.
        assert 200 == (await app.post("/api/user", running.token_of_new_person())).status

        faults.clear()
        await asyncio.sleep(int(answers[-1].headers["Retry-After"]))
        healed = [await app.get("/api/token", token) for token in tokens]

        assert {200} == {answer.status for answer in healed}
        assert ["issue"] == [each["work"] for each in lines(host, "circuit_opened")]
        assert ["issue"] == [each["work"] for each in lines(host, "circuit_closed")]


async def in_turn(app: Client, tokens: list[str]) -> tuple[list[Answer], list[float]]:
    """Ask for ACS tokens one after the other; return the answers, and how long each took."""
    answers, seconds = [], []
    for token in tokens:
        started = time.monotonic()
        answers.append(await app.get("/api/token", token))
        seconds.append(time.monotonic() - started)
    return answers, seconds


class TestTable:
    """Table Storage throttles one partition."""

    async def test_server_busy(
        self,
        app_at: Callable[[FunctionsHost], Client],
        running: Running,
        another_host: Callable[[], FunctionsHost],
    ) -> None:
        """Few calls are repeated, those of other partitions are served, and it passes."""
        app, faults = app_at(another_host()), running.stack.tables.faults
        mine, others = [
            await asyncio.gather(
                *(
                    token_of_known_person(app, running, f"{partition}{str(uuid.uuid4())[2:]}")
                    for _ in range(number)
                )
            )
            for partition, number in (("aa", 6), ("bb", 20))
        ]
        faults.clear()
        faults.fail_next("table_read", path="_aa'", status=503, times=9999)
        throttled, served = [], []
        for _ in range(30):
            answers = await asyncio.gather(
                *(app.get("/api/token", token) for token in [*mine, others[0]])
            )
            throttled += answers[:-1]
            served.append(answers[-1])

        reads = faults.count("table_read")
        later = await asyncio.gather(*(app.get("/api/token", token) for token in others))

        for answer in throttled:
            assert_problem(answer, 503, "storage_unavailable")
        assert {200} == {answer.status for answer in [*served, *later]}
        calls = len(throttled) + len(served)
        assert calls + SAVED_RETRIES / 2 < reads <= calls * 1.1 + SAVED_RETRIES
        faults.clear()
        healed = await asyncio.gather(*(app.get("/api/token", token) for token in mine))
        assert {200} == {answer.status for answer in healed}

"""The timers, run as an operator runs them: by the host's own admin route."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.stack import FunctionsHost
    from tests.running import Client, Running


async def report_of(
    app: Client, host: FunctionsHost, timer: str = "prune_mappings"
) -> dict[str, Any]:
    """Run a timer now, and return what it reports."""
    del host.output[:]
    answer = await app.post(f"/admin/functions/{timer}", json={"input": ""})
    assert 202 == answer.status
    line = await host.printed(f'"event": "{timer.partition("_")[0]}_')
    report: dict[str, Any] = json.loads(line[line.index("{") :])
    return report


async def test_prunes_idle_people(
    running: Running,
    app: Client,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
    rewrite_row: Callable[..., Awaitable[None]],
) -> None:
    """A dry run says what would go; a real one removes identity and row, and nothing else."""
    idle, busy = str(uuid.uuid4()), str(uuid.uuid4())
    before = await app.get("/api/token", running.token_of_new_person(oid=idle))
    kept = await app.get("/api/token", running.token_of_new_person(oid=busy))
    await rewrite_row(idle, lastUsedOn=datetime.now(UTC) - timedelta(days=91))
    dry = another_host(PRUNE_DRY_RUN="true", PRUNE_MAX_SHARE="1")
    wet = another_host(PRUNE_DRY_RUN="false", PRUNE_MAX_SHARE="1")

    foreseen = await report_of(app_at(dry), dry)
    assert before.json["user"]["id"] in running.stack.acs.identities
    done = await report_of(app_at(wet), wet)

    assert ("prune_finished", True, 1) == (
        foreseen["event"],
        foreseen["dry_run"],
        foreseen["pruned"],
    )
    assert ("prune_finished", False, 1) == (done["event"], done["dry_run"], done["pruned"])
    assert before.json["user"]["id"] not in running.stack.acs.identities
    deleted = await wet.printed('"event": "identity_deleted"')
    assert before.json["user"]["id"] in deleted
    assert idle in deleted
    assert '"reason": "idle"' in deleted
    assert kept.json["user"]["id"] in running.stack.acs.identities
    assert 404 == (await app.get("/api/user", running.token_of_new_person(oid=idle))).status
    again = await app.get("/api/token", running.token_of_new_person(oid=idle))
    assert 200 == again.status
    assert again.json["user"] != before.json["user"]


async def test_slow_page(
    running: Running,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
) -> None:
    """The timer waits longer for a page of rows than a request may wait for one row."""
    host = another_host(PRUNE_DRY_RUN="true", PRUNE_MAX_SHARE="1")
    running.stack.tables.faults.fail_next("table_query", delay=3.5)

    report = await report_of(app_at(host), host)

    assert "prune_finished" == report["event"]
    assert report["table_ms"] >= 3500


async def test_failure_is_reported(
    running: Running,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
) -> None:
    """When the table is out of reach, the run fails and says so."""
    host = another_host()
    running.stack.tables.faults.fail_next(status=403, times=9)

    report = await report_of(app_at(host), host)

    assert ("prune_failed", "storage_unavailable") == (report["event"], report["code"])


async def test_sweeps(
    running: Running,
    app: Client,
    rewrite_row: Callable[..., Awaitable[None]],
) -> None:
    """An erasure during an outage of ACS is accepted, and the sweep timer completes it."""
    person = str(uuid.uuid4())
    token = running.token_of_new_person(oid=person)
    before = await app.get("/api/token", token)
    acs_id = before.json["user"]["id"]
    running.stack.acs.faults.fail_next("delete", status=503)
    accepted = await app.call("DELETE", "/api/user", token)
    assert (202, True) == (accepted.status, acs_id in running.stack.acs.identities)
    # It would be tried again in five minutes.
    await rewrite_row(person, leaseUntil=datetime.now(UTC) - timedelta(seconds=5))

    report = await report_of(app, running.host, "sweep_ledger")

    assert ("sweep_finished", 0) == (report["event"], report["failed"])
    assert report["waiting"] >= 1
    assert acs_id not in running.stack.acs.identities
    await running.host.printed(f'"event": "identity_deleted", "acs_id": "{acs_id}"')
    # The token that was revoked by the erasure does not bring an identity back.
    assert 401 == (await app.get("/api/token", token)).status


async def test_failed_sweep_is_reported(
    running: Running,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
) -> None:
    """When the table is out of reach, the sweep fails and says so."""
    host = another_host()
    running.stack.tables.faults.fail_next(status=403, times=9)

    report = await report_of(app_at(host), host, "sweep_ledger")

    assert ("sweep_failed", "storage_unavailable") == (report["event"], report["code"])

"""K: two things at once, and work that was cut short: one identity for each, and none used dead."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp

from local.stack import functions_host
from tests.cases.catalogue import case
from tests.cases.conftest import SETTINGS
from tests.cases.rows import (
    change_row,
    create_tables,
    identity_in_row,
    orphans,
    row_of,
    run_timer,
)
from tests.emulated import until
from tests.running import Client, assert_problem

if TYPE_CHECKING:
    from tests.cases.service import AnotherService, Service
    from tests.running import Answer


async def new_identity(service: Service, object_id: str) -> str:
    """Return the identity that a person gets with their first token."""
    token = service.running.token_of_new_person(oid=object_id)
    answer = await service.app.get("/api/token", token)
    assert 200 == answer.status, answer
    return str(answer.json["user"]["id"])


def creating(*, lease: timedelta) -> dict[str, Any]:
    """Return the row of somebody whose identity is being created, as a killed process leaves it."""
    now = datetime.now(UTC)
    return {
        "state": "creating",
        "attempt": "theirs",
        "generation": 1,
        "schema": 1,
        "createdOn": now,
        "lastUsedOn": now,
        "leaseUntil": now + lease,
    }


@case("K01", "50 first requests at once in one process: all are served, with one identity")
async def test_K01_one_process(service: Service) -> None:
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    answers = await asyncio.gather(*(service.app.get("/api/token", token) for _ in range(50)))

    assert {200} == {answer.status for answer in answers}
    assert {await identity_in_row(service.running, object_id)} == {
        answer.json["user"]["id"] for answer in answers
    }
    assert 1 == service.running.stack.acs.faults.count("create")


@case("K02", "first requests at once in three processes: 200 or 503, never two identities")
async def test_K02_three_processes(service: Service, another_service: AnotherService) -> None:
    hosts = [service, await another_service(), await another_service()]
    for host in hosts:  # So that none of them has to begin by fetching keys.
        assert (
            await host.app.get("/api/user", service.running.token_of_new_person())
        ).status == 404
    token = service.running.token_of_new_person()
    answers = await asyncio.gather(
        *(host.app.get("/api/token", token) for _ in range(10) for host in hosts)
    )

    assert {200} <= {answer.status for answer in answers} <= {200, 503}
    assert 1 == len({answer.json["user"]["id"] for answer in answers if answer.status == 200})
    assert 1 == service.running.stack.acs.faults.count("create")
    assert all("Retry-After" in answer.headers for answer in answers if answer.status == 503)


@case("K03", "a crash before the create: 503 until the lease ends, then one identity")
async def test_K03_crash_before_create(service: Service) -> None:
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    await change_row(service.running, object_id, **creating(lease=timedelta(seconds=15)))
    waiting = await service.app.get("/api/token", token)
    assert_problem(waiting, 503, "busy")
    assert int(waiting.headers["Retry-After"]) <= 20  # With what keeps a crowd apart.
    assert 0 == service.running.stack.acs.faults.count("create")

    await change_row(service.running, object_id, **creating(lease=timedelta(seconds=-1)))
    assert 200 == (await service.app.get("/api/token", token)).status
    assert 1 == service.running.stack.acs.faults.count("create")


@case("K04", "a crash after the create: a second identity; no token was ever issued for the first")
async def test_K04_crash_after_create(service: Service) -> None:
    acs, object_id = service.running.stack.acs, str(uuid.uuid4())
    acs.faults.fail_next("create", reset=True, after=True)
    token = service.running.token_of_new_person(oid=object_id)
    lost = await service.app.get("/api/token", token)
    first = acs.created[-1]
    # As if the process had been killed before it could write anything more, some time ago.
    await change_row(service.running, object_id, **creating(lease=timedelta(seconds=-1)))
    answer = await service.app.get("/api/token", token)

    assert_problem(lost, 503, "upstream_unavailable")
    assert 200 == answer.status, answer
    assert first != answer.json["user"]["id"]
    assert 0 == acs.issued[first]
    line = (await service.events("identity_not_created"))[-1]
    assert object_id == line["object_id"]


@case("K06", "the caller leaves while ACS issues: the next request gets the same identity")
async def test_K06_caller_leaves(service: Service) -> None:
    object_id = str(uuid.uuid4())
    acs_id = await new_identity(service, object_id)
    acs = service.running.stack.acs
    acs.faults.clear()
    acs.faults.fail_next("issue", delay=0.5)
    token = service.running.token_of_new_person(oid=object_id)
    leaving = asyncio.create_task(service.app.get("/api/token", token))
    await until(lambda: acs.faults.count("issue") == 1)
    leaving.cancel()
    answer = await service.app.get("/api/token", token)

    assert acs_id == answer.json["user"]["id"]
    assert acs.token_is_valid(answer.json["token"])
    assert 0 == acs.faults.count("create")


@case("K07", "a creator whose lease has expired comes back: the other's identity is everybody's")
async def test_K07_slow_owner(service: Service, another_service: AnotherService) -> None:
    other, stack = await another_service(), service.running.stack
    assert 404 == (await other.app.get("/api/user", service.running.token_of_new_person())).status
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    stack.acs.faults.clear()
    stack.acs.faults.fail_next("create", delay=1.5)
    slow = asyncio.create_task(service.app.get("/api/token", token))
    await until(lambda: stack.acs.faults.count("create") == 1)
    stack.tables.clock = lambda: datetime.now(UTC) + timedelta(seconds=25)
    try:
        quick = await other.app.get("/api/token", token)
    finally:
        stack.tables.clock = None
    late = await slow

    assert 200 == quick.status, quick
    assert late.status in {200, 503}, late
    acs_id = quick.json["user"]["id"]
    assert late.status == 503 or acs_id == late.json["user"]["id"]
    assert acs_id == await identity_in_row(service.running, object_id)
    assert 2 == stack.acs.faults.count("create")
    (unused,) = set(stack.acs.created[-2:]) - {acs_id}
    assert 0 == stack.acs.issued[unused]
    assert unused in await orphans(service.running)
    await run_timer(service, "sweep_ledger")
    assert unused not in stack.acs.identities
    assert acs_id in stack.acs.identities


async def with_idle_people(
    service: Service, another_service: AnotherService, *, idle: int, others: int
) -> tuple[Service, str, dict[str, str]]:
    """Start a process with tables of its own, in which the daily run really deletes.

    Returns:
        The process, the name of its table, and the people who have not been here for 91 days, with
        their identities.
    """
    name = f"Cases{uuid.uuid4().hex}"
    await create_tables(service.running, name)
    host = await another_service(MAPPINGS_TABLE=name, PRUNE_DRY_RUN="false")
    people = {}
    for number in range(idle + others):
        object_id = str(uuid.uuid4())
        acs_id = await new_identity(host, object_id)
        if number < idle:
            people[object_id] = acs_id
            await let_idle(host, name, object_id)
    return host, name, people


async def let_idle(host: Service, name: str, object_id: str) -> None:
    """Let a person not have been here for 91 days."""
    long_ago = datetime.now(UTC) - timedelta(days=91)
    await change_row(host.running, object_id, name=name, lastUsedOn=long_ago)


@case("K08", "the daily run and a request of the same idle person: no token for a dead identity")
async def test_K08_prune_and_request(service: Service, another_service: AnotherService) -> None:
    host, name, people = await with_idle_people(service, another_service, idle=1, others=9)
    ((object_id, acs_id),) = people.items()
    acs, tables = service.running.stack.acs, service.running.stack.tables
    token = service.running.token_of_new_person(oid=object_id)
    for delayed in ("table_update", "table_query", "delete", "issue"):
        faults = tables.faults if delayed.startswith("table") else acs.faults
        faults.fail_next(delayed, delay=0.4)
        answer, report = await asyncio.gather(
            host.app.get("/api/token", token), run_timer(host, "prune_mappings")
        )
        faults.clear()
        assert report["event"] == "prune_finished", report
        assert answer.status in {200, 503}, answer
        row = await row_of(service.running, object_id, name=name)
        if row is not None and row["state"] == "active":
            acs_id = row["acsId"]
            assert acs_id in acs.identities
            assert answer.status == 503 or acs_id == answer.json["user"]["id"]
        # Whatever came first, the next request is served with an identity that exists.
        served = await host.app.get("/api/token", token)
        assert 200 == served.status, served
        assert acs.token_is_valid(served.json["token"])
        await let_idle(host, name, object_id)


@case("K09", "a daily run that was killed after its claim: the next one finishes, nothing is stuck")
async def test_K09_prune_was_killed(service: Service, another_service: AnotherService) -> None:
    host, name, people = await with_idle_people(service, another_service, idle=2, others=10)
    acs = service.running.stack.acs
    (left, gone), (back, old) = people.items()
    for object_id in people:
        await change_row(
            service.running, object_id, name=name, state="deleting", reason="idle", attempt="theirs"
        )
    del acs.identities[gone]  # It was deleted already, but the row was not.
    returned = await host.app.get("/api/token", service.running.token_of_new_person(oid=back))
    report = await run_timer(host, "prune_mappings")
    await run_timer(host, "sweep_ledger")

    assert report["event"] == "prune_finished", report
    assert await row_of(service.running, left, name=name) is None
    assert returned.status in {200, 503}, returned
    assert old not in acs.identities
    again = await host.app.get("/api/token", service.running.token_of_new_person(oid=back))
    assert again.json["user"]["id"] in acs.identities
    assert acs.token_is_valid(again.json["token"])


async def while_issuing(
    service: Service, token: str, method: str, path: str
) -> tuple[Answer, Answer]:
    """Call a route while ACS issues a token, and return the answers to both, the token's first."""
    faults = service.running.stack.acs.faults
    faults.clear()
    faults.fail_next("issue", delay=0.6)
    asking = asyncio.create_task(service.app.get("/api/token", token))
    await until(lambda: faults.count("issue") == 1)
    other = await service.app.call(method, path, token)
    return await asking, other


@case("K11", "an erasure while a token is issued: that token is dead, and so is the identity")
async def test_K11_erasure_and_request(service: Service) -> None:
    acs, object_id = service.running.stack.acs, str(uuid.uuid4())
    acs_id = await new_identity(service, object_id)
    token = service.running.token_of_new_person(oid=object_id)
    asked, erased = await while_issuing(service, token, "DELETE", "/api/user")

    assert 204 == erased.status, erased
    assert asked.status in {200, 401, 502, 503}, asked
    assert asked.status != 200 or not acs.token_is_valid(asked.json["token"])
    assert acs_id not in acs.identities
    assert "" == await identity_in_row(service.running, object_id)
    assert acs_id not in await orphans(service.running)
    assert_problem(await service.app.get("/api/token", token), 401, "token_revoked")


@case("K12", "an erasure while ACS is down: 202, stored, and finished later; no token meanwhile")
async def test_K12_erasure_while_acs_is_down(service: Service) -> None:
    acs, object_id = service.running.stack.acs, str(uuid.uuid4())
    acs_id = await new_identity(service, object_id)
    token = service.running.token_of_new_person(oid=object_id)
    acs.faults.fail_next("*", status=503, times=99)
    erased = await service.app.delete("/api/user", token)
    refused = await service.app.get("/api/token", token)
    acs.faults.clear()
    later = await service.app.get("/api/token", token)

    assert (202, {"status": "accepted"}) == (erased.status, erased.json)
    assert_problem(refused, 401, "token_revoked")
    assert_problem(later, 401, "token_revoked")
    await change_row(service.running, object_id, leaseUntil=datetime.now(UTC) - timedelta(hours=1))
    await run_timer(service, "sweep_ledger")
    assert acs_id not in acs.identities


@case("K13", "an erasure twice, or of somebody without an identity: 204 each time")
async def test_K13_erasure_twice(service: Service) -> None:
    object_id = str(uuid.uuid4())
    await new_identity(service, object_id)
    known = service.running.token_of_new_person(oid=object_id)
    first = await service.app.delete("/api/user", known)
    second = await service.app.delete("/api/user", service.running.fresh_token(object_id))
    stranger = await service.app.delete("/api/user", service.running.token_of_new_person())

    for answer in (first, second, stranger):
        assert (204, "") == (answer.status, answer.text)


@case("K14", "a new sign-in right after an erasure: a new identity; the old one stays gone")
async def test_K14_sign_in_after_erasure(service: Service) -> None:
    acs, object_id = service.running.stack.acs, str(uuid.uuid4())
    old = await new_identity(service, object_id)
    before = service.running.token_of_new_person(oid=object_id)
    assert 204 == (await service.app.delete("/api/user", before)).status
    new = await service.app.get("/api/token", service.running.fresh_token(object_id))

    assert 200 == new.status, new
    assert old != new.json["user"]["id"]
    assert old not in acs.identities
    assert_problem(await service.app.get("/api/token", before), 401, "token_revoked")


@case(
    "K15", "a sign-out while a token is issued: that token does not live on, later ones are refused"
)
async def test_K15_revoke_and_request(service: Service) -> None:
    acs, object_id = service.running.stack.acs, str(uuid.uuid4())
    await new_identity(service, object_id)
    token = service.running.token_of_new_person(oid=object_id)
    assert 200 == (await service.app.get("/api/token", token)).status
    asked, revoked = await while_issuing(service, token, "POST", "/api/token/revoke")

    assert 204 == revoked.status, revoked
    row = await row_of(service.running, object_id)
    assert row is not None
    alive = asked.status == 200 and acs.token_is_valid(asked.json["token"])
    # What was on its way is revoked once more, before anybody gets a token again.
    assert not alive or row["revokeAgain"]
    assert_problem(await service.app.get("/api/token", token), 401, "token_revoked")


@case("K16", "the daily run with a clock a month ahead: it stops, and nothing is deleted")
async def test_K16_wrong_clock(service: Service, another_service: AnotherService) -> None:
    host, _, people = await with_idle_people(service, another_service, idle=1, others=9)
    stack = service.running.stack
    stack.tables.clock = lambda: datetime.now(UTC) + timedelta(days=30)
    try:
        report = await run_timer(host, "prune_mappings")
    finally:
        stack.tables.clock = None

    assert ("prune_stopped", 0) == (report["event"], report["pruned"])
    assert set(people.values()) <= stack.acs.identities.keys()


@case("K17", "a daily run that would delete more than its share: it stops, and nothing is deleted")
async def test_K17_too_many(service: Service, another_service: AnotherService) -> None:
    host, _, people = await with_idle_people(service, another_service, idle=3, others=3)
    report = await run_timer(host, "prune_mappings")

    assert ("prune_stopped", 0) == (report["event"], report["pruned"])
    assert set(people.values()) <= service.running.stack.acs.identities.keys()


@case("K18", "idle days shorter than a token may live: the settings are refused, 503")
async def test_K18_idle_days_too_short(service: Service, another_service: AnotherService) -> None:
    host = await another_service(PRUNE_IDLE_DAYS="2")
    answer = await host.app.get("/api/token", service.running.token_of_new_person())

    assert_problem(answer, 503, "misconfigured")
    assert "PRUNE_IDLE_DAYS" in (await host.events("settings_invalid"))[0]["reason"]


@case("K20", "the host is stopped during a request: it is finished, and no row is stuck")
async def test_K20_stopped_meanwhile(service: Service) -> None:
    stack, background = service.running.stack, service.running.background
    context = functions_host(stack, SETTINGS)
    host = await asyncio.to_thread(background.run, context.__aenter__())
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    stack.acs.faults.clear()
    stack.acs.faults.fail_next("create", delay=0.7)
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(Client(session, host.url).get("/api/token", token))
        await until(lambda: stack.acs.faults.count("create") == 1)
        await asyncio.to_thread(background.run, context.__aexit__(None, None, None))
        answer = await asking

    assert 200 == answer.status, answer
    assert answer.json["user"]["id"] == await identity_in_row(service.running, object_id)
    assert 200 == (await service.app.get("/api/token", token)).status


@case("K22", "a restored row with somebody else's identity: refused and reported, for that person")
async def test_K22_restored_row(service: Service, another_service: AnotherService) -> None:
    owner, other = str(uuid.uuid4()), str(uuid.uuid4())
    acs_id, own = await new_identity(service, owner), await new_identity(service, other)
    await change_row(service.running, other, acsId=acs_id)
    host = await another_service()  # As after a restore: nobody remembers anything.
    refused = await host.app.get("/api/token", service.running.token_of_new_person(oid=other))
    served = await host.app.get("/api/token", service.running.token_of_new_person(oid=owner))

    assert_problem(refused, 503, "storage_unavailable")
    assert acs_id == served.json["user"]["id"]
    assert acs_id == (await host.events("identity_shared"))[0]["acs_id"]
    await change_row(service.running, other, acsId=own)
    mended = await host.app.get("/api/token", service.running.token_of_new_person(oid=other))
    assert own == mended.json["user"]["id"]

"""J: the table fails, or holds what it should not: no second identity, and no wrong one."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from local.entra.directory import CONTOSO
from shared.retry_budget import SAVED_RETRIES
from tests.cases.catalogue import case
from tests.cases.rows import change_row, continuation, identity_in_row, row_of, run_timer
from tests.cases.service import named
from tests.emulated import until
from tests.running import assert_problem

if TYPE_CHECKING:
    from tests.cases.service import AnotherService, Service

NO_TABLE = (
    '{"odata.error": {"code": "TableNotFound", "message": {"lang": "en-US", '
    '"value": "The table specified does not exist."}}}'
)


@case("J01", "no row in the table: nobody has an identity yet, and the first call creates one")
async def test_J01_no_row(service: Service) -> None:
    token = service.running.token_of_new_person()
    assert_problem(await service.app.get("/api/user", token), 404, "user_not_found")
    assert 0 == service.running.stack.acs.faults.count("create")
    assert 200 == (await service.app.post("/api/user", token)).status
    assert 1 == service.running.stack.acs.faults.count("create")


async def assert_nothing_created(service: Service, faults: dict[str, dict[str, Any]]) -> None:
    """Check that nobody gets an identity while the table cannot be read."""
    stack = service.running.stack
    for name, fault in faults.items():
        for path in ("/api/token", "/api/user"):
            with named(f"{name}, {path}"):
                token = service.running.token_of_new_person()
                stack.tables.faults.fail_next("table_read", times=9, **fault)
                answer = await service.app.post(path, token)
                stack.tables.faults.clear()
                assert_problem(answer, 503, "storage_unavailable")
                assert 0 == stack.acs.faults.count("create")


@case("J02", "the table does not exist: 503 storage_unavailable, and no identity is created")
async def test_J02_no_table(service: Service) -> None:
    faults = {
        "TableNotFound": {"status": 404, "body": NO_TABLE},
        "404": {"status": 404, "body": ""},
    }
    await assert_nothing_created(service, faults)


@case("J03", "the role at the table is lost: 503 storage_unavailable, and no identity is created")
async def test_J03_role_lost(service: Service) -> None:
    await assert_nothing_created(service, {"403": {"status": 403}, "401": {"status": 401}})


@case("J05", "another process inserts the row first: both callers get its identity, made once")
async def test_J05_insert_of_another(service: Service, another_service: AnotherService) -> None:
    other, stack = await another_service(), service.running.stack
    # The first request takes longer.
    assert 404 == (await other.app.get("/api/user", service.running.token_of_new_person())).status
    token = service.running.token_of_new_person()
    stack.tables.faults.fail_next("table_insert", delay=0.7)
    first = asyncio.create_task(service.app.get("/api/token", token))
    await until(lambda: stack.tables.faults.count("table_insert") == 1)
    second = await other.app.get("/api/token", token)
    answers = [await first, second]

    assert [200, 200] == [answer.status for answer in answers]
    assert 1 == len({answer.json["user"]["id"] for answer in answers})
    assert 1 == stack.acs.faults.count("create")


async def creates_once(service: Service, operation: str, fault: dict[str, Any]) -> None:
    """Check that a lost answer to our own write neither fails the call nor creates twice."""
    stack, object_id = service.running.stack, str(uuid.uuid4())
    stack.acs.faults.clear()
    stack.tables.faults.fail_next(operation, **fault)
    answer = await service.app.get("/api/token", service.running.token_of_new_person(oid=object_id))
    assert 200 == answer.status, answer
    assert 1 == stack.acs.faults.count("create")
    assert answer.json["user"]["id"] == await identity_in_row(service.running, object_id)


@case("J06", "an insert answered 503 that was made: its 409 is known as our own, one create")
async def test_J06_own_insert(service: Service) -> None:
    await creates_once(service, "table_insert", {"status": 503, "after": True})


@case("J07", "a row that others keep changing: read again a few times, then 503 with Retry-After")
async def test_J07_update_of_another(service: Service) -> None:
    stack, object_id = service.running.stack, str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    assert 200 == (await service.app.get("/api/token", token)).status
    before = await row_of(service.running, object_id)
    stack.tables.faults.clear()
    stack.tables.faults.fail_next("table_update", path=object_id, status=412, times=999)
    answer = await service.app.post("/api/token/revoke", token)
    tried = stack.tables.faults.count("table_update")
    stack.tables.faults.clear()

    assert answer.status == 503, answer
    assert "Retry-After" in answer.headers
    assert tried <= 20
    assert before == await row_of(service.running, object_id)
    assert 204 == (await service.app.post("/api/token/revoke", token)).status


@case("J08", "an update answered 503 that was made: its 412 is known as our own, one create")
async def test_J08_own_update(service: Service) -> None:
    await creates_once(service, "table_update", {"status": 503, "after": True})


@case("J09", "a write whose answer is lost: the row is read to see, and nothing is written blindly")
async def test_J09_unknown_outcome(service: Service) -> None:
    faults: dict[str, dict[str, Any]] = {
        "made": {"reset": True, "after": True},
        "not made": {"reset": True},
        "made, garbage": {"status": 500, "body": "<", "after": True},
    }
    for operation in ("table_insert", "table_update"):
        for name, fault in faults.items():
            with named(f"{operation}, {name}"):
                await creates_once(service, operation, fault)


@case("J11", "characters that a key may not have, in the ids of a token: 401, no call of the table")
async def test_J11_forbidden_characters(service: Service) -> None:
    texts = ["/", "\\", "#", "?", "'", "\t", "\x7f", "", "x" * 513, "a/b", "%2f", "..", "\x00"]
    texts += [f"{uuid.uuid4()}{each}" for each in ("/", "'", "\n", " ", "\x7f")]
    tokens = {
        f"{claim} {text!r}": service.running.token_of_new_person(**{claim: text})
        for text in texts
        for claim in ("oid", "tid")
    }
    await service.refuses(401, "invalid_token", tokens)


@case("J12", "a filter in the parameters of a list: 400, and the table gets no query")
async def test_J12_filter_injection(service: Service) -> None:
    administrator = service.running.token_of_administrator()
    tables = service.running.stack.tables
    identity = "8:acs:ac5ac5ac-0000-4000-8000-000000000001_00000005"
    for params in (
        {"tenantId": "' or PartitionKey ne '"},
        {"tenantId": f"{CONTOSO.tenant_id}' or '1' eq '1"},
        {"state": "active' or state ne '"},
        {"state": "active or true"},
        {"communicationUserId": f"{identity}' or '1' eq '1"},
        {"communicationUserId": "*"},
        {"continuationToken": "' or true"},
        {"limit": "1 or 1 eq 1"},
        {"$filter": "true"},
    ):
        with named(str(params)):
            tables.faults.clear()
            answer = await service.app.get("/api/users", administrator, params=params)
            service.check_refusal(answer, 400, "invalid_request", sent=[administrator])
            assert 0 == tables.faults.count("table_query")
    listed = await service.app.get("/api/users", administrator)
    assert {CONTOSO.tenant_id} >= {each["tenantId"] for each in listed.json["users"]}


@case("J14", "a row that a newer version wrote: 503 for that person, and it is not written")
async def test_J14_newer_row(service: Service) -> None:
    object_id = str(uuid.uuid4())
    token = service.running.token_of_new_person(oid=object_id)
    assert 200 == (await service.app.get("/api/token", token)).status
    await change_row(
        service.running, object_id, schema=2, lastUsedOn=datetime(2025, 1, 1, tzinfo=UTC)
    )
    before = await row_of(service.running, object_id)
    for method, path in (
        *(("GET", "/api/token"), ("POST", "/api/user"), ("POST", "/api/token/revoke")),
        ("DELETE", "/api/user"),
    ):
        with named(f"{method} {path}"):
            answer = await service.app.call(method, path, token)
            assert_problem(answer, 503, "storage_unavailable")
    assert before == await row_of(service.running, object_id)
    assert (
        200 == (await service.app.get("/api/token", service.running.token_of_new_person())).status
    )


@case(
    "J15", "the table throttles a partition: 503 there, others are served, few calls are repeated"
)
async def test_J15_throttled(service: Service, another_service: AnotherService) -> None:
    host, tables = await another_service(), service.running.stack.tables
    mine = [service.running.token_of_new_person(oid=f"ab{str(uuid.uuid4())[2:]}") for _ in range(8)]
    other = service.running.token_of_new_person(oid=f"cd{str(uuid.uuid4())[2:]}")
    for token in [*mine, other]:
        assert 200 == (await host.app.post("/api/user", token)).status
    tables.faults.clear()
    tables.faults.fail_next("table_read", path="_ab'", status=503, times=9999)
    throttled, served = [], []
    for _ in range(20):
        throttled += await asyncio.gather(*(host.app.get("/api/user", each) for each in mine))
        served.append(await host.app.get("/api/user", other))
    reads = tables.faults.count("table_read")
    tables.faults.clear()

    for answer in throttled:
        assert_problem(answer, 503, "storage_unavailable")
    assert {200} == {answer.status for answer in served}
    calls = len(throttled) + 2 * len(served)  # Served callers may need the index as well.
    assert reads <= calls * 1.1 + SAVED_RETRIES < 3 * calls
    assert 200 == (await host.app.get("/api/user", mine[0])).status


@case("J16", "an empty page with more to come: the daily run goes on, and sees every row")
async def test_J16_empty_page(service: Service) -> None:
    assert (
        200 == (await service.app.post("/api/user", service.running.token_of_new_person())).status
    )
    before = await run_timer(service, "prune_mappings")
    service.running.stack.tables.faults.fail_next(
        "table_query",
        path="/IdentityMappings()",
        body='{"value": []}',
        headers=continuation("0", "0"),
    )
    after = await run_timer(service, "prune_mappings")

    assert "prune_finished" == before["event"] == after["event"]
    assert 0 < before["rows"] == after["rows"]

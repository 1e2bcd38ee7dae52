from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from azure.data.tables.aio import TableClient

from local.serving.application import serve
from local.storage.azurite import Endpoints
from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from shared.mappings.table import IdentityMappings, State
from tests.emulated import ACS_ID, mapping_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.emulated import Store

    Call = Callable[[IdentityMappings, Person, datetime], Awaitable[Any]]


async def every(mappings: AsyncIterator[Any]) -> list[Any]:
    """Return everything that is yielded."""
    return [mapping async for mapping in mappings]


# Each method, with the operation that serves it.
METHODS = {
    "read": ("table_read", lambda mappings, person, now: mappings.read(person)),
    "insert": (
        "table_insert",
        lambda mappings, person, now: mappings.insert(mapping_of(person, now)),
    ),
    "change": (
        "table_update",
        lambda mappings, person, now: mappings.change(
            mapping_of(person, now, etag='W/"1"'), last_used_on=now
        ),
    ),
    "remove": (
        "table_delete",
        lambda mappings, person, now: mappings.remove(mapping_of(person, now, etag='W/"1"')),
    ),
    "count": ("table_query", lambda mappings, person, now: mappings.count(idle_before=now)),
    "idle": ("table_query", lambda mappings, person, now: every(mappings.idle(idle_before=now))),
    "interrupted": (
        "table_query",
        lambda mappings, person, now: every(mappings.interrupted(lease_before=now)),
    ),
    "add_orphan": (
        "table_update",
        lambda mappings, person, now: mappings.add_orphan(ACS_ID, reason="test", now=now),
    ),
    "remove_orphan": ("table_delete", lambda mappings, person, now: mappings.remove_orphan(ACS_ID)),
    "orphans": ("table_query", lambda mappings, person, now: every(mappings.orphans())),
    "server_time": ("table_read", lambda mappings, person, now: mappings.server_time()),
}
EVERY_METHOD = pytest.mark.parametrize(
    ("operation", "call"), [pytest.param(*method, id=name) for name, method in METHODS.items()]
)


@pytest.fixture
def mappings(store: Store) -> IdentityMappings:
    return store.mappings


class TestRoundTrip:
    """Rows are read as they were written."""

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({}, id="active"),
            pytest.param({"state": State.CREATING, "acs_id": ""}, id="creating"),
            pytest.param({"state": State.DELETING}, id="deleting"),
            pytest.param({"state": State.DELETING, "acs_id": ""}, id="deleting, never created"),
            pytest.param({"generation": 7}, id="seventh"),
            pytest.param({"revoked_before": datetime(2026, 1, 2, 3, 4, 5, 6, UTC)}, id="revoked"),
            pytest.param({"lease_until": datetime(2026, 1, 2, 3, 4, 5, 6, UTC)}, id="leased"),
        ],
    )
    async def test_insert_and_read(
        self, mappings: IdentityMappings, person: Person, now: datetime, changes: dict[str, Any]
    ) -> None:
        """A mapping comes back with all its members, its etag and the nonce of the write."""
        wanted = mapping_of(person, now, **changes)

        inserted = await mappings.insert(wanted)

        assert inserted is not None
        assert wanted == replace(inserted, attempt=wanted.attempt, etag="")
        assert inserted.etag
        assert wanted.attempt != inserted.attempt
        assert inserted == await mappings.read(person)

    async def test_absent(self, mappings: IdentityMappings, person: Person) -> None:
        """A person without a row has no mapping."""
        assert await mappings.read(person) is None

    async def test_row(
        self, store: Store, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """The row has the members and the keys that operators query by, and empty ones left out."""
        await mappings.insert(mapping_of(person, now))

        row = await store.row(person)

        assert row is not None
        assert f"{person.tenant_id}_{person.object_id[:2]}" == row["PartitionKey"]
        names = "PartitionKey RowKey state acsId generation attempt createdOn lastUsedOn schema"
        assert set(names.split()) == set(row)

    async def test_only_the_first_insert_succeeds(
        self, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """If another writer was first, nothing is written."""
        first = await mappings.insert(mapping_of(person, now))

        assert await mappings.insert(mapping_of(person, now, acs_id="other")) is None
        assert first == await mappings.read(person)

    async def test_change_is_conditional(
        self, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """Nothing is written if another writer has changed the row meanwhile."""
        before = await mappings.insert(mapping_of(person, now))
        assert before is not None
        changed = await mappings.change(before, generation=2)

        assert await mappings.change(before, generation=3) is None
        assert changed == await mappings.read(person)

    async def test_change_of_a_deleted_row(
        self, store: Store, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """A change of a row that was removed does not bring it back."""
        before = await mappings.insert(mapping_of(person, now))
        assert before is not None
        await mappings.remove(before)

        assert await mappings.change(before, generation=2) is None
        assert [] == await store.all_rows()

    async def test_remove_is_conditional(
        self, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """A row that another writer changed stays; removing one that is gone is no error."""
        before = await mappings.insert(mapping_of(person, now))
        assert before is not None
        changed = await mappings.change(before, generation=2)
        assert changed is not None

        await mappings.remove(before)
        assert changed == await mappings.read(person)
        await mappings.remove(changed)
        assert await mappings.read(person) is None
        await mappings.remove(changed)

    async def test_ledger(self, mappings: IdentityMappings, store: Store, now: datetime) -> None:
        """An orphan is in the ledger once, until it is removed."""
        for _ in range(2):
            await mappings.add_orphan(ACS_ID, reason="lost_lease", now=now)

        assert [ACS_ID] == await every(mappings.orphans())
        assert {ACS_ID: "lost_lease"} == await store.orphans()
        for _ in range(2):
            await mappings.remove_orphan(ACS_ID)
        assert [] == await every(mappings.orphans())


@EVERY_METHOD
class TestFailures:
    """A failure never means that a row does not exist."""

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"status": 401}, id="401"),
            pytest.param({"status": 403}, id="403"),
            pytest.param({"status": 500}, id="500"),
            pytest.param({"status": 503}, id="503"),
            pytest.param({"status": 503, "headers": {"Retry-After": "86400"}}, id="throttled"),
            pytest.param({"status": 307, "body": "", "headers": {"Location": "/"}}, id="redirect"),
            pytest.param({"reset": True}, id="reset"),
        ],
    )
    async def test_unavailable(
        self,
        store: Store,
        person: Person,
        now: datetime,
        operation: str,
        call: Call,
        fault: dict[str, Any],
    ) -> None:
        """Refused or failing, it is 503 within a moment, and the next call succeeds."""
        store.faults.fail_next("*", times=20, **fault)

        async with asyncio.timeout(3):
            with pytest.raises(StorageUnavailableError):
                await call(store.mappings, person, now)

        store.faults.clear()
        await call(store.mappings, person, now)
        assert store.faults.count(operation) >= 1


class TestAbsence:
    """People without a row, and answers that only look like that."""

    @pytest.fixture(params=["read", "insert", "change", "count", "idle", "add_orphan", "orphans"])
    def method(self, request: pytest.FixtureRequest) -> tuple[str, Call]:
        """The methods that must raise on such an answer; deleting what is gone is no error."""
        return METHODS[request.param]

    async def test_no_table(
        self, store: Store, person: Person, now: datetime, method: tuple[str, Call]
    ) -> None:
        """A missing table does not mean that a person has no row."""
        await store.rows.delete_table()
        await store.ledger.delete_table()

        with pytest.raises(StorageUnavailableError):
            await method[1](store.mappings, person, now)

    async def test_404_from_another_service(
        self, store: Store, person: Person, now: datetime, method: tuple[str, Call]
    ) -> None:
        """Nor does a 404 that is not Table Storage's own."""
        page = {"status": 404, "body": "<html>", "content_type": "text/html"}
        store.faults.fail_next("*", times=20, **page)

        with pytest.raises(StorageUnavailableError):
            await method[1](store.mappings, person, now)

    @pytest.mark.parametrize("code", ["ResourceNotFound", "EntityNotFound"])
    async def test_both_codes(self, store: Store, person: Person, code: str) -> None:
        """Table Storage has two codes for an entity that is not there."""
        body = json.dumps({"odata.error": {"code": code, "message": {"value": "Not there."}}})
        headers = {"x-ms-error-code": code}
        store.faults.fail_next("table_read", status=404, body=body, headers=headers)

        assert await store.mappings.read(person) is None

    async def test_readiness_without_a_table(self, store: Store) -> None:
        """Without the table, nothing can be served."""
        await store.rows.delete_table()

        with pytest.raises(StorageUnavailableError):
            await store.mappings.server_time()

    async def test_nobody_there(self, person: Person) -> None:
        """A refused connection is 503."""
        connection = Endpoints("http://127.0.0.1:1/devstoreaccount1").connection_string
        async with TableClient.from_connection_string(connection, "t", retry_total=0) as table:
            with pytest.raises(StorageUnavailableError):
                await IdentityMappings(mappings=table, orphans=table).read(person)


class TestRetries:
    """Passing failures are retried, and a write that succeeded is recognised."""

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    async def test_read_again(
        self, store: Store, person: Person, now: datetime, status: int
    ) -> None:
        """A read is tried three times."""
        inserted = await store.mappings.insert(mapping_of(person, now))
        store.faults.fail_next("table_read", status=status, times=2)

        assert inserted == await store.mappings.read(person)
        assert 3 == store.faults.count("table_read")

    @pytest.mark.parametrize("status", [400, 401, 403])
    async def test_lasting_failure_is_not_retried(
        self, store: Store, person: Person, status: int
    ) -> None:
        """Lasting failures are not retried."""
        store.faults.fail_next("table_read", status=status)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.read(person)
        assert 1 == store.faults.count("table_read")

    async def test_slow_read(self, store: Store, person: Person, now: datetime) -> None:
        """A read that hangs is given up and repeated."""
        inserted = await store.mappings.insert(mapping_of(person, now))
        store.faults.fail_next("table_read", delay=5)

        async with asyncio.timeout(4):
            assert inserted == await store.mappings.read(person)

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"reset": True, "after": True}, id="reply lost"),
            pytest.param({"status": 503, "after": True}, id="done, but answered as failed"),
            pytest.param({"status": 500}, id="failed"),
            pytest.param({"truncate": 5}, id="reply truncated"),
            pytest.param({"delay": 1.6}, id="done later"),
        ],
    )
    async def test_write_is_recognised(
        self, store: Store, person: Person, now: datetime, fault: dict[str, Any]
    ) -> None:
        """A write whose first answer is lost or late is recognised by its nonce, and done once."""
        store.faults.fail_next("table_insert", **fault)
        inserted = await store.mappings.insert(mapping_of(person, now))
        assert inserted is not None
        assert inserted == await store.mappings.read(person)

        store.faults.fail_next("table_update", **fault)
        changed = await store.mappings.change(inserted, generation=2)
        assert changed is not None
        assert 2 == changed.generation
        assert changed == await store.mappings.read(person)

        # The delayed update finds another etag.
        await asyncio.sleep(fault.get("delay", 0) / 4)
        again = await store.mappings.change(changed, generation=3)
        assert again == await store.mappings.read(person)

    @pytest.mark.parametrize("operation", ["table_insert", "table_update"])
    async def test_write_of_unknown_outcome(
        self, store: Store, person: Person, now: datetime, operation: str
    ) -> None:
        """If every answer is lost, the row shows that the write was done."""
        before = await store.mappings.insert(mapping_of(Person(person[0], person[1]), now))
        assert before is not None
        if operation == "table_insert":
            await store.mappings.remove(before)
        store.faults.fail_next(operation, status=503, after=True, times=2)

        if operation == "table_insert":
            written = await store.mappings.insert(before)
        else:
            written = await store.mappings.change(before, generation=2)

        assert written is not None
        assert written == await store.mappings.read(person)

    async def test_somebody_else_between(self, store: Store, person: Person, now: datetime) -> None:
        """If a write fails once and then finds another writer's row, it was not done."""
        store.faults.fail_next("table_insert", delay=0.1, status=503)
        writing = asyncio.create_task(store.mappings.insert(mapping_of(person, now)))
        await asyncio.sleep(0.05)
        await store.put(mapping_of(person, now, acs_id=f"{ACS_ID}-other"))

        assert await writing is None
        found = await store.mappings.read(person)
        assert found is not None
        assert f"{ACS_ID}-other" == found.acs_id

    async def test_row_cannot_be_read_back(
        self, store: Store, person: Person, now: datetime
    ) -> None:
        """If the row cannot be read after a conflict, it is 503, and the write is not repeated."""
        await store.put(mapping_of(person, now))
        store.faults.fail_next("table_read", status=503, times=3)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.insert(mapping_of(person, now))
        assert 1 == store.faults.count("table_insert")

    async def test_adding_an_orphan_is_retried(self, store: Store, now: datetime) -> None:
        """Adding an orphan is retried, so that it is not lost."""
        store.faults.fail_next("table_update", reset=True)

        await store.mappings.add_orphan(ACS_ID, reason="test", now=now)

        assert [ACS_ID] == list(await store.orphans())


class TestUnreadable:
    """Answers and rows that this version does not understand."""

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"body": "{}"}, id="empty object"),
            pytest.param({"body": "[]"}, id="list"),
            pytest.param({"body": "null"}, id="null"),
            pytest.param({"body": ""}, id="nothing"),
            pytest.param({"body": '{"schema": 1'}, id="broken JSON"),
            pytest.param({"body": "<html>", "content_type": "text/html"}, id="HTML"),
            pytest.param({"truncate": 30}, id="truncated"),
        ],
    )
    async def test_answer(
        self, store: Store, person: Person, now: datetime, fault: dict[str, Any]
    ) -> None:
        """A 200 that makes no sense does not mean that a row does not exist."""
        await store.put(mapping_of(person, now))
        store.faults.fail_next("table_read", times=3, **fault)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.read(person)

    ROWS = pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"schema": 2}, id="newer schema"),
            pytest.param({"schema": None}, id="no schema"),
            pytest.param({"state": "frozen"}, id="unknown state"),
            pytest.param({"state": None}, id="no state"),
            pytest.param({"acsId": None}, id="active without an id"),
            pytest.param({"lastUsedOn": None}, id="never used"),
            pytest.param({"lastUsedOn": "yesterday"}, id="date as text"),
            pytest.param({"leaseUntil": "tomorrow"}, id="lease as text"),
            pytest.param({"revokedBefore": 5}, id="mark as number"),
            pytest.param({"generation": None}, id="no generation"),
        ],
    )

    @ROWS
    async def test_row(
        self, store: Store, person: Person, now: datetime, changes: dict[str, Any]
    ) -> None:
        """A row that cannot be read is 503 for that person."""
        await store.put(mapping_of(person, now), **changes)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.read(person)

    @ROWS
    async def test_row_among_others(
        self,
        store: Store,
        person: Person,
        now: datetime,
        changes: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The timer skips a row that cannot be read, and logs it."""
        long_ago = now - timedelta(days=100)
        other = Person(person.tenant_id, f"ff{person.object_id[2:]}")
        for who in (Person(person.tenant_id, f"00{person.object_id[2:]}"), other):
            row = mapping_of(who, long_ago, lease_until=long_ago)
            await store.put(row, **(changes if who != other else {}))
        before = await store.all_rows()

        total, idle = await store.mappings.count(idle_before=now)
        found = await every(store.mappings.idle(idle_before=now))
        found += await every(store.mappings.interrupted(lease_before=now))

        assert 2 == total
        assert idle in {1, 2}
        assert [other] == [mapping.person for mapping in found]
        assert before == await store.all_rows()
        assert not any(other.object_id in line for line in caplog.messages)

    async def test_unreadable_row_is_logged(
        self, store: Store, person: Person, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An operator is told whose row cannot be read."""
        await store.put(mapping_of(person, now - timedelta(days=1)), schema=2)

        assert [] == await every(store.mappings.idle(idle_before=now))

        assert ["mapping_unreadable"] == [json.loads(line)["event"] for line in caplog.messages]
        assert person.object_id in caplog.messages[0]

    async def test_page(self, store: Store, now: datetime) -> None:
        """A page that makes no sense is an error, and not the end of the list."""
        for body in ("[]", "{", "<html>", ""):
            store.faults.fail_next("table_query", body=body)
            with pytest.raises(StorageUnavailableError):
                await every(store.mappings.idle(idle_before=now))


class TestLists:
    """The lists that the timer works through."""

    async def test_selection(self, store: Store, now: datetime) -> None:
        """Idle rows are active and not used since; interrupted ones have an expired lease."""
        second = timedelta(seconds=1)
        people = {
            name: Person("3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10", f"{position:032x}")
            for position, name in enumerate(
                "idle used today creating creating_long deleting_long".split()
            )
        }
        await store.put(mapping_of(people["idle"], now - second))
        await store.put(mapping_of(people["used"], now))
        await store.put(mapping_of(people["today"], now + second))
        creating = {"state": State.CREATING, "acs_id": ""}
        for name, state, lease in (
            ("creating", creating, now),
            ("creating_long", creating, now - second),
            ("deleting_long", {"state": State.DELETING}, now - second),
        ):
            await store.put(mapping_of(people[name], now - second, lease_until=lease, **state))

        idle = await every(store.mappings.idle(idle_before=now))
        interrupted = await every(store.mappings.interrupted(lease_before=now))

        assert [people["idle"]] == [mapping.person for mapping in idle]
        wanted = [people["creating_long"], people["deleting_long"]]
        assert wanted == [mapping.person for mapping in interrupted]
        assert (6, 1) == await store.mappings.count(idle_before=now)

    async def test_more_than_a_page(self, store: Store, now: datetime) -> None:
        """All of 1,101 rows are counted and listed."""
        tenant = "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10"
        people = [
            Person(tenant, f"{group:02x}{number:06x}-0000-4000-8000-000000000000")
            for group in range(11)
            for number in range(100)
        ] + [Person(tenant, "ff000000-0000-4000-8000-000000000000")]
        await store.put_all([mapping_of(person, now) for person in people])

        assert (1101, 1101) == await store.mappings.count(idle_before=now + timedelta(seconds=1))
        found = await every(store.mappings.idle(idle_before=now + timedelta(seconds=1)))
        assert people == [mapping.person for mapping in found]
        assert 4 == store.faults.count("table_query")

    async def test_empty_page_before_the_last(self) -> None:
        """Azure may send an empty page and go on after it."""
        pages = ["a", None, "b"]

        async def answer(request: web.Request) -> web.Response:
            position = int(request.query.get("NextPartitionKey", "0"))
            name = pages[position]
            rows = [{"PartitionKey": "orphan", "RowKey": name}] if name else []
            more = {"x-ms-continuation-NextPartitionKey": str(position + 1)}
            more["x-ms-continuation-NextRowKey"] = "r"
            headers = more if position + 1 < len(pages) else {}
            return web.json_response({"value": rows}, headers=headers)

        async with table_of(answer) as mappings:
            assert ["a", "b"] == await every(mappings.orphans())

    async def test_failure_on_a_later_page(self) -> None:
        """The rows before a failure are yielded, then it is raised."""
        answers = [web.json_response({"value": [{"PartitionKey": "o", "RowKey": "a"}]})]
        answers[0].headers["x-ms-continuation-NextPartitionKey"] = "1"
        answers[0].headers["x-ms-continuation-NextRowKey"] = "r"

        async def answer(_request: web.Request) -> web.Response:
            return answers.pop() if answers else web.Response(status=500)

        async with table_of(answer) as mappings:
            orphans = mappings.orphans()
            assert "a" == await anext(orphans)
            with pytest.raises(StorageUnavailableError):
                await anext(orphans)


class TestServerTime:
    """Table Storage's own clock."""

    async def test_now(self, store: Store) -> None:
        """On the same computer, it is the same time."""
        offset = await store.mappings.server_time() - datetime.now(UTC)

        assert abs(offset) < timedelta(seconds=5)

    async def test_another_time(self, store: Store) -> None:
        """It is read from the answer."""
        headers = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
        store.faults.fail_next("table_read", headers=headers)

        assert datetime(2026, 1, 1, tzinfo=UTC) == await store.mappings.server_time()

    @pytest.mark.parametrize("date", ["", "soon", "2026-01-01"])
    async def test_no_date(self, store: Store, date: str) -> None:
        """An answer whose date cannot be read is not relied upon."""
        store.faults.fail_next("table_read", headers={"Date": date}, times=3)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.server_time()


@asynccontextmanager
async def table_of(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[IdentityMappings]:
    """Yield the mappings of a service that gives scripted answers."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serve(app) as url:
        connection = Endpoints(f"{url}/devstoreaccount1").connection_string
        async with TableClient.from_connection_string(connection, "t", retry_total=0) as table:
            yield IdentityMappings(mappings=table, orphans=table)


class TestSdkBackstop:
    """What we rely on the SDK for, so that an upgrade fails here first."""

    async def test_dates_keep_their_zone(self, store: Store, person: Person) -> None:
        """A date is a date with a zone, to the microsecond."""
        date = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
        await store.put(mapping_of(person, date))

        row = await store.row(person)

        assert row is not None
        assert date == row["lastUsedOn"]

    async def test_parameters_are_quoted(self, store: Store, person: Person, now: datetime) -> None:
        """What is put into a filter stays one value."""
        await store.put(mapping_of(person, now))
        injected = "x' or state eq 'active"

        rows = store.rows.query_entities("acsId eq @id", parameters={"id": injected})

        assert [] == await every(rows)

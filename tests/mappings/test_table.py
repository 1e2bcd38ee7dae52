from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from azure.data.tables.aio import TableClient

from local.serving.application import serve
from local.storage.azurite import Endpoints
from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from shared.mappings.table import (
    IdentityMapping,
    IdentityMappings,
    State,
    UnreadableRow,
    readable_of,
    rows_of,
)
from shared.retry_budget import SAVED_RETRIES
from tests.emulated import ACS_ID, mapping_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shared.mappings.attempts import Page, Position
    from tests.emulated import Clock, Store

    Call = Callable[[IdentityMappings, Person, datetime], Awaitable[Any]]


async def every(pages: AsyncIterator[Page]) -> list[Page]:
    """Return all pages."""
    return [page async for page in pages]


async def names(pages: AsyncIterator[Page]) -> list[str]:
    """Return whose rows the pages have, by object id."""
    return [entity["RowKey"] for page in await every(pages) for entity in page.entities]


# Each method, with the operation that serves it.
METHODS = {
    "read": ("table_read", lambda mappings, person, now: mappings.read(person)),
    "insert": (
        "table_insert",
        lambda mappings, person, now: mappings.change(absent(person, now), state=State.ERASED),
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
    "uses": ("table_query", lambda mappings, person, now: every(mappings.uses())),
    "unsettled": (
        "table_query",
        lambda mappings, person, now: every(mappings.unsettled(idle_before=now, future=now)),
    ),
    "page": (
        "table_query",
        lambda mappings, person, now: mappings.page(
            tenant_id=person.tenant_id, state="active", start=None, size=10
        ),
    ),
    "server_time": ("table_read", lambda mappings, person, now: mappings.server_time()),
}
EVERY_METHOD = pytest.mark.parametrize(
    ("operation", "call"), [pytest.param(*method, id=name) for name, method in METHODS.items()]
)


def absent(person: Person, now: datetime) -> IdentityMapping:
    """Return what is read for a person who has no row."""
    return mapping_of(person, now, state=State.ABSENT, acs_id="", generation=0)


async def insert(mappings: IdentityMappings, mapping: IdentityMapping) -> IdentityMapping:
    """Store a person's first mapping, and return it as it was stored."""
    changes = {
        each.name: getattr(mapping, each.name) for each in fields(mapping) if each.name != "attempt"
    }
    inserted = await mappings.change(await mappings.read(mapping.person), **changes)
    assert inserted is not None
    return inserted


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
            pytest.param({"state": State.DELETING, "reason": "idle"}, id="deleting"),
            pytest.param({"state": State.DELETING, "acs_id": ""}, id="deleting, never made"),
            pytest.param({"state": State.ERASED, "acs_id": "", "generation": 0}, id="erased"),
            pytest.param({"generation": 7}, id="seventh"),
            pytest.param({"failures": 3}, id="failed"),
            pytest.param({"revoked_before": datetime(2026, 1, 2, 3, 4, 5, 6, UTC)}, id="revoked"),
            pytest.param({"revoke_again": True}, id="revocation unfinished"),
            pytest.param({"gone_on": datetime(2026, 1, 2, 3, 4, 5, 6, UTC)}, id="gone"),
            pytest.param({"lease_until": datetime(2026, 1, 2, 3, 4, 5, 6, UTC)}, id="leased"),
        ],
    )
    async def test_insert_and_read(
        self, mappings: IdentityMappings, person: Person, now: datetime, changes: dict[str, Any]
    ) -> None:
        """A mapping comes back with all its members, its etag and the nonce of the write."""
        wanted = mapping_of(person, now, **changes)

        inserted = await insert(mappings, wanted)

        assert wanted == replace(inserted, attempt=wanted.attempt, etag="")
        assert inserted.etag
        assert wanted.attempt != inserted.attempt
        assert inserted == await mappings.read(person)

    async def test_absent(self, mappings: IdentityMappings, person: Person) -> None:
        """A person without a row has a mapping that says so."""
        mapping = await mappings.read(person)

        assert (State.ABSENT, person, "", "") == (
            mapping.state,
            mapping.person,
            mapping.acs_id,
            mapping.etag,
        )

    async def test_row(
        self, store: Store, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """The row has the members and the keys that operators query by, and empty ones left out."""
        await insert(mappings, mapping_of(person, now))

        row = await store.row(person)

        assert row is not None
        assert f"{person.tenant_id}_{person.object_id[:2]}" == row["PartitionKey"]
        names = "PartitionKey RowKey state acsId generation attempt createdOn lastUsedOn schema"
        assert set(names.split()) == set(row)

    async def test_only_the_first_insert_succeeds(
        self, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """If another writer was first, nothing is written."""
        before = await mappings.read(person)
        first = await insert(mappings, mapping_of(person, now))

        assert await mappings.change(before, state=State.CREATING) is None
        assert first == await mappings.read(person)

    async def test_change_is_conditional(
        self, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """Nothing is written if another writer has changed the row meanwhile."""
        before = await insert(mappings, mapping_of(person, now))
        changed = await mappings.change(before, generation=2)

        assert await mappings.change(before, generation=3) is None
        assert changed == await mappings.read(person)

    async def test_change_of_a_deleted_row(
        self, store: Store, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """A change of a row that was removed does not bring it back."""
        before = await insert(mappings, mapping_of(person, now))
        assert await mappings.remove(before)

        assert await mappings.change(before, generation=2) is None
        assert [] == await store.all_rows()

    async def test_remove_is_conditional(
        self, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """A row that another writer changed stays; removing one that is gone is no error."""
        before = await insert(mappings, mapping_of(person, now))
        changed = await mappings.change(before, generation=2)
        assert changed is not None

        assert not await mappings.remove(before)
        assert changed == await mappings.read(person)
        assert await mappings.remove(changed)
        assert State.ABSENT is (await mappings.read(person)).state
        assert await mappings.remove(changed)

    async def test_remove_whose_answer_is_lost(
        self, store: Store, mappings: IdentityMappings, person: Person, now: datetime
    ) -> None:
        """A removal counts as done although its second attempt finds no row."""
        before = await insert(mappings, mapping_of(person, now))
        store.faults.fail_next("table_delete", status=503, after=True)

        assert await mappings.remove(before)
        assert [] == await store.all_rows()


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

    @pytest.fixture(params=["read", "insert", "change", "uses", "unsettled", "page"])
    def method(self, request: pytest.FixtureRequest) -> tuple[str, Call]:
        """The methods that must raise on such an answer; deleting what is gone is no error."""
        return METHODS[request.param]

    async def test_no_table(
        self, store: Store, person: Person, now: datetime, method: tuple[str, Call]
    ) -> None:
        """A missing table does not mean that a person has no row."""
        await store.rows.delete_table()

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

        assert State.ABSENT is (await store.mappings.read(person)).state

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
                await IdentityMappings(table).read(person)


class TestRetries:
    """Passing failures are retried, and a write that succeeded is recognised."""

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    async def test_read_again(
        self, store: Store, person: Person, now: datetime, status: int
    ) -> None:
        """A read is tried three times."""
        inserted = await insert(store.mappings, mapping_of(person, now))
        store.faults.clear()
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
        inserted = await insert(store.mappings, mapping_of(person, now))
        store.faults.fail_next("table_read", delay=5)

        async with asyncio.timeout(4):
            assert inserted == await store.mappings.read(person)

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"reset": True, "after": True}, id="reply lost"),
            pytest.param({"status": 503, "after": True}, id="done, and said to have failed"),
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
        inserted = await insert(store.mappings, mapping_of(person, now))
        assert inserted == await store.mappings.read(person)

        store.faults.fail_next("table_update", **fault)
        changed = await store.mappings.change(inserted, generation=2)
        assert changed is not None
        assert 2 == changed.generation
        assert changed == await store.mappings.read(person)

        # What comes late finds another etag.
        await asyncio.sleep(fault.get("delay", 0) / 4)
        again = await store.mappings.change(changed, generation=3)
        assert again == await store.mappings.read(person)

    @pytest.mark.parametrize("operation", ["table_insert", "table_update"])
    async def test_write_of_unknown_outcome(
        self, store: Store, person: Person, now: datetime, operation: str
    ) -> None:
        """If every answer is lost, the row shows that the write was done."""
        if operation == "table_update":
            await store.put(mapping_of(person, now))
        before = await store.mappings.read(person)
        store.faults.fail_next(operation, status=503, after=True, times=2)

        written = await store.mappings.change(before, state=State.ERASED, acs_id="", generation=2)

        assert written is not None
        assert 2 == written.generation
        assert written == await store.mappings.read(person)

    async def test_somebody_else_between(self, store: Store, person: Person, now: datetime) -> None:
        """If a write fails once and then finds another writer's row, it was not done."""
        before = await store.mappings.read(person)
        store.faults.fail_next("table_insert", delay=0.1, status=503)
        writing = asyncio.create_task(store.mappings.change(before, state=State.ERASED))
        await asyncio.sleep(0.05)
        await store.put(mapping_of(person, now, acs_id=f"{ACS_ID}-other"))

        assert await writing is None
        assert f"{ACS_ID}-other" == (await store.mappings.read(person)).acs_id

    async def test_row_cannot_be_read_back(
        self, store: Store, person: Person, now: datetime
    ) -> None:
        """If the row cannot be read after a conflict, it is 503, and the write is not repeated."""
        await store.put(mapping_of(person, now))
        store.faults.fail_next("table_read", status=503, times=3)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.change(absent(person, now), state=State.ERASED)
        assert 1 == store.faults.count("table_insert")


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
            pytest.param({"state": "absent"}, id="a state that is never stored"),
            pytest.param({"state": None}, id="no state"),
            pytest.param({"acsId": None}, id="active without an id"),
            pytest.param({"acsId": 5}, id="id as number"),
            pytest.param({"acsId": "ada@contoso.example"}, id="not an id"),
            pytest.param({"state": "deleting", "acsId": "x"}, id="deleting what is not an id"),
            pytest.param({"lastUsedOn": None}, id="never used"),
            pytest.param({"lastUsedOn": "yesterday"}, id="date as text"),
            pytest.param({"leaseUntil": "tomorrow"}, id="lease as text"),
            pytest.param({"revokedBefore": 5}, id="mark as number"),
            pytest.param({"goneOn": True}, id="date as boolean"),
            pytest.param({"generation": None}, id="no generation"),
            pytest.param({"generation": "1"}, id="generation as text"),
            pytest.param({"failures": True}, id="failures as boolean"),
            pytest.param({"attempt": None}, id="no nonce"),
        ],
    )

    @ROWS
    async def test_row(
        self,
        store: Store,
        person: Person,
        now: datetime,
        changes: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A row that cannot be read is 503 for that person, and an operator is told whose it is."""
        await store.put(mapping_of(person, now), **changes)

        with pytest.raises(StorageUnavailableError) as raised:
            await store.mappings.read(person)

        (line,) = [json.loads(line) for line in caplog.messages]
        assert ("mapping_unreadable", str(raised.value)) == (line["event"], line["reason"])
        assert person.object_id == line["object_id"]

    @ROWS
    async def test_row_among_others(
        self,
        store: Store,
        person: Person,
        now: datetime,
        changes: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """On a page, a row that cannot be read hides no other; timers skip and report it."""
        other = Person(person.tenant_id, f"ff{person.object_id[2:]}")
        broken = Person(person.tenant_id, f"00{person.object_id[2:]}")
        await store.put(mapping_of(broken, now), **changes)
        await store.put(mapping_of(other, now))
        before = await store.all_rows()
        page = await store.mappings.page(
            tenant_id=person.tenant_id, state=None, start=None, size=10
        )

        first, second = rows_of(page)
        assert isinstance(first, UnreadableRow)
        assert isinstance(second, IdentityMapping)
        assert (broken, other) == (first.person, second.person)
        assert not caplog.messages

        assert [other] == [mapping.person for mapping in readable_of(page)]
        assert ["mapping_unreadable"] == [json.loads(line)["event"] for line in caplog.messages]
        assert broken.object_id in caplog.text
        assert other.object_id not in caplog.text
        assert before == await store.all_rows()

    @pytest.mark.parametrize("body", ["[]", "{", "<html>", "", "null", "{}"])
    async def test_page(self, store: Store, body: str) -> None:
        """A page that makes no sense is an error, and not the end of the list."""
        store.faults.fail_next("table_query", body=body, times=3)

        with pytest.raises(StorageUnavailableError):
            await every(store.mappings.uses())


class TestLists:
    """The lists that timers and administrators work through."""

    TENANT = "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10"

    async def test_uses(self, store: Store, now: datetime) -> None:
        """All rows are counted, whatever their state, by no more than has to be read."""
        for number, state in enumerate(set(State) - {State.ABSENT}):
            await store.put(mapping_of(Person(self.TENANT, f"{number}"), now, state=state))

        (page,) = await every(store.mappings.uses())

        wanted = {"PartitionKey", "RowKey", "state", "acsId", "lastUsedOn"}
        assert [wanted] * 4 == [set(entity) for entity in page.entities]

    async def test_unsettled(self, store: Store, now: datetime) -> None:
        """Rows that are idle, used in the future, or not active have something to do."""
        second = timedelta(seconds=1)
        rows: dict[str, dict[str, Any]] = {
            "1 idle": {"last_used_on": now - second},
            "2 used": {"last_used_on": now},
            "3 in use": {"last_used_on": now + second},
            "4 later": {"last_used_on": now + 3 * second},
            "5 creating": {"state": State.CREATING, "acs_id": ""},
            "6 deleting": {"state": State.DELETING},
            "7 erased": {"state": State.ERASED, "acs_id": ""},
            "8 revoked": {"revoked_before": now + second},
            "9 locked out": {"revoked_before": now + 3 * second},
        }
        for name, changes in rows.items():
            await store.put(mapping_of(Person(self.TENANT, name), now, **changes))

        found = await names(store.mappings.unsettled(idle_before=now, future=now + 2 * second))

        expected = ["1 idle", "4 later", "5 creating", "6 deleting", "7 erased", "9 locked out"]
        assert expected == sorted(found)

    async def test_tenants(self, store: Store, person: Person, now: datetime) -> None:
        """A page has the rows of one tenant, of one state if that is asked for; or of all."""
        stored = {
            "a": ("11111111-0000", State.ACTIVE),
            "b": ("11111111-0000", State.ERASED),
            "c": ("11111111-00000", State.ACTIVE),
            "d": ("11111111-000", State.ACTIVE),
            "e": ("11111111-0001", State.ACTIVE),
        }
        for name, (tenant_id, state) in stored.items():
            await store.put(mapping_of(Person(tenant_id, name), now, state=state))

        async def page(tenant_id: str, state: str | None) -> str:
            found = await store.mappings.page(tenant_id=tenant_id, state=state, start=None, size=10)
            return "".join(sorted(entity["RowKey"] for entity in found.entities))

        assert "ab" == await page("11111111-0000", None)
        assert "a" == await page("11111111-0000", "active")
        assert "" == await page(person.tenant_id, None)
        assert "" == await page("11111111-0000", "x' or state ne 'x")
        assert "b" == await page("", "erased")
        assert "abcde" == await page("", None)

    async def test_page_by_page(self, store: Store, now: datetime) -> None:
        """Each page tells where the next begins, and the last one that it is the last."""
        people = [Person(self.TENANT, f"{number:02x}") for number in range(5)]
        for person in people:
            await store.put(mapping_of(person, now))

        found: list[Person] = []
        sizes: list[int] = []
        start: Position | None = None
        while not sizes or start:
            page = await store.mappings.page(tenant_id=self.TENANT, state=None, start=start, size=2)
            sizes.append(len(page.entities))
            found += [mapping.person for mapping in readable_of(page)]
            start = page.following

        assert people == found
        assert [2, 2, 1] == sizes

    async def test_more_than_a_page(self, store: Store, now: datetime) -> None:
        """All of 1,101 rows are listed; a scan goes on where another one was left."""
        people = [
            Person(self.TENANT, f"{group:02x}{number:06x}-0000-4000-8000-000000000000")
            for group in range(11)
            for number in range(100)
        ] + [Person(self.TENANT, "ff000000-0000-4000-8000-000000000000")]
        await store.put_all([mapping_of(person, now) for person in people])
        wanted = [person.object_id for person in people]

        first, second = await every(store.mappings.uses())
        assert 2 == store.faults.count("table_query")
        later = now + timedelta(seconds=1)
        unsettled = store.mappings.unsettled(idle_before=later, future=later, start=first.following)

        assert (1000, 101, None) == (len(first.entities), len(second.entities), second.following)
        assert wanted[1000:] == await names(unsettled)
        assert wanted[1000:] == await names(store.mappings.uses(start=first.following))
        assert wanted == await names(store.mappings.uses())

    @pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}, {"truncate": 40}])
    async def test_page_again(self, store: Store, now: datetime, fault: dict[str, Any]) -> None:
        """A page that fails is asked for again, and no row is missing or there twice."""
        people = [
            Person(self.TENANT, f"{group:02x}{number:02x}")
            for group in range(11)
            for number in range(91)
        ]
        await store.put_all([mapping_of(person, now) for person in people])
        pages = store.mappings.uses()
        first = await anext(pages)
        store.faults.fail_next("table_query", times=2, **fault)

        (second,) = await every(pages)

        assert (1000, 1) == (len(first.entities), len(second.entities))

    async def test_slow_page(self, store: Store, person: Person, now: datetime) -> None:
        """A page may take longer than a single row."""
        await store.put(mapping_of(person, now))
        store.faults.fail_next("table_query", delay=3.3)

        assert [person.object_id] == await names(store.mappings.uses())
        assert 1 == store.faults.count("table_query")

    async def test_empty_page_before_the_last(self) -> None:
        """Azure may send an empty page and go on after it."""
        pages = ["a", None, "b"]

        async def answer(request: web.Request) -> web.Response:
            position = int(request.query.get("NextPartitionKey", "0"))
            name = pages[position]
            rows = [{"PartitionKey": "p", "RowKey": name}] if name else []
            more = {"x-ms-continuation-NextPartitionKey": str(position + 1)}
            more["x-ms-continuation-NextRowKey"] = "r"
            headers = more if position + 1 < len(pages) else {}
            return web.json_response({"value": rows}, headers=headers)

        async with table_of(answer) as mappings:
            assert ["a", "b"] == await names(mappings.uses())

    async def test_failure_on_a_later_page(self) -> None:
        """The rows before a failure are yielded, then it is raised."""
        answers = [web.json_response({"value": [{"PartitionKey": "o", "RowKey": "a"}]})]
        answers[0].headers["x-ms-continuation-NextPartitionKey"] = "1"
        answers[0].headers["x-ms-continuation-NextRowKey"] = "r"

        async def answer(_request: web.Request) -> web.Response:
            return answers.pop() if answers else web.Response(status=500)

        async with table_of(answer) as mappings:
            pages = mappings.uses()
            assert "a" == (await anext(pages)).entities[0]["RowKey"]
            with pytest.raises(StorageUnavailableError):
                await anext(pages)


class TestClock:
    """Table Storage's own clock."""

    async def test_server_time(self, store: Store, clock: Clock) -> None:
        """It is read from the answer, whatever the clock of this machine says."""
        clock.advance(days=-300)

        assert clock.is_now(await store.mappings.server_time())

    @pytest.mark.parametrize("stored", [True, False], ids=["row", "no row"])
    async def test_mapping(self, store: Store, person: Person, clock: Clock, stored: bool) -> None:
        """A mapping that was read knows the time, which runs on, and when it was written."""
        if stored:
            await store.put(mapping_of(person, clock.now))
        clock.advance(days=300)

        mapping = await store.mappings.read(person)

        first = mapping.now
        await asyncio.sleep(0.05)
        assert clock.is_now(first)
        assert timedelta(seconds=0.04) < mapping.now - first < timedelta(seconds=5)
        assert stored == (mapping.written_on is not None)

    async def test_rows(self, store: Store, person: Person, clock: Clock) -> None:
        """So do the mappings on a page, each page with its own time."""
        await store.put(mapping_of(person, clock.now))
        await store.put(mapping_of(Person(person.tenant_id, "z"), clock.now))
        found: list[bool] = []
        start: Position | None = None
        for _ in range(2):
            clock.advance(hours=1)
            page = await store.mappings.page(
                tenant_id=person.tenant_id, state=None, start=start, size=1
            )
            (mapping,) = readable_of(page)
            found.append(clock.is_now(mapping.now))
            start = page.following

        assert [True, True] == found

    async def test_last_answer(self, store: Store, person: Person, clock: Clock) -> None:
        """If the first answer was an error, the time is that of the second."""
        wrong = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
        store.faults.fail_next("table_read", status=503, headers=wrong)

        assert clock.is_now((await store.mappings.read(person)).now)

    @pytest.mark.parametrize("date", ["", "soon", "2026-01-01"])
    async def test_no_date(self, store: Store, person: Person, date: str) -> None:
        """An answer whose date cannot be read is not relied upon."""
        store.faults.fail_next("table_read", headers={"Date": date}, times=6)

        with pytest.raises(StorageUnavailableError):
            await store.mappings.server_time()
        with pytest.raises(StorageUnavailableError):
            await store.mappings.read(person)


class TestRetryBudget:
    """In an outage, few calls are repeated."""

    async def test_outage(self, store: Store, person: Person) -> None:
        """A tenth of the calls, and what was saved up, for both tables together."""
        store.faults.fail_next("*", status=503, times=9999)
        for _ in range(10):
            failed = await asyncio.gather(
                *(store.mappings.read(person) for _ in range(10)),
                *(store.ledger.add_unfinished(person) for _ in range(10)),
                return_exceptions=True,
            )
            assert {StorageUnavailableError} == {type(each) for each in failed}

        requests = store.faults.count("table_read") + store.faults.count("table_update")

        assert 200 + SAVED_RETRIES <= requests <= 200 * 1.1 + SAVED_RETRIES

    async def test_scans(self, store: Store) -> None:
        """A timer's scan is repeated as ever, however often it was already."""
        spend_all(store)
        store.faults.fail_next("table_query", status=503, times=2)

        await every(store.mappings.uses())

        assert 3 == store.faults.count("table_query")

    async def test_others(self, store: Store, person: Person, now: datetime) -> None:
        """When it is over, everybody is served, without a pause."""
        await insert(store.mappings, mapping_of(person, now))
        spend_all(store)
        store.faults.clear()
        store.faults.fail_next("table_read", status=503)
        with pytest.raises(StorageUnavailableError):
            await store.mappings.read(person)

        assert 1 == store.faults.count("table_read")
        assert State.ACTIVE is (await store.mappings.read(person)).state


def spend_all(store: Store) -> None:
    """Spend the retries that were saved up, as an outage does."""
    while store.retries.spend():
        pass


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
            yield IdentityMappings(table)


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

        assert [] == [row async for row in rows]

    async def test_timestamps(self, store: Store, person: Person, now: datetime) -> None:
        """When a row was written last is a date with a zone, by the service's clock."""
        await store.put(mapping_of(person, now))

        written_on = (await store.mappings.read(person)).written_on

        assert written_on is not None
        assert abs(written_on - datetime.now(UTC)) < timedelta(seconds=5)

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from local.entra.directory import CONTOSO
from shared.identifiers import Person
from shared.mappings.index_check import IndexCheck
from shared.mappings.table import State
from tests.emulated import ACS_ID, mapping_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from tests.emulated import Clock, Store

    Check = Callable[[], Awaitable[int]]

PEOPLE = [Person(CONTOSO.tenant_id, f"{number}{'0' * 35}") for number in range(3)]
IDS = [f"{ACS_ID}-{number}" for number in range(3)]


@pytest.fixture
def check(store: Store, clock: Clock) -> Check:
    """Return a function that compares the index with the rows, and returns how many it mended.

    That is later: what was written just now is left alone.
    """

    async def run() -> int:
        clock.advance(hours=1)
        index = IndexCheck(mappings=store.mappings, ledger=store.ledger)
        index.is_complete = True
        async for page in store.mappings.uses():
            index.add(page.entities)
        return await index.mend()

    return run


@pytest.fixture
async def three(store: Store, now: datetime) -> None:
    """Three people with an identity each, and the index that belongs to them."""
    for person, acs_id in zip(PEOPLE, IDS, strict=True):
        await store.put(mapping_of(person, now, acs_id=acs_id))
        await store.ledger.index(acs_id, person)


@pytest.mark.usefixtures("three")
class TestMend:
    """What differs is mended, and nothing else is touched."""

    async def test_nothing(self, store: Store, check: Check) -> None:
        """If nothing differs, nothing is written, and no row is read again."""
        store.faults.clear()

        assert 0 == await check()
        assert (2, 1) == (store.faults.count("table_query"), _other_calls(store))  # The time.

    async def test_missing(self, store: Store, check: Check) -> None:
        """A missing entry is written."""
        await store.ledger.forget_owner(IDS[1], None)

        assert 1 == await check()
        assert PEOPLE[1] == await store.ledger.owner(IDS[1])
        assert 0 == await check()

    @pytest.mark.parametrize("state", [State.ERASED, State.DELETING, None])
    async def test_left_over(
        self, store: Store, check: Check, now: datetime, state: State | None
    ) -> None:
        """An entry for an identity that no row names is removed, whatever became of the row."""
        await store.rows.delete_entity(f"{CONTOSO.tenant_id}_00", PEOPLE[0].object_id)
        if state:
            await store.put(mapping_of(PEOPLE[0], now, acs_id="", state=state))

        assert 1 == await check()
        assert await store.ledger.owner(IDS[0]) is None
        assert PEOPLE[1] == await store.ledger.owner(IDS[1])

    async def test_just_written(self, store: Store, check: Check, clock: Clock) -> None:
        """An entry whose row is about to be written is left alone."""
        await store.ledger.index(f"{ACS_ID}-new", PEOPLE[0])
        clock.advance(hours=-1)

        assert 0 == await check()
        assert PEOPLE[0] == await store.ledger.owner(f"{ACS_ID}-new")

    async def test_being_created(self, store: Store, check: Check, now: datetime) -> None:
        """While an identity is being created, its entry is left alone."""
        await store.put(mapping_of(PEOPLE[0], now, acs_id="", state=State.CREATING))

        assert 0 == await check()
        assert PEOPLE[0] == await store.ledger.owner(IDS[0])

    async def test_changed_meanwhile(self, store: Store, now: datetime) -> None:
        """A row that was written after the count is read again before its entry is removed."""
        index = IndexCheck(mappings=store.mappings, ledger=store.ledger)
        index.is_complete = True
        async for page in store.mappings.uses():
            index.add(page.entities)
        late = Person(CONTOSO.tenant_id, "9" * 36)
        await store.put(mapping_of(late, now, acs_id=f"{ACS_ID}-late"))
        await store.ledger.index(f"{ACS_ID}-late", late)

        assert 0 == await index.mend()
        assert late == await store.ledger.owner(f"{ACS_ID}-late")

    async def test_shared(
        self, store: Store, check: Check, now: datetime, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two rows with one identity are reported, and the index stays as it is."""
        await store.put(mapping_of(PEOPLE[2], now, acs_id=IDS[0]))
        await store.ledger.forget_owner(IDS[2], None)

        assert 0 == await check()
        (line,) = [json.loads(message) for message in caplog.messages]
        assert ("identity_shared", IDS[0]) == (line["event"], line["acs_id"])
        assert PEOPLE[2].object_id == line["object_id"]
        assert PEOPLE[0] == await store.ledger.owner(IDS[0])

    async def test_incomplete(self, store: Store) -> None:
        """If not all rows were seen, nothing is compared."""
        assert 0 == await IndexCheck(mappings=store.mappings, ledger=store.ledger).mend()
        assert PEOPLE[0] == await store.ledger.owner(IDS[0])


def _other_calls(store: Store) -> int:
    operations = ("table_insert", "table_update", "table_delete", "table_read")
    return sum(store.faults.count(operation) for operation in operations)

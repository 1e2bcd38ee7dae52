from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO, FABRIKAM
from shared.errors import StorageUnavailableError
from shared.identifiers import Person
from shared.mappings.ledger import Orphan, Ownership, Unfinished
from tests.emulated import ACS_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shared.mappings.ledger import Ledger
    from tests.emulated import Store

    Call = Callable[[Ledger, Person, datetime], Awaitable[Any]]

OTHER = Person(FABRIKAM.tenant_id, "0" * 36)
DAY = date(2026, 11, 25)


async def every(found: AsyncIterator[Any]) -> list[Any]:
    """Return everything that is yielded."""
    return [each async for each in found]


# Each method, with the operation that serves it first.
METHODS: dict[str, tuple[str, Call]] = {
    "add_orphan": (
        "table_update",
        lambda ledger, person, now: ledger.add_orphan(ACS_ID, person=person, reason="", now=now),
    ),
    "postpone": (
        "table_update",
        lambda ledger, person, now: ledger.postpone(
            Orphan(ACS_ID, person, "", 0, None), retry_on=now
        ),
    ),
    "remove_orphan": ("table_delete", lambda ledger, person, now: ledger.remove_orphan(ACS_ID)),
    "is_orphan": ("table_read", lambda ledger, person, now: ledger.is_orphan(ACS_ID)),
    "orphans": ("table_query", lambda ledger, person, now: every(ledger.orphans())),
    "add_unfinished": ("table_update", lambda ledger, person, now: ledger.add_unfinished(person)),
    "remove_unfinished": (
        "table_delete",
        lambda ledger, person, now: ledger.remove_unfinished(Unfinished(person, now, 'W/"1"')),
    ),
    "unfinished": ("table_query", lambda ledger, person, now: every(ledger.unfinished())),
    "owner": ("table_read", lambda ledger, person, now: ledger.owner(ACS_ID)),
    "owners": ("table_query", lambda ledger, person, now: every(ledger.owners())),
    "claim": (
        "table_insert",
        lambda ledger, person, now: ledger.claim(ACS_ID, person, instead_of=None),
    ),
    "claim instead of": (
        "table_update",
        lambda ledger, person, now: ledger.claim(
            ACS_ID, person, instead_of=Ownership(OTHER, 'W/"1"')
        ),
    ),
    "index": ("table_update", lambda ledger, person, now: ledger.index(ACS_ID, person)),
    "forget_owner": ("table_read", lambda ledger, person, now: ledger.forget_owner(ACS_ID, person)),
    "take": ("table_read", lambda ledger, person, now: ledger.take("t", day=DAY, limit=1)),
    "remember": ("table_update", lambda ledger, person, now: ledger.remember("r", rows=1)),
    "recall": ("table_read", lambda ledger, person, now: ledger.recall("r")),
    "forget": ("table_delete", lambda ledger, person, now: ledger.forget("r")),
}
EVERY_METHOD = pytest.mark.parametrize(
    ("operation", "call"), [pytest.param(*method, id=name) for name, method in METHODS.items()]
)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return store.ledger


@EVERY_METHOD
class TestFailures:
    """A failure never means that something is not in the ledger."""

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"status": 403}, id="403"),
            pytest.param({"status": 500}, id="500"),
            pytest.param({"status": 503, "headers": {"Retry-After": "86400"}}, id="throttled"),
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
                await call(store.ledger, person, now)

        store.faults.clear()
        await call(store.ledger, person, now)
        assert store.faults.count(operation) >= 1

    async def test_no_table(
        self, store: Store, person: Person, now: datetime, operation: str, call: Call
    ) -> None:
        """A missing table is not an empty ledger; only deleting from it is no error."""
        await store.entries.delete_table()

        if operation == "table_delete":
            await call(store.ledger, person, now)
        else:
            with pytest.raises(StorageUnavailableError):
                await call(store.ledger, person, now)

    async def test_once_more(
        self, store: Store, person: Person, now: datetime, operation: str, call: Call
    ) -> None:
        """A failure that passes is not noticed."""
        store.faults.fail_next(operation, status=503)

        await call(store.ledger, person, now)
        assert store.faults.count(operation) >= 2


class TestOrphans:
    """ACS identities that must be deleted."""

    async def test_round_trip(self, ledger: Ledger, person: Person, now: datetime) -> None:
        """An identity is there once, with the person whose it was and the reason, until removed."""
        for _ in range(2):
            await ledger.add_orphan(ACS_ID, person=person, reason="lost_lease", now=now)

        assert [Orphan(ACS_ID, person, "lost_lease", 0, None)] == await every(ledger.orphans())
        assert await ledger.is_orphan(ACS_ID)
        for _ in range(2):
            await ledger.remove_orphan(ACS_ID)
        assert [] == await every(ledger.orphans())
        assert not await ledger.is_orphan(ACS_ID)

    async def test_nobodys(self, ledger: Ledger, now: datetime) -> None:
        """Nobody need be known whose it was."""
        await ledger.add_orphan(ACS_ID, person=None, reason="test", now=now)

        assert [Orphan(ACS_ID, None, "test", 0, None)] == await every(ledger.orphans())

    async def test_postponed(
        self, store: Store, ledger: Ledger, person: Person, now: datetime
    ) -> None:
        """A failed deletion is counted, with the time of the next; what was known stays."""
        await ledger.add_orphan(ACS_ID, person=person, reason="idle", now=now)
        for failures in (1, 2):
            (orphan,) = await every(ledger.orphans())
            retry_on = now + timedelta(hours=failures)
            await ledger.postpone(orphan, retry_on=retry_on)
            wanted = Orphan(ACS_ID, person, "idle", failures, retry_on)
            assert [wanted] == await every(ledger.orphans())

        assert now == (await store.entries.get_entity("orphan", ACS_ID))["createdOn"]

    async def test_deleted_meanwhile(self, ledger: Ledger, person: Person, now: datetime) -> None:
        """What another run has deleted does not come back."""
        await ledger.postpone(Orphan(ACS_ID, person, "idle", 0, None), retry_on=now)

        assert [] == await every(ledger.orphans())

    async def test_more_than_a_page(self, store: Store, ledger: Ledger) -> None:
        """All of 1,100 are listed."""
        names = [f"{ACS_ID}-{number:04}" for number in range(1100)]
        for start in range(0, len(names), 100):
            await store.entries.submit_transaction(
                [
                    ("upsert", {"PartitionKey": "orphan", "RowKey": name})
                    for name in names[start : start + 100]
                ]
            )

        assert names == [orphan.acs_id for orphan in await every(ledger.orphans())]


class TestUnfinished:
    """People whose erasure or revocation is not complete."""

    async def test_round_trip(self, ledger: Ledger, person: Person) -> None:
        """A person is there once, with the time of the last entry, until removed."""
        await ledger.add_unfinished(OTHER)
        for _ in range(2):
            await ledger.add_unfinished(person)

        mine, other = sorted(await every(ledger.unfinished()), key=lambda e: e.person != person)
        assert (person, OTHER) == (mine.person, other.person)
        assert abs(mine.since - datetime.now(UTC)) < timedelta(seconds=5)
        for _ in range(2):
            await ledger.remove_unfinished(mine)
        assert [other] == await every(ledger.unfinished())

    async def test_begun_again(self, ledger: Ledger, person: Person) -> None:
        """An entry is not struck off if another revocation has begun since it was read."""
        await ledger.add_unfinished(person)
        (first,) = await every(ledger.unfinished())
        await ledger.add_unfinished(person)

        await ledger.remove_unfinished(first)

        (second,) = await every(ledger.unfinished())
        assert (person, True) == (second.person, second.since >= first.since)

    async def test_reply_lost(self, store: Store, ledger: Ledger, person: Person) -> None:
        """Striking off whose answer is lost is no error, and not repeated on a newer entry."""
        await ledger.add_unfinished(person)
        (entry,) = await every(ledger.unfinished())
        store.faults.fail_next("table_delete", status=503, after=True)

        await ledger.remove_unfinished(entry)

        assert [] == await every(ledger.unfinished())

    async def test_damaged(self, store: Store, ledger: Ledger, person: Person) -> None:
        """An entry that names nobody hides no other."""
        await store.entries.upsert_entity({"PartitionKey": "unfinished", "RowKey": "0"})
        await ledger.add_unfinished(person)

        assert [person] == [entry.person for entry in await every(ledger.unfinished())]


class TestIndex:
    """Whose each ACS identity is."""

    async def test_round_trip(self, ledger: Ledger, person: Person) -> None:
        """The last entry counts, until it is removed."""
        assert await ledger.owner(ACS_ID) is None
        for each in (OTHER, person):
            await ledger.index(ACS_ID, each)
            assert each == await ledger.owner(ACS_ID)
        assert await ledger.owner(f"{ACS_ID}-other") is None

        for _ in range(2):
            await ledger.forget_owner(ACS_ID, person)
        assert await ledger.owner(ACS_ID) is None

    async def test_owners(self, store: Store, ledger: Ledger, person: Person) -> None:
        """The whole index is listed, in all clouds, and nothing else of the ledger."""
        wanted = {
            ACS_ID: person,
            ACS_ID.replace("acs:", "gcch-acs:", 1): OTHER,
            ACS_ID.replace("acs:", "dod-acs:", 1): person,
        }
        for acs_id, owner in wanted.items():
            await ledger.index(acs_id, owner)
        await ledger.add_orphan(f"{ACS_ID}-orphan", person=person, reason="", now=datetime.now(UTC))
        await ledger.add_unfinished(person)
        await ledger.remember("prune", rows=1)
        await store.entries.upsert_entity({"PartitionKey": ACS_ID, "RowKey": "no person"})

        found = await every(ledger.owners())
        assert wanted == {acs_id: owner for acs_id, owner, *_ in found}
        assert all(written_on is not None for _, _, written_on, _ in found)

    async def test_owner_of_another(self, ledger: Ledger, person: Person) -> None:
        """An entry is removed for its own person alone."""
        await ledger.index(ACS_ID, OTHER)

        await ledger.forget_owner(ACS_ID, person)
        assert OTHER == await ledger.owner(ACS_ID)
        await ledger.forget_owner(ACS_ID, OTHER)
        assert await ledger.owner(ACS_ID) is None

    async def test_first_claim(self, ledger: Ledger, person: Person) -> None:
        """A free identity goes to the first who claims it."""
        assert await ledger.claim(ACS_ID, person, instead_of=None)
        assert not await ledger.claim(ACS_ID, OTHER, instead_of=None)
        assert person == await ledger.owner(ACS_ID)

    async def test_replaced(self, ledger: Ledger, person: Person) -> None:
        """An entry is replaced by whoever found it as it is."""
        await ledger.index(ACS_ID, OTHER)
        found = await ledger.ownership(ACS_ID)

        assert await ledger.claim(ACS_ID, person, instead_of=found)
        assert person == await ledger.owner(ACS_ID)

    async def test_claimed_again(self, ledger: Ledger, person: Person) -> None:
        """An entry that its own person has written again is not replaced by who found it before."""
        await ledger.claim(ACS_ID, OTHER, instead_of=None)
        found = await ledger.ownership(ACS_ID)
        assert await ledger.claim(ACS_ID, OTHER, instead_of=found)

        assert not await ledger.claim(ACS_ID, person, instead_of=found)
        assert OTHER == await ledger.owner(ACS_ID)

    async def test_forgotten_meanwhile(self, ledger: Ledger, person: Person) -> None:
        """An entry that has been removed since it was found is not replaced."""
        await ledger.index(ACS_ID, OTHER)
        found = await ledger.ownership(ACS_ID)
        await ledger.forget_owner(ACS_ID, None)

        assert not await ledger.claim(ACS_ID, person, instead_of=found)
        assert await ledger.owner(ACS_ID) is None

    @pytest.mark.parametrize("left_over", [False, True], ids=["free", "left over"])
    async def test_many_claims(self, ledger: Ledger, left_over: bool) -> None:
        """Of ten who claim it at the same time, one gets it."""
        people = [Person(CONTOSO.tenant_id, f"{number}") for number in range(10)]
        if left_over:
            await ledger.index(ACS_ID, OTHER)
        found = await ledger.ownership(ACS_ID)

        claims = await asyncio.gather(
            *(ledger.claim(ACS_ID, each, instead_of=found) for each in people)
        )

        assert 1 == claims.count(True)
        assert people[claims.index(True)] == await ledger.owner(ACS_ID)

    @pytest.mark.parametrize("left_over", [False, True], ids=["free", "left over"])
    @pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}])
    async def test_reply_lost(
        self,
        store: Store,
        ledger: Ledger,
        person: Person,
        left_over: bool,
        fault: dict[str, Any],
    ) -> None:
        """A claim whose answer was lost is recognised."""
        if left_over:
            await ledger.index(ACS_ID, OTHER)
        found = await ledger.ownership(ACS_ID)
        store.faults.fail_next("table_update" if left_over else "table_insert", after=True, **fault)

        assert await ledger.claim(ACS_ID, person, instead_of=found)


class TestTake:
    """What is limited a day."""

    async def test_limit(self, ledger: Ledger) -> None:
        """The limit is for each name and each day."""
        today = [await ledger.take("a", day=DAY, limit=3) for _ in range(5)]

        assert [True, True, True, False, False] == today
        assert await ledger.take("b", day=DAY, limit=3)
        assert await ledger.take("a", day=DAY + timedelta(days=1), limit=3)

    @pytest.mark.parametrize("used", [0, 1])
    async def test_many(self, ledger: Ledger, used: int) -> None:
        """Of ten at the same time, no more succeed than the limit allows."""
        for _ in range(used):
            await ledger.take("a", day=DAY, limit=3)

        taken = await asyncio.gather(*(ledger.take("a", day=DAY, limit=3) for _ in range(10)))

        assert 1 <= taken.count(True) <= 3 - used

    @pytest.mark.parametrize("operation", ["table_insert", "table_update"])
    async def test_reply_lost(self, store: Store, ledger: Ledger, operation: str) -> None:
        """A use whose answer is lost is counted, and not made."""
        if operation == "table_update":
            await ledger.take("a", day=DAY, limit=2)
        store.faults.fail_next(operation, status=503, after=True)

        with suppress(StorageUnavailableError):
            assert not await ledger.take("a", day=DAY, limit=2)
        left = [await ledger.take("a", day=DAY, limit=2) for _ in range(2)]

        assert (operation == "table_insert") == left[0]
        assert not left[1]


class TestRuns:
    """What a timer remembers."""

    async def test_round_trip(self, ledger: Ledger, now: datetime) -> None:
        """Values are kept until they are replaced or forgotten."""
        assert {} == await ledger.recall("prune")
        await ledger.remember("prune", rows=5, position="{}", startedOn=now, idle=None)
        kept = await ledger.recall("prune")
        assert (5, "{}", now) == (kept["rows"], kept["position"], kept["startedOn"])
        assert "idle" not in kept

        await ledger.remember("prune", counted=True)
        kept = await ledger.recall("prune")
        assert (True, False) == (kept["counted"], "rows" in kept)

        for _ in range(2):
            await ledger.forget("prune")
        assert {} == await ledger.recall("prune")

"""`python -m infra.mappings restore`, with real tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from shared.mappings.endings import MARK_LIFETIME
from shared.mappings.identities import FOREIGN
from shared.mappings.kept_documents import KeptDocuments
from shared.mappings.table import State
from shared.retry_budget import RetryBudget
from tests.emulated import anybody, mapping_of
from tests.infra.mappings.conftest import acs_id, somebody, write

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from shared.mappings.identities import Identities
    from shared.mappings.table import IdentityMapping
    from tests.emulated import Store
    from tests.infra.mappings.conftest import Command, Finished


@dataclass(frozen=True, slots=True)
class Lost:
    """Tables with rows that are written into a file, and then lost."""

    command: Command
    store: Store
    path: Path
    now: datetime

    async def put(self, number: int, **changes: Any) -> IdentityMapping:
        """Put a row into the table, and into the index if it is active."""
        changes = {"acs_id": acs_id(number)} | changes
        mapping = mapping_of(somebody(number), self.now, **changes)
        await self.store.put(mapping)
        if mapping.state is State.ACTIVE:
            await self.store.ledger.index(mapping.acs_id, mapping.person)
        return mapping

    async def lose(self) -> None:
        """Write the file, then empty both tables."""
        finished = await self.command("export", self.path)
        assert 0 == finished.code
        for table in (self.store.rows, self.store.entries):
            async for entity in table.list_entities():
                await table.delete_entity(entity)

    async def restore(self, *options: str) -> Finished:
        """Restore the file."""
        return await self.command("restore", self.path, *options)

    async def read(self, number: int) -> IdentityMapping:
        """Return somebody's row."""
        return await self.store.mappings.read(somebody(number))


@pytest.fixture
async def lost(command: Command, store: Store, tmp_path: Path) -> Lost:
    """Tables of which a whole export is made."""
    return Lost(command, store, tmp_path / "backup.jsonl.gz", await store.mappings.server_time())


class TestEmpty:
    """Into tables that were made anew."""

    async def test_everything(self, lost: Lost) -> None:
        """Rows, marks and tombstones, orphans and the index are as they were."""
        seen, mark = lost.now - timedelta(days=3), lost.now - timedelta(hours=2)
        await lost.put(1, created_on=seen, last_used_on=seen, revoked_before=mark)
        await lost.put(2, state=State.DELETING, reason="idle", revoked_before=mark)
        await lost.put(3, state=State.ERASED, acs_id="", revoked_before=mark)
        await lost.put(4, state=State.CREATING, acs_id="")
        await lost.put(5, revoked_before=mark, revoke_again=True)
        await lost.store.ledger.add_orphan(
            acs_id(6), person=somebody(6), reason="erased", now=lost.now
        )
        await lost.lose()

        finished = await lost.restore()

        assert (0, {}) == (finished.code, finished.report)
        active = await lost.read(1)
        assert (State.ACTIVE, acs_id(1), seen, seen, mark) == (
            active.state,
            active.acs_id,
            active.created_on,
            active.last_used_on,
            active.revoked_before,
        )
        deleting = await lost.read(2)
        assert (State.DELETING, acs_id(2), "idle", mark) == (
            deleting.state,
            deleting.acs_id,
            deleting.reason,
            deleting.revoked_before,
        )
        erased = await lost.read(3)
        assert (State.ERASED, "", mark) == (erased.state, erased.acs_id, erased.revoked_before)
        assert State.ABSENT is (await lost.read(4)).state
        assert (await lost.read(5)).revoke_again
        assert {acs_id(6): "erased"} == await lost.store.orphans()
        assert {somebody(2), somebody(5)} == set(await lost.store.unfinished())
        owners = {owner: identity async for identity, owner, *_ in lost.store.ledger.owners()}
        assert {somebody(n): acs_id(n) for n in (1, 2, 5)} == owners

    async def test_signing_keys(self, lost: Lost) -> None:
        """Signing keys that processes kept for each other are in a backup, and not put back."""
        await lost.put(1)
        documents = KeptDocuments(lost.store.entries, RetryBudget())
        await documents.write("signing_keys_organizations", b"{}")
        await lost.lose()

        finished = await lost.restore()

        assert (0, {}) == (finished.code, finished.report)
        assert State.ACTIVE is (await lost.read(1)).state
        assert await documents.read("signing_keys_organizations") is None

    async def test_again(self, lost: Lost) -> None:
        """A second run changes nothing."""
        await lost.put(1, revoked_before=lost.now)
        await lost.put(2, state=State.DELETING)
        await lost.store.ledger.add_orphan(acs_id(3), person=None, reason="lost", now=lost.now)
        await lost.lose()
        await lost.restore()
        before = await lost.store.all_rows()

        finished = await lost.restore()

        assert 0 == finished.code
        assert ": 3 there already\n" in finished.out
        assert before == await lost.store.all_rows()

    async def test_dry_run(self, lost: Lost) -> None:
        """A dry run says what would become of each row, and changes nothing."""
        await lost.put(1)
        await lost.put(2, state=State.DELETING)
        await lost.put(3, state=State.ERASED, acs_id="", revoked_before=lost.now)
        await lost.store.ledger.add_orphan(acs_id(4), person=None, reason="lost", now=lost.now)
        await lost.lose()

        finished = await lost.restore("--dry-run")

        assert (0, {"would be restored"}) == (finished.code, set(finished.report.values()))
        assert 4 == len(finished.report)
        assert [] == await lost.store.all_rows()
        assert [] == [entity async for entity in lost.store.entries.list_entities()]

    async def test_one_person(self, lost: Lost) -> None:
        """If one person is named, nobody else is restored."""
        for number in (1, 2):
            await lost.put(number)
            await lost.store.ledger.add_orphan(
                acs_id(number + 10), person=somebody(number), reason="erased", now=lost.now
            )
        await lost.lose()

        finished = await lost.restore("--person", "/".join(somebody(2)))

        assert "2 restored" in finished.out
        assert [somebody(2).object_id] == [row["RowKey"] for row in await lost.store.all_rows()]
        assert {acs_id(12): "erased"} == await lost.store.orphans()

    async def test_unknown_person(self, lost: Lost) -> None:
        """A person who is not in the file, as after a mistyped id, is an error."""
        await lost.put(1)
        await lost.lose()

        finished = await lost.restore("--person", "/".join(somebody(2)))

        assert 2 == finished.code
        assert f"nothing about {'/'.join(somebody(2))}" in finished.err
        assert [] == await lost.store.all_rows()

    async def test_bad_rows(self, lost: Lost) -> None:
        """What belongs to two people, or cannot be read, is refused; the rest is restored."""
        await lost.put(1)
        await lost.put(2, acs_id=acs_id(1))
        await lost.put(3)
        await lost.put(4, acs_id=acs_id(5).replace("ac5ac5ac", "ac5ac5ad"))
        await lost.store.put(mapping_of(somebody(6), lost.now), schema=2)
        await lost.lose()

        finished = await lost.restore()

        assert 1 == finished.code
        assert {
            2: "the file gives this identity to more than one person",
            3: "the file gives this identity to more than one person",
            5: "the identity belongs to another ACS resource",
            6: "a row with another schema version",
        } == finished.report
        assert [acs_id(3)] == [row["acsId"] for row in await lost.store.all_rows()]

    @pytest.mark.parametrize(
        ("reason", "restored"),
        [
            pytest.param("unconfirmed", True, id="the row names it after all"),
            pytest.param("erased", False, id="it moved to the ledger while the backup was made"),
        ],
    )
    async def test_row_and_orphan(self, lost: Lost, reason: str, *, restored: bool) -> None:
        """An identity in both tables is given to its person, or deleted, but never both."""
        await lost.put(1)
        await lost.store.ledger.add_orphan(
            acs_id(1), person=somebody(1), reason=reason, now=lost.now
        )
        await lost.lose()

        finished = await lost.restore()

        state = (await lost.read(1)).state
        assert (State.ACTIVE if restored else State.ABSENT) is state
        assert ({} if restored else {acs_id(1): reason}) == await lost.store.orphans()
        assert (0 if restored else 1) == finished.code

    async def test_expired_marks(self, lost: Lost) -> None:
        """A mark that no Entra token is old enough for is not put back."""
        old = lost.now - MARK_LIFETIME - timedelta(minutes=1)
        await lost.put(1, state=State.ERASED, acs_id="", revoked_before=old)
        await lost.lose()

        finished = await lost.restore()

        assert "1 not needed any more" in finished.out
        assert [] == await lost.store.all_rows()

    async def test_foreign(self, lost: Lost) -> None:
        """A row whose identity was given up with its ACS resource is not restored."""
        foreign = acs_id(1).replace("ac5ac5ac", "ac5ac5ad")
        await lost.put(1, state=State.DELETING, reason=FOREIGN, acs_id=foreign)
        await lost.lose()

        finished = await lost.restore()

        assert 1 == finished.code
        assert [] == await lost.store.all_rows()

    async def test_log(self, lost: Lost, tmp_path: Path) -> None:
        """The results of a query of the log become rows that the broker can use."""
        tenant_id, object_id = somebody(1)
        row = {"TableName": "PrimaryResult", "tenant_id": tenant_id, "object_id": object_id}
        seen = {"acs_id": acs_id(1), "last_seen": "2026-11-24T10:11:12.3456789Z"}
        path = write(tmp_path / "log.json", [row | seen])

        finished = await lost.command("restore", path)

        assert (0, "1 restored" in finished.out) == (finished.code, True)
        assert (State.ACTIVE, acs_id(1)) == (
            (await lost.read(1)).state,
            (await lost.read(1)).acs_id,
        )

    async def test_lines(self, lost: Lost, tmp_path: Path) -> None:
        """An export of people is restored with its states and marks."""
        mark = lost.now - timedelta(hours=1)
        await lost.put(1, revoked_before=mark)
        await lost.put(2, state=State.DELETING, reason="erased")
        lines = Lost(lost.command, lost.store, tmp_path / "people.jsonl", lost.now)
        await lines.lose()

        finished = await lines.restore()

        assert 0 == finished.code
        restored = [await lost.read(number) for number in (1, 2)]
        assert [State.ACTIVE, State.DELETING] == [each.state for each in restored]
        assert [mark, None] == [each.revoked_before for each in restored]


class TestLive:
    """Into tables that are in use."""

    @pytest.fixture
    async def back(self, lost: Lost) -> Lost:
        """Three people are in the file: one came back since, one was erased, one did neither."""
        for number in (1, 2, 3):
            await lost.put(number)
        await lost.lose()
        await lost.put(1, acs_id=acs_id(11))
        await lost.put(2, state=State.ERASED, acs_id="", revoked_before=lost.now)
        return lost

    async def test_kept(self, back: Lost) -> None:
        """Whoever has a row keeps it, and the identity of the file is reported as left over."""
        finished = await back.restore()

        assert 1 == finished.code
        assert {
            2: f"the person has another identity: {acs_id(1)} is left over",
            3: f"the person was erased, or signed out everywhere, since: {acs_id(2)} is left over",
        } == finished.report
        assert acs_id(11) == (await back.read(1)).acs_id
        assert State.ERASED is (await back.read(2)).state
        assert acs_id(3) == (await back.read(3)).acs_id
        assert {} == await back.store.orphans()

    async def test_delete_superseded(self, back: Lost) -> None:
        """What is left over is put into the ledger if that is wanted, and not twice."""
        finished = await back.restore("--delete-superseded")

        assert all("is going to be deleted" in reason for reason in finished.report.values())
        assert {acs_id(1): "superseded", acs_id(2): "superseded"} == await back.store.orphans()
        again = await back.restore("--delete-superseded")
        assert all("the ledger has" in reason for reason in again.report.values())
        assert acs_id(11) == (await back.read(1)).acs_id

    async def test_delete_superseded_dry(self, back: Lost) -> None:
        """A dry run puts nothing into the ledger."""
        finished = await back.restore("--delete-superseded", "--dry-run")

        assert 3 == len(finished.report)
        assert {} == await back.store.orphans()

    async def test_somebody_elses(self, lost: Lost) -> None:
        """An identity that somebody else has by now is neither given nor deleted."""
        await lost.put(1)
        await lost.lose()
        await lost.put(2, acs_id=acs_id(1))
        await lost.put(1, acs_id=acs_id(11))

        finished = await lost.restore("--delete-superseded")

        assert {2: "the person has another identity"} == finished.report
        assert {} == await lost.store.orphans()

    @pytest.mark.parametrize(
        "live", ["active", "another", "creating", "deleting", "erased", "none"]
    )
    async def test_marks(self, lost: Lost, identities: Identities, live: str) -> None:
        """An Entra token from before a revocation is refused, whatever came since."""
        mark = lost.now - timedelta(hours=1)
        await lost.put(1, revoked_before=mark)
        await lost.lose()
        if live == "another":
            await identities.get_or_create(somebody(1), admit=anybody)
        elif live != "none":
            await lost.put(
                1,
                state=State(live),
                acs_id="" if live in {"creating", "erased"} else acs_id(1),
                revoked_before=lost.now - timedelta(hours=2) if live == "erased" else None,
            )

        await lost.restore()

        row = await lost.read(1)
        assert mark == row.revoked_before
        if live in {"creating", "none"}:
            assert (State.ACTIVE, acs_id(1)) == (row.state, row.acs_id)
        if live in {"active", "another"}:  # Tokens may have been issued since.
            assert row.revoke_again
            assert [somebody(1)] == await lost.store.unfinished()

    async def test_newer_mark(self, lost: Lost) -> None:
        """A mark never moves back."""
        await lost.put(1, revoked_before=lost.now - timedelta(hours=1))
        await lost.lose()
        await lost.put(1, revoked_before=lost.now)

        finished = await lost.restore()

        assert "1 there already" in finished.out
        assert lost.now == (await lost.read(1)).revoked_before

    @pytest.mark.parametrize(
        ("live", "row_is", "orphans"),
        [
            pytest.param({"acs_id": acs_id(11)}, acs_id(11), {acs_id(1): "idle"}, id="another"),
            pytest.param({}, acs_id(1), {}, id="in use"),
        ],
    )
    async def test_deleting(
        self, lost: Lost, live: dict[str, Any], row_is: str, orphans: dict[str, str]
    ) -> None:
        """What was being deleted goes on being deleted, unless a row names it as active."""
        await lost.put(1, state=State.DELETING, reason="idle")
        await lost.lose()
        await lost.put(1, **live)

        finished = await lost.restore()

        assert (1 if not orphans else 0) == finished.code
        assert row_is == (await lost.read(1)).acs_id
        assert orphans == await lost.store.orphans()

    async def test_ledger_lost(self, lost: Lost) -> None:
        """If only the ledger was lost, the index comes back."""
        await lost.put(1)
        await lost.lose()
        await lost.store.put(mapping_of(somebody(1), lost.now, acs_id=acs_id(1)))

        finished = await lost.restore()

        assert "1 there already" in finished.out
        assert somebody(1) == await lost.store.ledger.owner(acs_id(1))

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.acs.emulator import Identity
from local.entra.directory import CONTOSO, FABRIKAM
from shared import audit
from shared.directory import Directory, row_json
from shared.entra.access_tokens import Administrator
from shared.errors import (
    AdminRequiredError,
    BusyError,
    ConflictError,
    InvalidRequestError,
    StorageUnavailableError,
    UpstreamUnavailableError,
    UserNotFoundError,
)
from shared.identifiers import Person
from shared.mappings.adoption import Adoption
from shared.mappings.endings import ANNOUNCED_FOR, Endings
from shared.mappings.identities import SETTLED_AFTER, Identities
from shared.mappings.table import State, UnreadableRow
from shared.requests import DEFAULT_LIMIT, Continuation, UsersQuery
from shared.settings import AcsSettings
from tests.emulated import ACS_ID, anybody, mapping_of, until

if TYPE_CHECKING:
    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity
    from shared.sweep import Sweeper
    from tests.emulated import Clock, Store

HOUR = timedelta(hours=1)
SETTINGS = AcsSettings(
    endpoint="", access_key=None, scopes=("chat",), lifetime=HOUR, max_lifetime=HOUR
)
ELSEWHERE = "ac5ac5ac-0000-4000-8000-000000000002"
FOREIGN_ID = f"8:acs:{ELSEWHERE}_00000005-0000-0000-0000-000000000000"


def administrator_of(
    tenant_id: str, *, is_operator: bool = False, may_adopt: bool = True
) -> Administrator:
    person = Person(tenant_id, str(uuid.uuid4()))
    return Administrator(person, None, 0, is_operator, may_adopt)


CONTOSOS, FABRIKAMS = administrator_of(CONTOSO.tenant_id), administrator_of(FABRIKAM.tenant_id)
OPERATOR = administrator_of(FABRIKAM.tenant_id, is_operator=True)


def asking(**changes: Any) -> UsersQuery:
    """Return a query as a request without parameters is read, with changes."""
    usual: dict[str, Any] = {
        "tenant_id": "",
        "state": None,
        "acs_id": "",
        "start": None,
        "limit": DEFAULT_LIMIT,
    }
    return UsersQuery(**usual | changes)


def people_of(tenant_id: str, count: int) -> list[Person]:
    """Return people in as many partitions, in the order of the table."""
    return [Person(tenant_id, f"{number:02x}{str(uuid.uuid4())[2:]}") for number in range(count)]


def directory_of(acs: AcsIdentity, store: Store) -> Directory:
    """Put a process's directory together."""
    identities = Identities(
        acs=acs, mappings=store.mappings, ledger=store.ledger, poll_seconds=0.02
    )
    return Directory(
        settings=SETTINGS,
        acs=acs,
        mappings=store.mappings,
        ledger=store.ledger,
        identities=identities,
        endings=Endings(
            acs=acs, mappings=store.mappings, ledger=store.ledger, identities=identities
        ),
        adoption=Adoption(acs=acs, mappings=store.mappings, ledger=store.ledger),
    )


@pytest.fixture
def directory(acs_identity: AcsIdentity, store: Store) -> Directory:
    return directory_of(acs_identity, store)


@pytest.fixture
def existing(acs: AcsEmulator) -> str:
    """An identity that was made without the broker."""
    acs.identities[ACS_ID] = Identity(ACS_ID)
    return ACS_ID


class TestOwnTenantAlone:
    """An administrator sees and touches one tenant."""

    @pytest.mark.parametrize("operation", ["read", "erase", "revoke", "adopt", "renew"])
    async def test_another_tenant(
        self,
        directory: Directory,
        identities: Identities,
        store: Store,
        acs: AcsEmulator,
        person: Person,
        operation: str,
    ) -> None:
        """Nothing of another tenant is read or changed, and the audit line names whom it was."""
        await identities.get_or_create(person, admit=anybody)
        before, counts = await store.row(person), acs.faults.count("create")
        more = [ACS_ID] if operation == "adopt" else []

        with audit.decision() as noted, pytest.raises(AdminRequiredError):
            await getattr(directory, operation)(FABRIKAMS, person, *more)

        assert before == await store.row(person)
        assert [] == await store.unfinished()
        assert counts == acs.faults.count("create")
        assert tuple(person) == (noted["target_tenant_id"], noted["target_object_id"])

    async def test_list(self, directory: Directory, store: Store, clock: Clock) -> None:
        """A list is of the own tenant; another one's is refused."""
        for tenant in (CONTOSO, FABRIKAM):
            await store.put_all(
                [mapping_of(each, clock.now) for each in people_of(tenant.tenant_id, 2)]
            )

        listing = await directory.find(CONTOSOS, asking())

        assert [CONTOSO.tenant_id] * 2 == [user["tenantId"] for user in listing.users]
        with pytest.raises(AdminRequiredError):
            await directory.find(CONTOSOS, asking(tenant_id=FABRIKAM.tenant_id))

    async def test_neighbour_in_the_table(
        self, directory: Directory, store: Store, clock: Clock
    ) -> None:
        """A tenant whose id is next to the own one in the table is another tenant."""
        own = CONTOSO.tenant_id
        neighbours = [f"{own[:-2]}0f", f"{own[:-1]}1"]
        for tenant_id in [own, *neighbours]:
            await store.put_all([mapping_of(each, clock.now) for each in people_of(tenant_id, 2)])

        listing = await directory.find(CONTOSOS, asking())

        assert {own} == {user["tenantId"] for user in listing.users}

    async def test_continuation_of_another_tenant(
        self, directory: Directory, store: Store, clock: Clock
    ) -> None:
        """A made-up continuation token selects nothing of another tenant."""
        theirs = people_of(FABRIKAM.tenant_id, 3)
        await store.put_all([mapping_of(each, clock.now) for each in theirs])
        page = await directory.find(FABRIKAMS, asking(limit=1))
        assert page.following is not None

        forged = replace(page.following, tenant_id=CONTOSO.tenant_id)
        listing = await directory.find(CONTOSOS, asking(limit=1, start=forged))

        assert [] == listing.users
        with pytest.raises(InvalidRequestError):
            await directory.find(CONTOSOS, asking(limit=1, start=page.following))

    @pytest.mark.parametrize(
        ("status", "error"), [(400, InvalidRequestError), (403, StorageUnavailableError)]
    )
    async def test_position_refused(
        self, directory: Directory, store: Store, clock: Clock, status: int, error: type[Exception]
    ) -> None:
        """A position that Table Storage does not take is the caller's fault, all else is not."""
        ours = people_of(CONTOSO.tenant_id, 3)
        await store.put_all([mapping_of(each, clock.now) for each in ours])
        page = await directory.find(CONTOSOS, asking(limit=1))
        store.faults.fail_next("table_query", status=status)

        with pytest.raises(error):
            await directory.find(CONTOSOS, asking(limit=1, start=page.following))

    async def test_look_up(
        self, directory: Directory, identities: Identities, person: Person
    ) -> None:
        """Somebody of another tenant is not found, as if there were nobody."""
        acs_id = (await identities.get_or_create(person, admit=anybody)).acs_id

        assert [] == (await directory.find(FABRIKAMS, asking(acs_id=acs_id))).users
        query = asking(acs_id=acs_id, tenant_id=FABRIKAM.tenant_id)
        assert [] == (await directory.find(OPERATOR, query)).users

    async def test_operator(
        self, directory: Directory, identities: Identities, person: Person
    ) -> None:
        """The operator's administrators may do everything everywhere."""
        acs_id = (await identities.get_or_create(person, admit=anybody)).acs_id

        (found,) = (await directory.find(OPERATOR, asking(acs_id=acs_id))).users
        (listed,) = (await directory.find(OPERATOR, asking(tenant_id=CONTOSO.tenant_id))).users

        assert found == listed == await directory.read(OPERATOR, person)
        assert await directory.revoke(OPERATOR, person)
        assert await directory.erase(OPERATOR, person)


class TestFind:
    """Lists and look-ups."""

    @pytest.mark.parametrize("limit", [1, 3, 7, 8])
    async def test_pages(
        self, directory: Directory, store: Store, clock: Clock, limit: int
    ) -> None:
        """Everybody is listed once, whatever the size of a page."""
        people = people_of(CONTOSO.tenant_id, 7)
        await store.put_all([mapping_of(each, clock.now) for each in people])

        listed: list[object] = []
        start: Continuation | None = None
        for _ in range(8):
            listing = await directory.find(CONTOSOS, asking(limit=limit, start=start))
            assert len(listing.users) <= limit
            listed += [user["objectId"] for user in listing.users]
            if listing.following is None:
                break
            start = Continuation.parse(str(listing.following))  # As a caller passes it on.

        assert [each.object_id for each in people] == listed

    @pytest.mark.parametrize("state", ["creating", "active", "deleting", "erased", "broken"])
    async def test_state(
        self, directory: Directory, store: Store, clock: Clock, state: str
    ) -> None:
        """Only people in the state asked for are listed; all of them are without it."""
        stored = [State.CREATING, State.ACTIVE, State.DELETING, State.ERASED]
        people = people_of(CONTOSO.tenant_id, 5)
        for each, now_in in zip(people, stored, strict=False):
            acs_id = ACS_ID if now_in in {State.ACTIVE, State.DELETING} else ""
            await store.put(mapping_of(each, clock.now, state=now_in, acs_id=acs_id))
        await store.put(mapping_of(people[4], clock.now), schema=2)

        listing = await directory.find(CONTOSOS, asking(state=state))
        everybody = await directory.find(CONTOSOS, asking())

        assert [state] == [user["state"] for user in listing.users]
        assert [*stored, "broken"] == [user["state"] for user in everybody.users]

    async def test_rare_rows(self, directory: Directory, store: Store, clock: Clock) -> None:
        """Several pages are looked through for a row that is rare; then the caller goes on."""
        people = people_of(CONTOSO.tenant_id, 10)
        await store.put_all([mapping_of(each, clock.now) for each in people])
        await store.put(mapping_of(people[8], clock.now), acsId="damaged")

        first = await directory.find(CONTOSOS, asking(state="broken", limit=1))
        second = await directory.find(
            CONTOSOS, asking(state="broken", limit=1, start=first.following)
        )

        assert [] == first.users
        assert first.following is not None
        assert [people[8].object_id] == [user["objectId"] for user in second.users]
        assert 9 == store.faults.count("table_query")

    @pytest.mark.parametrize(
        "changes", [{"state": "erased"}, {"tenant_id": FABRIKAM.tenant_id}], ids=str
    )
    async def test_continuation_of_another_query(
        self, directory: Directory, store: Store, clock: Clock, changes: dict[str, Any]
    ) -> None:
        """A continuation token belongs to its query: another would leave people out."""
        people = people_of(CONTOSO.tenant_id, 2)
        await store.put_all([mapping_of(each, clock.now) for each in people])
        query = asking(tenant_id=CONTOSO.tenant_id, limit=1)
        listing = await directory.find(OPERATOR, query)

        with pytest.raises(InvalidRequestError):
            await directory.find(OPERATOR, replace(query, start=listing.following, **changes))

    async def test_nobody(self, directory: Directory) -> None:
        """An empty tenant is an empty list."""
        listing = await directory.find(CONTOSOS, asking())

        assert ([], None) == (listing.users, listing.following)

    async def test_table_fails(self, directory: Directory, store: Store) -> None:
        """A failure is not an empty list."""
        store.faults.fail_next("table_query", status=403)

        with pytest.raises(StorageUnavailableError):
            await directory.find(CONTOSOS, asking())

    async def test_noted(self, directory: Directory) -> None:
        """The audit line says what was asked for."""
        with audit.decision() as listing:
            await directory.find(CONTOSOS, asking())
        with audit.decision() as looking:
            await directory.find(CONTOSOS, asking(acs_id=ACS_ID))

        assert CONTOSO.tenant_id == listing["target_tenant_id"]
        assert ACS_ID == looking["acs_id"]


class TestLookUp:
    """Whose an ACS identity is."""

    async def test_found(
        self, directory: Directory, identities: Identities, store: Store, person: Person
    ) -> None:
        """One read of the index and one of the row; the table is not searched."""
        acs_id = (await identities.get_or_create(person, admit=anybody)).acs_id
        store.faults.clear()

        (found,) = (await directory.find(CONTOSOS, asking(acs_id=acs_id))).users

        assert tuple(person) == (found["tenantId"], found["objectId"])
        assert (2, 0) == (store.faults.count("table_read"), store.faults.count("table_query"))

    async def test_index_is_wrong(
        self, directory: Directory, store: Store, person: Person, clock: Clock
    ) -> None:
        """The row decides: an entry that was left over finds nobody."""
        await store.put(mapping_of(person, clock.now, acs_id=f"{ACS_ID[:-1]}7"))
        await store.ledger.index(ACS_ID, person)

        assert [] == (await directory.find(CONTOSOS, asking(acs_id=ACS_ID))).users

    async def test_after_erasure(
        self, directory: Directory, identities: Identities, person: Person
    ) -> None:
        """An identity that was erased is nobody's."""
        acs_id = (await identities.get_or_create(person, admit=anybody)).acs_id
        await directory.erase(CONTOSOS, person)

        assert [] == (await directory.find(CONTOSOS, asking(acs_id=acs_id))).users

    async def test_index_was_not_written(
        self,
        directory: Directory,
        identities: Identities,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """After a crash before the index was written, the next day's first use makes up for it."""
        acs_id = (await identities.get_or_create(person, admit=anybody)).acs_id
        await store.ledger.forget_owner(acs_id, person)
        assert [] == (await directory.find(CONTOSOS, asking(acs_id=acs_id))).users

        clock.advance(days=1, seconds=1)
        await identities.get_or_create(person, admit=anybody)

        assert 1 == len((await directory.find(CONTOSOS, asking(acs_id=acs_id))).users)


class TestRead:
    """What is stored about a person."""

    async def test_active(
        self, directory: Directory, identities: Identities, person: Person
    ) -> None:
        """Dates have seconds and a zone; members without a value are left out."""
        acs_id = (await identities.get_or_create(person, admit=anybody)).acs_id

        shown = await directory.read(CONTOSOS, person)

        assert {
            "tenantId": person.tenant_id,
            "objectId": person.object_id,
            "state": "active",
            "generation": 1,
            "user": {"communicationUserId": acs_id, "id": acs_id},
        } == {name: value for name, value in shown.items() if not name.endswith("On")}
        assert {"createdOn", "lastUsedOn"} == {name for name in shown if name.endswith("On")}
        assert str(shown["createdOn"]).endswith("+00:00")
        assert json.dumps(shown)

    def test_everything(self, person: Person, clock: Clock) -> None:
        """Each column that an operator needs is shown."""
        mapping = mapping_of(
            person,
            clock.now,
            state=State.DELETING,
            reason="idle",
            failures=3,
            gone_on=clock.now,
            revoked_before=clock.now,
        )

        shown = row_json(mapping)

        assert ("deleting", "idle", 3) == (
            shown["state"],
            shown["deletedBecause"],
            shown["failures"],
        )
        now = clock.now.isoformat(timespec="seconds")
        assert (now, now) == (shown["goneOn"], shown["revokedBefore"])

    def test_broken(self, person: Person) -> None:
        """A row that cannot be read is shown with what is wrong with it."""
        assert {
            "tenantId": person.tenant_id,
            "objectId": person.object_id,
            "state": "broken",
            "problem": "why",
        } == row_json(UnreadableRow(person, "why"))

    async def test_nobody(self, directory: Directory, person: Person) -> None:
        """Nothing is stored about somebody who was never here."""
        with pytest.raises(UserNotFoundError):
            await directory.read(CONTOSOS, person)


class TestEnd:
    """Revocation and erasure of somebody else."""

    async def test_revoke(
        self,
        directory: Directory,
        identities: Identities,
        acs_identity: AcsIdentity,
        acs: AcsEmulator,
        sweeper: Sweeper,
        store: Store,
        person: Person,
        clock: Clock,
    ) -> None:
        """The person's tokens are dead; an administrator may do it again at any time."""
        mapping = await identities.get_or_create(person, admit=anybody)
        issued = await acs_identity.issue(
            mapping.acs_id, scopes=["chat"], lifetime=HOUR, now=clock.now, person=person
        )

        assert await directory.revoke(CONTOSOS, person)
        first = (await directory.read(CONTOSOS, person))["revokedBefore"]
        clock.advance(seconds=SETTLED_AFTER.total_seconds() + 10)
        assert await directory.revoke(CONTOSOS, person)
        second = (await directory.read(CONTOSOS, person))["revokedBefore"]
        clock.advance(seconds=(SETTLED_AFTER + ANNOUNCED_FOR).total_seconds() + 10)
        await sweeper.run()

        assert not acs.token_is_valid(issued.token)
        assert str(first) < str(second)
        assert [] == await store.unfinished()

    async def test_erase(
        self, directory: Directory, identities: Identities, acs: AcsEmulator, person: Person
    ) -> None:
        """The identity is gone, and what is left says when, and has no id."""
        await identities.get_or_create(person, admit=anybody)

        assert await directory.erase(CONTOSOS, person)
        assert await directory.erase(CONTOSOS, person)

        assert {} == acs.identities
        shown = await directory.read(CONTOSOS, person)
        assert "erased" == shown["state"]
        assert "revokedBefore" in shown
        assert "user" not in shown

    async def test_erase_again(
        self, directory: Directory, identities: Identities, acs: AcsEmulator, person: Person
    ) -> None:
        """Whatever the person has got since the last erasure, an administrator erases it."""
        for _ in range(2):
            await identities.get_or_create(person, admit=anybody)
            assert await directory.erase(CONTOSOS, person)
        assert 2 == len(acs.created)
        assert {} == acs.identities

    @pytest.mark.parametrize("operation", ["erase", "revoke"])
    async def test_nobody(self, directory: Directory, person: Person, operation: str) -> None:
        """Somebody who was never here is answered the same, twice."""
        for _ in range(2):
            assert await getattr(directory, operation)(CONTOSOS, person)

    async def test_damaged_row(
        self, directory: Directory, store: Store, person: Person, clock: Clock
    ) -> None:
        """A row that cannot be read is not overwritten."""
        await store.put(mapping_of(person, clock.now), schema=2)
        before = await store.row(person)

        for operation in (directory.erase, directory.revoke, directory.read):
            with pytest.raises(StorageUnavailableError):
                await operation(CONTOSOS, person)
        assert before == await store.row(person)


class TestAdopt:
    """Bringing an identity along."""

    async def test_new(
        self, directory: Directory, identities: Identities, person: Person, existing: str
    ) -> None:
        """The person has it from now on; doing it again changes nothing."""
        assert await directory.adopt(CONTOSOS, person, existing)
        assert not await directory.adopt(CONTOSOS, person, existing)

        assert existing == (await identities.get_or_create(person, admit=anybody)).acs_id
        (found,) = (await directory.find(CONTOSOS, asking(acs_id=existing))).users
        assert person.object_id == found["objectId"]

    async def test_for_the_operator(
        self, directory: Directory, acs: AcsEmulator, store: Store, person: Person, existing: str
    ) -> None:
        """Where that is for the operator, a tenant's administrator does not get an identity."""
        tenants = administrator_of(CONTOSO.tenant_id, may_adopt=False)

        with pytest.raises(AdminRequiredError):
            await directory.adopt(tenants, person, existing)

        assert await store.row(person) is None
        assert await store.ledger.owner(existing) is None
        assert 0 == acs.faults.count("issue")

    async def test_keeps_mark(
        self, directory: Directory, store: Store, person: Person, existing: str
    ) -> None:
        """A mark of a revocation outlives the adoption."""
        await directory.revoke(CONTOSOS, person)
        before = await store.row(person)
        await directory.adopt(CONTOSOS, person, existing)

        after = await store.row(person)
        assert before is not None
        assert after is not None
        assert before["revokedBefore"] == after["revokedBefore"]

    async def test_conflicts(
        self,
        directory: Directory,
        identities: Identities,
        store: Store,
        acs: AcsEmulator,
        existing: str,
        clock: Clock,
    ) -> None:
        """An identity that is not free, and a person who has one already."""
        somebody, nobody, owner = people_of(CONTOSO.tenant_id, 3)
        await identities.get_or_create(somebody, admit=anybody)
        await directory.adopt(CONTOSOS, owner, existing)
        awaiting_deletion, unknown = (f"{ACS_ID[:-1]}{digit}" for digit in "89")
        acs.identities[awaiting_deletion] = Identity(awaiting_deletion)
        await store.ledger.add_orphan(
            awaiting_deletion, person=None, reason="lost_lease", now=clock.now
        )

        for who, acs_id in [
            (somebody, existing),  # The person has another one.
            (nobody, existing),  # Somebody else has it.
            (nobody, FOREIGN_ID),
            (nobody, awaiting_deletion),
            (nobody, unknown),
        ]:
            with pytest.raises(ConflictError):
                await directory.adopt(CONTOSOS, who, acs_id)
        assert await store.row(nobody) is None

    async def test_one_of_two(self, acs_identity: AcsIdentity, store: Store, existing: str) -> None:
        """Of two processes that give one identity to two people, one is refused."""
        people = people_of(CONTOSO.tenant_id, 2)
        for _ in range(3):
            outcomes = await asyncio.gather(
                *(
                    directory_of(acs_identity, store).adopt(CONTOSOS, each, existing)
                    for each in people
                ),
                return_exceptions=True,
            )
            assert all(isinstance(each, bool | ConflictError) for each in outcomes), outcomes
            owners = [row for row in await store.all_rows() if row.get("acsId") == existing]
            assert 1 == len(owners)


class TestRenew:
    """A new identity in place of one that ACS no longer knows."""

    async def test_gone(
        self, directory: Directory, identities: Identities, acs: AcsEmulator, person: Person
    ) -> None:
        """The person gets another one; the audit line has both."""
        old = (await identities.get_or_create(person, admit=anybody)).acs_id
        acs.identities.clear()

        with audit.decision() as noted:
            shown = await directory.renew(CONTOSOS, person)

        new = acs.created[-1]
        assert old != new
        assert {"communicationUserId": new, "id": new} == shown["user"]
        assert 2 == shown["generation"]
        assert (old, new) == (noted["old_acs_id"], noted["acs_id"])

    async def test_another_resource(
        self,
        directory: Directory,
        store: Store,
        acs: AcsEmulator,
        sweeper: Sweeper,
        person: Person,
        clock: Clock,
    ) -> None:
        """After a move to another resource, the old identity is replaced and never deleted."""
        await store.put(mapping_of(person, clock.now, acs_id=FOREIGN_ID))

        shown = await directory.renew(CONTOSOS, person)
        clock.advance(minutes=10)
        await sweeper.run()

        assert {"communicationUserId": acs.created[-1], "id": acs.created[-1]} == shown["user"]
        assert FOREIGN_ID not in acs.deleted
        assert {} == await store.orphans()

    async def test_known(
        self, directory: Directory, identities: Identities, store: Store, person: Person
    ) -> None:
        """An identity that ACS knows is not replaced."""
        await identities.get_or_create(person, admit=anybody)
        before = await store.row(person)

        with pytest.raises(ConflictError):
            await directory.renew(CONTOSOS, person)
        assert before == await store.row(person)

    async def test_acs_fails(
        self,
        directory: Directory,
        identities: Identities,
        store: Store,
        acs: AcsEmulator,
        person: Person,
    ) -> None:
        """If ACS cannot be asked, nothing is replaced."""
        await identities.get_or_create(person, admit=anybody)
        before = await store.row(person)
        acs.faults.fail_next("issue", status=503)

        with pytest.raises(UpstreamUnavailableError):
            await directory.renew(CONTOSOS, person)
        assert before == await store.row(person)

    @pytest.mark.parametrize("state", [State.CREATING, State.DELETING, State.ERASED])
    async def test_without_an_identity(
        self, directory: Directory, store: Store, person: Person, clock: Clock, state: State
    ) -> None:
        """There is nothing to renew."""
        with pytest.raises(UserNotFoundError):
            await directory.renew(CONTOSOS, person)
        await store.put(mapping_of(person, clock.now, state=state, acs_id=""))
        with pytest.raises(UserNotFoundError):
            await directory.renew(CONTOSOS, person)

    async def test_changed_meanwhile(
        self,
        directory: Directory,
        identities: Identities,
        store: Store,
        acs: AcsEmulator,
        person: Person,
        clock: Clock,
    ) -> None:
        """If the row changes while ACS is asked, the administrator is told to look again."""
        mapping = await identities.get_or_create(person, admit=anybody)
        acs.identities.clear()
        acs.faults.fail_next("issue", delay=0.5)
        renewing = asyncio.create_task(directory.renew(CONTOSOS, person))
        await until(lambda: acs.faults.count("issue") == 1)
        await store.put(replace(mapping, last_used_on=clock.now - timedelta(hours=1)))

        with pytest.raises(BusyError):
            await renewing
        row = await store.row(person)
        assert row is not None
        assert mapping.acs_id == row["acsId"]

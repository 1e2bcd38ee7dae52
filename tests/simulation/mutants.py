"""Defects planted into the service's own code: the simulation has to find every one of them.

Each is a subclass of one part, with one rule of the protocol left out.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from azure.data.tables import UpdateMode

from shared.broker import Broker
from shared.errors import BusyError, ConflictError
from shared.mappings import adoption, endings, identities
from shared.mappings.adoption import Adoption
from shared.mappings.endings import Endings
from shared.mappings.identities import Identities, Step, is_leased
from shared.mappings.ledger import Ledger
from shared.mappings.ownership import claim
from shared.mappings.table import IdentityMapping, IdentityMappings, State
from tests.simulation.network import Weather
from tests.simulation.schedules import BEGINNINGS, Options
from tests.simulation.world import Parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared.acs.tokens import AcsToken
    from shared.entra.access_tokens import Caller
    from shared.errors import BrokerError
    from shared.identifiers import Person
    from shared.mappings.identities import Admit
    from shared.mappings.ledger import Orphan, Unfinished
    from shared.retry_budget import RetryBudget


class _Careless:
    """A table client that leaves out what makes a write conditional."""

    def __init__(self, table: Any, without: str) -> None:
        self._table = table
        self._without = without

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def create_entity(self, entity: Any) -> Any:
        if self._without == "insert":
            return self._table.upsert_entity(entity, mode=UpdateMode.REPLACE)
        return self._table.create_entity(entity)

    def update_entity(self, entity: Any, **options: Any) -> Any:
        if self._without == "change":
            options |= {"etag": None, "match_condition": None}
        return self._table.update_entity(entity, **options)

    def delete_entity(self, *keys: Any, **options: Any) -> Any:
        if self._without == "remove":
            options |= {"etag": None, "match_condition": None}
        return self._table.delete_entity(*keys, **options)


class UpsertForInsert(IdentityMappings):
    """The intent is written over whatever there is."""

    def __init__(self, table: Any, budget: RetryBudget) -> None:
        super().__init__(_Careless(table, "insert"), budget)  # type: ignore[arg-type]


class ChangeWithoutIfMatch(IdentityMappings):
    """The last writer wins."""

    def __init__(self, table: Any, budget: RetryBudget) -> None:
        super().__init__(_Careless(table, "change"), budget)  # type: ignore[arg-type]


class RemoveWithoutIfMatch(IdentityMappings):
    """A row is removed though somebody has changed it."""

    def __init__(self, table: Any, budget: RetryBudget) -> None:
        super().__init__(_Careless(table, "remove"), budget)  # type: ignore[arg-type]


class DeleteBeforeClaim(Endings):
    """The identity is deleted before the row says so."""

    async def end(self, mapping: IdentityMapping, *, reason: str) -> bool:
        if mapping.acs_id:
            await self._acs.delete(mapping.acs_id)
        return await super().end(mapping, reason=reason)


class NoTouch(Identities):
    """A use is not recorded."""

    async def _advance(self, mapping: IdentityMapping, step: Step) -> IdentityMapping | None:
        return mapping if step is Step.TOUCH else await super()._advance(mapping, step)


class DeleteUnconfirmed(Identities):
    """What could not be finalised is deleted at once, though the row may name it."""

    async def _keep_unconfirmed(
        self, intent: IdentityMapping, acs_id: str, error: BrokerError
    ) -> None:
        del intent, error
        await self._acs.delete(acs_id)


class TokenWithoutRow(Identities):
    """An identity is used though the row could not be pointed to it."""

    async def _create(self, intent: IdentityMapping) -> IdentityMapping | None:
        made = await super()._create(intent)
        if made is None:
            acs_id = await self._acs.create()
            return IdentityMapping(
                person=intent.person,
                state=State.ACTIVE,
                created_on=intent.created_on,
                last_used_on=intent.last_used_on,
                acs_id=acs_id,
                read=intent.read,
            )
        return made


class ReplacedIsForgotten(Ledger):
    """The identity of a row that is being deleted is not kept in the ledger."""

    async def add_orphan(self, acs_id: str, **options: Any) -> None:
        if not options["reason"].startswith(("erased", "idle")):
            await super().add_orphan(acs_id, **options)


class OrphanWithoutLooking(Endings):
    """What is in the ledger is deleted, whatever the row says."""

    async def delete_orphan(self, orphan: Orphan) -> bool:
        await self._acs.delete(orphan.acs_id)
        await self._ledger.remove_orphan(orphan.acs_id)
        return True


class OrphanWhileCreating(Endings):
    """An orphan is deleted while a late write may still point the row to it."""

    async def _is_out_of_reach(self, mapping: IdentityMapping) -> bool:
        del mapping
        return True


class RevokeOnce(Endings):
    """Tokens that were on their way when ACS was told stay alive."""

    async def _mark(self, mapping: IdentityMapping) -> IdentityMapping | None:
        marked = await super()._mark(mapping)
        if marked is None or not marked.revoke_again:
            return marked
        await self._acs.revoke(marked.acs_id)
        marked = await self._mappings.read(mapping.person)
        await self._mappings.change(marked, revoke_again=False)
        return marked


class NoTombstone(Endings):
    """An erased row is removed with its mark."""

    async def _end_row(self, claimed: IdentityMapping) -> None:
        await self._mappings.remove(claimed)


class StruckOffAtOnce(Endings):
    """The sweeper strikes off what it has not done."""

    async def finish(self, entry: Unfinished) -> bool:
        del entry
        return True


class SharedIdentity(Adoption):
    """An identity is brought along without asking the index whose it is."""

    async def _claim(self, acs_id: str, person: Person) -> None:
        await self._ledger.index(acs_id, person)


class EarlyTokenUnchecked(Broker):
    """A token issued beside the reading of the row is handed out, whatever the row says."""

    async def _issue(
        self, caller: Caller, scopes: frozenset[str], lifetime: timedelta
    ) -> tuple[str, AcsToken]:
        known_id = self._known_ids.get(caller.person)
        if known_id is None:
            return await super()._issue(caller, scopes, lifetime)
        token = await self._issue_for(
            known_id, None, caller=caller, scopes=scopes, lifetime=lifetime
        )
        return known_id, token


class AnnouncedTooLate(Endings):
    """What has to be finished is written into the ledger after the row."""

    async def revoke(self, person: Person, *, admit: Admit) -> bool:
        ledger, self._ledger = self._ledger, NoAnnouncements(self._ledger._table)
        done = await super().revoke(person, admit=admit)
        self._ledger = ledger
        await ledger.add_unfinished(person)
        return done


class NoAnnouncements(Ledger):
    """A ledger that forgets what is going to be done."""

    async def add_unfinished(self, person: Person) -> None:
        del person


class AdmittedOnce(Identities):
    """Only the row that was read first is looked at for a mark."""

    async def get_or_create(self, person: Person, *, admit: Admit) -> IdentityMapping:
        admit(await self._mappings.read(person))
        return await super().get_or_create(person, admit=lambda _: None)


class OrphanAfterRow(Identities):
    """The row is changed before its old identity is in the ledger."""

    async def _advance(self, mapping: IdentityMapping, step: Step) -> IdentityMapping | None:
        if step is not Step.REPLACE or not mapping.acs_id:
            return await super()._advance(mapping, step)
        made = await super()._advance(replace(mapping, acs_id="", reason=""), step)
        await self._ledger.add_orphan(
            mapping.acs_id, person=mapping.person, reason=mapping.reason, now=mapping.now
        )
        return made


class OrphanTakenForFree(Adoption):
    """An identity is brought along though it is about to be deleted."""

    async def _claim(self, acs_id: str, person: Person) -> None:
        if not await claim(acs_id, person, mappings=self._mappings, ledger=self._ledger):
            raise ConflictError


def refuse_active_only(mapping: IdentityMapping, **_: bool) -> None:
    """Give an identity to anybody who has none, even to a person who was erased since."""
    if mapping.state is State.ACTIVE:
        raise ConflictError
    if mapping.state is not State.ABSENT and is_leased(mapping, mapping.now, timedelta(minutes=5)):
        raise BusyError


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted defect, and the schedules that bring it out soonest."""

    parts: Parts = field(default_factory=Parts)
    operations: tuple[str, ...] = ()
    beginnings: tuple[str, ...] = BEGINNINGS
    windows: tuple[float, ...] = (0.1, 1.0, 5.0, 30.0)
    weather: Weather | None = None
    constants: tuple[tuple[Any, str, object], ...] = ()  # Module, name, and the wrong value.

    @contextmanager
    def planted(self) -> Iterator[Options]:
        """Plant the defect while the context lasts, and yield the options for its schedules."""
        right = [getattr(module, name) for module, name, _ in self.constants]
        for module, name, wrong in self.constants:
            setattr(module, name, wrong)
        try:
            yield Options(
                operations=self.operations,
                beginnings=self.beginnings,
                windows=self.windows,
                weather=self.weather,
                parts=self.parts,
            )
        finally:
            for (module, name, _), value in zip(self.constants, right, strict=True):
                setattr(module, name, value)


NEW = ("new",)
MUTANTS = {
    "upsert for insert": Mutant(Parts(mappings=UpsertForInsert)),
    "change without If-Match": Mutant(Parts(mappings=ChangeWithoutIfMatch)),
    "remove without If-Match": Mutant(Parts(mappings=RemoveWithoutIfMatch), ("token", "prune")),
    "delete before claim": Mutant(Parts(endings=DeleteBeforeClaim)),
    "no touch": Mutant(Parts(identities=NoTouch)),
    "delete unconfirmed": Mutant(Parts(identities=DeleteUnconfirmed), ("token",), NEW),
    "token without row": Mutant(Parts(identities=TokenWithoutRow)),
    "replaced is forgotten": Mutant(Parts(ledger=ReplacedIsForgotten)),
    "orphan without looking": Mutant(Parts(endings=OrphanWithoutLooking), ("token", "sweep"), NEW),
    "orphan while creating": Mutant(
        Parts(endings=OrphanWhileCreating),
        ("token", "sweep"),
        NEW,
        (1.0,),
        Weather(slow_rate=0.5, slowest=45, slow_service="table"),
    ),
    "revoke once": Mutant(Parts(endings=RevokeOnce), ("token", "revoke"), ("known",)),
    "no tombstone": Mutant(Parts(endings=NoTombstone)),
    "struck off at once": Mutant(Parts(endings=StruckOffAtOnce)),
    "shared identity": Mutant(Parts(adoption=SharedIdentity), ("token", "adopt")),
    "early token unchecked": Mutant(Parts(broker=EarlyTokenUnchecked)),
    "settled at once": Mutant(
        constants=(
            (identities, "SETTLED_AFTER", timedelta()),
            (identities, "LONGEST_LEASE", timedelta(minutes=5)),
        ),
        operations=("token", "admin_revoke", "sweep"),
        beginnings=("known",),
        windows=(5.0,),
        weather=Weather(slow_rate=0.5, slowest=4, slow_service="acs"),
    ),
    "announced too late": Mutant(
        Parts(endings=AnnouncedTooLate), ("token", "revoke", "erase", "kill"), ("known",)
    ),
    "struck off too soon": Mutant(
        constants=((endings, "ANNOUNCED_FOR", -timedelta(hours=1)),),
        operations=("admin_revoke", "sweep"),
        beginnings=("known",),
        windows=(0.1,),
        weather=Weather(slow_rate=0.7, slowest=1, slow_service="table"),
    ),
    "mark without resolution": Mutant(
        constants=((endings, "TABLE_RESOLUTION", -timedelta(seconds=1)),),
        operations=("token", "admin_revoke"),
        beginnings=("known",),
    ),
    "admitted once": Mutant(Parts(identities=AdmittedOnce), ("token", "revoke", "erase")),
    "orphan after the row": Mutant(
        Parts(identities=OrphanAfterRow), ("token", "admin_erase", "kill"), ("known", "deleting")
    ),
    "erasure undone by a restore": Mutant(
        constants=((adoption, "_refuse_occupied", refuse_active_only),),
        operations=("token", "admin_erase", "restore"),
        beginnings=("known",),
    ),
    "orphan taken for free": Mutant(
        Parts(adoption=OrphanTakenForFree),
        ("token", "adopt", "sweep"),
        ("orphaned", "new"),
        (5.0,),
        Weather(slow_rate=0.5, slowest=3, slow_service="acs"),
    ),
}

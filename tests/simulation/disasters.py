"""A table is lost, and put back from a backup while people use the service.

The backup has what was there when the schedule began. Who is faster decides: a person who comes
first gets a new identity, and the one in the backup is deleted; otherwise they keep the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from infra.mappings.people import OrphanRow, Row
from infra.mappings.restoring import Restore
from infra.mappings.store import Store
from shared.identifiers import Person, resource_of
from shared.mappings.adoption import Adoption
from shared.mappings.ledger import Ledger
from shared.mappings.table import IdentityMappings, State
from tests.simulation.acs import RESOURCE
from tests.simulation.network import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.judge import Key, Properties
    from tests.simulation.world import World


@dataclass(slots=True)
class Backup:
    """What a backup holds, in the shape that `Restore` takes a file in."""

    people: list[Row]
    orphans: dict[str, OrphanRow]

    @property
    def total(self) -> int:
        return len(self.people) + len(self.orphans)

    def rows(self) -> Iterator[Row | OrphanRow]:
        yield from self.orphans.values()
        yield from self.people

    def problem_of(self, row: Row | OrphanRow) -> str | None:
        return "foreign" if row.acs_id and resource_of(row.acs_id) != RESOURCE else None


class _Resource:
    async def owns(self, acs_id: str) -> bool:
        return resource_of(acs_id) == RESOURCE


class _NoReport:
    def count(self, outcome: str, row: object) -> None:
        pass

    def refuse(self, row: object, reason: str) -> None:
        pass


def strike(world: World) -> None:
    """Back everything up, then lose a table, both, some rows or nothing."""
    world.backup = Backup(
        [_row(number, *item) for number, item in enumerate(world.rows.rows.items())],
        {
            key[1]: OrphanRow(0, key[1], None, str(entity.get("reason")))
            for key, entity in world.ledger.rows.items()
            if key[0] == "orphan"
        },
    )
    kind = world.rng.choice(("all", "all", "all", "rows", "ledger", "some", "nothing"))
    world.network.log(f"==== lost: {kind}")
    for table, kinds in ((world.rows, ("all", "rows", "some")), (world.ledger, ("all", "ledger"))):
        for key in list(table.rows) if kind in kinds else ():
            if kind != "some" or world.rng.random() < 0.5:
                table.drop(key)
    world.judge.forget(world.rows.rows)


def _row(number: int, key: Key, entity: Properties) -> Row:
    return Row(
        number=number,
        person=Person(key[0].partition("_")[0], key[1]),
        acs_id=entity.get("acsId", ""),
        state=State(entity["state"]),
        created_on=entity["createdOn"],
        last_used_on=entity["lastUsedOn"],
        revoked_before=entity.get("revokedBefore"),
        revoke_again=entity.get("revokeAgain", False),
        reason=entity.get("reason", ""),
    )


async def put_back(world: World) -> None:
    """Restore the backup, as an operator does from their own machine."""
    machine = Machine("operator1", world.network.loop, 0)
    rows, entries = (cast("Any", world.client(machine, t)) for t in (world.rows, world.ledger))
    mappings, ledger = IdentityMappings(rows), Ledger(entries)
    adoption = Adoption(acs=_Resource(), mappings=mappings, ledger=ledger)
    await Restore(
        cast("Any", world.backup),
        store=Store(mappings, ledger, adoption, rows, entries),
        report=cast("Any", _NoReport()),
        dry_run=False,
        delete_superseded=True,
    ).run()

"""The world of one schedule: tables, ACS, people, and processes that run the service's own code."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from shared.acs.identity import AcsIdentity
from shared.broker import Broker
from shared.directory import Directory
from shared.identifiers import Person
from shared.mappings.adoption import Adoption
from shared.mappings.endings import Endings
from shared.mappings.identities import Identities
from shared.mappings.ledger import Ledger
from shared.mappings.table import (
    IdentityMapping,
    IdentityMappings,
    State,
    entity_from_mapping,
    partition_key,
)
from shared.prune import Pruner
from shared.retry_budget import RetryBudget
from shared.settings import AcsSettings, PruneSettings
from shared.sweep import Sweeper
from tests.simulation import acs, table_storage
from tests.simulation.judge import IDLE, HandedOut, Judge, second_of
from tests.simulation.network import Machine, Network

if TYPE_CHECKING:
    from random import Random

    from tests.simulation.disasters import Backup
    from tests.simulation.network import Weather
    from tests.simulation.virtual_time import VirtualLoop

TENANT = "7e4a4700-0000-4000-8000-00000000000a"
OTHER_RESOURCE = "00000ac5-0000-4000-8000-000000000002"
LIFETIME = timedelta(hours=1)
ACS_SETTINGS = AcsSettings("https://acs.test", None, ("chat", "voip"), LIFETIME, 24 * LIFETIME)
PRUNE_SETTINGS = PruneSettings(idle=IDLE, dry_run=False, max_share=1.0, max_deletes=5000)


@dataclass(slots=True)
class Parts:
    """Which classes a process is made of: the service's own, or mutants of them."""

    mappings: type[IdentityMappings] = IdentityMappings
    ledger: type[Ledger] = Ledger
    acs: type[AcsIdentity] = AcsIdentity
    identities: type[Identities] = Identities
    endings: type[Endings] = Endings
    adoption: type[Adoption] = Adoption
    broker: type[Broker] = Broker


class Process:
    """One process of the service, put together as shared/services.py does it."""

    def __init__(self, name: str, world: World, offset: float, parts: Parts) -> None:
        loop = world.network.loop
        self.machine = machine = Machine(name, loop, offset)
        rows, entries = (cast("Any", world.client(machine, t)) for t in (world.rows, world.ledger))
        retries = RetryBudget()
        self.mappings = mappings = parts.mappings(rows, retries)
        self.ledger = ledger = parts.ledger(entries, retries)
        client = cast("Any", acs.Client(machine, world.network, world.acs))
        self.acs = identity = parts.acs(client=client)
        identities = parts.identities(acs=identity, mappings=mappings, ledger=ledger)
        endings = parts.endings(
            acs=identity, mappings=mappings, ledger=ledger, identities=identities
        )
        self.broker = parts.broker(
            settings=ACS_SETTINGS,
            validator=cast("Any", None),  # Callers are authenticated already.
            identities=identities,
            endings=endings,
            acs=identity,
            mappings=mappings,
            keys=cast("Any", None),
            clock=machine.clock,
            monotonic=loop.time,
        )
        self.directory = Directory(
            settings=ACS_SETTINGS,
            acs=identity,
            mappings=mappings,
            ledger=ledger,
            identities=identities,
            endings=endings,
            adoption=parts.adoption(acs=identity, mappings=mappings, ledger=ledger),
            clock=machine.clock,
        )
        self.pruner = Pruner(
            settings=PRUNE_SETTINGS,
            endings=endings,
            mappings=mappings,
            ledger=ledger,
            clock=machine.clock,
        )
        self.sweeper = Sweeper(endings=endings, mappings=mappings, ledger=ledger)


@dataclass(slots=True)
class Somebody:
    """A person, with the Entra tokens that their apps hold."""

    person: Person
    entra_tokens: list[int] = field(default_factory=list)  # When each was issued, Unix time.

    @property
    def key(self) -> tuple[str, str]:
        """The keys of their row."""
        return partition_key(self.person), self.person.object_id


class World:
    """Everything there is in one schedule."""

    def __init__(
        self, loop: VirtualLoop, rng: Random, weather: Weather, *, page_size: int, parts: Parts
    ) -> None:
        self.rng = rng
        self.network = Network(loop, rng, weather)
        self.judge = Judge(self.network)
        self.acs = self.judge.acs = acs.Server(self.network, self.judge.on_delete)
        self.rows = table_storage.Server(self.network, self.judge.on_row)
        self.ledger = table_storage.Server(self.network)
        self.judge.ledger = self.ledger.rows
        self.processes: list[Process] = []
        self.people: list[Somebody] = []
        self.backup: Backup | None = None
        self._page_size = page_size
        self._parts = parts
        self._started = 0

    def client(self, machine: Machine, server: table_storage.Server) -> table_storage.Client:
        """Return a machine's client of a table."""
        return table_storage.Client(machine, self.network, server, self._page_size)

    def start(self, offset: float, *, instead_of: Process | None = None) -> Process:
        """Start a process."""
        self._started += 1
        process = Process(f"p{self._started}", self, offset, self._parts)
        if instead_of is None:
            self.processes.append(process)
        else:
            self.processes[self.processes.index(instead_of)] = process
            name = instead_of.machine.name
            self.network.log(f"{process.machine.name}  started instead of {name}")
        return process

    def process(self) -> Process:
        """Return any process; one that is dead is started again."""
        chosen = self.processes[int(self.rng.random() * len(self.processes))]
        if chosen.machine.dead:
            offset = chosen.machine.offset.total_seconds()
            return self.start(offset, instead_of=chosen)
        return chosen

    def now(self) -> int:
        """Return the Unix time, as Entra puts it into a token."""
        return second_of(self.network.loop.now)

    def settle_in(self, state: State, *, used: timedelta, **columns: Any) -> Somebody:
        """Add a person whose row is in a state, with the identity that it names."""
        number = len(self.people)
        oid = f"{'abcd'[number]}{number}000000-0000-4000-8000-00000000000{number}"
        somebody = Somebody(Person(TENANT, oid), [self.now() - int(3000 * self.rng.random())])
        self.people.append(somebody)
        self.network.people += 1
        if state is State.ABSENT:
            return somebody
        now = self.network.now()
        acs_id = ""
        if state in {State.ACTIVE, State.DELETING}:
            identity = self.acs.add()
            acs_id = identity.acs_id
            given = HandedOut(
                *(somebody.person, acs_id, self.acs.give(identity, LIFETIME).token),
                somebody.entra_tokens[0] - int(used.total_seconds()),
                *((self.network.loop.now - used.total_seconds(),) * 2),
            )
            self.judge.on_token(given)
            self.put_owner(somebody.person, acs_id)
        mapping = IdentityMapping(
            person=somebody.person,
            state=State.ACTIVE if acs_id else state,
            created_on=now - used,
            last_used_on=now - used,
            acs_id=acs_id,
            attempt="before",
        )
        row = {
            name: value
            for name, value in (entity_from_mapping(mapping) | columns).items()
            if value is not None
        }
        self.rows.put(row)
        if state is State.DELETING:
            self.judge.erasing[somebody.key] = self.network.loop.now
            self.rows.put(row | {"state": state.value})
        return somebody

    def settle_elsewhere(self, somebody: Somebody) -> None:
        """Give a person's row an identity of another ACS resource, which ours does not know."""
        now = self.network.now()
        mapping = IdentityMapping(
            person=somebody.person,
            state=State.ACTIVE,
            created_on=now,
            last_used_on=now,
            acs_id=f"8:acs:{OTHER_RESOURCE}_{len(self.people):08d}",
            attempt="before",
        )
        row = entity_from_mapping(mapping)
        self.rows.put({name: value for name, value in row.items() if value is not None})
        self.put_owner(somebody.person, mapping.acs_id)

    def add_orphan(self, person: Person) -> None:
        """Put an identity into the ledger that was a person's before, and must be deleted."""
        acs_id = self.acs.add().acs_id
        self.put_owner(person, acs_id)
        self.ledger.put(
            {
                "PartitionKey": "orphan",
                "RowKey": acs_id,
                "reason": "erased_by_user",
                "createdOn": self.network.now(),
                "tenantId": person.tenant_id,
                "objectId": person.object_id,
            }
        )

    def put_owner(self, person: Person, acs_id: str) -> None:
        """Write an entry of the index."""
        self.ledger.put(
            {
                "PartitionKey": acs_id,
                "RowKey": acs_id,
                "tenantId": person.tenant_id,
                "objectId": person.object_id,
            }
        )

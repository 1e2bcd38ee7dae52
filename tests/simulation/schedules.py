"""Random schedules: drawn from a seed, run with the network bad, then good, then judged."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shared.broker import IssuedToken
from shared.errors import BrokerError, IdentityGoneError, RevokedTokenError
from shared.mappings.table import LEASE, State
from tests.simulation.disasters import strike
from tests.simulation.network import OUTAGES, Outage, Weather
from tests.simulation.operations import (
    OPERATIONS,
    adopt,
    perform,
    prune,
    renew,
    restore,
    stand_still,
    sweep,
    token,
)
from tests.simulation.virtual_time import VirtualLoop
from tests.simulation.world import Parts, World

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tests.simulation.operations import Operation
    from tests.simulation.world import Somebody

CLOCKS = {
    "right": (0.0,),
    "seconds": (0.0, 1.0, -1.0, 30.0, -30.0),
    "minutes": (0.0, 120.0, -120.0, 288.0, -288.0),
}
PATIENCE = 400  # seconds in which everybody has to be served once the network is good
ZOMBIES = 160  # seconds after which no call wanders about any more
BEGINNINGS = (
    *("new", "new", "known", "known", "known", "stale", "idle", "creating", "deleting"),
    *("erased", "revoked", "unindexed", "foreign", "orphaned"),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
TOKEN, SWEEP, PRUNE, RENEW, RESTORE = (
    BY_NAME[each.__name__] for each in (token, sweep, prune, renew, restore)
)


@dataclass(slots=True)
class Options:
    """What schedules are drawn from."""

    processes: int = 0  # 0: one to four.
    clocks: str = "seconds"
    operations: Collection[str] = ()  # Empty: all.
    beginnings: Sequence[str] = BEGINNINGS  # What people may have when it begins.
    windows: Sequence[float] = (0.1, 1.0, 5.0, 30.0)  # Seconds in which requests come.
    weather: Weather | None = None  # None: any.
    parts: Parts = field(default_factory=Parts)


@dataclass(slots=True)
class Result:
    """What came of one schedule."""

    seed: int
    violations: list[str]
    calls: int
    faults: int
    unreferenced: int
    collateral: int
    served_after: float  # seconds: the slowest person
    answers: Counter[str]
    trace: list[str] | None


def run_schedule(seed: int, options: Options, *, trace: bool = False) -> Result:
    """Run one schedule; the same seed and options give the same course."""
    random.seed(seed)  # The service's own jitter.
    rng = random.Random(seed)  # noqa: S311 - chance, not secrets
    loop = VirtualLoop()
    loop.now = 1000.0
    run = _Run(loop, rng, options, trace=trace)
    loop.run(run.main())
    network = run.world.network
    return Result(
        seed=seed,
        violations=run.world.judge.violations,
        calls=network.calls,
        faults=network.faults,
        unreferenced=run.world.judge.unreferenced,
        collateral=run.world.judge.collateral,
        served_after=run.served_after,
        answers=run.answers,
        trace=network.trace,
    )


class _Run:
    def __init__(
        self, loop: VirtualLoop, rng: random.Random, options: Options, *, trace: bool
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.answers: Counter[str] = Counter()
        self.served_after = 0.0
        self._enabled = self._draw_operations(options.operations)
        self._window = rng.choice(options.windows)
        weather = options.weather or self._draw_weather()
        self.world = World(
            *(loop, rng, weather), page_size=rng.choice((1, 2, 1000)), parts=options.parts
        )
        if trace:
            self.world.network.trace = []
        freezes = any(each.run is stand_still for each in self._enabled)
        self._is_fair = not (freezes or weather.fault_rate or weather.slow_rate or weather.outages)
        for _ in range(options.processes or rng.randint(1, 4)):
            self.world.start(rng.choice(CLOCKS[options.clocks]))
        names = {each.run for each in self._enabled}
        # What two of the operations are about would come up too seldom by chance.
        favoured = ["new"] * (adopt in names) + ["idle"] * (prune in names)
        for _ in range(rng.choice((2, 2, 3) if adopt in names else (1, 1, 1, 1, 2, 3))):
            is_favoured = favoured and rng.random() < 0.4
            self._settle_in(rng.choice(favoured if is_favoured else options.beginnings))

        if restore in names:
            strike(self.world)

    def _draw_operations(self, names: Collection[str]) -> list[Operation]:
        """Choose what a schedule is made of: a few kinds make for closer races than all."""
        possible = [
            each for each in OPERATIONS if (each.name in names if names else each.by_default)
        ]
        share = self.rng.choice((0.5, 0.9) if names else (0.15, 0.3, 0.6))
        chosen = [each for each in possible if self.rng.random() < share]
        return chosen if TOKEN in chosen else [TOKEN, *chosen]

    def _draw_weather(self) -> Weather:
        rng = self.rng
        weather = Weather(
            fault_rate=rng.choice((0, 0, 0.02, 0.06, 0.15)),
            slow_rate=rng.choice((0, 0, 0.1, 0.4, 0.7)),
            slowest=rng.choice((0.3, 2, 4, 8, 45)),
            slow_service=rng.choice(("table", "acs", "both")),
        )
        if rng.random() < 0.25:
            weather.outages.append(
                Outage(
                    rng.randint(1, 30),
                    rng.choice((0.5, 3, 8, 30)),
                    rng.choice(("table", "table", "acs", "both")),
                    rng.choice(OUTAGES),
                    odd_machines=rng.random() < 0.5,
                )
            )
        return weather

    def _settle_in(self, beginning: str) -> None:
        """Add a person, with what is stored about them when the schedule begins."""
        rng, world = self.rng, self.world
        now = world.network.now()
        settle = world.settle_in
        hour, day = timedelta(hours=1), timedelta(days=1)
        seconds = rng.choice((3, 19, 3600))
        is_leased = seconds == 3
        match beginning:
            case "new":
                settle(State.ABSENT, used=hour)
            case "known" | "stale" | "idle":
                settle(
                    State.ACTIVE, used={"known": hour, "stale": 25 * hour}.get(beginning, 91 * day)
                )
            case "unindexed":
                somebody = settle(State.ACTIVE, used=rng.choice((hour, 25 * hour)))
                acs_id = world.rows.rows[somebody.key]["acsId"]
                world.ledger.delete(acs_id, acs_id, None)
            case "orphaned":
                world.add_orphan(settle(State.ACTIVE, used=hour).person)
            case "foreign":
                world.settle_elsewhere(settle(State.ABSENT, used=hour))
            case "creating":
                begun = now - timedelta(seconds=seconds)
                settle(State.CREATING, used=now - begun, leaseUntil=begun + LEASE)
            case "erased":
                mark = now - (hour / 6 if is_leased else 31 * hour)
                settle(State.ERASED, used=hour, revokedBefore=mark)
            case _:
                columns: dict[str, Any] = {"revokedBefore": now - hour / 2}
                if beginning == "deleting":
                    columns["reason"] = "erased_by_admin"
                    columns["leaseUntil"] = now + (LEASE if is_leased else -hour)
                else:
                    columns["revokeAgain"] = True
                state = State.DELETING if beginning == "deleting" else State.ACTIVE
                self._add_unfinished(settle(state, used=hour, **columns))

    def _add_unfinished(self, somebody: Somebody) -> None:
        person = somebody.person
        self.world.ledger.put(
            {
                "PartitionKey": "unfinished",
                "RowKey": "_".join(person),
                "tenantId": person.tenant_id,
                "objectId": person.object_id,
            }
        )

    async def main(self) -> None:
        """Run the schedule: bad times, good times, judgement."""
        await self._bad_times()
        self.world.network.is_calm = True
        self.world.network.log("==== the network is good from now on")
        self.world.rng = self.rng
        await self._heal()
        self.world.judge.judge(self.world.rows.rows)

    async def _put_back(self) -> None:
        """Restore the backup with the network good, if there is one."""
        world = self.world
        if world.backup is None:
            return
        result = await perform(RESTORE, world, world.people[0], world.process(), world.now())
        if isinstance(result, Exception):
            world.judge.blame(f"restore failed with the network good: {result!r}")

    async def _bad_times(self) -> None:
        rng = self.rng
        weights = [each.weight for each in self._enabled]
        number = rng.choice((2, 4, 8, 12))
        async with asyncio.TaskGroup() as group:
            for operation in rng.choices(self._enabled, weights, k=number):
                # Timers come later as well, when leases are over and late calls arrive.
                until = self._window + (60 * operation.is_timed if rng.random() < 0.5 else 0)
                group.create_task(self._do(operation, until * rng.random()))

    async def _do(self, operation: Operation, delay: float) -> None:
        await asyncio.sleep(delay)
        world, rng = self.world, self.rng
        somebody = world.people[int(rng.random() * len(world.people))]
        issued_at = somebody.entra_tokens[-1]
        if rng.random() < 0.4:
            issued_at = world.now()
            somebody.entra_tokens.append(issued_at)
        elif rng.random() < 0.5:
            issued_at = somebody.entra_tokens[0]
        result = await perform(operation, world, somebody, world.process(), issued_at)
        self.answers[f"{operation.name} {_answer(result)}"] += 1
        if self._is_fair and isinstance(result, BrokerError) and _is_blamed(result):
            world.judge.blame(f"no fault, but {operation.name} was answered {result!r}")

    async def _heal(self) -> None:
        """Let people come back, calls that wander about arrive, and the timers run."""
        world = self.world
        back = [each for each in world.people if self.rng.random() < 0.7]
        await asyncio.gather(self._put_back(), *(self._serve(each) for each in back))
        await self._put_back()
        await asyncio.sleep(ZOMBIES)
        for each in world.people:
            if self.rng.random() < 0.3:  # With the oldest Entra token, which may be revoked.
                await perform(TOKEN, world, each, world.process(), each.entra_tokens[0])
        wait = 300.0
        for _ in range(14):
            await self._timer(SWEEP)
            if not any(key[0] in {"orphan", "unfinished"} for key in world.ledger.rows):
                break
            await asyncio.sleep(wait)
            wait *= 1.5
        await asyncio.sleep(31 * 3600)  # Until marks are not needed any more.
        for _ in range(3):
            await self._timer(PRUNE)
        await self._timer(SWEEP)

    async def _timer(self, operation: Operation) -> None:
        world = self.world
        process = world.process()
        result = await perform(operation, world, world.people[0], process, world.now())
        if isinstance(result, Exception):
            world.judge.blame(f"{operation.name} failed with the network good: {result!r}")

    async def _serve(self, somebody: Somebody) -> None:
        """Ask for a token as an app does that obeys Retry-After, until there is one."""
        world = self.world
        began = self.loop.now
        issued_at = somebody.entra_tokens[-1]
        result: Any = None
        while self.loop.now < began + PATIENCE:
            result = await perform(TOKEN, world, somebody, world.process(), issued_at)
            if isinstance(result, IssuedToken):
                self.served_after = max(self.served_after, self.loop.now - began)
                return
            if isinstance(result, RevokedTokenError):
                await asyncio.sleep(1)
                issued_at = world.now()
            elif isinstance(result, IdentityGoneError):
                await perform(RENEW, world, somebody, world.process(), issued_at)
            else:
                after = getattr(result, "retry_after", None) or 1
                await asyncio.sleep(min(60, max(1, math.ceil(after))))
        world.judge.blame(f"not served within {PATIENCE} s: {result!r}")


def _answer(result: object) -> str:
    if isinstance(result, BrokerError):
        return result.code
    return type(result).__name__ if isinstance(result, Exception) else "ok"


def _is_blamed(error: BrokerError) -> bool:
    """Return whether an answer needs a fault as its cause."""
    return error.code in {
        *("storage_unavailable", "upstream_timeout", "upstream_unavailable"),
        *("upstream_bad_response", "internal_error"),
    }

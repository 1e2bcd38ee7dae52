"""The operations that a schedule is made of: what people, administrators and timers do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.broker import IssuedToken
from shared.entra.access_tokens import Administrator, Caller
from shared.errors import BrokerError, UpstreamTimeoutError
from shared.http import DEADLINE_SECONDS
from shared.identifiers import Person
from shared.requests import TokenRequest
from tests.simulation.disasters import put_back
from tests.simulation.judge import Ended, HandedOut, second_of
from tests.simulation.network import EPOCH_SECONDS
from tests.simulation.virtual_time import OWNER
from tests.simulation.world import TENANT

if TYPE_CHECKING:
    from tests.simulation.world import Process, Somebody, World

ANY = TokenRequest(scopes=None, lifetime=None)
OPERATOR = Administrator(
    person=Person(TENANT, "0" * 36),
    client_id=None,
    issued_at=EPOCH_SECONDS,
    is_operator=True,
    may_adopt=True,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of an operation: where, by whom, with which Entra token."""

    world: World
    process: Process
    somebody: Somebody
    caller: Caller


async def token(at: Attempt) -> object:
    return await at.process.broker.issue(at.caller, ANY)


async def create_user(at: Attempt) -> object:
    return await at.process.broker.create_user(at.caller)


async def find_user(at: Attempt) -> object:
    return await at.process.broker.find_user(at.caller)


async def revoke(at: Attempt) -> object:
    return await at.process.broker.revoke(at.caller)


async def erase(at: Attempt) -> object:
    at.world.judge.erasing.setdefault(at.somebody.key, at.world.network.loop.now)
    return await at.process.broker.erase(at.caller)


async def admin_revoke(at: Attempt) -> object:
    return await at.process.directory.revoke(OPERATOR, at.somebody.person)


async def admin_erase(at: Attempt) -> object:
    at.world.judge.erasing.setdefault(at.somebody.key, at.world.network.loop.now)
    return await at.process.directory.erase(OPERATOR, at.somebody.person)


async def renew(at: Attempt) -> object:
    return await at.process.directory.renew(OPERATOR, at.somebody.person)


async def adopt(at: Attempt) -> object:
    """Bring an identity along that another system made; two people may be given the same one."""
    world = at.world
    if not world.judge.adoptable or world.rng.random() < 0.3:
        made = world.acs.add()
        made.is_foreign = True
        world.judge.adoptable.add(made.acs_id)
    candidates = sorted(world.judge.adoptable)
    if world.rng.random() < 0.3:  # Somebody's, or one that is about to be deleted.
        # The index knows whose each is; before a release that wrote it, nothing does.
        candidates = [acs_id for acs_id, name in world.ledger.rows if name == acs_id]
    acs_id = world.rng.choice(candidates or sorted(world.judge.adoptable))
    world.judge.adopted.add(acs_id)
    return await at.process.directory.adopt(OPERATOR, at.somebody.person, acs_id)


async def prune(at: Attempt) -> object:
    return await at.process.pruner.run()


async def sweep(at: Attempt) -> object:
    return await at.process.sweeper.run()


async def lose(at: Attempt) -> object:
    """Somebody deletes a person's identity in ACS, past the service."""
    row = at.world.rows.rows.get(at.somebody.key)
    if row and row["state"] == "active" and row["acsId"] in at.world.acs.identities:
        at.world.network.log(f"    {row['acsId']} is lost")
        at.world.acs.lose(row["acsId"])
    return None


async def restore(at: Attempt) -> object:
    """An operator puts the tables back from the backup."""
    if at.world.backup is not None:
        await put_back(at.world)
    return None


async def kill(at: Attempt) -> object:
    at.world.network.kill(at.process.machine)
    return None


Run = Callable[[Attempt], Coroutine[Any, Any, object]]


async def stand_still(at: Attempt) -> object:
    """A process gets no processor for a while, or its machine is frozen."""
    world, machine = at.world, at.process.machine
    if machine.still_until < world.network.loop.now:
        seconds = world.rng.choice((2.0, 12.0, 25.0, 60.0))
        world.network.stand_still(machine, seconds, is_frozen=world.rng.random() < 0.5)
    return None


@dataclass(frozen=True, slots=True)
class Operation:
    """Something to do, and how often schedules do it."""

    run: Run
    weight: float
    is_timed: bool = False  # A timer has no time limit of a request.
    by_default: bool = True  # Or only where it is asked for.

    @property
    def name(self) -> str:
        return self.run.__name__


OPERATIONS = [
    Operation(token, 8),
    Operation(create_user, 1),
    Operation(find_user, 0.5),
    Operation(revoke, 1.5),
    Operation(erase, 1.5),
    Operation(admin_revoke, 0.7),
    Operation(admin_erase, 0.7),
    Operation(renew, 0.5),
    Operation(adopt, 0.7),
    Operation(prune, 1, is_timed=True),
    Operation(sweep, 1.5, is_timed=True),
    Operation(lose, 0.3),
    Operation(restore, 0.4, is_timed=True),
    Operation(kill, 0.3),
    Operation(stand_still, 2, by_default=False),
]
# The judge is told what these were answered.
ENDINGS: dict[Run, str] = {
    revoke: "revoke",
    admin_revoke: "revoke",
    erase: "erase",
    admin_erase: "erase",
}


async def perform(  # noqa: C901, PLR0912 - one try with what may come of it
    operation: Operation, world: World, somebody: Somebody, process: Process, issued_at: int
) -> object:
    """Do one operation as the endpoint does it, and let the judge see what comes of it.

    Returns:
        What it returned, or the error that it raised.
    """
    caller = Caller(person=somebody.person, client_id=None, issued_at=issued_at)
    attempt = Attempt(world, process, somebody, caller)
    begun = world.network.loop.now
    row = world.rows.rows.get(somebody.key)
    acs_id = str(row.get("acsId", "")) if row else ""
    tracing = world.network.trace is not None
    label = f"{process.machine.name}  {operation.name} {somebody.person.object_id[:2]}"
    if tracing:
        world.network.log(f"{label} iat={issued_at} begins")
    if ENDINGS.get(operation.run) == "revoke":
        world.judge.revoking.append((somebody.person, begun))
    if process.machine.still_until > begun:
        await asyncio.sleep(process.machine.still_until - begun)
    result: object
    owner = OWNER.set(process.machine)
    try:
        if operation.is_timed:
            result = await operation.run(attempt)
        else:
            async with asyncio.timeout(DEADLINE_SECONDS):
                result = await operation.run(attempt)
    except BrokerError as error:
        result = error
    except TimeoutError:
        result = UpstreamTimeoutError("the request as a whole took too long")
    except Exception as error:  # noqa: BLE001 - what nobody foresaw is what we look for
        if not process.machine.dead:
            world.judge.on_error(operation.name, error)
        result = error
    OWNER.reset(owner)
    if tracing:
        world.network.log(f"{label} -> {result!r}{' (dead)' if process.machine.dead else ''}")
    if process.machine.dead:
        return ConnectionResetError()
    if isinstance(result, IssuedToken):
        world.judge.on_token(
            HandedOut(
                *(somebody.person, result.acs_id, result.token, issued_at),
                *(begun, world.network.loop.now),
            )
        )
    elif operation.run in ENDINGS and not isinstance(result, Exception):
        _note_end(operation, attempt, result is True, begun, acs_id)
    return result


def _note_end(
    operation: Operation,
    at: Attempt,
    is_done: bool,
    begun: float,
    acs_id: str,
) -> None:
    """Tell the judge which Entra tokens must be refused from now on."""
    world = at.world
    mark = world.judge.marks.get(at.somebody.key)
    # `iat` has whole seconds, and what was issued in the same second is refused as well.
    cut = second_of(begun) + 1
    if mark and operation.run in {revoke, erase}:
        # The caller may have been refused by a mark that was there, which then is all there is.
        cut = min(cut, math.ceil(mark.timestamp()))
    if mark is None:
        world.judge.blame(f"{operation.name} was answered, and left no mark")
    world.judge.on_end(
        Ended(
            *(ENDINGS[operation.run], at.somebody.person, cut, begun, world.network.loop.now),
            *(is_done, acs_id),
        )
    )

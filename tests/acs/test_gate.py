from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from azure.core.credentials import AzureKeyCredential

from local.acs.emulator import AcsEmulator, Identity
from local.serving.application import serve
from shared.acs.gate import Gate
from shared.acs.identity import AcsIdentity
from shared.errors import BrokerError, BusyError, IdentityGoneError, UpstreamThrottledError
from shared.identifiers import Person
from shared.quota import AT_ONCE, PLACES_FOR_ONE, WAIT_SECONDS
from shared.services import acs_client
from tests.simulation.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aiohttp.typedefs import Handler

ACS_ID = "8:acs:ac5ac5ac-0000-4000-8000-000000000001_00000005-0000-0000-0000-000000000000"
ADA = Person("contoso", "ada")


def people(number: int) -> list[Person]:
    """Return people of one tenant."""
    return [Person("contoso", str(each)) for each in range(number)]


async def call(
    gate: Gate, person: Person = ADA, *, takes: float = 0.1, error: BrokerError | None = None
) -> float | BrokerError:
    """Make a call; return when it began, or the error."""
    clock = asyncio.get_running_loop().time
    try:
        async with gate.turn(person):
            began = clock()
            await asyncio.sleep(takes)
            if error is not None:
                raise error
    except BrokerError as raised:
        return raised
    return began


async def all_of(*calls: Coroutine[Any, Any, float | BrokerError]) -> list[float | BrokerError]:
    """Make calls at once."""
    return list(await asyncio.gather(*calls))


class TestGate:
    """In virtual time: the calls of one operation."""

    def test_all_at_once(self) -> None:
        """As many as have a connection begin at once, others when one ends, the rest never."""

        async def main() -> tuple[list[float | BrokerError], list[float | BrokerError]]:
            gate = Gate("issue")
            first = await all_of(*(call(gate, each, takes=1) for each in people(600)))
            await asyncio.sleep(60)
            return first, await all_of(*(call(gate, each) for each in people(50)))

        first, second = VirtualLoop().run(main())

        began = [each for each in first if isinstance(each, float)]
        assert AT_ONCE == began.count(0)
        assert 200 < len(began) < 400
        assert max(began) <= WAIT_SECONDS
        assert {BusyError} == {type(each) for each in first if not isinstance(each, float)}
        assert all(isinstance(each, float) for each in second)

    def test_waits_no_longer(self) -> None:
        """Who waits in vain is told so while there is time for an answer."""

        async def main() -> tuple[float | BrokerError, float]:
            gate = Gate("issue")
            hanging = [asyncio.create_task(call(gate, each, takes=4)) for each in people(AT_ONCE)]
            await asyncio.sleep(0)
            waited = await call(gate)
            when = asyncio.get_running_loop().time()
            await asyncio.gather(*hanging)
            await call(gate)
            return waited, when

        waited, when = VirtualLoop().run(main())

        assert isinstance(waited, BusyError)
        assert WAIT_SECONDS == when

    def test_cancelled(self) -> None:
        """Who stops waiting leaves the place, and nobody's turn is lost by that."""

        async def give_up(gate: Gate) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await call(gate)

        async def main() -> tuple[float | BrokerError, list[float | BrokerError]]:
            gate = Gate("issue")
            hanging = [asyncio.create_task(call(gate, each, takes=1)) for each in people(AT_ONCE)]
            await asyncio.sleep(0)
            await asyncio.gather(*(give_up(gate) for _ in range(PLACES_FOR_ONE)))
            waited = await call(gate)
            await asyncio.gather(*hanging)
            return waited, await all_of(*(call(gate, each) for each in people(AT_ONCE)))

        waited, after = VirtualLoop().run(main())

        assert 1 == waited
        assert 1 == len({*after})

    def test_expected(self) -> None:
        """Those whose rows are being read are counted, each person once."""

        async def main() -> tuple[int, bool]:
            gate, let_in = Gate("issue"), 0
            with ExitStack() as reading:
                with suppress(BusyError):
                    for person in people(600):
                        reading.enter_context(gate.expect(person))
                        let_in += 1
                with gate.expect(people(1)[0]):  # Is let in already.
                    pass
            return let_in, isinstance(await call(gate), float)

        let_in, served = VirtualLoop().run(main())

        assert 200 < let_in < 400
        assert served

    def test_throttled(self, caplog: pytest.LogCaptureFixture) -> None:
        """After a 429 no call is made until its time is over, and one line says so."""
        caplog.set_level("INFO")
        throttled = UpstreamThrottledError("ACS answered 429", retry_after=12)

        async def main() -> list[float | BrokerError]:
            gate = Gate("issue")
            seen = await all_of(*(call(gate, each, error=throttled) for each in people(5)))
            while asyncio.get_running_loop().time() < 15:
                seen.append(await call(gate, error=IdentityGoneError()))
                await asyncio.sleep(0.5)
            return seen

        seen = VirtualLoop().run(main())

        assert [throttled] * 5 == seen[:5]
        refused = [each for each in seen[5:] if isinstance(each, UpstreamThrottledError)]
        waits = [each.retry_after or 0 for each in refused]
        assert 12 <= waits[0] < 16
        assert waits == sorted(waits, reverse=True)
        assert 20 < len(refused) < 26
        lines = [json.loads(message) for message in caplog.messages]
        assert ["acs_throttled", "acs_unthrottled"] == [line["event"] for line in lines]
        assert {"issue"} == {line["work"] for line in lines}


async def issue(acs_identity: AcsIdentity, acs_id: str, person: Person) -> None:
    """Issue a token for a person."""
    await acs_identity.issue(
        *(acs_id,),
        scopes=["chat"],
        lifetime=timedelta(hours=1),
        now=datetime.now(UTC),
        person=person,
    )


class TestAcsIdentity:
    """Over HTTP."""

    async def test_throttled(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """After a 429, a hundred requests are refused without a call; creates go on."""
        acs_id = await acs_identity.create()
        acs.faults.fail_next("issue", status=429, headers={"Retry-After": "7"})
        with pytest.raises(UpstreamThrottledError):
            await issue(acs_identity, acs_id, ADA)

        for person in people(100):
            with pytest.raises(UpstreamThrottledError):
                await issue(acs_identity, acs_id, person)

        assert 1 == acs.faults.count("issue")
        await acs_identity.create()

    async def test_no_create_without_a_token(
        self, acs: AcsEmulator, acs_identity: AcsIdentity
    ) -> None:
        """While ACS issues nothing, nobody new is let in: there would be no token for them."""
        acs_id = await acs_identity.create()
        acs.faults.fail_next("issue", status=429)
        with pytest.raises(UpstreamThrottledError):
            await issue(acs_identity, acs_id, ADA)

        with pytest.raises(UpstreamThrottledError):
            async with acs_identity.turn_to_create(ADA):
                pytest.fail("let in")

    async def test_create_throttled(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """After a 429 of a create, the next is refused before anything is stored."""
        acs.faults.fail_next("create", status=429)
        with pytest.raises(UpstreamThrottledError):
            async with acs_identity.turn_to_create(ADA):
                await acs_identity.create()

        with pytest.raises(UpstreamThrottledError):
            async with acs_identity.turn_to_create(ADA):
                pytest.fail("let in")

        assert 1 == acs.faults.count("create")

    async def test_connections(self) -> None:
        """More calls than aiohttp opens connections by default: none waits for one."""
        each = 60
        emulator, everybody = AcsEmulator(access_key="a2V5"), asyncio.Barrier(2 * each)
        emulator.identities[ACS_ID] = Identity(ACS_ID)

        @web.middleware
        async def together(request: web.Request, handler: Handler) -> web.StreamResponse:
            await everybody.wait()
            return await handler(request)

        app = emulator.application()
        app.middlewares.append(together)
        async with (
            serve(app) as url,
            acs_client(url, AzureKeyCredential("a2V5")) as client,
            asyncio.TaskGroup() as calls,
        ):
            acs_identity = AcsIdentity(client=client)
            for _ in range(each):
                calls.create_task(acs_identity.create())
            while everybody.n_waiting < each:  # noqa: ASYNC110 - a barrier has no event for that
                await asyncio.sleep(0.01)
            for person in people(each):
                calls.create_task(issue(acs_identity, ACS_ID, person))

        assert each == len(emulator.created) == emulator.issued[ACS_ID]

"""The protocol under random schedules; `python -m tests.simulation` runs many more of them."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core import MatchConditions
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import AzureError
from azure.data.tables import TableEntity, UpdateMode

from shared.acs.breaker import Breaker
from shared.acs.identity import AcsIdentity
from shared.circuit import Circuit
from shared.identifiers import ACS_ID
from shared.mappings.ledger import Ledger
from shared.mappings.table import IdentityMappings
from shared.retry_budget import RetryBudget
from tests.simulation import acs as simulated_acs
from tests.simulation.mutants import MUTANTS
from tests.simulation.network import Machine, Network, Weather
from tests.simulation.schedules import CLOCKS, Options, run_schedule
from tests.simulation.table_storage import Client, Server
from tests.simulation.virtual_time import DeadlockError, VirtualLoop
from tests.simulation.world import Parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from local.acs.emulator import AcsEmulator
    from tests.emulated import Store

# Tracing would double the time; other tests cover all of this code.
pytestmark = pytest.mark.no_cover

SCHEDULES = 300
FOUND_WITHIN = 5000


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Audit lines cost more than the calls that they are about."""
    caplog.set_level(logging.CRITICAL + 1, logger="broker.audit")


@pytest.mark.parametrize("clocks", CLOCKS)
def test_schedules(clocks: str) -> None:
    """Whatever races, crashes or fails: nothing happens that must not, and everybody is served."""
    found = {}
    for seed in range(SCHEDULES):
        result = run_schedule(seed, Options(clocks=clocks))
        if result.violations:
            found[seed] = result.violations

    assert not found


class Nervous(AcsIdentity):
    """Leaves ACS alone after every failure."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._creating = Breaker("create", Circuit(least_calls=1))
        self._issuing = Breaker("issue", Circuit(least_calls=1))


class Spent(RetryBudget):
    """Has nothing left for retries."""

    def spend(self) -> bool:
        return False


class RowsReadOnce(IdentityMappings):
    """Repeats no call."""

    def __init__(self, table: Any, _budget: RetryBudget) -> None:
        super().__init__(table, Spent())


class EntriesReadOnce(Ledger):
    """Repeats no call."""

    def __init__(self, table: Any, _budget: RetryBudget) -> None:
        super().__init__(table, Spent())


def test_outages() -> None:
    """As in a long outage: calls of ACS that are not made, and of the table not repeated."""
    parts = Parts(mappings=RowsReadOnce, ledger=EntriesReadOnce, acs=Nervous)
    found = {}
    refused = 0
    for seed in range(SCHEDULES):
        result = run_schedule(seed, Options(parts=parts))
        refused += result.answers["token upstream_unavailable"]
        if result.violations:
            found[seed] = result.violations

    assert not found
    assert refused


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str) -> None:
    """A defect in the protocol is found: the judge can see, and the schedules are bad enough."""
    with MUTANTS[name].planted() as options:
        assert any(run_schedule(seed, options).violations for seed in range(FOUND_WITHIN))


def test_one_seed() -> None:
    """One seed gives one course, with a trace or without: a violation can be replayed."""
    for seed in range(20):
        first, again = (run_schedule(seed, Options(), trace=trace) for trace in (True, False))

        assert (first.calls, first.faults, first.answers) == (
            again.calls,
            again.faults,
            again.answers,
        )
        assert first.trace


class TestVirtualTime:
    """The loop's time passes only when everybody waits."""

    def test_sleep(self) -> None:
        """Sleeping takes no time here, and the right time there."""
        loop = VirtualLoop()
        woken = []

        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((seconds, asyncio.get_running_loop().time()))

        async def main() -> None:
            await asyncio.gather(sleeper(86400), sleeper(1), sleeper(0.5))

        loop.run(main())

        assert [(0.5, 0.5), (1, 1.0), (86400, 86400.0)] == woken

    def test_timeout(self) -> None:
        """A timeout ends a wait at its time, and one that has been left does nothing any more."""
        loop = VirtualLoop()

        async def main() -> float:
            async with asyncio.timeout(10):
                await asyncio.sleep(9)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await asyncio.sleep(11)
            return asyncio.get_running_loop().time()

        assert loop.run(main()) == 19

    def test_deadlock(self) -> None:
        """A wait for what never comes is an error, not a hang."""

        async def main() -> None:
            await asyncio.get_running_loop().create_future()

        with pytest.raises(DeadlockError):
            VirtualLoop().run(main())


ADA = {"PartitionKey": "tenant_aa", "RowKey": "ada"}
DAY = datetime(2026, 3, 1, 12, 30, 15, 250000, tzinfo=UTC)


class TestTableStorage:
    """The simulated table and Azurite, through the real SDK, answer the same calls alike."""

    async def test_calls(self, store: Store) -> None:
        """Every call that the service makes, with success and with each way to fail."""
        real = await _calls_of_a_table(store.rows)
        simulated = await _simulated(
            lambda machine, network: _calls_of_a_table(
                Client(machine, network, Server(network), page_size=1000)
            )
        )

        assert real == simulated
        assert {None, 404, 409, 412} == {answer.status for answer in real}


class TestAcs:
    """The simulated ACS and the emulator, through the real SDK, answer the same calls alike."""

    async def test_calls(self, acs: AcsEmulator) -> None:
        """Every call that the service makes, before and after a revocation and a deletion."""
        key = AzureKeyCredential(base64.b64encode(b"worthless").decode())
        async with CommunicationIdentityClient(acs.url, key) as client:
            real = await _calls_of_acs(client)
        simulated = await _simulated(
            lambda machine, network: _calls_of_acs(
                simulated_acs.Client(
                    machine, network, simulated_acs.Server(network, lambda identity: None)
                )
            )
        )

        assert real == simulated
        assert {None, 404} == {answer.status for answer in real}


class Answer(NamedTuple):
    """What a call came to, as far as the service looks at it."""

    error: str | None
    status: int | None
    code: str | None
    value: object
    has_date: bool


async def _simulated(
    calls: Callable[[Machine, Network], Coroutine[Any, Any, list[Answer]]],
) -> list[Answer]:
    """Return the answers of the simulation, which needs a thread for its own event loop."""

    def run() -> list[Answer]:
        loop = VirtualLoop()
        network = Network(loop, random.Random(1), Weather())  # noqa: S311 - chance, not secrets
        network.is_calm = True
        return loop.run(calls(Machine("p1", loop, 0), network))

    return await asyncio.to_thread(run)


async def _answer(call: Awaitable[Any], dates: list[str] | None = None) -> Answer:
    error = value = None
    try:
        value = await call
    except AzureError as raised:
        error = raised
    code = getattr(error, "error_code", None)
    return Answer(
        type(error).__name__ if error else None,
        getattr(error, "status_code", None),
        str(code.value) if code else None,
        value,
        bool(dates),
    )


async def _calls_of_a_table(table: Any) -> list[Answer]:
    answers: list[Answer] = []
    etags: list[str] = []

    async def ask(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Answer:
        dates: list[str] = []
        if call.__name__ == "get_entity":
            options["raw_response_hook"] = lambda response: dates.append(
                response.http_response.headers["Date"]
            )
        answer = await _answer(call(*arguments, **options), dates)
        value = answer.value
        if isinstance(value, TableEntity):
            assert value.metadata["etag"]
            assert isinstance(value.metadata["timestamp"], datetime)
            etags.append(str(value.metadata["etag"]))
            value = dict(value)
        elif isinstance(value, dict):
            assert value["etag"]
            etags.append(value["etag"])
            value = "written"
        answers.append(answer._replace(value=value))
        return answer

    condition: dict[str, Any] = {"match_condition": MatchConditions.IfNotModified}
    replace: dict[str, Any] = {"mode": UpdateMode.REPLACE}
    merge: dict[str, Any] = {"mode": UpdateMode.MERGE}
    await ask(table.get_entity, "tenant_aa", "ada")
    await ask(table.update_entity, ADA, **replace, etag='W/"old"', **condition)
    await ask(table.update_entity, ADA, **merge)
    await ask(table.delete_entity, "tenant_aa", "ada")
    await ask(table.delete_entity, "tenant_aa", "ada", etag='W/"old"', **condition)
    await ask(table.create_entity, ADA | {"state": "active", "used": DAY, "again": None})
    await ask(table.create_entity, ADA)
    await ask(table.get_entity, "tenant_aa", "ada")
    old = etags[-1]
    await ask(table.update_entity, ADA | {"state": "new"}, **replace, etag=old, **condition)
    await ask(table.update_entity, ADA | {"state": "lost"}, **replace, etag=old, **condition)
    await ask(table.delete_entity, "tenant_aa", "ada", etag=old, **condition)
    await ask(table.get_entity, "tenant_aa", "ada")
    await ask(table.update_entity, ADA | {"used": DAY, "again": True}, **merge)
    await ask(table.get_entity, "tenant_aa", "ada")
    await ask(table.upsert_entity, ADA | {"count": 3}, **merge)
    await ask(table.get_entity, "tenant_aa", "ada")
    await ask(table.upsert_entity, ADA | {"state": "active", "used": DAY}, **replace)
    await ask(table.get_entity, "tenant_aa", "ada")
    for number, changes in enumerate(({"state": "active"}, {"state": "deleting"}, {})):
        used = DAY + timedelta(days=number)
        entity = {"PartitionKey": "tenant_bb", "RowKey": f"{number}", "used": used}
        await ask(table.upsert_entity, entity | changes, **replace)
    parameters = {"active": "active", "date": DAY, "later": DAY + timedelta(days=1)}
    for query in (
        "state ne @active or used lt @date or used gt @later",
        "state eq @active and used ge @date",
        "PartitionKey gt 'tenant_aa' and PartitionKey lt 'tenant_cc' and used le @later",
        "PartitionKey eq 'nobody'",
    ):
        await _pages(table, query, parameters, answers)
    await _pages(table, "", None, answers)
    return answers


async def _pages(
    table: Any, query: str, parameters: dict[str, Any] | None, answers: list[Answer]
) -> None:
    """Ask for pages of one row each, and for the second one once more, by its token."""
    options: dict[str, Any] = {"results_per_page": 1}
    paged = (
        table.query_entities(query, parameters=parameters, **options)
        if query
        else table.list_entities(select=["RowKey", "used"], **options)
    )
    pages = paged.by_page()
    rows = [dict(row) async for page in _all(pages) for row in page]
    answers.append(Answer(None, None, None, rows, has_date=False))
    answers.append(Answer(None, None, None, pages.continuation_token, has_date=False))
    pages = paged.by_page()
    rows = [dict(row) async for row in await anext(pages)]
    answers.append(Answer(None, None, None, rows, has_date=False))
    if pages.continuation_token is not None:
        again = paged.by_page(pages.continuation_token)
        rows = [dict(row) async for row in await anext(again)]
        answers.append(Answer(None, None, None, rows, has_date=False))


async def _all(pages: Any) -> AsyncIterator[list[TableEntity]]:
    with suppress(StopAsyncIteration):
        while True:
            yield [row async for row in await anext(pages)]


async def _calls_of_acs(client: Any) -> list[Answer]:
    user = await client.create_user(retry_total=0)
    assert ACS_ID.fullmatch(user.properties["id"])
    answers: list[Answer] = []

    async def ask(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> None:
        answer = await _answer(call(user, *arguments, retry_total=0, **options))
        value = answer.value
        if value is not None:
            token: Any = value
            value = (type(token.token), type(token.expires_on))
        answers.append(answer._replace(value=value))

    hour = {"token_expires_in": timedelta(hours=1)}
    await ask(client.get_token, ["chat"], **hour)
    await ask(client.revoke_tokens)
    await ask(client.get_token, ["chat"], **hour)
    await ask(client.delete_user)
    await ask(client.get_token, ["chat"], **hour)
    await ask(client.revoke_tokens)
    await ask(client.delete_user)
    return answers

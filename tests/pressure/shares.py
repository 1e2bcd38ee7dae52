"""Shares of ACS's quota in the running service, over HTTP, in front of an ACS that counts."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
from azure.data.tables.aio import TableClient

from local.acs.emulator import RESOURCE_ID, Identity
from local.entra.directory import ADA, FADI
from local.stack import emulators, functions_host
from shared.identifiers import Person
from shared.mappings.table import entity_from_mapping
from tests.emulated import mapping_of
from tests.pressure.rows import Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra.objects import User
    from local.stack import FunctionsHost, Stack

AT_ONCE = 600
GREEDY, EACH = 18, 4  # People, and how many requests each sends at a time.
SECONDS = 12.0
ORDINARY = 0.25  # Seconds between two requests of the other tenant.


@dataclass
class Service:
    """The broker in a process of its own, and what it calls in this one."""

    stack: Stack
    host: FunctionsHost
    session: aiohttp.ClientSession
    answers: Counter[str] = field(default_factory=Counter)

    async def settle(self, users: list[User]) -> list[str]:
        """Give new people of these users' tenants an identity each; return their Entra tokens."""
        people = [Person(user.tenant.tenant_id, str(uuid.uuid4())) for user in users]
        async with TableClient.from_connection_string(
            self.stack.storage.connection_string, "IdentityMappings"
        ) as rows:
            for start in range(0, len(people), 50):
                await asyncio.gather(
                    *(self._settle(person, rows) for person in people[start : start + 50])
                )
        return [
            self.stack.entra.issue_access_token(user.user_name, claims={"oid": person.object_id})
            for user, person in zip(users, people, strict=True)
        ]

    async def _settle(self, person: Person, rows: TableClient) -> None:
        acs_id = f"8:acs:{RESOURCE_ID}_{uuid.uuid4()}"
        self.stack.acs.identities[acs_id] = Identity(acs_id)
        row = entity_from_mapping(mapping_of(person, datetime.now(UTC), acs_id=acs_id))
        await rows.upsert_entity({name: value for name, value in row.items() if value is not None})

    async def ask(self, token: str, name: str = "", minutes: int = 60) -> str:
        """Ask for a token; return the code of the answer, and count it for a name."""
        async with self.session.get(
            f"{self.host.url}/api/token?expiresInMinutes={minutes}",
            headers={"Authorization": f"Bearer {token}"},
        ) as answer:
            body = await answer.json()
        code = "ok" if answer.status == 200 else f"{answer.status} {body['code']}"
        self.answers[f"{name} {code}".strip()] += 1
        return code

    def lines(self, code: str) -> list[dict[str, object]]:
        """Return the audit lines of the requests that ended with a code."""
        found = (each[each.index("{") :] for each in self.host.output if '"request_failed"' in each)
        return [line for line in map(json.loads, found) if line["code"] == code]


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    """Run the broker, with Contoso and Fabrikam as its tenants."""
    async with (
        emulators() as stack,
        functions_host(stack, {}) as host,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Service(stack, host, session)


async def measure() -> list[Row]:
    """Measure both, each with a process of its own."""
    return [*await two_tenants(), *await all_at_once()]


async def two_tenants() -> list[Row]:
    """Let 18 people of one tenant ask as fast as they may, beside another tenant."""
    async with service() as broker:
        greedy = await broker.settle([ADA] * GREEDY)
        others = await broker.settle([FADI] * GREEDY)
        until = time.monotonic() + SECONDS

        async def insist(token: str, minutes: int) -> None:
            while time.monotonic() < until:
                if await broker.ask(token, "greedy", minutes) != "ok":
                    await asyncio.sleep(0.2)

        async def use(token: str, number: int) -> None:
            await asyncio.sleep(number * ORDINARY)
            while time.monotonic() < until:
                await broker.ask(token, "others")
                await asyncio.sleep(ORDINARY * len(others))

        await asyncio.gather(
            *(insist(token, 60 + each) for token in greedy for each in range(EACH)),
            *(use(token, number) for number, token in enumerate(others)),
        )
    answers = broker.answers
    refused = sum(count for name, count in answers.items() if name.startswith("others 5"))
    return [
        Row(
            f"refused of {sum(c for n, c in answers.items() if n.startswith('others'))} of a"
            f" tenant beside {GREEDY} people of another who never stop",
            *(refused, 0, "requests"),
            f"of those 18, {answers['greedy ok']} were served,"
            f" {answers['greedy 503 busy']} busy, {answers['greedy 429 rate_limited']} over the"
            " limit for one person",
        ),
        Row("calls that ACS refused", len(broker.lines("upstream_throttled")), 0, "calls"),
    ]


async def all_at_once() -> list[Row]:
    """Let 600 people ask at once while ACS takes a second for each call."""
    async with service() as broker:
        tokens = await broker.settle([ADA] * AT_ONCE)
        await broker.ask(tokens[0])  # Fetches the signing keys.
        broker.answers.clear()
        broker.stack.acs.faults.fail_next("issue", times=AT_ONCE, delay=1)
        await asyncio.gather(*(broker.ask(token) for token in tokens))
        answers = broker.answers
        took = [float(str(line["ms"])) for line in broker.lines("busy")]
    return [
        Row(
            f"504 of {AT_ONCE} requests at once, while ACS takes a second",
            *(answers["504 upstream_timeout"], 0, "answers"),
            ", ".join(f"{count} x {code}" for code, count in answers.most_common()),
        ),
        Row("until the others were told so, median", *(statistics.median(took), 5, "ms")),
    ]

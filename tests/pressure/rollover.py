"""What an emergency roll-over of Entra's keys costs, under attack and after a short outage.

The key store runs in virtual time, so that hours take seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from local.entra.tokens import BACKDATED
from shared.identifiers import Person
from tests.pressure.rows import Row
from tests.simulation.entra import TENANT, ask, in_virtual_time, token

if TYPE_CHECKING:
    from shared.entra.signing_keys import SigningKeys
    from tests.simulation.entra import Entra

CALLS_A_SECOND = 5
SECONDS_AFTER = 400  # How long the new key is watched.
RUNS = 15
SERVED = Person(TENANT, "0b5e55ed-0000-4000-8000-000000000001")  # By this process, before.
STARVED = "Microsoft's .NET validator: starved for 292 s"
REFUSED = "Microsoft's .NET validator: 92 of 100 callers of a new key refused"


@dataclass(slots=True)
class Course:
    """What became of those who came with the new key, and what Entra was asked."""

    rolled_at: float = 0
    refused: int = 0  # With 401.
    delayed: list[float] = field(default_factory=list)  # When each 503 was.
    asked_at: list[float] = field(default_factory=list)  # When each fetch began.

    @property
    def seconds(self) -> float:
        """For how long the new key was not accepted."""
        return self.delayed[-1] - self.rolled_at if self.delayed else 0

    @property
    def fetches(self) -> int:
        """How many fetches there were from the roll-over on."""
        return sum(at >= self.rolled_at for at in self.asked_at)

    def most_fetches(self, within: float) -> int:
        """Return how many fetches there were at most in any such time."""
        return max(sum(at <= each < at + within for each in self.asked_at) for at in self.asked_at)


@dataclass(frozen=True, slots=True)
class Attack:
    """Tokens with key ids that somebody makes up.

    Attributes:
        every: seconds between them.
        knows: whose ids they have; None: anybody's.
        lies: by how many seconds the time that they say may be wrong.
        stops: whether it ends just before the roll-over. While it goes on, it also helps: what it
            makes the broker fetch serves everybody.
    """

    every: float
    knows: str | None = None
    lies: float = 0
    stops: bool = False

    async def run(self, keys: SigningKeys, entra: Entra) -> None:
        """Go on until cancelled."""
        while True:
            issued = random.uniform(-self.lies, self.lies)  # noqa: S311 - not a secret
            await ask(keys, uuid.uuid4().hex, token(entra, self.knows, issued=issued))
            await asyncio.sleep(self.every)


def roll_over(
    seed: int,
    *,
    served: bool,
    attack: Attack | None = None,
    away: float = 0,
    hangs: bool = False,
) -> Course:
    """Have Entra replace its key, and people come with tokens of the new one.

    Args:
        seed: of when it happens, and of all jitter.
        served: whether it is the person who comes whom this process has served before, and not
            strangers.
        attack: what goes on all the time, or until then.
        away: for how many seconds Entra cannot be reached from then on.
        hangs: whether it then gives no answer at all.
    """
    random.seed(seed)
    course = Course()

    async def run(keys: SigningKeys, entra: Entra) -> Course:
        loop = asyncio.get_running_loop()
        await keys.get("old", b"{}")
        keys.served(SERVED)
        attacking = asyncio.create_task(attack.run(keys, entra)) if attack else None
        await asyncio.sleep(random.uniform(600, 900))  # noqa: S311 - not a secret
        if attacking and attack and attack.stops:
            attacking.cancel()
        course.rolled_at = loop.time()
        entra.key_ids = ["old", "new"]
        entra.away_until, entra.hangs = course.rolled_at + away, hangs
        calls = [
            asyncio.create_task(call(keys, entra, each / CALLS_A_SECOND))
            for each in range(SECONDS_AFTER * CALLS_A_SECOND)
        ]
        await asyncio.gather(*calls)
        if attacking:
            attacking.cancel()
        course.asked_at = entra.asked_at[1:]  # The first one is that of the start.
        return course

    async def call(keys: SigningKeys, entra: Entra, after: float) -> None:
        await asyncio.sleep(after)
        who = SERVED.object_id if served else None
        payload = token(entra, who, issued=-BACKDATED.total_seconds())
        match await ask(keys, "new", payload):
            case 401:
                course.refused += 1
            case 503:
                course.delayed.append(asyncio.get_running_loop().time())

    result: Course = in_virtual_time(run)
    return result


async def measure() -> list[Row]:
    """Return the figures."""
    logging.disable()  # Thousands of lines about outages that did not happen.
    try:
        # In a thread, which has no event loop yet.
        return await asyncio.to_thread(rows, RUNS)
    finally:
        logging.disable(logging.NOTSET)


def rows(runs: int) -> list[Row]:
    """Return the figures of so many runs of each scenario."""
    return [*after_a_blip(runs), *under_attack(runs)]


def after_a_blip(runs: int) -> list[Row]:
    """Return the figures for an Entra that is away when its new key is first used."""
    found = []
    for away in (1, 3, 10):
        for hangs in (False, True):
            courses = [
                roll_over(seed, away=away, hangs=hangs, served=served)
                for seed in range(runs)
                for served in (True, False)
            ]
            how = "silent" if hangs else "refusing"
            found += [
                Row(
                    f"503 for a new key, Entra {how} for {away} s",
                    max(course.seconds for course in courses),
                    20,
                    "s",
                    STARVED,
                ),
                Row(
                    f"fetches for it, Entra {how} for {away} s",
                    max(course.fetches for course in courses),
                    10,
                    "times",
                ),
            ]
    return found


ATTACKS = {
    "1 forged key id in 10 s": Attack(10),
    "1 forged key id a second": Attack(1),
    "1 forged key id a second, with times made up": Attack(1, lies=4000),
    "1 forged key id a second for a person served before": Attack(1, knows=SERVED.object_id),
    "1 forged key id a second until just before": Attack(1, stops=True),
    "1 forged key id a second for a person served before, until just before": Attack(
        1, knows=SERVED.object_id, stops=True
    ),
}


def under_attack(runs: int) -> list[Row]:
    """Return the figures for forged key ids before and during an emergency roll-over."""
    found: list[Row] = []
    courses: list[Course] = []
    for what, attack in ATTACKS.items():
        for who, served in {"served before": True, "not served before": False}.items():
            these = [roll_over(seed, served=served, attack=attack) for seed in range(runs)]
            longest = max(course.seconds for course in these)
            at_most = 0 if served and not attack.knows else 60
            found.append(Row(f"503 for people {who}, {what}", longest, at_most, "s", STARVED))
            courses += these
    refused = sum(course.refused for course in courses)
    a_minute = max(course.most_fetches(60) for course in courses)
    ten_minutes = max(course.most_fetches(600) for course in courses)
    return [
        *found,
        Row("401 for good tokens, whatever the attack", refused, 0, "times", REFUSED),
        Row("fetches in one minute, whatever the attack", a_minute, 3, "times"),
        Row("fetches a minute in ten minutes", ten_minutes / 10, 1.5, "times"),
    ]

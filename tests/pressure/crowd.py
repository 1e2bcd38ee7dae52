"""A crowd against ACS's quota, in virtual time: the service's own decisions, and apps that obey.

Clients renew their tokens each hour, and at nine o'clock everybody signs in. They are spread over
the processes of the service, each with a quota of its own, in front of an ACS that counts as
published. Nothing here decides in place of `shared.quota` and `shared.retry_after`.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from shared.errors import UpstreamThrottledError
from shared.identifiers import Person
from shared.quota import PUBLISHED, WAIT_SECONDS, WINDOW_SECONDS, Quota, Refusal
from shared.retry_after import spread
from tests.pressure.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable

ACS_SECONDS = 0.1
PER_SECOND = PUBLISHED / WINDOW_SECONDS
SIGN_INS_PER_SECOND = 167
MINUTE = 60
LONGEST_SECONDS = 3 * 3600.0


class Acs:
    """ACS, as published: so many calls in 30 seconds, and those that are refused count, too.

    Whether its window slides, or begins anew every 30 seconds, is not published.
    """

    def __init__(self, *, slides: bool = False) -> None:
        self._slides = slides
        self._spent: deque[list[int]] = deque()  # Seconds, and how many calls there were in each.
        self._total = 0
        self.issued = 0
        self.refused = 0

    def call(self, now: float) -> float | None:
        """Return None for a token, else the seconds that Retry-After says."""
        second = int(now)
        begins = second - WINDOW_SECONDS + 1 if self._slides else second - second % WINDOW_SECONDS
        while self._spent and self._spent[0][0] < begins:
            self._total -= self._spent.popleft()[1]
        if not self._spent or self._spent[-1][0] != second:
            self._spent.append([second, 0])
        self._spent[-1][1] += 1
        self._total += 1
        if self._total <= PUBLISHED:
            self.issued += 1
            return None
        self.refused += 1
        if self._slides:  # It is not known whether ACS sends a Retry-After: here it does not.
            return float(UpstreamThrottledError.retry_after or 0)
        return begins + WINDOW_SECONDS - now


@dataclass(slots=True)
class Client:
    """Somebody who wants a token."""

    person: Person
    since: float
    tries: int = 0
    place: int = 0  # Which of the times that this client has waited is meant by an event.
    got: float | None = None


@dataclass(slots=True)
class Process:
    """One process: its quota, and when it will look at it again."""

    quota: Quota[Client] = field(default_factory=Quota[Client])
    wakes_at: float = math.inf


@dataclass
class Crowd:
    """One course of events.

    Args:
        instances: how many processes there are.
        shares: with the service's quota; without, every request is a call of ACS.
        jitter: clients are told different times.
    """

    instances: int
    shares: bool = True
    jitter: bool = True
    slides: bool = False
    seed: int = 9
    now: float = 0.0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)  # noqa: S311 - a simulation
        self.acs = Acs(slides=self.slides)
        self.processes = [Process() for _ in range(self.instances)]
        self.served: Counter[str] = Counter()
        self.refused: Counter[tuple[str, bool]] = Counter()  # In the first minute, and later.
        self.issued_at: Counter[int] = Counter()
        self.waited: list[float] = []
        self.tries: list[int] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = count()

    def at(self, when: float, what: Callable[..., None], *args: object) -> None:
        """Let something happen."""
        heappush(self._events, (when, next(self._numbers), what, args))

    def run(self, until: float) -> None:
        """Let everything happen that happens until then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what, args = heappop(self._events)
            what(*args)

    def ask(self, client: Client) -> None:
        """Let a client's request reach any process."""
        client.tries += 1
        process = self.processes[int(self.rng.random() * self.instances)]
        if not self.shares:
            self._call(process, client)
            return
        if process.quota.take(client.person, self.now):
            self._call(process, client)
        elif refusal := process.quota.refusal(client.person, self.now):
            self._refuse(client, self._retry_after(process, client, refusal))
        else:
            client.place += 1
            process.quota.wait(client.person, client)
            self.at(self.now + WAIT_SECONDS, self._expire, process, client, client.place)
            self._go_on(process)

    def _expire(self, process: Process, client: Client, place: int) -> None:
        if client.place == place:
            client.place += 1
            process.quota.give_up(client.person, client)
            self._refuse(client, self._retry_after(process, client, Refusal.FULL))

    def _retry_after(self, process: Process, client: Client, refusal: Refusal) -> float:
        return process.quota.retry_after(refusal, client.person, self.now)

    def _call(self, process: Process, client: Client) -> None:
        client.place += 1
        self.at(self.now + ACS_SECONDS, self._answer, process, client, self.now)

    def _answer(self, process: Process, client: Client, began: float) -> None:
        wait = self.acs.call(self.now)
        if wait is not None and self.shares:
            process.quota.throttled(began, self.now, wait)
        if self.shares:
            process.quota.ended(client.person, began, self.now, succeeded=wait is None)
            self._go_on(process)
        if wait is not None:
            self._refuse(client, wait)
            return
        self.served[client.person.tenant_id] += 1
        self.issued_at[int(self.now)] += 1
        self.waited.append(self.now - client.since)
        self.tries.append(client.tries)
        client.got = self.now

    def _refuse(self, client: Client, wait: float) -> None:
        self.refused[client.person.tenant_id, self.now >= MINUTE] += 1
        told = spread(wait, self.rng.random()) if self.jitter else min(60, max(1, math.ceil(wait)))
        self.at(self.now + told, self.ask, client)

    def _go_on(self, process: Process) -> None:
        while (begun := process.quota.next(self.now)) is not None:
            self._call(process, begun[1])
        wait = process.quota.next_in(self.now)
        if wait is not None and not self.now < process.wakes_at <= self.now + wait:
            process.wakes_at = self.now + max(0.001, wait)
            self.at(process.wakes_at, self._wake, process)

    def _wake(self, process: Process) -> None:
        if self.now >= process.wakes_at:
            process.wakes_at = math.inf
            self._go_on(process)


def wave(people: int, **how: Any) -> Crowd:
    """Let so many people sign in, 167 a second, and go on until everybody has a token."""
    crowd = Crowd(**how)
    for number in range(people):
        when = number / SIGN_INS_PER_SECOND
        crowd.at(when, crowd.ask, Client(Person("contoso", str(number)), when))
    crowd.run(LONGEST_SECONDS)
    return crowd


def renewals(people: int, **how: Any) -> Crowd:
    """Let so many people renew their tokens within an hour, each at a moment of their own."""
    crowd = Crowd(**how)
    for number in range(people):
        when = crowd.rng.random() * 3600
        crowd.at(when, crowd.ask, Client(Person("contoso", str(number)), when))
    crowd.run(LONGEST_SECONDS)
    return crowd


def two_tenants(**how: Any) -> Crowd:
    """Let one tenant of 10,000 people sign in at once, and another renew as on any day."""
    crowd = Crowd(**how)
    for number in range(10_000):
        when = number / SIGN_INS_PER_SECOND
        crowd.at(when, crowd.ask, Client(Person("contoso", str(number)), when))
    for number in range(600):
        when = 5 + number / 2
        crowd.at(when, crowd.ask, Client(Person("fabrikam", str(number)), when))
    crowd.run(LONGEST_SECONDS)
    return crowd


def goodput(crowd: Crowd) -> float:
    """Return which share of ACS's quota became tokens, from the second minute on.

    It ends when 99 of 100 people have one: how long the last few take is chance.
    """
    left, until = len(crowd.waited) // 100, int(max(crowd.issued_at))
    while left >= crowd.issued_at[until]:
        left -= crowd.issued_at[until]
        until -= 1
    return sum(crowd.issued_at[second] for second in range(60, until)) / (until - 60) / PER_SECOND


async def measure() -> list[Row]:
    """Simulate the crowds, and compare with a service that has neither shares nor jitter."""
    rows = []
    for instances in (1, 4, 40):
        crowd = wave(100_000 if instances == 40 else 20_000, instances=instances)
        people, end = len(crowd.waited), int(max(crowd.issued_at))
        which = f"{people:,} people, 167 sign-ins a second, instances: {instances}"
        tries = sum(crowd.tries) / people
        rows += [
            Row(
                f"minutes until everybody has a token ({which})",
                *(end / 60, people / PER_SECOND / 60 / 0.85, "min"),
                f"a try in {end / 2 / tries:.0f} s for each client",
            ),
            Row("of ACS's quota that did not become tokens", *(1 - goodput(crowd), 0.08, "")),
            Row("429 from ACS for each token", *(crowd.acs.refused / people, 0.05, "")),
        ]
    slid = wave(20_000, instances=4, slides=True)
    lost = 1 - goodput(slid)
    rows.append(Row("the same if ACS's window slides, and it sends no Retry-After", lost, 0.2, ""))
    day = renewals(100_000, instances=4)
    rows.append(
        Row("refused of 100,000 renewals in an hour", sum(day.refused.values()), 0, "requests")
    )
    without = two_tenants(instances=4, shares=False, jitter=False)
    for instances in (1, 4):
        shared = two_tenants(instances=instances)
        rows.append(
            Row(
                "refused of 540 requests of a tenant beside a crowd of another's, after the first"
                f" minute, instances: {instances}",
                *(shared.refused["fabrikam", True], 27, "requests"),
                f"without shares: {without.refused['fabrikam', True]}, and"
                f" {without.acs.refused} x 429 instead of {shared.acs.refused}",
            )
        )
    mean_tries = [sum(each.tries) / len(each.tries) for each in (shared, without)]
    rows += [
        Row(
            "tries for a token beside that crowd",
            mean_tries[0],
            5,
            "",
            f"without: {mean_tries[1]:.0f}",
        ),
        Row("of 1000 who are refused together, come back together", *(together(), 0.1, ""), "1"),
    ]
    rows.append(Row("CPU for a call if nobody waits", cost() * 1e6, 20, "µs"))
    return rows


def cost() -> float:
    """Return the seconds of CPU that a quota takes for a call which begins at once."""
    quota, person, times = Quota[Client](), Person("contoso", "ada"), []
    for part in range(20):
        began = time.process_time()
        for number in range(part * 1000, part * 1000 + 1000):
            assert quota.take(person, number)
            quota.ended(person, number, number + 0.1, succeeded=True)
        times.append(time.process_time() - began)
    return min(times) / 1000


def together() -> float:
    """Return how many of 1000 who are refused at one moment come back in the busiest second."""
    quota, rng = Quota[Client](), Random(9)  # noqa: S311 - a simulation
    told = Counter(
        spread(quota.retry_after(Refusal.FULL, Person("contoso", str(number)), 0), rng.random())
        for number in range(1000)
    )
    return max(told.values()) / 1000

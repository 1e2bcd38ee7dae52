from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.identifiers import Person
from shared.quota import (
    AT_ONCE,
    LEAST_PER_SECOND,
    LEAST_PLACES,
    PLACES_FOR_ONE,
    PUBLISHED,
    WAIT_SECONDS,
    WINDOW_SECONDS,
    Quota,
    Refusal,
)
from shared.retry_after import LONGEST

if TYPE_CHECKING:
    from collections.abc import Iterable

ADA = Person("contoso", "ada")
TAKES = 0.1


def people(tenant: str, number: int) -> list[Person]:
    """Return people of a tenant."""
    return [Person(tenant, str(each)) for each in range(number)]


@dataclass
class Process:
    """A process in virtual time, whose calls succeed."""

    quota: Quota[Person] = field(default_factory=Quota[Person])
    now: float = 0.0
    made: list[tuple[float, Person]] = field(default_factory=list)
    refused: list[tuple[Person, Refusal]] = field(default_factory=list)
    running: list[tuple[float, Person]] = field(default_factory=list)
    takes: float = TAKES

    def ask(self, person: Person) -> None:
        """Ask for a call: it is made, waits, or is refused."""
        if self.quota.take(person, self.now):
            self._begin(person)
        elif refusal := self.quota.refusal(person, self.now):
            self.refused.append((person, refusal))
        else:
            self.quota.wait(person, person)

    def _begin(self, person: Person) -> None:
        self.made.append((self.now, person))
        self.running.append((self.now, person))

    def pass_time(self, seconds: float) -> None:
        """End the calls that are over, and begin those whose turn it is."""
        self.now += seconds
        for began, person in [each for each in self.running if each[0] <= self.now - self.takes]:
            self.running.remove((began, person))
            self.quota.ended(person, began, self.now, succeeded=True)
        while (begun := self.quota.next(self.now)) is not None:
            self._begin(begun[0])

    def share_of(self, tenant: str, since: float = 0) -> int:
        """Return how many calls were made for a tenant."""
        return sum(who.tenant_id == tenant and when >= since for when, who in self.made)


@pytest.fixture
def process() -> Process:
    return Process()


def crowd(process: Process, askers: Iterable[Person], *, seconds: float) -> None:
    """Let all of them ask ten times a second."""
    askers = list(askers)
    until = process.now + seconds
    while process.now < until:
        for person in askers:
            process.ask(person)
        process.pass_time(0.1)


def most_in_a_window(process: Process) -> int:
    """Return how many calls there were in the busiest 30 seconds."""
    most, within = 0, deque[float]()
    for when, _ in process.made:
        within.append(when)
        while within[0] <= when - WINDOW_SECONDS:
            within.popleft()
        most = max(most, len(within))
    return most


class TestPace:
    """How fast one process calls, if it is alone."""

    def test_within_the_quota(self, process: Process) -> None:
        """In no 30 seconds of a crowd are there more calls than ACS allows, from the first on."""
        crowd(process, people("contoso", 50), seconds=240)

        assert most_in_a_window(process) <= PUBLISHED

    @pytest.mark.parametrize("lull", [5, 12])
    def test_lull(self, process: Process, lull: int) -> None:
        """What is saved while a crowd is away does not come on top of the rate it has reached."""
        crowd(process, people("contoso", 50), seconds=120)
        for _ in range(lull):
            process.ask(ADA)
            process.pass_time(1)
        crowd(process, people("contoso", 50), seconds=60)

        assert most_in_a_window(process) <= PUBLISHED

    def test_most_of_the_quota(self, process: Process) -> None:
        """When the crowd stays, nine tenths of the quota are used."""
        crowd(process, people("contoso", 50), seconds=240)

        assert process.share_of("contoso", since=150) >= 0.9 * PUBLISHED / WINDOW_SECONDS * 90

    def test_alone(self, process: Process) -> None:
        """Requests of a quiet hour never wait."""
        for person in people("contoso", 500):
            process.ask(person)
            process.pass_time(0.1)

        assert 500 == len(process.made)

    def test_begins_anew(self, process: Process) -> None:
        """What was learned from a crowd is forgotten when it is gone."""
        before = process.quota.per_second
        crowd(process, people("contoso", 50), seconds=60)
        assert process.quota.per_second > before

        process.pass_time(60)
        process.ask(ADA)

        assert process.quota.per_second == pytest.approx(before, rel=0.01)

    def test_old_429(self, process: Process) -> None:
        """A 429 of an hour ago does not let the rate grow so fast that the next one follows."""
        crowd(process, people("contoso", 50), seconds=60)
        process.quota.throttled(process.now - 0.05, process.now, 5)
        for _ in range(360):
            process.pass_time(10)
            process.ask(ADA)
        process.made.clear()
        crowd(process, people("contoso", 50), seconds=60)

        assert most_in_a_window(process) <= PUBLISHED


class TestShares:
    """Who is served if not everybody can be."""

    def test_tenants(self, process: Process) -> None:
        """A tenant that asks for little gets all of it, the others get the same as each other."""
        crowd(process, people("contoso", 18), seconds=20)
        begun, refused = process.now, len(process.refused)

        for second in range(30):
            process.ask(Person("small", str(second)))
            crowd(process, [*people("contoso", 18), *people("fabrikam", 3)], seconds=1)

        contoso, fabrikam = (process.share_of(name, begun) for name in ("contoso", "fabrikam"))
        assert 30 == process.share_of("small", begun)
        assert 0.9 < contoso / fabrikam < 1.1
        assert "small" not in {who.tenant_id for who, _ in process.refused[refused:]}

    def test_people_of_one_tenant(self, process: Process) -> None:
        """Eighteen people who ask as often as they can keep nobody of their own tenant out."""
        crowd(process, people("contoso", 18), seconds=20)
        others = [Person("contoso", f"other {number}") for number in range(30)]

        for other in others:
            process.ask(other)
            crowd(process, people("contoso", 18), seconds=1)
        process.pass_time(WAIT_SECONDS)

        assert set(others) <= {who for _, who in process.made}

    def test_last_place(self, process: Process) -> None:
        """However many wait, there is a place for a tenant of which nobody does."""
        crowd(process, people("contoso", 400), seconds=5)
        reasons = {reason for _, reason in process.refused}
        assert {Refusal.FULL} <= reasons <= {Refusal.FULL, Refusal.PERSON}

        assert process.quota.refusal(people("contoso", 1)[0], process.now)
        assert process.quota.refusal(Person("fabrikam", "ada"), process.now) is None

    def test_one_person(self, process: Process) -> None:
        """One person has a few places, however many are free."""
        crowd(process, people("contoso", 100), seconds=10)
        process.pass_time(10)
        for other in people("fabrikam", AT_ONCE):
            process.quota.take(other, process.now)
        for _ in range(20):
            process.ask(ADA)

        reasons = [reason for who, reason in process.refused if who == ADA]
        assert [Refusal.PERSON] * (20 - PLACES_FOR_ONE) == reasons

    @pytest.mark.parametrize("tenant", ["contoso", "fabrikam"])
    def test_slow_calls_of_a_few(self, process: Process, tenant: str) -> None:
        """However slow ACS is, a few people with many requests leave room for the others."""
        process.takes = 3.5
        greedy = people("contoso", 3)
        for person in greedy * 60:
            process.ask(person)
        others = [Person(tenant, f"other {number}") for number in range(100)]
        for other in others:
            process.ask(other)
            process.pass_time(0.1)

        assert {Refusal.PERSON} == {reason for _, reason in process.refused}
        assert set(greedy) == {who for who, _ in process.refused}
        process.pass_time(WAIT_SECONDS)
        assert {*greedy, *others} == {who for _, who in process.made}

    def test_newcomers(self, process: Process) -> None:
        """Whoever has no identity yet is let in while nobody waits, and a quarter is left."""
        assert process.quota.refuses_newcomers(process.now) is None
        crowd(process, people("contoso", 50), seconds=5)

        assert Refusal.NEWCOMER is process.quota.refuses_newcomers(process.now)
        process.pass_time(60)
        assert process.quota.refuses_newcomers(process.now) is None

    def test_newcomers_after_a_pause(self, process: Process) -> None:
        """If nobody else comes, they are let in when they were told, and not before."""
        process.quota.throttled(-0.05, 0, 3)
        process.pass_time(3.1)
        process.ask(ADA)
        process.pass_time(0.1)
        assert Refusal.NEWCOMER is process.quota.refuses_newcomers(process.now)
        wait = process.quota.retry_after(Refusal.NEWCOMER, Person("contoso", "new"), process.now)

        assert 1 < wait < 5
        process.pass_time(wait / 2)
        assert Refusal.NEWCOMER is process.quota.refuses_newcomers(process.now)
        process.pass_time(wait / 2)
        assert process.quota.refuses_newcomers(process.now) is None

    def test_newcomers_beside_another(self, process: Process) -> None:
        """One person who uses less than there is does not keep them out."""
        process.quota.throttled(-0.05, 0, 3)
        process.pass_time(3.1)
        for _ in range(20):
            process.ask(ADA)
            process.pass_time(0.5)

        assert process.quota.refuses_newcomers(process.now) is None

    def test_empty_afterwards(self, process: Process) -> None:
        """Nothing is kept of those who were served."""
        crowd(process, people("contoso", 50), seconds=5)
        for _ in range(50):
            process.pass_time(0.1)

        assert not any(map(process.quota.counts, people("contoso", 50)))


class TestInTime:
    """How many may wait."""

    def test_slow(self, process: Process) -> None:
        """As many as ACS answers before they would have to give up, by what it took lately."""
        for number in range(300):  # A call of four seconds after the other.
            assert process.quota.take(ADA, number * 4.0)
            process.quota.ended(ADA, number * 4.0, number * 4.0 + 4, succeeded=True)
        now = 1200.0
        for person in people("fabrikam", AT_ONCE):
            assert process.quota.take(person, now)

        waiting = 0
        for person in people("contoso", 600):
            if process.quota.refusal(person, now) is None:
                process.quota.wait(person, person)
                waiting += 1
        assert LEAST_PLACES <= waiting <= AT_ONCE * WAIT_SECONDS / 4

    def test_counts_those_on_their_way(self, process: Process) -> None:
        """People whose row is being read have a place, until they have a turn or go away."""
        askers = people("contoso", 600)
        let_in = []
        for person in askers:
            if process.quota.refusal(person, 0) is None:
                process.quota.enter(person)
                let_in.append(person)
        assert 100 < len(let_in) < 400

        for person in let_in:
            process.quota.leave(person)
        assert process.quota.refusal(askers[-1], 0) is None


class TestThrottled:
    """ACS has answered 429."""

    def test_stops(self, process: Process) -> None:
        """Nobody's request is a call until the time is over; then one at first."""
        crowd(process, people("contoso", 50), seconds=20)
        made = len(process.made)
        assert process.quota.throttled(process.now - 0.05, process.now, 12)

        crowd(process, people("contoso", 50), seconds=11.9)
        assert made == len(process.made)
        assert Refusal.THROTTLED is process.quota.refusal(ADA, process.now)

        process.pass_time(0.2)
        assert made + 1 == len(process.made)
        process.pass_time(0.1)
        assert made + 3 == len(process.made)

    def test_goes_on_slowly(self, process: Process) -> None:
        """It calls less than it did, and more again with each call that succeeds."""
        crowd(process, people("contoso", 50), seconds=60)
        before = process.quota.per_second
        process.quota.throttled(process.now - 0.05, process.now, 5)
        assert 0.7 * before < process.quota.per_second < 0.85 * before

        after = process.quota.per_second
        crowd(process, people("contoso", 50), seconds=60)
        assert after < process.quota.per_second < before * 1.1

    def test_forgets(self, process: Process) -> None:
        """When ACS takes more again, a process that had to wait for others is back in minutes."""
        process.ask(ADA)
        process.pass_time(WINDOW_SECONDS)
        process.ask(ADA)
        process.pass_time(WINDOW_SECONDS)
        process.quota.throttled(process.now - 0.05, process.now, 5)
        assert LEAST_PER_SECOND == process.quota.per_second
        process.pass_time(5)

        crowd(process, people("contoso", 50), seconds=300)

        assert process.quota.per_second > 20

    @pytest.mark.parametrize("idle", [0, 3600])
    def test_in_the_first_window(self, process: Process, idle: float) -> None:
        """A process that has called little yet is not slowed down to as little for minutes."""
        for _ in range(10):
            process.ask(ADA)
            process.pass_time(1)
        process.pass_time(idle)
        process.ask(ADA)
        process.quota.throttled(process.now - 0.05, process.now, 1)
        process.pass_time(1)
        begun = process.now
        for person in people("contoso", 1000):
            process.ask(person)
            process.pass_time(1 / 8)

        assert process.share_of("contoso", begun) > 800
        late = [when for when, _ in process.made if when > begun + 90]
        assert len(late) >= 35 * 8 - 1

    def test_counts_once(self, process: Process) -> None:
        """All calls under way get a 429, and that is one reason to slow down."""
        crowd(process, people("contoso", 50), seconds=20)
        process.quota.throttled(process.now - 0.05, process.now, 5)
        slowed = process.quota.per_second

        assert not process.quota.throttled(process.now - 0.01, process.now + 0.05, 5)
        assert slowed == process.quota.per_second

    def test_again(self, process: Process) -> None:
        """If the first call afterwards gets another 429, it waits again and is no slower."""
        crowd(process, people("contoso", 50), seconds=20)
        process.quota.throttled(process.now - 0.05, process.now, 5)
        slowed = process.quota.per_second
        process.pass_time(5.1)
        made = len(process.made)

        assert process.quota.throttled(process.now, process.now + 0.1, 5)
        assert slowed == process.quota.per_second
        process.pass_time(5)
        assert made == len(process.made)

    def test_nobody_waits_in_vain(self, process: Process) -> None:
        """After a pause, those who may wait are served in time, and the others are told at once."""
        process.quota.throttled(process.now - 0.05, process.now, 5)
        process.pass_time(5.1)
        for person in people("contoso", 12):
            process.ask(person)
        asked = process.now
        while process.now < asked + WAIT_SECONDS:
            process.pass_time(0.1)

        assert 12 == len(process.made) + len(process.refused)
        assert len(process.made) > 1

    @pytest.mark.parametrize(("wait", "paused"), [(0, 1), (86_400, 30)])
    def test_bounds(self, process: Process, wait: float, paused: float) -> None:
        """Whatever Retry-After says, it stops for a second at least and for a window at most."""
        process.quota.throttled(process.now - 0.05, process.now, wait)

        assert not process.quota.take(ADA, paused - 0.01)
        assert process.quota.take(ADA, paused + 0.01)
        assert process.quota.per_second >= LEAST_PER_SECOND


class TestRetryAfter:
    """When those who are refused come back."""

    def test_one_after_the_other(self, process: Process) -> None:
        """A hundred people come back as fast as they can be served, not all at once."""
        waits = [
            process.quota.retry_after(Refusal.FULL, person, 0) for person in people("contoso", 100)
        ]

        assert waits == sorted(waits)
        assert 100 / process.quota.per_second == pytest.approx(waits[-1])

    def test_bounded(self, process: Process) -> None:
        """Nobody is told more than a minute, and the queue is forgotten with time."""
        waits = [
            process.quota.retry_after(Refusal.FULL, person, 0) for person in people("contoso", 5000)
        ]

        assert LONGEST == max(waits)
        assert process.quota.retry_after(Refusal.FULL, ADA, 120) < 1

    def test_after_the_pause(self, process: Process) -> None:
        """While ACS limits us, nobody is told to come back before that is over."""
        before = process.quota.retry_after(Refusal.FULL, ADA, 0)
        process.quota.throttled(-0.05, 0, 20)

        assert before < 1
        assert process.quota.retry_after(Refusal.THROTTLED, ADA, 5) > 15

    @pytest.mark.parametrize("refusal", [Refusal.THROTTLED, Refusal.PERSON])
    def test_one_person(self, process: Process, refusal: Refusal) -> None:
        """Whoever asks again and again is told the same moment, and puts nobody else off."""
        process.quota.throttled(-0.05, 0, 5)
        waits = [process.quota.retry_after(refusal, ADA, each / 100) for each in range(100)]

        assert 5 < waits[0] < 7
        assert waits[0] - 0.99 == pytest.approx(waits[-1])
        assert process.quota.retry_after(Refusal.THROTTLED, Person("contoso", "bob"), 1) < 7

    def test_comes_back(self, process: Process) -> None:
        """Whoever comes when told, and is refused again, gets another moment."""
        wait = process.quota.retry_after(Refusal.FULL, ADA, 0)

        assert wait == pytest.approx(process.quota.retry_after(Refusal.FULL, ADA, wait))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(0, 3)), max_size=200))
def test_whatever_happens(steps: list[tuple[int, int, float]]) -> None:
    """In any course of events, whoever was not refused is served, and no place is lost."""
    process, asked = Process(), 0
    for action, number, seconds in steps:
        person = Person(str(number % 2), str(number))
        if action < 4:
            process.ask(person)
            asked += 1
        elif action == 4:
            process.quota.throttled(process.now - seconds, process.now, seconds * 20)
        process.pass_time(seconds)
        assert len(process.running) <= AT_ONCE

    for _ in range(100):
        process.pass_time(31)
    assert asked == len(process.made) + len(process.refused)
    assert [] == process.running
    assert not any(process.quota.counts(who) for _, who in process.made)

"""A process's part of a quota of ACS: how fast it calls, how many at once, and who is next.

It is pure: it calls nothing and waits for nothing, and the time is an argument.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from shared.retry_after import LONGEST

if TYPE_CHECKING:
    from shared.identifiers import Person

# ACS allows as many calls of an operation in 30 seconds for a resource, whoever makes them.
# https://learn.microsoft.com/azure/communication-services/concepts/service-limits#identity
PUBLISHED = 1000
WINDOW_SECONDS = 30
# 350 at once and 20 a second after that are 950 in the first 30 seconds; growth adds less than 50.
BURST_SHARE = 0.35
FIRST_SHARE = 0.6
MOST_SHARE = BURST_SHARE + FIRST_SHARE  # Ever. So one process alone never meets a 429.
# Added to the rate for each success while the rate is fully used: a third more in 100 seconds.
GROWTH = 0.003
CUT = 0.9  # The rate after a 429, as a part of what this process had in the last window.
# In its first window, a process cannot know its part. It goes on with so much of the first rate.
UNKNOWN_SHARE = 0.25
LEAST_PER_SECOND = 1.0  # 40 processes then make 1200 calls in a window, a fifth over the quota.
# Seconds after a 429: it grows twice as fast then, and ever faster, until the next one or a lull.
FASTER_AFTER = 60.0
AT_ONCE = 100  # An instance is given as many requests at once: infra/production.bicepparam.
# A request has 7.5 seconds: 4 for the call, 1 for the table, and these.
WAIT_SECONDS = 2.5
LEAST_PLACES = 2  # The last one is for a tenant that has none.
PLACES_FOR_ONE = 4  # A person has a few devices, and each asks for one token.
# A tenant may hold eight times as many places as are left: alone, eight ninths of all.
SHARE_OF_LEFT = 8
LEFT_BY_NEWCOMERS = 0.25  # Of what may be called at once.
SAVED_SECONDS = 10.0  # Calls held back by so much of a pause may be made after it.
PAUSE_SECONDS = (1.0, 30.0)  # The window is over after that.
NEVER = -1.0

Place = TypeVar("Place")


class Refusal(Enum):
    """Why a call is not made; the text is for the log."""

    THROTTLED = "ACS limits us, so it was not called"
    FULL = "as many calls of ACS are waiting as can be made in time"
    TENANT = "the tenant has its share of the calls of ACS that are waiting"
    PERSON = "the person has enough calls of ACS that are waiting or under way"
    NEWCOMER = "calls of ACS for people with an identity come first"


class Quota(Generic[Place]):
    """Spends a quota that other processes spend, too, and that nobody can ask for.

    It begins below what is published. It allows more while every call that it allows is made and
    succeeds, and less after a 429; when nobody has asked for a while, it begins anew. Nothing is
    written or shared: all that a process knows of the others is what ACS answers.

    Who cannot be served at once gets a place to wait in. Tenants take turns, and so do the people
    of a tenant, so nobody gets more than others who are waiting. There are as many places as calls
    can be made before the requests are over; a tenant alone gets eight ninths of them, and a person
    four.

    Args:
        published: how many calls there may be in 30 seconds.
    """

    def __init__(self, *, published: int = PUBLISHED) -> None:
        self._first = published * FIRST_SHARE / WINDOW_SECONDS
        self._most = published * MOST_SHARE / WINDOW_SECONDS
        self._burst = published * BURST_SHARE
        self.per_second = self._first
        self._left = self._burst  # How many calls may be made now.
        self._left_at = 0.0
        self._at_once = AT_ONCE
        self._running = 0
        self._running_of: Counter[Person] = Counter()
        # What a call takes; if it is a create, with what is written to the table before and after.
        self._seconds = 1.0  # Until one has ended, the worst of a normal day.
        self._made = 0.0  # In the last window, the older the less.
        self._made_at = 0.0
        self._made_since = 0.0  # When that began, after a window without a call.
        self._paused_until = float("-inf")
        self._cut_at = NEVER
        self.is_throttled = False  # Since a 429, no call has succeeded.
        self._free_at = 0.0  # When everybody who was refused can have come back.
        self._told: OrderedDict[Person, float] = OrderedDict()  # When each of them should.
        self._turns: OrderedDict[str, OrderedDict[Person, deque[Place]]] = OrderedDict()
        self._waiting = 0
        # With those who are about to ask, whose rows are being read.
        self._places_of: Counter[str | Person] = Counter()  # Of a tenant, and of a person.
        self._places = 0

    def refusal(self, person: Person, now: float) -> Refusal | None:
        """Return why a call for a person could not be made in time, or None."""
        if now < self._paused_until:
            return Refusal.THROTTLED
        places = self._places_at(now)
        free = places - self._places
        if free < 1:
            return Refusal.FULL
        tenants = self._places_of.get(person.tenant_id, 0)
        # The last place is for a tenant that has none.
        if tenants and tenants >= SHARE_OF_LEFT * (free - 1):
            return Refusal.FULL if tenants == self._places else Refusal.TENANT
        own = self._places_of.get(person, 0)
        if own and (own >= PLACES_FOR_ONE or self._places >= places / 2):
            return Refusal.PERSON
        return Refusal.PERSON if self._has_enough(person) else None

    def refuses_newcomers(self, now: float) -> Refusal | None:
        """Return why nobody should be served now who has to be served elsewhere first, or None.

        A quarter of what may be called at once is for others.
        """
        if now < self._paused_until:
            return Refusal.THROTTLED
        self._refill(now)
        return Refusal.NEWCOMER if self._waiting or self._missing > 0 else None

    def retry_after(self, refusal: Refusal, person: Person, now: float) -> float:
        """Return when somebody who is refused should come back, in seconds.

        Each person is given the moment after that of the one before, so that they come back as fast
        as they can be served. Whoever comes sooner, or has calls waiting, puts nobody else off.
        """
        while self._told and next(iter(self._told.values())) <= now:
            self._told.popitem(last=False)
        start = max(now, self._paused_until)
        moment = self._told.get(person, start)
        if moment <= start:
            moment = max(start, self._free_at) + 1 / self.per_second
            if refusal is not Refusal.PERSON:
                self._free_at = min(moment, now + LONGEST)
                if refusal is Refusal.NEWCOMER:
                    moment += max(0.0, self._missing) / self.per_second
                if moment <= now + LONGEST:  # So there are not more than can be served until then.
                    self._told[person] = moment
        return min(LONGEST, moment - now)

    def counts(self, person: Person) -> bool:
        """Return whether somebody is waiting, or about to ask."""
        return person in self._places_of

    def take(self, person: Person, now: float) -> bool:
        """Begin a call for a person, if one may be made at once and nobody is waiting."""
        return not (self._waiting or self._has_enough(person)) and self._take(person, now)

    def enter(self, person: Person) -> None:
        """Count somebody who is about to ask."""
        self._places += 1
        self._places_of[person.tenant_id] += 1
        self._places_of[person] += 1

    def leave(self, person: Person) -> None:
        """No longer count somebody who was about to ask."""
        self._places -= 1
        for key in (person.tenant_id, person):
            self._places_of[key] -= 1
            if not self._places_of[key]:
                del self._places_of[key]

    def wait(self, person: Person, place: Place) -> None:
        """Let somebody wait in a place, which `next` will return."""
        self.enter(person)
        people = self._turns.setdefault(person.tenant_id, OrderedDict())
        people.setdefault(person, deque()).append(place)
        self._waiting += 1

    def give_up(self, person: Person, place: Place) -> None:
        """Take back a place, unless `next` has returned it."""
        places = self._turns.get(person.tenant_id, OrderedDict()).get(person, deque())
        if place in places:
            places.remove(place)
            self._tidy(person)

    def next(self, now: float) -> tuple[Person, Place] | None:
        """Begin a call for whose turn it is, and return the place; None if there is none now."""
        if not self._waiting:
            return None
        tenant_id, people = next(iter(self._turns.items()))
        person, places = next(iter(people.items()))
        if not self._take(person, now):
            return None
        place = places.popleft()
        people.move_to_end(person)
        self._turns.move_to_end(tenant_id)
        self._tidy(person)
        return person, place

    def next_in(self, now: float) -> float | None:
        """Return in how many seconds to ask for the next; None if a call has to end first."""
        if not self._waiting or self._running >= self._at_once:
            return None
        self._refill(now)
        pause = max(0.0, self._paused_until - now)
        return pause + max(0.0, 1 - self._left) / self.per_second

    def ended(self, person: Person, began: float, now: float, *, succeeded: bool) -> None:
        """Count the end of a call."""
        self._running -= 1
        self._running_of[person] -= 1
        if not self._running_of[person]:
            del self._running_of[person]
        self._seconds += (now - began - self._seconds) / 10
        if not succeeded or began <= self._cut_at:
            return
        self.is_throttled = False
        self._at_once = min(AT_ONCE, self._at_once + 1)
        self._refill(now)
        if self._waiting or self._left < 1:
            since = 0 if self._cut_at == NEVER else (now - self._cut_at) / FASTER_AFTER
            self.per_second = min(self._most, self.per_second + GROWTH * (1 + since))

    def throttled(self, began: float, now: float, wait: float) -> bool:
        """Stop for a while after a 429, and go on slowly; False if that was known already.

        Args:
            began: when the call began. The others that were under way get a 429, too.
            now: the time.
            wait: what Retry-After says.
        """
        if began <= self._cut_at:
            return False
        self._decay(now)
        if not self.is_throttled:  # Else it was the first call after a pause, and says nothing.
            measured = min(self.per_second, self._made / WINDOW_SECONDS)
            is_known = now - self._made_since >= WINDOW_SECONDS
            least = LEAST_PER_SECOND if is_known else self._first * UNKNOWN_SHARE
            self.per_second = max(least, CUT * measured)
        shortest, longest = PAUSE_SECONDS
        pause = min(longest, max(shortest, wait))
        self._paused_until = now + pause
        self._cut_at, self.is_throttled = now, True
        self._at_once = 1  # The first call after the pause shows whether ACS takes more.
        self._left = max(1.0, self.per_second * min(pause, SAVED_SECONDS))
        self._left_at = self._paused_until
        return True

    @property
    def _capacity(self) -> float:
        """How many calls may be made at once after a pause."""
        return max(1.0, min(self._burst, self._burst * self.per_second / self._first))

    @property
    def _missing(self) -> float:
        """How many calls have to be saved up before newcomers may make one."""
        return self._capacity * LEFT_BY_NEWCOMERS - self._left

    def _refill(self, now: float) -> None:
        if now <= self._left_at:
            return
        self._left += (now - self._left_at) * self.per_second
        self._left_at = now
        if self._left >= self._capacity:
            self._left = self._capacity
            if not self.is_throttled:  # The crowd is gone, and what was learned from it is old.
                self.per_second, self._cut_at = self._first, NEVER
        # What is left may be called at once, in one window with what the rate allows.
        most = self._most - self._left / WINDOW_SECONDS
        self.per_second = min(self.per_second, max(self._first, most))

    def _has_enough(self, person: Person) -> bool:
        """Return whether a person has a few calls under way, while half of all that may be are."""
        few = self._running < self._at_once / 2
        return not few and self._running_of[person] >= PLACES_FOR_ONE

    def _take(self, person: Person, now: float) -> bool:
        if now < self._paused_until or self._running >= self._at_once:
            return False
        self._refill(now)
        if self._left < 1:
            return False
        self._left -= 1
        self._running += 1
        self._running_of[person] += 1
        self._decay(now)
        if self._made < 1:
            self._made_since = now
        self._made += 1
        return True

    def _decay(self, now: float) -> None:
        self._made *= math.exp((self._made_at - now) / WINDOW_SECONDS)
        self._made_at = now

    def _places_at(self, now: float) -> float:
        """Return how many calls could begin before those who wait for them have to give up.

        By Little's law, as many end in a second as are under way, divided by what one takes.
        """
        self._refill(now)
        allowed = self._left + self.per_second * WAIT_SECONDS
        ending = self._at_once * WAIT_SECONDS / max(self._seconds, 0.01)
        return max(LEAST_PLACES, min(allowed, self._at_once - self._running + ending))

    def _tidy(self, person: Person) -> None:
        """Forget what is empty, after a place was taken out."""
        self._waiting -= 1
        self.leave(person)
        people = self._turns[person.tenant_id]
        if not people[person]:
            del people[person]
        if not people:
            del self._turns[person.tenant_id]

"""Holds Entra's signing keys, refreshes them in the background, and looks for new ones.

A token with a known key never waits. There is one fetch at a time, for all who wait for it. If it
fails, the last good set stays, for a day at most, and the background tries again soon. Keys that
Entra withdraws are gone with the next refresh.
https://learn.microsoft.com/entra/identity-platform/signing-key-rollover

Ages and budgets go by a clock that cannot be set. When a token was issued, and when Entra answered
with a set, are both by Entra's clock. So it does not matter what time this machine thinks it is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from shared import audit
from shared.entra import unverified
from shared.entra.kept_keys import KeptKeys
from shared.entra.key_fetches import Backoff, FetchBudget
from shared.entra.key_sets import MAX_AGE, Publisher, StatusError, reason_of
from shared.entra.published_keys import PublishedKeys
from shared.errors import InvalidTokenError, KeysUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    from shared.entra.kept_keys import Documents
    from shared.entra.key_sets import KeySet, SigningKey
    from shared.identifiers import Person

# All times are in seconds.
REFRESH_INTERVAL = 3600
STALE = 2 * 3600  # From this age on, audit lines show it: the hourly refresh keeps failing.
WAIT_FOR_FETCH = 2
# Entra dates tokens back by five minutes, for the sake of slow clocks:
# https://github.com/openid/AppAuth-iOS/issues/264
BACKDATED = 300
SPREAD = 60  # A key is published before it signs; all of Entra's hosts have it after this time.
MAX_SERVED = 10_000  # About 3 MB.


class SigningKeys:
    """The keys of one tenant, or of all organisations, at one Entra authority.

    Args:
        session: used for Entra's host only.
        authority: an origin such as `https://login.microsoftonline.com`.
        keys_of: a tenant id, or `organizations`.
        documents: where the last good set is kept for the next process; None: nowhere.
        refresh_interval: seconds between refreshes in the background.
        clock: returns the seconds on a clock that never goes back.
    """

    def __init__(  # noqa: PLR0913 - each is a part that tests replace
        self,
        *,
        session: aiohttp.ClientSession,
        authority: str,
        keys_of: str,
        documents: Documents | None = None,
        refresh_interval: float = REFRESH_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        publisher = Publisher(authority, keys_of)
        self._published = PublishedKeys(session=session, publisher=publisher)
        self._kept = None if documents is None else KeptKeys(documents, publisher)
        self._refresh_interval = refresh_interval
        self._clock = clock
        self._set: KeySet | None = None
        self._fetched_at = float("-inf")
        # By key id, when a set with it was last fetched. A kept set does not count.
        self._seen_at: dict[str, float] = {}
        self._budget, self._backoff = FetchBudget(), Backoff()
        self._has_fetched = False
        self._fetching: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._served: dict[Person, None] = {}  # The one who was served last is at the end.

    async def get(self, key_id: str, payload: bytes) -> SigningKey:
        """Return the key with an id.

        Args:
            key_id: the id.
            payload: what the key has signed, perhaps. Only if the key is not known, it tells
                whether asking Entra is worthwhile.

        Raises:
            InvalidTokenError: Entra has no such key.
            KeysUnavailableError: Entra cannot be asked whether it has such a key, or may have it by
                now.
        """
        if self._set is not None and self._age() > STALE:
            # Shown with each request, because the refresher's own lines may not reach the log.
            audit.note(keys_age_hours=round(self._age() / 3600, 1))
        key = self._known(key_id)
        if key is None:
            with audit.timed("keys_ms"):
                key = await self._look_for(key_id, payload)
        if key.is_kept:
            audit.note(keys_kept=True)
        return key

    def served(self, person: Person) -> None:
        """Remember that a good token of a person was seen."""
        self._served.pop(person, None)
        self._served[person] = None
        if len(self._served) > MAX_SERVED:
            del self._served[next(iter(self._served))]

    async def load(self) -> None:
        """Make sure that there is a usable set of keys, or raise KeysUnavailableError."""
        if self._is_too_old():
            await self._refresh_on_demand(reserved=False)
        self._require_keys()

    def close(self) -> None:
        """Stop refreshing in the background. Only tests do; a service refreshes until it ends."""
        for each in (self._timer, self._fetching, self._keeping):
            if each is not None:
                each.cancel()

    def _age(self) -> float:
        return self._clock() - self._fetched_at

    def _is_too_old(self) -> bool:
        return self._age() > MAX_AGE

    def _require_keys(self) -> None:
        if self._is_too_old():
            raise KeysUnavailableError("no signing keys")

    def _known(self, key_id: str) -> SigningKey | None:
        return None if self._set is None or self._is_too_old() else self._set.keys.get(key_id)

    async def _look_for(self, key_id: str, payload: bytes) -> SigningKey:
        """Return a key that is not in the set, by fetching the set again if that may help."""
        issued_at = unverified.issued_at(payload)
        if not self._disproves(issued_at):
            await self._refresh_on_demand(reserved=unverified.person(payload) in self._served)
        self._require_keys()
        key = self._known(key_id)
        if key is not None:
            return key
        if self._disproves(issued_at):
            raise InvalidTokenError("signed by a key that Entra does not have")
        if self._is_withdrawn(key_id):
            raise InvalidTokenError("signed by a key that Entra has withdrawn")
        if self._backoff.is_failing:
            raise KeysUnavailableError("an unknown signing key, and Entra cannot be asked")
        raise KeysUnavailableError("an unknown signing key, which may be new")

    def _disproves(self, issued_at: int | None) -> bool:
        """Return whether a key that is not in the set cannot have signed at a time.

        Entra publishes a key before it signs with it. A token that says nothing about its time may
        be good, as far as we can tell, and one that lies about it gains nothing by that.
        """
        published_on = None if self._set is None or self._is_too_old() else self._set.published_on
        if issued_at is None or published_on is None:
            return False
        return issued_at + BACKDATED + SPREAD <= published_on

    def _is_withdrawn(self, key_id: str) -> bool:
        """Return whether Entra has no longer a key that it had.

        Right after a set with the key, one that lacks it and brings no new key proves nothing:
        while a new key spreads, some of Entra's hosts still give the set from before.
        """
        return self._fetched_at - self._seen_at.get(key_id, float("inf")) >= SPREAD

    async def _refresh_on_demand(self, *, reserved: bool) -> None:
        """Join the running fetch, or start one if the budget allows, and wait for it briefly.

        Raises:
            KeysUnavailableError: the fetch has not finished in time.
        """
        if self._fetching is None and not self._may_fetch(reserved=reserved):
            return
        # `wait`, unlike `wait_for`, does not cancel the fetch, which others may be waiting for.
        done, _ = await asyncio.wait([self._fetch_once()], timeout=WAIT_FOR_FETCH)
        if not done:
            raise KeysUnavailableError("Entra is slow to answer")

    def _may_fetch(self, *, reserved: bool) -> bool:
        now = self._clock()
        if not self._has_fetched:
            return True
        return not self._backoff.forbids(now) and self._budget.spend(now, reserved=reserved)

    def _fetch_once(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._has_fetched = True
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        """Replace the set with the one that Entra has now; keep the old set if that fails."""
        started = self._clock()
        try:
            fetched = await self._published.fetch()
        except Exception as exc:  # noqa: BLE001 - the old set stays, whatever went wrong
            await self._cope(exc, started)
        else:
            self._take(fetched, started)
        finally:
            self._fetching = None

    def _take(self, fetched: KeySet, started: float) -> None:
        old = self._set.keys if self._set else {}
        replaced = bool(old) and old.keys().isdisjoint(fetched.keys)
        self._set, self._fetched_at = fetched, started
        if not fetched.keys.keys() <= self._seen_at.keys():
            # It has a key that no set had before, so it is the newest, and what it lacks is gone.
            self._seen_at = dict.fromkeys(self._seen_at, float("-inf"))
        self._seen_at |= dict.fromkeys(fetched.keys, started)
        audit.record("signing_keys_refreshed", {"keys": len(fetched.keys), "all_new": replaced})
        self._backoff.succeeded()
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - so that instances do not ask together
        self._fetch_at(self._clock() + self._refresh_interval * jitter)
        is_idle = self._keeping is None or self._keeping.done()
        if self._kept is not None and is_idle and self._kept.is_due(fetched, self._clock()):
            self._keeping = asyncio.create_task(self._kept.keep(fetched, self._clock()))

    async def _cope(self, exc: Exception, started: float) -> None:
        """Have a failed fetch tried again, and look for a set that was kept if there is none."""
        hours = None if self._set is None else round(self._age() / 3600, 1)
        fields = {"reason": reason_of(exc), "age_hours": hours}
        audit.record("signing_keys_not_refreshed", fields, level=logging.ERROR)
        if self._set is None and self._kept is not None:
            found = await self._kept.find()
            if found is not None:
                self._set, self._fetched_at = found[0], self._clock() - found[1]
        retry_after = exc.retry_after if isinstance(exc, StatusError) else None
        now = self._clock()
        self._fetch_at(self._backoff.failed(started=started, now=now, retry_after=retry_after))

    def _fetch_at(self, due: float) -> None:
        """Fetch in the background; such fetches are not in the budget."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(due - self._clock(), self._fetch_once)

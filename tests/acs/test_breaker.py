from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from shared.acs.breaker import Breaker
from shared.circuit import LEAST_CALLS, PROBE_SECONDS
from shared.errors import (
    BrokerError,
    IdentityGoneError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from shared.identifiers import Person
from shared.retry_budget import SAVED_RETRIES
from tests.simulation.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from local.acs.emulator import AcsEmulator
    from shared.acs.identity import AcsIdentity

SOMEBODY = Person("tenant", "somebody")
DOWN = UpstreamUnavailableError("ACS answered 503")


async def call(breaker: Breaker, error: BrokerError | None = None) -> BrokerError | None:
    """Make a call that ends at once if it may be made; return the error."""
    try:
        breaker.admit()
        with breaker.watch():
            if error is not None:
                raise error
    except BrokerError as raised:
        return raised
    return None


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events in the log, each with what it is about."""
    lines = [json.loads(message) for message in caplog.messages]
    return [f"{line['event']} {line['work']}" for line in lines]


class TestBreaker:
    """In virtual time: the calls of one operation that ends as we like."""

    def test_outage(self, caplog: pytest.LogCaptureFixture) -> None:
        """From the twentieth failure on, a call every five seconds, until one succeeds."""
        caplog.set_level("INFO")
        breaker = Breaker("issue")

        async def main() -> list[tuple[float, BrokerError | None]]:
            clock = asyncio.get_running_loop().time
            seen = []
            while clock() < 30:
                seen.append((clock(), await call(breaker, DOWN if clock() < 21 else None)))
                await asyncio.sleep(0.1)
            return seen

        seen = VirtualLoop().run(main())

        calls = [when for when, error in seen if error in {DOWN, None}]
        assert calls[:LEAST_CALLS] == [when for when, _ in seen[:LEAST_CALLS]]
        probes = [when - LEAST_CALLS / 10 for when in calls[LEAST_CALLS : LEAST_CALLS + 4]]
        assert [5, 10, 15, 20] == pytest.approx(probes, abs=0.3)
        assert calls[LEAST_CALLS + 3 :] == [
            when for when, _ in seen if when >= calls[LEAST_CALLS + 3]
        ]
        waits = [error.retry_after or 0 for _, error in seen if error not in {DOWN, None}]
        assert 0 < min(waits) < max(waits) <= PROBE_SECONDS
        assert ["circuit_opened issue", "circuit_closed issue"] == events(caplog)

    @pytest.mark.parametrize(
        ("error", "opens"),
        [
            pytest.param(DOWN, True, id="unavailable"),
            pytest.param(UpstreamTimeoutError("TimeoutError"), True, id="timeout"),
            pytest.param(UpstreamBadResponseError("issue: no token"), True, id="nonsense"),
            pytest.param(UpstreamThrottledError("ACS answered 429"), False, id="429"),
            pytest.param(UpstreamAuthError("ACS answered 403"), False, id="403"),
            pytest.param(IdentityGoneError("ACS answered 404"), False, id="404"),
            pytest.param(None, False, id="success"),
        ],
    )
    def test_what_counts(self, error: BrokerError | None, opens: bool) -> None:
        """ACS fails if it gives no answer, or none that can be used; refusals are answers."""
        breaker = Breaker("issue")

        async def main() -> list[BrokerError | None]:
            return [await call(breaker, error) for _ in range(LEAST_CALLS * 2)]

        ended = VirtualLoop().run(main())

        assert opens == any(each is not error for each in ended)

    @pytest.mark.parametrize(
        ("answered", "opens"), [(None, True), (408, False)], ids=["silence", "408"]
    )
    def test_held(self, answered: int | None, opens: bool) -> None:
        """Of the calls with callers' own tokens, those count that are not answered in time."""
        breaker = Breaker("exchange_entra")
        error = UpstreamTimeoutError("too late")
        error.answered = answered

        async def main() -> None:
            for _ in range(LEAST_CALLS):
                with pytest.raises(UpstreamTimeoutError), breaker.watch(held=True):
                    raise error
            breaker.admit()

        if opens:
            with pytest.raises(UpstreamUnavailableError):
                VirtualLoop().run(main())
        else:
            VirtualLoop().run(main())

    def test_cancelled(self) -> None:
        """A cancelled call is neither a failure nor a success, and a later probe closes it."""
        breaker = Breaker("issue")

        async def hang() -> None:
            breaker.admit()
            with breaker.watch():
                await asyncio.sleep(3600)

        async def give_up() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await hang()

        async def main() -> list[type]:
            for _ in range(LEAST_CALLS * 2):
                await give_up()
            for _ in range(LEAST_CALLS):
                assert await call(breaker, DOWN) is DOWN
            await asyncio.sleep(PROBE_SECONDS)
            await give_up()
            soon = await call(breaker)
            await asyncio.sleep(PROBE_SECONDS)
            return [type(each) for each in (soon, await call(breaker), await call(breaker))]

        assert [UpstreamUnavailableError, type(None), type(None)] == VirtualLoop().run(main())


async def fail(acs: AcsEmulator, acs_identity: AcsIdentity, operation: str, **fault: Any) -> None:
    """Let an operation fail until it is not tried any more."""
    acs.faults.fail_next(operation, times=9999, **(fault or {"status": 503}))
    for _ in range(LEAST_CALLS):
        with pytest.raises(BrokerError):
            await make(acs_identity, operation)


async def create(acs_identity: AcsIdentity) -> str:
    """Create an identity as the identity protocol does."""
    async with acs_identity.turn_to_create(SOMEBODY):
        return await acs_identity.create()


async def issue(acs_identity: AcsIdentity, acs_id: str) -> None:
    """Issue a token."""
    await acs_identity.issue(
        acs_id,
        scopes=["chat"],
        lifetime=timedelta(hours=1),
        now=datetime.now(UTC),
        person=SOMEBODY,
    )


async def make(acs_identity: AcsIdentity, operation: str) -> None:
    """Create an identity, or issue a token."""
    if operation == "create":
        await create(acs_identity)
    else:
        await issue(acs_identity, "8:acs:x")


class TestAcsIdentity:
    """Over HTTP: which operations are left alone, and what becomes of the others."""

    @pytest.mark.parametrize("operation", ["create", "issue"])
    async def test_not_called(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, operation: str
    ) -> None:
        """Once it keeps failing, a hundred requests fail within a second, without a call."""
        await fail(acs, acs_identity, operation)
        started = time.monotonic()

        for _ in range(100):
            with pytest.raises(UpstreamUnavailableError) as raised:
                await make(acs_identity, operation)

        assert time.monotonic() - started < 1
        assert LEAST_CALLS == acs.faults.count(operation)
        assert 0 < (raised.value.retry_after or 0) <= PROBE_SECONDS

    async def test_apart(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """Creates that fail keep nobody with an identity from a token, nor the other way round."""
        acs_id = await acs_identity.create()
        await fail(acs, acs_identity, "create")
        await issue(acs_identity, acs_id)
        acs.faults.clear()
        await fail(acs, acs_identity, "issue")

        with pytest.raises(UpstreamUnavailableError):
            await issue(acs_identity, acs_id)

    async def test_endings_go_on(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """Revocations and deletions are made however the rest fails, as is the timers' probe."""
        acs_id, other = await acs_identity.create(), await acs_identity.create()
        for operation in ("create", "issue"):
            await fail(acs, acs_identity, operation)
        acs.faults.clear()

        await acs_identity.revoke(acs_id)
        await acs_identity.delete(other)

        assert 1 == acs.faults.count("revoke") == acs.faults.count("delete")

    @pytest.mark.parametrize("operation", ["revoke", "delete"])
    async def test_failing_endings(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, operation: str
    ) -> None:
        """A timer whose deletions fail keeps nobody from a token."""
        acs_id = await acs_identity.create()
        acs.faults.fail_next(operation, times=99, status=503)
        for _ in range(LEAST_CALLS * 2):
            with pytest.raises(UpstreamUnavailableError):
                await (
                    acs_identity.revoke(acs_id)
                    if operation == "revoke"
                    else acs_identity.delete(acs_id)
                )

        await issue(acs_identity, acs_id)
        await create(acs_identity)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
    @pytest.mark.parametrize("operation", ["create", "issue"])
    async def test_refusals(
        self, acs: AcsEmulator, acs_identity: AcsIdentity, operation: str, status: int
    ) -> None:
        """What ACS refuses for a reason of the request or of ours is asked again."""
        await fail(acs, acs_identity, operation, status=status)
        before = acs.faults.count(operation)

        with pytest.raises(BrokerError):
            await make(acs_identity, operation)

        assert before + 1 == acs.faults.count(operation)

    async def test_retries(self, acs: AcsEmulator, acs_identity: AcsIdentity) -> None:
        """Connections that break now and then are tried again as long as the budget lasts."""
        acs_id = await acs_identity.create()
        calls = SAVED_RETRIES + 50
        for _ in range(calls):
            acs.faults.fail_next("issue", reset=True)
            with suppress(UpstreamUnavailableError):
                await issue(acs_identity, acs_id)

        assert calls + SAVED_RETRIES <= acs.faults.count("issue") <= calls * 1.1 + SAVED_RETRIES

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.circuit import LEAST_CALLS, PROBE_SECONDS, WINDOW_SECONDS, Circuit

if TYPE_CHECKING:
    from collections.abc import Iterable

START = 1000.0
OPENED = START + LEAST_CALLS * 0.1


def call(circuit: Circuit, now: float, *, failed: bool, seconds: float = 0.01) -> bool:
    """Make a call if it may be made; return whether its end opened or closed the circuit."""
    if circuit.admit(now):
        return False
    return circuit.count(begun=now, now=now + seconds, failed=failed)


def after(outcomes: Iterable[bool], *, apart: float = 0.1) -> Circuit:
    """Return a circuit after calls, each of which failed or not."""
    circuit = Circuit()
    for number, failed in enumerate(outcomes, 1):
        call(circuit, START + number * apart, failed=failed)
    return circuit


def opened() -> Circuit:
    """Return a circuit that opened at about the time `OPENED`."""
    circuit = after([True] * LEAST_CALLS)
    assert circuit.is_open
    return circuit


class TestOpening:
    """It opens when at least half of at least twenty calls of the last ten seconds failed."""

    @pytest.mark.parametrize(
        ("outcomes", "apart", "opens"),
        [
            pytest.param([True] * 20, 0.1, True, id="all of twenty"),
            pytest.param([True] * 19, 0.1, False, id="all of nineteen"),
            pytest.param([True, False] * 10, 0.1, True, id="half"),
            pytest.param([False, True] * 9 + [False, False], 0.1, False, id="less than half"),
            pytest.param([False] * 30 + [True] * 29, 0.1, False, id="half, but for one"),
            pytest.param([False] * 30 + [True] * 30, 0.1, True, id="half, in the end"),
            pytest.param([True] * 100, 0.6, False, id="sixteen in ten seconds"),
            pytest.param([False] * 200 + [True] * 12, 0.4, False, id="twelve of 25"),
            pytest.param([False] * 1000 + [True] * 60, 0.1, True, id="after a good time"),
        ],
    )
    def test_share(self, outcomes: list[bool], apart: float, opens: bool) -> None:
        """Neither a few failures nor a small share of many calls is enough."""
        assert opens == after(outcomes, apart=apart).is_open

    def test_says_so_once(self) -> None:
        """Only the call that opens it says so."""
        circuit = Circuit()
        changes = [call(circuit, START + n / 10, failed=True) for n in range(LEAST_CALLS * 2)]

        assert [False] * (LEAST_CALLS - 1) + [True] == changes[:LEAST_CALLS]
        assert not any(changes[LEAST_CALLS:])

    def test_old_failures(self) -> None:
        """What happened more than ten seconds ago does not count."""
        circuit = after([True] * (LEAST_CALLS - 1))
        later = START + LEAST_CALLS * 0.1 + WINDOW_SECONDS

        call(circuit, later, failed=True)

        assert not circuit.is_open


class TestProbes:
    """While it is open, one call every five seconds is let through."""

    def test_wait(self) -> None:
        """Others are told when the next probe is due."""
        circuit = opened()

        waits = [circuit.admit(OPENED + seconds) for seconds in (0.1, 1, 4.9)]

        assert [4.9, 4.0, 0.1] == pytest.approx(waits, abs=0.02)

    def test_never_ending(self) -> None:
        """A probe that is cancelled, or never ends, does not keep the next one away."""
        circuit = opened()
        now = OPENED + PROBE_SECONDS + 0.1

        admitted = [circuit.admit(now + seconds) for seconds in (0, 0.1, 4.9, 5, 5.1, 10)]

        assert [True, False, False, True, False, True] == [wait == 0 for wait in admitted]
        assert circuit.is_open

    def test_success_closes(self) -> None:
        """A probe that succeeds lets everybody through, and nothing counts that was before."""
        circuit = opened()
        now = OPENED + PROBE_SECONDS + 0.1

        assert call(circuit, now, failed=False)

        assert not circuit.is_open
        calls = [call(circuit, now + 0.1 + n / 100, failed=True) for n in range(LEAST_CALLS)]
        assert [LEAST_CALLS - 1] == [number for number, changed in enumerate(calls) if changed]

    def test_failure_keeps_it_open(self) -> None:
        """A probe that fails changes nothing."""
        circuit = opened()

        assert not call(circuit, OPENED + PROBE_SECONDS + 0.1, failed=True)

        assert circuit.is_open

    @pytest.mark.parametrize("failed", [True, False])
    def test_late_ends(self, failed: bool) -> None:
        """Calls from before it opened, or closed, do not count when they end after that."""
        circuit = opened()
        assert not circuit.count(begun=OPENED - 0.5, now=OPENED + 3, failed=failed)
        assert circuit.is_open
        now = OPENED + PROBE_SECONDS + 0.1
        call(circuit, now, failed=False)

        late = [circuit.count(begun=now - 1, now=now + 1, failed=True) for _ in range(50)]

        assert not any(late)
        assert not circuit.is_open


def seconds(most: int) -> st.SearchStrategy[float]:
    """Return times that floating-point numbers hold exactly."""
    return st.integers(0, most * 64).map(lambda number: number / 64)


@given(st.lists(st.tuples(seconds(2), seconds(8), st.booleans()), min_size=30, max_size=150))
def test_any_course(calls: list[tuple[float, float, bool]]) -> None:
    """Whatever happens: probes are five seconds apart, and nobody waits longer."""
    circuit, now = Circuit(), START
    probes: list[float] = []
    ends: list[tuple[float, float, bool]] = []
    for pause, duration, failed in calls:
        now += pause
        while ends and ends[0][0] <= now:
            end, begun, had_failed = ends.pop(0)
            if circuit.count(begun=begun, now=end, failed=had_failed):
                probes = []
        was_open = circuit.is_open
        wait = circuit.admit(now)
        assert 0 <= wait <= PROBE_SECONDS
        assert was_open or not wait
        if not wait:
            ends = sorted([*ends, (now + duration, now, failed)])
            if was_open:
                probes.append(now)
        assert all(later - earlier >= PROBE_SECONDS for earlier, later in pairwise(probes))

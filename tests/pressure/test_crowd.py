from __future__ import annotations

import pytest

from shared.quota import PUBLISHED, WINDOW_SECONDS
from tests.pressure.crowd import Acs, renewals, together, two_tenants, wave

pytestmark = pytest.mark.no_cover  # Tracing would double the time.


@pytest.mark.parametrize("instances", [1, 40])
def test_wave(instances: int) -> None:
    """Everybody gets a token, soon, with few tries, and nearly without a 429."""
    crowd = wave(5000, instances=instances)

    assert 5000 == len(crowd.waited)
    assert max(crowd.issued_at) < 5000 / 30 * 1.5
    assert sum(crowd.tries) < 5000 * 5
    assert crowd.acs.refused < (1 if instances == 1 else 500)


def test_renewals() -> None:
    """On any other day nobody is refused."""
    assert not renewals(5000, instances=4).refused


def test_shares() -> None:
    """A tenant beside a crowd of another's is served as if it were alone."""
    assert 0 == two_tenants(instances=1).refused["fabrikam", True]
    assert two_tenants(instances=1, shares=False, jitter=False).refused["fabrikam", True] > 100


def test_jitter() -> None:
    """Those who are refused in one second do not come back in one second."""
    assert together() < 0.1


@pytest.mark.parametrize(("slides", "later"), [(False, PUBLISHED), (True, PUBLISHED // 2)])
def test_acs(slides: bool, later: int) -> None:
    """The simulated ACS issues as many tokens in 30 seconds as are published, and then refuses."""
    acs = Acs(slides=slides)
    half = PUBLISHED // 2
    assert {None} == {acs.call(when) for when in (0.0, 20.0) for _ in range(half)}
    assert acs.call(29) is not None
    assert 1 == acs.refused

    answers = [acs.call(WINDOW_SECONDS + 1.0) for _ in range(PUBLISHED)]
    assert later - 1 <= answers.count(None) <= later

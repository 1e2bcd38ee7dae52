"""The short form of the fuzzer; `python -m tests.fuzz` tries many more inputs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.fuzz.__main__ import find
from tests.fuzz.planted import DEFECTS
from tests.fuzz.target import Failure, run, smallest
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

# Tracing would double the time; other tests cover all of this code.
pytestmark = pytest.mark.no_cover

INPUTS = 3000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Log nothing meanwhile: it takes longer than what it is about."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs(name: str) -> None:
    """Whatever comes in, the outcome is a documented one, and the one that the standards name."""
    failures = run(TARGETS[name](), range(INPUTS))

    assert not failures, "\n".join(map(str, failures))


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defects(name: str) -> None:
    """A careless edit of the service is found: the second reader sees, and the inputs are odd."""
    failure = find(name, first=0)

    assert failure is not None
    assert DEFECTS[name].target == failure.target


def test_every_target_has_a_defect() -> None:
    """No target is one that cannot fail."""
    assert set(TARGETS) == {defect.target for defect in DEFECTS.values()}


def test_one_seed() -> None:
    """One seed makes one input, so that a failure can be seen again."""
    for name, make in TARGETS.items():
        first, again = (run(_Failing(make().make), range(7, 8), enough=1) for _ in range(2))
        assert [failure.value for failure in first] == [failure.value for failure in again], name


class _Failing:
    """A target that takes nothing."""

    name = "failing"

    def __init__(self, make: Callable[[Random], Any]) -> None:
        self.make = make

    def judge(self, value: object) -> str:
        del value
        return "refused"


class TestSmallest:
    """What is printed is the smallest input that shows the failure."""

    def test_shrinks(self) -> None:
        """All that does not matter is taken away."""

        def judge(value: dict[str, list[str]]) -> str | None:
            return "bad" if any("!" in text for text in value.get("a", [])) else None

        _, value = smallest(judge, {"a": ["hello", "wor!ld"], "b": ["!"]}, "bad")

        assert {"a": ["!"]} == value

    def test_replay(self) -> None:
        """The printed line says how to see it again."""
        printed = str(Failure("token", 4711, "an undocumented KeyError", "x"))

        assert "--target token --seed 4711 --inputs 1" in printed

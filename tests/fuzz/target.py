"""What a target of the fuzzer is, and what the fuzzer does with one: try, judge, make smaller."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Judge = Callable[[Any], str | None]

# In seconds of this process's own CPU time. A refusal takes far less than a thousandth of it.
LONGEST = 0.25
LONGEST_REASON = 300  # characters
SHRINKING_TRIES = 3000
# It stands for what a caller or a service sent: no error may quote it.
MARKER = "mArKeR7f"


class Target(Protocol):
    """One place that reads input from outside."""

    name: str

    def make(self, chance: random.Random) -> Any:
        """Return an input: text, bytes, numbers, and tuples, lists and dictionaries of them."""

    def judge(self, value: Any) -> str | None:
        """Feed an input to the service, and return what is wrong with the outcome, if anything."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that the service did not handle as it should."""

    target: str
    seed: int
    verdict: str
    value: Any = field(repr=False)

    def __str__(self) -> str:
        replay = f"--target {self.target} --seed {self.seed} --inputs 1"
        return f"{self.target}: {self.verdict}\n  input  {self.value!r}\n  again  {replay}"


def run(target: Target, seeds: range, *, enough: int = 3) -> list[Failure]:
    """Try one input for each seed, and return the failures, no more than are enough."""
    failures: list[Failure] = []
    for seed in seeds:
        value = target.make(random.Random(seed))  # noqa: S311 - chance, not secrets
        verdict = verdict_on(target.judge, value)
        if verdict is not None:
            failures.append(Failure(target.name, seed, *smallest(target.judge, value, verdict)))
            if len(failures) == enough:
                break
    return failures


def verdict_on(judge: Judge, value: Any) -> str | None:
    """Return what is wrong with the outcome of an input."""
    began = time.process_time()
    try:
        verdict = judge(value)
    except Exception as exc:  # noqa: BLE001 - that is what is looked for
        verdict = f"an undocumented {type(exc).__name__}"
    if time.process_time() - began > LONGEST:
        return verdict or f"it took over {LONGEST} s"
    return verdict


def smallest(judge: Judge, value: Any, verdict: str) -> tuple[str, Any]:
    """Take away from an input what can go while the verdict stays."""
    tries = SHRINKING_TRIES
    candidates = _smaller(value)
    while tries:
        candidate = next(candidates, None)
        if candidate is None:
            break
        tries -= 1
        if verdict_on(judge, candidate[0]) == verdict:
            value = candidate[0]
            candidates = _smaller(value)
    return verdict, value


def _smaller(value: Any) -> Iterator[tuple[Any]]:
    """Yield smaller values, each in a tuple, since None is a value as well."""
    if isinstance(value, str | bytes | list):
        yield from _shorter(value)
    places: Any = ()
    if isinstance(value, dict):
        places = value.items()
        for name in value:
            yield ({other: item for other, item in value.items() if other != name},)
    elif isinstance(value, list):
        places = enumerate(value)
    for at, item in places:
        for (less,) in _smaller(item):
            changed = value.copy()
            changed[at] = less
            yield (changed,)


def _shorter(value: Any) -> Iterator[tuple[Any]]:
    length = len(value)
    while length:
        for start in range(0, len(value), length):
            yield (value[:start] + value[start + length :],)
        length //= 2


def text_is_safe(error: Exception) -> bool:
    """Return whether an error's text quotes no input, and fits into one line of a log."""
    text = f"{error} {error!r}"
    return MARKER not in text and text.isprintable() and len(text) <= LONGEST_REASON


class UnsafeTextError(Exception):
    """The text of an error quotes the input, or is too long."""


@contextmanager
def refusing(*documented: type[Exception]) -> Iterator[list[Exception]]:
    """Yield a list, into which a documented error of the body is put.

    Raises:
        UnsafeTextError: the error's text quotes the input.
    """
    refusals: list[Exception] = []
    try:
        yield refusals
    except documented as error:
        if not text_is_safe(error):
            raise UnsafeTextError from None
        refusals.append(error)


def differs(*, should: bool, refusals: list[Exception]) -> str | None:
    """Return the verdict if the service took what it should refuse, or the other way round."""
    if should and refusals:
        return f"a valid input is refused: {type(refusals[0]).__name__}"
    if not should and not refusals:
        return "an input is accepted that is not valid"
    return None

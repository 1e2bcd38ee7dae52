from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Work:
    """Work that lasts until it is released, and counts how often it was started."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.let_go = asyncio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.begun += 1
        await self.let_go.wait()
        if self._error is not None:
            raise self._error
        return self.begun


async def test_shares_what_runs() -> None:
    """All who ask while it runs get the same result; a later call gets a new one."""
    flight, work = SingleFlight[int](), Work()
    asking = [asyncio.create_task(flight.run("ada", work)) for _ in range(50)]
    await asyncio.sleep(0)
    work.let_go.set()

    assert [1] * 50 == await asyncio.gather(*asking)
    assert 2 == await flight.run("ada", work)


async def test_keys_do_not_wait_for_each_other() -> None:
    """Work for one key does not hold up another's."""
    flight, slow, quick = SingleFlight[int](), Work(), Work()
    quick.let_go.set()
    waiting = asyncio.create_task(flight.run("ada", slow))

    assert 1 == await flight.run("grace", quick)

    slow.let_go.set()
    assert 1 == await waiting


async def test_shares_an_error() -> None:
    """An error reaches all who wait, and the next call starts again."""
    flight, work = SingleFlight[int](), Work(ValueError("no"))
    work.let_go.set()

    outcomes = await asyncio.gather(
        *(flight.run("ada", work) for _ in range(3)), return_exceptions=True
    )

    assert ["no"] * 3 == [str(outcome) for outcome in outcomes]
    with pytest.raises(ValueError, match="no"):
        await flight.run("ada", work)
    assert 2 == work.begun


async def test_first_caller_may_leave() -> None:
    """The work goes on for the others if the caller that started it stops waiting."""
    flight, work = SingleFlight[int](), Work()
    first, second = (asyncio.create_task(flight.run("ada", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    work.let_go.set()

    assert 1 == await second
    assert first.cancelled()
    assert 1 == work.begun


async def test_all_callers_may_leave() -> None:
    """If no caller waits any more, the work still ends, and its error is not reported."""
    flight, work = SingleFlight[int](), Work(ValueError("no"))
    only = asyncio.create_task(flight.run("ada", work))
    await asyncio.sleep(0)
    only.cancel()
    work.let_go.set()
    await asyncio.sleep(0.01)

    work = Work()
    work.let_go.set()
    assert 1 == await flight.run("ada", work)


async def test_refused_before_it_began() -> None:
    """What is raised before there is anything to do is raised at once, and keeps nobody out."""
    flight, work = SingleFlight[int](), Work()

    def refuse() -> Coroutine[None, None, int]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        flight.start("ada", refuse)
    work.let_go.set()

    assert 1 == await flight.start("ada", work)

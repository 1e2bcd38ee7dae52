"""Shares one piece of work among all who ask for it at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs the work for a key once at a time; it goes on if one of those waiting gives up."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Result]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return or raise what the work for a key does; join it if it is already running."""
        return await self.start(key, work)

    def start(
        self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]
    ) -> asyncio.Future[Result]:
        """Begin the work for a key, or join it; return what will have its result.

        Raises:
            Whatever `work` raises before it returns what is to be done: then nothing has begun.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._forget(key, done))
        return asyncio.shield(task)

    def _forget(self, key: Hashable, done: asyncio.Task[Result]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # Or asyncio would complain of an error that nobody waited for.

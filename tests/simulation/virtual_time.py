"""An asyncio event loop in virtual time: waiting costs nothing, and one seed gives one course.

When nothing is left to do at one moment, the clock jumps to the next timer. There is no selector,
no thread and no input or output, so nothing depends on the machine that it runs on.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

Result = TypeVar("Result")


class DeadlockError(Exception):
    """The work has not ended, and nothing will ever happen again."""


class Owner:
    """A process: what it has begun waits while it stands still.

    Attributes:
        still_until: before then, none of its callbacks run.
        lost: the seconds that its own clock has missed by standing still.
    """

    __slots__ = ("lost", "still_until")

    def __init__(self) -> None:
        self.still_until = 0.0
        self.lost = 0.0


# Whose work is being done; timers and `time()` are then by that process's own clock.
OWNER: ContextVar[Owner | None] = ContextVar("owner", default=None)


class _Handle:
    """A callback that has not run yet."""

    __slots__ = ("args", "callback", "context", "lost", "owner")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context
        self.owner: Owner | None = None
        self.lost = 0.0

    def cancel(self) -> None:
        self.callback = None

    def run(self) -> None:
        if self.callback is None:
            return
        if self.context is None:
            self.callback(*self.args)
        else:
            self.context.run(self.callback, *self.args)


class VirtualLoop:
    """An event loop with only what tasks, futures, sleep and timeouts need."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._numbers = count()

    def time(self) -> float:
        owner = OWNER.get()
        return self.now if owner is None else self.now - owner.lost

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast("Any", self))

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=cast("Any", self), **options)

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = _Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context)
        owner = handle.owner = OWNER.get()
        if owner is not None:
            handle.lost = owner.lost
        heappush(self._timers, (self.now + delay, next(self._numbers), handle))
        return handle

    def happen_later(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Call something that does not depend on any process."""
        handle = _Handle(callback, args, None)
        heappush(self._timers, (self.now + delay, next(self._numbers), handle))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Do nothing: it is called for errors that nobody waited for, as after a timeout."""

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Run until a coroutine has ended, and then until nothing is left to do.

        Raises:
            DeadlockError: it waits for something that will not happen.
        """
        events._set_running_loop(cast("Any", self))
        try:
            task: asyncio.Task[Result] = self.create_task(main)
            self._run()
            if not task.done():
                raise DeadlockError
            return task.result()
        finally:
            events._set_running_loop(None)

    def _run(self) -> None:
        ready, timers = self._ready, self._timers
        while True:
            while ready:
                ready.popleft().run()
            if not timers:
                return
            self.now, _, handle = heappop(timers)
            owner = handle.owner
            if owner is not None and handle.callback is not None:
                when = max(self.now + owner.lost - handle.lost, owner.still_until)
                handle.lost = owner.lost
                if when > self.now:
                    heappush(timers, (when, next(self._numbers), handle))
                    continue
            handle.run()

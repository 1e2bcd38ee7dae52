"""Makes an emulator fail on request, in the ways that the real service can fail.

Each emulator names its operations (`issue`, `jwks`, ...), counts the requests for each, and lets a
queued fault answer instead of the service. A test or a developer can also queue faults over HTTP,
under `/_local/`:

    curl -X POST http://127.0.0.1:7073/_local/faults -d '{"operation": "issue", "status": 429}'
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Render = Callable[[int], web.Response]

ANY_OPERATION = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to fail, for requests of one operation, or only those that have `path` in theirs.

    `delay` seconds pass first. Then, in this order: `reset` cuts the connection; `status` answers
    with the service's own form of error (or with `body`, if given); otherwise the service answers,
    and `truncate` cuts the connection after that many bytes, while `drip` sends one byte every so
    many seconds. `after` lets the service act before `reset` or `status`, as when a reply is lost.
    """

    operation: str = ANY_OPERATION
    path: str = ""
    times: int = 1
    delay: float = 0
    status: int | None = None
    body: str | None = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    after: bool = False
    truncate: int | None = None
    drip: float | None = None


class Faults:
    """One emulator's queue of faults, and the number of requests for each of its operations.

    Args:
        operations: the names of the operations that it has.
    """

    def __init__(self, operations: Iterable[str]) -> None:
        self._operations = frozenset(operations)
        self._queue: list[tuple[Fault, int]] = []
        self._counts: Counter[str] = Counter()

    def fail_next(self, operation: str = ANY_OPERATION, **changes: Any) -> None:  # noqa: ANN401 - the fields of Fault
        """Queue a fault for the next request, or the next `times` requests, of an operation.

        Raises:
            ValueError: there is no such operation, so the fault would never come.
        """
        if operation not in self._operations | {ANY_OPERATION}:
            raise ValueError(f"the operations are {', '.join(sorted(self._operations))}, and *")
        fault = Fault(operation=operation, **changes)
        self._queue.append((fault, fault.times))

    def clear(self) -> None:
        """Forget queued faults and counts."""
        self._queue.clear()
        self._counts.clear()

    def count(self, operation: str) -> int:
        """Return how many requests there were for an operation, including failed ones."""
        return self._counts[operation]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many requests there were for each operation that was asked for."""
        return dict(self._counts)

    def take(self, operation: str, path: str = "") -> Fault | None:
        """Count a request, and return the fault queued for it, if any."""
        self._counts[operation] += 1
        for position, (fault, left) in enumerate(self._queue):
            if fault.operation in {operation, ANY_OPERATION} and fault.path in path:
                if left == 1:
                    del self._queue[position]
                else:
                    self._queue[position] = (fault, left - 1)
                return fault
        return None

    def routes(self) -> list[web.RouteDef]:
        """Return the HTTP routes that let other processes use the queue."""
        return [
            web.post("/_local/faults", self._post),
            web.delete("/_local/faults", self._delete),
            web.get("/_local/counts", self._get_counts),
        ]

    async def _post(self, request: web.Request) -> web.Response:
        try:
            self.fail_next(**await request.json(loads=_json_object))
        except (TypeError, ValueError) as exc:
            return web.Response(status=400, text=f"That is not a fault: {exc}\n")
        return web.Response(status=204)

    async def _delete(self, _request: web.Request) -> web.Response:
        self.clear()
        return web.Response(status=204)

    async def _get_counts(self, _request: web.Request) -> web.Response:
        return web.json_response(self.counts)


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("a JSON object is expected")
    names = [each.name for each in fields(Fault)]
    if not value.keys() <= set(names):
        raise ValueError(f"the members are {', '.join(names)}")
    return value


def middleware(
    faults: Faults, operation_of: Callable[[web.Request], str | None], render: Render
) -> Any:  # noqa: ANN401 - aiohttp gives its middlewares no public type
    """Return an aiohttp middleware that counts requests and lets faults answer.

    Args:
        faults: the emulator's queue.
        operation_of: returns the name of a request's operation, None for those that never fail.
        render: returns the service's own error answer for a status.
    """

    @web.middleware
    async def fail(request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = operation_of(request)
        fault = faults.take(operation, request.path) if operation else None
        if fault is None:
            return await handler(request)
        await asyncio.sleep(fault.delay)
        answer: web.StreamResponse | None = None
        if fault.after or (fault.status is None and not fault.reset and fault.body is None):
            answer = await handler(request)
        if fault.reset:
            return _cut(request)
        if fault.status is not None or fault.body is not None:
            answer = render(fault.status or 200) if fault.body is None else _answer(fault)
        assert isinstance(answer, web.Response)  # noqa: S101 - emulators answer with whole bodies
        answer.headers.update(fault.headers)
        if fault.truncate is None and fault.drip is None:
            return answer
        return await _send_badly(request, answer, fault)

    return fail


def _answer(fault: Fault) -> web.Response:
    return web.Response(
        status=fault.status or 200,
        body=(fault.body or "").encode(),
        content_type=fault.content_type,
    )


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)  # Goes nowhere: the connection is gone.


async def _send_badly(
    request: web.Request, answer: web.Response, fault: Fault
) -> web.StreamResponse:
    body = answer.body
    assert isinstance(body, bytes)  # noqa: S101 - emulators answer with whole bodies
    stream = web.StreamResponse(status=answer.status, headers=answer.headers)
    stream.content_length = len(body)
    await stream.prepare(request)
    if fault.truncate is not None:
        await stream.write(body[: fault.truncate])
        return _cut(request)
    for byte in body:
        await stream.write(bytes([byte]))
        await asyncio.sleep(fault.drip or 0)
    return stream

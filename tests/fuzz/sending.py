"""Answers every request of an SDK, or of aiohttp's session, with the same bytes."""

from __future__ import annotations

from typing import Any, Self

from azure.core.pipeline.transport import AsyncHttpResponse, AsyncHttpTransport


class Answers(AsyncHttpTransport[Any, Any]):
    """The network, below the SDK: its own pipeline and its own reading of the answer run.

    Args:
        status: of each answer.
        headers: of each answer.
        body: of each answer.
    """

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._status, self._headers, self._body = status, headers, body
        self.asked = 0

    async def send(self, request: Any, **_: Any) -> AsyncHttpResponse:
        self.asked += 1
        return _SdkAnswer(request, self._status, self._headers, self._body)

    def post(self, _url: object, **_: Any) -> SessionAnswer:
        """Answer as aiohttp's session does."""
        self.asked += 1
        return SessionAnswer(self._status, self._headers, self._body)

    async def open(self) -> None:
        """Open nothing."""

    async def close(self) -> None:
        """Close nothing."""

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""


class _SdkAnswer(AsyncHttpResponse):
    def __init__(self, request: Any, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(request, None)
        self.status_code, self.headers, self._content = status, headers, body
        self.reason = "fuzzed"
        self.content_type = headers.get("Content-Type")

    def body(self) -> bytes:
        return self._content

    async def load_body(self) -> None:
        """Nothing is left to load."""


class SessionAnswer:
    """An answer of aiohttp's, as far as the service reads it.

    Args:
        status: its status.
        headers: its headers.
        body: all of it, in one chunk.
    """

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self._body = status, headers, body
        self.content = self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def iter_any(self) -> Any:
        """Yield the body."""
        yield self._body

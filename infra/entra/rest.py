"""Calls a service that speaks JSON over HTTPS, and tries again where that helps."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from azure.core import PipelineClient
from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from azure.core.pipeline.policies import UserAgentPolicy
from azure.core.rest import HttpRequest

from infra.entra.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure.core.pipeline.policies import HTTPPolicy, SansIOHTTPPolicy
    from azure.core.rest import HttpResponse

    Policy = HTTPPolicy[HttpRequest, HttpResponse] | SansIOHTTPPolicy[HttpRequest, HttpResponse]

# All times are in seconds.
ATTEMPTS = 6
LONGEST_WAIT = 60
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
MAX_PAGES = 100
# https://learn.microsoft.com/graph/throttling
REFUSED_FOR_NOW = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
# Whether the service did what it was asked is not known then, so a POST is not sent again.
UNKNOWN = {HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
# What Graph says about an object that was just made, where it has not arrived yet. It takes
# seconds, rarely minutes. The first three were seen on the live service in 2026:
# https://github.com/microsoftgraph/msgraph-sdk-dotnet/issues/3108
# https://github.com/Azure/ARO-HCP/pull/6325 and https://github.com/Azure/ARO-HCP/pull/6348
# The last one is about a scope: https://github.com/microsoftgraph/msgraph-sdk-dotnet/issues/2044
NOT_ARRIVED = (
    (HTTPStatus.NOT_FOUND, "Request_ResourceNotFound"),
    (HTTPStatus.BAD_REQUEST, "does not reference a valid application object"),
    (HTTPStatus.FORBIDDEN, "backing application of the service principal"),
    (HTTPStatus.BAD_REQUEST, "cannot be found in the AppPermissions sets"),
)
ARRIVES_WITHIN = 120


class RefusedError(Exception):
    """A service refused a request: its status, code and message, and when to come back."""

    def __init__(
        self, call: Call, status: int, code: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(printable(f"{call.method} {call.path}: {status} {code}: {message}"))
        self.call = call
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


class UnreachableError(Exception):
    """A service did not answer, or answered with something other than JSON."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that changes something, and what it is for.

    `adds` says what the object in the answer is, `waits` that the call refers to an object which
    was made a moment ago and may not have arrived everywhere.
    """

    does: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    adds: str = ""
    waits: bool = False


def segment(identifier: object) -> str:
    """Return an id as a part of a path, which it cannot leave.

    Braces and spaces stay, for a dry run: there they are around an id that is not known yet.
    """
    return quote(str(identifier), safe="{} ")


class Service:
    """A service, opened by a policy that authorises each request.

    Args:
        url: where it is, without a trailing slash.
        authorization: adds the `Authorization` header.
        query: is added to each path, such as `api-version=...`.
        sleep: waits for so many seconds.
        say: tells the person who is waiting.
    """

    def __init__(
        self,
        url: str,
        authorization: Policy,
        *,
        query: str = "",
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = lambda text: print(printable(text), file=sys.stderr),  # noqa: T201
    ) -> None:
        self.url = url
        self._query = query
        self._client: PipelineClient[HttpRequest, HttpResponse] = PipelineClient(
            url,
            policies=[UserAgentPolicy("acs-token-broker"), authorization],
            connection_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
        )
        self._sleep = sleep
        self._say = say

    def find(self, path: str) -> dict[str, Any] | None:
        """Return an object, or None if there is none.

        Raises:
            RefusedError, UnreachableError: it cannot be read.
        """
        try:
            return self.send(Call("read", "GET", path))
        except RefusedError as exc:
            if exc.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def list(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the members of a list, page by page.

        Raises:
            RefusedError, UnreachableError: it cannot be read, or has no end.
        """
        for _ in range(MAX_PAGES):
            page = self.send(Call("read", "GET", path))
            yield from page.get("value", [])
            link = page.get("@odata.nextLink") or page.get("nextLink")
            if not link:
                return
            if not str(link).startswith((f"{self.url}/", "/")):
                # The token must not be sent to another host.
                raise UnreachableError(f"{self.url} continues a list on another host")
            path = str(link).removeprefix(self.url)
        raise UnreachableError(f"{self.url} lists more than {MAX_PAGES} pages")

    def send(self, call: Call) -> dict[str, Any]:
        """Send a request, again while the service is busy, and return the answer.

        Raises:
            RefusedError, UnreachableError: it was refused, or nothing is known about it.
        """
        waited = 0.0
        attempt = 1
        while True:
            try:
                return self._once(call)
            except RefusedError as exc:
                wait = self._wait(call, exc, attempt, waited)
                if wait is None:
                    raise
                self._say(f"  {exc.status} {exc.code}: trying again in {wait:.0f} s")
            self._sleep(wait)
            waited += wait
            attempt += 1

    def _wait(self, call: Call, exc: RefusedError, attempt: int, waited: float) -> float | None:
        """Return how long to wait before the next attempt, or None to give up."""
        if call.waits and has_not_arrived(exc) and waited < ARRIVES_WITHIN:
            return min(2.0**attempt, 20.0)
        again = REFUSED_FOR_NOW if call.method == "POST" else REFUSED_FOR_NOW | UNKNOWN
        if exc.status in again and attempt < ATTEMPTS:
            return backoff(attempt) if exc.retry_after is None else exc.retry_after
        return None

    def _once(self, call: Call) -> dict[str, Any]:
        mark = "&" if "?" in call.path else "?"
        again = not self._query or self._query in call.path  # The link to a next page has it.
        url = self.url + call.path + ("" if again else mark + self._query)
        request = HttpRequest(call.method, url, json=call.body)
        request.headers.update(call.headers)
        try:
            with self._client.send_request(request) as response:
                return _answer(call, response)
        except (ServiceRequestError, ServiceResponseError) as exc:
            raise UnreachableError(f"{self.url} does not answer: {exc}") from exc


def _answer(call: Call, response: HttpResponse) -> dict[str, Any]:
    """Return the object in an answer, an empty one if it has no body."""
    try:
        body = json.loads(response.read() or b"{}")
    except ValueError:
        body = None
    if response.status_code < HTTPStatus.BAD_REQUEST:
        if not isinstance(body, dict):
            raise UnreachableError(f"the answer to {call.method} {call.path} is not an object")
        return body
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    header = response.headers.get("Retry-After", "")
    raise RefusedError(
        call,
        response.status_code,
        str(error.get("code") or ""),
        str(error.get("message") or response.reason or ""),
        min(float(header), LONGEST_WAIT) if re.fullmatch(r"[0-9]{1,5}", header) else None,
    )


def has_not_arrived(exc: RefusedError) -> bool:
    """Return whether Graph may say so only because an object is new."""
    said = f"{exc.code} {exc.message}"
    return any(exc.status == status and text in said for status, text in NOT_ARRIVED)


def backoff(attempt: int) -> float:
    """Return how many seconds to wait where the service does not say."""
    return float(min(2**attempt, LONGEST_WAIT)) + random.random()  # noqa: S311 - not for secrets

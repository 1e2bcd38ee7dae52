"""Writes the answers to HTTP requests; the only place that turns errors into answers."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import random
import re
import secrets
import time
import traceback
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

import azure.functions as func

from shared import audit
from shared.errors import (
    BrokerError,
    InternalError,
    MethodNotAllowedError,
    PayloadTooLargeError,
    UpstreamTimeoutError,
)
from shared.refusal_lines import RefusalLines
from shared.retry_after import spread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Handler = Callable[[func.HttpRequest], Awaitable[func.HttpResponse]]
    Endpoint = Callable[[func.HttpRequest, func.Context], Awaitable[func.HttpResponse]]

REALM = "acs-token-broker"
MAX_BODY_BYTES = 16 * 1024
# A caller has an answer within 8 seconds; half a second is left for the host and the network.
DEADLINE_SECONDS = 7.5
COMMON_HEADERS = {
    "Cache-Control": "no-store",
    "Pragma": "no-cache",
    "X-Content-Type-Options": "nosniff",
    # Without this, a page of another origin can read neither header, and the host's CORS settings
    # cannot name any. https://fetch.spec.whatwg.org/#http-access-control-expose-headers
    "Access-Control-Expose-Headers": "WWW-Authenticate, Retry-After, Revoked-Within",
}

# ACS may take 15 minutes until it refuses a token that was revoked, and nobody can hurry it:
# https://learn.microsoft.com/azure/communication-services/concepts/authentication
REVOKED_WITHIN = {"Revoked-Within": "900"}

logger = logging.getLogger("broker.http")
refusal_lines = RefusalLines()  # One for all routes of a process.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def json_response(
    body: Mapping[str, object], status: HTTPStatus = HTTPStatus.OK
) -> func.HttpResponse:
    """Return a JSON body."""
    return _response(status, json.dumps(body))


def done(finished: bool, headers: Mapping[str, str] | None = None) -> func.HttpResponse:  # noqa: FBT001 - the answer is the whole meaning
    """Return 204 for what is finished, and 202 for what is stored and will be finished."""
    audit.note(finished=finished)
    if finished:
        return _response(HTTPStatus.NO_CONTENT, headers=headers)
    return _response(HTTPStatus.ACCEPTED, json.dumps({"status": "accepted"}), headers=headers)


def json_document(text: str) -> func.HttpResponse:
    """Return 200 with a body that is JSON already."""
    return _response(HTTPStatus.OK, text)


def answers_problems(
    *methods: str, event: str | Mapping[str, str] | None = None, seconds: float = DEADLINE_SECONDS
) -> Callable[[Handler], Endpoint]:
    """Turn a handler into a Functions endpoint that always gives an answer.

    The endpoint checks the method and the size, limits the time, turns errors into RFC 9457
    problems with the RFC 6750 challenge, adds the headers that every answer has, and writes the
    audit line.

    Args:
        methods: those that the route takes. The host would answer others with an empty 404.
        event: the audit line's event when all went well, for each method if they differ; None for
            routes that decide nothing.
        seconds: how long a request may take.
    """

    def decorate(handler: Handler) -> Endpoint:
        async def endpoint(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
            trace_id = _trace_id(req, context)
            started = time.monotonic()
            with audit.decision(route=handler.__name__, trace_id=trace_id) as noted:
                response, error = await _answer(handler, req, methods, seconds)
                noted["ms"] = round((time.monotonic() - started) * 1000)
            if error is not None:
                response = _problem(error, trace_id)
                _record_error(error, noted)
            elif event is not None and req.method != "OPTIONS":
                audit.record(event if isinstance(event, str) else event[req.method], noted)
            assert response is not None  # noqa: S101 - either an answer or an error
            return response

        # `__wrapped__` would make the worker read the handler's signature, not the endpoint's.
        functools.update_wrapper(endpoint, handler, assigned=("__name__", "__doc__"))
        del endpoint.__dict__["__wrapped__"]
        return endpoint

    return decorate


async def _answer(
    handler: Handler, req: func.HttpRequest, methods: tuple[str, ...], seconds: float
) -> tuple[func.HttpResponse | None, BrokerError | None]:
    try:
        if req.method == "OPTIONS":  # The host answers the preflights of allowed origins itself.
            return _response(HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join(methods)}), None
        _check(req, methods)
        async with asyncio.timeout(seconds):
            return await handler(req), None
    except BrokerError as error:
        return None, error
    except TimeoutError:
        return None, UpstreamTimeoutError("the request as a whole took too long")
    except Exception as exc:  # noqa: BLE001 - the caller gets an answer, whatever went wrong
        # Not with `logger.exception`: the texts of others' exceptions may quote a token or a key.
        logger.error("unforeseen_error\n%s", _places(exc))  # noqa: TRY400 - the line above
        return None, InternalError(type(exc).__name__)


def _places(error: BaseException) -> str:
    """Return the traceback of an exception and of its causes: types and places without texts."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [f"{type(cause).__name__}\n", *traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "".join(lines)


def _check(req: func.HttpRequest, methods: tuple[str, ...]) -> None:
    if req.method not in methods:
        raise MethodNotAllowedError("the route does not take this method", allowed=methods)
    if len(req.get_body()) > MAX_BODY_BYTES:
        raise PayloadTooLargeError("the body is over the limit")


def _problem(error: BrokerError, trace_id: str) -> func.HttpResponse:
    headers = {}
    if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        parameters = {"realm": REALM, **error.challenge()}
        headers["WWW-Authenticate"] = "Bearer " + ", ".join(
            f'{name}="{value}"' for name, value in parameters.items()
        )
    if error.retry_after is not None:
        headers["Retry-After"] = str(spread(error.retry_after, random.random()))  # noqa: S311
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = ", ".join(error.allowed)
    problem = {
        "type": "about:blank",  # RFC 9457: the title is then that of the status.
        "title": error.title,
        "status": error.status.value,
        "detail": error.description,
        "instance": uuid.UUID(trace_id).urn,
        "code": error.code,
        "traceId": trace_id,
    }
    if error.claims is not None:
        problem["claims"] = error.claims
    return _response(error.status, json.dumps(problem), "application/problem+json", headers)


def _response(
    status: HTTPStatus,
    body: str = "",
    media_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> func.HttpResponse:
    return func.HttpResponse(
        body,
        status_code=status.value,
        mimetype=media_type,
        headers={**COMMON_HEADERS, **(headers or {})},
    )


def _record_error(error: BrokerError, noted: dict[str, audit.Field]) -> None:
    ours = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    refusal_lines.record(
        "request_failed" if ours else "request_refused",
        {"status": error.status.value, "code": error.code, "reason": str(error), **noted},
        level=logging.ERROR if ours else logging.WARNING,
    )


def _trace_id(req: func.HttpRequest, context: func.Context) -> str:
    """Return the host's trace id, else the caller's, else a new one (W3C Trace Context)."""
    for traceparent in (context.trace_context.trace_parent, req.headers.get("traceparent")):
        match = _TRACEPARENT.fullmatch(traceparent or "")
        if match:
            return match[1]
    return secrets.token_hex(16)

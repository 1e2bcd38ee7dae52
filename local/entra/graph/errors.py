"""Microsoft Graph's errors.

https://learn.microsoft.com/graph/errors
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from aiohttp import web


class GraphError(Exception):
    """An error of Graph's: a status, a code and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def answer(self) -> web.Response:
        """Return the error as Graph writes it."""
        request_id = str(uuid.uuid4())
        inner = {
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}",
            "request-id": request_id,
            "client-request-id": request_id,
        }
        error = {"code": self.code, "message": str(self), "innerError": inner}
        return web.json_response({"error": error}, status=self.status)


def not_found(name: str) -> GraphError:
    """Return the error for an object that is not in the tenant."""
    message = (
        f"Resource '{name}' does not exist or one of its queried reference-property objects are "
        "not present."
    )
    return GraphError(404, "Request_ResourceNotFound", message)


def bad_request(message: str, code: str = "Request_BadRequest") -> GraphError:
    """Return the error for a body that is not valid."""
    return GraphError(400, code, message)


def conflict(message: str) -> GraphError:
    """Return the error for an object that exists already."""
    return GraphError(409, "Request_MultipleObjectsWithSameKeyValue", message)


def denied() -> GraphError:
    """Return the error for a caller without the permission."""
    message = "Insufficient privileges to complete the operation."
    return GraphError(403, "Authorization_RequestDenied", message)


def unsupported(message: str) -> GraphError:
    """Return the error for a query that Graph, or this part of it, does not answer."""
    return GraphError(400, "Request_UnsupportedQuery", message)

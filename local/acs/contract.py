"""How ACS Identity reads requests, and what its errors say.

Statuses, codes and messages are the service's own if they have been seen in recordings of it; if a
comment says "not observed", they are guessed from similar ones.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

PREVIEW = ("2025-03-02-preview",)
SINCE_TEAMS_PHONE = (*PREVIEW, "2025-06-30", "2026-07-22", "2026-09-23")
SINCE_2022 = ("2022-06-01", "2022-10-01", "2023-08-01", "2023-10-01", *SINCE_TEAMS_PHONE)
SINCE_TEAMS = ("2021-10-31-preview", *SINCE_2022)
ALL_VERSIONS = ("2021-03-07", "2021-10-31-preview", "2021-11-01", *SINCE_2022)

SCOPES = frozenset({"chat", "voip"})
JOIN_SCOPES = frozenset({"chat.join", "chat.join.limited", "voip.join"})
JOIN_SCOPES_SINCE = "2023-10-01"

SHORTEST_MINUTES, LONGEST_MINUTES = 60, 1440
SECOND = 10**9  # Moments are in nanoseconds since 1970: expiresOn has tenths of microseconds.
DENIED = "Denied by the resource provider."


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation, with the api-versions that have it, its quota, and who may call it.

    With `for_users`, that is a user with an Entra token for one of those audiences. Without, it is
    the holder of the resource's key or of an Entra token for the identity API.
    """

    name: str
    versions: tuple[str, ...] = ALL_VERSIONS
    quota: str | None = None
    for_users: frozenset[str] | None = None


class ServiceError(Exception):
    """An error that the service answers with."""

    def __init__(
        self, status: int, code: str, message: str, target: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": code, "message": message} | ({"target": target} if target else {})
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> web.Response:
        """Return the answer; the service sends its errors without a charset, in chunks."""
        body = json.dumps({"error": self.error}).encode()
        answer = web.Response(
            status=self.status, body=body, content_type="application/json", headers=self.headers
        )
        answer.enable_chunked_encoding()
        return answer


def invalid(message: str, target: str | None = None, **headers: str) -> ServiceError:
    """Return the error for a body that is not valid."""
    return ServiceError(400, "ValidationError", message, target, **headers)


def of_status(status: int) -> ServiceError:
    """Return the error for a status."""
    if status == HTTPStatus.UNAUTHORIZED:
        return ServiceError(status, "Denied", DENIED)
    # Not observed: the codes of other statuses.
    phrase = HTTPStatus(status).phrase
    return ServiceError(status, phrase.replace(" ", ""), f"{phrase}.")


def check_version(request: web.Request, operation: Operation) -> None:
    """Check that a request's api-version has the operation.

    Raises:
        ServiceError: it has not, or the request names no api-version.
    """
    version = request.query.get("api-version")
    # One of the messages has been seen. The codes and the status have not: they are ASP.NET's.
    if version is None:
        message = "An API version is required, but was not specified."
        raise ServiceError(400, "ApiVersionUnspecified", message)
    if version not in operation.versions:
        message = (
            f"The HTTP resource that matches the request URI '{request.url}'"
            f" does not support the API version '{version}'."
        )
        versions = ", ".join(operation.versions)
        raise ServiceError(400, "UnsupportedApiVersion", message, api_supported_versions=versions)


async def members(request: web.Request) -> dict[str, Any]:
    """Return the members of the body; no body counts as an empty object."""
    body = await request.read()
    try:
        return json_object(json.loads(body or b"{}"))
    except ValueError as exc:
        raise invalid("The request body is not JSON.") from exc  # Not observed.


def json_object(value: object) -> dict[str, Any]:
    """Return a value that must be a JSON object."""
    if not isinstance(value, dict):
        raise invalid("A JSON object is expected.")  # Not observed.
    return value


def check_teams_user(body: Mapping[str, Any]) -> None:
    """Check that the exchange of a Teams user's token names everything.

    Raises:
        ServiceError: it does not.
    """
    if not isinstance(body.get("token"), str):
        raise invalid("Token: The Token field is required.", "Token")  # Not observed.
    for name, member in (("AppId", "appId"), ("UserId", "userId")):
        if not isinstance(body.get(member), str) or not body[member]:
            raise invalid(f"{name}: The {name} field is required.", name)


def check_teams_ids(body: Mapping[str, Any], *, app_id: str, user_id: str) -> None:
    """Check that it names the app and the user of the token.

    Raises:
        ServiceError: it does not.
    """
    versions = ", ".join(SINCE_TEAMS)
    for name, member in (("AppId", "appId"), ("UserId", "userId")):
        try:
            uuid.UUID(body[member])
        except ValueError as exc:
            message = f"Provided {name} has invalid format."
            raise invalid(message, member, api_supported_versions=versions) from exc
    if body["appId"] != app_id:
        message = "AAD application is not the expected one."
        raise invalid(message, "appId", api_supported_versions=versions)
    if body["userId"] != user_id:
        message = "Provided AAD token issued for unexpected user."
        raise invalid(message, "userId", api_supported_versions=versions)


def scopes_of(wanted: object, version: str) -> list[str]:
    """Return the scopes that a body asks for, which the api-version must have."""
    if not wanted:
        raise invalid("Scopes: The Scopes field is required.", "Scopes")
    known = SCOPES | JOIN_SCOPES if version >= JOIN_SCOPES_SINCE else SCOPES
    if not isinstance(wanted, list) or not known.issuperset(map(str, wanted)):
        raise invalid("Scopes: A scope is unknown.", "Scopes")  # Not observed.
    return wanted


def expiry_of(body: Mapping[str, Any]) -> int:
    """Return when a token issued now expires, given the minutes that the body asks for."""
    minutes = body.get("expiresInMinutes")
    if minutes is None:
        minutes = LONGEST_MINUTES
    if type(minutes) is not int:
        raise invalid("ExpiresInMinutes is not a whole number.", "ExpiresInMinutes")  # As above.
    if not SHORTEST_MINUTES <= minutes <= LONGEST_MINUTES:
        message = (
            f"ExpiresInMinutes value {minutes} is invalid. Value must be within the"
            f" [{SHORTEST_MINUTES}, {LONGEST_MINUTES}] interval."
        )
        versions = ", ".join(ALL_VERSIONS)  # Of the recorded errors, few have them.
        raise invalid(message, "ExpiresInMinutes", api_supported_versions=versions)
    return time.time_ns() + minutes * 60 * SECOND


def timestamp(moment: int) -> str:
    """Write a time as .NET does: up to seven decimals of the second, without trailing zeros."""
    seconds, rest = divmod(moment, SECOND)
    fraction = f".{rest // 100:07}".rstrip("0").rstrip(".")
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}+00:00"


def entra_assignment(object_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the assignment of a user, a group or a tenant that a body describes."""
    # Not observed, here and below: the message about a member that is not valid.
    if not isinstance(body.get("tenantId"), str):
        raise invalid("The tenantId field is required.", "tenantId")
    return {
        "objectId": object_id,
        "tenantId": body["tenantId"],
        "principalType": _principal_type(body, "user", "group", "tenant"),
        "clientIds": _client_ids(body.get("clientIds")),
    }


def teams_assignment(tenant_id: str, object_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the assignment of a Teams user or resource account that a body describes."""
    return {
        "objectId": object_id,
        "tenantId": tenant_id,
        "principalType": _principal_type(body, "user", "resourceAccount"),
        "clientIds": _client_ids(body.get("clientIds") or []),
    }


def _principal_type(body: Mapping[str, Any], *allowed: str) -> str:
    if body.get("principalType") not in allowed:
        raise invalid(f"The principalType must be one of {', '.join(allowed)}.", "principalType")
    return str(body["principalType"])


def _client_ids(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid("The clientIds field must be a list of app ids.", "clientIds")
    return value

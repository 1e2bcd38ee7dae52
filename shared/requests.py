"""Reads HTTP requests: the bearer token, queries and bodies, as strictly as the contract says."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from shared import strict_json
from shared.errors import InvalidRequestError, MissingTokenError, UnsupportedMediaTypeError
from shared.identifiers import ACS_ID, GUID, Person
from shared.settings import ACS_SCOPES, LIFETIME_MINUTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import azure.functions as func

UTF_8 = {"", "charset=utf-8", 'charset="utf-8"'}
MAX_SCOPES = 16
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
USERS_PARAMETERS = {"tenantId", "state", "communicationUserId", "continuationToken", "limit"}
STATES = {"creating", "active", "deleting", "erased", "broken"}
# Table Storage encodes the keys in its tokens, as in `1!8!U21pdGg-`; Azurite in plain base64.
POSITION = re.compile(r"[A-Za-z0-9_!+/=-]{1,200}")
_OTHER_SCHEME = re.compile(
    r"(?!bearer)[A-Za-z][A-Za-z0-9-]*( .*)?", re.IGNORECASE | re.DOTALL | re.ASCII
)


def bearer_token(headers: Mapping[str, str]) -> str:
    """Return the access token in the `Authorization` header, not validated yet.

    Raises:
        MissingTokenError: there is no header, or it has another scheme (RFC 6750, section 3.1).
        InvalidRequestError: it has two credentials, or is not a credential at all. The Functions
            host joins repeated headers with a comma, which no token contains.
    """
    value = headers.get("authorization", "").strip(" ")
    scheme, _, token = value.partition(" ")
    if scheme.lower() == "bearer" and "," not in token:
        if not token.strip(" "):
            raise MissingTokenError("no token after the scheme")
        return token.lstrip(" ")
    if not value:
        raise MissingTokenError("no Authorization header")
    if _OTHER_SCHEME.fullmatch(value) and "bearer" not in value.lower():
        raise MissingTokenError("another authentication scheme")
    raise InvalidRequestError("an Authorization header that is not one bearer token")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a caller asks for; None leaves the choice to the settings."""

    scopes: frozenset[str] | None
    lifetime: timedelta | None

    @classmethod
    def parse(cls, req: func.HttpRequest) -> TokenRequest:
        """Read the query of a GET, or the JSON body of a POST.

        Raises:
            InvalidRequestError: a member is unknown, or its value is out of range.
            UnsupportedMediaTypeError: the body is not declared as JSON.
        """
        if req.method == "POST":
            _refuse_query(req)
            asked = _body(req)
        else:
            asked = _query(req)
        if not asked.keys() <= {"scopes", "expiresInMinutes"}:
            raise InvalidRequestError("an unknown member")
        return cls(
            scopes=_scopes(asked["scopes"]) if "scopes" in asked else None,
            lifetime=_lifetime(asked["expiresInMinutes"]) if "expiresInMinutes" in asked else None,
        )


def held_token(req: func.HttpRequest) -> str | None:
    """Return the Entra token for ACS in the body of a POST, if there is one.

    Raises:
        InvalidRequestError: there is other input.
        UnsupportedMediaTypeError: the body is not declared as JSON.
    """
    _refuse_query(req)
    body = _body(req) if req.method == "POST" else {}
    token = body.get("accessToken", "")
    if not body.keys() <= {"accessToken"} or not isinstance(token, str):
        raise InvalidRequestError("the body is not one accessToken")
    if "accessToken" in body and not token:
        raise InvalidRequestError("accessToken is empty")
    return token or None


@dataclass(frozen=True, slots=True)
class UsersQuery:
    """Which people an administrator asks for."""

    tenant_id: str  # Empty: the administrator's own, or any for an ACS identity.
    state: str | None
    acs_id: str
    start: Continuation | None
    limit: int

    @classmethod
    def parse(cls, req: func.HttpRequest) -> UsersQuery:
        """Read the query.

        Raises:
            InvalidRequestError: a parameter is unknown, or its value has the wrong form.
        """
        asked = _query_parameters(req)
        if not asked.keys() <= USERS_PARAMETERS:
            raise InvalidRequestError("an unknown parameter")
        acs_id = asked.get("communicationUserId", "")
        if acs_id and not ACS_ID.fullmatch(acs_id):
            raise InvalidRequestError("communicationUserId is not an ACS identity")
        if acs_id and asked.keys() - {"communicationUserId", "tenantId"}:
            raise InvalidRequestError("communicationUserId goes with tenantId only")
        state = asked.get("state")
        if state is not None and state not in STATES:
            raise InvalidRequestError("state is not a state of a mapping")
        limit = asked.get("limit", str(DEFAULT_LIMIT))
        if not re.fullmatch(r"[1-9][0-9]{0,3}", limit) or int(limit) > MAX_LIMIT:
            raise InvalidRequestError("limit is not a whole number from 1 to 1000")
        token = asked.get("continuationToken")
        return cls(
            tenant_id=_guid(asked["tenantId"]) if "tenantId" in asked else "",
            state=state,
            acs_id=acs_id,
            start=Continuation.parse(token) if token else None,
            limit=int(limit),
        )


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where the next page of a list of people begins, and which list that is.

    A caller could make one up. It selects nothing: the query does, and the administrator's rights
    are checked against that.
    """

    tenant_id: str
    state: str | None
    position: Mapping[str, str | None]  # As Table Storage gave it.

    @classmethod
    def parse(cls, token: str) -> Continuation:
        """Read an opaque token.

        Raises:
            InvalidRequestError: it is not one of ours.
        """
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            partition, row, tenant_id, state = strict_json.loads_object(raw)["at"]
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidRequestError("continuationToken is not one of ours") from exc
        # Table Storage may leave out the row.
        keys = [partition] if row is None else [partition, row]
        if not all(isinstance(key, str) and POSITION.fullmatch(key) for key in keys):
            raise InvalidRequestError("continuationToken is not one of ours")
        return cls(tenant_id, state, {"PartitionKey": partition, "RowKey": row})

    def __str__(self) -> str:
        """Return the opaque token."""
        keys = [self.position["PartitionKey"], self.position["RowKey"]]
        raw = json.dumps({"at": [*keys, self.tenant_id, self.state]}).encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def person_of(req: func.HttpRequest) -> Person:
    """Return the person that a route names.

    Raises:
        InvalidRequestError: an id is not a GUID.
    """
    return Person(_guid(req.route_params["tenantId"]), _guid(req.route_params["objectId"]))


def adopted_identity(req: func.HttpRequest) -> str:
    """Return the ACS identity in the body of a PUT.

    Raises:
        InvalidRequestError: the body is not `{"communicationUserId": "8:acs:..."}`.
        UnsupportedMediaTypeError: it is not declared as JSON.
    """
    _refuse_query(req)
    body = _body(req)
    acs_id = body.get("communicationUserId")
    if body.keys() != {"communicationUserId"} or not isinstance(acs_id, str):
        raise InvalidRequestError("the body is not one communicationUserId")
    if not ACS_ID.fullmatch(acs_id):
        raise InvalidRequestError("communicationUserId is not an ACS identity")
    return acs_id


def _guid(text: str) -> str:
    if not GUID.fullmatch(text.lower()):
        raise InvalidRequestError("an id is not a GUID")
    return text.lower()


def refuse_input(req: func.HttpRequest) -> None:
    """Raise InvalidRequestError if a request has input that its route does not take."""
    _refuse_query(req)
    if req.method != "GET" and _body(req):
        raise InvalidRequestError("this route takes no input")


def _query_parameters(req: func.HttpRequest) -> dict[str, Any]:
    """Return the query parameters; a GET may have nothing else.

    The Functions host joins repeated parameters with a comma and drops those without a value. So
    an empty `scope=` would count as absent, and be answered with all scopes: it is refused here.
    """
    query = parse_qsl(req.url.partition("?")[2], keep_blank_values=True)
    if not all(value for _, value in query):
        raise InvalidRequestError("a parameter without a value")
    if req.method == "GET" and req.get_body():
        raise InvalidRequestError("a body on a GET")
    return dict(req.params)


def _refuse_query(req: func.HttpRequest) -> None:
    if _query_parameters(req):
        raise InvalidRequestError("this route takes no query")


def _query(req: func.HttpRequest) -> dict[str, Any]:
    asked = _query_parameters(req)
    if "scopes" in asked:
        raise InvalidRequestError("the query parameter is called scope, not scopes")
    if "scope" in asked:
        asked["scopes"] = asked.pop("scope").split(",")
    minutes = asked.get("expiresInMinutes")
    if minutes is not None and re.fullmatch(r"[1-9][0-9]{1,3}", minutes):
        asked["expiresInMinutes"] = int(minutes)
    return asked


def _body(req: func.HttpRequest) -> dict[str, Any]:
    body = req.get_body()
    if not body:
        if "transfer-encoding" in req.headers:
            # The Functions host drops such a body, so the caller's choices would be ignored.
            raise InvalidRequestError("a body without Content-Length")
        return {}
    media_type, _, parameter = req.headers.get("content-type", "").lower().partition(";")
    if media_type.strip(" \t") != "application/json" or parameter.strip(" \t") not in UTF_8:
        raise UnsupportedMediaTypeError("the body is not application/json")
    try:
        # JSON may have white space around it, RFC 8259 section 2.
        return strict_json.loads_object(body.strip(b" \t\r\n"))
    except ValueError as exc:
        raise InvalidRequestError("the body is not one strict JSON object") from exc


def _scopes(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SCOPES:
        raise InvalidRequestError("scopes is not a list of 1 to 16 scopes")
    if not all(isinstance(scope, str) and scope in ACS_SCOPES for scope in value):
        raise InvalidRequestError("a scope that ACS does not have")
    return frozenset(value)


def _lifetime(value: Any) -> timedelta:  # noqa: ANN401 - any JSON value
    # 60.0 counts as a whole number, as in JSON Schema; a string or True does not.
    if type(value) not in {int, float} or value not in LIFETIME_MINUTES:
        raise InvalidRequestError("expiresInMinutes is not a whole number from 60 to 1440")
    return timedelta(minutes=float(value))

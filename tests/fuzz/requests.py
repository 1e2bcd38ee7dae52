"""Bodies and queries, judged by the contract (`shared/openapi.json`)."""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import azure.functions as func

from shared import requests
from shared.errors import InvalidRequestError, UnsupportedMediaTypeError
from tests.fuzz import odd
from tests.fuzz.configured import OTHER_TENANT, TENANT
from tests.fuzz.reading import UnreadableError, json_object
from tests.fuzz.target import differs, refusing

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ACS_SCOPES = {"chat", "voip", "chat.join", "chat.join.limited", "voip.join"}
IDENTITY = f"8:acs:{TENANT}_00000015-0000-0000-0000-000000000001"
MEDIA_TYPES = (
    *("application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'),
    *("text/plain", "application/jsonx", "", "application/json; charset=utf-16", "text/json"),
    *("application/json, text/plain", "application/x-www-form-urlencoded", "json"),
)
MEDIA_TYPE = re.compile(
    r'[ \t]*application/json[ \t]*(;[ \t]*(charset=("utf-8"|utf-8))?[ \t]*)?',
    re.IGNORECASE | re.ASCII,
)
GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
ACS_ID = re.compile(r"8:(acs|gcch-acs|dod-acs):[0-9a-fA-F-]{36}_[0-9a-zA-Z-]{1,64}")
POSITION = re.compile(r"[A-Za-z0-9_!+/=-]{1,200}")
STATES = {"creating", "active", "deleting", "erased", "broken"}
LIFETIMES = (60, 1440, 59, 1441, 60.0, 60.5, "60", True, None, 1e3, -60, [60], 100, 14400)
SCOPES: tuple[Any, ...] = (
    *(["chat"], ["voip", "chat"], ["chat", "chat"], [], ["Chat"], "chat", ["chat", None]),
    *(["chat,voip"], [" chat"], ["chat"] * 16, ["chat"] * 17, {"chat": 1}, [["chat"]], ["chats"]),
)
URL = "https://broker.example/api/token"


class BodyTarget:
    """The body of a POST says exactly what is read from it, or is refused."""

    name = "body"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return the route, the media type and the body."""
        route = chance.choice(list(ROUTES))
        body: dict[str, Any] = {}
        if route == "token":
            if chance.random() < 0.7:
                body["scopes"] = chance.choice(SCOPES)
            if chance.random() < 0.7:
                body["expiresInMinutes"] = chance.choice(LIFETIMES)
        elif route == "exchange":
            body["accessToken"] = chance.choice(("aaa.bbb.ccc", "", None, ["a"], 1))
        else:
            body["communicationUserId"] = chance.choice((IDENTITY, IDENTITY + "\n", "8:acs:x", 1))
        if chance.random() < 0.3:
            body = odd.spoilt_object(chance, body)
        raw = odd.spelled(chance, body).encode("utf-8", "surrogatepass")
        if chance.random() < 0.2:
            raw = odd.spoilt_bytes(chance, raw)
        good = chance.random() < 0.8
        media_type = MEDIA_TYPES[0] if good else chance.choice(MEDIA_TYPES)
        if chance.random() < 0.05:
            media_type = odd.spoilt_text(chance, media_type)
        return {"route": route, "media type": media_type, "body": raw}

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with the contract."""
        raw, media_type = value.get("body", b""), value.get("media type", "")
        route = ROUTES.get(value.get("route", ""), _token)
        request = func.HttpRequest(
            method="PUT" if route is _identity else "POST",
            url=URL,
            headers={"Content-Type": media_type},
            params={},
            body=raw,
        )
        with refusing(InvalidRequestError, UnsupportedMediaTypeError) as refusals:
            read = route(request)
        try:
            asked = json_object(raw.strip(b" \t\r\n")) if raw else {}
        except UnreadableError:
            asked = None
        declared = not raw or MEDIA_TYPE.fullmatch(media_type) is not None
        if refusals and not declared:
            return _unless(refusals, UnsupportedMediaTypeError)
        expected = EXPECTED[route](asked) if asked is not None and declared else REFUSED
        verdict = differs(should=expected != REFUSED, refusals=refusals)
        if verdict or refusals:
            return verdict or _unless(refusals, InvalidRequestError)
        return None if read == expected else "something else is read than was sent"


REFUSED = "refused"


def _unless(refusals: list[Exception], right: type[Exception]) -> str | None:
    wrong = type(refusals[0]) is not right
    return f"a {type(refusals[0]).__name__} that does not fit" if wrong else None


def _token(request: func.HttpRequest) -> Any:
    read = requests.TokenRequest.parse(request)
    return read.scopes, read.lifetime


def _exchange(request: func.HttpRequest) -> Any:
    return requests.held_token(request)


def _identity(request: func.HttpRequest) -> Any:
    return requests.adopted_identity(request)


def _expected_token(asked: dict[str, Any]) -> Any:
    """Return what a body of POST /api/token asks for."""
    scopes, minutes = None, None
    for name, member in asked.items():
        if name == "scopes":
            texts = isinstance(member, list) and all(isinstance(each, str) for each in member)
            if not texts or not 1 <= len(member) <= 16 or not set(member) <= ACS_SCOPES:
                return REFUSED
            scopes = frozenset(member)
        elif name == "expiresInMinutes":
            # JSON Schema: 60.0 is an integer, `true` is not a number.
            number = type(member) in {int, float}
            if not number or not 60 <= member <= 1440 or member % 1:
                return REFUSED
            minutes = timedelta(minutes=member)
        else:
            return REFUSED
    return scopes, minutes


def _expected_exchange(asked: dict[str, Any]) -> Any:
    token = asked.get("accessToken")
    if not asked:
        return None
    return token if set(asked) == {"accessToken"} and isinstance(token, str) and token else REFUSED


def _expected_identity(asked: dict[str, Any]) -> Any:
    acs_id = asked.get("communicationUserId")
    known = isinstance(acs_id, str) and ACS_ID.fullmatch(acs_id)
    return acs_id if known and len(asked) == 1 else REFUSED


ROUTES: dict[str, Callable[[func.HttpRequest], Any]] = {
    "token": _token,
    "exchange": _exchange,
    "identity": _identity,
}
EXPECTED: dict[Callable[[func.HttpRequest], Any], Callable[[dict[str, Any]], Any]] = {
    _token: _expected_token,
    _exchange: _expected_exchange,
    _identity: _expected_identity,
}


class QueryTarget:
    """The query of a GET says exactly what is read from it, or is refused."""

    name = "query"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return the route, and the parameters in their order."""
        of_users = chance.random() < 0.5
        choices = USERS_QUERY if of_users else TOKEN_QUERY
        pairs = []
        for _ in range(chance.choice((0, 1, 1, 2, 2, 3))):
            name = chance.choice(list(choices))
            value = chance.choice(choices[name])
            if chance.random() < 0.2:
                value = odd.spoilt_text(chance, value)
            if chance.random() < 0.05:
                name = odd.spoilt_text(chance, name)
            pairs.append([name, value])
        return {
            "of users": of_users,
            "pairs": pairs,
            "body": b"{}" if chance.random() < 0.03 else b"",
        }

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with the contract."""
        pairs = [pair for pair in value.get("pairs", []) if len(pair) == 2]
        request = _request(pairs, value.get("body", b""))
        of_users = value.get("of users", False)
        with refusing(InvalidRequestError) as refusals:
            if of_users:
                query = requests.UsersQuery.parse(request)
                read: Any = (query.tenant_id, query.state, query.acs_id, query.limit)
            else:
                read = _token(request)
        expect = _expected_users if of_users else _expected_query
        whole = all(each for _, each in pairs) and not value.get("body", b"")
        expected = expect(_joined(pairs)) if whole else REFUSED
        verdict = differs(should=expected != REFUSED, refusals=refusals)
        if verdict or refusals:
            return verdict
        return None if read == expected else "something else is read than was sent"


CONTINUATION = (
    base64.urlsafe_b64encode(json.dumps({"at": ["a_b", "c", TENANT, None]}).encode())
    .rstrip(b"=")
    .decode()
)
TOKEN_QUERY = {
    "scope": ("chat", "voip,chat", "chat,chat", "", ",", "chat,", "Chat", "chat voip", "chats"),
    "scopes": ("chat",),
    "expiresInMinutes": ("60", "1440", "59", "1441", "060", "60.0", "", "6e1", "+60", "٦٠", " 60"),
    "access_token": ("aaa.bbb.ccc",),
}
USERS_QUERY = {
    "tenantId": (TENANT, TENANT.upper(), OTHER_TENANT, "", "*", f"{TENANT}\n"),
    "state": ("active", "erased", "Active", "", "active,erased", "absent"),
    "communicationUserId": (IDENTITY, "", "8:acs:", IDENTITY.replace("acs", "orgid")),
    "limit": ("1", "1000", "1001", "0", "-1", "1e2", "", "100", "٣"),
    "continuationToken": (CONTINUATION, CONTINUATION[:-1], "", "e30", "W10", "bnVsbA"),
    "scope": ("chat",),
}


def _joined(pairs: list[list[str]]) -> dict[str, str]:
    """Join repeated parameters with a comma, as the Functions host does."""
    joined: dict[str, str] = {}
    for name, each in pairs:
        joined[name] = f"{joined[name]},{each}" if name in joined else each
    return joined


def _request(pairs: list[list[str]], body: bytes) -> func.HttpRequest:
    query = urlencode([(name, each) for name, each in pairs], errors="replace")
    # The host drops parameters without a value.
    params = _joined([pair for pair in pairs if pair[1]])
    return func.HttpRequest(
        method="GET", url=f"{URL}?{query}", headers={}, params=params, body=body
    )


def _expected_query(asked: dict[str, str]) -> Any:
    """Return what the query of GET /api/token asks for."""
    if not asked.keys() <= {"scope", "expiresInMinutes"}:
        return REFUSED
    body: dict[str, Any] = {}
    if "scope" in asked:
        body["scopes"] = asked["scope"].split(",")
    minutes = asked.get("expiresInMinutes")
    if minutes is not None:
        if minutes not in {str(number) for number in range(60, 1441)}:
            return REFUSED
        body["expiresInMinutes"] = int(minutes)
    return _expected_token(body)


def _expected_users(asked: dict[str, str]) -> Any:
    """Return what the query of GET /api/users asks for."""
    known = {"tenantId", "state", "communicationUserId", "continuationToken", "limit"}
    acs_id, state, limit = (asked.get(name) for name in ("communicationUserId", "state", "limit"))
    fits = (
        asked.keys() <= known
        and (acs_id is None or ACS_ID.fullmatch(acs_id) is not None)
        and not (acs_id is not None and asked.keys() - {"communicationUserId", "tenantId"})
        and (state is None or state in STATES)
        and (limit is None or limit in {str(number) for number in range(1, 1001)})
        and ("tenantId" not in asked or GUID.fullmatch(asked["tenantId"]) is not None)
        and ("continuationToken" not in asked or _is_continuation(asked["continuationToken"]))
    )
    if not fits:
        return REFUSED
    return asked.get("tenantId", "").lower(), state, acs_id or "", int(limit or 100)


def _is_continuation(token: str) -> bool:
    """Return whether a token says where a list goes on.

    How it is spelled does not matter: it selects nothing that its sender may not see.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        at = json_object(raw).get("at")
    except (ValueError, UnreadableError):
        return False
    if not isinstance(at, list | dict | str) or len(at) != 4:
        return False
    partition, row = list(at)[:2]
    keys = [partition] if row is None else [partition, row]
    return all(isinstance(key, str) and POSITION.fullmatch(key) for key in keys)

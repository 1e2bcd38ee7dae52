"""What Entra's token endpoint and Microsoft Graph answer.

https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow
https://learn.microsoft.com/graph/api/directory-deleteditems-list
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shared import http, strict_json
from shared.entra import graph
from shared.entra.on_behalf_of import OnBehalfOf
from shared.entra.refusals import error_of
from shared.errors import BrokerError, InsufficientClaimsError, InvalidTokenError, RevokedTokenError
from tests.fuzz import odd
from tests.fuzz.claims import GUID
from tests.fuzz.configured import API, AUTHORITY, NOW, OTHER_TENANT, PERSON, TENANT
from tests.fuzz.reading import UnreadableError, json_object
from tests.fuzz.sending import Answers
from tests.fuzz.target import MARKER, differs, refusing, text_is_safe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

ERRORS = (
    *("invalid_grant", "interaction_required", "invalid_client", "unauthorized_client"),
    *("temporarily_unavailable", "server_error", "invalid_request", MARKER, "", None, ["a"]),
)
NUMBERS = (
    *(65001, 50076, 50105, 50132, 70043, 90033, 50196, 7000215, 700082, 500131, 53003, 1, 0, -1),
    *(True, "65001", 65001.0, None, 10**9, MARKER),
)
STATUSES = (400, 400, 400, 401, 403, 429, 500, 503, 200, 302)
CHALLENGE = '{"access_token":{"polids":{"essential":true,"values":["5ce770ea"]}}}'
LONGEST_CLAIMS = 2048  # bytes
TRACE = "0af7651916cd43dd8448eb211c80319c"
# Through azure-identity and MSAL, which take milliseconds.
WHOLE = 0.002
# RFC 9110, section 5.5: what may be in a header, and RFC 7235, appendix C: a quoted parameter.
HEADER = re.compile(r"[\x20-\x7e]{1,8000}")
CHALLENGED = re.compile(r'Bearer [a-z_]+="[^"\\]*"(, [a-z_]+="[^"\\]*")*')


class EntraTarget:
    """An answer of Entra's becomes one of our errors, which quotes nothing but good claims."""

    name = "entra"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return the status and the body of an answer."""
        body: dict[str, Any] = {
            "error": chance.choice(ERRORS),
            "error_description": f"AADSTS50076: {MARKER} has to use multi-factor authentication.",
            "error_codes": chance.choices(NUMBERS, k=chance.choice((0, 1, 1, 2))),
            "correlation_id": PERSON,
        }
        if chance.random() < 0.4:
            claims = chance.choice((CHALLENGE, CHALLENGE, "{}", "{", "[]", f'{{"{MARKER}":1}}'))
            body["claims"] = odd.spoilt_text(chance, claims) if chance.random() < 0.3 else claims
        if chance.random() < 0.02:
            body["claims"] = json.dumps({"a": "é" * chance.choice((1000, 1019, 1020, 2100))})
        if chance.random() < 0.2:
            body["suberror"] = chance.choice(("consent_required", "basic_action", MARKER, None, 1))
        if chance.random() < 0.2:
            body = odd.spoilt_object(chance, body)
        if chance.random() > WHOLE:
            return {"status": chance.choice(STATUSES[:-2]), "answer": body}
        if chance.random() < 0.3:
            body = {"access_token": "aaa.bbb.ccc", "expires_in": 3600, "token_type": "Bearer"}
            if chance.random() < 0.5:
                body = odd.spoilt_object(chance, body)
        raw = odd.spelled(chance, body).encode("utf-8", "surrogatepass")
        return {"status": chance.choice(STATUSES), "body": raw}

    def judge(self, value: dict[str, Any]) -> str | None:
        """Look at the error, and at the answer that the caller gets for it."""
        status = value.get("status", 400)
        if "body" in value:
            return asyncio.run(_asked(status, value["body"]))
        answer = value.get("answer", {})
        error = error_of(status, answer, retry_after=None, now=NOW)
        if not text_is_safe(error):
            return "the error quotes Entra's answer"
        return _problem_of(error, answer) or _unfit(error, status)


def _unfit(error: BrokerError, status: int) -> str | None:
    """Return what is wrong if the person is signed out though Entra is at fault."""
    passing = status == 429 or status >= 500
    if passing and isinstance(error, InvalidTokenError | RevokedTokenError):
        return "Entra is out of order, and the token counts as bad"
    return None


def _problem_of(error: BrokerError, answer: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the answer that the caller would get."""
    response = http._problem(error, TRACE)
    for header in response.headers.values():
        if not HEADER.fullmatch(header):
            return "a header that is malformed"
    challenge = response.headers.get("WWW-Authenticate", "")
    if challenge and not CHALLENGED.fullmatch(challenge):
        return "a challenge that nobody can take apart"
    body = json_object(response.get_body())
    claims = body.pop("claims", None)
    if MARKER in repr(body):
        return "the answer quotes Entra's"
    if isinstance(error, RevokedTokenError):
        return None
    if claims is None:
        return "a good challenge is lost" if _is_lost(error, answer) else None
    if claims != answer.get("claims") or not _is_challenge(claims):
        return "claims that are not one small object of JSON"
    encoded = challenge.partition('claims="')[2].partition('"')[0]
    return None if base64.b64decode(encoded).decode() == claims else "other claims in the header"


def _is_lost(error: BrokerError, answer: Mapping[str, Any]) -> bool:
    return isinstance(error, InsufficientClaimsError) and _is_challenge(answer.get("claims"))


def _is_challenge(claims: object) -> bool:
    try:
        raw = claims.encode() if isinstance(claims, str) else b""
        json_object(raw)
    except (UnicodeEncodeError, UnreadableError):
        return False
    return len(raw) <= LONGEST_CLAIMS


async def _asked(status: int, body: bytes) -> str | None:
    """Let the service ask for a token, and return the verdict on what it made of the answer."""

    async def secret(_tenant_id: str) -> dict[str, Any]:
        return {"client_secret": "worthless"}

    by = OnBehalfOf(
        authority=AUTHORITY,
        client_id=API,
        client_credential=secret,
        transport=Answers(status, {"Content-Type": "application/json"}, body),
    )
    with refusing(BrokerError) as refusals:
        token = await by.token("a.b.c", tenant_id=TENANT, scopes=("https://a.example/b",))
    try:
        document = json_object(body.strip())
    except UnreadableError:
        document = {}
    given = document.get("access_token")
    fits = (
        status == 200
        and "error" not in document
        and isinstance(given, str)
        and type(document.get("expires_in")) is int
    )
    if not refusals and (not fits or token != given):
        return "a token that Entra did not give"
    # MSAL asks for more than is documented, so a good answer may be refused: for its token type.
    return None


class GraphTarget:
    """A page of deleted users names people and dates, or nobody is taken to be gone."""

    name = "graph"

    def make(self, chance: Random) -> bytes:
        """Return a page."""
        users: list[Any] = [
            {
                "id": chance.choice(
                    (PERSON, OTHER_TENANT, PERSON.upper(), "", None, f"{PERSON}\n")
                ),
                "deletedDateTime": chance.choice(
                    ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z", "2026-01-02", None, "", 1)
                ),
            }
            for _ in range(chance.randrange(3))
        ]
        if users and chance.random() < 0.3:
            users[0] = odd.spoilt_object(chance, users[0])
        page: dict[str, Any] = {"value": users}
        if chance.random() < 0.2:
            page = odd.spoilt_object(chance, page)
        return odd.spelled(chance, page).encode("utf-8", "surrogatepass")

    def judge(self, value: bytes) -> str | None:
        """Compare with the documents."""
        read: list[tuple[str, datetime]] = []
        with refusing(ValueError) as refusals:
            read = graph.users_of(strict_json.loads_object(value))
        try:
            users = json_object(value).get("value")
        except UnreadableError:
            return differs(should=False, refusals=refusals)
        proper = isinstance(users, list) and all(_is_user(user) for user in users)
        verdict = differs(should=proper, refusals=refusals)
        if verdict or refusals or not isinstance(users, list):
            return verdict
        found = [(object_id, date.isoformat()) for object_id, date in read]
        expected = [
            (user["id"], datetime.fromisoformat(user["deletedDateTime"]).isoformat())
            for user in users
        ]
        return None if found == expected else "other people than the page names"


def _is_user(user: object) -> bool:
    if not isinstance(user, dict):
        return False
    name, date = user.get("id"), user.get("deletedDateTime")
    if not isinstance(name, str) or not GUID.fullmatch(name):
        return False
    try:
        return isinstance(date, str) and datetime.fromisoformat(date).tzinfo is not None
    except ValueError:
        return False

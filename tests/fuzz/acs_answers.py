"""What ACS answers: identities, tokens and exchanges, through Microsoft's SDK.

ACS documents no form for its tokens. So what must be refused is a token that says itself that it is
for somebody else, or allows more; and what is no token, no date and no identity.
https://learn.microsoft.com/rest/api/communication/identity
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential

from shared.acs import exchange, identity, tokens
from shared.errors import BrokerError, UpstreamBadResponseError
from shared.identifiers import Person
from tests.fuzz import odd
from tests.fuzz.configured import NOW
from tests.fuzz.reading import UnreadableError, base64url, json_object
from tests.fuzz.sending import Answers
from tests.fuzz.target import differs, refusing
from tests.fuzz.tokens import encoded

if TYPE_CHECKING:
    from random import Random

RESOURCE = "c0ffee00-0000-4000-8000-00000000000d"
IDENTITY = f"8:acs:{RESOURCE}_00000015-0000-0000-0000-000000000001"
OTHER = f"8:acs:{RESOURCE}_00000015-0000-0000-0000-000000000002"
ACS_ID = re.compile(r"8:(acs|gcch-acs|dod-acs):[0-9a-fA-F-]{36}_[0-9a-zA-Z-]{1,64}")
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,16384}=*")  # RFC 6750, section 2.1
DATE = re.compile(
    r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{3}|\.[0-9]{6})?(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9])"
)
SCOPES = ["chat", "voip"]
LIFETIME = timedelta(hours=1)
SOMEBODY = Person("tenant", "somebody")
MOMENT = datetime.fromtimestamp(NOW, UTC)
KEY = AzureKeyCredential("d29ydGhsZXNzIGtleSBvZiB0aGlzIGZ1enplcg==")
ENDPOINT = "https://contoso.communication.azure.com"
# Through the SDK, which takes twenty times as long.
WHOLE = 0.03
DATES = (
    *("2030-03-17T18:46:40Z", "2030-03-17T18:46:40.0000000+00:00", "2030-03-17T19:46:40+01:00"),
    *("2030-03-17T18:46:40", "2030-03-17", "1900003600", 1900003600, None, "", "2030-13-17T00:00Z"),
    *("2031-03-17T18:46:40Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "Z"),
)


def _acs_token(chance: Random) -> Any:
    claims: dict[str, Any] = {
        "skypeid": IDENTITY[2:],
        "scp": 1792,
        "acsScope": "chat,voip",
        "exp": NOW + 3600,
    }
    kind = chance.randrange(6)
    if kind == 0:
        claims["skypeid"] = chance.choice((OTHER[2:], IDENTITY, "", None, [IDENTITY[2:]]))
    elif kind == 1:
        claims["acsScope"] = chance.choice(
            ("chat", "chat,voip,chat.join", "voip.join", "", None, ["chat"], "chat, voip", 7)
        )
    elif kind == 2:
        claims = odd.spoilt_object(chance, claims)
    payload = odd.spelled(chance, claims).encode("utf-8", "surrogatepass")
    token = f"eyJhbGciOiJSUzI1NiJ9.{encoded(payload)}.c2lnbmF0dXJl"
    if chance.random() < 0.2:
        return chance.choice((odd.spoilt_text(chance, token), token + "=", "opaque", "a b", "", 1))
    return token


class AcsTarget:
    """No token for somebody else, or for more than was asked for, is handed on."""

    name = "acs"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return which call is made, and the status and the body of its answer."""
        token = {"token": _acs_token(chance), "expiresOn": DATES[0]}
        if chance.random() < 0.3:
            token["expiresOn"] = chance.choice(DATES)
        if chance.random() < 0.05:
            token["expiresOn"] = odd.spoilt_text(chance, DATES[0])
        if chance.random() < 0.1:
            token = odd.spoilt_object(chance, token)
        if chance.random() > WHOLE:
            return {"call": "check", "token": token}
        call = chance.choice(("create", "issue", "exchange"))
        body: dict[str, Any] = token
        if call != "issue":
            who = {"id": chance.choice((IDENTITY, IDENTITY, OTHER, "8:orgid:x", None, 1, ""))}
            body = (
                {"identity": who} if call == "create" else {"identity": who, "accessToken": token}
            )
        if chance.random() < 0.3:
            body = odd.spoilt_object(chance, body)
        raw = odd.spelled(chance, body).encode("utf-8", "surrogatepass")
        if chance.random() < 0.2:
            raw = odd.spoilt_bytes(chance, raw)
        ok = 201 if call == "create" else 200
        return {"call": call, "status": chance.choice((ok,) * 6 + STATUSES), "body": raw}

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with what is documented."""
        call = value.get("call")
        if call in {"create", "issue", "exchange"}:
            return asyncio.run(_called(call, value.get("status", 200), value.get("body", b"")))
        token = value.get("token", {})
        if not isinstance(token, dict):
            return None
        with refusing(UpstreamBadResponseError) as refusals:
            read = tokens.checked_token(token.get("token"), token.get("expiresOn"))
            tokens.check_contents(read.token, acs_ids={IDENTITY}, scopes=SCOPES)
        return _verdict(token, refusals, IDENTITY, SCOPES)


STATUSES = (200, 201, 204, 301, 400, 401, 403, 404, 408, 409, 412, 429, 500, 503, 999)


def _verdict(
    token: dict[str, Any], refusals: list[Exception], acs_id: str, scopes: list[str] | None
) -> str | None:
    text, date = token.get("token"), token.get("expiresOn")
    proper = isinstance(text, str) and TOKEN.fullmatch(text) is not None
    known = isinstance(date, str) and DATE.fullmatch(date) is not None
    if not proper or not isinstance(date, str) or not re.search(r"[Z+-]", date[10:]):
        return differs(should=False, refusals=refusals)
    assert isinstance(text, str)
    harmless = _is_harmless(text, acs_id, scopes)
    if harmless is False:
        return differs(should=False, refusals=refusals)
    return differs(should=True, refusals=refusals) if harmless and known else None


def _is_harmless(token: str, acs_id: str, scopes: list[str] | None) -> bool | None:
    """Return whether a token does not say that it is somebody else's, or for more.

    Its form is not documented, so it need not be readable. None: a reader who is not strict may
    find claims in it, and may as well refuse it for them.
    """
    parts = token.split(".")
    try:
        payload = base64url(parts[1]) if len(parts) > 1 and parts[1] else b""
    except UnreadableError:
        return None
    try:
        claims = json_object(payload)
    except UnreadableError:
        return True
    if "skypeid" in claims and f"8:{claims['skypeid']}" != acs_id:
        return False
    granted = claims.get("acsScope")
    return not granted or scopes is None or set(str(granted).split(",")) <= set(scopes)


async def _called(call: str, status: int, body: bytes) -> str | None:
    """Let the service call ACS, which answers so, and return the verdict on what it made of it."""
    answers = Answers(status, {"Content-Type": "application/json"}, body)
    session: Any = answers
    client = CommunicationIdentityClient(ENDPOINT, KEY, transport=answers)
    service = identity.AcsIdentity(client=client)
    read: Any = None
    with refusing(BrokerError, exchange.UserTokenRefusedError) as refusals:
        if call == "create":
            read = await service.create()
        elif call == "issue":
            read = await service.issue(
                IDENTITY, scopes=SCOPES, lifetime=LIFETIME, now=MOMENT, person=SOMEBODY
            )
        else:
            by = exchange.AcsExchange(client=client, session=session, endpoint=ENDPOINT)
            read = await by.entra_user("aaa.bbb.ccc")
    if answers.asked != 1:
        return f"ACS was called {answers.asked} times"
    if status not in {200, 201}:
        return differs(should=False, refusals=refusals)
    return _judged(call, status, body, refusals, read)


def _judged(
    call: str, status: int, body: bytes, refusals: list[Exception], read: Any
) -> str | None:
    """Return what is wrong with what the service made of an answer with a good status."""
    try:
        # The SDK's reader takes the last of two equal names; both readers have to agree.
        document = json_object(body.strip())
    except UnreadableError:
        if call != "create" or refusals:
            return None
        return None if ACS_ID.fullmatch(read) else "a create without an identity"
    if call == "issue":
        if refusals or not _is_within(document.get("expiresOn")):
            return None if refusals else "a token with another lifetime is handed on"
        # The SDK makes a text of a number, which is no less a token then.
        is_text = isinstance(document.get("token"), str)
        return _verdict(document, refusals, IDENTITY, SCOPES) if is_text else None
    who = document.get("identity")
    acs_id = who.get("id") if isinstance(who, dict) else None
    if call == "create":
        fits = isinstance(acs_id, str) and ACS_ID.fullmatch(acs_id) is not None
        return None if status != 201 and refusals else differs(should=fits, refusals=refusals)
    if refusals or not isinstance(acs_id, str) or read[0] != acs_id:
        return None if refusals else "an exchange without an identity is handed on"
    token = document.get("accessToken")
    return _verdict(token if isinstance(token, dict) else {}, refusals, acs_id, None)


def _is_within(date: object) -> bool:
    if not isinstance(date, str):
        return False
    try:
        expires = datetime.fromisoformat(date)
    except ValueError:
        return False
    return expires.tzinfo is not None and abs(expires - MOMENT - LIFETIME) <= timedelta(minutes=5)

"""ACS access tokens, as far as they are checked before they are handed out."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shared import strict_json
from shared.errors import UpstreamBadResponseError

if TYPE_CHECKING:
    from collections.abc import Collection

# b64token, RFC 6750 section 2.1. The SDK does not check it.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,16384}=*")


@dataclass(frozen=True, slots=True)
class AcsToken:
    """An ACS access token and when it expires."""

    token: str = field(repr=False)
    expires_on: datetime


def checked_token(token: object, expires_on: object) -> AcsToken:
    """Return the token of an answer.

    Raises:
        UpstreamBadResponseError: it has no token, or no moment at which it expires.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise UpstreamBadResponseError("no token")
    try:
        expires = datetime.fromisoformat(str(expires_on))
    except ValueError:
        raise UpstreamBadResponseError("expiresOn is not a date") from None
    if expires.tzinfo is None:
        raise UpstreamBadResponseError("expiresOn has no time zone")
    return AcsToken(token, expires)


def check_contents(
    token: str, *, acs_ids: Collection[str], scopes: Collection[str] | None = None
) -> None:
    """Refuse a token that is for another identity, or has more scopes than were asked for.

    The token's format is not documented, so a token that cannot be read is accepted.

    Raises:
        UpstreamBadResponseError: it is such a token.
    """
    claims = _readable_claims(token)
    if "skypeid" in claims and f"8:{claims['skypeid']}" not in acs_ids:
        raise UpstreamBadResponseError("a token for another identity")
    granted = claims.get("acsScope", "")
    if scopes is not None and granted and not set(str(granted).split(",")).issubset(scopes):
        raise UpstreamBadResponseError("more scopes than asked for")


def _readable_claims(token: str) -> dict[str, Any]:
    _, _, rest = token.partition(".")
    payload, _, _ = rest.partition(".")
    try:
        return strict_json.loads_object(
            base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        )
    except ValueError:
        return {}

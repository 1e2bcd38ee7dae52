"""Judges the ACS tokens that a broker issues to one person: their shape, lifetime and user."""

from __future__ import annotations

import re
import time
from datetime import datetime

from infra.probe.tokens import COMPACT, claims_of, expiry_of

USER = re.compile(r"8:(acs|gcch-acs|dod-acs):[0-9a-fA-F-]{36}_[0-9a-zA-Z-]{1,64}")
# An app needs time to use a token; the longest lifetime that ACS knows is a day.
LEAST_SECONDS, MOST_SECONDS = 10 * 60, 24 * 3600
CLOCK_SECONDS = 300  # So much may this machine's clock be wrong.


class Issued:
    """What was issued to one person, who must have the same ACS identity each time.

    Args:
        user: the identity; None: that of the first token.
    """

    def __init__(self, user: str | None) -> None:
        self._user = user

    def problems(self, members: dict[str, object]) -> list[str]:
        """Return what is wrong with the answer to a request for a token; never the token."""
        token = members.get("token")
        if not isinstance(token, str) or not COMPACT.fullmatch(token):
            return ["token is not a JWT"]
        claims = claims_of(token)
        found = _lifetime_problems(members.get("expiresOn"), claims)
        found += self.user_problems(members.get("user"))
        # The claim is not documented; in the tokens that have it, it is the user.
        named = claims.get("skypeid")
        if named is not None and f"8:{named}" != self._user:
            found.append("the token is for another user")
        return found

    def user_problems(self, user: object) -> list[str]:
        """Return what is wrong with an ACS user."""
        members = user if isinstance(user, dict) else {}
        user_id = members.get("id")
        if not isinstance(user_id, str) or not USER.fullmatch(user_id):
            return ["the user is not an ACS user"]
        self._user = self._user or user_id
        if user_id != self._user:
            return [f"the user is {user_id}, not {self._user}"]
        if members.get("communicationUserId") != user_id:
            return ["id and communicationUserId differ"]
        return []


def _lifetime_problems(expires_on: object, claims: dict[str, object]) -> list[str]:
    expires = expiry_of(claims)
    try:
        told = datetime.fromisoformat(str(expires_on))
    except ValueError:
        return ["expiresOn is not a date"]
    if told.tzinfo is None or expires is None:
        return ["expiresOn has no offset, or the token no exp"]
    left = expires - time.time()
    found = []
    if abs(told.timestamp() - expires) > 1:
        found.append("expiresOn is not when the token expires")
    if not LEAST_SECONDS - CLOCK_SECONDS <= left <= MOST_SECONDS + CLOCK_SECONDS:
        found.append(f"the token expires in {left / 60:.0f} minutes")
    return found

"""Good tokens of new people, as their parts: of now, of this very second, and of an hour ago."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from tests.tokens import parts_of

if TYPE_CHECKING:
    from local.entra.emulator import EntraEmulator
    from tests.tokens import Parts


def good(entra: EntraEmulator, **claims: Any) -> Parts:
    """Return the parts of a token as it is issued now: Entra dates it five minutes back."""
    return parts_of(entra.issue_access_token(claims={"oid": str(uuid.uuid4()), **claims}))


def new(entra: EntraEmulator, **claims: Any) -> Parts:
    """Return the parts of a token of this second."""
    issued = int(time.time())
    return good(entra, iat=issued, nbf=issued, **claims)


def old(entra: EntraEmulator, **claims: Any) -> Parts:
    """Return the parts of a token from long before the broker asked for the keys that it has.

    If its key is not among them, it cannot be a new key of Entra's.
    """
    issued = int(time.time()) - 3600
    return good(entra, iat=issued, nbf=issued, exp=issued + 5400, **claims)

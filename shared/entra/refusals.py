"""Tells apart why Entra's token endpoint refuses to issue a token on behalf of a person.

Entra answers with an OAuth error, often a `suberror`, the AADSTS numbers in `error_codes`, and the
`claims` that a new sign-in must satisfy. Microsoft advises clients to go by `error`; it is the same
`invalid_grant` for a missing consent, a disabled user and an expired token, so the numbers decide
where there are any that are known, and `error` decides about all others.
https://learn.microsoft.com/entra/identity-platform/reference-error-codes
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from shared import strict_json
from shared.errors import (
    ConsentRequiredError,
    InsufficientClaimsError,
    InvalidTokenError,
    NotAssignedError,
    RevokedTokenError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shared.errors import BrokerError

MAX_CLAIMS_BYTES = 2048  # In base64, they have to fit into a header of 8 KiB.
# Nobody has consented, or the broker or ACS is not in the tenant, which consent changes.
CONSENT = frozenset({65001, 65004, 90008, 90094, 500011, 650052, 700016})
# The tenant wants ACS's own app for users to be assigned to people, and this one is not.
ASSIGNMENT = frozenset({50105})
# Another factor, its registration, a known device, another network, terms of use.
STEP_UP = frozenset(
    {50005, 50072, 50074, 50076, 50079, 50097, 50158, 53000, 53001, 53002, 53003, 53004}
    | {53005, 53009, 53010, 53011}
)
# The person's sessions were ended, by an administrator, by a new password or by their age, or the
# account is disabled or gone, which the next sign-in tells the person.
REVOKED = frozenset({50034, 50057, 50132, 50133, 50173, 70043, 70044, 700082})
TRANSIENT = frozenset({90006, 90012, 90033})  # "A transient error has occurred."
LOOP = 50196  # "Client request loop": one person's requests for the same token are too many.
# The broker's registration or its credential is wrong, whatever `error` says.
OURS = frozenset({65005, 70001, 500131, 650053, 650057, 7000112, 7000114})
_WORD = re.compile(r"[a-z_]{1,40}")


def error_of(
    status: int, answer: Mapping[str, Any], *, retry_after: float | None, now: float
) -> BrokerError:
    """Return the error for an answer of Entra's that is not a token.

    Args:
        status: of the answer.
        answer: its JSON.
        retry_after: seconds, if it says so.
        now: Unix time.
    """
    error = _word(answer.get("error"))
    numbers = _numbers(answer.get("error_codes"))
    # The description is left out: it may have the name of a user or an app.
    words = [str(status), error, *(f"AADSTS{number}" for number in sorted(numbers))]
    reason = f"Entra answered {' '.join(words)}"
    if status == HTTPStatus.TOO_MANY_REQUESTS or LOOP in numbers:
        return UpstreamThrottledError(reason, retry_after=retry_after)
    passing = error in {"temporarily_unavailable", "server_error"} or numbers & TRANSIENT
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or passing:
        return UpstreamUnavailableError(reason, retry_after=retry_after)
    return _refusal(error, numbers, answer, reason, now)


def _refusal(
    error: str, numbers: frozenset[int], answer: Mapping[str, Any], reason: str, now: float
) -> BrokerError:
    claims = _claims(answer.get("claims"))
    refused: BrokerError = UpstreamBadResponseError(reason)
    if numbers & CONSENT or _word(answer.get("suberror")) == "consent_required":
        refused = ConsentRequiredError(reason)
    elif numbers & ASSIGNMENT:
        refused = NotAssignedError(reason)
    elif numbers & STEP_UP or error == "interaction_required" or claims:
        refused = InsufficientClaimsError(reason, claims=claims)
    elif numbers & OURS or error in {"invalid_client", "unauthorized_client"}:
        refused = UpstreamAuthError(reason)
    elif numbers & REVOKED:
        # Without a challenge, MSAL would offer the same token until it expires.
        refused = RevokedTokenError(reason, mark=int(now))
    elif error == "invalid_grant":  # The grant is the caller's token.
        refused = InvalidTokenError(reason)
    return refused


def _word(value: object) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "?"


def _numbers(value: object) -> frozenset[int]:
    numbers = value if isinstance(value, list) else []
    return frozenset(number for number in numbers if type(number) is int and 0 < number < 10**8)


def _claims(value: object) -> str | None:
    """Return a claims request for MSAL, if it is one: it is passed on to the app as it is."""
    if not isinstance(value, str):
        return None
    try:
        encoded = value.encode()
        strict_json.loads_object(encoded)
    except ValueError:
        return None
    return value if len(encoded) <= MAX_CLAIMS_BYTES else None

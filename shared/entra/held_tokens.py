"""Checks an Entra token for ACS that the caller holds already, as far as the broker can.

ACS verifies it. Here it must be the caller's own, from the same app, and good for what it is sent
for, so that nobody gets an ACS token for somebody else by way of the broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.entra.access_tokens import check_dates, unverified_claims
from shared.errors import InvalidRequestError, InvalidTokenError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime, timedelta

    from shared.entra.access_tokens import Caller
    from shared.settings import EntraSettings


def check_held_token(  # noqa: PLR0913 - each is one thing that the token must fit
    token: str,
    *,
    caller: Caller,
    audiences: Collection[str],
    settings: EntraSettings,
    least: timedelta,
    now: datetime,
) -> None:
    """Refuse a token that is not the caller's, not for ACS, or does not live for long enough.

    Raises:
        InvalidRequestError: it is such a token.
    """
    try:
        claims = unverified_claims(token)
        check_dates(claims, now.timestamp())
    except InvalidTokenError as exc:
        raise InvalidRequestError(f"accessToken: {exc}") from exc
    wrong = _what_is_wrong(claims, caller, audiences, settings)
    if not wrong and claims["exp"] < (now + least).timestamp():
        wrong = "expires too soon"
    if wrong:
        raise InvalidRequestError(f"accessToken: {wrong}")


def _what_is_wrong(
    claims: Mapping[str, Any],
    caller: Caller,
    audiences: Collection[str],
    settings: EntraSettings,
) -> str | None:
    tenant_id, object_id = caller.person
    issuers = {f"{settings.authority}/{tenant_id}/v2.0", f"{settings.v1_issuer}/{tenant_id}/"}
    clients = [claims[name] for name in ("azp", "appid") if claims.get(name) is not None]
    scopes = claims.get("scp")
    checks = {
        "another tenant": claims.get("tid") == tenant_id,
        "another issuer": str(claims.get("iss")) in issuers,
        "another person": claims.get("oid") == object_id,
        "another client": clients in ([caller.client_id], [caller.client_id] * 2),
        "another audience": str(claims.get("aud")) in audiences,
        "no user": isinstance(scopes, str) and bool(scopes) and claims.get("idtyp") != "app",
    }
    return next((wrong for wrong, right in checks.items() if not right), None)

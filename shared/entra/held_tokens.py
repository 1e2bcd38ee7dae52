"""Checks an Entra token for ACS that the caller holds already, as far as the broker can.

ACS verifies it. Here it must be the caller's own, from the same app, and good for what it is sent
for, so that nobody gets an ACS token for somebody else by way of the broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.entra.access_tokens import check_dates, unverified_claims
from shared.errors import InvalidTokenError, UnusableTokenError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from shared.entra.access_tokens import Caller
    from shared.exchange_kinds import ExchangeKind
    from shared.settings import EntraSettings


def check_held_token(  # noqa: PLR0913 - each is one thing that the token must fit
    token: str,
    *,
    caller: Caller,
    kind: ExchangeKind,
    settings: EntraSettings,
    least: timedelta,
    now: datetime,
) -> int:
    """Return when a token was issued, in Unix time; refuse one that cannot be exchanged.

    It has to be the caller's, for this exchange, and live for long enough.

    Raises:
        UnusableTokenError: it is such a token.
    """
    try:
        claims = unverified_claims(token)
        check_dates(claims, now.timestamp())
    except InvalidTokenError as exc:
        raise UnusableTokenError(f"accessToken: {exc}") from exc
    wrong = _what_is_wrong(claims, caller, kind, settings)
    if not wrong and claims["exp"] < (now + least).timestamp():
        wrong = "expires too soon"
    if wrong:
        raise UnusableTokenError(f"accessToken: {wrong}")
    return int(claims["iat"])


def _what_is_wrong(
    claims: Mapping[str, Any],
    caller: Caller,
    kind: ExchangeKind,
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
        "another audience": str(claims.get("aud")) in kind.audiences,
        "no user": isinstance(scopes, str) and bool(scopes) and claims.get("idtyp") != "app",
        "no scope of this exchange": kind.has_scope(str(scopes).split()),
    }
    return next((wrong for wrong, right in checks.items() if not right), None)

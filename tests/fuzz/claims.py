"""The claims of a token whose signature is right, judged by Entra's documents.

https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
https://learn.microsoft.com/entra/identity-platform/claims-validation
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from shared.entra import access_tokens
from shared.entra.key_sets import SigningKey
from shared.errors import (
    AdminRequiredError,
    ClientNotAllowedError,
    InsufficientScopeError,
    InvalidTokenError,
    TenantNotAllowedError,
)
from tests.fuzz import configured, odd
from tests.fuzz.configured import (
    API,
    AUTHORITY,
    CONSUMERS,
    NOW,
    OTHER_TENANT,
    PERSON,
    ROLE,
    SCOPE,
    TENANT,
    V1_ISSUER,
    WEB_APP,
)
from tests.fuzz.target import differs, refusing

if TYPE_CHECKING:
    from random import Random

V2 = {
    "aud": API,
    "iss": f"{AUTHORITY}/{TENANT}/v2.0",
    "iat": NOW - 300,
    "nbf": NOW - 300,
    "exp": NOW + 3600,
    "azp": WEB_APP,
    "azpacr": "1",
    "oid": PERSON,
    "scp": f"openid {SCOPE}",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "tid": TENANT,
    "uti": "fqiBqXLPj0eQa82S-IYFAA",
    "ver": "2.0",
}
V1 = {name: claim for name, claim in V2.items() if name not in {"azp", "azpacr"}} | {
    "aud": f"api://{API}",
    "iss": f"{V1_ISSUER}/{TENANT}/",
    "appid": WEB_APP,
    "ver": "1.0",
}
APP_ONLY = {"idtyp": "app", "roles": [ROLE], "sub": PERSON}
NAMES = frozenset("aud iss exp nbf iat ver tid oid sub scp azp appid idtyp roles".split())
GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
LONGEST = 28 * 3600
SKEW = 60
TEMPTING = {
    "aud": (f"api://{API}", API, API[:-1], "", "api://", [API], f"{API} x", f"spn:{API}", WEB_APP),
    "scp": (SCOPE, f"x {SCOPE}", f"x\t{SCOPE}", f"x\u00a0{SCOPE}", f"{SCOPE}\n", SCOPE.upper(), ""),
    "tid": (OTHER_TENANT, CONSUMERS, TENANT.upper(), f"{TENANT}\n"),
    "iss": (f"{AUTHORITY}/{OTHER_TENANT}/v2.0", f"{V1_ISSUER}/{TENANT}", f"{AUTHORITY}/{TENANT}"),
    "ver": ("1.0", "2.0", 2.0, 1, "2", "v2.0"),
    "exp": (NOW, NOW - 59, NOW - 60, NOW - 61, NOW + LONGEST, NOW - 300 + LONGEST + 60, True),
    "nbf": (NOW, NOW + 59, NOW + 60, NOW + 61, NOW + 0.5, str(NOW), NOW + 3600, True, 0),
    "iat": (NOW, NOW + 60, NOW + 61, True, 1, NOW + 3600),
    "azp": (API, None, ""),
    "appid": (WEB_APP, API, None),
    "idtyp": ("app", "user", "App"),
    "roles": ([ROLE], [ROLE.lower()], ROLE, [ROLE, 1], []),
    "oid": (PERSON.upper(), f"{PERSON} ", "ada@contoso.example"),
}


class ClaimsTarget:
    """Claims are accepted exactly if Entra's documents and the settings allow it."""

    name = "claims"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return claims, the issuer of the key, which settings hold, and who is asking."""
        claims: dict[str, Any] = dict(chance.choice((V1, V2)))
        if chance.random() < 0.2:
            del claims["scp"]
            claims |= APP_ONLY
        if chance.random() < 0.2:
            claims["roles"] = [ROLE]
        if chance.random() < 0.2:
            tenant = chance.choice((OTHER_TENANT, CONSUMERS))
            claims |= {"tid": tenant, "iss": claims["iss"].replace(TENANT, tenant)}
        for _ in range(chance.choice((0, 1, 1, 1, 2))):
            if chance.random() < 0.6:
                name = chance.choice(list(TEMPTING))
                claims[name] = chance.choice(TEMPTING[name])
            else:
                claims = odd.spoilt_object(chance, claims)
        own, every = f"{AUTHORITY}/{TENANT}/v2.0", f"{AUTHORITY}/{{tenantid}}/v2.0"
        return {
            "claims": claims,
            "issuer": chance.choice((own, every, every, every, f"{AUTHORITY}/{OTHER_TENANT}/v2.0")),
            "every tenant": chance.random() < 0.5,
            "administrator": chance.random() < 0.3,
        }

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with the documents."""
        claims, issuer = value.get("claims", {}), value.get("issuer", "")
        settings = configured.settings(every_tenant=value.get("every tenant", False)).entra
        key = SigningKey(configured.signing_key().public_key(), issuer)
        as_administrator = value.get("administrator", False)
        decide = (
            access_tokens.administrator_from_claims
            if as_administrator
            else access_tokens.caller_from_claims
        )
        with refusing(
            *(InvalidTokenError, TenantNotAllowedError, InsufficientScopeError),
            *(ClientNotAllowedError, AdminRequiredError),
        ) as refusals:
            found = decide(
                access_tokens.VerifiedClaims(claims),
                key=key,
                settings=settings,
                now=datetime.fromtimestamp(NOW, UTC),
            )
        genuine = is_genuine(claims, issuer)
        every = value.get("every tenant", False)
        allowed = genuine and is_allowed(claims, every_tenant=every, administrator=as_administrator)
        if refusals and not genuine:
            # Whether the tenant is served may be said before the key's issuer is looked at.
            if not isinstance(refusals[0], InvalidTokenError | TenantNotAllowedError):
                return f"a {type(refusals[0]).__name__} for a token that is not genuine"
            return None
        verdict = differs(should=allowed, refusals=refusals)
        if verdict or refusals:
            return verdict
        named = ((claims["tid"], claims["oid"]), client_of(claims), claims["iat"])
        if named != (tuple(found.person), found.client_id, found.issued_at):
            return "somebody else than the claims name"
        return None


def is_genuine(claims: dict[str, Any], key_issuer: str) -> bool:
    """Return whether the claims are those of a token that Entra issued for our API, and hold."""
    if any(name.casefold() in NAMES and name not in NAMES for name in claims):
        return False
    dates = [claims.get(name) for name in ("iat", "nbf", "exp")]
    if not all(type(date) is int and date > 0 for date in dates):
        return False
    issued, starts, ends = (int(claims[name]) for name in ("iat", "nbf", "exp"))
    starts = max(issued, starts)
    if not (starts - SKEW <= NOW < ends + SKEW and starts < ends <= issued + LONGEST + SKEW):
        return False
    tenant, person = claims.get("tid"), claims.get("oid")
    if not all(isinstance(each, str) and GUID.fullmatch(each) for each in (tenant, person)):
        return False
    v2_issuer = f"{AUTHORITY}/{tenant}/v2.0"
    expected = {
        "2.0": (v2_issuer, [API]),
        "1.0": (f"{V1_ISSUER}/{tenant}/", [API, f"api://{API}"]),
    }
    version = claims.get("ver")
    if not isinstance(version, str) or version not in expected:
        return False
    issuer, audiences = expected[version]
    return (
        claims.get("iss") == issuer
        and claims.get("aud") in audiences
        and key_issuer in {v2_issuer, f"{AUTHORITY}/{{tenantid}}/v2.0"}
        and client_of(claims) is not False
        and _is_text_or_missing(claims, "scp")
    )


def client_of(claims: dict[str, Any]) -> str | bool | None:
    """Return the app that a token was issued to: None if it names none, False if it is unclear."""
    own, other = ("azp", "appid") if claims["ver"] == "2.0" else ("appid", "azp")
    client = claims.get(own)
    if client is not None and not (isinstance(client, str) and GUID.fullmatch(client)):
        return False
    return client if claims.get(other) in (None, client) else False


def _is_text_or_missing(claims: dict[str, Any], name: str) -> bool:
    return name not in claims or isinstance(claims[name], str)


def is_allowed(claims: dict[str, Any], *, every_tenant: bool, administrator: bool) -> bool:
    """Return whether a genuine token may be used for this, by these settings."""
    tenant = claims["tid"]
    if tenant == CONSUMERS or not (every_tenant or tenant == TENANT):
        return False
    client = client_of(claims)
    if not every_tenant and client != WEB_APP:
        return False
    is_of_app = (
        "scp" not in claims
        and client is not None
        and (claims["idtyp"] == "app" if "idtyp" in claims else claims.get("sub") == claims["oid"])
    )
    scopes = re.split(" ", claims.get("scp", ""))
    by_user = SCOPE in scopes and claims.get("idtyp") != "app"
    if not administrator:
        return by_user
    roles = claims.get("roles", [])
    named = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
    return (by_user or is_of_app) and named and ROLE in roles

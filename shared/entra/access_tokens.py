"""Validates Entra access tokens, and says whom they were issued for.

The order is: shape, JOSE header, key, signature, payload, claims. Nothing is fetched for a token
that fails the first two (`compact_form`), and no claim is trusted before the signature has been
verified. PyJWT verifies the signature; what it would accept besides (equal names, dates as text,
any `typ`, compression, UTF-16) is refused here. RFC 7515, RFC 7519, RFC 8725, and
https://learn.microsoft.com/entra/identity-platform/claims-validation
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NewType, Protocol

from jwt.algorithms import RSAAlgorithm

from shared import audit
from shared.entra.attributes import Attributes
from shared.entra.compact_form import CompactToken
from shared.errors import (
    AdminRequiredError,
    ClientNotAllowedError,
    InsufficientScopeError,
    InvalidTokenError,
    KeysUnavailableError,
    TenantNotAllowedError,
)
from shared.identifiers import CONSUMERS, Person, is_guid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from shared.entra.key_sets import SigningKey
    from shared.settings import EntraSettings

CLOCK_SKEW = 60  # seconds
MAX_LIFETIME = 28 * 3600  # seconds: a token under continuous access evaluation lives 20 to 28 h.

_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # Entra's have 22 characters.
_RS256 = RSAAlgorithm(RSAAlgorithm.SHA256)  # RFC 7518, section 3.3
# The claims that decide. None may appear again in other letters (`OID`): software that ignores case
# might read that one.
DECIDING_CLAIMS = frozenset(
    "aud iss exp nbf iat ver tid oid sub scp azp appid idtyp roles".split()  # noqa: SIM905 - reads as a list
)

VerifiedClaims = NewType("VerifiedClaims", "dict[str, Any]")
"""Claims whose signature has been verified; only `AccessTokenValidator` creates them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The person that an access token was issued for, and the app that asked for it."""

    person: Person
    client_id: str | None
    issued_at: int  # `iat`, in Unix time.
    attributes: Attributes = field(default_factory=Attributes, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who may see and change other people's mappings: a user, or an app by itself."""

    person: Person  # For an app: its service principal.
    client_id: str | None
    issued_at: int  # `iat`, in Unix time.
    is_operator: bool  # May administer every tenant, not only the own one.
    # May give people identities that nobody has. An id does not say which tenant it is for, so that
    # is for the operator where there is one, or where every organisation is served.
    may_adopt: bool

    def may_administer(self, tenant_id: str) -> bool:
        """Return whether this administrator may see and change the mappings of a tenant."""
        return self.is_operator or self.person.tenant_id == tenant_id


class Keys(Protocol):
    """Where signing keys come from: `signing_keys.SigningKeys`."""

    async def get(self, key_id: str, payload: bytes) -> SigningKey:
        """Return the key with an id, for a token with this payload that nobody has verified."""

    def served(self, person: Person) -> None:
        """Remember somebody whose token has passed every check."""


class AccessTokenValidator:
    """Validates access tokens with the settings and Entra's signing keys."""

    def __init__(self, *, settings: EntraSettings, keys: Keys) -> None:
        self._settings = settings
        self._keys = keys

    async def validate(self, access_token: str, *, now: datetime) -> Caller:
        """Return the caller that an access token was issued for.

        Raises:
            InvalidTokenError: it is malformed, forged, out of date or for another service.
            TenantNotAllowedError, InsufficientScopeError, ClientNotAllowedError: it is a good
                token for this service, but does not allow its use.
            KeysUnavailableError: Entra's keys cannot be read, so the token cannot be checked.
        """
        claims, key = await self._verified(access_token)
        caller = caller_from_claims(claims, key=key, settings=self._settings, now=now)
        self._keys.served(caller.person)
        return caller

    async def validate_administrator(self, access_token: str, *, now: datetime) -> Administrator:
        """Return the administrator that an access token was issued for.

        Raises:
            AdminRequiredError: it is a good token for this service, without the app role.
            InvalidTokenError, TenantNotAllowedError, InsufficientScopeError,
                ClientNotAllowedError, KeysUnavailableError: as `validate` does.
        """
        claims, key = await self._verified(access_token)
        administrator = administrator_from_claims(claims, key=key, settings=self._settings, now=now)
        if key.is_kept:
            # Whoever can write to the tables could have put it there. It comes last, since every
            # 503 has a line in the log: only administrators can cause these.
            raise KeysUnavailableError("kept keys do not open what administrators may do")
        self._keys.served(administrator.person)
        return administrator

    async def _verified(self, access_token: str) -> tuple[VerifiedClaims, SigningKey]:
        token = CompactToken.parse(access_token)
        key = await self._keys.get(token.key_id, token.payload)
        claims = _verify(token, key)
        _note_person(claims, self._settings)
        return claims, key


def unverified_claims(access_token: str) -> dict[str, Any]:
    """Return the claims of a token whose signature somebody else will verify.

    Raises:
        InvalidTokenError: it does not have the shape of an Entra access token.
    """
    claims = CompactToken.parse(access_token).claims()
    _check_names(claims)
    return claims


def _verify(token: CompactToken, key: SigningKey) -> VerifiedClaims:
    """Verify the signature, and then read the payload from the bytes that it covers.

    PyJWT's own algorithm does it. `jwt.decode` and `jwt.PyJWS` would take the token apart again,
    less strictly, and look at each of its characters in Python, which takes many times as long.
    """
    try:
        is_genuine = _RS256.verify(token.signed, key.public_key, token.signature)
    except Exception as exc:
        raise InvalidTokenError(f"signature: {type(exc).__name__}") from exc
    if not is_genuine:
        raise InvalidTokenError("signature: not made by this key")
    return VerifiedClaims(token.claims())


def _note_person(claims: VerifiedClaims, settings: EntraSettings) -> None:
    """Note the ids for the audit line: they are verified, even if the token is refused later.

    Everybody can get genuine tokens for something else, for as many people as they like in a tenant
    of their own. So it is noted, too, if nothing says that the person is one of ours.
    """
    named = {"tenant_id": "tid", "object_id": "oid", "client_id": "azp"}
    if claims.get("ver") == "1.0":
        named["client_id"] = "appid"
    audit.note(**{f: claims[c] for f, c in named.items() if is_guid(claims.get(c))})
    token_id = claims.get("uti")  # By this id, Entra's sign-in logs know the token.
    if isinstance(token_id, str) and _TOKEN_ID.fullmatch(token_id):
        audit.note(uti=token_id)
    is_for_us = str(claims.get("aud")) in settings.v1_audiences
    if not is_for_us or not _is_served(str(claims.get("tid")), settings):
        audit.note(ours=False)


def caller_from_claims(
    claims: VerifiedClaims, *, key: SigningKey, settings: EntraSettings, now: datetime
) -> Caller:
    """Return the caller whom these claims name, if they allow the use of this service now.

    Raises:
        InvalidTokenError, TenantNotAllowedError, InsufficientScopeError, ClientNotAllowedError: as
            `AccessTokenValidator.validate` does.
    """
    person, client_id = _who(claims, key, settings, now)
    _check_scope(claims, settings.required_scope)
    _check_client(client_id, settings)
    return Caller(person, client_id, claims["iat"], Attributes(claims))


def administrator_from_claims(
    claims: VerifiedClaims, *, key: SigningKey, settings: EntraSettings, now: datetime
) -> Administrator:
    """Return the administrator whom these claims name, if they have the app role.

    The token is a user's, with the delegated scope as well, or an app's own, which has no scope:
    https://learn.microsoft.com/entra/identity-platform/scenario-protected-web-api-verification-scope-app-roles

    Raises:
        AdminRequiredError, InvalidTokenError, TenantNotAllowedError, InsufficientScopeError,
            ClientNotAllowedError: as `AccessTokenValidator.validate_administrator` does.
    """
    person, client_id = _who(claims, key, settings, now)
    if not _is_of_app(claims, client_id):
        _check_scope(claims, settings.required_scope)
    _check_client(client_id, settings)
    _check_role(claims, settings.admin_role)
    # The role counts in the tenant that granted it, which is the tenant of the token.
    is_operator = person.tenant_id == settings.operator_tenant_id
    is_for_operator = settings.operator_tenant_id is not None or settings.tenant_ids is None
    may_adopt = is_operator or not is_for_operator
    return Administrator(person, client_id, claims["iat"], is_operator, may_adopt)


def _who(
    claims: VerifiedClaims, key: SigningKey, settings: EntraSettings, now: datetime
) -> tuple[Person, str | None]:
    """Return whom a token was issued for, and to which app, after checking all but permissions."""
    _check_names(claims)
    check_dates(claims, now.timestamp())
    tenant_id = _tenant(claims, key, settings)
    object_id = claims.get("oid")
    if not is_guid(object_id):
        raise InvalidTokenError("oid is not a GUID")
    return Person(tenant_id, object_id), _client(claims)


def _check_names(claims: Mapping[str, Any]) -> None:
    for name in claims:
        if name not in DECIDING_CLAIMS and name.casefold() in DECIDING_CLAIMS:
            raise InvalidTokenError("a deciding claim in other letters")


def check_dates(claims: Mapping[str, Any], now: float) -> None:
    """Refuse claims that do not hold now.

    Raises:
        InvalidTokenError: a date is missing, over, still to come, or makes no sense.
    """
    issued_at, not_before, expires = (_date(claims, name) for name in ("iat", "nbf", "exp"))
    starts = max(issued_at, not_before)
    if expires + CLOCK_SKEW <= now:
        raise InvalidTokenError("expired")
    if starts - CLOCK_SKEW > now:
        raise InvalidTokenError("not valid yet")
    if expires <= starts or expires - issued_at > MAX_LIFETIME + CLOCK_SKEW:
        raise InvalidTokenError("lifetime is zero, negative or over 28 hours")


def _date(claims: Mapping[str, Any], name: str) -> int:
    date = claims.get(name)
    if type(date) is not int or date <= 0:  # Not isinstance: True is an int.
        raise InvalidTokenError(f"{name} is not a date")
    return date


def _tenant(claims: Mapping[str, Any], key: SigningKey, settings: EntraSettings) -> str:
    """Return the tenant, after checking version, audience, issuer and signing key."""
    version, tenant_id = claims.get("ver"), claims.get("tid")
    if not is_guid(tenant_id):
        raise InvalidTokenError("tid is not a GUID")
    v2_issuer = f"{settings.authority}/{tenant_id}/v2.0"
    if version == "2.0":
        issuer, audiences = v2_issuer, frozenset({settings.client_id})
    elif version == "1.0" and settings.v1_issuer is not None:
        issuer = f"{settings.v1_issuer}/{tenant_id}/"
        audiences = settings.v1_audiences
    else:
        raise InvalidTokenError("ver is not a version that this authority issues")
    audience = claims.get("aud")
    if not isinstance(audience, str) or audience not in audiences:
        raise InvalidTokenError("not our audience")
    if claims.get("iss") != issuer:
        raise InvalidTokenError("iss is not the issuer of tid")
    if not _is_served(tenant_id, settings):
        raise TenantNotAllowedError("not an allowed tenant")
    # A key that Entra publishes for one tenant signs only that tenant's tokens.
    if key.issuer.replace("{tenantid}", tenant_id) != v2_issuer:
        raise InvalidTokenError("the signing key belongs to another issuer")
    return tenant_id


def _is_served(tenant_id: str, settings: EntraSettings) -> bool:
    allowed = settings.tenant_ids
    return tenant_id != CONSUMERS and (allowed is None or tenant_id in allowed)


def _client(claims: Mapping[str, Any]) -> str | None:
    """Return the app that asked for the token: `azp` in v2 tokens, `appid` in v1 tokens."""
    name, other = ("azp", "appid") if claims["ver"] == "2.0" else ("appid", "azp")
    client_id = claims.get(name)
    if client_id is not None and not is_guid(client_id):
        raise InvalidTokenError(f"{name} is not a GUID")
    if claims.get(other) not in (None, client_id):
        raise InvalidTokenError("azp and appid disagree with each other or with ver")
    return client_id


def _check_client(client_id: str | None, settings: EntraSettings) -> None:
    if settings.allowed_client_ids and client_id not in settings.allowed_client_ids:
        raise ClientNotAllowedError("not an allowed client")


def _is_of_app(claims: Mapping[str, Any], client_id: str | None) -> bool:
    """Return whether an app got this access token for itself, without a user.

    A token without `scp` need not be one: users' ID tokens have `roles` and no `scp`, too. Only
    APIs that ask for the claim get an `idtyp`. Without it, Microsoft's test is that an app's `sub`
    is its `oid`; a user's is another text for each API.
    """
    if "scp" in claims or client_id is None:
        return False
    if "idtyp" in claims:
        return bool(claims["idtyp"] == "app")
    return bool(claims.get("sub") == claims["oid"])


def _check_role(claims: Mapping[str, Any], required: str) -> None:
    granted = claims.get("roles", [])
    if not isinstance(granted, list) or not all(isinstance(role, str) for role in granted):
        raise InvalidTokenError("roles is not a list of names")
    if required not in granted:
        raise AdminRequiredError("the app role of administrators is not granted")


def _check_scope(claims: Mapping[str, Any], required: str) -> None:
    granted = claims.get("scp", "")
    if not isinstance(granted, str):
        raise InvalidTokenError("scp is not text")
    # A token of an app without a user has no scp and, if the API asks for that claim, an idtyp.
    if claims.get("idtyp") == "app" or required not in granted.split(" "):
        raise InsufficientScopeError("the required scope is not granted", scope=required)

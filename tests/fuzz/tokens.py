"""Access tokens as they come: spelling, JOSE header, payload and signature.

RFC 7515 and RFC 8725. Whether a signature is right is not computed again: it is if the fuzzer has
made the token.
"""

from __future__ import annotations

import base64
import functools
import json
import random
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from shared.entra import access_tokens
from shared.entra.key_sets import SigningKey
from shared.errors import (
    ClientNotAllowedError,
    InsufficientScopeError,
    InvalidTokenError,
    TenantNotAllowedError,
)
from tests.fuzz import configured, odd
from tests.fuzz.claims import APP_ONLY, V1, V2, is_allowed, is_genuine
from tests.fuzz.configured import AUTHORITY, NOW
from tests.fuzz.reading import UnreadableError, base64url, json_object
from tests.fuzz.target import differs, refusing

if TYPE_CHECKING:
    from random import Random

KEY_ID = "fuzz-1"
HEADER = {"typ": "JWT", "alg": "RS256", "kid": KEY_ID}
ISSUER = f"{AUTHORITY}/{{tenantid}}/v2.0"
POOL = 300
LONGEST = 24 * 1024  # characters
LONGEST_SURE_HEADER = 512
FORBIDDEN = {"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "cty", "enc", "epk", "nonce"}
DECIDING = {"alg", "typ", "kid"}  # None may appear again in other letters.
TEMPTING: dict[str, tuple[Any, ...]] = {
    "alg": ("none", "HS256", "RS384", "rs256", "PS256", "", None, ["RS256"]),
    "typ": ("at+jwt", "AT+JWT", "jwt", "JWE", "application/at+jwt", None, "logout+jwt"),
    "kid": ("fuzz-2", "../../key", "fuzz-1\n", "", None, 1, "a" * 128, "a" * 129, ["fuzz-1"]),
    "x5t": ("fuzz-1",),
    **dict.fromkeys(FORBIDDEN, ("https://evil.example/", True, None)),
    **{name.upper(): ("a",) for name in ("jku", "crit", "nonce", *sorted(DECIDING))},
}


class _Keys:
    """The one key of the fuzzer's Entra."""

    async def get(self, key_id: str, payload: bytes = b"") -> SigningKey:
        del payload
        if key_id != KEY_ID:
            raise InvalidTokenError("no such key")
        return SigningKey(configured.signing_key().public_key(), ISSUER)

    def served(self, person: object) -> None:
        del person


@functools.cache
def _validator(*, every_tenant: bool) -> access_tokens.AccessTokenValidator:
    entra = configured.settings(every_tenant=every_tenant).entra
    return access_tokens.AccessTokenValidator(settings=entra, keys=_Keys())


def encoded(raw: bytes) -> str:
    """Write bytes as base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: bytes, payload: bytes) -> str:
    """Return a token with the right signature, whatever else is wrong with it."""
    text = f"{encoded(header)}.{encoded(payload)}"
    signature = configured.signing_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{encoded(signature)}"


def _odd_parts(chance: Random) -> tuple[bytes, bytes]:
    """Return a header and a payload, of which at most one is odd."""
    header: dict[str, Any] = dict(HEADER)
    claims: dict[str, Any] = dict(chance.choice((V1, V2)))
    written = [json.dumps(header), json.dumps(claims)]
    kind = chance.randrange(6)
    if kind == 0:
        claims |= APP_ONLY
    elif kind == 1:
        written[1] = odd.spelled(chance, claims)
    elif kind == 2:
        written[0] = odd.spelled(chance, header)
    elif kind == 3:
        name = chance.choice(list(TEMPTING))
        written[0] = json.dumps(header | {name: chance.choice(TEMPTING[name])})
    elif kind == 4:
        written[1] = json.dumps(odd.spoilt_object(chance, claims))
    raw = [text.encode("utf-8", "surrogatepass") for text in written]
    if kind == 5 and chance.random() < 0.3:
        part = chance.randrange(2)
        raw[part] = odd.spoilt_bytes(chance, raw[part])
    return raw[0], raw[1]


@functools.cache
def _pool() -> tuple[list[str], dict[str, None]]:
    """Return tokens with right signatures: those without a fault, and all of them in order."""
    chance = random.Random(2)  # noqa: S311 - chance, not secrets
    good = [
        signed(json.dumps(HEADER | extra).encode(), json.dumps(claims).encode())
        for claims in (V1, V2, V2 | {"name": "Åsa 😀"}, V2 | {"groups": ["a" * 36] * 20})
        for extra in ({}, {"x5t": "abc"}, {"typ": "at+jwt"})
    ]
    return good, dict.fromkeys(good + [signed(*_odd_parts(chance)) for _ in range(POOL)])


class TokenTarget:
    """Only tokens that were issued are accepted, in one spelling, with the right header."""

    name = "token"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return a token, or the parts of one that is yet to be signed."""
        every_tenant = chance.random() < 0.5
        if chance.random() < 0.06:  # Signing takes longer than anything else here.
            header, payload = _odd_parts(chance)
            return {"header": header, "payload": payload, "every tenant": every_tenant}
        good, every = _pool()
        token = chance.choice(good if chance.random() < 0.7 else list(every))
        return {"token": _spoilt(chance, token), "every tenant": every_tenant}

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with the RFCs."""
        token, is_signed = value.get("token", ""), False
        if "header" in value:
            token, is_signed = signed(value["header"], value.get("payload", b"")), True
        every_tenant = value.get("every tenant", False)
        with refusing(
            *(InvalidTokenError, TenantNotAllowedError),
            *(InsufficientScopeError, ClientNotAllowedError),
        ) as refusals:
            _now(_validator(every_tenant=every_tenant), token)
        is_signed = is_signed or token in _pool()[1]
        claims = _claims_of(token) if is_signed else None
        genuine = claims is not None and is_genuine(claims, ISSUER)
        if not genuine:
            if refusals and not isinstance(refusals[0], InvalidTokenError | TenantNotAllowedError):
                return f"a {type(refusals[0]).__name__} for a token that is not genuine"
            return differs(should=False, refusals=refusals)
        assert claims is not None
        allowed = is_allowed(claims, every_tenant=every_tenant, administrator=False)
        if allowed and refusals and not _is_like_entras(token.partition(".")[0]):
            return None
        return differs(should=allowed, refusals=refusals)


def _now(validator: access_tokens.AccessTokenValidator, token: str) -> None:
    """Validate a token without an event loop: nothing here has to be waited for."""
    work = validator.validate(token, now=datetime.fromtimestamp(NOW, UTC))
    try:
        work.send(None)
    except StopIteration:
        return
    finally:
        work.close()
    raise AssertionError("the validator waits for something")


def _claims_of(token: str) -> dict[str, Any] | None:
    """Return the claims of a token whose signature is right, if it is a proper access token."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > LONGEST:
        return None
    try:
        header, payload, _ = (base64url(part) for part in parts)
        members, claims = json_object(header), json_object(payload)
    except UnreadableError:
        return None
    proper = (
        members.get("alg") == "RS256"
        and members.get("typ") in {"JWT", "at+jwt"}
        and members.get("kid") == KEY_ID
        and not any(name.casefold() in FORBIDDEN | DECIDING for name in members.keys() - DECIDING)
    )
    return claims if proper else None


def _is_like_entras(header: str) -> bool:
    """Return whether a header is as short and flat as Entra's; others may be refused for that."""
    members = json_object(base64url(header))
    flat = not any(isinstance(member, list | dict) for member in members.values())
    return flat and len(header) <= LONGEST_SURE_HEADER


def _spoilt(chance: Random, token: str) -> str:
    parts = token.split(".")
    at = chance.randrange(len(parts))
    kind = chance.randrange(9)
    if kind == 0:
        return token
    if kind == 1:
        return odd.spoilt_text(chance, token)
    if kind == 2:  # The same bytes, spelled differently, or bits that belong to no byte.
        last = parts[at][-1]
        other = chance.choice((*"=+/ \n", chr(ord(last) + 1), chr(ord(last) ^ 1)))
        parts[at] = chance.choice((parts[at][:-1] + other, parts[at] + other))
    elif kind == 3:
        parts[at] = odd.spoilt_text(chance, parts[at])
    elif kind == 4:
        parts[at] = encoded(odd.spoilt_bytes(chance, base64url(parts[at])))
    elif kind == 5:
        parts[at] = parts[chance.randrange(len(parts))]
    elif kind == 6:
        parts[2] = encoded(chance.randbytes(chance.choice((0, 1, 32, 255, 256, 257))))
    elif kind == 7:
        good = chance.choice(_pool()[0]).split(".")
        parts[at] = good[at]
    else:
        header, payload = _odd_parts(chance)
        parts[:2] = encoded(header), encoded(payload)
    text = ".".join(parts)
    return (
        re.sub(r"\.", chance.choice(("..", ":", "", ". ")), text)
        if chance.random() < 0.02
        else text
    )

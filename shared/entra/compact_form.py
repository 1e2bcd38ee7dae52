"""Takes a token in the compact form of RFC 7515 apart, before anything about it is verified.

Whoever can reach the service can make it do this, so each part has a bound, what costs little comes
first, and nothing is decoded twice.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

from shared import strict_json
from shared.entra.key_sets import KEY_ID
from shared.errors import InvalidTokenError

MAX_TOKEN_CHARACTERS = 24 * 1024  # A token with 200 groups by name has about 22 KiB.
MAX_HEADER_CHARACTERS = 2 * 1024  # Entra's own headers have fewer than 300.
MAX_HEADER_BRACKETS = 16  # Entra's have one pair. Nesting costs a reader most.
# Keys have 2048 to 4096 bits, and an RSA signature is as long as its key (RFC 8017, section 8.2).
SIGNATURE_CHARACTERS = range(342, 683 + 1)

TOKEN_TYPES = ("JWT", "at+jwt")
# Header members that bring a key or change what is signed. `nonce` marks tokens for Microsoft
# Graph, whose signature covers something else. Unknown members are harmless: Microsoft adds some.
REFUSED_HEADERS = frozenset(
    "jku jwk x5u x5c crit b64 zip cty enc epk nonce".split()  # noqa: SIM905 - reads as a list
)
# The members that decide. None may be there in other letters (`ALG`): software that ignores case
# might read that one.
DECIDING_HEADERS = frozenset({"alg", "typ", "kid"})


@dataclass(frozen=True, slots=True)
class CompactToken:
    """The parts of a token whose header is in order. Nobody has verified the signature yet."""

    key_id: str
    payload: bytes = field(repr=False)
    signed: bytes = field(repr=False)  # What the signature covers: header and payload as sent.
    signature: bytes = field(repr=False)

    @classmethod
    def parse(cls, token: str) -> CompactToken:
        """Take a token apart.

        Raises:
            InvalidTokenError: it does not have the shape and header of an Entra access token.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise InvalidTokenError("longer than 24 KiB")
        segments = token.split(".", 3)
        if len(segments) != 3 or not token.isascii():  # noqa: PLR2004 - header, payload, signature
            raise InvalidTokenError("not a JWS in compact form")
        header, payload, signature = (segment.encode() for segment in segments)
        if len(header) > MAX_HEADER_CHARACTERS:
            raise InvalidTokenError("a header of more than 2 KiB")
        if len(signature) not in SIGNATURE_CHARACTERS:
            raise InvalidTokenError("a signature that no key of 2048 to 4096 bits makes")
        return cls(
            key_id=_key_id(_decode(header)),
            payload=_decode(payload),
            signed=header + b"." + payload,
            signature=_decode(signature),
        )

    def claims(self) -> dict[str, Any]:
        """Return the members of the payload, which nobody may trust before it is verified.

        Raises:
            InvalidTokenError: the payload is not one strict JSON object.
        """
        return _object(self.payload, "payload")


def _key_id(header: bytes) -> str:
    if header.count(b"{") + header.count(b"[") > MAX_HEADER_BRACKETS:
        raise InvalidTokenError("a header that nests")
    members = _object(header, "header")
    if members.get("alg") != "RS256":
        raise InvalidTokenError("alg is not RS256")
    if members.get("typ") not in TOKEN_TYPES:
        raise InvalidTokenError("typ is neither JWT nor at+jwt")
    others = {name.casefold() for name in members.keys() - DECIDING_HEADERS}
    if not others.isdisjoint(REFUSED_HEADERS | DECIDING_HEADERS):
        raise InvalidTokenError("a header member that is not allowed")
    key_id = members.get("kid")
    if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
        raise InvalidTokenError("kid is not a key id")
    return key_id


def _decode(segment: bytes) -> bytes:
    """Decode canonical base64url without padding (RFC 7515, section 2)."""
    try:
        decoded = base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except binascii.Error:
        raise InvalidTokenError("not base64url") from None
    # The decoder skips characters of no alphabet, takes those of plain base64, and ignores bits
    # that are left over. What comes out differently again had one of these.
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != segment:
        raise InvalidTokenError("base64url that is not canonical")
    return decoded


def _object(raw: bytes, part: str) -> dict[str, Any]:
    try:
        return strict_json.loads_object(raw)
    except ValueError as exc:
        raise InvalidTokenError(f"{part}: {exc}") from exc

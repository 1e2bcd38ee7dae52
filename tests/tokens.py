"""Takes access tokens apart, alters them and signs them again, rightly and wrongly."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from local.entra.tokens import CLOUD, base64url
from shared.entra.key_sets import signing_keys_from
from shared.errors import InvalidTokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from local.entra.tokens import TokenIssuer
    from shared.entra.key_sets import SigningKey
    from shared.identifiers import Person

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# What PKCS #1 v1.5 puts before a SHA-256 hash (RFC 8017, section 9.2, note 1).
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts of a token, as bytes."""

    header: bytes
    payload: bytes
    signature: bytes

    def __str__(self) -> str:
        """Return the token."""
        return ".".join(base64url(part) for part in (self.header, self.payload, self.signature))

    @property
    def signed(self) -> bytes:
        """Return what the signature covers."""
        return f"{base64url(self.header)}.{base64url(self.payload)}".encode()

    @property
    def members(self) -> dict[str, Any]:
        """Return the members of the header."""
        members: dict[str, Any] = json.loads(self.header)
        return members

    @property
    def claims(self) -> dict[str, Any]:
        """Return the claims."""
        claims: dict[str, Any] = json.loads(self.payload)
        return claims


def parts_of(token: str) -> Parts:
    """Take a token apart."""
    return Parts(*(base64.urlsafe_b64decode(part + "==") for part in token.split(".")))


def as_json(members: Mapping[str, object]) -> bytes:
    """Write a JSON object as compactly as Entra does; None becomes null."""
    return json.dumps(members, separators=(",", ":")).encode()


@cache
def rsa_key(bits: int, exponent: int = 65537) -> RSAPrivateKey:
    """Return a key of a size, which is made once in this process."""
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


class KnownKeys:
    """The keys of an issuer, and which of them were asked for."""

    def __init__(self, issuer: TokenIssuer) -> None:
        self._issuer = issuer
        self.fetch()
        self.asked: list[str] = []
        self.payloads: list[bytes] = []
        self.people: list[Person] = []
        self.are_kept = False

    def fetch(self) -> None:
        """Take the keys that the issuer publishes now."""
        key_set = self._issuer.key_set(None)
        self._keys = signing_keys_from(key_set, cloud=CLOUD, default_issuer=None)

    async def get(self, key_id: str, payload: bytes) -> SigningKey:
        """Return a key as the key store does."""
        self.asked.append(key_id)
        self.payloads.append(payload)
        try:
            return replace(self._keys[key_id], is_kept=self.are_kept)
        except KeyError:
            raise InvalidTokenError("unknown") from None

    def served(self, person: Person) -> None:
        """Remember who was let in."""
        self.people.append(person)


def signed(key: RSAPrivateKey, header: bytes, payload: bytes) -> str:
    """Return a token that a key has signed with RS256, whatever its header and payload are."""
    unsigned = Parts(header, payload, b"")
    signature = key.sign(unsigned.signed, padding.PKCS1v15(), SHA256())
    return str(Parts(header, payload, signature))


def signed_with_hmac(secret: bytes, header: bytes, payload: bytes, digest: str = "sha256") -> str:
    """Return a token that is signed with a secret."""
    signature = hmac.digest(secret, Parts(header, payload, b"").signed, digest)
    return str(Parts(header, payload, signature))


def respelt(segment: str) -> str:
    """Return another spelling of the same bytes: base64url whose last bits are not zero.

    Raises:
        ValueError: the length leaves no bits over.
    """
    if len(segment) % 4 not in {2, 3}:
        raise ValueError("no bits are left over")
    return segment[:-1] + ALPHABET[ALPHABET.index(segment[-1]) + 1]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A private key as numbers, with which anything can be signed."""

    n: int
    d: int

    @classmethod
    def of(cls, key: RSAPrivateKey) -> Numbers:
        """Return those of a key."""
        numbers = key.private_numbers()
        return cls(numbers.public_numbers.n, numbers.d)

    @property
    def size(self) -> int:
        """Return the length of the modulus in bytes."""
        return (self.n.bit_length() + 7) // 8

    def sign_block(self, block: bytes) -> bytes:
        """Return the signature from which the public key recovers this block."""
        return pow(int.from_bytes(block, "big"), self.d, self.n).to_bytes(self.size, "big")

    def sign(self, message: bytes) -> bytes:
        """Sign a message with RS256."""
        return self.sign_block(padded(SHA256_PREFIX + sha256(message).digest(), self.size))


def padded(digest_info: bytes, size: int) -> bytes:
    """Return the block that is signed for a hash (RFC 8017, section 9.2)."""
    return b"\0\1" + b"\xff" * (size - len(digest_info) - 3) + b"\0" + digest_info

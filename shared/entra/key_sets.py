"""What Entra publishes about its signing keys, and what makes it usable.

`published_keys` fetches it. A set is judged by the same rules whether it comes from Entra or was
kept.
https://learn.microsoft.com/entra/identity-platform/signing-key-rollover
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shared import audit

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEYS = 100
MAX_AGE = 24 * 3600  # For so many seconds, the last good set is used if there is no newer one.
KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_RSA_BITS = range(2048, 4096 + 1)
_RSA_EXPONENT = 65537


class StatusError(ValueError):
    """Entra answered with a status other than 200. `published_keys` raises it."""

    def __init__(self, status: int, retry_after: float | None) -> None:
        super().__init__(f"status {status}")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key, and the issuer that Entra says it signs for (may hold `{tenantid}`)."""

    public_key: RSAPublicKey
    issuer: str
    is_kept: bool = False  # Read from our own table, because Entra cannot be reached.


@dataclass(frozen=True, slots=True)
class KeySet:
    """A set that can be used.

    Attributes:
        keys: by key id.
        published_on: when Entra answered with it, by Entra's own clock, in Unix time; None if the
            answer did not say.
        metadata: the document that it was found with.
        document: the set as it was published.
    """

    keys: Mapping[str, SigningKey]
    published_on: int | None
    metadata: Mapping[str, Any]
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Publisher:
    """Whose keys they are.

    Args:
        authority: an origin such as `https://login.microsoftonline.com`.
        keys_of: a tenant id, or `organizations`.
    """

    authority: str
    keys_of: str

    @property
    def metadata_url(self) -> str:
        """Where the metadata is."""
        return f"{self.authority}/{self.keys_of}/v2.0/.well-known/openid-configuration"

    def location_of(self, metadata: Mapping[str, Any]) -> str:
        """Return where the metadata says that the keys are.

        Raises:
            ValueError: it is the metadata of another issuer, or the keys are on another host.
        """
        if metadata.get("issuer") != self._issuer:
            raise ValueError("metadata of another issuer")
        location = metadata.get("jwks_uri")
        if not isinstance(location, str) or not location.startswith(f"{self.authority}/"):
            raise ValueError("keys on another host")
        return location

    def key_set(
        self,
        metadata: Mapping[str, Any],
        document: Mapping[str, Any],
        *,
        published_on: int | None,
    ) -> KeySet:
        """Return the set in two documents.

        Raises:
            ValueError: they are not this publisher's, or the set cannot be used.
        """
        self.location_of(metadata)
        keys = signing_keys_from(
            document,
            cloud=metadata.get("cloud_instance_name"),
            # In the set for all tenants, each key must name its issuer; in a tenant's own set, the
            # tenant is the issuer.
            default_issuer=None if self._is_for_every_tenant else self._issuer,
        )
        return KeySet(keys, published_on, metadata, document)

    @property
    def _is_for_every_tenant(self) -> bool:
        return self.keys_of == "organizations"

    @property
    def _issuer(self) -> str:
        tenant = "{tenantid}" if self._is_for_every_tenant else self.keys_of
        return f"{self.authority}/{tenant}/v2.0"


def signing_keys_from(
    document: Mapping[str, Any], *, cloud: object, default_issuer: str | None
) -> dict[str, SigningKey]:
    """Return the usable RS256 keys of a JWK set (RFC 7517), by key id.

    Raises:
        ValueError: it is not a JWK set, has a key id twice, a private key, or no usable key.
    """
    members = document.get("keys")
    if not isinstance(members, list) or len(members) > MAX_KEYS:
        raise ValueError("not a set of keys")
    if not all(isinstance(jwk, dict) and _PRIVATE_MEMBERS.isdisjoint(jwk) for jwk in members):
        raise ValueError("not a set of public keys")
    key_ids = [jwk["kid"] for jwk in members if "kid" in jwk]
    if any(key_ids.count(key_id) > 1 for key_id in key_ids):
        raise ValueError("a key id twice")
    keys = {}
    for jwk in members:
        try:
            keys[jwk["kid"]] = _signing_key({"issuer": default_issuer, **jwk}, cloud)
        except Exception as exc:  # noqa: BLE001 - a key that makes PyJWT stumble is not usable
            audit.record("signing_key_rejected", {"reason": reason_of(exc)}, level=logging.WARNING)
    if not keys:
        raise ValueError("no usable key")
    return keys


def _signing_key(jwk: dict[str, Any], cloud: object) -> SigningKey:
    if not KEY_ID.fullmatch(jwk["kid"]):
        raise ValueError("kid is not a key id")
    if jwk.get("kty") != "RSA" or jwk.get("use", "sig") != "sig":
        raise ValueError("not an RSA key for signatures")
    if jwk.get("alg", "RS256") != "RS256" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise ValueError("not a key for RS256")
    if jwk.get("cloud_instance_name", cloud) != cloud:
        raise ValueError("a key of another cloud")
    if not isinstance(jwk["issuer"], str):
        raise ValueError("a key without an issuer")  # noqa: TRY004 - every reason is a ValueError
    public_key = jwt.PyJWK(jwk, algorithm="RS256").key
    if not isinstance(public_key, RSAPublicKey) or public_key.key_size not in _RSA_BITS:
        raise ValueError("not an RSA key of 2048 to 4096 bits")
    if public_key.public_numbers().e != _RSA_EXPONENT:
        raise ValueError("an exponent other than 65537")
    return SigningKey(public_key, jwk["issuer"])


def reason_of(exc: Exception) -> str:
    """Return the message of our own error, or only the type of another, whose text is not safe."""
    return str(exc) if type(exc) in {ValueError, StatusError} else type(exc).__name__

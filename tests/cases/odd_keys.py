"""Keys that the local Entra publishes beside its own from the start; few of them may be used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import rsa

from local.entra.directory import FABRIKAM
from local.entra.tokens import base64url
from shared.identifiers import CONSUMERS
from tests.tokens import Numbers, Parts, as_json, rsa_key

if TYPE_CHECKING:
    from local.entra.emulator import EntraEmulator

EXPONENT = 65537
# Two primes of 256 bits: the field of the curve secp256k1 (SEC 2), and the order of P-256.
SECP256K1_FIELD = 2**256 - 2**32 - 977
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class OddKey:
    """What signs with a published key."""

    kid: str
    numbers: Numbers

    def sign(self, header: dict[str, object], payload: bytes) -> str:
        """Return a token signed by this key."""
        unsigned = Parts(as_json({**header, "kid": self.kid}), payload, b"")
        return str(Parts(unsigned.header, payload, self.numbers.sign(unsigned.signed)))


@cache
def attackers_key() -> rsa.RSAPrivateKey:
    """Return a key that Entra does not publish under any id."""
    return rsa.generate_private_key(public_exponent=EXPONENT, key_size=2048)


def publish_odd_keys(entra: EntraEmulator) -> dict[str, OddKey]:
    """Publish them all, and return them by key id."""
    usual = rsa_key(2048)
    odd: dict[str, OddKey] = {}

    def publish(kid: str, numbers: Numbers, **members: object) -> None:
        entra.publish_key(usual, kid=kid, **{"n": _number(numbers.n), **members})
        odd[kid] = OddKey(kid, numbers)

    own = Numbers.of(usual)
    publish("of-fabrikam", own, issuer=entra.issuer(FABRIKAM.tenant_id))
    publish("of-consumers", own, issuer=entra.issuer(CONSUMERS))
    publish("of-nobody", own, issuer=None)
    publish("of-us-government", own, cloud_instance_name="microsoftonline.us")
    publish("of-no-cloud", own, cloud_instance_name=None)
    publish("of-null-cloud", own, cloud_instance_name=0)
    publish("of-4096-bits", Numbers.of(rsa_key(4096)))
    publish("of-512-bits", _numbers(SECP256K1_FIELD, P256_ORDER))
    publish("of-1024-bits", Numbers.of(rsa_key(1024)))
    publish("of-2040-bits", Numbers.of(rsa_key(2040)))
    publish("of-5120-bits", _numbers(*_primes(rsa_key(4096)), _primes(usual)[0]))
    publish("exponent-3", Numbers.of(rsa_key(2048, 3)), e=_number(3))
    # With these, the block itself is a signature, or its square root modulo the factors.
    publish("exponent-1", Numbers(own.n, 1), e=_number(1))
    publish("exponent-2", own, e=_number(2))
    publish("exponent-even", own, e=_number(EXPONENT + 1))
    publish("exponent-huge", own, e=_number(own.n - 2))
    publish("exponent-none", own, e=None)
    publish("exponent-empty", own, e="")
    publish("modulus-empty", own, n="")
    publish("modulus-even", own, n=_number(own.n - 1))
    publish("modulus-text", own, n="!")
    publish("modulus-number", own, n=5)
    publish("for-encryption", own, use="enc")
    publish("for-rs512", own, alg="RS512")
    publish("for-signing-only", own, key_ops=["sign"])
    publish("secret", own, kty="oct")
    publish("curve", own, kty="EC", crv="P-256")
    return odd


def _primes(key: rsa.RSAPrivateKey) -> tuple[int, int]:
    numbers = key.private_numbers()
    return numbers.p, numbers.q


def _numbers(*primes: int) -> Numbers:
    modulus, order = 1, 1
    for prime in primes:
        modulus, order = modulus * prime, order * (prime - 1)
    return Numbers(modulus, pow(EXPONENT, -1, order))


def _number(number: int) -> str:
    return base64url(number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big"))

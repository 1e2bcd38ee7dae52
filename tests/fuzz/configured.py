"""The settings that the targets share, and a signing key that is the same in every run."""

from __future__ import annotations

import functools
import random

from cryptography.hazmat.primitives.asymmetric import rsa

from shared.settings import Settings

TENANT, OTHER_TENANT = (
    "c0117050-0000-4000-8000-000000000001",
    "fab2ca11-0000-4000-8000-000000000002",
)
CONSUMERS = "9188040d-6c67-4c5b-b112-36a304b66dad"
API, WEB_APP = "ab100000-0000-4000-8000-00000000000a", "ab200000-0000-4000-8000-00000000000b"
PERSON = "ada00000-0000-4000-8000-00000000000c"
AUTHORITY, V1_ISSUER = "https://login.microsoftonline.com", "https://sts.windows.net"
NOW = 1_900_000_000
SCOPE, ROLE = "access_as_user", "Mappings.Admin"
ENVIRONMENT = {
    "ENTRA_CLIENT_ID": API,
    "ENTRA_TENANT_IDS": TENANT,
    "ENTRA_ALLOWED_CLIENT_IDS": WEB_APP,
    "ACS_ENDPOINT": "https://contoso.europe.communication.azure.com",
    "MAPPINGS_TABLE_ENDPOINT": "https://contoso.table.core.windows.net",
}
EVERY_TENANT = ENVIRONMENT | {"ENTRA_TENANT_IDS": "*", "ENTRA_ALLOWED_CLIENT_IDS": ""}


@functools.cache
def settings(*, every_tenant: bool = False) -> Settings:
    """Return the settings for one tenant, or for all of them."""
    return Settings.from_env(EVERY_TENANT if every_tenant else ENVIRONMENT)


@functools.cache
def signing_key() -> rsa.RSAPrivateKey:
    """Return an RSA key of 2048 bits, for these tests alone.

    It is worked out from a seed, so that a failure in one run is the same in the next.
    """
    chance = random.Random(1)  # noqa: S311 - it signs nothing but inputs of this fuzzer
    p, q = _prime(chance), _prime(chance)
    public = rsa.RSAPublicNumbers(65537, p * q)
    d = pow(65537, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(
        *(max(p, q), min(p, q), d, d % (max(p, q) - 1), d % (min(p, q) - 1)),
        pow(min(p, q), -1, max(p, q)),
        public,
    ).private_key()


def _prime(chance: random.Random) -> int:
    """Return a number of 1024 bits that is prime, as good as certainly."""
    small = [n for n in range(3, 2000, 2) if all(n % m for m in range(3, int(n**0.5) + 1, 2))]
    while True:
        candidate = chance.getrandbits(1024) | (3 << 1022) | 1
        if (
            all(candidate % prime for prime in small)
            and (candidate - 1) % 65537
            and pow(2, candidate - 1, candidate) == 1
            and pow(3, candidate - 1, candidate) == 1
        ):
            return candidate

"""Entra's metadata and key sets: RFC 7517, RFC 7518 section 6.3, and Entra's documents.

https://learn.microsoft.com/entra/identity-platform/signing-key-rollover
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from typing import TYPE_CHECKING, Any

from shared import strict_json
from shared.entra import key_sets, published_keys
from tests.fuzz import configured, odd
from tests.fuzz.configured import AUTHORITY, OTHER_TENANT, TENANT
from tests.fuzz.reading import UnreadableError, base64url, json_object
from tests.fuzz.sending import SessionAnswer
from tests.fuzz.target import differs, refusing
from tests.fuzz.tokens import encoded

if TYPE_CHECKING:
    from random import Random

KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
ISSUER = f"{AUTHORITY}/{{tenantid}}/v2.0"
METADATA = f"{AUTHORITY}/organizations/v2.0/.well-known/openid-configuration"
KEYS_AT = f"{AUTHORITY}/organizations/discovery/v2.0/keys"
CLOUD = "microsoftonline.com"
PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
MOST_KEYS = 100
EXPONENT = 65537
UNCERTAIN = 0
# Through the whole store, which takes ten times as long.
WHOLE = 0.1


@functools.cache
def _modulus(bits: int) -> str:
    """Return a modulus of a length; whether it is a product of primes makes no difference here."""
    number = configured.signing_key().public_key().public_numbers().n
    number = number >> (2048 - bits) if bits <= 2048 else number << (bits - 2048)
    return encoded((number | 1).to_bytes((bits + 7) // 8, "big"))


def _good_key(chance: Random) -> dict[str, Any]:
    key = {
        "kty": "RSA",
        "use": "sig",
        "kid": f"key-{chance.randrange(4)}",
        "n": _modulus(chance.choice((2048, 2048, 2048, 3072, 4096))),
        "e": "AQAB",
        "issuer": chance.choice((ISSUER, f"{AUTHORITY}/{TENANT}/v2.0")),
        "cloud_instance_name": CLOUD,
        "x5c": ["MII"],
    }
    return {name: key[name] for name in key if name == "kid" or chance.random() > 0.02}


TEMPTING: dict[str, tuple[Any, ...]] = {
    "kty": ("oct", "EC", "rsa", None),
    "use": ("enc", "sig", None, ["sig"]),
    "alg": ("RS256", "RS512", "HS256", "PS256", None),
    "key_ops": (["verify"], ["encrypt"], [], "verify", None, 1, ["sign"]),
    "n": (*map(_modulus, (512, 1024, 2040, 2047, 4097, 8192)), "", "AA", None),
    "e": ("Aw", "AQAB=", "AAEAAQ", "AQ", "AQAC", "", None, 65537),
    "kid": ("a b", "", "a" * 129, None, 5, ["key-1"], "key-1\n", "é"),
    "issuer": (None, 1, [ISSUER], "https://evil.example/{tenantid}/v2.0"),
    "cloud_instance_name": ("microsoftonline.us", "partner.microsoftonline.cn", None),
    **dict.fromkeys(PRIVATE, ("AQAB", None)),
}


class KeySetTarget:
    """Only usable public RSA keys of our Entra come out of a key set."""

    name = "keys"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return a document with keys and, in some, what the metadata says."""
        keys = [_good_key(chance) for _ in range(chance.choice((1, 1, 2, 3)))]
        if chance.random() < 0.3:
            for number, key in enumerate(keys):
                key["kid"] = f"key-{number}"
        at = chance.randrange(len(keys))
        if chance.random() < 0.5:
            name = chance.choice(list(TEMPTING))
            keys[at][name] = chance.choice(TEMPTING[name])
        elif chance.random() < 0.5:
            keys[at] = odd.spoilt_object(chance, keys[at])
        document: dict[str, Any] = {"keys": keys}
        if chance.random() < 0.05:
            document["keys"] = odd.like(chance, keys)
        if chance.random() < 0.01:
            document["keys"] = keys + [
                {"kid": f"{n}"} for n in range(chance.choice((97, 100, 200)))
            ]
        raw = json.dumps(document).encode()
        if chance.random() < 0.1:
            raw = odd.spelled(chance, document).encode("utf-8", "surrogatepass")
        value = {"keys": raw, "of one tenant": chance.random() < 0.3}
        if chance.random() < WHOLE:
            value |= {"metadata": _metadata(chance), "of one tenant": False}
        return value

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with the RFCs."""
        raw, of_one_tenant = value.get("keys", b""), value.get("of one tenant", False)
        default = f"{AUTHORITY}/{TENANT}/v2.0" if of_one_tenant else None
        metadata = value.get("metadata")
        cloud: object = CLOUD
        named = True
        if metadata is not None:
            cloud, named = _named(metadata)
        expected = _expected(raw, cloud, default) if named else None
        read: dict[str, Any] = {}
        with refusing(ValueError) as refusals:
            if metadata is None:
                document = strict_json.loads_object(raw)
                read = key_sets.signing_keys_from(document, cloud=cloud, default_issuer=default)
            else:
                read = asyncio.run(_fetched(metadata, raw))
        certain = {name: key for name, key in (expected or {}).items() if key[0] != UNCERTAIN}
        if refusals or not expected:
            return differs(should=bool(certain), refusals=refusals)
        found = {
            name: (key.public_key.public_numbers().n, key.issuer) for name, key in read.items()
        }
        uncertain = {name: (UNCERTAIN, expected[name][1]) for name in expected.keys() - certain}
        if any(key.public_key.public_numbers().e != EXPONENT for key in read.values()):
            return "a key with another exponent"
        found |= {name: (UNCERTAIN, found[name][1]) for name in uncertain if name in found}
        wrong = found != certain | {name: uncertain[name] for name in uncertain if name in found}
        return "other keys than those that can be used" if wrong else None


def _metadata(chance: Random) -> bytes:
    metadata = {"issuer": ISSUER, "jwks_uri": KEYS_AT, "cloud_instance_name": CLOUD}
    kind = chance.randrange(4)
    if kind == 0:
        metadata["jwks_uri"] = chance.choice(
            (
                f"http{KEYS_AT[5:]}",
                f"{AUTHORITY}.evil.example/keys",
                f"{AUTHORITY}@evil.example/keys",
                "https://evil.example/keys",
                f"{AUTHORITY}:444/keys",
                "//login.microsoftonline.com/keys",
                "",
            )
        )
    elif kind == 1:
        metadata = odd.spoilt_object(chance, metadata)
    elif kind == 2:
        metadata["issuer"] = chance.choice((ISSUER[:-1], f"{AUTHORITY}/{OTHER_TENANT}/v2.0", ""))
    return odd.spelled(chance, metadata).encode("utf-8", "surrogatepass")


def _named(metadata: bytes) -> tuple[object, bool]:
    """Return the cloud that the metadata names, and whether the rest of it is our Entra's."""
    try:
        members = json_object(metadata.strip())
    except UnreadableError:
        return None, False
    location = members.get("jwks_uri")
    ours = isinstance(location, str) and location.startswith(f"{AUTHORITY}/")
    return members.get("cloud_instance_name"), ours and members.get("issuer") == ISSUER


def _expected(raw: bytes, cloud: object, default: str | None) -> dict[str, tuple[int, str]] | None:
    """Return the modulus and the issuer of each key that can be used; None refuses them all.

    PyJWT also reads numbers whose base64url is not canonical, which does no harm: UNCERTAIN.
    """
    try:
        keys = json_object(raw).get("keys")
    except UnreadableError:
        return None
    if not isinstance(keys, list) or len(keys) > MOST_KEYS:
        return None
    if not all(isinstance(key, dict) and not PRIVATE & key.keys() for key in keys):
        return None
    names = [json.dumps(key["kid"]) for key in keys if "kid" in key]
    if len(set(names)) < len(names):
        return None
    usable = {}
    for key in keys:
        numbers = _numbers(key, cloud)
        issuer = key.get("issuer", default)
        if numbers is not None and isinstance(issuer, str):
            usable[key["kid"]] = (numbers, issuer)
    return usable


def _numbers(key: dict[str, Any], cloud: object) -> int | None:
    """Return the modulus of a key, if the key can be used."""
    name, operations = key.get("kid"), key.get("key_ops", ["verify"])
    if not isinstance(name, str) or not KEY_ID.fullmatch(name):
        return None
    if key.get("kty") != "RSA" or key.get("use", "sig") != "sig":
        return None
    if key.get("alg", "RS256") != "RS256" or key.get("cloud_instance_name", cloud) != cloud:
        return None
    if not isinstance(operations, list | str | dict) or "verify" not in operations:
        return None
    try:
        modulus, exponent = (int.from_bytes(base64url(key[part]), "big") for part in ("n", "e"))
    except UnreadableError:
        return UNCERTAIN
    except (KeyError, TypeError):
        return None
    return modulus if exponent == EXPONENT and 2048 <= modulus.bit_length() <= 4096 else None


class _Session:
    """An aiohttp session: whatever is not the metadata is the key set, on every host."""

    def __init__(self, metadata: bytes, keys: bytes) -> None:
        self._metadata, self._keys = metadata, keys

    def get(self, url: str, **_: Any) -> SessionAnswer:
        return SessionAnswer(200, {}, self._metadata if url == METADATA else self._keys)


async def _fetched(metadata: bytes, raw: bytes) -> Any:
    """Return the keys that are read from the two documents."""
    session: Any = _Session(metadata, raw)
    publisher = key_sets.Publisher(AUTHORITY, "organizations")
    found = await published_keys.PublishedKeys(session=session, publisher=publisher).fetch()
    return found.keys

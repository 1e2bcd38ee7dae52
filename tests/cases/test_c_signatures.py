"""C: the signature of a token, and the keys that Entra publishes."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import md5, sha1, sha256, sha384, sha512
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from local.entra.directory import CONTOSO, FADI
from shared.entra.access_tokens import AccessTokenValidator
from shared.errors import InvalidTokenError
from shared.identifiers import CONSUMERS
from tests.cases.catalogue import case
from tests.cases.issued import good, new, old
from tests.cases.odd_keys import attackers_key
from tests.tokens import SHA256_PREFIX, Numbers, Parts, as_json, padded, parts_of, signed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.entra.emulator import EntraEmulator
    from shared.settings import EntraSettings
    from tests.cases.odd_keys import OddKey
    from tests.cases.service import Service

    AnotherService = Callable[..., Awaitable[Service]]

# On demand, the broker asks for keys three times at most before it has to wait.
FETCHES = 3


def signed_by(key: OddKey, parts: Parts) -> str:
    """Return a token with these claims, signed by one of the odd keys."""
    return key.sign({"typ": "JWT", "alg": "RS256"}, parts.payload)


@case("C01", "an altered, cut, extended or empty signature: 401 invalid_token, and no key fetch")
async def test_C01_altered_signature(service: Service, entra: EntraEmulator) -> None:
    parts = good(entra)
    signature = parts.signature
    number = int.from_bytes(signature, "big")
    modulus = Numbers.of(entra.keys[0].private_key).n

    def of(value: int) -> bytes:
        return value.to_bytes(max(256, (value.bit_length() + 7) // 8), "big")

    altered = {
        **{f"bit {bit} flipped": of(number ^ 1 << bit) for bit in (0, 1, 7, 8, 1000, 2040)},
        "cut by a byte": signature[:-1],
        "cut by half": signature[:128],
        "without its first byte": signature[1:],
        "one byte": b"\1",
        "empty": b"",
        "zero before": b"\0" + signature,
        "zero after": signature + b"\0",
        "twice": signature * 2,
        "backwards": signature[::-1],
        "zero": bytes(256),
        "one": of(1),
        "all ones": b"\xff" * 256,
        "the modulus": of(modulus),
        "the modulus less one": of(modulus - 1),
        "the modulus less it": of(modulus - number),
        "the modulus more": of(modulus + number),
        "of another token": good(entra).signature,
        "as hexadecimal": signature.hex().encode(),
        "random": uuid.uuid4().bytes * 16,
    }
    variants = {name: str(replace(parts, signature=each)) for name, each in altered.items()}
    await service.refuses(401, "invalid_token", variants)
    for path in ("/api/user", "/api/users", "/api/token/entra"):
        await service.refuses(401, "invalid_token", {"bit": variants["bit 0 flipped"]}, path=path)


@case("C02", "a header or payload that was altered after signing: 401 invalid_token")
async def test_C02_altered_after_signing(service: Service, entra: EntraEmulator) -> None:
    parts, other = good(entra), good(entra)
    ids = {"oid": str(uuid.uuid4()), "tid": str(uuid.uuid4()), "sub": "x", "uti": "x"}
    more = {
        "scp": "access_as_user more",
        "roles": ["Mappings.Admin"],
        "exp": parts.claims["exp"] + 60,
    }
    variants = {
        f"{name}: {value}"[:40]: str(replace(parts, payload=as_json(parts.claims | {name: value})))
        for name, value in (ids | more | {"aud": "x", "iss": "x", "new": 1}).items()
    }
    variants |= {
        f"header {name}": str(replace(parts, header=as_json(parts.members | {name: value})))
        for name, value in {"typ": "at+jwt", "kid": entra.keys[1].kid, "x5t": "x", "new": 1}.items()
    }
    variants["payload of another token"] = str(replace(parts, payload=other.payload))
    variants["header in another order"] = str(
        replace(parts, header=as_json(dict(reversed(parts.members.items()))))
    )
    variants["payload in another order"] = str(
        replace(parts, payload=as_json(dict(reversed(parts.claims.items()))))
    )
    variants["payload spaced"] = str(replace(parts, payload=parts.payload.replace(b",", b", ", 1)))
    await service.refuses(401, "invalid_token", variants)


def forged_blocks(message: bytes, size: int) -> dict[str, bytes]:
    """Return blocks that careless verifiers of PKCS #1 v1.5 have taken for a signature's.

    Daniel Bleichenbacher's of 2006, those of CVE-2014-1568 (BERserk), and others of the kind that
    Project Wycheproof tries. The real key signs them, so that only the block itself is wrong.
    """
    digest = sha256(message).digest()
    info = SHA256_PREFIX + digest
    oid = bytes.fromhex("0609608648016503040201")
    null, octets = b"\x05\x00", b"\x04\x20" + digest

    def der(tag: int, content: bytes) -> bytes:
        return bytes([tag, len(content)]) + content

    def sequence(*contents: bytes) -> bytes:
        return der(0x30, b"".join(contents))

    def other(oid_hex: str, hashed: bytes) -> bytes:
        return sequence(sequence(bytes.fromhex(oid_hex), null), der(0x04, hashed))

    encodings = {
        "no NULL": sequence(sequence(oid), octets),
        "NULL of one byte": sequence(sequence(oid, b"\x05\x01\x00"), octets),
        "NULL with a long length": sequence(sequence(oid, b"\x05\x81\x00"), octets),
        "two NULLs": sequence(sequence(oid, null, null), octets),
        "an empty sequence for NULL": sequence(sequence(oid, b"\x30\x00"), octets),
        "garbage for NULL": sequence(sequence(oid, der(0x04, b"x" * 20)), octets),
        "long length of the whole": b"\x30\x81\x31" + info[2:],
        "longer length of the whole": b"\x30\x82\x00\x31" + info[2:],
        "long length of the algorithm": sequence(b"\x30\x81\x0d" + oid + null, octets),
        "long length of the hash": sequence(sequence(oid, null), b"\x04\x81\x20" + digest),
        "indefinite length": b"\x30\x80" + sequence(oid, null) + octets + b"\x00\x00",
        "length of the whole too large": b"\x30\x32" + info[2:],
        "length of the whole too small": b"\x30\x30" + info[2:],
        "bytes after the hash, inside": sequence(sequence(oid, null), octets, b"\x05\x00"),
        "bytes after the hash, outside": info + b"\x00",
        "bytes before": b"\x00" + info,
        "a set for the sequence": b"\x31" + info[1:],
        "a bit string for the hash": sequence(sequence(oid, null), b"\x03\x21\x00" + digest),
        "only the hash": digest,
        "the hash without its algorithm": octets,
        "no hash": sequence(sequence(oid, null), b"\x04\x00"),
        "half of the hash": sequence(sequence(oid, null), der(0x04, digest[:16])),
        "the hash and more": sequence(sequence(oid, null), der(0x04, digest + b"\x00")),
        "the hash of the hash": SHA256_PREFIX + sha256(digest).digest(),
        "the hash of nothing": SHA256_PREFIX + sha256().digest(),
        "the hash of the payload": SHA256_PREFIX + sha256(message.split(b".")[1]).digest(),
        "SHA-1": other("06052b0e03021a", sha1(message, usedforsecurity=False).digest()),
        "MD5": other("06082a864886f70d0205", md5(message, usedforsecurity=False).digest()),
        "SHA-384": other("0609608648016503040202", sha384(message).digest()),
        "SHA-512": other("0609608648016503040203", sha512(message).digest()),
        "SHA-512/256 by name": other("0609608648016503040206", digest),
        "SHA3-256 by name": other("0609608648016503040208", digest),
        "SHA-1 by name": other("06052b0e03021a", digest),
        "rsaEncryption by name": other("06092a864886f70d010101", digest),
        "sha256WithRSAEncryption by name": other("06092a864886f70d01010b", digest),
    }
    blocks = {name: padded(encoding, size) for name, encoding in encodings.items()}
    block, filler = padded(info, size), size - len(info) - 3
    garbage = b"\xa5" * (size - len(info) - 11)
    return blocks | {
        "eight bytes of padding, garbage after": b"\0\1" + b"\xff" * 8 + b"\0" + info + garbage,
        "no padding, garbage after": b"\0\1\0" + info + b"\xa5" * filler,
        "one byte of padding, zeros after": b"\0\1\xff\0" + info + bytes(filler - 1),
        "garbage before the hash's algorithm": b"\0\1\xff\0" + b"\xa5" * (filler - 1) + info,
        "garbage in a length": padded(
            b"\x30\xff" + b"\xa5" * 127 + sequence(oid, null) + octets, size
        ),
        "garbage in the algorithm's length": padded(
            b"\x30\x81\xb0\x30\xfd" + b"\xa5" * 125 + oid + null + octets, size
        ),
        "block type 0": b"\0\0" + block[2:],
        "block type 2": b"\0\2" + block[2:],
        "block type 2, as encrypted": b"\0\2" + b"\xa5" * filler + b"\0" + info,
        "block type 3": b"\0\3" + block[2:],
        "a first byte that is not zero": b"\1\1" + block[2:],
        "padding with zeros": b"\0\1" + bytes(filler) + b"\0" + info,
        "padding begins with another byte": b"\0\1\xfe" + block[3:],
        "padding ends with another byte": block[: filler + 1] + b"\xfe\0" + info,
        "another byte in the padding": block[:50] + b"\0" + block[51:],
        "no zero after the padding": block[: filler + 2] + b"\xff" + info,
        "two zeros after the padding": b"\0\1" + b"\xff" * (filler - 1) + b"\0\0" + info,
        "one byte of padding missing": b"\0\0\1" + b"\xff" * (filler - 1) + b"\0" + info,
        "the hash first": digest + bytes(size - 32),
        "the hash last": bytes(size - 32) + digest,
        "nothing": bytes(size),
    }


def cube_root_of(block: bytes) -> int:
    """Return a number whose third power begins like a block that ends in enough zeros."""
    wanted = int.from_bytes(block, "big")
    low, high = 0, 1 << (wanted.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**3 < wanted else (low, middle)
    return low


@case("C03", "PKCS #1 v1.5 forgeries, signed by the real key (BERserk and others): 401")
async def test_C03_forged_padding(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    parts, numbers = good(entra), Numbers.of(entra.keys[0].private_key)
    blocks = forged_blocks(parts.signed, numbers.size)
    variants = {
        name: str(replace(parts, signature=numbers.sign_block(block)))
        for name, block in blocks.items()
    }
    assert len(variants) > 50
    await service.refuses(401, "invalid_token", variants)
    # The signer itself is right: with the right block, the token is good.
    right = padded(SHA256_PREFIX + sha256(parts.signed).digest(), numbers.size)
    await service.accepts({"": str(replace(parts, signature=numbers.sign_block(right)))})

    # With the exponent 3, a cube root needs no private key; with 1, the block is the signature.
    claims = old(entra).payload
    forged = {}
    for kid in (*("exponent-3", "exponent-1"), entra.keys[0].kid):
        unsigned = Parts(as_json(parts.members | {"kid": kid}), claims, b"")
        info = SHA256_PREFIX + sha256(unsigned.signed).digest()
        short = (b"\0\1" + b"\xff" * 8 + b"\0" + info).ljust(256, b"\0")
        root = cube_root_of(short)
        assert (root**3).to_bytes(256, "big").startswith(short[:62])
        forged[f"cube root, {kid}"] = replace(unsigned, signature=root.to_bytes(256, "big"))
        forged[f"the block itself, {kid}"] = replace(unsigned, signature=padded(info, 256))
    assert odd_keys.keys() >= {"exponent-3", "exponent-1"}
    tokens = {name: str(token) for name, token in forged.items()}
    await service.refuses(401, "invalid_token", tokens, key_fetches=FETCHES)


@case("C04", "signed by a published key, under the id of another one: 401 invalid_token")
async def test_C04_key_under_another_id(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    first, second = entra.keys[:2]
    parts = good(entra)
    claims = {"oid": str(uuid.uuid4())}

    def issue(key: Any, kid: str) -> str:
        return entra.issue_access_token(claims=claims, key=key.private_key, header={"kid": kid})

    await service.refuses(
        *(401, "invalid_token"),
        {
            "the second's signature, the first's id": issue(second, first.kid),
            "the first's signature, the second's id": issue(first, second.kid),
            "Fabrikam's signature, the first's id": str(
                replace(parts, signature=odd_keys["of-fabrikam"].numbers.sign(parts.signed))
            ),
            "a key of 4096 bits, the first's id": str(
                replace(parts, signature=odd_keys["of-4096-bits"].numbers.sign(parts.signed))
            ),
            "the first's signature, Fabrikam's id": issue(first, "of-fabrikam"),
        },
    )
    await service.accepts({"the second's own": issue(second, second.kid)})


@case("C05", "signed by a key that Entra has withdrawn: 401 after the next refresh, however recent")
async def test_C05_withdrawn_key(another_service: AnotherService, entra: EntraEmulator) -> None:
    service = await another_service()
    key = entra.keys[1]
    issued = {"old": old(entra), "as usual": good(entra), "new": new(entra)}
    by_this_key = {
        name: signed(key.private_key, as_json(parts.members | {"kid": key.kid}), parts.payload)
        for name, parts in issued.items()
    }
    await service.accepts(by_this_key)
    entra.withdraw_key(key.kid)
    entra.roll_keys(keep=len(entra.keys))
    await service.accepts({"with the new key, which refreshes the set": str(new(entra))})

    await service.refuses(401, "invalid_token", by_this_key, key_fetches=FETCHES)


@case("C06", "a new key that the broker has not seen, 100 callers at once: 200, and one key fetch")
@pytest.mark.parametrize("backdated", [False, True], ids=["of this second", "backdated by Entra"])
async def test_C06_new_key(
    another_service: AnotherService, entra: EntraEmulator, backdated: bool
) -> None:
    service = await another_service()
    await service.accepts({"the old key": str(good(entra))})
    counted = service.counts()
    entra.roll_keys(keep=len(entra.keys))
    tokens = [str(good(entra) if backdated else new(entra)) for _ in range(100)]

    answers = await asyncio.gather(*(service.app.get("/api/user", token) for token in tokens))

    # The broker knows none of these people yet; their tokens are good.
    assert {(404, "user_not_found")} == {(answer.status, answer.code) for answer in answers}
    assert 1 == (service.counts() - counted)["entra jwks"]


@case("C09", "signed by a published RSA key under 2048 or over 4096 bits: 401, the key is reported")
async def test_C09_key_size(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    kids = ["of-512-bits", "of-1024-bits", "of-2040-bits", "of-5120-bits"]
    variants = {kid: signed_by(odd_keys[kid], old(entra)) for kid in kids}
    await service.refuses(401, "invalid_token", variants, key_fetches=FETCHES)
    assert "not an RSA key of 2048 to 4096 bits" in rejected(service)


@case("C10", "signed by a published key with the exponent 1, 2, 3, even or huge: 401, reported")
async def test_C10_exponent(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    kids = [kid for kid in odd_keys if kid.startswith("exponent-")]
    variants = {kid: signed_by(odd_keys[kid], old(entra)) for kid in kids}
    assert len(variants) > 5
    await service.refuses(401, "invalid_token", variants, key_fetches=FETCHES)
    assert "an exponent other than 65537" in rejected(service)


def rejected(service: Service) -> str:
    """Return what the host has said about keys that it does not use."""
    lines = [line for line in service.running.host.output if "signing_key_rejected" in line]
    return "\n".join(lines)


@case("C12", "two keys under one id: the set is refused and reported, the last good one stays")
async def test_C12_key_id_twice(another_service: AnotherService, entra: EntraEmulator) -> None:
    service = await another_service()
    known = str(good(entra))
    await service.accepts({"before": known})
    twice = entra.keys[0]
    entra.publish_key(attackers_key(), kid=twice.kid)

    unknown = entra.issue_access_token(claims=new(entra).claims, header={"kid": "unseen"})
    answer = await service.app.get("/api/token", unknown)

    service.check_refusal(answer, 503, "keys_unavailable", sent=[unknown])
    assert "Retry-After" in answer.headers
    await service.running.host.printed("a key id twice")
    await service.accepts({"a known key": known, "another person": str(good(entra))})
    of_the_twin = entra.issue_access_token(
        claims=good(entra).claims, key=attackers_key(), header={"kid": twice.kid}
    )
    await service.refuses(401, "invalid_token", {"the twin": of_the_twin})


@case("C14", "signed by a key that Entra publishes for another tenant: 401 invalid_token")
async def test_C14_key_of_another_tenant(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    key = odd_keys["of-fabrikam"]
    v1 = entra.issue_access_token(version=1)
    fadis = entra.issue_access_token(FADI.user_name)
    claims = good(entra).claims
    await service.refuses(
        *(401, "invalid_token"),
        {
            "version 2": signed_by(key, good(entra)),
            "version 1": signed_by(key, parts_of(v1)),
            "Fabrikam's issuer, Contoso's tid": signed_by(
                key, good(entra, iss=parts_of(fadis).claims["iss"])
            ),
            "Contoso's issuer, Fabrikam's tid": signed_by(
                key, good(entra, **(parts_of(fadis).claims | {"iss": claims["iss"]}))
            ),
        },
    )
    await service.accepts({"its own tenant's": signed_by(key, parts_of(fadis))})


@case("C15", "signed by the key of personal accounts, for an organisation: 401 invalid_token")
async def test_C15_key_of_personal_accounts(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    key = odd_keys["of-consumers"]
    v1 = parts_of(entra.issue_access_token(version=1))
    fadis = parts_of(entra.issue_access_token(FADI.user_name))
    await service.refuses(
        *(401, "invalid_token"),
        {
            "Contoso": signed_by(key, good(entra)),
            "Contoso, version 1": signed_by(key, v1),
            "Fabrikam": signed_by(key, fadis),
            "issuer of personal accounts": signed_by(key, good(entra, iss=entra.issuer(CONSUMERS))),
        },
    )
    personal = good(entra, tid=CONSUMERS, iss=entra.issuer(CONSUMERS))
    await service.refuses(403, "tenant_not_allowed", {"its own": signed_by(key, personal)})


@case("C16", "signed by a key of another cloud: 401; a key that names no cloud is used")
async def test_C16_key_of_another_cloud(
    service: Service, entra: EntraEmulator, odd_keys: dict[str, OddKey]
) -> None:
    kids = ["of-us-government", "of-null-cloud"]
    variants = {kid: signed_by(odd_keys[kid], old(entra)) for kid in kids}
    await service.refuses(401, "invalid_token", variants, key_fetches=FETCHES)
    assert "a key of another cloud" in rejected(service)
    await service.accepts({"no cloud": signed_by(odd_keys["of-no-cloud"], new(entra))})


@case("C17", "a key that the libraries stumble over: 401 invalid_token, reported, never 500")
async def test_C17_broken_keys(
    service: Service,
    entra: EntraEmulator,
    entra_settings: EntraSettings,
    odd_keys: dict[str, OddKey],
) -> None:
    """What gets past the reading of the set cannot be sent, so the validator is given such keys."""
    kids = "modulus-empty modulus-even modulus-text modulus-number for-encryption for-rs512"
    kids += " for-signing-only secret curve of-nobody"
    variants = {kid: signed_by(odd_keys[kid], old(entra)) for kid in kids.split()}
    async with service.untouched(key_fetches=FETCHES):
        for kid, token in variants.items():
            answer = await service.app.get("/api/token", token)
            service.check_refusal(answer, 401, "invalid_token", sent=[kid])
    assert 8 <= rejected(service).count("signing_key_rejected")

    class Keys:
        """A store that hands out something that is no RSA key."""

        def __init__(self, public_key: object) -> None:
            issuer = entra.issuer(CONTOSO.tenant_id)
            self._key = SimpleNamespace(public_key=public_key, issuer=issuer)

        async def get(self, *_: object) -> Any:
            return self._key

        def served(self, *_: object) -> None:
            raise AssertionError("nobody is served")

    of_curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    for public_key in (None, of_curve, ed25519.Ed25519PrivateKey.generate(), b"key", object()):
        validator = AccessTokenValidator(settings=entra_settings, keys=Keys(public_key))
        with pytest.raises(InvalidTokenError):
            await validator.validate(str(good(entra)), now=datetime.now(UTC))

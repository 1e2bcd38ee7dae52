"""B: the form of a token: its JOSE header, its JSON, its base64url and its parts."""

from __future__ import annotations

import base64
import json
import time
import zlib
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from local.entra.directory import GRAPH
from local.entra.tokens import SigningKey, base64url
from shared.errors import InvalidTokenError
from tests.cases.catalogue import case
from tests.cases.issued import good, old
from tests.cases.odd_keys import attackers_key
from tests.tokens import Parts, as_json, parts_of, respelt, signed, signed_with_hmac

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric import rsa

    from local.entra.emulator import EntraEmulator
    from shared.entra.access_tokens import AccessTokenValidator
    from tests.cases.conftest import Elsewhere
    from tests.cases.service import Service

LEFT_OUT = object()


def with_header(
    entra: EntraEmulator, key: rsa.RSAPrivateKey | None = None, /, **changes: Any
) -> str:
    """Return a token that is good but for these members of its header."""
    parts = good(entra)
    members = {**parts.members, **changes}
    given = {name: value for name, value in members.items() if value is not LEFT_OUT}
    return signed(key or entra.keys[0].private_key, as_json(given), parts.payload)


def with_raw_header(entra: EntraEmulator, change: Callable[[bytes], bytes]) -> str:
    """Return a token whose header is signed as it is."""
    parts = good(entra)
    return signed(entra.keys[0].private_key, change(parts.header), parts.payload)


def begin(beginning: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts members first in a JSON object."""
    return lambda raw: b"{" + beginning + b"," + raw[1:]


def end(ending: bytes) -> Callable[[bytes], bytes]:
    """Return a function that puts members last in a JSON object."""
    return lambda raw: raw[:-1] + b"," + ending + b"}"


def with_raw_payload(entra: EntraEmulator, change: Callable[[bytes], bytes]) -> str:
    """Return a token whose payload is signed as it is."""
    parts = good(entra)
    return signed(entra.keys[0].private_key, parts.header, change(parts.payload))


def member(entra: EntraEmulator, name: str, values: list[Any]) -> dict[str, str]:
    """Return tokens with each of these values of a member of the header."""
    return {
        f"{name}: {'left out' if value is LEFT_OUT else repr(value)[:60]}": with_header(
            entra, **{name: value}
        )
        for value in values
    }


@case("B01", "alg none in any spelling, with and without a signature: 401 invalid_token")
async def test_B01_alg_none(service: Service, entra: EntraEmulator) -> None:
    names = ["none", "None", "NONE", "nOnE", " none", "none ", "", "non\u0435", "null", None]
    variants = member(entra, "alg", [*names, LEFT_OUT])
    for name, token in list(variants.items()):
        unsigned = token.rpartition(".")[0]
        variants[f"{name}, empty signature"] = f"{unsigned}."
        variants[f"{name}, no signature"] = unsigned
        variants[f"{name}, signature of one byte"] = f"{unsigned}.AA"
    await service.refuses(401, "invalid_token", variants)


@case("B02", "alg that is not text: 401 invalid_token")
async def test_B02_alg_is_not_text(service: Service, entra: EntraEmulator) -> None:
    values = [["RS256"], {}, {"RS256": 1}, 0, 256, 1.5, True, False, [["RS256"]]]
    await service.refuses(401, "invalid_token", member(entra, "alg", values))


@case("B03", "RS256 in other letters or with spaces: 401 invalid_token")
async def test_B03_alg_in_other_letters(service: Service, entra: EntraEmulator) -> None:
    values = ["rs256", "Rs256", "RS256 ", " RS256", "RS256\n", "RS256\t", "RS256\x01", "ＲＳ２５６"]
    values += ["RS256,none", "RS256;", "R\u017f256", "RS-256", "RSA256", "sha256WithRSAEncryption"]
    await service.refuses(401, "invalid_token", member(entra, "alg", values))


@case("B04", "HMAC with the public key as the secret, in any form of the key: 401 invalid_token")
async def test_B04_hmac_with_the_public_key(service: Service, entra: EntraEmulator) -> None:
    public = entra.keys[0].private_key.public_key()
    jwk = entra.keys[0].jwk()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    pkcs1 = public.public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    chain = jwk["x5c"][0]
    secrets = {
        "PEM": pem,
        "PEM without its last line break": pem.strip(),
        "PEM of PKCS #1": pkcs1,
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "DER of PKCS #1": public.public_bytes(Encoding.DER, PublicFormat.PKCS1),
        "JWK": json.dumps(jwk).encode(),
        "compact JWK": as_json(jwk),
        "the set of keys": json.dumps(entra.key_set(None)).encode(),
        "modulus, as text": jwk["n"].encode(),
        "modulus": base64.urlsafe_b64decode(jwk["n"] + "=="),
        "x5c, as text": chain.encode(),
        "x5c": base64.b64decode(chain),
        "x5c as PEM": f"-----BEGIN CERTIFICATE-----\n{chain}\n-----END CERTIFICATE-----".encode(),
        "key id": entra.keys[0].kid.encode(),
        "nothing": b"",
    }
    parts = good(entra)
    variants = {}
    for name, secret in secrets.items():
        for alg, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            header = as_json(parts.members | {"alg": alg})
            variants[f"{alg}, {name}"] = signed_with_hmac(secret, header, parts.payload, digest)
        # The header says RS256; the signature is an HMAC all the same.
        variants[f"RS256, {name}"] = signed_with_hmac(secret, parts.header, parts.payload)
    await service.refuses(401, "invalid_token", variants)


@case("B05", "another algorithm, rightly signed: 401 invalid_token, since RS256 is the only one")
async def test_B05_other_algorithms(service: Service, entra: EntraEmulator) -> None:
    key = entra.keys[0].private_key
    parts = good(entra)

    def pss(hash_: SHA256 | SHA384 | SHA512) -> padding.PSS:
        return padding.PSS(padding.MGF1(hash_), padding.PSS.DIGEST_LENGTH)

    def raw(signature: bytes, size: int) -> bytes:
        return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))

    v15 = padding.PKCS1v15()
    p256, k256 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP256K1()))
    p384, ed = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
    signers: dict[str, Callable[[bytes], bytes]] = {
        "RS384": lambda m: key.sign(m, v15, SHA384()),
        "RS512": lambda m: key.sign(m, v15, SHA512()),
        "RS1": lambda m: key.sign(m, v15, SHA1()),  # noqa: S303 - must not be accepted
        "PS256": lambda m: key.sign(m, pss(SHA256()), SHA256()),
        "PS384": lambda m: key.sign(m, pss(SHA384()), SHA384()),
        "PS512": lambda m: key.sign(m, pss(SHA512()), SHA512()),
        "ES256": lambda m: raw(p256.sign(m, ec.ECDSA(SHA256())), 32),
        "ES256K": lambda m: raw(k256.sign(m, ec.ECDSA(SHA256())), 32),
        "ES384": lambda m: raw(p384.sign(m, ec.ECDSA(SHA384())), 48),
        "EdDSA": ed.sign,
        "Ed25519": ed.sign,
    }
    variants = {}
    for alg, sign in signers.items():
        for said in (alg, "RS256"):  # And with a header that does not say so.
            header = as_json(parts.members | {"alg": said})
            unsigned = Parts(header, parts.payload, b"")
            token = Parts(header, parts.payload, sign(unsigned.signed))
            variants[f"{alg}, called {said}"] = str(token)
    for alg in ("ES256", "PS256", "RS384", "RS512", "EdDSA", "HS256", "dir"):
        variants[f"RS256, called {alg}"] = with_header(entra, alg=alg)
    await service.refuses(401, "invalid_token", variants)


@case("B06", "a kid that is a path, a command, or no key id at all: 401 invalid_token")
async def test_B06_kid_is_a_path(service: Service, entra: EntraEmulator) -> None:
    values: list[Any] = ["../../../../dev/null", "/proc/self/environ", "/dev/null", "..", "."]
    values += ["C:\\Windows\\win.ini", "\\\\evil\\share", "....//....//etc/passwd", "a/b", "%2e%2e"]
    values += ["' OR '1'='1", "x' UNION SELECT 'key'--", "| whoami", "$(id)", "`id`"]
    values += ["${jndi:ldap://x}"]
    values += ["a b", "a\r\nb", "a\nSet-Cookie: x", "a\u0000b", "kïd", "", " ", None, 1, True]
    values += [["kid"], {"kid": 1}, LEFT_OUT, "*", "a.b", "a:b", "a=", "\u202e"]
    variants = member(entra, "kid", values)
    kid = entra.keys[0].kid
    others = [kid + " ", " " + kid, kid + "\n", [kid], kid + "/", "./" + kid, kid + "="]
    await service.refuses(401, "invalid_token", variants | member(entra, "kid", others))
    # HMAC with the content of the file that the path names: /dev/null is empty.
    header = as_json(good(entra).members | {"alg": "HS256", "kid": "../../../../dev/null"})
    empty = signed_with_hmac(b"", header, good(entra).payload)
    await service.refuses(401, "invalid_token", {"HMAC with an empty file": empty})
    # These have the form of a key id. In a token this old, it cannot be that of a new key.
    known = ["__proto__", "constructor", "0", "null", kid.lower(), kid.upper(), kid[:-1], kid + "A"]
    known = [each for each in known if each != kid]
    parts, key = old(entra), entra.keys[0].private_key
    variants = {
        each: signed(key, as_json(parts.members | {"kid": each}), parts.payload) for each in known
    }
    await service.refuses(401, "invalid_token", variants, key_fetches=3)


@case("B07", "a kid that is a URL: 401 invalid_token, and nobody is called")
async def test_B07_kid_is_a_url(
    service: Service, entra: EntraEmulator, elsewhere: Elsewhere
) -> None:
    values = [f"{elsewhere.url}/keys", elsewhere.url.removeprefix("http:"), "file:///etc/passwd"]
    values += [
        "https://evil.example/keys",
        "http://169.254.169.254/metadata",
        "data:,{}",
        "ldap://x",
    ]
    values += ["gopher://127.0.0.1:11211/_stats", f"{entra.url}/common/discovery/v2.0/keys"]
    await service.refuses(401, "invalid_token", member(entra, "kid", values))
    assert [] == elsewhere.asked


@case("B10", "a kid of 129 or 10,000 characters: 401 invalid_token")
async def test_B10_long_kid(service: Service, entra: EntraEmulator) -> None:
    variants = member(entra, "kid", ["k" * 129, "k" * 10_000, "k" * 17_000, entra.keys[0].kid * 5])
    await service.refuses(401, "invalid_token", variants)


@case("B12", "a header that says where its key is, x5u or jku: 401 invalid_token, nothing fetched")
async def test_B12_key_by_url(service: Service, entra: EntraEmulator, elsewhere: Elsewhere) -> None:
    urls: list[Any] = [f"{elsewhere.url}/keys", "https://evil.example/keys", "file:///etc/passwd"]
    urls += ["", 1]
    urls += [f"{entra.url}/common/discovery/v2.0/keys", [f"{elsewhere.url}/keys"], None]
    variants: dict[str, str] = {}
    for name in ("x5u", "jku", "JKU", "X5U", "Jku"):
        variants |= member(entra, name, urls)
        variants[f"{name}, signed by another key"] = with_header(
            entra, attackers_key(), **{name: f"{elsewhere.url}/keys"}
        )
    await service.refuses(401, "invalid_token", variants)
    assert [] == elsewhere.asked


@case("B13", "a header that brings its own key in jwk: 401 invalid_token")
async def test_B13_embedded_key(service: Service, entra: EntraEmulator) -> None:
    own = SigningKey(attackers_key(), "attackers", {})
    known = {"kty": "RSA", "n": own.jwk()["n"], "e": "AQAB"}
    private = {"kty": "oct", "k": base64url(b"secret")}
    variants = {
        "the attacker's": with_header(entra, attackers_key(), jwk=own.jwk()),
        "the attacker's, with its key id": with_header(
            entra, attackers_key(), jwk=own.jwk(), kid="attackers"
        ),
        "the attacker's, under Entra's key id": with_header(
            entra, attackers_key(), jwk=own.jwk(kid=entra.keys[0].kid)
        ),
        "the attacker's, no key id": with_header(entra, attackers_key(), jwk=known, kid=LEFT_OUT),
        "the attacker's, in other letters": with_header(entra, attackers_key(), JWK=own.jwk()),
        "as text": with_header(entra, attackers_key(), jwk=json.dumps(own.jwk())),
        "Entra's own": with_header(entra, jwk=entra.keys[0].jwk(x5c=None)),
        "a secret": signed_with_hmac(
            b"secret",
            as_json(good(entra).members | {"alg": "HS256", "jwk": private}),
            good(entra).payload,
        ),
        "null": with_header(entra, jwk=None),
        "a set": with_header(entra, attackers_key(), jwks={"keys": [own.jwk()]}),
    }
    await service.refuses(401, "invalid_token", variants)


@case("B14", "a certificate in x5c: 401 invalid_token; an x5t that does not fit: ignored")
async def test_B14_certificate(service: Service, entra: EntraEmulator) -> None:
    attackers = SigningKey.generate()
    chain = attackers.members["x5c"]
    await service.refuses(
        *(401, "invalid_token"),
        {
            "the attacker's": with_header(entra, attackers.private_key, x5c=chain),
            "the attacker's, with its thumbprint": with_header(
                entra, attackers.private_key, x5c=chain, x5t=attackers.kid
            ),
            "the attacker's thumbprint alone": with_header(
                entra, attackers.private_key, x5t=attackers.kid
            ),
            "Entra's own": with_header(entra, x5c=entra.keys[0].members["x5c"]),
            "empty": with_header(entra, x5c=[]),
            "text": with_header(entra, x5c="x"),
            "other letters": with_header(entra, X5C=chain),
        },
    )
    await service.accepts(
        {
            "x5t of another key": with_header(entra, x5t=attackers.kid),
            "x5t of nothing": with_header(entra, x5t=""),
            "no x5t": with_header(entra, x5t=LEFT_OUT),
            "x5t#S256 of nothing": with_header(entra, **{"x5t#S256": "x"}),
        }
    )


@case("B15", "crit in any form: 401 invalid_token")
async def test_B15_crit(service: Service, entra: EntraEmulator) -> None:
    values: list[Any] = [["exp"], [], "b64", ["b64"], ["crit"], ["alg"], ["new"], None, {}, 0]
    values += [[1], ["exp", "exp"], True, [["exp"]]]
    variants = member(entra, "crit", values) | member(entra, "b64", [False, True, None, "false"])
    variants["crit and its member"] = with_header(entra, crit=["new"], new=1)
    variants["unencoded payload"] = with_header(entra, crit=["b64"], b64=False)
    variants["other letters"] = with_header(entra, Crit=["exp"])
    await service.refuses(401, "invalid_token", variants)


@case("B17", "a compressed payload, or a header that says so: 401 invalid_token, nothing inflated")
async def test_B17_compression(service: Service, entra: EntraEmulator) -> None:
    def deflated(raw: bytes) -> bytes:
        return zlib.compress(raw, 9)[2:-4]

    parts, key = good(entra), entra.keys[0].private_key
    header = as_json(parts.members | {"zip": "DEF"})
    variants = member(entra, "zip", ["DEF", "GZIP", "def", "none", "", None, 0])
    variants["deflated"] = signed(key, header, deflated(parts.payload))
    variants["a bomb"] = signed(key, header, deflated(bytes(10 * 1024 * 1024)))
    variants["deflated, unsaid"] = signed(key, parts.header, deflated(parts.payload))
    variants["zlib, unsaid"] = signed(key, parts.header, zlib.compress(parts.payload))
    variants["other letters"] = with_header(entra, ZIP="DEF")
    assert len(variants["a bomb"]) < 24 * 1024
    await service.refuses(401, "invalid_token", variants)


@case("B18", "typ of another kind of token, or cty: 401 invalid_token; at+jwt is accepted")
async def test_B18_typ(service: Service, entra: EntraEmulator) -> None:
    types: list[Any] = ["JOSE", "logout+jwt", "dpop+jwt", "secevent+jwt", "kb+jwt", "vc+sd-jwt"]
    types += ["jwt", "Jwt"]
    types += ["JWT ", " JWT", "AT+JWT", "application/jwt", "oauth-authz-req+jwt", "JWS", "JWE"]
    types += ["", 1, True, None, ["JWT"], {"JWT": 1}, LEFT_OUT]
    variants = member(entra, "typ", types) | member(entra, "cty", ["JWT", "jwt", "", None, 1])
    await service.refuses(401, "invalid_token", variants)
    await service.accepts(member(entra, "typ", ["JWT", "at+jwt"]))


@case("B19", "a token for Microsoft Graph, with nonce in its header: 401 invalid_token")
async def test_B19_graph_token(service: Service, entra: EntraEmulator) -> None:
    graph = entra.issue_access_token(resource=GRAPH, scopes=("User.Read",))
    parts = parts_of(graph)
    # Graph's own tokens are signed over the hash of the nonce that stands in the header.
    nonce = base64url(b"nonce")
    hashed = base64url(sha256(nonce.encode()).digest())
    signature = parts_of(
        signed(entra.keys[0].private_key, as_json(parts.members | {"nonce": hashed}), parts.payload)
    ).signature
    variants = {
        "for Graph": graph,
        "for Graph, with a nonce": str(
            Parts(as_json(parts.members | {"nonce": nonce}), parts.payload, signature)
        ),
        "for us, with a nonce": with_header(entra, nonce=nonce),
        "for us, with a null nonce": with_header(entra, nonce=None),
        "for us, with a NONCE": with_header(entra, NONCE=nonce),
    }
    await service.refuses(401, "invalid_token", variants)


@case("B20", "a member of the header twice, or again in other letters: 401 invalid_token")
async def test_B20_header_member_twice(service: Service, entra: EntraEmulator) -> None:
    kid = entra.keys[0].kid
    extra = ['"alg":"none"', '"alg":"RS256"', '"alg":null', '"kid":"x"', f'"kid":"{kid}"']
    extra += ['"typ":"JWT"', '"typ":"none"']
    extra += [r'"\u0061lg":"none"', r'"al\u0067":"RS256"', '"x":1,"x":1', '"x":{"y":1,"y":2}']
    extra += ['"ALG":"none"', '"Alg":"RS256"', '"KID":"x"', f'"Kid":"{kid}"', '"TYP":"JWT"']
    extra += [f'"\u212aid":"{kid}"']
    variants = {}
    for each in extra:
        variants[f"{each} first"] = with_raw_header(entra, begin(each.encode()))
        variants[f"{each} last"] = with_raw_header(entra, end(each.encode()))
    await service.refuses(401, "invalid_token", variants)


@case("B22", "a claim that decides, twice or again in other letters: 401 invalid_token")
async def test_B22_claim_in_other_letters(service: Service, entra: EntraEmulator) -> None:
    deciding = "aud iss exp nbf iat ver tid oid sub scp azp appid idtyp roles".split()
    claims = good(entra, appid="x", idtyp="user", roles=["x"]).claims
    variants = {}
    for name in deciding:
        value = claims[name] if name not in {"appid", "idtyp"} else None
        spellings = [name.upper(), name.capitalize(), name[:-1] + name[-1].upper()]
        spellings += [name.replace("s", "ſ")]
        for spelling in dict.fromkeys(spellings):
            if spelling != name:
                variants[f"{spelling} besides"] = entra.issue_access_token(
                    claims={spelling: value if value is not None else "x"}
                )
        for twice in (f'"{name}"', f'"\\u{ord(name[0]):04x}{name[1:]}"'):
            more = f"{twice}:{json.dumps(value)}".encode()
            if name in good(entra).claims:
                variants[f"{twice} first"] = with_raw_payload(entra, begin(more))
                variants[f"{twice} last"] = with_raw_payload(entra, end(more))
    for name in ("tid", "oid", "scp"):
        only = {name: None, name.upper(): claims[name]}
        variants[f"{name.upper()} alone"] = entra.issue_access_token(claims=only)
    variants["any name twice"] = with_raw_payload(entra, begin(b'"x":1,"x":1'))
    variants["a name twice inside"] = with_raw_payload(entra, begin(b'"x":{"y":1,"y":1}'))
    await service.refuses(401, "invalid_token", variants)


UNLIKE_AN_OBJECT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda raw: b"",
    "array": lambda raw: b"[" + raw + b"]",
    "text": lambda raw: json.dumps(raw.decode()).encode(),
    "number": lambda raw: b"1",
    "null": lambda raw: b"null",
    "empty object": lambda raw: b"{}",
    "byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16-LE": lambda raw: raw.decode().encode("utf-16-le"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32"),
    "EBCDIC": lambda raw: raw.decode().encode("cp500"),
    "space before": lambda raw: b" " + raw,
    "line break after": lambda raw: raw + b"\n",
    "bytes after": lambda raw: raw + b"x",
    "NUL after": lambda raw: raw + b"\0",
    "two objects": lambda raw: raw + raw,
    "a comma too many": lambda raw: raw[:-1] + b",}",
    "a comment": lambda raw: b"{/**/" + raw[1:],
    "single quotes": lambda raw: raw.replace(b'"', b"'"),
    "cut off": lambda raw: raw[:-1],
    "deep": lambda raw: b'{"x":' + b"[" * 300 + b"]" * 300 + b"," + raw[1:],
}


@case("B23", "a header or payload that is not one UTF-8 JSON object: 401 invalid_token")
async def test_B23_not_one_object(service: Service, entra: EntraEmulator) -> None:
    variants = {}
    for name, change in UNLIKE_AN_OBJECT.items():
        variants[f"header: {name}"] = with_raw_header(entra, change)
        variants[f"payload: {name}"] = with_raw_payload(entra, change)
    deep = b'{"y":' * 2000 + b"1" + b"}" * 2000
    variants["payload: very deep"] = with_raw_payload(entra, begin(b'"x":' + deep))
    await service.refuses(401, "invalid_token", variants)


@case("B24", "numbers that are not finite or have thousands of digits: 401 invalid_token")
async def test_B24_odd_numbers(service: Service, entra: EntraEmulator) -> None:
    numbers = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 4301, b"1e400"]
    numbers += [b"1E+999", b"01", b"+1", b".5", b"1.", b"0x10", b"1_000", b"-", b"1e", b"nan"]
    numbers += ["١".encode()]
    variants = {}
    for number in numbers:
        name = number[:12].decode()
        variants[f"x: {name}"] = with_raw_payload(entra, begin(b'"x":' + number))
        inside = begin(b'"x":{"y":[' + number + b"]}")
        variants[f"inside: {name}"] = with_raw_payload(entra, inside)
        if len(number) < 100:
            variants[f"header: {name}"] = with_raw_header(entra, begin(b'"x":' + number))
    for number in numbers[:5]:
        parts = good(entra)
        payload = parts.payload.replace(b'"exp":', b'"exp":' + number + b',"x":')
        key = entra.keys[0].private_key
        variants[f"exp: {number!r}"] = signed(key, parts.header, payload)
    await service.refuses(401, "invalid_token", variants)


@case("B26", "NUL, half a surrogate pair or invalid UTF-8 in a claim: 401 invalid_token")
async def test_B26_odd_text(service: Service, entra: EntraEmulator) -> None:
    texts = [rb"a\u0000b", rb"\ud800", rb"\udc00\ud800", rb"\uDFFF", b"\xff", b"\xc0\xaf", b"\xc3"]
    texts += [b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00", b"a\nb", b"a\tb", rb"\x41", rb"\u12"]
    variants = {}
    for text in texts:
        for place in (b'"x":"%b"', b'"%b":1', b'"x":["%b"]'):
            start = place % text
            variants[f"payload: {start!r}"] = with_raw_payload(entra, begin(start))
            variants[f"header: {start!r}"] = with_raw_header(entra, begin(start))
    for name in ("oid", "tid", "scp", "sub", "name"):
        for odd in ("a\0b", "\ud800"):
            variants[f"{name}: {odd!r}"] = entra.issue_access_token(claims={name: odd})
    await service.refuses(401, "invalid_token", variants)


@case("B27", "base64 padding on any part: 401 invalid_token")
async def test_B27_padding(service: Service, entra: EntraEmulator) -> None:
    token = str(good(entra))
    variants = {}
    for pad in ("=", "==", "===", "%3D", "."):
        parts = token.split(".")
        for position, name in enumerate(("header", "payload", "signature")):
            padded = [*parts]
            padded[position] += pad
            variants[f"{name}{pad}"] = ".".join(padded)
    exact = [part + "=" * (-len(part) % 4) for part in token.split(".")]
    variants["all, as base64 wants it"] = ".".join(exact)
    await service.refuses(401, "invalid_token", variants)


def with_bits_left_over(entra: EntraEmulator, position: int) -> str:
    """Return a token with a part whose last character holds bits that mean nothing."""
    for size in range(4):
        parts = good(entra, name="x" * size)
        header = as_json(parts.members | {"x": "x" * size})
        token = signed(entra.keys[0].private_key, header, parts.payload)
        if len(token.split(".")[position]) % 4 in {2, 3}:
            return token
    raise AssertionError(position)


@case("B28", "another spelling of the same bytes in base64: 401 invalid_token")
async def test_B28_other_spelling(
    service: Service, entra: EntraEmulator, validator: AccessTokenValidator
) -> None:
    """Line breaks do not get through HTTP, so the class is asked about them."""
    variants = {}
    for position, name in enumerate(("header", "payload", "signature")):
        parts = with_bits_left_over(entra, position).split(".")
        parts[position] = respelt(parts[position])
        variants[f"last bits of the {name}"] = ".".join(parts)
    plain = str(good(entra, name="ÿ" * 30))
    while not {"-", "_"} <= set(plain):
        plain = str(good(entra))
    # A comma would make it two credentials, which is another refusal.
    exchanged = {"-": ["+", "\u2010", "%2D", "~", "."], "_": ["/", "\u203f", "%5F", ":"]}
    for found, put in [(each, put) for each in exchanged for put in exchanged[each]]:
        variants[f"{put} for {found}"] = plain.replace(found, put)
        variants[f"{put} for one {found}"] = plain.replace(found, put, 1)
    variants["base64, padded"] = ".".join(
        base64.b64encode(part).decode() for part in (b'{"alg":"RS256"}', b"{}", b"x")
    )
    variants["hexadecimal"] = ".".join(
        base64.urlsafe_b64decode(part + "==").hex() for part in plain.split(".")
    )
    variants["twice encoded"] = base64url(plain.encode())
    variants["lower case"] = plain.lower()
    variants["in quotation marks"] = f'"{plain}"'
    variants["in angle brackets"] = f"<{plain}>"
    await service.refuses(401, "invalid_token", variants)
    for break_ in ("\n", "\r\n", "\n "):
        for text in (plain[:76] + break_ + plain[76:], plain + break_, break_ + plain):
            with pytest.raises(InvalidTokenError):
                await validator.validate(text, now=datetime.now(UTC))


@case("B29", "any number of parts but three, or an empty one: 401 invalid_token")
async def test_B29_number_of_parts(service: Service, entra: EntraEmulator) -> None:
    token = str(good(entra))
    header, payload, signature = token.split(".")
    texts = [header, f"{header}.{payload}", f"{header}.{payload}.", f"{token}.", f".{token}"]
    texts += [f"{token}.{signature}", f"{token}.a.b", "..", ".", "...", "....", "a.b.c"]
    texts += [f".{payload}.{signature}", f"{header}.{payload}..{signature}", f"..{signature}"]
    texts += [f"{header}..{signature}"]
    texts += [f"{payload}.{header}.{signature}", f"{token}.{token}", token.replace(".", ". ")]
    texts += [token.replace(".", "\u3002"), token.replace(".", ":"), "a", "null", "undefined"]
    texts += ["[object Object]", "{}", "true", "%00"]
    await service.refuses(401, "invalid_token", {text[:40] + text[-9:]: text for text in texts})


@case("B30", "JWS in JSON, SD-JWT, or a token inside a token: 401 invalid_token")
async def test_B30_other_serialisations(service: Service, entra: EntraEmulator) -> None:
    token = str(good(entra))
    header, payload, signature = token.split(".")
    one = {"protected": header, "signature": signature}
    parts = good(entra)
    key = entra.keys[0].private_key
    nested = as_json(parts.members | {"cty": "JWT"})
    disclosure = base64url(b'["salt","scp","access_as_user"]')
    variants = {
        "JSON": json.dumps({"payload": payload, "signatures": [one]}),
        "flattened JSON": json.dumps({"payload": payload, **one}, separators=(";", ":")),
        "JSON in base64url": base64url(as_json({"payload": payload, "signatures": [one]})),
        "SD-JWT": f"{token}~{disclosure}~",
        "SD-JWT without disclosures": f"{token}~",
        "SD-JWT with key binding": f"{token}~{disclosure}~{token}",
        "nested": signed(key, nested, token.encode()),
        "nested, unsaid": signed(key, parts.header, token.encode()),
        "nested, as JSON text": signed(key, parts.header, json.dumps(token).encode()),
        "detached": f"{header}..{signature}",
        "CWT": base64url(bytes.fromhex("d28443a10126a0")),
        "PASETO": f"v4.public.{payload}",
    }
    # A comma would make it two credentials, which is another refusal.
    variants = {name: text.replace(",", ";") for name, text in variants.items()}
    await service.refuses(401, "invalid_token", variants)


@case("B31", "an encrypted token (JWE): 401 invalid_token, and nothing is decrypted")
async def test_B31_encrypted(
    service: Service, entra: EntraEmulator, validator: AccessTokenValidator
) -> None:
    def jwe(**header: Any) -> str:
        parts = [as_json(header), bytes(256), bytes(12), good(entra).payload, bytes(16)]
        return ".".join(base64url(part) for part in parts)

    kid = entra.keys[0].kid
    slow = jwe(alg="PBES2-HS256+A128KW", enc="A128GCM", p2c=2**31 - 1, p2s="x", kid=kid)
    variants = {
        "RSA-OAEP": jwe(alg="RSA-OAEP", enc="A256GCM", kid=kid, typ="JWT"),
        "RSA1_5": jwe(alg="RSA1_5", enc="A128CBC-HS256", kid=kid, typ="JWT"),
        "PBES2 with two billion rounds": slow,
        "dir": jwe(alg="dir", enc="A256GCM", zip="DEF", kid=kid),
        "called RS256": jwe(alg="RS256", enc="A256GCM", kid=kid, typ="JWT"),
        "three parts": with_header(entra, enc="A256GCM"),
        "three parts, RSA-OAEP": with_header(entra, alg="RSA-OAEP", enc="A256GCM"),
        "three parts, epk": with_header(entra, epk={"kty": "EC"}),
        "three parts, PBES2": with_header(entra, alg="PBES2-HS256+A128KW", p2c=2**31 - 1, p2s="x"),
        "three parts, ENC": with_header(entra, ENC="A256GCM"),
        "five parts of nothing": "....",
    }
    await service.refuses(401, "invalid_token", variants)
    began = time.process_time()
    with pytest.raises(InvalidTokenError):
        await validator.validate(slow, now=datetime.now(UTC))
    assert time.process_time() - began < 0.5

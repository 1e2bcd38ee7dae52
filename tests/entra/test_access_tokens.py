"""Entra access tokens: which are refused, and which must be accepted, however odd they look."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from local.entra.directory import (
    BROKER,
    CONTOSO,
    DAEMON,
    EXPENSES_API,
    FABRIKAM,
    GRACE,
    GRAPH,
    GUEST,
    WEB_APP,
)
from local.entra.tokens import base64url
from shared import audit
from shared.entra.access_tokens import (
    AccessTokenValidator,
    VerifiedClaims,
    administrator_from_claims,
    caller_from_claims,
)
from shared.entra.compact_form import MAX_HEADER_CHARACTERS, MAX_TOKEN_CHARACTERS
from shared.entra.key_sets import SigningKey
from shared.errors import (
    AdminRequiredError,
    BrokerError,
    ClientNotAllowedError,
    InsufficientScopeError,
    InvalidTokenError,
    KeysUnavailableError,
    TenantNotAllowedError,
)
from shared.identifiers import CONSUMERS
from tests.tokens import (
    SHA256_PREFIX,
    KnownKeys,
    as_json,
    parts_of,
    respelt,
    signed,
    signed_with_hmac,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.entra.tokens import TokenIssuer
    from shared.entra.access_tokens import Administrator, Caller
    from shared.identifiers import Person
    from shared.settings import EntraSettings

    Validate = Callable[[str], Awaitable[Administrator]]

OTHER_TENANT = "11111111-2222-4333-8444-555555555555"
# What stands before a SHA-256 hash in a signature, but without parameters.
NO_NULL_INFO = bytes.fromhex("302f300b0609608648016503040201" + "0420")
BAD_LIFETIME = "lifetime is zero, negative or over 28 hours"


@pytest.fixture
def keys(issuer: TokenIssuer) -> KnownKeys:
    return KnownKeys(issuer)


@pytest.fixture
def validator(keys: KnownKeys, entra_settings: EntraSettings) -> AccessTokenValidator:
    return AccessTokenValidator(settings=entra_settings, keys=keys)


def epoch() -> int:
    return int(datetime.now(UTC).timestamp())


async def validate(validator: AccessTokenValidator, token: str) -> Caller:
    return await validator.validate(token, now=datetime.now(UTC))


async def test_returns_the_caller(
    validator: AccessTokenValidator, issue_access_token: Callable[..., str]
) -> None:
    """Tenant, object id and client app come from `tid`, `oid` and `azp`."""
    caller = await validate(validator, issue_access_token())

    assert (CONTOSO.tenant_id, "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834") == caller.person
    assert WEB_APP.client_id == caller.client_id


async def test_tells_the_key_store(
    validator: AccessTokenValidator, keys: KnownKeys, issuer: TokenIssuer
) -> None:
    """The key store gets the payload of each token, and learns who was let in, nobody else."""
    good, bad = issuer.issue_access_token(), issuer.issue_access_token(claims={"exp": 1})
    grace = issuer.issue_access_token(GRACE.user_name)

    caller = await validate(validator, good)
    for refused in (bad, good[:-9] + "AAAAAAAA" + good[-1]):
        with pytest.raises(InvalidTokenError):
            await validate(validator, refused)
    administrator = await validator.validate_administrator(grace, now=datetime.now(UTC))

    assert [caller.person, administrator.person] == keys.people
    payloads = [token.split(".")[1] for token in (good, bad, good, grace)]
    assert payloads == [base64url(payload) for payload in keys.payloads]


async def test_notes_the_token(
    validator: AccessTokenValidator, issue_access_token: Callable[..., str]
) -> None:
    """The audit line has the id by which Entra knows the token, also if the token is refused."""
    uti = "7smAyE1P_U-Uo2hDkqzWAA"
    with audit.decision() as admitted:
        await validate(validator, issue_access_token(uti=uti))
    with audit.decision() as refused, pytest.raises(InvalidTokenError):
        await validate(validator, issue_access_token(uti=uti, exp=1))

    assert uti == admitted["uti"] == refused["uti"]


@pytest.mark.parametrize("uti", [None, 7, "", "a b", "a\n", "é", "x" * 65, ["x"], {"x": "x"}])
async def test_notes_no_other_text(
    validator: AccessTokenValidator, issue_access_token: Callable[..., str], uti: object
) -> None:
    """What does not look like such an id is not logged, and does not matter."""
    with audit.decision() as noted:
        await validate(validator, issue_access_token(uti=uti))

    assert "uti" not in noted


@pytest.mark.parametrize(
    ("changes", "noted"),
    [
        ({}, None),
        ({"exp": 1}, None),
        ({"scp": "User.Read"}, None),
        ({"oid": None}, None),
        ({"aud": "https://management.azure.com"}, False),
        ({"aud": ["x"]}, False),
        ({"aud": None}, False),
        ({"tid": OTHER_TENANT}, False),
        ({"tid": CONSUMERS}, False),
        ({"tid": {}}, False),
    ],
    ids=str,
)
async def test_notes_tokens_for_others(
    validator: AccessTokenValidator,
    issue_access_token: Callable[..., str],
    changes: dict[str, Any],
    noted: object,
) -> None:
    """The audit line tells people of the service from all others who have tokens of Entra's."""
    with audit.decision() as fields, suppress(BrokerError):
        await validate(validator, issue_access_token(**changes))

    assert noted is fields.get("ours")


async def test_notes_nothing_unverified(
    validator: AccessTokenValidator, issue_access_token: Callable[..., str]
) -> None:
    """Nothing that a forged token says is logged."""
    signed, _, signature = issue_access_token().rpartition(".")

    with audit.decision() as noted, pytest.raises(InvalidTokenError):
        await validate(validator, f"{signed}.{'A' * 4}{signature[4:]}")

    assert {} == noted


class TestPasses:
    """Tokens as Entra really issues them."""

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({}, id="as issued"),
            pytest.param(
                {"xms_new": {"a": [1, 2.5, {"b": None}]}, "empty": []}, id="new claims"
            ),
            pytest.param({"many": [[] for _ in range(70)]}, id="70 flat arrays"),
            pytest.param(
                {"extn.Dept": "a", "extn.dept": "b", "EmployeeId": 1, "employeeid": 2},
                id="harmless claims in two spellings",
            ),
            pytest.param({"name": "Zoë 漢字 😀", "given_name": "A/B"}, id="any script"),
            pytest.param(
                {"roles": ["Reader"], "wids": ["b79fbf4d"], "idtyp": "user", "amr": ["pwd", "mfa"],
                 "acrs": ["c1"], "auth_time": 1, "ipaddr": "192.0.2.1", "login_hint": "O.x"},
                id="roles and the like beside scp",
            ),
            pytest.param({"scp": "access_as_user User.Read"}, id="our scope first"),
            pytest.param({"scp": "openid access_as_user User.Read"}, id="in the middle"),
            pytest.param({"scp": "openid access_as_user"}, id="last"),
            pytest.param({"acct": 1, "idp": "https://sts.windows.net/x/"}, id="guest"),
            pytest.param(
                {"_claim_names": {"groups": "src1"},
                 "_claim_sources": {"src1": {"endpoint": "https://evil.example"}}},
                id="group overage",
            ),
            pytest.param({"groups": [f"CONTOSO\\{n:060}" for n in range(200)]}, id="200 groups"),
            pytest.param({"tid": FABRIKAM.tenant_id}, id="the other tenant"),
        ],
    )  # fmt: skip
    async def test_odd_claims(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, changes: dict[str, Any]
    ) -> None:
        """Claims that do not decide may be anything."""
        user = "fadi@fabrikam.example" if "tid" in changes else "ada@contoso.example"

        assert await validate(validator, issuer.issue_access_token(user, claims=changes))

    @pytest.mark.parametrize(
        ("issued", "not_before", "expires"),
        [
            pytest.param(0, 0, 86_400, id="24 hours"),
            pytest.param(0, 0, 28 * 3600, id="28 hours"),
            pytest.param(0, 0, 600, id="10 minutes"),
            pytest.param(20, 20, 3600, id="issuer 20 s ahead"),
            pytest.param(-3600, -3600, -50, id="expired within the skew"),
        ],
    )
    async def test_odd_dates(
        self,
        validator: AccessTokenValidator,
        issue_access_token: Callable[..., str],
        issued: int,
        not_before: int,
        expires: int,
    ) -> None:
        """Lifetimes from minutes to 28 hours are accepted, with clocks a little off."""
        now = epoch()
        token = issue_access_token(iat=now + issued, nbf=now + not_before, exp=now + expires)

        assert await validate(validator, token)

    @pytest.mark.parametrize("audience", [None, BROKER.client_id], ids=["app id URI", "client id"])
    async def test_version_1(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, audience: str | None
    ) -> None:
        """v1 tokens have their own issuer and `appid`, and the audience in either form."""
        token = issuer.issue_access_token(version=1, audience=audience)

        assert WEB_APP.client_id == (await validate(validator, token)).client_id

    @pytest.mark.parametrize(
        "header",
        [
            pytest.param({"typ": "at+jwt"}, id="at+jwt, RFC 9068"),
            pytest.param({"x5t": None}, id="no x5t"),
            pytest.param({"x5t": "another"}, id="x5t of nothing"),
            pytest.param({"new": "member"}, id="unknown harmless member"),
            pytest.param({"new": {"a": [{"b": [1, None, 2.5]}, []]}}, id="with others inside"),
        ],
    )
    async def test_odd_headers(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, header: dict[str, Any]
    ) -> None:
        """Members that change nothing are ignored."""
        assert await validate(validator, issuer.issue_access_token(header=header))

    async def test_second_key_of_4096_bits(
        self, validator: AccessTokenValidator, keys: KnownKeys, issuer: TokenIssuer
    ) -> None:
        """Entra signs with any key of its set."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
        issuer.publish_key(key, kid="large", issuer=issuer.issuer("{tenantid}"))
        keys.fetch()

        assert await validate(validator, issuer.issue_access_token(key=key))

    async def test_spaced_json_in_any_order(
        self, validator: AccessTokenValidator, issuer: TokenIssuer
    ) -> None:
        """Compact or spaced, escaped or raw, forwards or backwards."""
        token = issuer.issue_access_token(claims={"name": "Zoë 😀"})
        claims = jwt.decode(token, options={"verify_signature": False})
        spaced = json.dumps(dict(reversed(claims.items())), indent=2, ensure_ascii=False)

        assert await validate(
            validator, issuer.sign({}, spaced.replace("https://", r"https:\/\/").encode())
        )

    async def test_names_do_not_matter(
        self, validator: AccessTokenValidator, issue_access_token: Callable[..., str]
    ) -> None:
        """Mail addresses and names change hands; the person stays who they are."""
        renamed = issue_access_token(
            preferred_username="eve@contoso.example", email="x@y", upn="x", name="Eve"
        )

        before = await validate(validator, issue_access_token())
        assert before.person == (await validate(validator, renamed)).person


class TestRefusesHeaders:
    """A bad JOSE header is refused before any key is looked up."""

    @pytest.mark.parametrize(
        "header",
        [
            *({"alg": alg} for alg in ["none", "None", "NONE", "nOnE", " none", "", None]),
            *({"alg": alg} for alg in [["RS256"], {}, 0, True, "rs256", "RS256 "]),
            *({"alg": alg} for alg in "HS256 RS384 RS512 PS256 PS512 ES256 ES256K EdDSA".split()),
            *({"typ": typ} for typ in ["JOSE", "logout+jwt", "dpop+jwt", "jwt", 1, None, ["JWT"]]),
            *({"kid": kid} for kid in ["../../../../dev/null", "https://evil/keys", "", None, 1]),
            *({"kid": kid} for kid in ["k" * 10_000, "a\r\nb", "kïd", ["kid"]]),
            *({name: "x"} for name in "jku jwk x5u x5c b64 zip cty enc epk nonce JKU".split()),
            *({name: "x"} for name in "ALG Alg aLg TYP Typ KID Kid \u212aid".split()),
            *({"crit": crit} for crit in [["exp"], [], "b64", None, ["crit"]] if crit is not None),
            {"jwk": {"kty": "RSA", "n": "x", "e": "AQAB"}},
            {"zip": "DEF"},
        ],
        ids=str,
    )
    async def test_member(
        self,
        validator: AccessTokenValidator,
        keys: KnownKeys,
        issuer: TokenIssuer,
        header: dict[str, Any],
    ) -> None:
        """One member out of order is enough, and no key is asked for."""
        with pytest.raises(InvalidTokenError):
            await validate(validator, issuer.issue_access_token(header=header))

        assert [] == keys.asked

    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param(b'{"alg":"none","alg":"RS256","typ":"JWT","kid":"%s"}', id="alg twice"),
            pytest.param(b'{"alg":"RS256","ALG":"none","typ":"JWT","kid":5}', id="ALG"),
            pytest.param(b'["RS256"]', id="array"),
            pytest.param(
                b'{"alg":"RS256","typ":"JWT","x":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]],"kid":"%s"}',
                id="nested",
            ),
            pytest.param(b'\xef\xbb\xbf{"alg":"RS256","typ":"JWT","kid":"%s"}', id="BOM"),
            pytest.param('{"alg":"RS256"}'.encode("utf-16"), id="UTF-16"),
            pytest.param(b'{"alg":"RS256","typ":"JWT","kid":"%s"} ', id="trailing space"),
        ],
    )
    async def test_not_one_object(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, raw: bytes
    ) -> None:
        """A header that two readers could understand differently is refused."""
        kid = issuer.keys[0].kid.encode()
        payload = parts_of(issuer.issue_access_token()).payload
        token = signed(issuer.keys[0].private_key, raw.replace(b"%s", kid), payload)

        with pytest.raises(InvalidTokenError):
            await validate(validator, token)


def with_header(token: str, characters: int) -> str:
    """Return a token whose header has this many characters, in a member that nobody knows."""
    header, _, rest = token.partition(".")
    members = json.loads(base64.urlsafe_b64decode(header + "=="))
    longer = json.dumps(members | {"new": ""})
    filled = longer[:-2] + "x" * (characters * 3 // 4 - len(longer)) + longer[-2:]
    assert characters == len(base64url(filled.encode()))
    return f"{base64url(filled.encode())}.{rest}"


class TestRefusesShapes:
    """Anything but three canonical base64url segments is refused."""

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda t: "", id="empty"),
            pytest.param(lambda t: t.rsplit(".", 1)[0], id="two segments"),
            pytest.param(lambda t: t.rsplit(".", 1)[0] + ".", id="no signature"),
            pytest.param(lambda t: t + ".", id="trailing dot"),
            pytest.param(lambda t: "." + t, id="leading dot"),
            pytest.param(lambda t: t + ".x", id="four segments"),
            pytest.param(lambda t: t + ".x.y", id="five segments, JWE"),
            pytest.param(lambda t: "..", id="dots"),
            pytest.param(lambda t: "garbage", id="garbage"),
            pytest.param(lambda t: t + "=", id="padded signature"),
            pytest.param(lambda t: t.replace(".", "=.", 1), id="padded header"),
            pytest.param(lambda t: "\n" + t, id="newline before"),
            pytest.param(lambda t: t + "\n", id="newline after"),
            pytest.param(lambda t: t[:50] + "\n" + t[50:], id="newline inside"),
            pytest.param(lambda t: t[:50] + "\0" + t[51:], id="NUL inside"),
            pytest.param(lambda t: t[:50] + "\xa0" + t[51:], id="NBSP inside"),
            pytest.param(lambda t: t + "\u200b", id="zero-width space"),
            pytest.param(lambda t: t[:50] + " " + t[50:], id="space inside"),
            pytest.param(lambda t: t[:50] + "+" + t[51:], id="plus, base64"),
            pytest.param(lambda t: t[:50] + "/" + t[51:], id="slash, base64"),
            pytest.param(lambda t: t + "~disclosure~", id="SD-JWT"),
            pytest.param(lambda t: '{"payload":"x","signatures":[]}', id="JSON serialisation"),
            pytest.param(lambda t: t + "A" * MAX_TOKEN_CHARACTERS, id="over 24 KiB"),
            pytest.param(lambda t: "A" * 4 + t, id="another header"),
            pytest.param(lambda t: with_header(t, MAX_HEADER_CHARACTERS + 2), id="long header"),
            pytest.param(lambda t: "A" * 5 + t[t.index(".") :], id="a header of 3.75 bytes"),
            pytest.param(lambda t: t[:-1], id="a signature of 255.75 bytes"),
            pytest.param(lambda t: t + "A" * 342, id="a signature of 513 bytes"),
            pytest.param(lambda t: "." * 24_000, id="nothing but dots"),
            pytest.param(lambda t: "a.b.c", id="short segments"),
            pytest.param(lambda t: t[:-1] + "é", id="a letter beyond ASCII"),
            pytest.param(lambda t: t + "A" * 10 * 1024 * 1024, id="10 MiB"),
        ],
    )
    async def test_shape(
        self,
        validator: AccessTokenValidator,
        keys: KnownKeys,
        issue_access_token: Callable[..., str],
        change: Callable[[str], str],
    ) -> None:
        """No key is asked for a token that is not one."""
        with pytest.raises(InvalidTokenError):
            await validate(validator, change(issue_access_token()))

        assert [] == keys.asked

    async def test_longest_header(
        self, validator: AccessTokenValidator, issuer: TokenIssuer
    ) -> None:
        """Up to the limit, which is more than six times what Entra sends, a header may grow."""
        unsigned = parts_of(with_header(issuer.issue_access_token(), MAX_HEADER_CHARACTERS))
        token = signed(issuer.keys[0].private_key, unsigned.header, unsigned.payload)

        assert 6 * len(issuer.issue_access_token().partition(".")[0]) < MAX_HEADER_CHARACTERS
        assert await validate(validator, token)

    async def test_trailing_bits(
        self, validator: AccessTokenValidator, issue_access_token: Callable[..., str]
    ) -> None:
        """The same bytes in another spelling are another token."""
        unsigned, _, signature = issue_access_token().rpartition(".")

        # 256 bytes of signature end in a character with four bits that must be zero.
        with pytest.raises(InvalidTokenError, match="canonical"):
            await validate(validator, f"{unsigned}.{respelt(signature)}")


class TestRefusesSignatures:
    """Anything that the key did not sign is refused."""

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda s: bytes([s[0] ^ 1]) + s[1:], id="one bit"),
            pytest.param(lambda s: s[:-1], id="truncated"),
            pytest.param(lambda s: b"\0" + s, id="zero before"),
            pytest.param(lambda s: s + b"\0", id="zero after"),
            pytest.param(lambda s: bytes(len(s)), id="all zero"),
            pytest.param(lambda s: b"\x01", id="one byte"),
        ],
    )
    async def test_signature(
        self,
        validator: AccessTokenValidator,
        issue_access_token: Callable[..., str],
        change: Callable[[bytes], bytes],
    ) -> None:
        """Altered signatures."""
        signed, signature = issue_access_token().rsplit(".", 1)
        altered = change(base64.urlsafe_b64decode(signature + "=="))

        with pytest.raises(InvalidTokenError):
            await validate(validator, f"{signed}.{base64url(altered)}")

    @pytest.mark.parametrize(
        "encoded",
        [
            pytest.param(lambda h: b"\0\1" + b"\xff" * 202 + b"\0" + SHA256_PREFIX + h, id="good"),
            pytest.param(
                lambda h: b"\0\1" + b"\xff" * 8 + b"\0" + SHA256_PREFIX + h + bytes(194),
                id="zeros after the hash",
            ),
            pytest.param(
                lambda h: b"\0\1\0" + bytes(202) + SHA256_PREFIX + h, id="zeros for padding"
            ),
            pytest.param(
                lambda h: b"\0\2" + b"\xff" * 202 + b"\0" + SHA256_PREFIX + h, id="block type 2"
            ),
            pytest.param(
                lambda h: b"\0\1" + b"\xff" * 204 + b"\0" + NO_NULL_INFO + h,
                id="no NULL for parameters",
            ),
            pytest.param(lambda h: b"\0\1" + b"\xff" * 221 + b"\0" + h, id="the bare hash"),
        ],
    )
    async def test_padding(
        self,
        validator: AccessTokenValidator,
        issuer: TokenIssuer,
        encoded: Callable[[bytes], bytes],
    ) -> None:
        """Only the one encoding of RFC 8017, section 9.2 is a signature (Bleichenbacher 2006)."""
        numbers = issuer.keys[0].private_key.private_numbers()
        signed = issuer.issue_access_token().rpartition(".")[0]
        block = encoded(hashlib.sha256(signed.encode()).digest())
        power = pow(int.from_bytes(block), numbers.d, numbers.public_numbers.n)
        token = f"{signed}.{base64url(power.to_bytes(256))}"

        assert 256 == len(block)
        if block == b"\0\1" + b"\xff" * 202 + b"\0" + SHA256_PREFIX + block[-32:]:
            assert await validate(validator, token)
        else:
            with pytest.raises(InvalidTokenError, match="signature"):
                await validate(validator, token)

    async def test_before_the_payload(
        self, validator: AccessTokenValidator, issuer: TokenIssuer
    ) -> None:
        """What a forged payload holds is never read as JSON: the signature is what is wrong."""
        header, _, signature = issuer.issue_access_token().split(".")

        for payload in (b"no JSON", b'{"x":' + b"[" * 9000, b"{" + b" " * 17_000 + b"}"):
            with pytest.raises(InvalidTokenError, match="signature"):
                await validate(validator, f"{header}.{base64url(payload)}.{signature}")

    @pytest.mark.parametrize("claim", ["oid", "tid", "scp"])
    async def test_payload_altered(
        self,
        validator: AccessTokenValidator,
        issue_access_token: Callable[..., str],
        claim: str,
    ) -> None:
        """Claims changed after signing."""
        header, payload, signature = issue_access_token().split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
        claims[claim] = OTHER_TENANT
        altered = base64url(json.dumps(claims).encode())

        with pytest.raises(InvalidTokenError):
            await validate(validator, f"{header}.{altered}.{signature}")

    async def test_other_published_key(
        self, validator: AccessTokenValidator, issuer: TokenIssuer
    ) -> None:
        """The key id names the key; others are not tried."""
        token = issuer.issue_access_token(
            key=issuer.keys[1].private_key, header={"kid": issuer.keys[0].kid}
        )

        with pytest.raises(InvalidTokenError):
            await validate(validator, token)

    @pytest.mark.parametrize("form", ["PEM", "DER", "n"])
    async def test_key_confusion(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, form: str
    ) -> None:
        """HS256 with the public key as the secret."""
        public = issuer.keys[0].private_key.public_key()
        secret = {
            "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "n": json.dumps(issuer.key_set(None)).encode(),
        }[form]
        payload = parts_of(issuer.issue_access_token()).payload
        header = as_json({"alg": "HS256", "typ": "JWT", "kid": issuer.keys[0].kid})

        with pytest.raises(InvalidTokenError):
            await validate(validator, signed_with_hmac(secret, header, payload))

    async def test_any_error_of_pyjwt(
        self, issuer: TokenIssuer, entra_settings: EntraSettings
    ) -> None:
        """Even a key that PyJWT chokes on makes the token bad, not the service."""

        class BrokenKeys:
            async def get(self, _key_id: str, _payload: bytes) -> SigningKey:
                return SigningKey(public_key=None, issuer="x")  # type: ignore[arg-type]  # broken

            def served(self, _person: Person) -> None:
                raise AssertionError

        validator = AccessTokenValidator(settings=entra_settings, keys=BrokenKeys())

        with pytest.raises(InvalidTokenError):
            await validate(validator, issuer.issue_access_token())


class TestRefusesPayloads:
    """Signed bytes that are not one strict JSON object are refused."""

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda p: b"", id="empty"),
            pytest.param(lambda p: b"[" + p + b"]", id="array"),
            pytest.param(lambda p: b" " + p, id="leading space"),
            pytest.param(lambda p: p + b"\n", id="trailing newline"),
            pytest.param(lambda p: b"\xef\xbb\xbf" + p, id="BOM"),
            pytest.param(lambda p: p.decode().encode("utf-16"), id="UTF-16"),
            pytest.param(lambda p: p.decode().encode("utf-32"), id="UTF-32"),
            pytest.param(lambda p: b'{"exp":1,' + p[1:], id="exp twice"),
            pytest.param(lambda p: b'{"oid":"x",' + p[1:], id="oid twice"),
            pytest.param(lambda p: b'{"x":NaN,' + p[1:], id="NaN"),
            pytest.param(lambda p: b'{"x":1e999,' + p[1:], id="1e999"),
            pytest.param(lambda p: b'{"x":' + b"9" * 4301 + b"," + p[1:], id="4301 digits"),
            pytest.param(lambda p: rb'{"x":"\u0000",' + p[1:], id="NUL"),
            pytest.param(lambda p: rb'{"x":"\ud800",' + p[1:], id="half a surrogate pair"),
            pytest.param(lambda p: b'{"x":"\xff",' + p[1:], id="not UTF-8"),
            pytest.param(lambda p: b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"," + p[1:], id="deep"),
        ],
    )
    async def test_payload(
        self,
        validator: AccessTokenValidator,
        issuer: TokenIssuer,
        change: Callable[[bytes], bytes],
    ) -> None:
        """The signature is good; what it covers is not."""
        payload = issuer.issue_access_token().split(".")[1]
        raw = base64.urlsafe_b64decode(payload + "==")

        with pytest.raises(InvalidTokenError):
            await validate(validator, issuer.sign({}, change(raw)))


class TestRefusesClaims:
    """One claim out of order is enough."""

    @pytest.mark.parametrize(
        "changes",
        [
            *({"exp": exp} for exp in [None, "999", " 999 ", "9_999", "١٢٣", 1e10, True, [1], -1]),
            *({"exp": exp} for exp in [0, 1, 10**300]),
            *({"iat": iat} for iat in [None, "1", 1.5, True, 0]),
            *({"nbf": nbf} for nbf in [None, "1", [1], False]),
            *({"ver": ver} for ver in [None, "2", 2.0, 2, "3.0", "1.0", ["2.0"]]),
            *(
                {"aud": aud}
                for aud in [
                    GRAPH.client_id,
                    "https://graph.microsoft.com",
                    EXPENSES_API.client_id,
                    BROKER.client_id.upper(),
                    f"api://{BROKER.client_id}",
                    f"{BROKER.client_id}/",
                    f"{BROKER.client_id}.evil",
                    [BROKER.client_id],
                    [BROKER.client_id, "other"],
                    "",
                    None,
                    {"a": "b"},
                ]
            ),
            *(
                {"iss": f"https://{end}"}
                for end in [
                    f"login.microsoftonline.com.evil/{CONTOSO.tenant_id}/v2.0",
                    f"login.microsoftonline.com/{CONTOSO.tenant_id}/v2.0/",
                    f"login.microsoftonline.com/{CONTOSO.tenant_id}/v2.0/x",
                    f"LOGIN.microsoftonline.com/{CONTOSO.tenant_id}/v2.0",
                    f"login.microsoftonline.com@evil/{CONTOSO.tenant_id}/v2.0",
                    f"login。microsoftonline.com/{CONTOSO.tenant_id}/v2.0",
                    f"login.microsoftonline.com/{FABRIKAM.tenant_id}/v2.0",
                    "login.microsoftonline.com/{tenantid}/v2.0",
                    "login.microsoftonline.com/common/v2.0",
                    "login.microsoftonline.com/organizations/v2.0",
                    "login.microsoftonline.com/contoso.example/v2.0",
                    f"sts.windows.net/{CONTOSO.tenant_id}/",
                    f"contoso.b2clogin.com/{CONTOSO.tenant_id}/v2.0/",
                    f"{CONTOSO.tenant_id}.ciamlogin.com/{CONTOSO.tenant_id}/v2.0",
                ]
            ),
            {"iss": f"http://login.microsoftonline.com/{CONTOSO.tenant_id}/v2.0"},
            {"iss": None},
            {"tid": FABRIKAM.tenant_id},
            *(
                {"tid": tid, "iss": f"https://login.microsoftonline.com/{tid}/v2.0"}
                for tid in [
                    None,
                    "contoso",
                    CONTOSO.tenant_id.upper(),
                    f"{{{CONTOSO.tenant_id}}}",
                    "g" + CONTOSO.tenant_id[1:],
                    [CONTOSO.tenant_id],
                ]
            ),
            *({"oid": oid} for oid in [None, "", "me", 7, ["x"], "a\x01b", "x" * 513, "a/b"]),
            {"oid": "7D2F6B1E-43C9-4A80-B5D7-0E91F2A6C834"},
            {"TID": CONTOSO.tenant_id},
            {"OID": "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834"},
            {"Scp": "access_as_user"},
            {"ſcp": "access_as_user"},
            *({"azp": azp} for azp in ["app", 1, ["x"]]),
            {"appid": EXPENSES_API.client_id},
            {"azp": None, "appid": WEB_APP.client_id},
            {"appid": [WEB_APP.client_id]},
            *({"scp": scp} for scp in [["access_as_user"], 1, {"access_as_user": 1}]),
        ],
        ids=str,
    )
    async def test_claim(
        self,
        validator: AccessTokenValidator,
        issue_access_token: Callable[..., str],
        changes: dict[str, Any],
    ) -> None:
        """The token is good but for this."""
        with pytest.raises(InvalidTokenError):
            await validate(validator, issue_access_token(**changes))

    @pytest.mark.parametrize(
        ("audience", "version"),
        [
            (f"api://{BROKER.client_id}/", 1),
            (f"API://{BROKER.client_id}", 1),
            (f"api://{BROKER.client_id}.evil", 1),
            ("https://graph.microsoft.com", 1),
        ],
    )
    async def test_audience_of_version_1(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, audience: str, version: int
    ) -> None:
        """Only the exact strings of the settings count, in v1 tokens too."""
        with pytest.raises(InvalidTokenError):
            await validate(validator, issuer.issue_access_token(version=version, audience=audience))

    @pytest.mark.parametrize(
        ("issued", "not_before", "expires", "reason"),
        [
            pytest.param(-3600, -3600, -61, "expired", id="expired"),
            pytest.param(-3600, -3600, -60, "expired", id="at the boundary"),
            pytest.param(0, 120, 3600, "not valid yet", id="not before in the future"),
            pytest.param(120, 0, 3600, "not valid yet", id="issued in the future"),
            pytest.param(0, 0, 28 * 3600 + 61, BAD_LIFETIME, id="over 28 hours"),
            pytest.param(0, 50, 40, BAD_LIFETIME, id="expires before it starts"),
            pytest.param(50, 0, 40, BAD_LIFETIME, id="expires before it is issued"),
            pytest.param(0, 30, 30, BAD_LIFETIME, id="never valid"),
        ],
    )
    async def test_dates(
        self,
        validator: AccessTokenValidator,
        issue_access_token: Callable[..., str],
        issued: int,
        not_before: int,
        expires: int,
        reason: str,
    ) -> None:
        """Every date has its bound, with 60 seconds for clocks."""
        now = epoch()
        token = issue_access_token(iat=now + issued, nbf=now + not_before, exp=now + expires)

        with pytest.raises(InvalidTokenError, match=reason):
            await validator.validate(token, now=datetime.fromtimestamp(now, UTC))


class TestRefusesPeopleAndApps:
    """The token is valid, but its person or app may not use the service."""

    @pytest.mark.parametrize("tenant_id", [OTHER_TENANT, CONSUMERS])
    async def test_tenant(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, tenant_id: str
    ) -> None:
        """A tenant that is not on the list, once the signature has been verified."""
        claims = {"tid": tenant_id, "iss": issuer.issuer(tenant_id)}

        with pytest.raises(TenantNotAllowedError):
            await validate(validator, issuer.issue_access_token(claims=claims))

    async def test_personal_accounts_are_not_an_organisation(
        self, keys: KnownKeys, issuer: TokenIssuer, entra_settings: EntraSettings
    ) -> None:
        """`*` means every organisation; personal accounts do not count as one."""
        validator = AccessTokenValidator(
            settings=replace(entra_settings, tenant_ids=None), keys=keys
        )
        other = {"tid": OTHER_TENANT, "iss": issuer.issuer(OTHER_TENANT)}
        personal = {"tid": CONSUMERS, "iss": issuer.issuer(CONSUMERS)}

        assert await validate(validator, issuer.issue_access_token(claims=other))
        with pytest.raises(TenantNotAllowedError):
            await validate(validator, issuer.issue_access_token(claims=personal))

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("signs_for", [FABRIKAM.tenant_id, CONSUMERS, "{tenantid}x"])
    async def test_key_of_another_tenant(
        self,
        validator: AccessTokenValidator,
        keys: KnownKeys,
        issuer: TokenIssuer,
        signs_for: str,
        version: int,
    ) -> None:
        """A key signs for the issuer it is published with, for no other."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        issuer.publish_key(key, kid="theirs", issuer=issuer.issuer(signs_for))
        keys.fetch()

        with pytest.raises(InvalidTokenError, match="another issuer"):
            await validate(validator, issuer.issue_access_token(key=key, version=version))

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"scp": None}, id="no scope, as in an ID token"),
            pytest.param({"scp": ""}, id="empty"),
            pytest.param({"scp": "access_as_user2"}, id="another scope"),
            pytest.param({"scp": "Access_As_User"}, id="capitals"),
            pytest.param({"scp": "User.Read\taccess_as_user"}, id="tab"),
            pytest.param({"scp": "User.Read\xa0access_as_user"}, id="NBSP"),
            pytest.param({"scp": "User.Read,access_as_user"}, id="comma"),
            pytest.param({"scp": "User.Read\naccess_as_user"}, id="newline"),
            pytest.param({"scp": None, "scope": "access_as_user"}, id="scope for scp"),
            pytest.param({"scp": None, "roles": ["access_as_user"]}, id="roles for scp"),
            pytest.param({"idtyp": "app"}, id="an app with a scope"),
        ],
    )
    async def test_scope(
        self,
        validator: AccessTokenValidator,
        issue_access_token: Callable[..., str],
        changes: dict[str, Any],
    ) -> None:
        """The delegated scope, exactly, and in `scp` alone."""
        with pytest.raises(InsufficientScopeError) as caught:
            await validate(validator, issue_access_token(**changes))

        assert "access_as_user" == caught.value.challenge()["scope"]

    async def test_app_only(self, validator: AccessTokenValidator, issuer: TokenIssuer) -> None:
        """A token of an app without a user is refused."""
        with pytest.raises(InsufficientScopeError):
            await validate(validator, issuer.issue_access_token(None))

    async def test_client(
        self, keys: KnownKeys, issuer: TokenIssuer, entra_settings: EntraSettings
    ) -> None:
        """If the settings name client apps, others are refused, and so is a token without one."""
        allowed = replace(entra_settings, allowed_client_ids=frozenset({WEB_APP.client_id}))
        validator = AccessTokenValidator(settings=allowed, keys=keys)

        assert await validate(validator, issuer.issue_access_token())
        for azp in (EXPENSES_API.client_id, None):
            with pytest.raises(ClientNotAllowedError):
                await validate(validator, issuer.issue_access_token(claims={"azp": azp}))


class TestAdministrators:
    """Who may see and change other people's mappings, and whose."""

    @pytest.fixture
    def validate(self, validator: AccessTokenValidator) -> Validate:
        """Return a function that validates the token of an administrator, as of now."""
        return lambda token: validator.validate_administrator(token, now=datetime.now(UTC))

    async def test_user(self, validate: Validate, issuer: TokenIssuer) -> None:
        """A user has the app role and, in a token for the broker, the delegated scope."""
        now = epoch()
        administrator = await validate(issuer.issue_access_token(GRACE.user_name))

        assert (CONTOSO.tenant_id, GRACE.object_id) == administrator.person
        assert WEB_APP.client_id == administrator.client_id
        assert now - 400 < administrator.issued_at <= now

    @pytest.mark.parametrize(
        ("version", "changes"),
        [
            pytest.param(2, {}, id="as issued"),
            pytest.param(2, {"idtyp": None}, id="of an API that asks for no idtyp"),
            pytest.param(2, {"roles": ["Reader", "Mappings.Admin"]}, id="two roles"),
            pytest.param(1, {}, id="version 1"),
        ],
    )
    async def test_app(
        self, validate: Validate, issuer: TokenIssuer, version: int, changes: dict[str, Any]
    ) -> None:
        """An app by itself has the app role, and no scope."""
        token = issuer.issue_access_token(None, client=DAEMON, version=version, claims=changes)

        administrator = await validate(token)

        assert (CONTOSO.tenant_id, DAEMON.principal_in(CONTOSO)) == administrator.person
        assert DAEMON.client_id == administrator.client_id

    async def test_kept_keys(
        self, validate: Validate, issuer: TokenIssuer, keys: KnownKeys
    ) -> None:
        """Keys out of our own table, which people who can write there may have made, open nothing.

        They are good for everybody else, as far as the gate is concerned.
        """
        keys.are_kept = True

        with pytest.raises(KeysUnavailableError):
            await validate(issuer.issue_access_token(GRACE.user_name))

        assert [] == keys.people

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"aud": "x"}, InvalidTokenError),
            ({"exp": 1}, InvalidTokenError),
            ({"tid": OTHER_TENANT}, InvalidTokenError),
            ({"roles": []}, AdminRequiredError),
        ],
        ids=str,
    )
    async def test_kept_keys_and_others(
        self,
        validate: Validate,
        issuer: TokenIssuer,
        keys: KnownKeys,
        changes: dict[str, Any],
        error: type[BrokerError],
    ) -> None:
        """Everybody else is refused as ever, and causes no failure of ours."""
        keys.are_kept = True

        with pytest.raises(error):
            await validate(issuer.issue_access_token(GRACE.user_name, claims=changes))

    @pytest.mark.parametrize("user", ["ada@contoso.example", GRACE.user_name])
    async def test_role(self, validate: Validate, issuer: TokenIssuer, user: str) -> None:
        """Without the role, a good token of a user is refused, and it has to be this role."""
        for roles in (None, [], ["Tokens.Get"], ["mappings.admin"], ["Mappings.Admin "], [""]):
            with pytest.raises(AdminRequiredError):
                await validate(issuer.issue_access_token(user, claims={"roles": roles}))

    async def test_role_of_app(self, validate: Validate, issuer: TokenIssuer) -> None:
        """Without the role, a good token of an app is refused."""
        with pytest.raises(AdminRequiredError):
            await validate(issuer.issue_access_token(None, client=EXPENSES_API))

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"roles": "Mappings.Admin"}, id="text"),
            pytest.param({"roles": "Reader Mappings.Admin"}, id="names in one text"),
            pytest.param({"roles": {"Mappings.Admin": True}}, id="object"),
            pytest.param({"roles": True}, id="true"),
            pytest.param({"roles": ["Mappings.Admin", 1]}, id="a number among names"),
            pytest.param({"roles": [["Mappings.Admin"]]}, id="nested"),
            pytest.param({"roles": None, "Roles": ["Mappings.Admin"]}, id="Roles"),
            pytest.param({"ROLES": ["Mappings.Admin"]}, id="ROLES besides roles"),
        ],
    )
    async def test_roles(
        self, validate: Validate, issuer: TokenIssuer, changes: dict[str, Any]
    ) -> None:
        """`roles` is a list of names, under this name alone."""
        for user in (GRACE.user_name, None):
            with pytest.raises(InvalidTokenError):
                await validate(issuer.issue_access_token(user, client=DAEMON, claims=changes))

    async def test_roles_twice(self, validate: Validate, issuer: TokenIssuer) -> None:
        """Two members with the name `roles` are refused, whichever of them grants the role."""
        payload = issuer.issue_access_token(GRACE.user_name).split(".")[1]
        raw = base64.urlsafe_b64decode(payload + "==")

        with pytest.raises(InvalidTokenError):
            await validate(issuer.sign({}, b'{"roles":[],' + raw[1:]))

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"scp": "User.Read"}, id="another scope"),
            pytest.param({"scp": ""}, id="no scope"),
            pytest.param({"scp": None}, id="no scp"),
            pytest.param({"scp": None, "idtyp": "user"}, id="no scp, a user by its idtyp"),
            pytest.param({"idtyp": "app"}, id="a scope, an app by its idtyp"),
            pytest.param({"scp": None, "azp": None, "nonce": "n"}, id="an ID token"),
            pytest.param({"scp": None, "sub": None}, id="no scp, no sub"),
            pytest.param(
                {"scp": None, "idtyp": ["app"], "sub": GRACE.object_id}, id="an idtyp that is odd"
            ),
            pytest.param(
                {"scp": None, "azp": None, "idtyp": "app"}, id="an app without a client id"
            ),
        ],
    )
    async def test_scope(
        self, validate: Validate, issuer: TokenIssuer, changes: dict[str, Any]
    ) -> None:
        """The role does not do without the scope, unless the token is shown to be an app's own."""
        with pytest.raises(InsufficientScopeError) as caught:
            await validate(issuer.issue_access_token(GRACE.user_name, claims=changes))

        assert "access_as_user" == caught.value.challenge()["scope"]

    async def test_id_token(self, validate: Validate, issuer: TokenIssuer) -> None:
        """A user's ID token has roles and no scope, but is not an app's access token."""
        token = issuer.issue_id_token(GRACE, BROKER)
        claims = jwt.decode(token, options={"verify_signature": False})

        with pytest.raises(InsufficientScopeError):
            await validate(issuer.sign({}, claims | {"roles": ["Mappings.Admin"]}))

    @pytest.mark.parametrize("scp", [["access_as_user"], 1])
    async def test_odd_scope(self, validate: Validate, issuer: TokenIssuer, scp: object) -> None:
        """An `scp` that is not text is not taken for none."""
        with pytest.raises(InvalidTokenError):
            await validate(issuer.issue_access_token(None, client=DAEMON, claims={"scp": scp}))

    @pytest.mark.parametrize(
        "changes",
        [
            {"aud": GRAPH.client_id},
            {"exp": 1},
            {"tid": FABRIKAM.tenant_id},
            {"oid": None},
            {"azp": WEB_APP.client_id, "appid": DAEMON.client_id},
        ],
        ids=str,
    )
    async def test_other_claims(
        self, validate: Validate, issuer: TokenIssuer, changes: dict[str, Any]
    ) -> None:
        """Everything else has to be as in a user's token."""
        for user in (GRACE.user_name, None):
            with pytest.raises(InvalidTokenError):
                await validate(issuer.issue_access_token(user, client=DAEMON, claims=changes))

    async def test_tenant(self, validate: Validate, issuer: TokenIssuer) -> None:
        """A tenant that is not served has no administrators."""
        claims = {"tid": OTHER_TENANT, "iss": issuer.issuer(OTHER_TENANT)}

        with pytest.raises(TenantNotAllowedError):
            await validate(issuer.issue_access_token(None, client=DAEMON, claims=claims))

    async def test_client(
        self, keys: KnownKeys, issuer: TokenIssuer, entra_settings: EntraSettings
    ) -> None:
        """If the settings name client apps, an administrator has to use one of them, too."""
        allowed = replace(entra_settings, allowed_client_ids=frozenset({DAEMON.client_id}))
        validator = AccessTokenValidator(settings=allowed, keys=keys)
        now = datetime.now(UTC)

        assert await validator.validate_administrator(
            issuer.issue_access_token(None, client=DAEMON), now=now
        )
        with pytest.raises(ClientNotAllowedError):
            await validator.validate_administrator(
                issuer.issue_access_token(GRACE.user_name), now=now
            )

    async def test_own_tenant(self, validate: Validate, issuer: TokenIssuer) -> None:
        """The role counts in the tenant that granted it: the one whose token it is."""
        for user, own, other in (
            (GRACE.user_name, CONTOSO, FABRIKAM),
            ("fadi@fabrikam.example", FABRIKAM, CONTOSO),
        ):
            token = issuer.issue_access_token(user, claims={"roles": ["Mappings.Admin"]})
            administrator = await validate(token)

            assert administrator.may_administer(own.tenant_id)
            assert not administrator.may_administer(other.tenant_id)
            assert not administrator.may_administer(own.tenant_id.upper())

    async def test_guest(self, validate: Validate, issuer: TokenIssuer) -> None:
        """A guest with the role administers the tenant that granted it, and not the home tenant."""
        token = issuer.issue_access_token(GUEST.user_name, claims={"roles": ["Mappings.Admin"]})
        administrator = await validate(token)

        assert (CONTOSO.tenant_id, GUEST.object_id) == administrator.person
        assert administrator.may_administer(CONTOSO.tenant_id)
        assert not administrator.may_administer(FABRIKAM.tenant_id)

    @pytest.mark.parametrize(
        ("operator", "served", "may"),
        [
            pytest.param(None, "listed", True, id="no operator"),
            pytest.param(None, "every", False, id="every organisation"),
            pytest.param(FABRIKAM.tenant_id, "listed", False, id="another tenant operates"),
            pytest.param(CONTOSO.tenant_id, "listed", True, id="operator"),
            pytest.param(CONTOSO.tenant_id, "every", True, id="operator of every organisation"),
        ],
    )
    async def test_may_adopt(
        self,
        keys: KnownKeys,
        issuer: TokenIssuer,
        entra_settings: EntraSettings,
        operator: str | None,
        served: str,
        may: bool,
    ) -> None:
        """Identities that nobody has are the operator's to give, unless a few tenants share it."""
        tenant_ids = entra_settings.tenant_ids if served == "listed" else None
        settings = replace(entra_settings, operator_tenant_id=operator, tenant_ids=tenant_ids)
        validator = AccessTokenValidator(settings=settings, keys=keys)
        token = issuer.issue_access_token(GRACE.user_name)

        grace = await validator.validate_administrator(token, now=datetime.now(UTC))

        assert may is grace.may_adopt

    async def test_operator(
        self, keys: KnownKeys, issuer: TokenIssuer, entra_settings: EntraSettings
    ) -> None:
        """Administrators of the operator's tenant administer all tenants; others do not."""
        operated = replace(entra_settings, operator_tenant_id=CONTOSO.tenant_id)
        validator = AccessTokenValidator(settings=operated, keys=keys)
        now = datetime.now(UTC)
        claims = {"roles": ["Mappings.Admin"]}

        grace, daemon, fadi = [
            await validator.validate_administrator(token, now=now)
            for token in (
                issuer.issue_access_token(GRACE.user_name),
                issuer.issue_access_token(None, client=DAEMON),
                issuer.issue_access_token("fadi@fabrikam.example", claims=claims),
            )
        ]

        assert grace.may_administer(FABRIKAM.tenant_id)
        assert daemon.may_administer(FABRIKAM.tenant_id)
        assert not fadi.may_administer(CONTOSO.tenant_id)

    async def test_user_routes(self, validator: AccessTokenValidator, issuer: TokenIssuer) -> None:
        """An administrator's own ACS token is a user's: an app with the role gets none."""
        assert await validate(validator, issuer.issue_access_token(GRACE.user_name))
        for changes in ({}, {"idtyp": None}, {"scp": "access_as_user"}):
            with pytest.raises(InsufficientScopeError):
                await validate(
                    validator, issuer.issue_access_token(None, client=DAEMON, claims=changes)
                )

    async def test_audit_line(self, validate: Validate, issuer: TokenIssuer) -> None:
        """The audit line names administrators, those who are refused as well."""
        with audit.decision() as admitted:
            await validate(
                issuer.issue_access_token(None, client=DAEMON, claims={"uti": "7smAyE1P_U-Uo2"})
            )
        with audit.decision() as refused, pytest.raises(AdminRequiredError):
            await validate(issuer.issue_access_token())

        names = {"tenant_id": CONTOSO.tenant_id, "client_id": DAEMON.client_id}
        names |= {"object_id": DAEMON.principal_in(CONTOSO), "uti": "7smAyE1P_U-Uo2"}
        assert names == admitted
        assert "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834" == refused["object_id"]


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(
    changes=st.dictionaries(
        st.sampled_from("aud iss exp nbf iat ver tid oid scp azp appid idtyp roles".split()),
        any_json,
        min_size=1,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_claims(
    issuer: TokenIssuer, entra_settings: EntraSettings, now: datetime, changes: dict[str, Any]
) -> None:
    """Whatever the claims hold, the result is a caller or one of our errors."""
    token = issuer.issue_access_token()
    claims = jwt.decode(token, options={"verify_signature": False})
    key = SigningKey(issuer.keys[0].private_key.public_key(), issuer.issuer("{tenantid}"))

    try:
        caller = caller_from_claims(
            VerifiedClaims({**claims, **changes}), key=key, settings=entra_settings, now=now
        )
    except BrokerError:
        return
    assert CONTOSO.tenant_id == caller.person.tenant_id


@given(
    changes=st.dictionaries(
        st.sampled_from("tid oid sub scp azp appid idtyp roles".split()), any_json, min_size=1
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_claims_of_administrators(
    issuer: TokenIssuer, entra_settings: EntraSettings, now: datetime, changes: dict[str, Any]
) -> None:
    """Whatever the claims hold, the result is one of our errors, or has the role."""
    token = issuer.issue_access_token(None, client=DAEMON)
    claims = jwt.decode(token, options={"verify_signature": False}) | changes
    key = SigningKey(issuer.keys[0].private_key.public_key(), issuer.issuer("{tenantid}"))

    try:
        administrator = administrator_from_claims(
            VerifiedClaims(claims), key=key, settings=entra_settings, now=now
        )
    except BrokerError:
        return
    assert "Mappings.Admin" in claims["roles"]
    assert administrator.may_administer(CONTOSO.tenant_id)


@given(token=st.text() | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_text(validator: AccessTokenValidator, token: str) -> None:
    """Whatever stands in place of a token, it is an invalid token."""
    with pytest.raises(InvalidTokenError):
        await validate(validator, token)


class TestPyJWTBackstop:
    """What we rely on PyJWT for, and what we know it lets through: an upgrade fails here first."""

    def test_signature_only(self, issuer: TokenIssuer) -> None:
        """The algorithm verifies RS256 with a key object, and says no without raising."""
        signed, _, signature = issuer.issue_access_token().rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        algorithm = RSAAlgorithm(RSAAlgorithm.SHA256)
        public = issuer.keys[0].private_key.public_key()
        other = issuer.keys[1].private_key.public_key()

        assert algorithm.verify(signed.encode(), public, raw) is True
        assert algorithm.verify(signed.encode() + b"A", public, raw) is False
        assert algorithm.verify(signed.encode(), public, raw[:-1]) is False
        assert algorithm.verify(signed.encode(), public, b"") is False
        assert algorithm.verify(signed.encode(), other, raw) is False

    @pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
    def test_hash_and_padding(self, issuer: TokenIssuer, algorithm: str) -> None:
        """The same key's signature with another hash or padding is not RS256."""
        key = issuer.keys[0].private_key
        signature = jwt.get_algorithm_by_name(algorithm).sign(b"signed", key)

        assert not RSAAlgorithm(RSAAlgorithm.SHA256).verify(b"signed", key.public_key(), signature)

    @given(data=st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    async def test_lets_nothing_more_through(
        self, validator: AccessTokenValidator, issuer: TokenIssuer, data: st.DataObject
    ) -> None:
        """Whatever the gate lets through, PyJWT as a whole would, too."""
        token = issuer.issue_access_token()
        at = data.draw(st.integers(0, len(token)))
        cut = data.draw(st.integers(0, 3))
        changed = token[:at] + data.draw(st.text("AQw-_.=+/ é", max_size=3)) + token[at + cut :]
        public = issuer.keys[0].private_key.public_key()

        try:
            await validate(validator, changed)
        except InvalidTokenError:
            assert changed != token
        else:
            assert jwt.PyJWS(algorithms=["RS256"]).decode(changed, public, algorithms=["RS256"])

    def test_other_algorithms(self, issuer: TokenIssuer) -> None:
        """An algorithm outside the list is refused whatever the header says."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            token = jwt.encode({}, "secret" * 10, algorithm="HS256")

        with pytest.raises(jwt.InvalidAlgorithmError):
            jwt.PyJWS(algorithms=["RS256"]).decode(
                token, issuer.keys[0].private_key.public_key(), algorithms=["RS256"]
            )

    def test_accepts_repeated_names(self, issuer: TokenIssuer) -> None:
        """PyJWT alone takes the last of two; the strict gate is what refuses them."""
        expires = int((datetime.now(UTC) + timedelta(hours=1)).timestamp())
        token = issuer.sign({}, f'{{"exp":1,"exp":{expires}}}'.encode())
        public = issuer.keys[0].private_key.public_key()

        assert {"exp": expires} == jwt.decode(token, public, algorithms=["RS256"])

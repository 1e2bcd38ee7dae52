from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from local.entra.tokens import CLOUD
from local.entra.tokens import SigningKey as EntraKey
from shared.entra import key_sets
from shared.entra.key_sets import signing_keys_from
from tests.tokens import rsa_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric import rsa


class TestUsableKeys:
    """Of a good set, the keys that may verify access tokens."""

    @pytest.fixture
    def good(self, entra_keys: list[EntraKey]) -> dict[str, Any]:
        return entra_keys[0].jwk(issuer="https://entra.example/{tenantid}/v2.0", alg="RS256")

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"kty": "EC"}, id="kty EC"),
            pytest.param({"use": "enc"}, id="for encryption"),
            pytest.param({"alg": "RS512"}, id="for another algorithm"),
            pytest.param({"key_ops": ["sign"]}, id="not for verifying"),
            pytest.param({"key_ops": 5}, id="key_ops not a list"),
            pytest.param({"kid": "two words"}, id="no key id"),
            pytest.param({"kid": 5}, id="key id not a string"),
            pytest.param({"kid": ["a"]}, id="key id a list"),
            pytest.param({"kid": "k" * 129}, id="key id too long"),
            pytest.param({"issuer": None}, id="issuer null"),
            pytest.param({"issuer": 5}, id="issuer not a string"),
            pytest.param(
                {"cloud_instance_name": "microsoftonline.us"}, id="issuer of another cloud"
            ),
            pytest.param({"n": "%"}, id="modulus not base64"),
            pytest.param({"n": ""}, id="no modulus"),
            pytest.param({"n": 5}, id="modulus not a string"),
            pytest.param({"e": "AQ"}, id="exponent 1"),
        ],
    )
    def test_left_out(
        self, good: dict[str, Any], changes: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A key that cannot be used is left out, and said so; those beside it stay."""
        beside = good | {"kid": "beside"}

        keys = signing_keys_from(
            {"keys": [good | changes, beside]}, cloud=CLOUD, default_issuer=None
        )

        assert ["beside"] == list(keys)
        assert "signing_key_rejected" in caplog.messages[0]

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(lambda: rsa_key(1024), id="1024 bits"),
            pytest.param(lambda: rsa_key(2048, exponent=3), id="exponent 3"),
        ],
    )
    def test_weak_key(self, good: dict[str, Any], key: Callable[[], rsa.RSAPrivateKey]) -> None:
        """A key that is weak is left out."""
        weak = EntraKey(key(), "weak", {}).jwk(issuer="https://entra.example/{tenantid}/v2.0")

        keys = signing_keys_from({"keys": [weak, good]}, cloud=CLOUD, default_issuer=None)

        assert [good["kid"]] == list(keys)

    def test_elliptic_curve(self, good: dict[str, Any]) -> None:
        """A set may hold an EC key; it is not used."""
        numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        curve = {"kty": "EC", "crv": "P-256", "kid": "ec", "x": numbers.x, "y": numbers.y}

        keys = signing_keys_from({"keys": [curve, good]}, cloud=CLOUD, default_issuer=None)

        assert [good["kid"]] == list(keys)

    @pytest.mark.parametrize("name", sorted(key_sets._PRIVATE_MEMBERS))  # noqa: SLF001 - each one
    def test_private_key(self, good: dict[str, Any], name: str) -> None:
        """A set with a private key is refused as a whole."""
        leaked = good | {"kid": "leaked", name: "AQ"}

        with pytest.raises(ValueError, match="public keys"):
            signing_keys_from({"keys": [good, leaked]}, cloud=CLOUD, default_issuer=None)

    def test_issuer_of_a_tenant(self, good: dict[str, Any]) -> None:
        """In a tenant's own document, a key without an issuer signs for the tenant."""
        del good["issuer"]

        keys = signing_keys_from({"keys": [good]}, cloud=CLOUD, default_issuer="https://a/b/v2.0")

        assert "https://a/b/v2.0" == keys[good["kid"]].issuer

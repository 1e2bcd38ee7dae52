"""The certificate of the broker's registration: a whole one, or a problem that quotes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from shared.certificates import client_certificate
from shared.settings import Settings, SettingsError
from tests.test_settings import REQUIRED

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(key: CertificateIssuerPrivateKeyTypes) -> str:
    """Return a certificate of a key, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Token broker, worthless")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def private_key(key: CertificateIssuerPrivateKeyTypes, password: bytes | None = None) -> str:
    """Return a private key, in PEM."""
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


GOOD = private_key(RSA_KEY) + certificate(RSA_KEY)


def test_text_and_file(tmp_path: Path) -> None:
    """The setting has the PEM itself, or the path of a file with it."""
    file = tmp_path / "broker.pem"
    file.write_text(GOOD)

    assert GOOD.encode() == client_certificate(GOOD) == client_certificate(str(file))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(certificate(RSA_KEY), id="no key"),
        pytest.param(private_key(RSA_KEY), id="no certificate"),
        pytest.param(private_key(OTHER_KEY) + certificate(RSA_KEY), id="another key"),
        pytest.param(private_key(RSA_KEY, b"secret") + certificate(RSA_KEY), id="with a password"),
        pytest.param(GOOD.replace("A", "B"), id="damaged"),
        pytest.param("-----BEGIN CERTIFICATE-----", id="the beginning alone"),
        pytest.param("/nowhere/broker.pem", id="no file"),
        pytest.param("\0", id="not a path"),
        pytest.param("x" * 5000, id="too long for a path"),
    ],
)
def test_refuses(text: str) -> None:
    """The problem names the setting, and quotes nothing of it."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(REQUIRED | {"ENTRA_CLIENT_CERTIFICATE": text})

    [problem] = caught.value.problems
    assert problem.startswith("ENTRA_CLIENT_CERTIFICATE ")
    assert text[:30] not in problem


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="not RSA"),
        pytest.param(
            rsa.generate_private_key(public_exponent=65537, key_size=1024),  # noqa: S505 - refused
            id="short",
        ),
    ],
)
def test_keys(key: CertificateIssuerPrivateKeyTypes) -> None:
    """Entra takes assertions that are signed with RSA, by keys of 2048 bits and more."""
    with pytest.raises(ValueError, match="at least 2048 bits"):
        client_certificate(private_key(key) + certificate(key))

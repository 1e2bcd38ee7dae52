"""Reads the certificate with which the broker's registration can authenticate itself."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

MIN_KEY_BITS = 2048


def client_certificate(text: str) -> bytes:
    """Return a certificate with its private key, in PEM, given as text or as the path of a file.

    Raises:
        ValueError: it is not that. The message quotes nothing.
    """
    pem = text.encode() if "-----BEGIN " in text else _contents(text)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):  # A key with a password is a TypeError.
        raise ValueError("is not a certificate and its private key in PEM") from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < MIN_KEY_BITS:
        raise ValueError("has no RSA key of at least 2048 bits")
    if key.public_key() != certificate.public_key():
        raise ValueError("has a private key that is not the certificate's")
    return pem


def _contents(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError):
        raise ValueError("is neither PEM nor the path of a file that can be read") from None

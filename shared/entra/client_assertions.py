"""Signs the assertions with which the broker's registration proves itself by a certificate.

azure-identity could do it, but reads and checks the private key for each request, which takes 70 ms
in which the event loop stands still.
https://learn.microsoft.com/entra/identity-platform/certificate-credentials
"""

from __future__ import annotations

import base64
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

if TYPE_CHECKING:
    from datetime import datetime

LIFETIME = timedelta(minutes=10)


class ClientAssertions:
    """Signs assertions about one registration.

    Args:
        certificate: with its RSA key, in PEM.
        client_id: the registration.
        authority: an origin such as `https://login.microsoftonline.com`.
    """

    def __init__(self, certificate: bytes, *, client_id: str, authority: str) -> None:
        self._key = load_pem_private_key(certificate, password=None)
        thumbprint = x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256())
        self._headers = {"x5t#S256": base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()}
        self._client_id = client_id
        self._authority = authority

    def sign(self, tenant_id: str, *, now: datetime) -> str:
        """Return an assertion for the token endpoint of a tenant."""
        claims = {
            "aud": f"{self._authority}/{tenant_id}/oauth2/v2.0/token",
            "iss": self._client_id,
            "sub": self._client_id,
            "jti": str(uuid.uuid4()),
            "nbf": now,
            "iat": now,
            "exp": now + LIFETIME,
        }
        return jwt.encode(claims, self._key, algorithm="PS256", headers=self._headers)  # type: ignore[arg-type] # an RSA key, as the settings make sure

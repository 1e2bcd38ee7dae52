"""How apps prove who they are with a signed assertion: federated credentials, and certificates."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from local.entra.errors import EntraError

if TYPE_CHECKING:
    from local.entra.objects import App, FederatedCredential
    from local.entra.tokens import TokenIssuer

THUMBPRINTS = {"x5t": hashlib.sha1, "x5t#S256": hashlib.sha256}
NO_MATCH = "No matching federated identity record found for presented assertion"
SEE = (
    "Check your federated identity credential Subject, Audience and Issuer against the presented "
    "assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
)


def check_client_assertion(entra: TokenIssuer, client: App, assertion: str) -> None:
    """Check that an assertion authenticates an app.

    Raises:
        EntraError: neither a federated credential nor a certificate of the app fits it.
    """
    try:
        header = jwt.get_unverified_header(assertion)
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except jwt.PyJWTError as exc:
        raise _refused(50027, "JWT token is invalid or malformed.") from exc
    if not THUMBPRINTS.keys().isdisjoint(header) and claims.get("iss") == client.client_id:
        _check_certificate(client, assertion, header)
    else:
        _check_federated(entra, client, assertion, claims)


def _check_federated(
    entra: TokenIssuer, client: App, assertion: str, unverified: dict[str, Any]
) -> None:
    if not client.trusts:
        message = (
            f"The client '{client.client_id}'({client.name}) has no configured federated identity "
            "credentials."
        )
        raise _refused(70025, message)
    issuer = str(unverified.get("iss"))
    fitting = [each for each in client.trusts if issuer_of(entra, client, each) == issuer]
    if not fitting:
        raise _refused(700211, f"{NO_MATCH} issuer '{issuer}'. {SEE}")
    claims = claims_of(entra, assertion, "invalid_client", bad=700027, expired=700024)
    # Entra itself issues tokens for the exchange to the app's id, which credentials do not name.
    resource = entra.directory.app(str(claims.get("aud")))
    audiences = {str(claims.get("aud")), *(resource.uris if resource else ())}
    fitting = [each for each in fitting if not audiences.isdisjoint(each.audiences)]
    if not fitting:
        raise _refused(700212, f"{NO_MATCH} audience '{claims.get('aud')}'. {SEE}")
    if claims.get("sub") not in {each.subject for each in fitting}:
        raise _refused(700213, f"{NO_MATCH} subject '{claims.get('sub')}'. {SEE}")


def issuer_of(entra: TokenIssuer, client: App, credential: FederatedCredential) -> str:
    """Return the issuer that a credential trusts."""
    assert client.tenant  # noqa: S101 - Microsoft's own apps have no such credentials
    return credential.issuer or entra.issuer(client.tenant.tenant_id)


def claims_of(
    entra: TokenIssuer, token: str, error: str, *, bad: int, expired: int
) -> dict[str, Any]:
    """Return the claims of this Entra's own token.

    Raises:
        EntraError: it is not valid, with the number `bad`, or has expired, with `expired`.
    """
    try:
        return entra.verify(token)
    except ValueError as exc:
        if isinstance(exc.__cause__, jwt.ExpiredSignatureError):
            message = "Assertion is not within its valid time range."
            raise EntraError(error, expired, message) from exc
        raise EntraError(error, bad, "Assertion failed signature validation.") from exc


def _check_certificate(client: App, assertion: str, header: dict[str, Any]) -> None:
    for name, digest in THUMBPRINTS.items():
        for certificate in client.certificates:
            der = base64.b64decode(certificate)
            thumbprint = base64.urlsafe_b64encode(digest(der).digest()).rstrip(b"=").decode()
            # azure-identity leaves the padding on.
            if str(header.get(name)).rstrip("=") == thumbprint:
                return _check_signature(client, assertion, der)
    message = (
        "The certificate with identifier used to sign the client assertion is not registered on "
        "application."
    )
    raise _refused(700027, message)


def _check_signature(client: App, assertion: str, der: bytes) -> None:
    key = x509.load_der_x509_certificate(der).public_key()
    assert isinstance(key, RSAPublicKey)  # noqa: S101 - Entra takes RSA only
    options: Any = {"verify_aud": False, "require": ["exp", "nbf", "iss", "sub", "aud"]}
    try:
        claims = jwt.decode(assertion, key, algorithms=["RS256", "PS256"], options=options)
    except jwt.ExpiredSignatureError as exc:
        message = "Client assertion is not within its valid time range."
        raise _refused(700024, message) from exc
    except jwt.PyJWTError as exc:
        raise _refused(700027, "Client assertion failed signature validation.") from exc
    if claims["sub"] != client.client_id:
        raise _refused(700021, "Client assertion application identifier doesn't match 'client_id'.")


def _refused(number: int, message: str) -> EntraError:
    return EntraError("invalid_client", number, message)

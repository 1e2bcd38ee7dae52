"""A throw-away certificate authority, which nothing outside the stack trusts."""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM_OPTIONS = '--user-data-dir="$(mktemp -d)" --ignore-certificate-errors-spki-list={pin}'
HOW_TO_TRUST = """\
curl      --cacert {file}
Python    export SSL_CERT_FILE={file} REQUESTS_CA_BUNDLE={file}
Node.js   export NODE_EXTRA_CA_CERTS={file}
Java      keytool -importcert -noprompt -alias local -file {file} -keystore local.p12 -storepass worthless
          java -Djavax.net.ssl.trustStore=local.p12 -Djavax.net.ssl.trustStorePassword=worthless
Chromium  {chromium}"""  # noqa: E501 - to paste


class Certificates:
    """A new authority and one server certificate for loopback, written as PEM into a folder.

    The authority's key stays in this process, so the files sign nothing else.
    """

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA(organization_name="Local stack, worthless outside this computer")
        server = authority.issue_cert("127.0.0.1", "localhost", "::1")
        self.authority_file = folder / "ca.pem"
        self.certificate_file = folder / "server.pem"
        self.key_file = folder / "server.key"
        authority.cert_pem.write_to_path(self.authority_file)
        server.private_key_pem.write_to_path(self.key_file)
        for position, pem in enumerate(server.cert_chain_pems):
            pem.write_to_path(self.certificate_file, append=position > 0)

    def server_context(self) -> ssl.SSLContext:
        """Return the TLS settings for a server with the certificate."""
        return server_context(self.certificate_file, self.key_file)

    def how_to_trust(self) -> str:
        """Return what each client needs, as lines to paste."""
        return HOW_TO_TRUST.format(file=self.authority_file, chromium=self.chromium_options())

    def chromium_options(self) -> str:
        """Return the options for a Chromium, in a profile of its own, that trusts them."""
        return CHROMIUM_OPTIONS.format(pin=self._public_key_hash())

    def _public_key_hash(self) -> str:
        """Return the SHA-256 of the server's public key, by which Chromium knows certificates."""
        certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        public_key = certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        digest = hashes.Hash(hashes.SHA256())
        digest.update(public_key)
        return base64.b64encode(digest.finalize()).decode()


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS settings for a server with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context

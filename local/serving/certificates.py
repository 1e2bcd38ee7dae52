"""A throw-away certificate authority, which nothing outside the stack trusts."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class Certificates:
    """A new authority and one server certificate for loopback, written as PEM into a folder.

    A process trusts them with `SSL_CERT_FILE` (Python), `REQUESTS_CA_BUNDLE` (requests) or
    `NODE_EXTRA_CA_CERTS` (Node.js) set to `authority_file`.
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
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context

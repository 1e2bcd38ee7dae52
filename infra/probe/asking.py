"""Asks a service over HTTP, and looks at its certificate. Nothing is kept between two questions."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY = 1024 * 1024
DAY = 24 * 3600
HTTPS_PORT = 443


# Without slots, which the Python 3.9 of a Mac does not support.
@dataclass(frozen=True)
class Answer:
    """What the service answered, and how long that took."""

    status: int
    headers: Mapping[str, str]  # Names in lower case.
    body: bytes
    seconds: float = 0

    @property
    def members(self) -> dict[str, object]:
        """The members of the JSON object in the body; empty if it is something else."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Certificate:
    """How long a server's certificate is good for, and the version of TLS that was agreed on."""

    days: int
    tls: str


def ask(url: str, path: str, token: str | None, *, seconds: float) -> Answer:
    """Return the answer to a GET.

    A host whose certificate this machine does not trust counts as giving no answer.

    Raises:
        OSError, http.client.HTTPException: no answer came, or not within the seconds.
    """
    parts = urlsplit(url)
    started = time.monotonic()
    connection = (
        http.client.HTTPSConnection(parts.netloc, timeout=seconds, context=_tls())
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.netloc, timeout=seconds)
    )
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = _read(response, until=started + seconds)
    finally:
        connection.close()
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, body, time.monotonic() - started)


def certificate_of(url: str, *, seconds: float) -> Certificate:
    """Return the certificate of a host, after checking that it is good and is the host's.

    Raises:
        OSError: there is no connection; ssl.SSLError, if the certificate is not good.
    """
    parts = urlsplit(url)
    address = (str(parts.hostname), parts.port or HTTPS_PORT)
    with (
        socket.create_connection(address, timeout=seconds) as plain,
        _tls().wrap_socket(plain, server_hostname=parts.hostname) as secured,
    ):
        expires = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"]))
        return Certificate(int((expires - time.time()) // DAY), str(secured.version()))


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # The default of older Pythons is lower.
    return context


def _read(response: http.client.HTTPResponse, *, until: float) -> bytes:
    """Read a body. The socket's own limit is for each packet, so a trickle would never end."""
    body = b""
    while True:
        part = response.read1(MAX_BODY)
        body += part
        if time.monotonic() > until:
            raise TimeoutError("the answer takes too long")
        if not part:
            return body
        if len(body) > MAX_BODY:
            raise http.client.HTTPException("the answer is too long")

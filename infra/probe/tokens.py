"""The tokens that a probe sends: forged ones, a good one from outside, and that one spoilt.

No token is ever printed, and none is part of an exception's text.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import shlex
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND_SECONDS = 120
# So old that the service's keys are newer: it can refuse the token without asking Entra.
FORGED_AGE = 2 * 24 * 3600
LATEST = 100_000_000_000  # No token expires after this time, in the year 5138.
COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)


class NoTokenError(Exception):
    """There is no token to try; the message says why."""


def forged_token(algorithm: str) -> str:
    """Return a token that looks like one of Entra's, but has no valid signature."""
    header = {"alg": algorithm, "typ": "JWT", "kid": "smoke-test"}
    claims = {
        "iss": "https://login.microsoftonline.com/forged/v2.0",
        "iat": int(time.time()) - FORGED_AGE,
        "scp": "access_as_user",
    }
    return ".".join(
        _encode(part) for part in (_json(header), _json(claims), secrets.token_bytes(256))
    )


def with_other_signature(token: str) -> str:
    """Return a token whose signature was changed in one place."""
    signed, _, signature = token.rpartition(".")
    changed = "B" if signature.startswith("A") else "A"
    return f"{signed}.{changed}{signature[1:]}"


def of_somebody_else(token: str) -> str:
    """Return a token that names another person, under the signature of the first one."""
    header, _, signature = token.split(".")
    claims = claims_of(token)
    return f"{header}.{_encode(_json({**claims, 'oid': '0' * 8}))}.{signature}"


def claims_of(token: str) -> dict[str, object]:
    """Return the claims of a token, without verifying anything; empty if it is not a JWT."""
    if not COMPACT.fullmatch(token):
        return {}
    payload = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def expiry_of(claims: Mapping[str, object]) -> float | None:
    """Return when a token expires, in Unix time; None if it does not say so."""
    expires = claims.get("exp")
    if isinstance(expires, (int, float)) and 0 < expires < LATEST:
        return float(expires)
    return None


def good_token(text: str) -> str:
    """Return a token that somebody has handed over, if it can be one that is good now.

    Raises:
        NoTokenError: it cannot.
    """
    token = text.strip()
    if not token:
        raise NoTokenError("what was given is empty")
    expires = expiry_of(claims_of(token))
    if expires is None:
        raise NoTokenError("what was given is not an access token")
    if expires <= time.time():
        raise NoTokenError("the token has expired")
    return token


def token_from(command: str) -> str:
    """Run a command without a shell, and return the token that it prints.

    Raises:
        NoTokenError: it fails, takes too long, or prints something else.
    """
    try:
        program = shlex.split(command)
    except ValueError as exc:  # It has no closing quotation, for example.
        raise NoTokenError(f"the token command cannot be split into words: {exc}") from None
    try:
        # Its errors go where ours go; its output is the token, and goes nowhere.
        finished = subprocess.run(  # noqa: S603 - the operator's own command
            program, stdout=subprocess.PIPE, check=False, timeout=COMMAND_SECONDS
        )
    except (OSError, IndexError) as exc:
        raise NoTokenError(f"the token command cannot be run: {type(exc).__name__}") from None
    except subprocess.TimeoutExpired:
        raise NoTokenError(f"the token command takes over {COMMAND_SECONDS} s") from None
    if finished.returncode:
        raise NoTokenError(f"the token command ended with exit code {finished.returncode}")
    return good_token(finished.stdout.decode("ascii", "replace"))


def _json(members: Mapping[str, object]) -> bytes:
    return json.dumps(members).encode()


def _encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

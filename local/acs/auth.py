"""Authenticates requests to the ACS emulator: by its access key, or by an Entra token."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from local.acs.contract import DENIED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web

    VerifyBearer = Callable[[str], Mapping[str, object]]


def _audiences(uri: str, app_id: str) -> frozenset[str]:
    """Return the audiences of tokens for a resource: its URI in v1 tokens, its app id in v2 tokens.

    The identity SDKs ask for a scope with a double slash, so the URI may end in a slash.
    """
    return frozenset({uri, f"{uri}/", app_id})


IDENTITY_API = _audiences("https://communication.azure.com", "632ec9eb-fad7-4cbd-993a-e72973ba2acc")
CLIENTS = _audiences(
    "https://communication.azure.com/clients", "2a04943b-b6a7-4f65-8786-2bb6131b59f6"
)
TEAMS = _audiences(
    "https://auth.msft.communication.azure.com", "1fd5118e-2576-4263-8130-9503064c837a"
)

MAX_CLOCK_SKEW = timedelta(minutes=5)

_SIGNATURE = re.compile(
    r"HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature=(?P<signature>\S+)"
)
# Reported from ACS's email API, which is signed in the same way; not observed on the identity API.
_SKEWED = (
    "The given request could not be resolved. The time difference between the originating client"
    " and the server is greater than the allowed margin of 5 minutes."
)


class DeniedError(Exception):
    """The request does not prove that it has access to the resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntraUser:
    """The user that an Entra token for one of ACS's own resources was issued for."""

    tenant_id: str
    object_id: str
    client_id: str
    scopes: frozenset[str]
    expires: int


def check_signature(request: web.Request, body: bytes, *, access_key: str, now: datetime) -> None:
    """Check that a request was signed with the access key.

    Raises:
        DeniedError: the signature, the time or the hash of the body is wrong.
    """
    sent = _SIGNATURE.fullmatch(request.headers.get("Authorization", ""))
    date = request.headers.get("x-ms-date", "")
    content_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if sent is None or request.headers.get("x-ms-content-sha256") != content_hash:
        raise DeniedError(DENIED)
    # The target is signed as sent: some clients send "8%3Aacs%3A", others "8:acs:".
    text = f"{request.method}\n{request.raw_path}\n{date};{request.host};{content_hash}"
    signature = hmac.digest(base64.b64decode(access_key), text.encode(), "sha256")
    if not hmac.compare_digest(signature, _decoded(sent["signature"])):
        raise DeniedError(DENIED)
    try:
        signed_at = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError as exc:
        raise DeniedError(DENIED) from exc
    if abs(now - signed_at) > MAX_CLOCK_SKEW:
        raise DeniedError(_SKEWED)


def verified_claims(
    token: str, *, verify: VerifyBearer | None, audiences: frozenset[str]
) -> Mapping[str, object]:
    """Return the claims of an Entra token, which must be for one of the audiences.

    Raises:
        DeniedError: the token is not valid, or is for another audience.
    """
    if verify is None:
        raise DeniedError(DENIED)
    try:
        claims = verify(token)
    except ValueError as exc:
        raise DeniedError(DENIED) from exc
    if claims.get("aud") not in audiences:
        raise DeniedError(DENIED)
    return claims


def entra_user(claims: Mapping[str, object]) -> EntraUser:
    """Return the user whom verified claims name.

    Raises:
        DeniedError: the token is an app's own, or lacks a claim.
    """
    try:
        return EntraUser(
            tenant_id=_text(claims, "tid"),
            object_id=_text(claims, "oid"),
            client_id=_text(claims, "azp" if "azp" in claims else "appid"),
            scopes=frozenset(_text(claims, "scp").split()),
            expires=int(str(claims["exp"])),
        )
    except (KeyError, ValueError) as exc:
        raise DeniedError(DENIED) from exc


def _text(claims: Mapping[str, object], name: str) -> str:
    value = claims[name]
    if not isinstance(value, str):
        raise ValueError(name)  # noqa: TRY004 - one type of error for everything wrong with claims
    return value


def _decoded(signature: str) -> bytes:
    try:
        return base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return b""

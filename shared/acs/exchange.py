"""Exchanges a person's Entra token for an ACS token of the same person.

The SDK for Python has the exchange for Teams users only. The other two take the person's token in
Authorization, and nothing else: ACS asks for no credential of ours.
https://learn.microsoft.com/rest/api/communication/identity
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from yarl import URL

from shared import audit
from shared.acs.breaker import Breaker, is_failure
from shared.acs.identity import (
    ONCE,
    OPERATION_SECONDS,
    error_of,
    error_of_status,
    without_identity,
)
from shared.acs.tokens import check_contents, checked_token
from shared.documents import read_object
from shared.errors import (
    BrokerError,
    NotAssignedError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from shared.retry_after import seconds_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from azure.communication.identity.aio import CommunicationIdentityClient

    from shared.acs.tokens import AcsToken

# Not in any stable version, nor in a later one.
ENTRA = "/access/entra/:exchangeAccessToken?api-version=2025-03-02-preview"
TEAMS = "/teamsUser/:exchangeAccessToken"  # The SDK's.
TEAMS_EXTENSION = "/access/teamsExtension/:exchangeAccessToken?api-version=2025-06-30"
MAX_ANSWER_BYTES = 64 * 1024
TIMEOUT = aiohttp.ClientTimeout(connect=1, sock_read=3)
# Examples have `8:acs:{resource}_wf_{tenant}_{object}`, which is not documented as a form.
_ID = re.compile(r"8:(acs|gcch-acs|dod-acs):[0-9a-zA-Z_-]{1,200}")
_CODE = re.compile(r"[A-Za-z]{1,40}")


class UserTokenRefusedError(Exception):
    """ACS does not take the person's Entra token; `ours` is the error if we had got it."""

    def __init__(self, ours: BrokerError) -> None:
        super().__init__(str(ours))
        self.ours = ours


class AcsExchange:
    """The exchanges of one ACS resource.

    Every method raises UserTokenRefusedError if ACS does not take the Entra token, and one of the
    `Upstream…` errors if ACS fails, refuses us, or gives an answer that cannot be used. `held` says
    that the caller has sent the Entra token, so that nobody but ACS has verified it.
    """

    def __init__(
        self,
        *,
        client: CommunicationIdentityClient,
        session: aiohttp.ClientSession,
        endpoint: str,
        seconds: float = OPERATION_SECONDS,
    ) -> None:
        self._client = client
        self._session = session
        self._endpoint = endpoint
        self._seconds = seconds  # For a whole call.
        self._breakers = {
            ENTRA: Breaker("exchange_entra"),
            TEAMS: Breaker("exchange_teams"),
            TEAMS_EXTENSION: Breaker("exchange_teams_extension"),
        }

    async def entra_user(self, entra_token: str, *, held: bool = False) -> tuple[str, AcsToken]:
        """Return the id and the token of an Entra ID user.

        Args:
            entra_token: for Azure Communication Services Clients.
            held: see above.

        Raises:
            NotAssignedError: the person has no access to the resource.
        """
        return await self._exchange(ENTRA, entra_token, held=held)

    async def teams_extension_user(
        self, entra_token: str, *, held: bool = False
    ) -> tuple[str, AcsToken]:
        """Return the id and the token of a Teams user for Teams extension. Raises as `entra_user`.

        Args:
            entra_token: for ACS's app for Teams users, with the scope of Teams extension.
            held: see above.
        """
        return await self._exchange(TEAMS_EXTENSION, entra_token, held=held)

    async def teams_user(
        self, entra_token: str, client_id: str, object_id: str, *, held: bool = False
    ) -> AcsToken:
        """Return the token of a Teams user.

        Args:
            entra_token: for ACS's app for Teams users.
            client_id: the app that it was issued to.
            object_id: the person whom it was issued for.
            held: see above.
        """
        self._breakers[TEAMS].admit()
        with self._breakers[TEAMS].watch(held=held):
            try:
                with audit.timed("acs_ms"):
                    async with asyncio.timeout(self._seconds):
                        answer = await self._client.get_token_for_teams_user(
                            *(entra_token, client_id, object_id), **ONCE
                        )
            except Exception as exc:
                raise _teams_error_of(exc) from exc
            token = checked_token(answer.token, answer.expires_on)
            ids = {f"8:{cloud}:{object_id}" for cloud in ("orgid", "gcch", "dod")}
            check_contents(token.token, acs_ids=ids)
        return token

    async def _exchange(self, path: str, entra_token: str, *, held: bool) -> tuple[str, AcsToken]:
        self._breakers[path].admit()
        with self._breakers[path].watch(held=held):
            return _identity_and_token(await self._answer(path, entra_token))

    async def _answer(self, path: str, entra_token: str) -> dict[str, Any]:
        async with (
            _translated(self._seconds),
            self._session.post(
                # The colon is a part of the path, and must stay as it is.
                URL(self._endpoint.rstrip("/") + path, encoded=True),
                data=b"{}",
                headers={
                    "Authorization": f"Bearer {entra_token}",
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
                timeout=TIMEOUT,
                allow_redirects=False,
            ) as response,
        ):
            if response.status != HTTPStatus.OK:
                raise await _refusal(response)
            return await read_object(response, max_bytes=MAX_ANSWER_BYTES)


def _identity_and_token(answer: dict[str, Any]) -> tuple[str, AcsToken]:
    identity, access_token = answer.get("identity"), answer.get("accessToken")
    if not isinstance(identity, dict) or not isinstance(access_token, dict):
        raise UpstreamBadResponseError("exchange: no identity and token")
    acs_id = identity.get("id")
    if not isinstance(acs_id, str) or not _ID.fullmatch(acs_id):
        raise UpstreamBadResponseError("exchange: no identity id")
    token = checked_token(access_token.get("token"), access_token.get("expiresOn"))
    check_contents(token.token, acs_ids={acs_id})
    return acs_id, token


@asynccontextmanager
async def _translated(seconds: float) -> AsyncIterator[None]:
    try:
        with audit.timed("acs_ms"):
            async with asyncio.timeout(seconds):
                yield
    except (BrokerError, UserTokenRefusedError):
        raise
    except TimeoutError as exc:  # Also those of aiohttp.
        raise UpstreamTimeoutError(type(exc).__name__) from exc
    except aiohttp.ClientPayloadError as exc:
        raise UpstreamBadResponseError(type(exc).__name__) from exc
    except aiohttp.ClientError as exc:
        raise UpstreamUnavailableError(type(exc).__name__) from exc
    except ValueError as exc:  # Not JSON, or too long. The text quotes nothing.
        raise UpstreamBadResponseError(f"exchange: {exc}") from exc


async def _refusal(response: aiohttp.ClientResponse) -> Exception:
    """Return the error for an answer to a request that only the person's token authorizes.

    What ACS says to a person without access is not documented. So 403 is read as that, and 401 as
    a token that it does not take.
    """
    status = response.status
    wait = seconds_of(response.headers)
    if status not in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _error_of_request(error_of_status(status, wait))
    try:
        answer = await read_object(response, max_bytes=MAX_ANSWER_BYTES)
    except ValueError:
        answer = {}
    code = _code(answer.get("error"))
    reason = f"ACS answered {status} {code}"
    if status == HTTPStatus.FORBIDDEN and code != "Denied":
        return NotAssignedError(reason)
    if code == "Denied":  # "Denied by the resource provider."
        return UserTokenRefusedError(UpstreamAuthError(reason))
    return UserTokenRefusedError(UpstreamBadResponseError(reason))


def _teams_error_of(exc: Exception) -> Exception:
    """Return the error for an answer to a request that our own credential authorizes."""
    if isinstance(exc, ClientAuthenticationError):  # We got no token: ACS was not asked.
        return error_of(exc)
    if isinstance(exc, HttpResponseError) and exc.status_code is not None:
        code = _code({"code": exc.error.code} if exc.error else None)
        reason = f"ACS answered {exc.status_code} {code}"
        if exc.status_code == HTTPStatus.BAD_REQUEST or code == "InvalidAccessToken":
            return UserTokenRefusedError(UpstreamBadResponseError(reason))
        if exc.status_code == HTTPStatus.FORBIDDEN and code != "Denied":
            return NotAssignedError(reason)
    return _error_of_request(error_of(exc))


def _error_of_request(error: BrokerError) -> Exception:
    """Return the error for a 4xx that is not about the person's rights.

    All of the request but the token is always the same, and ACS takes it. So the token is too long
    for it, or something else is wrong with it. 404 can only be about the path.
    """
    error = without_identity(error)
    if not isinstance(error, UpstreamBadResponseError) or error.answered == HTTPStatus.NOT_FOUND:
        return error
    return error if is_failure(error) else UserTokenRefusedError(error)


def _code(error: object) -> str:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "?"

"""Gets Entra tokens for ACS on behalf of the caller, through azure-identity.

The broker proves to Entra that it is its own registration with a token of the managed identity that
the registration trusts; a certificate or a secret does so where there is no managed identity.
https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow

Each request has a credential of its own, and with it a cache of its own: a person needs one token
an hour, and a token that is not kept cannot outlive a revocation or fill the memory. Answers are
checked in azure-core's hook for raw responses, before the SDK sees them: its errors have no more
than a text, which quotes Entra's description, and that text it also logs.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.identity.aio import OnBehalfOfCredential

from shared import audit, strict_json
from shared.entra import refusals
from shared.errors import (
    BrokerError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamUnavailableError,
)
from shared.retry_after import seconds_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from azure.core.pipeline import PipelineRequest, PipelineResponse
    from azure.core.pipeline.transport import AsyncHttpTransport

MAX_ANSWER_BYTES = 64 * 1024
OPERATION_SECONDS = 3
BOUNDS: dict[str, Any] = {"retry_total": 0, "connection_timeout": 1, "read_timeout": 3}


class OnBehalfOf:
    """Entra's token endpoint, for the broker's registration.

    Args:
        authority: an origin such as `https://login.microsoftonline.com`.
        client_id: the broker's registration.
        client_credential: returns what the registration proves itself with in a tenant, as one
            keyword argument of `OnBehalfOfCredential`.
        transport: sends the requests; it stays open.
        seconds: how long it may take to get a token, with the proof of the managed identity.
    """

    def __init__(
        self,
        *,
        authority: str,
        client_id: str,
        client_credential: Callable[[str], Awaitable[dict[str, Any]]],
        transport: AsyncHttpTransport[Any, Any],
        seconds: float = OPERATION_SECONDS,
    ) -> None:
        self._client_id = client_id
        self._client_credential = client_credential
        self._seconds = seconds
        self._options: dict[str, Any] = {
            "authority": authority,
            "transport": transport,
            "raw_response_hook": _check_answer,
            **BOUNDS,
        }
        if authority.startswith("http:"):  # Only loopback may be, and the SDK takes https alone.
            self._options["authority"] = f"https:{authority.removeprefix('http:')}"
            self._options["raw_request_hook"] = _send_plainly

    async def token(self, access_token: str, *, tenant_id: str, scopes: tuple[str, ...]) -> str:
        """Return a token for the resource of the scopes, on behalf of the access token's person.

        Args:
            access_token: a valid one of the caller's, for the broker.
            tenant_id: the caller's tenant.
            scopes: of one resource.

        Raises:
            ConsentRequiredError, InsufficientClaimsError, NotAssignedError: Entra wants something
                done first, by an administrator or by the person.
            InvalidTokenError, RevokedTokenError: Entra does not take the access token any more.
            UpstreamAuthError: Entra refuses the broker itself.
            UpstreamUnavailableError, UpstreamThrottledError, UpstreamBadResponseError: Entra fails.
        """
        async with _translated(self._seconds):
            credential = OnBehalfOfCredential(
                tenant_id,
                self._client_id,
                user_assertion=access_token,
                **await self._client_credential(tenant_id),
                **self._options,
            )
            issued = await credential.get_token(*scopes)
        return issued.token


@asynccontextmanager
async def _translated(seconds: float) -> AsyncIterator[None]:
    """Turn other exceptions into ours, without their texts, which may quote an answer."""
    try:
        with audit.timed("entra_ms"):
            async with asyncio.timeout(seconds):
                yield
    except BrokerError:
        raise
    except ClientAuthenticationError as exc:  # The managed identity has no token for us.
        raise UpstreamAuthError(f"managed identity: {type(exc).__name__}") from exc
    except (TimeoutError, AzureError) as exc:
        raise UpstreamUnavailableError(f"Entra: {type(exc).__name__}") from exc
    except Exception as exc:
        raise UpstreamBadResponseError(f"Entra: {type(exc).__name__}") from exc


def _send_plainly(request: PipelineRequest[Any]) -> None:
    request.http_request.url = request.http_request.url.replace("https:", "http:", 1)


def _check_answer(answer: PipelineResponse[Any, Any]) -> None:
    """Raise the error of an answer that is not a token."""
    response = answer.http_response
    status, headers = response.status_code, response.headers
    document = _object(response.body(), headers)
    if status == HTTPStatus.OK and "error" not in document:
        _check_token(document)
        return
    wait = seconds_of(headers)
    raise refusals.error_of(status, document, retry_after=wait, now=time.time())


def _object(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object in a body, or an empty one, which no answer has."""
    is_json = headers.get("Content-Type", "").partition(";")[0].strip() == "application/json"
    if not is_json or len(body) > MAX_ANSWER_BYTES:
        return {}
    try:
        return strict_json.loads_object(body.strip())
    except ValueError:
        return {}


def _check_token(document: Mapping[str, Any]) -> None:
    lifetime = document.get("expires_in")
    if not isinstance(document.get("access_token"), str) or type(lifetime) is not int:
        raise UpstreamBadResponseError("Entra: no token")

"""The errors that a request can end in.

The class decides what the caller is told: a status, a code and a fixed description. The message is
for the log, and never leaves the service.

    BrokerError
    ├── 400 InvalidRequestError ── UnusableTokenError
    ├── 401 MissingTokenError, InvalidTokenError, RevokedTokenError, StepUpRequiredError
    ├── 403 TenantNotAllowedError, InsufficientScopeError, ClientNotAllowedError,
    │       ScopeNotAllowedError, AdminRequiredError, ConsentRequiredError,
    │       InsufficientClaimsError, NotAssignedError, NotPermittedError
    ├── 404 UserNotFoundError, NotEnabledError
    ├── 409 ConflictError
    ├── 405 MethodNotAllowedError, 413 PayloadTooLargeError, 415 UnsupportedMediaTypeError
    ├── 429 RateLimitedError
    ├── 500 InternalError
    ├── 502 UpstreamAuthError, UpstreamBadResponseError,
    │       IdentityGoneError ── ForeignIdentityError
    ├── 503 MisconfiguredError, KeysUnavailableError, StorageUnavailableError,
    │       UpstreamUnavailableError, UpstreamThrottledError, BusyError
    └── 504 UpstreamTimeoutError

401 means that the token is bad; when that cannot be checked right now, the answer is 503. When ACS
or Entra refuses *our* credentials, it is 502.
"""

from __future__ import annotations

import base64
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The names of RFC 9110, section 15. `HTTPStatus.phrase` has older ones before Python 3.13.
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class BrokerError(Exception):
    """An error that the caller is told as an RFC 9457 problem.

    Args:
        reason: goes into the log.
        retry_after: seconds until it makes sense to try again, if other than the class's own.
        claims: what a new token must satisfy, as a claims request in JSON (OIDC Core 5.5). The app
            hands it to MSAL, which then asks Entra for a new token instead of its cache:
            https://learn.microsoft.com/entra/identity-platform/claims-challenge
    """

    status: HTTPStatus
    code: str
    description: str
    retry_after: float | None = None
    answered: int | None = None  # The status of ACS's answer, if the error is about one.

    def __init__(
        self, reason: str = "", *, retry_after: float | None = None, claims: str | None = None
    ) -> None:
        super().__init__(reason or self.code)
        self.claims = claims
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def title(self) -> str:
        """The name of the status."""
        return TITLES[self.status]

    def challenge(self) -> dict[str, str]:
        """Return the parameters of the `WWW-Authenticate: Bearer` challenge, RFC 6750 section 3."""
        parameters = {"error": self.code, "error_description": self.description}
        if self.claims is not None:
            parameters["claims"] = base64.b64encode(self.claims.encode()).decode()
        return parameters


class InvalidRequestError(BrokerError):
    """The request's parameters, body or credentials do not follow the contract."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid_request"  # RFC 6750, section 3.1
    description = "The request does not follow the contract (/api/openapi.json)."


class UnusableTokenError(InvalidRequestError):
    """The Entra token for ACS in the body is not one that can be exchanged for the caller."""

    description = (
        "The accessToken in the body cannot be exchanged: it has to be the caller's own, issued to"
        " the same app for this exchange, and good for ten more minutes."
    )


class MissingTokenError(BrokerError):
    """The request carries no access token."""

    status = HTTPStatus.UNAUTHORIZED
    code = "missing_token"
    description = "Send an Entra access token in the Authorization header, as a Bearer token."

    def challenge(self) -> dict[str, str]:
        """Return no error code, as RFC 6750, section 3.1 asks for requests without credentials."""
        return {}


class InvalidTokenError(BrokerError):
    """The access token is malformed, forged, expired, or not meant for this service."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_token"  # RFC 6750, section 3.1
    description = "The access token is not valid for this service. Get a new one."


class RevokedTokenError(BrokerError):
    """The access token was revoked: its person signed out everywhere after it was issued.

    Args:
        reason: goes into the log.
        mark: when a new one may have been issued at the earliest, in Unix time.
        demands: what else it must satisfy, so that the next answer is not another challenge.
    """

    status = HTTPStatus.UNAUTHORIZED
    code = "token_revoked"
    description = "The access token has been revoked. Get a new one that satisfies the claims."

    def __init__(
        self, reason: str, *, mark: int, demands: Mapping[str, object] | None = None
    ) -> None:
        newer = {"nbf": {"essential": True, "value": str(mark)}}
        super().__init__(reason, claims=json.dumps({"access_token": newer | dict(demands or {})}))

    def challenge(self) -> dict[str, str]:
        """Return Entra's claims challenge: without it MSAL offers the cached token again."""
        return {**super().challenge(), "error": "insufficient_claims"}


class StepUpRequiredError(BrokerError):
    """The access token is good, but the trust policy demands another sign-in than it shows.

    401, unlike what Entra demands for the exchanges: here it is the token itself that another one
    has to replace. https://learn.microsoft.com/entra/identity-platform/claims-challenge

    Args:
        reason: goes into the log.
        claims: what the new one must satisfy.
    """

    status = HTTPStatus.UNAUTHORIZED
    code = "insufficient_claims"  # That of Entra's claims challenges.
    description = "This service wants this person to sign in again. Hand the claims to MSAL."

    def __init__(self, reason: str, *, claims: str) -> None:
        super().__init__(reason, claims=claims)


class TenantNotAllowedError(BrokerError):
    """The access token is good, but this service does not serve its tenant."""

    status = HTTPStatus.FORBIDDEN
    code = "tenant_not_allowed"
    description = "This service does not serve the organisation of this access token."


class InsufficientScopeError(BrokerError):
    """The access token is good, but its scopes do not cover this request."""

    status = HTTPStatus.FORBIDDEN
    code = "insufficient_scope"  # RFC 6750, section 3.1
    description = "The access token lacks the delegated scope that this request needs."

    def __init__(self, reason: str, *, scope: str) -> None:
        super().__init__(reason)
        self._scope = scope

    def challenge(self) -> dict[str, str]:
        """Return the challenge with the scope to ask Entra for."""
        return {**super().challenge(), "scope": self._scope}


class ClientNotAllowedError(BrokerError):
    """The access token is good, but was issued to an app that may not use this service."""

    status = HTTPStatus.FORBIDDEN
    code = "client_not_allowed"
    description = "The app that this access token was issued to may not use this service."


class ScopeNotAllowedError(BrokerError):
    """The request asks for ACS scopes that this service does not grant."""

    status = HTTPStatus.FORBIDDEN
    code = "scope_not_allowed"
    description = "This service does not grant all of the ACS scopes that were asked for."


class AdminRequiredError(BrokerError):
    """The access token is good, but is not that of an administrator of the tenant concerned."""

    status = HTTPStatus.FORBIDDEN
    code = "admin_required"
    description = "This needs the access token of an administrator of the tenant concerned."


class ConsentRequiredError(BrokerError):
    """Nobody has allowed this service to call ACS for the caller, or ACS is not in the tenant."""

    status = HTTPStatus.FORBIDDEN
    code = "consent_required"
    description = (
        "Nobody in this person's organisation has consented to this service's use of Azure"
        " Communication Services. An administrator there has to."
    )


class NotPermittedError(BrokerError):
    """The access token is good, but the trust policy does not grant its person what was asked."""

    status = HTTPStatus.FORBIDDEN
    code = "not_permitted"
    description = "This service's policy does not permit this to this person with this app."


class InsufficientClaimsError(BrokerError):
    """The caller has to sign in again: Entra wants another factor, a known device or the like.

    What the trust policy demands comes this way only if no challenge can help; otherwise it is a
    `StepUpRequiredError`.
    """

    status = HTTPStatus.FORBIDDEN
    code = "insufficient_claims"  # That of Entra's claims challenges.
    description = "This person has to sign in again. Hand the claims, if any, to MSAL."


class NotAssignedError(BrokerError):
    """The owner of the ACS resource has not given access to the caller, in person or by group."""

    status = HTTPStatus.FORBIDDEN
    code = "not_assigned"
    description = (
        "This person has no access to the Azure Communication Services resource. Its owner has to"
        " assign the person, a group or the organisation, with this app."
    )


class UserNotFoundError(BrokerError):
    """The person has no ACS identity."""

    status = HTTPStatus.NOT_FOUND
    code = "user_not_found"
    description = "This person has no ACS identity. The person's own POST /api/user creates one."


class NotEnabledError(BrokerError):
    """The route exists, but the settings do not turn it on."""

    status = HTTPStatus.NOT_FOUND
    code = "not_enabled"
    description = "This service's settings do not turn this exchange on (ACS_EXCHANGES)."


class IdentityGoneError(BrokerError):
    """ACS no longer knows the identity that is stored for the caller."""

    status = HTTPStatus.BAD_GATEWAY
    code = "identity_gone"
    description = "ACS no longer knows this person's identity. The operator has to look into it."
    retry_after = 60


class ForeignIdentityError(IdentityGoneError):
    """The identity that is stored for somebody belongs to another ACS resource than ours."""


class ConflictError(BrokerError):
    """What is asked for does not fit what is stored."""

    status = HTTPStatus.CONFLICT
    code = "conflict"
    description = (
        "The person has another identity, somebody else has this one, it belongs to another ACS"
        " resource, or it does not need to be renewed."
    )


class MethodNotAllowedError(BrokerError):
    """The route exists, but does not take this method.

    Args:
        allowed: the methods that the route takes.
    """

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    description = "This route does not take this method. See the Allow header."

    def __init__(self, reason: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.allowed = allowed


class PayloadTooLargeError(BrokerError):
    """The request body is larger than the contract allows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "payload_too_large"
    description = "The request body may be at most 16 KiB long."


class UnsupportedMediaTypeError(BrokerError):
    """The request body is not declared to be JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    description = "Send the request body as application/json."


class RateLimitedError(BrokerError):
    """The caller sends more requests than one person needs."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    description = "Too many requests from this person. Wait as long as Retry-After says."
    retry_after = 2


class InternalError(BrokerError):
    """An error that was not foreseen."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"
    description = "Something went wrong in this service. Quote the traceId to its operator."


class UpstreamAuthError(BrokerError):
    """ACS or Entra refuses this service's own credentials."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_auth"
    description = "Azure Communication Services or Entra refused this service's own credentials."


class UpstreamBadResponseError(BrokerError):
    """ACS or Entra gave an answer that cannot be used."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_bad_response"
    description = "Azure Communication Services or Entra gave an answer that cannot be used."


class MisconfiguredError(BrokerError):
    """The settings are wrong; nothing is served until they are corrected."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "misconfigured"
    description = (
        "This service's settings are not valid. Its operator finds the reasons in the log."
    )
    retry_after = 60


class KeysUnavailableError(BrokerError):
    """Entra's keys cannot be read, or may be older than the token's: it cannot be checked."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "keys_unavailable"
    description = (
        "The token cannot be checked right now: Entra's signing keys cannot be read, or do not have"
        " its key yet."
    )
    retry_after = 5


class StorageUnavailableError(BrokerError):
    """Table Storage did not answer, refused us, or holds a row that we cannot read."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "storage_unavailable"
    description = "The table of identities cannot be used right now."
    retry_after = 5


class UpstreamUnavailableError(BrokerError):
    """ACS or Entra is down or cannot be reached."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_unavailable"
    description = "Azure Communication Services or Entra cannot be used right now."
    retry_after = 5


class UpstreamThrottledError(BrokerError):
    """ACS or Entra limits our requests."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_throttled"
    description = "Azure Communication Services or Entra is limiting requests right now."
    retry_after = 5


class BusyError(BrokerError):
    """Another request is at work on this person's identity, or too many people ask."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "busy"
    description = (
        "This person's identity is being created, the person was just signed out, or more people"
        " ask than Azure Communication Services can serve right now."
    )
    retry_after = 2


class UpstreamTimeoutError(BrokerError):
    """ACS, or the request as a whole, took too long."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "upstream_timeout"
    description = "Azure Communication Services, or the request as a whole, took too long."
    retry_after = 2

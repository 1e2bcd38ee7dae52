"""The errors that a request can end in.

The class decides what the caller is told: a status, a code and a fixed description. The message is
for the log, and never leaves the service.

    BrokerError
    ├── 400 InvalidRequestError
    ├── 401 MissingTokenError, InvalidTokenError ── RevokedTokenError
    ├── 403 TenantNotAllowedError, InsufficientScopeError, ClientNotAllowedError,
    │       ScopeNotAllowedError, AdminRequiredError
    ├── 404 UserNotFoundError, 409 ConflictError
    ├── 405 MethodNotAllowedError, 413 PayloadTooLargeError, 415 UnsupportedMediaTypeError
    ├── 429 RateLimitedError
    ├── 500 InternalError
    ├── 502 UpstreamAuthError, UpstreamBadResponseError,
    │       IdentityGoneError ── ForeignIdentityError
    ├── 503 MisconfiguredError, KeysUnavailableError, StorageUnavailableError,
    │       UpstreamUnavailableError, UpstreamThrottledError, BusyError
    └── 504 UpstreamTimeoutError

401 means that the token is bad; when that cannot be checked right now, the answer is 503. When ACS
refuses *our* credentials, it is 502.
"""

from __future__ import annotations

from http import HTTPStatus


class BrokerError(Exception):
    """An error that the caller is told as an RFC 9457 problem.

    Args:
        reason: goes into the log.
        retry_after: seconds until it makes sense to try again, if other than the class's own.
    """

    status: HTTPStatus
    code: str
    description: str
    retry_after: float | None = None

    def __init__(self, reason: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(reason or self.code)
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def title(self) -> str:
        """The name of the status in RFC 9110, section 15."""
        return self.status.phrase

    def challenge(self) -> dict[str, str]:
        """Return the parameters of the `WWW-Authenticate: Bearer` challenge, RFC 6750 section 3."""
        return {"error": self.code, "error_description": self.description}


class InvalidRequestError(BrokerError):
    """The request's parameters, body or credentials do not follow the contract."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid_request"  # RFC 6750, section 3.1
    description = "The request does not follow the contract (/api/openapi.json)."


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


class RevokedTokenError(InvalidTokenError):
    """The access token was issued before its person signed out everywhere.

    Args:
        claims: what a new token must satisfy, as a claims request (OIDC Core 5.5) in base64. The
            app hands it to MSAL, which then asks Entra for a new token instead of its cache.
    """

    def __init__(self, reason: str, *, claims: str) -> None:
        super().__init__(reason)
        self._claims = claims

    def challenge(self) -> dict[str, str]:
        """Return Entra's claims challenge: without it MSAL offers the cached token again."""
        return {**super().challenge(), "error": "insufficient_claims", "claims": self._claims}


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


class UserNotFoundError(BrokerError):
    """The person has no ACS identity."""

    status = HTTPStatus.NOT_FOUND
    code = "user_not_found"
    description = "This person has no ACS identity. The person's own POST /api/user creates one."


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
    title = "Content Too Large"  # RFC 9110; Python before 3.13 has the name of RFC 2616.
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
    """ACS refuses this service's own credentials: the role or the access key is wrong."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_auth"
    description = "Azure Communication Services refused this service's own credentials."


class UpstreamBadResponseError(BrokerError):
    """ACS gave an answer that cannot be used."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_bad_response"
    description = "Azure Communication Services gave an answer that cannot be used."


class MisconfiguredError(BrokerError):
    """The settings are wrong; nothing is served until they are corrected."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "misconfigured"
    description = (
        "This service's settings are not valid. Its operator finds the reasons in the log."
    )
    retry_after = 60


class KeysUnavailableError(BrokerError):
    """Entra's signing keys cannot be read, so no token can be checked."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "keys_unavailable"
    description = "Entra's signing keys cannot be read right now, so the token was not checked."
    retry_after = 5


class StorageUnavailableError(BrokerError):
    """Table Storage did not answer, refused us, or holds a row that we cannot read."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "storage_unavailable"
    description = "The table of identities cannot be used right now."
    retry_after = 5


class UpstreamUnavailableError(BrokerError):
    """ACS is down or cannot be reached."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_unavailable"
    description = "Azure Communication Services cannot be used right now."
    retry_after = 5


class UpstreamThrottledError(BrokerError):
    """ACS limits our requests."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_throttled"
    description = "Azure Communication Services is limiting requests right now."
    retry_after = 10


class BusyError(BrokerError):
    """Another request is at work on this person's identity right now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "busy"
    description = "This person's identity is being created, or the person was just signed out."
    retry_after = 2


class UpstreamTimeoutError(BrokerError):
    """ACS, or the request as a whole, took too long."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "upstream_timeout"
    description = "Azure Communication Services, or the request as a whole, took too long."
    retry_after = 2

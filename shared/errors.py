"""What can go wrong, as the caller is told it.

The class is what the caller is told: a status, a code and fixed words. The message is what the log
is told, and never leaves the service.

    BrokerError
    ├── 400 InvalidRequestError
    ├── 401 MissingTokenError, InvalidTokenError ── RevokedTokenError
    ├── 403 TenantNotAllowedError, InsufficientScopeError, ClientNotAllowedError,
    │       ScopeNotAllowedError
    ├── 404 UserNotFoundError, 409 IdentityGoneError
    ├── 405 MethodNotAllowedError, 413 PayloadTooLargeError, 415 UnsupportedMediaTypeError
    ├── 429 RateLimitedError
    ├── 500 InternalError
    ├── 502 UpstreamAuthError, UpstreamBadResponseError
    ├── 503 MisconfiguredError, KeysUnavailableError, StorageUnavailableError,
    │       UpstreamUnavailableError, UpstreamThrottledError, BusyError
    └── 504 UpstreamTimeoutError

401 means that the token is bad; what we cannot tell right now is 503. ACS refusing *us* is 502.
"""

from __future__ import annotations

from http import HTTPStatus


class BrokerError(Exception):
    """A request that gets a problem for an answer.

    Args:
        reason: what the log is told.
        retry_after: seconds until a new attempt makes sense, where the class has none that fits.
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
        """The status's name in RFC 9110, section 15."""
        return self.status.phrase

    def challenge(self) -> dict[str, str]:
        """Return the parameters of the `WWW-Authenticate: Bearer` challenge, RFC 6750 section 3."""
        return {"error": self.code, "error_description": self.description}


class InvalidRequestError(BrokerError):
    """The request's parameters, body or credentials are not in the form of the contract."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid_request"  # RFC 6750, section 3.1
    description = "The request is not in the form that the contract asks for (/api/openapi.json)."


class MissingTokenError(BrokerError):
    """The request carries no access token."""

    status = HTTPStatus.UNAUTHORIZED
    code = "missing_token"
    description = "Send an Entra access token in the Authorization header, as a Bearer token."

    def challenge(self) -> dict[str, str]:
        """Return no error: RFC 6750, section 3.1, where a request lacks credentials altogether."""
        return {}


class InvalidTokenError(BrokerError):
    """The access token is malformed, forged, expired, or not meant for this service."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_token"  # RFC 6750, section 3.1
    description = "The access token is not valid for this service. Get a new one."


class RevokedTokenError(InvalidTokenError):
    """The access token was issued before its person signed out everywhere.

    Args:
        claims: what a new token must satisfy, base64 of a claims request (OIDC Core 5.5). MSAL
            takes it from the challenge and asks Entra for a fresh token instead of its cache.
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


class UserNotFoundError(BrokerError):
    """The caller has no ACS identity yet."""

    status = HTTPStatus.NOT_FOUND
    code = "user_not_found"
    description = "There is no ACS identity for this person yet. POST /api/user makes one."


class IdentityGoneError(BrokerError):
    """ACS no longer knows the identity that is on record for the caller."""

    status = HTTPStatus.CONFLICT
    code = "identity_gone"
    description = "ACS no longer knows the identity on record. An operator has to look at it."


class MethodNotAllowedError(BrokerError):
    """The route exists, but not for this method.

    Args:
        allowed: the methods that it has.
    """

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    description = "This route does not take this method. See the Allow header."

    def __init__(self, reason: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.allowed = allowed


class PayloadTooLargeError(BrokerError):
    """The request's body is larger than any that the contract allows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    title = "Content Too Large"  # RFC 9110; Python before 3.13 has the name of RFC 2616.
    code = "payload_too_large"
    description = "The request body may have 16 KiB at most."


class UnsupportedMediaTypeError(BrokerError):
    """The request's body is not declared to be JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    description = "Send the request body as application/json."


class RateLimitedError(BrokerError):
    """The caller asks more often than one person needs to."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    description = "Too many requests from this person. Wait as long as Retry-After says."
    retry_after = 2


class InternalError(BrokerError):
    """Something happened that nobody foresaw."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"
    description = "Something went wrong in this service. Quote the traceId to its operator."


class UpstreamAuthError(BrokerError):
    """ACS refuses this service's own credentials: its role or its key is wrong."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_auth"
    description = "Azure Communication Services refused this service. Its operator has to act."


class UpstreamBadResponseError(BrokerError):
    """ACS answered with something that cannot be used."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_bad_response"
    description = "Azure Communication Services gave an answer that cannot be used."


class MisconfiguredError(BrokerError):
    """The settings are wrong; nothing is served until they are mended."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "misconfigured"
    description = "This service's settings are not valid. Its operator finds the reasons logged."
    retry_after = 60


class KeysUnavailableError(BrokerError):
    """Entra's signing keys cannot be had, so no token can be judged."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "keys_unavailable"
    description = "Entra's signing keys cannot be read right now, so the token was not judged."
    retry_after = 5


class StorageUnavailableError(BrokerError):
    """Table Storage did not answer, refused us, or holds what we cannot read."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "storage_unavailable"
    description = "The store of identities cannot be used right now."
    retry_after = 5


class UpstreamUnavailableError(BrokerError):
    """ACS is down or cannot be reached."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_unavailable"
    description = "Azure Communication Services cannot be used right now."
    retry_after = 5


class UpstreamThrottledError(BrokerError):
    """ACS asks us to slow down."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "upstream_throttled"
    description = "Azure Communication Services is over its limit right now."
    retry_after = 10


class BusyError(BrokerError):
    """Another request is creating or deleting this person's identity right now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "busy"
    description = "This person's identity is being created or deleted right now."
    retry_after = 2


class UpstreamTimeoutError(BrokerError):
    """ACS, or the request as a whole, took too long."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "upstream_timeout"
    description = "Azure Communication Services, or the request as a whole, took too long."
    retry_after = 2

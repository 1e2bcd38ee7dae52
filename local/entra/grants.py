"""The token endpoint of the local Entra: authenticates clients, and checks and redeems grants.

The AADSTS numbers are Entra's; the messages after them are shorter than Entra's.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt

from local.entra.directory import DIRECTORY, GRAPH, TOKEN_EXCHANGE
from local.entra.tokens import (
    BACKDATED,
    CLIENT_ASSERTION,
    CLIENT_SECRET,
    PUBLIC_CLIENT,
    TokenIssuer,
    base64url,
    usual_lifetime,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from local.entra.directory import App, Directory, Tenant, User
    from local.entra.tokens import SigningKey

    Form = Mapping[str, str]

OPENID_SCOPES = frozenset({"openid", "profile", "email", "offline_access"})
ANY_TENANT = frozenset({"organizations", "common"})
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ON_BEHALF_OF = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CODE_LIFETIME = timedelta(minutes=10)


class EntraError(Exception):
    """An error of Entra's: an OAuth error code, an AADSTS number and a message."""

    def __init__(self, error: str, number: int, message: str) -> None:
        super().__init__(f"AADSTS{number}: {message}")
        self.error = error
        self.number = number
        self.status = 401 if error == "invalid_client" else 400

    def document(self, url: str, correlation_id: str) -> dict[str, object]:
        """Return the error as Entra's token endpoint and metadata endpoints write it."""
        trace_id = str(uuid.uuid4())
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
        return {
            "error": self.error,
            "error_description": f"{self} Trace ID: {trace_id} Timestamp: {now}",
            "error_codes": [self.number],
            "timestamp": now,
            "trace_id": trace_id,
            "correlation_id": correlation_id,
            "error_uri": f"{url}/error?code={self.number}",
        }

    def redirected(self) -> dict[str, str]:
        """Return the error as the parameters of a redirect to the app."""
        return {"error": self.error, "error_description": str(self)}


@dataclass(frozen=True, slots=True)
class SignIn:
    """A user's sign-in to a client, and the parameters of the client's request."""

    user: User
    client: App
    scope: str
    redirect_uri: str = ""
    nonce: str = ""
    code_challenge: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a `scope` parameter asks for: permissions of one resource, and OpenID Connect scopes."""

    resource: App
    audience: str
    scopes: tuple[str, ...]
    openid: frozenset[str]

    @classmethod
    def parse(cls, scope: str, directory: Directory, tenant: Tenant | None) -> Wanted:
        """Read the parameter.

        Raises:
            EntraError: it names more than one resource, an unknown one, or an unknown permission.
        """
        names = dict.fromkeys(scope.split())
        openid = OPENID_SCOPES & names.keys()
        # A permission without a resource belongs to Microsoft Graph.
        pairs = [name.rpartition("/") for name in names if name not in OPENID_SCOPES]
        audiences = {audience or GRAPH.uris[0] for audience, _, _ in pairs} or {GRAPH.uris[0]}
        if len(audiences) > 1:
            raise EntraError("invalid_scope", 28000, "The scope has more than one resource.")
        audience = audiences.pop()
        resource = directory.app(audience)
        if resource is None or not resource.uris or (tenant and not resource.is_in(tenant)):
            message = f"The resource principal named {audience} was not found in the tenant."
            raise EntraError("invalid_resource", 500011, message)
        permissions = [permission for _, _, permission in pairs] or ["User.Read"]
        if ".default" in permissions:
            return cls(resource, audience, resource.scopes, openid)
        for permission in permissions:
            if permission not in resource.scopes:
                message = f"Scope '{permission}' doesn't exist on the resource '{audience}'."
                raise EntraError("invalid_client", 650053, message)
        return cls(resource, audience, tuple(permissions), openid)

    def __str__(self) -> str:
        granted = [f"{self.audience}/{scope}" for scope in self.scopes]
        return " ".join([*granted, *sorted(self.openid - {"offline_access"})])


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to the token endpoint, with its client authenticated."""

    client: App
    authentication: str
    tenant: Tenant | None
    form: Form


class Grants(TokenIssuer):
    """Remembers sign-ins, and issues tokens for clients' grants."""

    def __init__(
        self, directory: Directory = DIRECTORY, *, keys: Iterable[SigningKey] = ()
    ) -> None:
        super().__init__(directory, keys=keys)
        self._codes: dict[str, SignIn | None] = {}  # None: redeemed.
        self._refresh_tokens: dict[str, SignIn] = {}

    def tenant(self, name: str) -> Tenant | None:
        """Return the tenant of a URL's first segment, None for "organizations" and "common".

        Raises:
            EntraError: there is no such tenant.
        """
        tenant = self.directory.tenant(name)
        if tenant is None and name not in ANY_TENANT:
            raise EntraError("invalid_tenant", 90002, f"Tenant '{name}' not found.")
        return tenant

    def client(self, form: Form, tenant: Tenant | None) -> App:
        """Return the app that a request names.

        Raises:
            EntraError: the app is not in the tenant.
        """
        client_id = required(form, "client_id")
        app = self.directory.app(client_id)
        if app is None or (tenant and not app.is_in(tenant)):
            message = f"Application with identifier '{client_id}' was not found in the directory."
            raise EntraError("unauthorized_client", 700016, message)
        if tenant is None and not app.multi_tenant:
            message = f"Application '{client_id}' is not configured as a multi-tenant application."
            raise EntraError("invalid_request", 50194, message)
        return app

    def new_code(self, sign_in: SignIn) -> str:
        """Return an authorization code for a sign-in."""
        code = f"1.{secrets.token_urlsafe(48)}"
        self._codes[code] = sign_in
        return code

    def redeem(self, tenant_name: str, form: Form, *, cross_origin: bool) -> dict[str, object]:
        """Answer a request to the token endpoint.

        Args:
            tenant_name: the first segment of the URL.
            form: the request's body.
            cross_origin: whether it came from a page in a browser.

        Raises:
            EntraError: Entra refuses such a request.
        """
        tenant = self.tenant(tenant_name)
        grants = {
            "authorization_code": self._redeem_code,
            "refresh_token": self._refresh,
            "client_credentials": self._client_credentials,
            ON_BEHALF_OF: self._on_behalf_of,
        }
        grant_type = required(form, "grant_type")
        if grant_type not in grants:
            message = f"The app requested an unsupported grant type '{grant_type}'."
            raise EntraError("unsupported_grant_type", 70003, message)
        client = self.client(form, tenant)
        if cross_origin and client.platform != "spa":
            message = "Only single-page applications may redeem tokens across origins."
            raise EntraError("invalid_request", 9002326, message)
        if client.platform == "spa" and not cross_origin:
            message = "Single-page applications may redeem tokens across origins only."
            raise EntraError("invalid_request", 9002327, message)
        return grants[grant_type](
            TokenRequest(client, self._authenticate(client, form), tenant, form)
        )

    def _authenticate(self, client: App, form: Form) -> str:
        """Return how a client has authenticated, as the value of `azpacr`."""
        secret, assertion = form.get("client_secret"), form.get("client_assertion")
        if client.platform and (secret or assertion):
            raise EntraError("invalid_client", 700025, "Client is public: it has no secret.")
        if client.platform:
            return PUBLIC_CLIENT
        if assertion and form.get("client_assertion_type") == ASSERTION_TYPE:
            self._check_client_assertion(client, assertion)
            return CLIENT_ASSERTION
        if not secret:
            message = "The request must contain 'client_assertion' or 'client_secret'."
            raise EntraError("invalid_client", 7000218, message)
        if secret != client.secret:
            raise EntraError("invalid_client", 7000215, "Invalid client secret provided.")
        return CLIENT_SECRET

    def _check_client_assertion(self, client: App, assertion: str) -> None:
        """Check that an assertion is this Entra's token for the subject that the client trusts."""
        claims = self._claims_of(assertion, "invalid_client", bad=700027, expired=700024)
        no_match = "No matching federated identity record found for the assertion's"
        if claims.get("aud") not in {TOKEN_EXCHANGE.client_id, *TOKEN_EXCHANGE.uris}:
            raise EntraError("invalid_client", 700212, f"{no_match} audience.")
        if not client.federated_subject or claims.get("sub") != client.federated_subject:
            raise EntraError("invalid_client", 700213, f"{no_match} subject.")

    def _redeem_code(self, request: TokenRequest) -> dict[str, object]:
        code = required(request.form, "code")
        if code not in self._codes:
            raise _invalid_grant(9002313, "Invalid request. Request is malformed or invalid.")
        sign_in, self._codes[code] = self._codes[code], None
        if sign_in is None:
            raise _invalid_grant(54005, "OAuth2 Authorization code was already redeemed.")
        if time.time() - sign_in.at > CODE_LIFETIME.total_seconds():
            raise _invalid_grant(70008, "The provided authorization code has expired.")
        if sign_in.client != request.client:
            raise _invalid_grant(70000, "Provided grant is invalid or malformed.")
        if sign_in.redirect_uri != request.form.get("redirect_uri"):
            raise _invalid_grant(500112, "The reply address is not that of the authorization.")
        verifier = hashlib.sha256(request.form.get("code_verifier", "").encode()).digest()
        if base64url(verifier) != sign_in.code_challenge:
            raise _invalid_grant(501481, "The Code_Verifier does not match the code_challenge.")
        return self._tokens_of_user(request, sign_in)

    def _refresh(self, request: TokenRequest) -> dict[str, object]:
        sign_in = self._refresh_tokens.get(required(request.form, "refresh_token"))
        if sign_in is None or sign_in.client != request.client:
            raise _invalid_grant(9002313, "Invalid request. Request is malformed or invalid.")
        # Only the first ID token has the nonce. Each refresh returns another refresh token.
        asked = request.form.get("scope")
        scope = f"{asked} offline_access" if asked else sign_in.scope
        return self._tokens_of_user(request, replace(sign_in, scope=scope, nonce=""))

    def _client_credentials(self, request: TokenRequest) -> dict[str, object]:
        if request.tenant is None:
            raise EntraError("invalid_request", 50059, "No tenant-identifying information found.")
        scope = required(request.form, "scope")
        if not scope.endswith("/.default"):
            raise EntraError("invalid_scope", 1002012, f"Scope '{scope}' must end in /.default.")
        return self._access_token(request, Wanted.parse(scope, self.directory, request.tenant))

    def _on_behalf_of(self, request: TokenRequest) -> dict[str, object]:
        if request.form.get("requested_token_use") != "on_behalf_of":
            raise EntraError("invalid_request", 900144, "'requested_token_use' is missing.")
        assertion = required(request.form, "assertion")
        claims = self._claims_of(assertion, "invalid_grant", bad=50013, expired=500133)
        if claims.get("aud") not in {request.client.client_id, *request.client.uris}:
            raise _invalid_grant(500131, "Assertion audience does not match the client app.")
        users = (user for user in self.directory.users if user.object_id == claims.get("oid"))
        user = next(users, None)
        if user is None or "scp" not in claims:
            raise _invalid_grant(7000114, "Only a user's token can be exchanged on behalf of.")
        if request.tenant not in {None, user.tenant}:
            raise _invalid_grant(50013, "The assertion was issued in another tenant.")
        return self._tokens_of_user(
            request, SignIn(user, request.client, required(request.form, "scope"))
        )

    def _claims_of(self, token: str, error: str, *, bad: int, expired: int) -> dict[str, Any]:
        try:
            return self.verify(token)
        except ValueError as exc:
            if isinstance(exc.__cause__, jwt.ExpiredSignatureError):
                message = "Assertion is not within its valid time range."
                raise EntraError(error, expired, message) from exc
            raise EntraError(error, bad, "Assertion failed signature validation.") from exc

    def _tokens_of_user(self, request: TokenRequest, sign_in: SignIn) -> dict[str, object]:
        tenant = request.tenant or sign_in.user.tenant
        user = self.directory.user_in(tenant, sign_in.user.account)
        if user is None:
            message = f"User account '{sign_in.user.user_name}' does not exist in the tenant."
            raise _invalid_grant(50020, message)
        wanted = Wanted.parse(sign_in.scope, self.directory, tenant)
        answer = self._access_token(request, wanted, user)
        answer["scope"] = str(wanted)
        if "openid" in wanted.openid:
            answer["id_token"] = self.issue_id_token(user, sign_in.client, nonce=sign_in.nonce)
        if "offline_access" in wanted.openid:
            # As in Entra, the refresh token that this one replaces stays valid.
            answer["refresh_token"] = token = f"1.{secrets.token_urlsafe(64)}"
            self._refresh_tokens[token] = sign_in
        if request.form.get("client_info") == "1":
            answer["client_info"] = client_info(user)
        return answer

    def _access_token(
        self, request: TokenRequest, wanted: Wanted, user: User | None = None
    ) -> dict[str, object]:
        lifetime = usual_lifetime()
        access_token = self.issue_access_token(
            user.user_name if user else None,
            client=request.client,
            resource=wanted.resource,
            audience=wanted.audience,
            scopes=wanted.scopes,
            tenant=request.tenant,
            authentication=request.authentication,
            lifetime=lifetime,
            claims=_requested_claims(request.form, wanted.resource),
        )
        seconds = int(lifetime.total_seconds()) - 1
        return {
            "token_type": "Bearer",
            "expires_in": seconds,
            "ext_expires_in": seconds,
            "access_token": access_token,
        }


def required(form: Form, name: str) -> str:
    """Return a parameter.

    Raises:
        EntraError: it is missing.
    """
    value = form.get(name)
    if not value:
        message = f"The request must contain the following parameter: '{name}'."
        raise EntraError("invalid_request", 900144, message)
    return value


def client_info(user: User) -> str:
    """Return the ids by which MSAL names an account: those in its home tenant."""
    ids = {"uid": user.account.object_id, "utid": user.account.tenant.tenant_id}
    return base64url(json.dumps(ids).encode())


def _requested_claims(form: Form, resource: App) -> dict[str, object]:
    """Return the claims that a `claims` parameter decides.

    A resource that refuses tokens from before some time sends its clients here with that time as an
    essential `nbf`. A client that can handle such a challenge says so in `xms_cc`.
    """
    try:
        asked = json.loads(form.get("claims") or "{}").get("access_token", {})
        moment = int(asked.get("nbf", {}).get("value", 0))
        capabilities = asked.get("xms_cc", {}).get("values", [])
    except (AttributeError, TypeError, ValueError) as exc:
        raise EntraError("invalid_request", 9002313, "The claims are malformed.") from exc
    claims: dict[str, object] = {}
    now = int(time.time())
    if now - BACKDATED.total_seconds() < moment <= now:
        claims |= {"iat": moment, "nbf": moment}
    if capabilities and "xms_cc" in resource.optional_claims:
        claims["xms_cc"] = capabilities
    return claims


def _invalid_grant(number: int, message: str) -> EntraError:
    return EntraError("invalid_grant", number, message)

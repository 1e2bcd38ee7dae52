"""The token endpoint of the local Entra: authenticates clients, and checks and redeems grants.

The AADSTS numbers are Entra's; some of the messages after them are shorter than Entra's.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from local.entra import errors
from local.entra.access import check_installed, permitted
from local.entra.assertions import check_client_assertion, claims_of
from local.entra.devices import Devices
from local.entra.errors import EntraError, invalid_grant, required
from local.entra.requests import (
    DEFAULT,
    SignIn,
    TokenRequest,
    Wanted,
    answered_claims,
    second_factor,
)
from local.entra.tokens import (
    CLIENT_ASSERTION,
    CLIENT_SECRET,
    PUBLIC_CLIENT,
    TokenIssuer,
    base64url,
    usual_lifetime,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from local.entra.objects import App, Tenant, User
    from local.entra.requests import Form
    from local.entra.state import Directory
    from local.entra.tokens import SigningKey

ANY_TENANT = frozenset({"organizations", "common"})
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ON_BEHALF_OF = "urn:ietf:params:oauth:grant-type:jwt-bearer"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
CODE_LIFETIME = timedelta(minutes=10)


class Grants(TokenIssuer):
    """Remembers sign-ins, and issues tokens for clients' grants."""

    def __init__(
        self, directory: Directory | None = None, *, keys: Iterable[SigningKey] = ()
    ) -> None:
        super().__init__(directory, keys=keys)
        self.devices = Devices()
        self._codes: dict[str, SignIn | None] = {}  # None: redeemed.
        self._refresh_tokens: dict[str, SignIn] = {}
        self._strong: set[str] = set()  # `uti` of tokens from sign-ins with a second factor.

    def tenant(self, name: str) -> Tenant | None:
        """Return the tenant of a URL's first segment, None for "organizations" and "common".

        Raises:
            EntraError: there is no such tenant.
        """
        tenant = self.directory.tenant(name)
        if tenant is None and name not in ANY_TENANT:
            message = (
                f"Tenant '{name}' not found. Check to make sure you have the correct tenant ID and "
                "are signing into the correct cloud. Check with your subscription administrator, "
                "this may happen if there are no active subscriptions for the tenant."
            )
            raise EntraError("invalid_tenant", 90002, message)
        return tenant

    def client(self, form: Form, tenant: Tenant | None) -> App:
        """Return the app that a request names.

        Raises:
            EntraError: the app is not in the tenant.
        """
        client_id = required(form, "client_id")
        app = self.directory.app(client_id)
        if app is None or (tenant and not app.is_offered_to(tenant)):
            raise errors.no_such_client(client_id, tenant)
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
            DEVICE_CODE: self._redeem_device_code,
        }
        grant_type = required(form, "grant_type")
        if grant_type not in grants:
            message = f"The app requested an unsupported grant type '{grant_type}'."
            raise EntraError("unsupported_grant_type", 70003, message)
        client = self.client(form, tenant)
        confidential = bool(form.get("client_secret") or form.get("client_assertion"))
        if cross_origin and client.platform != "spa":
            message = "Only single-page applications may redeem tokens across origins."
            raise EntraError("invalid_request", 9002326, message)
        if client.platform == "spa" and not cross_origin and not confidential:
            message = "Single-page applications may redeem tokens across origins only."
            raise EntraError("invalid_request", 9002327, message)
        return grants[grant_type](
            TokenRequest(client, self._authenticate(client, form), tenant, form)
        )

    def _authenticate(self, client: App, form: Form) -> str:
        """Return how a client has authenticated, as the value of `azpacr`."""
        secret, assertion = form.get("client_secret"), form.get("client_assertion")
        has_own = client.secret or client.trusts or client.certificates
        if client.platform and not has_own and (secret or assertion):
            raise EntraError("invalid_client", 700025, "Client is public: it has no secret.")
        if client.platform and not (secret or assertion):
            return PUBLIC_CLIENT
        if assertion and form.get("client_assertion_type") == ASSERTION_TYPE:
            check_client_assertion(self, client, assertion)
            return CLIENT_ASSERTION
        if not secret:
            message = (
                "The request body must contain the following parameter: 'client_assertion' or "
                "'client_secret'."
            )
            raise EntraError("invalid_client", 7000218, message)
        if secret != client.secret:
            message = (
                "Invalid client secret provided. Ensure the secret being sent in the request is "
                "the client secret value, not the client secret ID, for a secret added to app "
                f"'{client.client_id}'."
            )
            raise EntraError("invalid_client", 7000215, message)
        return CLIENT_SECRET

    def _redeem_code(self, request: TokenRequest) -> dict[str, object]:
        code = required(request.form, "code")
        if code not in self._codes:
            raise invalid_grant(9002313, "Invalid request. Request is malformed or invalid.")
        sign_in, self._codes[code] = self._codes[code], None
        if sign_in is None:
            raise invalid_grant(54005, "OAuth2 Authorization code was already redeemed.")
        if time.time() - sign_in.at > CODE_LIFETIME.total_seconds():
            raise invalid_grant(70008, "The provided authorization code has expired.")
        if sign_in.client.client_id != request.client.client_id:
            raise invalid_grant(70000, "Provided grant is invalid or malformed.")
        if sign_in.redirect_uri != request.form.get("redirect_uri"):
            raise invalid_grant(500112, "The reply address is not that of the authorization.")
        verifier = hashlib.sha256(request.form.get("code_verifier", "").encode()).digest()
        if base64url(verifier) != sign_in.code_challenge:
            raise invalid_grant(501481, "The Code_Verifier does not match the code_challenge.")
        return self._tokens_of_user(request, sign_in)

    def _refresh(self, request: TokenRequest) -> dict[str, object]:
        sign_in = self._refresh_tokens.get(required(request.form, "refresh_token"))
        if sign_in is None or sign_in.client.client_id != request.client.client_id:
            raise invalid_grant(9002313, "Invalid request. Request is malformed or invalid.")
        # Only the first ID token has the nonce. Each refresh returns another refresh token.
        asked = request.form.get("scope")
        scope = f"{asked} offline_access" if asked else sign_in.scope
        return self._tokens_of_user(request, replace(sign_in, scope=scope, nonce=""))

    def _redeem_device_code(self, request: TokenRequest) -> dict[str, object]:
        sign_in = self.devices.redeem(required(request.form, "device_code"), request.client)
        return self._tokens_of_user(request, sign_in)

    def _client_credentials(self, request: TokenRequest) -> dict[str, object]:
        tenant, client = request.tenant, request.client
        if tenant is None:
            raise EntraError("invalid_request", 50059, "No tenant-identifying information found.")
        scope = required(request.form, "scope")
        if not scope.endswith(f"/{DEFAULT}"):
            message = (
                f"The provided value for scope '{scope}' is not valid: it must end in /.default."
            )
            raise EntraError("invalid_scope", 1002012, message)
        wanted = Wanted.parse(scope, self.directory, tenant)
        check_installed(self.directory, client, wanted, tenant)
        principal = self.directory.principal(wanted.resource, tenant)
        roles = self.directory.roles_at(wanted.resource, tenant, client.principal_in(tenant))
        if principal and principal.assignment_required and not roles:
            message = f"Application '{client.client_id}'({client.name}) is not assigned to a role."
            raise invalid_grant(501051, message)
        return self._access_token(request, wanted, ())

    def _on_behalf_of(self, request: TokenRequest) -> dict[str, object]:
        if request.form.get("requested_token_use") != "on_behalf_of":
            raise EntraError("invalid_request", 900144, "'requested_token_use' is missing.")
        assertion = required(request.form, "assertion")
        claims = claims_of(self, assertion, "invalid_grant", bad=50013, expired=500133)
        if claims.get("aud") not in {request.client.client_id, *request.client.uris}:
            raise invalid_grant(500131, "Assertion audience does not match the client app.")
        if "scp" not in claims:
            raise invalid_grant(7000114, "Only a user's token can be exchanged on behalf of.")
        user = self.directory.user(str(claims.get("oid")))
        if user is None:
            message = f"The user account '{claims.get('oid')}' does not exist in the directory."
            raise invalid_grant(50034, message)
        if request.tenant not in {None, user.tenant}:
            raise invalid_grant(50013, "The assertion was issued in another tenant.")
        strong = claims.get("uti") in self._strong
        scope = required(request.form, "scope")
        sign_in = SignIn(user, request.client, scope, strong=strong)
        return self._tokens_of_user(request, sign_in)

    def _tokens_of_user(self, request: TokenRequest, sign_in: SignIn) -> dict[str, object]:
        tenant = request.tenant or sign_in.user.tenant
        user = self.directory.user_in(tenant, sign_in.user.account)
        if user is None:
            message = (
                f"User account '{sign_in.user.user_name}' from identity provider "
                f"'https://sts.windows.net/{sign_in.user.account.tenant.tenant_id}/' does not "
                f"exist in tenant '{tenant.name}' and cannot access the application "
                f"'{request.client.client_id}'({request.client.name}) in that tenant. The account "
                "needs to be added as an external user in the tenant first."
            )
            raise invalid_grant(50020, message)
        wanted = Wanted.parse(sign_in.scope, self.directory, tenant)
        scopes = permitted(self.directory, request.client, wanted, user, strong=sign_in.strong)
        reason = second_factor(request.form)
        if reason and not sign_in.strong:
            raise errors.step_up(wanted.resource, reason)
        answer = self._access_token(request, wanted, scopes, user, strong=sign_in.strong)
        answer["scope"] = wanted.answer(scopes)
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
        self,
        request: TokenRequest,
        wanted: Wanted,
        scopes: tuple[str, ...],
        user: User | None = None,
        *,
        strong: bool = False,
    ) -> dict[str, object]:
        lifetime = usual_lifetime()
        asked = answered_claims(request.form, wanted.resource, strong=strong)
        uti = secrets.token_urlsafe(16)
        if strong:
            self._strong.add(uti)
        access_token = self.issue_access_token(
            user.object_id if user else None,
            client=request.client,
            resource=wanted.resource,
            audience=wanted.audience,
            scopes=scopes,
            tenant=request.tenant,
            authentication=request.authentication,
            lifetime=lifetime,
            claims={**asked, "uti": uti},
        )
        seconds = int(lifetime.total_seconds()) - 1
        return {
            "token_type": "Bearer",
            "expires_in": seconds,
            "ext_expires_in": seconds,
            "access_token": access_token,
        }


def client_info(user: User) -> str:
    """Return the ids by which MSAL names an account: those in its home tenant."""
    ids = {"uid": user.account.object_id, "utid": user.account.tenant.tenant_id}
    return base64url(json.dumps(ids).encode())

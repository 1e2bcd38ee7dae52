"""What a request to the token endpoint asks for."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from local.entra.directory import GRAPH
from local.entra.errors import EntraError, no_such_resource
from local.entra.tokens import BACKDATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.entra.objects import App, Tenant, User
    from local.entra.state import Directory

    Form = Mapping[str, str]

OPENID_SCOPES = frozenset({"openid", "profile", "email", "offline_access"})
DEFAULT = ".default"
SECOND_FACTOR = ("capolids", "acrs", "amr")


@dataclass(frozen=True, slots=True)
class SignIn:
    """A user's sign-in to a client, and the parameters of the client's request.

    A sign-in is `strong` if it satisfied a conditional access policy.
    """

    user: User
    client: App
    scope: str
    redirect_uri: str = ""
    nonce: str = ""
    code_challenge: str = ""
    at: float = field(default_factory=time.time)
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a `scope` parameter asks for: permissions of one resource, and OpenID Connect scopes.

    With `by_default`, these are all permissions that the client has.
    """

    resource: App
    audience: str
    scopes: tuple[str, ...]
    openid: frozenset[str]
    by_default: bool = False

    @classmethod
    def parse(cls, scope: str, directory: Directory, tenant: Tenant | None = None) -> Wanted:
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
        if resource is None or not resource.uris or (tenant and not resource.is_offered_to(tenant)):
            raise no_such_resource(audience, tenant)
        permissions = [permission for _, _, permission in pairs] or ["User.Read"]
        if DEFAULT in permissions:
            return cls(resource, audience, (), openid, by_default=True)
        for permission in permissions:
            if permission not in resource.scopes:
                message = (
                    f"The application asked for scope '{permission}' that doesn't exist on the "
                    f"resource '{resource.client_id}'."
                )
                raise EntraError("invalid_client", 650053, message)
        return cls(resource, audience, tuple(permissions), openid)

    def needed(self, client: App, granted: tuple[str, ...]) -> tuple[str, ...]:
        """Return the permissions that the client must have, given those that it has.

        By default, somebody who signs in is asked for what the client's registration requires.
        """
        if not self.by_default:
            return self.scopes
        return (*granted, *dict(client.requires).get(self.resource.client_id, ()))

    def answer(self, granted: tuple[str, ...]) -> str:
        """Return the `scope` of the answer: full names, with `.default` if it was asked for."""
        names = [*granted, *([DEFAULT] if self.by_default else [])]
        full = [f"{self.audience}/{name}" for name in names]
        return " ".join([*full, *sorted(self.openid - {"offline_access"})])


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to the token endpoint, with its client authenticated."""

    client: App
    authentication: str
    tenant: Tenant | None
    form: Form


def requested_claims(form: Form) -> dict[str, dict[str, Any]]:
    """Return what the `claims` parameter wants of the access token.

    Raises:
        EntraError: it is malformed.
    """
    try:
        asked = json.loads(form.get("claims") or "{}").get("access_token", {})
        return {name: dict(each or {}) for name, each in asked.items()}
    except (AttributeError, TypeError, ValueError) as exc:
        raise EntraError("invalid_request", 9002313, "The claims are malformed.") from exc


def second_factor(form: Form) -> dict[str, Any] | None:
    """Return the part of the `claims` parameter that asks for a second factor, if one does.

    A conditional access policy does (`capolids`), an authentication context, each of which is for a
    second factor here, or a method of authentication.

    Raises:
        EntraError: it is malformed.
    """
    asked = requested_claims(form)
    wanted = {name: asked[name] for name in SECOND_FACTOR if asked.get(name)}
    return wanted or None


def answered_claims(form: Form, resource: App, *, strong: bool = False) -> dict[str, object]:
    """Return the claims of an access token that the `claims` parameter decides.

    A resource that refuses tokens from before some time sends its clients here with that time as an
    essential `nbf`, and one that wants an authentication context with that as an essential `acrs`.
    A client that can handle such a challenge says so in `xms_cc`.
    """
    asked = requested_claims(form)
    try:
        moment = int(asked.get("nbf", {}).get("value", 0))
        capabilities = asked.get("xms_cc", {}).get("values", [])
    except (TypeError, ValueError) as exc:
        raise EntraError("invalid_request", 9002313, "The claims are malformed.") from exc
    claims: dict[str, object] = {}
    now = int(time.time())
    if now - BACKDATED.total_seconds() < moment <= now:
        claims |= {"iat": moment, "nbf": moment}
    if capabilities and "xms_cc" in resource.optional_claims:
        claims["xms_cc"] = capabilities
    context = asked.get("acrs", {}).get("value")
    if context and strong:
        claims["acrs"] = [context]
    if strong and resource.token_version == 1:
        claims["amr"] = ["pwd", "mfa"]
    return claims

"""An emulator of ACS Identity, as far as a token broker and its callers use it."""

from __future__ import annotations

import functools
import secrets
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from local.acs import auth, contract
from local.acs.contract import PREVIEW, SINCE_TEAMS, SINCE_TEAMS_PHONE, Operation, ServiceError
from local.serving.faults import Faults, middleware
from local.serving.roles import Roles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from aiohttp.typedefs import Handler

    GroupsOf = Callable[[str, str], Collection[str]]

RESOURCE_ID = "ac5ac5ac-0000-4000-8000-000000000001"

# Requests in 30 seconds, as published. Not observed: whether the service's window slides, and
# whether a create with a token counts as an issue, too.
PUBLISHED_QUOTAS = {"create": 1000, "issue": 1000, "delete": 500, "revoke": 500, "exchange": 500}
QUOTA_WINDOW = 30.0

# The ACS scope for each scope of an Entra token. Those of Teams are not observed; those for the
# clients are named as in "https://communication.azure.com/clients/VoIP.Join".
TEAMS_SCOPES = {"Teams.ManageCalls": "voip", "Teams.ManageChats": "chat"}
TEAMS_PHONE_SCOPES = {"TeamsExtension.ManageCalls": "voip"}
CLIENT_SCOPES = {
    "Chat": "chat",
    "Chat.Join": "chat.join",
    "Chat.Join.Limited": "chat.join.limited",
    "VoIP": "voip",
    "VoIP.Join": "voip.join",
}

_NO_OPERATION = Operation("", versions=())  # Of requests to the emulator's own routes.
_TEAMS_PHONE = Operation(
    "exchange_teams_extension", SINCE_TEAMS_PHONE, "exchange", for_users=auth.TEAMS
)
_TEAMS_ASSIGNMENTS = Operation("teams_assignments", SINCE_TEAMS_PHONE)
_TEAMS_ASSIGNMENT = "access/teamsExtension/tenants/{tenant}/assignments/{object}"
_ENTRA = Operation("exchange_entra", PREVIEW, "exchange", for_users=auth.CLIENTS)
_ENTRA_ASSIGNMENTS = Operation("entra_assignments", PREVIEW)

_CALLER = web.RequestKey("caller", auth.EntraUser)
_Key = TypeVar("_Key")
_Method = TypeVar("_Method", bound="Callable[[AcsEmulator, web.Request], Awaitable[web.Response]]")
_ROUTES: list[tuple[str, str, Operation, Callable[[AcsEmulator, web.Request], Any]]] = []


def _serves(method: str, path: str, operation: Operation) -> Callable[[_Method], _Method]:
    """Register an operation that a method of the emulator serves; it may serve several."""

    def register(function: _Method) -> _Method:
        _ROUTES.append((method, path, operation, function))
        return function

    return register


@dataclass(slots=True)
class Identity:
    """An identity, and the ids of its tokens that have not been revoked."""

    id: str
    tokens: set[str] = field(default_factory=set)


class AcsEmulator:
    """One ACS resource. Tests may read and change what it holds.

    Args:
        access_key: the key that requests are signed with, in base64.
        verify_bearer: returns the claims of a valid Entra token, and raises ValueError for others;
            the audience is checked here, and who has the role. None: no Entra token is accepted.
        groups_of: returns the ids of the groups of a tenant that a user is a member of.
        resource_id: the resource's immutable id, which is a part of every identity's id.
        quotas: how many requests are allowed in 30 seconds, if other than published.
    """

    def __init__(
        self,
        *,
        access_key: str,
        verify_bearer: auth.VerifyBearer | None = None,
        groups_of: GroupsOf = lambda _tenant_id, _object_id: frozenset(),
        resource_id: str = RESOURCE_ID,
        quotas: Mapping[str, int] | None = None,
    ) -> None:
        self.url = ""
        self.faults = Faults(operation.name for _, _, operation, _ in _ROUTES)
        self.roles = Roles()
        self.quotas = PUBLISHED_QUOTAS | dict(quotas or {})
        self.identities: dict[str, Identity] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.issued: Counter[str] = Counter()
        self.entra_assignments: dict[str, dict[str, Any]] = {}
        self.teams_assignments: dict[tuple[str, str], dict[str, Any]] = {}
        self._access_key = access_key
        self._verify_bearer = verify_bearer
        self._groups_of = groups_of
        self._resource_id = resource_id
        self._window_start = time.monotonic()
        self._spent: Counter[str] = Counter()
        self._signing_key = _signing_key()
        self._operations: dict[Handler, Operation] = {}

    def application(self) -> web.Application:
        """Return the HTTP application."""
        fail = middleware(
            self.faults,
            operation_of=lambda request: self._operation(request).name,
            render=lambda status: contract.of_status(status).response(),
        )
        app = web.Application(middlewares=[fail, self._gate])
        app.on_response_prepare.append(self._add_headers)
        app.add_routes([*self.faults.routes(), *self.roles.routes()])
        app.router.add_get("/_local/state", self._state)
        for method, path, operation, function in _ROUTES:
            handler = functools.partial(function, self)
            # A client whose endpoint ends in a slash asks for "//identities".
            app.router.add_route(method, f"/{{extra_slash:/?}}{path}", handler)
            self._operations[handler] = operation
        return app

    def token_is_valid(self, token: str) -> bool:
        """Return whether a token was issued here, has not expired, and was not revoked."""
        try:
            claims = jwt.decode(token, self._signing_key.public_key(), algorithms=["RS256"])
        except jwt.InvalidTokenError:
            return False
        identity = self.identities.get(f"8:{claims['skypeid']}")
        return identity is not None and claims["jti"] in identity.tokens

    def _operation(self, request: web.Request) -> Operation:
        return self._operations.get(request.match_info.handler, _NO_OPERATION)

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = self._operation(request)
        try:
            if operation is not _NO_OPERATION:
                await self._admit(request, operation)
            return await handler(request)
        except ServiceError as exc:
            return exc.response()
        except auth.DeniedError as exc:
            return ServiceError(401, "Denied", str(exc)).response()
        except web.HTTPException as exc:
            # Not observed: what the service says about a path or method that it does not know.
            return contract.of_status(exc.status).response()

    async def _admit(self, request: web.Request, operation: Operation) -> None:
        body = await request.read()
        authorization = request.headers.get("Authorization", "")
        if operation.for_users is not None:
            claims = self._claims(authorization.removeprefix("Bearer "), operation.for_users)
            request[_CALLER] = auth.entra_user(claims)
        elif authorization.startswith("Bearer "):
            claims = self._claims(authorization.removeprefix("Bearer "), auth.IDENTITY_API)
            if not self.roles.allow(claims):
                raise auth.DeniedError(contract.DENIED)
        else:
            now = datetime.now(UTC)
            auth.check_signature(request, body, access_key=self._access_key, now=now)
        contract.check_version(request, operation)
        if operation.quota is not None:
            self._spend(operation.quota, time.monotonic())

    def _claims(self, token: str, audiences: frozenset[str]) -> Mapping[str, object]:
        return auth.verified_claims(token, verify=self._verify_bearer, audiences=audiences)

    def _spend(self, quota: str, now: float) -> None:
        if now - self._window_start >= QUOTA_WINDOW:
            self._window_start = now
            self._spent.clear()
        self._spent[quota] += 1  # Refused requests count, too.
        if self._spent[quota] > self.quotas[quota]:
            wait = int(self._window_start + QUOTA_WINDOW - now) + 1
            # Not observed: the code, the message, and whether the service sends Retry-After.
            raise ServiceError(429, "TooManyRequests", "Rate limited.", Retry_After=str(wait))

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what the service sends with every answer, except Strict-Transport-Security.

        A browser would apply that header to everything else that a developer runs on loopback.
        """
        response.headers["MS-CV"] = f"{secrets.token_urlsafe(16)}.0"
        response.headers["Request-Context"] = "appId="
        response.headers["X-Azure-Ref"] = secrets.token_urlsafe(16)
        response.headers["X-Cache"] = "CONFIG_NOCACHE"
        response.headers["X-Processing-Time"] = "1ms"
        versions = self._operation(request).versions
        if versions and response.status < HTTPStatus.BAD_REQUEST:
            response.headers["api-supported-versions"] = ", ".join(versions)
        if "x-ms-client-request-id" in request.headers:
            response.headers["x-ms-client-request-id"] = request.headers["x-ms-client-request-id"]

    @_serves("POST", "identities", Operation("create", quota="create"))
    async def _create(self, request: web.Request) -> web.Response:
        body = await contract.members(request)
        if body.get("customId") is not None:
            raise contract.invalid("This emulator does not support customId.", "customId")
        wanted = body.get("createTokenWithScopes")
        scopes = contract.scopes_of(wanted, request.query["api-version"]) if wanted else []
        expires = contract.expiry_of(body)
        # The service's ids end in something that looks like a GUID, but is not one.
        identity = Identity(f"8:acs:{self._resource_id}_00000005{str(uuid.uuid4())[8:]}")
        self.identities[identity.id] = identity
        self.created.append(identity.id)
        answer: dict[str, Any] = {"identity": {"id": identity.id}}
        if scopes:
            answer["accessToken"] = self._token(identity, scopes, expires)
        return web.json_response(answer, status=201)

    @_serves("GET", "identities/{id}", Operation("get", PREVIEW))
    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response({"id": self._identity(request).id})

    @_serves("DELETE", "identities/{id}", Operation("delete", quota="delete"))
    async def _delete(self, request: web.Request) -> web.Response:
        identity = self._identity(request)
        del self.identities[identity.id]
        self.deleted.append(identity.id)
        return web.Response(status=204)

    @_serves("POST", "identities/{id}/:issueAccessToken", Operation("issue", quota="issue"))
    async def _issue(self, request: web.Request) -> web.Response:
        identity = self._identity(request)
        body = await contract.members(request)
        scopes = contract.scopes_of(body.get("scopes"), request.query["api-version"])
        return web.json_response(self._token(identity, scopes, contract.expiry_of(body)))

    @_serves("POST", "identities/{id}/:revokeAccessTokens", Operation("revoke", quota="revoke"))
    async def _revoke(self, request: web.Request) -> web.Response:
        # In the service this takes up to 15 minutes.
        self._identity(request).tokens.clear()
        return web.Response(status=204)

    @_serves(
        "POST",
        "teamsUser/:exchangeAccessToken",
        Operation("exchange_teams_user", SINCE_TEAMS, "exchange"),
    )
    async def _exchange_teams_user(self, request: web.Request) -> web.Response:
        body = await contract.members(request)
        contract.check_teams_user(body)
        try:
            user = auth.entra_user(self._claims(body["token"], auth.TEAMS))
        except auth.DeniedError as exc:
            message = "Provided access token is not valid."
            raise ServiceError(401, "InvalidAccessToken", message) from exc
        contract.check_teams_ids(body, app_id=user.client_id, user_id=user.object_id)
        result = self._exchange(f"8:orgid:{user.object_id}", user, TEAMS_SCOPES)
        return web.json_response(result["accessToken"])

    @_serves("POST", "access/teamsExtension/:exchangeAccessToken", _TEAMS_PHONE)
    async def _exchange_teams_extension(self, request: web.Request) -> web.Response:
        user = request[_CALLER]
        assignment = self.teams_assignments.get((user.tenant_id, user.object_id))
        clients = (assignment or {}).get("clientIds")
        if assignment is None or (clients and user.client_id not in clients):
            raise contract.of_status(403)  # Not observed.
        # Not observed: the form of the id.
        acs_id = f"8:acs:{self._resource_id}_{user.tenant_id}_{user.object_id}"
        return web.json_response(self._exchange(acs_id, user, TEAMS_PHONE_SCOPES))

    @_serves("POST", "access/entra/:exchangeAccessToken", _ENTRA)
    async def _exchange_entra(self, request: web.Request) -> web.Response:
        user = request[_CALLER]
        groups = self._groups_of(user.tenant_id, user.object_id)
        assignments = self.entra_assignments.values()
        if not any(_admits(assignment, user, groups) for assignment in assignments):
            raise contract.of_status(403)  # Not observed.
        acs_id = f"8:acs:{self._resource_id}_wf_{user.tenant_id}_{user.object_id}"
        return web.json_response(self._exchange(acs_id, user, CLIENT_SCOPES))

    @_serves("GET", "access/entra/assignments", _ENTRA_ASSIGNMENTS)
    async def _list_entra_assignments(self, _request: web.Request) -> web.Response:
        return web.json_response({"value": list(self.entra_assignments.values())})

    @_serves("PATCH", "access/entra/assignments", _ENTRA_ASSIGNMENTS)
    async def _patch_entra_assignments(self, request: web.Request) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            raise web.HTTPUnsupportedMediaType
        removed: list[str] = []
        changed: dict[str, dict[str, Any]] = {}
        for object_id, patch in (await contract.members(request)).items():
            if patch is None:
                removed.append(object_id)
                continue
            before = self.entra_assignments.get(object_id, {})
            merged = before | contract.json_object(patch)
            changed[object_id] = contract.entra_assignment(object_id, merged)
        self.entra_assignments |= changed
        for object_id in removed:
            self.entra_assignments.pop(object_id, None)
        if not changed:
            return web.Response(status=204)
        return web.json_response({"value": list(changed.values())})

    @_serves("GET", "access/entra/assignments/{object}", _ENTRA_ASSIGNMENTS)
    @_serves("PUT", "access/entra/assignments/{object}", _ENTRA_ASSIGNMENTS)
    @_serves("DELETE", "access/entra/assignments/{object}", _ENTRA_ASSIGNMENTS)
    async def _entra_assignment(self, request: web.Request) -> web.Response:
        object_id = request.match_info["object"]
        make = functools.partial(contract.entra_assignment, object_id)
        return await _one_assignment(request, self.entra_assignments, object_id, make)

    @_serves("GET", _TEAMS_ASSIGNMENT, _TEAMS_ASSIGNMENTS)
    @_serves("PUT", _TEAMS_ASSIGNMENT, _TEAMS_ASSIGNMENTS)
    @_serves("DELETE", _TEAMS_ASSIGNMENT, _TEAMS_ASSIGNMENTS)
    async def _teams_assignment(self, request: web.Request) -> web.Response:
        key = (request.match_info["tenant"], request.match_info["object"])
        make = functools.partial(contract.teams_assignment, *key)
        return await _one_assignment(request, self.teams_assignments, key, make)

    async def _state(self, _request: web.Request) -> web.Response:
        state = {
            "live": list(self.identities),
            "created": self.created,
            "deleted": self.deleted,
            "issued": self.issued,
        }
        return web.json_response(state)

    def _identity(self, request: web.Request) -> Identity:
        try:
            return self.identities[request.match_info["id"]]
        except KeyError as exc:
            # Not observed: the answer for an identity that is unknown or of another resource.
            raise ServiceError(404, "NotFound", "Identity was not found.") from exc

    def _exchange(
        self, acs_id: str, user: auth.EntraUser, scope_names: Mapping[str, str]
    ) -> dict[str, dict[str, str]]:
        scopes = [name for granted, name in scope_names.items() if granted in user.scopes]
        if not scopes:
            raise contract.of_status(403)  # Not observed.
        identity = self.identities.setdefault(acs_id, Identity(acs_id))
        # The real service encrypts some of these tokens, so that clients cannot read them.
        token = self._token(identity, scopes, user.expires * contract.SECOND)
        return {"identity": {"id": acs_id}, "accessToken": token}

    def _token(self, identity: Identity, scopes: Iterable[str], expires: int) -> dict[str, str]:
        issued_at = int(time.time())
        # No jti has been seen in the service's tokens. Here it distinguishes tokens issued in the
        # same second, one of which may be revoked.
        token_id = secrets.token_urlsafe(8)
        claims = {
            "skypeid": identity.id.removeprefix("8:"),
            "scp": 1792,
            "csi": str(issued_at),
            "exp": expires // contract.SECOND,
            "acsScope": ",".join(scopes),
            "resourceId": self._resource_id,
            "resourceLocation": "unitedstates",
            "iat": issued_at,
            "jti": token_id,
        }
        headers = {"kid": "106", "x5t": "oP1aqBy_GxYSzRixnCnstNOSjvs"}
        token = jwt.encode(claims, self._signing_key, algorithm="RS256", headers=headers)
        identity.tokens.add(token_id)
        self.issued[identity.id] += 1
        return {"token": token, "expiresOn": contract.timestamp(expires)}


@functools.cache
def _signing_key() -> rsa.RSAPrivateKey:
    """Return the key that all emulators of this process share: making one takes long."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _admits(assignment: Mapping[str, Any], user: auth.EntraUser, groups: Collection[str]) -> bool:
    """Return whether an assignment admits the user, with the app that they use."""
    principals = {"user": {user.object_id}, "tenant": {user.tenant_id}, "group": groups}
    return (
        assignment["objectId"] in principals[assignment["principalType"]]
        and assignment["tenantId"] == user.tenant_id
        and user.client_id in assignment["clientIds"]
    )


async def _one_assignment(
    request: web.Request,
    assignments: dict[_Key, dict[str, Any]],
    key: _Key,
    make: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> web.Response:
    """Read, put or delete one assignment; deleting one that does not exist is no error."""
    if request.method == "DELETE":
        assignments.pop(key, None)
        return web.Response(status=204)
    known = key in assignments
    if request.method == "PUT":
        assignments[key] = make(await contract.members(request))
    elif not known:
        raise ServiceError(404, "NotFound", "Assignment was not found.")  # Not observed.
    return web.json_response(assignments[key], status=200 if known else 201)

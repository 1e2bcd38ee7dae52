"""What the broker does for a caller: authenticate, issue a token, read or create the identity."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared import audit
from shared.acs.identity import AcsToken
from shared.errors import (
    BrokerError,
    InvalidRequestError,
    RevokedTokenError,
    ScopeNotAllowedError,
    UserNotFoundError,
)
from shared.mappings.identities import utc_now
from shared.mappings.table import IdentityMapping
from shared.rate_limit import RateLimit
from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime, timedelta

    from shared.acs.identity import AcsIdentity
    from shared.entra.access_tokens import AccessTokenValidator, Caller
    from shared.entra.signing_keys import SigningKeys
    from shared.http import TokenRequest
    from shared.identifiers import Person
    from shared.mappings.identities import Identities
    from shared.mappings.table import IdentityMappings
    from shared.settings import AcsSettings

MAX_REMEMBERED = 50_000
READY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """An ACS access token, and the ACS identity that it is for."""

    token: str = field(repr=False)
    expires_on: datetime
    acs_id: str

    def as_json(self) -> dict[str, object]:
        """Return the shape that every published ACS client reads."""
        return {
            "token": self.token,
            "expiresOn": self.expires_on.isoformat(),
            "user": user_json(self.acs_id),
        }


def user_json(acs_id: str) -> dict[str, object]:
    """Return an ACS user; the published clients differ in which of the two names they read."""
    return {"communicationUserId": acs_id, "id": acs_id}


class Broker:
    """Validates callers' Entra tokens, finds their ACS identities and issues ACS tokens."""

    def __init__(  # noqa: PLR0913 - each is a part that tests replace
        self,
        *,
        settings: AcsSettings,
        validator: AccessTokenValidator,
        identities: Identities,
        acs: AcsIdentity,
        mappings: IdentityMappings,
        keys: SigningKeys,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._validator = validator
        self._identities = identities
        self._acs = acs
        self._mappings = mappings
        self._keys = keys
        self._clock = clock
        self._monotonic = monotonic
        self._rate_limit = RateLimit(clock=monotonic)
        self._issuing = SingleFlight[tuple[IdentityMapping, AcsToken]]()
        self._known_ids: dict[Person, str] = {}
        self._probing = SingleFlight[BrokerError | None]()
        self._probed: BrokerError | None = None
        self._probed_until = float("-inf")

    async def authenticate(self, access_token: str) -> Caller:
        """Return the caller that an Entra access token was issued for.

        Raises:
            InvalidTokenError, TenantNotAllowedError, InsufficientScopeError,
            ClientNotAllowedError, KeysUnavailableError: as `AccessTokenValidator.validate` does.
            RateLimitedError: the caller sends too many requests.
        """
        caller = await self._validator.validate(access_token, now=self._clock())
        self._rate_limit.take(caller.person)
        return caller

    async def issue(self, caller: Caller, request: TokenRequest) -> IssuedToken:
        """Issue an ACS token for the caller; the first call creates the ACS identity.

        Raises:
            InvalidRequestError, ScopeNotAllowedError: the request is for more than the settings
                allow.
            RevokedTokenError: the caller signed out everywhere after the token was issued.
            BusyError: another request is creating or deleting the same identity.
            StorageUnavailableError, IdentityGoneError, Upstream…Error: Table Storage or ACS failed.
        """
        scopes = granted_scopes(request.scopes, self._settings)
        lifetime = granted_lifetime(request.lifetime, self._settings)
        mapping, token = await self._issuing.run(
            (caller.person, caller.issued_at, scopes, lifetime),
            lambda: self._issue(caller, scopes, lifetime),
        )
        audit.note(acs_id=mapping.acs_id, scopes=",".join(sorted(scopes)))
        return IssuedToken(token.token, token.expires_on, mapping.acs_id)

    async def find_user(self, caller: Caller) -> str:
        """Return the caller's ACS identity.

        Raises:
            UserNotFoundError: the caller has no ACS identity.
            RevokedTokenError, StorageUnavailableError: as `issue` does.
        """
        mapping = await self._identities.find(caller.person)
        if mapping is None:
            raise UserNotFoundError("no active mapping")
        refuse_revoked(caller, mapping)
        audit.note(acs_id=mapping.acs_id)
        return mapping.acs_id

    async def create_user(self, caller: Caller) -> str:
        """Return the caller's ACS identity; create it if necessary. Raises as `issue` does."""
        mapping = await self._identities.get_or_create(caller.person)
        refuse_revoked(caller, mapping)
        audit.note(acs_id=mapping.acs_id)
        return mapping.acs_id

    async def check_ready(self) -> None:
        """Raise KeysUnavailableError or StorageUnavailableError if tokens cannot be issued.

        The result is kept for ten seconds. ACS is not asked: its outage would take every instance
        out of service, and replacing instances would not help.
        """
        if self._monotonic() >= self._probed_until:
            self._probed = await self._probing.run("ready", self._probe)
            self._probed_until = self._monotonic() + READY_SECONDS
        if self._probed is not None:
            # The same error is raised many times: its traceback must not grow each time.
            raise self._probed.with_traceback(None)

    async def _probe(self) -> BrokerError | None:
        try:
            await self._keys.load()
            await self._mappings.server_time()  # Any answer from the table will do.
        except BrokerError as error:
            return error
        return None

    async def _issue(
        self, caller: Caller, scopes: frozenset[str], lifetime: timedelta
    ) -> tuple[IdentityMapping, AcsToken]:
        """Read the row and, if the identity is known already, issue the token at the same time.

        A token issued early is thrown away unless the row names the same identity, and the caller's
        Entra token has not been revoked.
        """
        person = caller.person

        def issue(acs_id: str) -> Awaitable[AcsToken]:
            return self._acs.issue(acs_id, scopes=scopes, lifetime=lifetime, now=self._clock())

        # Put back below, on success: for a caller who was refused, no token is issued early again.
        known_id = self._known_ids.pop(person, None)
        if known_id is not None:
            mapping, early = await asyncio.gather(
                self._identities.get_or_create(person), issue(known_id), return_exceptions=True
            )
            if isinstance(mapping, BaseException):
                raise mapping
        else:
            mapping, early = await self._identities.get_or_create(person), None
        refuse_revoked(caller, mapping)
        if early is None or mapping.acs_id != known_id:
            early = await issue(mapping.acs_id)
        if isinstance(early, BaseException):
            raise early
        self._known_ids[person] = mapping.acs_id
        if len(self._known_ids) > MAX_REMEMBERED:
            del self._known_ids[next(iter(self._known_ids))]
        return mapping, early


def granted_scopes(asked: frozenset[str] | None, settings: AcsSettings) -> frozenset[str]:
    """Return the ACS scopes to ask for: the requested ones, or all that the settings allow.

    Raises:
        ScopeNotAllowedError: the settings do not allow a requested scope.
    """
    if asked is None:
        return frozenset(settings.scopes)
    if not asked.issubset(settings.scopes):
        raise ScopeNotAllowedError("scopes beyond ACS_TOKEN_SCOPES")
    return asked


def granted_lifetime(asked: timedelta | None, settings: AcsSettings) -> timedelta:
    """Return the lifetime to ask for.

    Raises:
        InvalidRequestError: it is longer than the settings allow.
    """
    if asked is None:
        return settings.lifetime
    if asked > settings.max_lifetime:
        raise InvalidRequestError("expiresInMinutes above ACS_TOKEN_MAX_LIFETIME_MINUTES")
    return asked


def refuse_revoked(caller: Caller, mapping: IdentityMapping) -> None:
    """Refuse an Entra token that is older than the caller's last "sign out everywhere".

    The challenge asks for a token from after it, in the form that MSAL passes on to Entra:
    https://learn.microsoft.com/entra/identity-platform/claims-challenge

    Raises:
        RevokedTokenError: it is.
    """
    if mapping.revoked_before is None:
        return
    mark = math.ceil(mapping.revoked_before.timestamp())
    if caller.issued_at < mark:
        claims = {"access_token": {"nbf": {"essential": True, "value": str(mark)}}}
        raise RevokedTokenError(
            "issued before the revocation",
            claims=base64.b64encode(json.dumps(claims).encode()).decode(),
        )

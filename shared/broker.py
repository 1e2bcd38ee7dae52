"""What the broker does for a caller: issue a token, read, create or erase the identity, revoke."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from shared import audit
from shared.acs.tokens import AcsToken
from shared.clock import utc_now
from shared.entra.access_tokens import Caller
from shared.errors import (
    BrokerError,
    IdentityGoneError,
    RevokedTokenError,
    StorageUnavailableError,
    UserNotFoundError,
)
from shared.mappings.identities import is_in_future, refuse_gone
from shared.policy import Policy
from shared.rate_limit import RateLimit
from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from shared.acs.identity import AcsIdentity
    from shared.entra.access_tokens import AccessTokenValidator, Administrator
    from shared.entra.signing_keys import SigningKeys
    from shared.identifiers import Person
    from shared.mappings.endings import Endings
    from shared.mappings.identities import Identities
    from shared.mappings.table import IdentityMapping, IdentityMappings
    from shared.requests import TokenRequest
    from shared.settings import AcsSettings
    from shared.trust_policy import TrustPolicy

    Issue = Callable[[str, datetime | None], Awaitable[AcsToken]]

MAX_REMEMBERED = 50_000
READY_SECONDS = 10
# For so long after a mark, a token is issued only after the row was read: one that was issued
# beside it might have been caught by the second revocation.
RECENTLY = timedelta(minutes=10)


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
        endings: Endings,
        acs: AcsIdentity,
        mappings: IdentityMappings,
        keys: SigningKeys,
        policy: TrustPolicy | None = None,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = Policy(settings, policy)
        self._validator = validator
        self._identities = identities
        self._endings = endings
        self._acs = acs
        self._mappings = mappings
        self._keys = keys
        self._clock = clock
        self._monotonic = monotonic
        self._rate_limit = RateLimit(clock=monotonic)
        self._administrators_limit = RateLimit(clock=monotonic, burst=300, per_second=10)
        self._issuing = SingleFlight[AcsToken]()
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

    async def authenticate_administrator(self, access_token: str) -> Administrator:
        """Return the administrator that an Entra access token was issued for.

        An administrator who has signed out everywhere needs a new token here, too: a stolen one can
        do more harm here than anywhere else.

        Raises:
            AdminRequiredError: the caller does not have the app role.
            RevokedTokenError, StorageUnavailableError: as `issue` does. Others as `authenticate`.
        """
        administrator = await self._validator.validate_administrator(
            access_token, now=self._clock()
        )
        self._administrators_limit.take(administrator.person)
        refuse_revoked(administrator, await self._mappings.read(administrator.person))
        return administrator

    async def issue(self, caller: Caller, request: TokenRequest) -> IssuedToken:
        """Issue an ACS token for the caller; the first call creates the ACS identity.

        Raises:
            InvalidRequestError, ScopeNotAllowedError, NotPermittedError, StepUpRequiredError,
                InsufficientClaimsError: as `Policy.token` does.
            RevokedTokenError: the caller signed out everywhere after the token was issued.
            BusyError: another request is creating or deleting the same identity, or more people ask
                than ACS can serve in time.
            StorageUnavailableError, IdentityGoneError, Upstream…Error: Table Storage or ACS failed.
        """
        grant = self._policy.token(caller, request.scopes, request.lifetime)
        acs_id, token = await self._issue(caller, grant.scopes, grant.lifetime)
        audit.note(acs_id=acs_id, scopes=",".join(sorted(grant.scopes)))
        return IssuedToken(token.token, token.expires_on, acs_id)

    async def find_user(self, caller: Caller) -> str:
        """Return the caller's ACS identity.

        Raises:
            UserNotFoundError: the caller has no ACS identity.
            RevokedTokenError, IdentityGoneError, StorageUnavailableError: as `issue` does.
        """
        mapping = await self._identities.find(caller.person, admit=partial(refuse_revoked, caller))
        if mapping is None:
            raise UserNotFoundError("no active mapping")
        await self._check_owner(mapping)
        audit.note(acs_id=mapping.acs_id)
        return mapping.acs_id

    async def create_user(self, caller: Caller) -> str:
        """Return the caller's ACS identity; create it if necessary. Raises as `issue` does."""
        self._policy.check_identity(caller)
        mapping = await self._mapping(caller)
        refuse_gone(mapping)
        await self._check_owner(mapping)
        audit.note(acs_id=mapping.acs_id)
        return mapping.acs_id

    async def revoke(self, caller: Caller) -> bool:
        """Sign the caller out everywhere; True if ACS has been told. Raises as `Endings.revoke`."""
        return await self._endings.revoke(caller.person, admit=partial(refuse_revoked, caller))

    async def erase(self, caller: Caller) -> bool:
        """Erase the caller's identity; True if it is done. Raises as `Endings.erase`."""
        return await self._endings.erase(
            caller.person, reason="erased_by_user", admit=partial(refuse_revoked, caller)
        )

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

    async def _mapping(self, caller: Caller) -> IdentityMapping:
        admit = partial(refuse_revoked, caller, policy=self._policy)
        return await self._identities.get_or_create(caller.person, admit=admit)

    async def _issue(
        self, caller: Caller, scopes: frozenset[str], lifetime: timedelta
    ) -> tuple[str, AcsToken]:
        """Read the row and, if the identity is known already, issue the token at the same time.

        A token issued early is thrown away unless the row, read after the request began, names the
        same identity, and the caller's Entra token has not been revoked.
        """
        person = caller.person
        issue = partial(self._issue_for, caller=caller, scopes=scopes, lifetime=lifetime)
        known_id = self._known_ids.get(person)
        early: AcsToken | BaseException | None = None
        mapping: IdentityMapping | BaseException
        if known_id is None:
            with self._acs.expect_issue(person):
                mapping = await self._mapping(caller)
        else:
            issuing = issue(known_id, None)  # Raises before the row is read if there is no time.
            mapping, early = await asyncio.gather(
                self._mapping(caller), issuing, return_exceptions=True
            )
        if isinstance(mapping, BaseException):
            # For a caller who was refused, no token is issued early again.
            self._known_ids.pop(person, None)
            raise mapping
        if early is None or mapping.acs_id != known_id or _is_recently_revoked(mapping):
            mapping, token = await self._issue_late(caller, mapping, issue)
        elif isinstance(early, IdentityGoneError):
            mapping, token = await self._issue_healed(caller, mapping, issue)
        elif isinstance(early, BaseException):
            raise early
        else:
            token = early
        if mapping.gone_on is not None:
            with suppress(StorageUnavailableError):  # ACS knows it after all.
                await self._mappings.change(mapping, gone_on=None)
        self._remember(person, mapping.acs_id)
        return mapping.acs_id, token

    async def _issue_late(
        self, caller: Caller, mapping: IdentityMapping, issue: Issue
    ) -> tuple[IdentityMapping, AcsToken]:
        try:
            # At the same time, so that the first request does not take longer for it.
            token, _ = await asyncio.gather(
                issue(mapping.acs_id, mapping.revoked_before), self._check_owner(mapping)
            )
        except IdentityGoneError:
            return await self._issue_healed(caller, mapping, issue)
        return mapping, token

    async def _issue_healed(
        self, caller: Caller, mapping: IdentityMapping, issue: Issue
    ) -> tuple[IdentityMapping, AcsToken]:
        """Give up an identity that ACS does not know, if that is allowed, and issue for a new one.

        Raises:
            IdentityGoneError: the person has to wait for the operator.
        """
        self._known_ids.pop(caller.person, None)
        await self._endings.heal(mapping)
        mapping = await self._mapping(caller)
        return mapping, await issue(mapping.acs_id, mapping.revoked_before)

    def _issue_for(
        self,
        acs_id: str,
        mark: datetime | None,
        *,
        caller: Caller,
        scopes: frozenset[str],
        lifetime: timedelta,
    ) -> asyncio.Future[AcsToken]:
        """Issue a token; requests with the same Entra token for the same share one call of ACS.

        That is safe although the call may have begun earlier: whether the token may be handed out,
        each request decides by the row that it reads itself.

        Args:
            acs_id: the identity.
            mark: the one in the row, None if the row was not read yet. A call from before the row
                was read is not joined after a revocation, which may have caught its token.
            caller: whose Entra token it is.
            scopes: of the token.
            lifetime: of the token.

        Raises:
            BusyError, UpstreamThrottledError, UpstreamUnavailableError: now, not when the result is
                awaited, if no call is made.
        """
        return self._issuing.start(
            (acs_id, mark, caller.issued_at, scopes, lifetime),
            lambda: self._acs.issue(
                acs_id,
                scopes=scopes,
                lifetime=lifetime,
                now=self._clock(),
                person=caller.person,
            ),
        )

    async def _check_owner(self, mapping: IdentityMapping) -> None:
        """Refuse a row that names somebody else's identity, as after a restore or an edit by hand.

        The index is asked once for each person and process; what is remembered, it has confirmed.

        Raises:
            StorageUnavailableError: it does.
        """
        if self._known_ids.get(mapping.person) != mapping.acs_id:
            await self._identities.check_owner(mapping)
            self._remember(mapping.person, mapping.acs_id)

    def _remember(self, person: Person, acs_id: str) -> None:
        """Remember whose identity it is, so that the next token can be issued early."""
        self._known_ids.pop(person, None)
        self._known_ids[person] = acs_id
        if len(self._known_ids) > MAX_REMEMBERED:
            del self._known_ids[next(iter(self._known_ids))]


def _is_recently_revoked(mapping: IdentityMapping) -> bool:
    mark = mapping.revoked_before
    return mark is not None and mapping.now < mark + RECENTLY


def refuse_revoked(
    caller: Caller | Administrator, mapping: IdentityMapping, policy: Policy | None = None
) -> None:
    """Refuse an Entra token that is older than the caller's last "sign out everywhere".

    The challenge asks for a token from after it, in the form that MSAL passes on to Entra:
    https://learn.microsoft.com/entra/identity-platform/claims-challenge
    It also asks for what the policy demands: a new token has only what was asked for, and with one
    challenge after the other, an app would go back and forth between the two.

    Raises:
        RevokedTokenError: it is.
        StorageUnavailableError: the mark is in the future, so no new token would help.
    """
    if mapping.revoked_before is None:
        return
    mark = math.ceil(mapping.revoked_before.timestamp())
    if caller.issued_at >= mark:
        return
    if is_in_future(mapping.revoked_before, mapping.now):
        fields = {"reason": f"revokedBefore is {mapping.revoked_before.isoformat()}"}
        audit.record("mapping_in_future", fields | mapping.person._asdict(), level=logging.ERROR)
        raise StorageUnavailableError("a row with a mark in the future")
    demands = policy.demands(caller) if policy and isinstance(caller, Caller) else None
    raise RevokedTokenError("issued before the revocation", mark=mark, demands=demands)

"""The ACS Identity operations that the broker uses, through Microsoft's SDK.

The SDK does not check what it gets (`id` may be None, `expires_on` any text), repeats creates after
a 5xx, sleeps for as long as Retry-After says, and limits only the time between two bytes. So each
call here sets its retries and its time limit, and checks the answer.
https://learn.microsoft.com/rest/api/communication/identity
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from azure.communication.identity import CommunicationUserIdentifier
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseTimeoutError,
)

from shared import audit
from shared.acs.breaker import Breaker
from shared.acs.gate import Gate
from shared.acs.tokens import check_contents, checked_token
from shared.errors import (
    BrokerError,
    ForeignIdentityError,
    IdentityGoneError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from shared.identifiers import ACS_ID
from shared.retry_after import seconds_of
from shared.retry_budget import RetryBudget
from shared.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
    from contextlib import AbstractContextManager
    from datetime import datetime

    from azure.communication.identity.aio import CommunicationIdentityClient
    from azure.core.credentials import AccessToken

    from shared.acs.gate import Turn
    from shared.acs.tokens import AcsToken
    from shared.identifiers import Person

OPERATION_SECONDS = 4  # For the whole call; the SDK's read timeout starts again with every byte.
BOUNDS: dict[str, Any] = {"connection_timeout": 1, "read_timeout": 3, "permit_redirects": False}
# By default, the SDK raises the same for ACS's 401 as a credential that gets no token.
ERRORS: dict[str, Any] = {"error_map": {HTTPStatus.UNAUTHORIZED: HttpResponseError}}
# Repeating a create may make two identities. aiohttp itself repeats a DELETE once.
ONCE: dict[str, Any] = {"retry_total": 0, **BOUNDS, **ERRORS}
EXPIRY_TOLERANCE = timedelta(minutes=5)
MAX_LOGGED = 200  # characters


class AcsIdentity:
    """Creates and deletes ACS identities, and issues tokens for them.

    Every method raises one of the `Upstream…` errors if ACS fails, refuses us, or gives an answer
    that cannot be used.
    """

    def __init__(self, *, client: CommunicationIdentityClient) -> None:
        self._client = client
        self._prefix: str | None = None  # Of the ids of our resource.
        self._probing = SingleFlight[None]()
        # What requests wait for. Each may fail while the other works. Revocations and deletions are
        # left out: they are stored, and the timers that finish them have brakes of their own.
        self._creating, self._issuing = Breaker("create"), Breaker("issue")
        self._to_create, self._to_issue = Gate("create"), Gate("issue")
        self._retries = RetryBudget()

    @asynccontextmanager
    async def turn_to_create(self, person: Person) -> AsyncIterator[Turn]:
        """Wait until an identity may be created for a person, and let others wait for its end.

        It is for the caller to enter before storing that a create begins: then nothing is stored
        that would have to be taken back, and what is refused has certainly created nothing.

        Raises:
            UpstreamUnavailableError: creates keep failing.
            BusyError, UpstreamThrottledError: ACS's quota is needed for others. Whoever gets an
                identity needs a token next, so that is looked at as well.
        """
        self._to_issue.check_newcomer(person)
        self._creating.admit()
        async with self._to_create.turn(person) as turn:
            yield turn

    async def create(self) -> str:
        """Create an identity and return its id. Never repeated: a failure may have created one."""
        with self._creating.watch():
            return await self._create()

    async def _create(self) -> str:
        try:
            async with _translated():
                user = await self._client.create_user(**ONCE)
        except IdentityGoneError as exc:
            raise without_identity(exc) from exc
        acs_id: str | None = user.properties["id"]
        if not acs_id or not ACS_ID.fullmatch(acs_id):
            # An id of a form that we do not know is logged, so that it is not lost.
            audit.record(
                "identity_refused", {"acs_id": str(acs_id)[:MAX_LOGGED]}, level=logging.ERROR
            )
            raise UpstreamBadResponseError("create: no identity id")
        self._prefix = _prefix_of(acs_id)
        return acs_id

    async def owns(self, acs_id: str) -> bool:
        """Return whether an identity belongs to the ACS resource that we call.

        Every id carries the resource's immutable id. Ours is learned from an identity made here: if
        there was none yet, one is made and deleted.
        """
        if not ACS_ID.fullmatch(acs_id):
            return False
        if self._prefix is None:
            await self._probing.run("probe", self._probe)
        return _prefix_of(acs_id) == self._prefix

    async def _probe(self) -> None:
        """Make an identity, so that the resource's id is known, and delete it."""
        probe = await self._create()
        try:
            await self._delete(probe)
        except BrokerError as error:
            # It has no token, and never will have: that is no reason to fail.
            fields = {"acs_id": probe, "code": error.code, "reason": str(error)}
            audit.record("probe_not_deleted", fields, level=logging.WARNING)

    async def revoke(self, acs_id: str) -> None:
        """Revoke all tokens of an identity; ACS may need up to 15 minutes for it.

        https://learn.microsoft.com/azure/communication-services/concepts/authentication

        Raises:
            IdentityGoneError: ACS does not know the identity.
        """
        async with _translated():
            await self._client.revoke_tokens(CommunicationUserIdentifier(acs_id), **ONCE)

    def expect_issue(self, person: Person) -> AbstractContextManager[None]:
        """Count somebody who will need a token when some work is done.

        Raises:
            BusyError, UpstreamThrottledError: there would be no time for it, so the work is wasted.
        """
        return self._to_issue.expect(person)

    def issue(
        self,
        acs_id: str,
        *,
        scopes: Iterable[str],
        lifetime: timedelta,
        now: datetime,
        person: Person,
    ) -> Coroutine[Any, Any, AcsToken]:
        """Issue an access token for an identity.

        Whether that can be done in time is decided when this is called, not when it is awaited.

        Args:
            acs_id: the identity.
            scopes: of the token.
            lifetime: of the token.
            now: the time.
            person: whose share of ACS's quota it takes.

        Raises:
            IdentityGoneError: ACS does not know the identity.
            UpstreamUnavailableError: also if it keeps failing, so that ACS was not called.
            BusyError, UpstreamThrottledError: it would not be this person's turn in time.
        """
        self._issuing.admit()
        return self._issue(self._to_issue.turn(person), acs_id, sorted(scopes), lifetime, now)

    async def _issue(
        self, turn: Turn, acs_id: str, asked: list[str], lifetime: timedelta, now: datetime
    ) -> AcsToken:
        async with turn:
            with self._issuing.watch():
                return await self._checked_token(acs_id, asked, lifetime, now)

    async def _checked_token(
        self, acs_id: str, asked: list[str], lifetime: timedelta, now: datetime
    ) -> AcsToken:
        async with _translated():
            answer = await self._get_token(acs_id, asked, lifetime)
        # The SDK's type says int; what it passes on is ACS's ISO 8601 text.
        issued = checked_token(answer.token, answer.expires_on)
        if abs(issued.expires_on - now - lifetime) > EXPIRY_TOLERANCE:
            raise UpstreamBadResponseError("the lifetime is not the one asked for")
        check_contents(issued.token, acs_ids={acs_id}, scopes=asked)
        return issued

    async def _get_token(self, acs_id: str, scopes: list[str], lifetime: timedelta) -> AccessToken:
        """Call ACS; once more if the connection broke, never after an answer.

        "All requests accrue against your usage limits",
        https://learn.microsoft.com/azure/communication-services/concepts/service-limits
        """

        def ask() -> Awaitable[AccessToken]:
            return self._client.get_token(
                CommunicationUserIdentifier(acs_id),
                list(scopes),
                token_expires_in=lifetime,
                **ONCE,
            )

        self._retries.earn()
        try:
            return await ask()
        except ServiceRequestError:
            if not self._retries.spend():
                raise
            return await ask()

    async def delete(self, acs_id: str) -> None:
        """Delete an identity with all its tokens and data; it is no error if it is gone already.

        Raises:
            ForeignIdentityError: it belongs to another ACS resource, which would say that it is
                gone already.
        """
        if not await self.owns(acs_id):
            raise ForeignIdentityError("the identity belongs to another ACS resource")
        await self._delete(acs_id)

    async def _delete(self, acs_id: str) -> None:
        try:
            async with _translated():
                await self._client.delete_user(CommunicationUserIdentifier(acs_id), **ONCE)
        except IdentityGoneError:
            return


def _prefix_of(acs_id: str) -> str:
    """Return the cloud and the resource in an id, exactly as ACS writes them."""
    return acs_id.partition("_")[0]


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        with audit.timed("acs_ms"):
            async with asyncio.timeout(OPERATION_SECONDS):
                yield
    except Exception as exc:
        raise error_of(exc) from exc


def error_of(exc: Exception) -> BrokerError:
    """Return the error for an exception that the SDK raised.

    The exception's own text is left out: it may quote ACS's answer.
    """
    name = type(exc).__name__
    if isinstance(exc, TimeoutError | ServiceRequestTimeoutError | ServiceResponseTimeoutError):
        return UpstreamTimeoutError(name)
    if isinstance(exc, ServiceRequestError):
        return UpstreamUnavailableError(name)
    if isinstance(exc, ClientAuthenticationError):  # A credential got no token: ACS was not asked.
        return UpstreamAuthError(name)
    if isinstance(exc, HttpResponseError) and exc.status_code is not None:
        wait = seconds_of(getattr(exc.response, "headers", None) or {})
        return error_of_status(exc.status_code, wait)
    return UpstreamBadResponseError(name)


def error_of_status(status: int, wait: float | None) -> BrokerError:
    """Return the error for the status of an answer, which may say how many seconds to wait."""
    reason = f"ACS answered {status}"
    error: BrokerError = UpstreamBadResponseError(reason)
    if status in {401, 403}:
        error = UpstreamAuthError(reason)
    elif status == HTTPStatus.NOT_FOUND:
        error = IdentityGoneError(reason)
    elif status == HTTPStatus.TOO_MANY_REQUESTS or (status in range(400, 500) and wait):
        error = UpstreamThrottledError(reason, retry_after=wait)
    elif status == HTTPStatus.REQUEST_TIMEOUT:
        error = UpstreamTimeoutError(reason)
    elif status in range(500, 600):
        error = UpstreamUnavailableError(reason, retry_after=wait)
    error.answered = status
    return error


def without_identity(error: BrokerError) -> BrokerError:
    """Return an error for a request that names no identity: 404 is then no answer of ACS's."""
    if isinstance(error, IdentityGoneError):
        answered, error = error.answered, UpstreamBadResponseError(str(error))
        error.answered = answered
    return error

"""What the broker does for a caller who is somebody at ACS already: an Entra ID or a Teams user.

No identity is created, and none is remembered: ACS knows the person by the Entra token. The table
is read all the same, since whoever signs out everywhere is signed out here, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from shared import audit
from shared.acs.exchange import UserTokenRefusedError
from shared.broker import refuse_revoked, user_json
from shared.clock import utc_now
from shared.entra.held_tokens import check_held_token
from shared.errors import (
    NotEnabledError,
    RevokedTokenError,
    UnusableTokenError,
    UpstreamBadResponseError,
)
from shared.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from shared.acs.exchange import AcsExchange
    from shared.acs.tokens import AcsToken
    from shared.entra.access_tokens import Caller
    from shared.entra.on_behalf_of import OnBehalfOf
    from shared.exchange_kinds import ExchangeKind
    from shared.identifiers import Person
    from shared.mappings.table import IdentityMapping, IdentityMappings
    from shared.settings import Settings

# With less time left, the SDKs of ACS would ask for a token again at once.
LEAST_LIFETIME = timedelta(minutes=10)
# What may pass until a token that the caller holds has become one of ACS's.
SPARE = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class ExchangedToken:
    """An ACS access token, and the user that it is for."""

    token: str = field(repr=False)
    expires_on: datetime
    user: dict[str, object]

    def as_json(self) -> dict[str, object]:
        """Return the shape that every published ACS client reads."""
        return {
            "token": self.token,
            "expiresOn": self.expires_on.isoformat(),
            "user": self.user,
        }


class Exchange:
    """Exchanges callers' Entra tokens for ACS tokens of the same people."""

    def __init__(
        self,
        *,
        settings: Settings,
        entra: OnBehalfOf,
        acs: AcsExchange,
        mappings: IdentityMappings,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings.entra
        self._policy = Policy(settings.acs, settings.policy)
        self._kinds = settings.exchanges
        self._entra = entra
        self._acs = acs
        self._mappings = mappings
        self._clock = clock

    async def for_entra_user(
        self, caller: Caller, access_token: str, held: str | None
    ) -> ExchangedToken:
        """Return an ACS token of the caller as an Entra ID user.

        Args:
            caller: whom the access token was issued for.
            access_token: the caller's, for the broker.
            held: an Entra token for ACS, if the caller has sent one.

        Raises:
            NotEnabledError: the settings do not turn this exchange on.
            UnusableTokenError: the token that the caller has sent cannot be exchanged.
            RevokedTokenError: the caller signed out everywhere after the token was issued.
            NotPermittedError, StepUpRequiredError, InsufficientClaimsError: as
                `Policy.check_exchange` does.
            NotAssignedError: the caller has no access to the ACS resource.
            StorageUnavailableError, Upstream…Error: Table Storage or ACS failed. Others as
                `OnBehalfOf.token`.
        """
        return await self._exchange(self._kinds.entra, caller, access_token, held)

    async def for_teams_user(
        self, caller: Caller, access_token: str, held: str | None
    ) -> ExchangedToken:
        """Return an ACS token of the caller as a Teams user. Arguments as for `for_entra_user`."""
        return await self._exchange(self._kinds.teams, caller, access_token, held)

    async def _exchange(
        self, kind: ExchangeKind | None, caller: Caller, access_token: str, held: str | None
    ) -> ExchangedToken:
        if kind is None:
            raise NotEnabledError("not in ACS_EXCHANGES")
        audit.note(kind=kind.name, held=held is not None)
        self._policy.check_exchange(caller, kind.name)
        mapping = await self._mappings.read(caller.person)
        refuse_revoked(caller, mapping, self._policy)
        if held is None:
            client_id: str | None = self._settings.client_id
            entra_token = await self._entra.token(
                access_token, tenant_id=caller.person.tenant_id, scopes=kind.scopes
            )
        else:
            self._check_held(held, kind, caller, mapping)
            client_id, entra_token = caller.client_id, held
        try:
            user, token = await self._at_acs(
                kind, entra_token, str(client_id), caller.person, held=held is not None
            )
        except UserTokenRefusedError as exc:
            raise (UnusableTokenError(f"accessToken: {exc}") if held else exc.ours) from exc
        if token.expires_on < self._clock() + LEAST_LIFETIME:
            raise UpstreamBadResponseError("exchange: the token expires too soon")
        # Somebody may have signed the person out meanwhile.
        refuse_revoked(caller, await self._mappings.read(caller.person), self._policy)
        return ExchangedToken(token.token, token.expires_on, user)

    def _check_held(
        self, held: str, kind: ExchangeKind, caller: Caller, mapping: IdentityMapping
    ) -> None:
        """Refuse a token that the caller holds, and that cannot be exchanged."""
        issued_at = check_held_token(
            held,
            caller=caller,
            kind=kind,
            settings=self._settings,
            least=LEAST_LIFETIME + SPARE,
            now=self._clock(),
        )
        try:
            refuse_revoked(replace(caller, issued_at=issued_at), mapping)
        except RevokedTokenError as exc:
            raise UnusableTokenError(f"accessToken: {exc}") from exc

    async def _at_acs(
        self, kind: ExchangeKind, entra_token: str, client_id: str, person: Person, *, held: bool
    ) -> tuple[dict[str, object], AcsToken]:
        if kind.name == "teams":
            object_id = person.object_id
            token = await self._acs.teams_user(entra_token, client_id, object_id, held=held)
            acs_id = f"8:{self._settings.teams_cloud}:{object_id}"
            return {"microsoftTeamsUserId": object_id, "id": acs_id}, token
        if kind.name == "entra":
            acs_id, token = await self._acs.entra_user(entra_token, held=held)
        else:
            acs_id, token = await self._acs.teams_extension_user(entra_token, held=held)
        audit.note(acs_id=acs_id)
        return user_json(acs_id), token

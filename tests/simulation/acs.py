"""ACS Identity: identities and their tokens, and clients with the interface of Microsoft's SDK."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from azure.communication.identity import CommunicationUserIdentifier
from azure.core.exceptions import ResourceNotFoundError

from tests.simulation.network import error

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from datetime import timedelta

    from tests.simulation.network import Machine, Network

RESOURCE = "ac5ac5ac-0000-4000-8000-000000000001"


class IssuedToken(NamedTuple):
    """An ACS token, as the SDK returns it."""

    token: str
    expires_on: str


@dataclass(slots=True)
class Identity:
    """An identity at ACS, dead or alive."""

    acs_id: str
    created_at: float
    deleted_at: float | None = None
    revoked: int = -1  # The tokens up to this number are revoked.
    is_lost: bool = False  # Somebody else deleted it.
    is_foreign: bool = False  # Somebody else created it.


@dataclass(slots=True)
class Token:
    """An ACS token."""

    number: int
    identity: Identity
    issued_at: float
    is_alive: bool = field(init=False, default=True)


class Server:
    """ACS. Each method is one request, applied at once; it returns the answer or an error."""

    def __init__(self, network: Network, on_delete: Callable[[Identity], None]) -> None:
        self.identities: dict[str, Identity] = {}
        self.tokens: dict[str, Token] = {}
        self._network = network
        self._on_delete = on_delete
        self._numbers = count(1)

    def create(self) -> Any:
        return CommunicationUserIdentifier(self.add().acs_id)

    def add(self) -> Identity:
        """Create an identity."""
        acs_id = f"8:acs:{RESOURCE}_{next(self._numbers):08d}"
        identity = Identity(acs_id, self._network.loop.now)
        self.identities[acs_id] = identity
        return identity

    def issue(self, acs_id: str, lifetime: timedelta) -> Any:
        identity = self.identities.get(acs_id)
        if identity is None or identity.deleted_at is not None:
            return error(ResourceNotFoundError, 404)
        return self.give(identity, lifetime)

    def give(self, identity: Identity, lifetime: timedelta) -> IssuedToken:
        """Issue a token for an identity."""
        number = next(self._numbers)
        token = f"token{number}"
        self.tokens[token] = Token(number, identity, self._network.loop.now)
        return IssuedToken(token, (self._network.now() + lifetime).isoformat())

    def revoke(self, acs_id: str) -> Any:
        identity = self.identities.get(acs_id)
        if identity is None or identity.deleted_at is not None:
            return error(ResourceNotFoundError, 404)
        identity.revoked = next(self._numbers)
        return None

    def delete(self, acs_id: str) -> Any:
        identity = self.identities.get(acs_id)
        if identity is None or identity.deleted_at is not None:
            return error(ResourceNotFoundError, 404)
        identity.deleted_at = self._network.loop.now
        self._on_delete(identity)
        return None

    def lose(self, acs_id: str) -> None:
        """Delete an identity on somebody else's behalf."""
        identity = self.identities[acs_id]
        if identity.deleted_at is None:
            identity.deleted_at = self._network.loop.now
            identity.is_lost = True

    def is_live(self, token: str) -> bool:
        """Return whether ACS still accepts a token."""
        found = self.tokens[token]
        return found.identity.deleted_at is None and found.number > found.identity.revoked


class Client:
    """A machine's client of ACS Identity."""

    def __init__(self, machine: Machine, network: Network, server: Server) -> None:
        self._machine = machine
        self._network = network
        self._server = server

    def _send(self, apply: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        return self._network.send(self._machine, "acs", apply, args)

    def create_user(self, **_: object) -> asyncio.Future[Any]:
        return self._send(self._server.create)

    def get_token(
        self, user: Any, scopes: object, *, token_expires_in: timedelta, **_: object
    ) -> asyncio.Future[Any]:
        del scopes
        return self._send(self._server.issue, user.properties["id"], token_expires_in)

    def revoke_tokens(self, user: Any, **_: object) -> asyncio.Future[Any]:
        return self._send(self._server.revoke, user.properties["id"])

    def delete_user(self, user: Any, **_: object) -> asyncio.Future[Any]:
        return self._send(self._server.delete, user.properties["id"])

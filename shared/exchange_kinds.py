"""The exchanges of a person's Entra token for an ACS token, and what the settings say of each.

Whom ACS sees is decided by the resource that the Entra token is for: one of the two first-party
apps of ACS for users. https://learn.microsoft.com/azure/communication-services/concepts/identity-model
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

# Azure Communication Services Clients.
CLIENTS_URI = "https://communication.azure.com/clients"
CLIENTS_APP = "2a04943b-b6a7-4f65-8786-2bb6131b59f6"
# ACS for users of Teams; its URI depends on the cloud.
TEAMS_APP = "1fd5118e-2576-4263-8130-9503064c837a"
# The scopes of tokens for the first.
# https://learn.microsoft.com/azure/communication-services/quickstarts/identity/entra-id-authentication-integration
CLIENTS_SCOPES = ("VoIP", "VoIP.Join", "Chat", "Chat.Join", "Chat.Join.Limited")
EVERYTHING = ".default"  # All scopes that were consented to.
TEAMS_SCOPES = {
    # https://learn.microsoft.com/azure/communication-services/quickstarts/manage-teams-identity
    "teams": ("Teams.ManageCalls", "Teams.ManageChats"),
    # https://learn.microsoft.com/azure/communication-services/quickstarts/tpe/teams-phone-extensibility-access-teams-phone
    "teams-extension": ("TeamsExtension.ManageCalls",),
}


@dataclass(frozen=True, slots=True)
class ExchangeKind:
    """One kind of exchange: what the Entra token is for."""

    name: str  # As in the settings.
    uri: str  # Of the resource.
    app_id: str  # Of the resource.
    # As Entra takes them: what has to be consented to. They are no limit, since Entra's tokens have
    # all scopes of the resource that were consented to, however few are asked for.
    scopes: tuple[str, ...]

    @property
    def audiences(self) -> frozenset[str]:
        """The audiences of tokens for the resource: its URI in v1 tokens, its app id in v2."""
        return frozenset({self.uri, f"{self.uri}/", self.app_id})

    def has_scope(self, names: Collection[str]) -> bool:
        """Return whether one of a token's scopes is of this exchange."""
        wanted = {scope.rpartition("/")[2] for scope in self.scopes}
        return wanted == {EVERYTHING} or not wanted.isdisjoint(names)


def entra_kind(names: tuple[str, ...]) -> ExchangeKind:
    """Return the exchange for Entra ID users, with scopes by their names."""
    scopes = tuple(f"{CLIENTS_URI}/{name}" for name in names)
    return ExchangeKind("entra", CLIENTS_URI, CLIENTS_APP, scopes)


def teams_kind(name: str, uri: str) -> ExchangeKind:
    """Return one of the two exchanges for Teams users."""
    return ExchangeKind(
        name, uri, TEAMS_APP, tuple(f"{uri}/{scope}" for scope in TEAMS_SCOPES[name])
    )


def exchange_names(items: Collection[str]) -> frozenset[str]:
    """Return the exchanges that a setting turns on.

    Raises:
        ValueError: it names others, or both of those for Teams users.
    """
    names = frozenset(items)
    if not names <= {"entra", *TEAMS_SCOPES}:
        raise ValueError("is not a list of entra, teams, teams-extension")
    if names.issuperset(TEAMS_SCOPES):
        raise ValueError("has both teams and teams-extension, which share a route")
    return names


def entra_scope_names(items: Collection[str]) -> tuple[str, ...]:
    """Return the scopes that a setting names.

    Raises:
        ValueError: ACS does not have them, or `.default` is not alone.
    """
    names = tuple(dict.fromkeys(items))
    if names != (EVERYTHING,) and not (names and set(CLIENTS_SCOPES) >= set(names)):
        raise ValueError(f"is neither a list of {', '.join(CLIENTS_SCOPES)} nor .default alone")
    return names

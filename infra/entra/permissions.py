"""Names the permissions that the broker asks for, and finds their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP, GRAPH_APP, NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infra.entra.directory import Object

SIGN_IN = "User.Read"
# The permissions that each exchange of the broker needs, by the resource that has them.
EXCHANGES = {
    "entra": (ACS_CLIENTS_APP, ("VoIP",)),
    "teams": (ACS_TEAMS_APP, ("Teams.ManageCalls", "Teams.ManageChats")),
    "teams-extension": (ACS_TEAMS_APP, ("TeamsExtension.ManageCalls",)),
}


class NoPermissionError(ValueError):
    """A resource has no delegated permission of a name."""


def permissions_of(exchanges: Iterable[str], entra: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the permissions that the broker needs, by resource, with those for signing in.

    Args:
        exchanges: keys of `EXCHANGES`, as in the setting ACS_EXCHANGES.
        entra: permissions of Azure Communication Services Clients, if other than usual.
    """
    wanted: dict[str, tuple[str, ...]] = {GRAPH_APP: (SIGN_IN,)}
    for name in exchanges:
        app_id, usual = EXCHANGES[name]
        names = tuple(entra) or usual if name == "entra" else usual
        wanted[app_id] = (*wanted.get(app_id, ()), *names)
    return wanted


def permission_id(principal: Object, name: str) -> str:
    """Return the id of a delegated permission by its name.

    Raises:
        NoPermissionError: the resource has none of that name.
    """
    scopes = principal.get("oauth2PermissionScopes", [])
    found = [scope["id"] for scope in scopes if scope["value"] == name]
    if not found:
        known = ", ".join(sorted(scope["value"] for scope in scopes)) or "none"
        resource = NAMES.get(principal["appId"], principal["appId"])
        raise NoPermissionError(f"{resource} has no permission {name}; it has: {known}")
    return str(found[0])

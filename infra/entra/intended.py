"""Says how the home tenant is to be, by the command line and by what the registration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.entra.directory import ACS_CLIENTS_APP, ACS_TEAMS_APP, NAMES
from infra.entra.permissions import EXCHANGES, permissions_of
from infra.entra.registration import Wanted
from infra.entra.session import NotDoneError

if TYPE_CHECKING:
    from argparse import Namespace

    from infra.entra.directory import Directory


def wanted_of(arguments: Namespace, directory: Directory) -> Wanted:
    """Return how the home tenant is to be.

    Raises:
        NotDoneError: the broker refuses such exchanges.
    """
    permissions = arguments.permission or _requested(directory, ACS_CLIENTS_APP)
    return Wanted(
        unique_name=arguments.unique_name,
        display_name=getattr(arguments, "display_name", ""),
        authority=arguments.authority_host,
        permissions=permissions_of(exchanges_of(arguments, directory), permissions),
        multitenant=getattr(arguments, "multitenant", False),
        client_ids=tuple(arguments.client_id),
        identities=tuple(arguments.identity),
        broker_id=arguments.broker or "",
        consent=getattr(arguments, "consent", False),
    )


def exchanges_of(arguments: Namespace, directory: Directory) -> tuple[str, ...]:
    """Return what the broker is to exchange; unless named, what its registration asks for.

    Raises:
        NotDoneError: the broker refuses such a setting, or it is not known.
    """
    names = tuple(dict.fromkeys(arguments.exchange or _exchanges(directory) or ["entra"]))
    if {"teams", "teams-extension"} <= {*names}:
        raise NotDoneError(
            "the broker exchanges for Teams users or for Teams extension, not both: name one with"
            " --exchange"
        )
    return names


def _exchanges(directory: Directory) -> list[str]:
    teams = _requested(directory, ACS_TEAMS_APP)
    of_teams = [name for name in ("teams", "teams-extension") if {*EXCHANGES[name][1]} & {*teams}]
    if _asks(directory, ACS_TEAMS_APP) and not of_teams:
        raise NotDoneError(
            f"the registration asks for {NAMES[ACS_TEAMS_APP]}, but it is not in the tenant: name"
            " the exchanges with --exchange"
        )
    return ["entra"] * _asks(directory, ACS_CLIENTS_APP) + of_teams


def _asks(directory: Directory, app_id: str) -> bool:
    asked = (directory.application or {}).get("requiredResourceAccess") or []
    return any(each["resourceAppId"] == app_id for each in asked)


def _requested(directory: Directory, app_id: str) -> list[str]:
    """Return the names of the permissions of an app for which the registration asks."""
    asked = (directory.application or {}).get("requiredResourceAccess") or []
    ids = {
        access["id"]
        for each in asked
        if each["resourceAppId"] == app_id
        for access in each["resourceAccess"]
    }
    scopes = directory.principals.get(app_id, {}).get("oauth2PermissionScopes") or []
    return [scope["value"] for scope in scopes if scope["id"] in ids]

"""Reads what the doctor judges: a tenant, a user in it, and the assignments of the ACS resource."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from infra.entra.command_line import command_line
from infra.entra.directory import ACS_CLIENTS_APP, NAMES
from infra.entra.intended import wanted_of
from infra.entra.rest import RefusedError

if TYPE_CHECKING:
    from argparse import Namespace

    from infra.entra.assignments import Assignment
    from infra.entra.directory import Directory, Graph, Object
    from infra.entra.registration import Wanted


@dataclass(slots=True, kw_only=True)
class Reading:
    """What was read of one tenant.

    `asked` is the user name or id that was asked for, `assignments` None if there is no way to read
    them. Members with users and groups are of this tenant only.
    """

    directory: Directory
    wanted: Wanted
    broker_id: str | None
    arguments: Namespace  # Of the command line, for those that it advises.
    assignments: list[Assignment] | None = None
    asked: str | None = None
    user: Object | None = None
    groups: dict[str, str] = field(default_factory=dict)
    nested_groups: dict[str, str] = field(default_factory=dict)
    assigned_groups: dict[str, str | None] = field(default_factory=dict)  # None: it is gone.
    groups_are_readable: bool = True
    assigned_to: dict[str, set[str]] = field(default_factory=dict)  # By client id of the app.

    @property
    def tenant_id(self) -> str:
        """Return the tenant."""
        return self.directory.tenant_id

    @property
    def at_home(self) -> bool:
        """Return whether the broker is registered in this tenant."""
        return self.directory.application is not None

    def command(self, name: str, *words: str) -> str:
        """Return a command line of the broker's home tenant."""
        here = self.at_home or self.broker_id is None
        return command_line(self.arguments, name, *words, here=here)


def read(
    graph: Graph, arguments: Namespace, *, tenant_id: str, assignments: list[Assignment] | None
) -> Reading:
    """Read a tenant, and what concerns one user in it.

    Raises:
        RefusedError, UnreachableError: something cannot be read.
    """
    directory = graph.read(
        tenant_id,
        unique_name=arguments.unique_name,
        client_id=arguments.broker,
        others=[*NAMES, *arguments.client_id],
    )
    wanted, user = wanted_of(arguments, directory), arguments.user
    reading = Reading(
        directory=directory,
        wanted=wanted,
        broker_id=arguments.broker or directory.broker_id,
        arguments=arguments,
        assignments=assignments,
        asked=user,
    )
    for app_id, principal in directory.principals.items():
        is_closed = bool(principal.get("appRoleAssignmentRequired"))
        concerns = app_id in wanted.permissions or app_id == reading.broker_id
        if app_id == ACS_CLIENTS_APP or (is_closed and concerns):
            reading.assigned_to[app_id] = graph.assigned(principal["id"])
    if user and (found := graph.user(user)):
        reading.user = found
        reading.groups = graph.groups(found["id"], nested=False)
        reading.nested_groups = graph.groups(found["id"], nested=True)
    for each in assignments or []:
        if each.kind == "group" and each.tenant_id == tenant_id:
            try:
                name = graph.group_name(each.object_id)
            except RefusedError as exc:
                if exc.status != HTTPStatus.FORBIDDEN:
                    raise
                # Whoever may not read groups is not told that there is none.
                name, reading.groups_are_readable = each.object_id, False
            reading.assigned_groups[each.object_id] = name
    return reading

"""Reads what the doctor judges: a tenant, a user in it, and the assignments of the ACS resource."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.entra.directory import ACS_CLIENTS_APP
from infra.entra.rest import RefusedError

if TYPE_CHECKING:
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
    assignments: list[Assignment] | None = None
    asked: str | None = None
    user: Object | None = None
    groups: dict[str, str] = field(default_factory=dict)
    nested_groups: dict[str, str] = field(default_factory=dict)
    assigned_groups: dict[str, str | None] = field(default_factory=dict)  # None: it is gone.
    assigned_to: dict[str, set[str]] = field(default_factory=dict)  # By client id of the app.

    @property
    def tenant_id(self) -> str:
        """Return the tenant."""
        return self.directory.tenant_id

    @property
    def at_home(self) -> bool:
        """Return whether this is the tenant that the broker is registered in, or is to be."""
        return self.directory.application is not None or self.broker_id is None


def read(  # noqa: PLR0913 - each says something else to read
    graph: Graph,
    wanted: Wanted,
    *,
    tenant_id: str,
    broker_id: str | None,
    user: str | None,
    assignments: list[Assignment] | None,
) -> Reading:
    """Read a tenant, and what concerns one user in it.

    Raises:
        RefusedError, UnreachableError: something cannot be read.
    """
    others = [*wanted.permissions, *wanted.client_ids]
    directory = graph.read(
        tenant_id, unique_name=wanted.unique_name, client_id=broker_id, others=others
    )
    reading = Reading(
        directory=directory,
        wanted=wanted,
        broker_id=broker_id or directory.broker_id,
        assignments=assignments,
        asked=user,
    )
    for app_id, principal in directory.principals.items():
        is_closed = bool(principal.get("appRoleAssignmentRequired"))
        if app_id == ACS_CLIENTS_APP or (is_closed and app_id not in wanted.client_ids):
            reading.assigned_to[app_id] = graph.assigned(principal["id"])
    if user and (found := graph.user(user)):
        reading.user = found
        reading.groups = graph.groups(found["id"], nested=False)
        reading.nested_groups = graph.groups(found["id"], nested=True)
    for each in assignments or []:
        if each.kind == "group" and each.tenant_id == tenant_id:
            reading.assigned_groups[each.object_id] = _group_name(graph, each.object_id)
    return reading


def _group_name(graph: Graph, group_id: str) -> str | None:
    try:
        group = graph.service.find(f"/v1.0/groups/{group_id}?$select=id,displayName")
    except RefusedError:
        return group_id  # Whoever may not read groups is not told that there is none.
    return str(group["displayName"]) if group else None

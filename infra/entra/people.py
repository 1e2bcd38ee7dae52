"""Judges whether one user gets a token as an Entra ID user, and if not, why; also pure."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from infra.entra.directory import ACS_CLIENTS_APP, NAMES
from infra.entra.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.entra.assignments import Assignment
    from infra.entra.reading import Reading

SEEN = "(callers see 403 not_assigned)"
ADMIN_CENTER = "Entra admin center, Enterprise applications"


def account(reading: Reading) -> Iterator[Finding]:
    """The user is in the tenant and can sign in."""
    if reading.user is None:
        says = f"this tenant has no user {reading.asked}"
        fix = (
            "check the name, or run this in the user's own tenant (--sign-in-tenant); a guest has"
            " another user name here, so give the guest's object id"
        )
        yield Finding("user-not-found", says, fix)
    elif reading.user.get("accountEnabled") is False:
        says = f"the account {_name(reading)} is disabled (AADSTS50057)"
        yield Finding(
            "user-disabled",
            says,
            f"az ad user update --id {quote(_id(reading))} --account-enabled true",
        )


def assignment_to_apps(reading: Reading) -> Iterator[Finding]:
    """The user is assigned to the apps that require it."""
    if reading.user is None:
        return
    mine = {_id(reading), *reading.groups}
    for app_id, assigned in reading.assigned_to.items():
        principal = reading.directory.principals[app_id]
        if principal.get("appRoleAssignmentRequired") and not mine & assigned:
            name = NAMES.get(app_id, str(principal.get("displayName", app_id)))
            says = f"{name} requires assignment, and {_name(reading)} is not assigned (AADSTS50105)"
            fix = f"{ADMIN_CENTER}, {name}, Users and groups: add the user"
            yield Finding("app-assignment-missing", says, fix)


def groups(reading: Reading) -> Iterator[Finding]:
    """Each group with access exists, and is assigned to Azure Communication Services Clients."""
    for group_id, name in reading.assigned_groups.items():
        if name is None:
            says = f"the group {group_id} has access to the ACS resource, but no longer exists"
            yield Finding("group-gone", says, reading.command("unassign", group_id))
        elif group_id not in reading.assigned_to.get(ACS_CLIENTS_APP, {group_id}):
            app = NAMES[ACS_CLIENTS_APP]
            says = f"the group {name} is not assigned to {app}, which Microsoft asks for"
            fix = (
                f"an administrator of this tenant: {ADMIN_CENTER}, {app}, Users and groups: add"
                f" the group {name} (needs Entra ID P1 or P2)"
            )
            yield Finding("group-not-assigned-to-app", says, fix)


def access(reading: Reading) -> Iterator[Finding]:
    """The ACS resource gives the user access with tokens that the broker gets."""
    if reading.user is None or reading.assignments is None or reading.broker_id is None:
        return
    covering = [each for each in reading.assignments if _covers(each, reading)]
    if any(reading.broker_id in each.client_ids for each in covering):
        return
    yield _wrong_client(covering[0], reading) if covering else _no_access(reading)


def _covers(assignment: Assignment, reading: Reading) -> bool:
    """Return whether an assignment names the user, the tenant, or a group of the user."""
    principals = {_id(reading), reading.tenant_id, *reading.groups}
    return assignment.tenant_id == reading.tenant_id and assignment.object_id in principals


def _wrong_client(assignment: Assignment, reading: Reading) -> Finding:
    apps = ", ".join(sorted(assignment.client_ids)) or "no app"
    says = (
        f"{_name(reading)} has access as {assignment.kind} {assignment.object_id}, but with tokens"
        f" of {apps}, not of the broker ({reading.broker_id}), which asks Entra on the user's"
        f" behalf {SEEN}"
    )
    fix = _assign(assignment.kind, assignment.object_id, reading)
    return Finding("assignment-wrong-client", says, fix)


def _no_access(reading: Reading) -> Finding:
    """Return why no assignment names the user, the likeliest reason first."""
    names = {key: name for key, name in reading.assigned_groups.items() if name is not None}
    nested = {key: name for key, name in names.items() if key in reading.nested_groups}
    if nested:
        return _not_a_member(
            "nested-group-only", "is a member only through another group of", nested, reading
        )
    if (reading.user or {}).get("userType") == "Guest":
        return _guest(reading)
    if names:
        return _not_a_member(
            "not-in-assigned-group", "is not, or no longer, a member of", names, reading
        )
    says = f"no assignment gives {_name(reading)} access to the ACS resource {SEEN}"
    return Finding("assignment-missing", says, _assign("user", _id(reading), reading))


def _not_a_member(code: str, how: str, names: dict[str, str], reading: Reading) -> Finding:
    group_id, name = next(iter(names.items()))
    says = f"{_name(reading)} {how} {' or '.join(names.values())} {SEEN}"
    ids = f"--group {quote(group_id)} --member-id {quote(_id(reading))}"
    # Not every shell takes what follows for a comment.
    fix = f"az ad group member add {ids}  # {quote(name)}"
    return Finding(code, says, fix)


def _guest(reading: Reading) -> Finding:
    says = (
        f"{_name(reading)} is a guest here. Who signs in to this tenant is the guest"
        f" {_id(reading)}, to whom an assignment of the home tenant does not apply {SEEN}"
    )
    fix = (
        "let the app sign the user in to the home tenant (authority /organizations or"
        f" /<home tenant>), or give the guest access: {_assign('user', _id(reading), reading)}"
    )
    return Finding("guest", says, fix)


def _assign(kind: str, object_id: str, reading: Reading) -> str:
    where = ("--tenant", reading.tenant_id)
    whose = ("--client-id", str(reading.broker_id))
    return reading.command("assign", kind, object_id, *where, *whose)


def _name(reading: Reading) -> str:
    return str((reading.user or {}).get("userPrincipalName") or reading.asked)


def _id(reading: Reading) -> str:
    return str((reading.user or {}).get("id", ""))

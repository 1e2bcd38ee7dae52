"""Reads a tenant, runs all checks, and prints what they found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from azure.core.exceptions import AzureError

from infra.entra import assignments, checks, people
from infra.entra.advice import ROLES, what_to_do
from infra.entra.directory import ACS_CLIENTS_APP
from infra.entra.findings import Finding, shown
from infra.entra.reading import read
from infra.entra.rest import RefusedError
from infra.entra.session import NotDoneError, say, show

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from infra.entra.assignments import Assignment
    from infra.entra.reading import Reading
    from infra.entra.session import Session

    Check = Callable[[Reading], Iterator[Finding]]

WELL, FOUND = 0, 1


def doctor(arguments: Namespace, session: Session) -> int:
    """Print what is wrong, and how to correct it."""
    graph = session.graph()
    say("Reading the directory and the assignments ...")
    refusals: list[Finding] = []
    reading = read(
        graph,
        arguments,
        tenant_id=graph.tenant_id(),
        assignments=_assignments(arguments, session, refusals),
    )
    show(f"Tenant {reading.tenant_id}, {_place(reading)}\n")
    failures = 0
    for title, findings, needs in (*judged(reading), ("", refusals, "")):
        if findings or title:
            show(shown(title, findings, needs))
        failures += sum(each.is_sure for each in findings or ())
    show(f"\n{failures or 'No'} {'problem' if failures == 1 else 'problems'} found.")
    return FOUND if failures else WELL


def _place(reading: Reading) -> str:
    if reading.at_home:
        return "the broker's home tenant"
    return "not the broker's home tenant" if reading.broker_id else "without a broker"


def _assignments(
    arguments: Namespace, session: Session, refusals: list[Finding]
) -> list[Assignment] | None:
    """Return who has access, from the file or from ACS; None if there is no way to know."""
    if arguments.assignments:
        return from_file(Path(arguments.assignments))
    acs = session.acs()
    if acs is None:
        return None
    try:
        return assignments.listed(acs)
    except RefusedError as exc:
        says = f"the ACS resource does not list its assignments: {exc.status} {exc.code}"
        refusals.append(Finding("assignments-unreadable", says, what_to_do(exc)))
    except AzureError as exc:
        said = " ".join(str(exc).split())
        says = f"there is no sign-in to the ACS resource: {said}"
        refusals.append(Finding("assignments-unreadable", says, ROLES["/access/"]))
    return None


def from_file(path: Path) -> list[Assignment]:
    """Return the assignments in a file that `assignments --json` has made.

    Raises:
        NotDoneError: it is something else.
        OSError: it cannot be read.
    """
    try:
        listed = json.loads(path.read_text("utf-8"))
        return assignments.read(listed)
    except (ValueError, TypeError, AttributeError) as exc:
        raise NotDoneError(f"{path} is not what `assignments --json` prints: {exc}") from exc


def judged(reading: Reading) -> Iterator[tuple[str, list[Finding] | None, str]]:
    """Yield each check's title, and what it found; or None, and what it would need."""
    for title, check, is_possible, needs in _checks(reading):
        yield title, [*check(reading)] if is_possible else None, needs


def _checks(reading: Reading) -> list[tuple[str, Check, bool, str]]:
    """Return each check, with its title, whether it can be made, and what it would need."""
    at_home, known = reading.at_home, reading.broker_id is not None
    home = "the broker's home tenant" if known else "the broker's registration"
    access, for_access = reading.assignments is not None, "--acs-endpoint or --assignments"
    clients = bool(reading.wanted.client_ids)
    user = reading.user is not None
    for_user = "a user of this tenant" if reading.asked else "--user"
    identity = (
        "a managed identity acts as the broker"
        if reading.wanted.identities or not at_home
        else "some managed identity acts as the broker; --identity checks which one"
    )
    readable = access and reading.groups_are_readable
    for_groups = "the right to read groups" if access else for_access
    entra = ACS_CLIENTS_APP in reading.wanted.permissions
    elsewhere = for_access if at_home else home
    both = "--broker" if not known else for_access if user else for_user
    return [
        ("Microsoft's service principals are in the tenant", checks.resources, True, ""),
        ("no app is disabled in the tenant", checks.enabled, True, ""),
        ("the broker is registered", checks.registration, at_home or not known, home),
        (identity, checks.identities, at_home, home),
        ("nothing else acts as the broker", checks.intruders, at_home, home),
        ("client apps may call the broker", checks.clients, clients, "--client-id"),
        ("the tenant has consented", checks.consent, known, "the broker"),
        ("whoever has access can sign in", checks.audience, at_home and access, elsewhere),
        ("groups with access can be used", people.groups, readable, for_groups),
        ("the user can sign in", people.account, bool(reading.asked), for_user),
        ("the user is assigned to apps that want it", people.assignment_to_apps, user, for_user),
        *([("the user has access to ACS", people.access, known and user and access, both)] * entra),
    ]

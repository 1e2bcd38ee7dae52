"""Brings the home tenant to what is wanted, step by step, or shows what that would take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from infra.entra.command_line import command_line
from infra.entra.directory import ACS_CLIENTS_APP, NAMES
from infra.entra.permissions import EXCHANGES
from infra.entra.printable import printable
from infra.entra.registration import OWN_TENANT, SCOPE
from infra.entra.rest import segment
from infra.entra.session import NotDoneError
from infra.entra.steps import STEPS

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable

    from infra.entra.directory import Directory, Object
    from infra.entra.registration import Wanted
    from infra.entra.rest import Call


class Sender(Protocol):
    """Who is given the calls: Graph, or the preview."""

    def send(self, call: Call) -> Object:
        """Return the answer to a call."""


class Preview:
    """Shows calls instead of sending them; ids that are not known yet are in braces."""

    def __init__(self, wanted: Wanted, show: Callable[[str], None]) -> None:
        self._wanted = wanted
        self._show = show

    def send(self, call: Call) -> Object:
        """Show a call, and return what the answer would be, as far as later calls need it."""
        headers = "".join(f"\n{name}: {value}" for name, value in call.headers)
        body = json.dumps(call.body, indent=2)
        self._show(f"# {printable(call.does)}\n{call.method} {call.path}{headers}\n{body}\n")
        if call.adds == "principal":
            return self._principal((call.body or {})["appId"])
        if call.adds == "application" and call.headers:
            unknown = {"id": "{id of the registration}", "appId": "{client id of the broker}"}
            return unknown | (call.body or {})
        return {}

    def _principal(self, app_id: str) -> Object:
        names = self._wanted.permissions.get(app_id, ())
        return {
            "id": f"{{id of {NAMES.get(app_id, 'the service principal')}}}",
            "appId": app_id,
            "oauth2PermissionScopes": [
                {"id": f"{{id of {name}}}", "value": name} for name in names
            ],
        }


def bring_about(
    directory: Directory, wanted: Wanted, sender: Sender, *, say: Callable[[str], None]
) -> int:
    """Send the calls that are needed, and return how many there were.

    The directory is kept up to date, so that each step sees what the ones before have made.

    Raises:
        RefusedError, UnreachableError, NoPermissionError, NotDoneError: not all could be done.
    """
    count = 0
    for step in STEPS:
        for call in step(directory, wanted):
            say(f"{call.does[0].upper()}{call.does[1:]} ...")
            answer = sender.send(call)
            if call.adds == "application" and "appId" not in made_of(directory, answer):
                raise NotDoneError(
                    "the registration was there already, but did not show where it was looked for:"
                    " run it again, to see what is in it"
                )
            record(directory, call, answer)
            count += 1
    return count


def made_of(directory: Directory, answer: Object) -> Object:
    """Return the registration, as far as it is known after an answer."""
    return (directory.application or {}) | answer


def record(directory: Directory, call: Call, answer: Object) -> None:
    """Enter into the directory what a call has made or changed."""
    made = (call.body or {}) | answer
    kind, _, key = call.adds.partition(" ")
    if kind == "principal":
        directory.principals[made["appId"]] = made
    elif kind == "application":
        directory.application = made_of(directory, made)
    elif kind == "client":
        directory.clients[key] |= made
    elif call.method == "POST":
        {"credential": directory.credentials, "grant": directory.grants}[kind].append(made)
    else:
        objects = {"credential": directory.credentials, "grant": directory.grants}[kind]
        changed = next(each for each in objects if call.path.endswith(f"/{segment(each['id'])}"))
        changed |= made


def settings(directory: Directory, wanted: Wanted, exchanges: tuple[str, ...]) -> str:
    """Return the settings of the broker that follow from the registration."""
    application = directory.application or {}
    lines = {
        "ENTRA_CLIENT_ID": application.get("appId", ""),
        "ENTRA_APPLICATION_ID_URI": next(iter(application.get("identifierUris") or []), ""),
        "ENTRA_REQUIRED_SCOPE": SCOPE,
        "ACS_EXCHANGES": ",".join(exchanges),
    }
    entra = wanted.permissions.get(ACS_CLIENTS_APP)
    if entra and entra != EXCHANGES["entra"][1]:
        lines["ACS_ENTRA_SCOPES"] = ",".join(entra)
    lines["ENTRA_TENANT_IDS"] = directory.tenant_id
    text = "\n".join(f"{name}={printable(value)}" for name, value in lines.items())
    if application.get("signInAudience", OWN_TENANT) != OWN_TENANT:
        text += (
            "\n\nENTRA_TENANT_IDS names all tenants that are served: add the others, with commas."
        )
    options = _exchange_options(exchanges, lines)
    return f"{text}\n\nThe exchanges in a parameter file:\n\nparam exchanges = {{ {options} }}"


def _exchange_options(exchanges: tuple[str, ...], lines: dict[str, str]) -> str:
    """Return the same as ACS_EXCHANGES and ACS_ENTRA_SCOPES, in Bicep."""
    options = f"kinds: [{_bicep(exchanges)}]"
    scopes = lines.get("ACS_ENTRA_SCOPES")
    return f"{options}, entraScopes: [{_bicep(scopes.split(','))}]" if scopes else options


def _bicep(texts: Iterable[str]) -> str:
    return printable(", ".join(f"'{each}'" for each in texts))


def next_steps(
    directory: Directory, wanted: Wanted, exchanges: tuple[str, ...], arguments: Namespace
) -> list[str]:
    """Return what is left for a person to do."""
    steps = []
    if not directory.credentials:
        line = command_line(arguments, "setup", "--identity", "<IDENTITY_PRINCIPAL_ID>")
        steps.append(
            "Deploy infra/main.bicep with these settings; then let the managed identity act as the"
            f" broker:\n     {line}"
        )
    if missing := unconsented(directory, wanted):
        line = command_line(arguments, "setup", "--consent")
        steps.append(f"Consent for this tenant ({printable(', '.join(missing))}):\n     {line}")
    if (directory.application or {}).get("signInAudience", OWN_TENANT) != OWN_TENANT:
        line = command_line(arguments, "consent-url", "--tenant", "<tenant id>")
        steps.append(f"Send the administrator of each other tenant what this prints:\n     {line}")
    if "entra" in exchanges:
        words = ("group", "<object id>", "--tenant", "<tenant id>")
        line = command_line(arguments, "assign", *words)
        steps.append(f"Give people access to the ACS resource:\n     {line}")
    return steps


def unconsented(directory: Directory, wanted: Wanted) -> list[str]:
    """Return the permissions to which nobody has consented for all users."""
    return [
        name
        for app_id, names in wanted.permissions.items()
        for name in names
        if name not in directory.granted(app_id)
    ]

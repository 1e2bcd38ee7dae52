"""The options of the command line, and its help."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from infra.entra.permissions import EXCHANGES
from infra.entra.sign_in import SIGN_INS
from shared.endpoints import PUBLIC_CLOUD, acs_endpoint, entra_authority
from shared.identifiers import GUID

if TYPE_CHECKING:
    from collections.abc import Callable

DESCRIPTION = """\
Sets up Entra for the broker, gives people access to the ACS resource as Entra ID users, and finds
out why somebody gets no token. Run it from the top of a clone, with the Python of `make packages`:

    .venv/bin/python -m infra.entra setup --dry-run

docs/entra-users.md goes through it with two organisations. It can be run again: it adds what is
missing, and leaves alone what it does not know.

The exit code is 0 if all is well or done, 1 if the doctor found something, 2 if it could not be
done, and 130 if it was interrupted."""
SETUP = """\
Registers the broker as infra/entra.bicep does, or completes its registration: the service
principals of Microsoft's apps, the scope and the roles, permissions, client apps and managed
identities. It enables the scope and the roles if somebody has disabled them, asks for access tokens
of version 2, and locks the copies of the registration in other tenants. Then it prints the broker's
settings, and what is left to do.

A registration that it finds by name may be somebody else's. If others can act as it, --consent and
--multitenant are refused unless --broker names it.

It takes Application Developer in Entra, and Cloud Application Administrator to change somebody
else's registration, to add Microsoft's service principals, or to consent (--consent)."""
CONSENT_URL = """\
Prints the pages on which an administrator of another tenant consents: to the broker, and to each
client app that is registered beside it. Cloud Application Administrator there suffices."""
ASSIGN = """\
Gives a user, a group or a whole tenant access to the ACS resource, with the tokens of the apps
that --client-id names; by default of the broker, which asks Entra on the user's behalf. Apps are
added to those that the object has access with already. It takes Communication and Email Service
Owner on the resource."""
UNASSIGN = """\
Takes away the access of a user, a group or a tenant; with --client-id, only that with the tokens
of these apps."""
ASSIGNMENTS = """\
Lists who has access to the ACS resource. An administrator of another tenant can give what --json
prints to `doctor --assignments`."""
DOCTOR = """\
Looks for what is wrong in the tenant that you sign in to, and says how to correct it. That is the
home tenant, or with --broker another one. With --user, also why this user gets no token as an Entra
ID user. It changes nothing. In Entra it takes Directory Readers.

Who has access is read from the ACS resource (--acs-endpoint, or ACS_CONNECTION_STRING), or from a
file that the resource's owner made with `assignments --json`."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(
        prog="python -m infra.entra", description=DESCRIPTION, formatter_class=form
    )
    commands = whole.add_subparsers(dest="command", required=True)
    texts = {
        "setup": SETUP,
        "consent-url": CONSENT_URL,
        "assign": ASSIGN,
        "unassign": UNASSIGN,
        "assignments": ASSIGNMENTS,
        "doctor": DOCTOR,
    }
    made = {
        name: commands.add_parser(
            name,
            description=text,
            formatter_class=form,
            help=text.partition(". ")[0].partition(":")[0].replace("\n", " ").rstrip("."),
        )
        for name, text in texts.items()
    }
    _setup(made["setup"])
    made["consent-url"].add_argument(
        "--tenant", required=True, type=_tenant, help="the other tenant: its id or a domain"
    )
    _assign(made["assign"])
    made["unassign"].add_argument("object_id", type=_guid, help="object id (or tenant id)")
    made["assignments"].add_argument("--json", action="store_true", help="print JSON")
    _doctor(made["doctor"])
    for name in ("setup", "assign", "unassign"):
        made[name].add_argument(
            "--dry-run", action="store_true", help="print each call, and change nothing"
        )
    for name, command in made.items():
        _common(command, name)
    return whole


def _setup(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--display-name",
        default="ACS token broker",
        help="of a new registration, on the consent page (default: %(default)s)",
    )
    command.add_argument(
        "--multitenant", action="store_true", help="let users of other organisations sign in"
    )
    command.add_argument(
        "--consent", action="store_true", help="consent for all users of your own tenant"
    )
    _wanted(command)


def _wanted(command: argparse.ArgumentParser) -> None:
    """Add the options that say how the home tenant is to be."""
    command.add_argument(
        "--exchange",
        action="append",
        choices=[*EXCHANGES],
        help="what the broker exchanges, as in ACS_EXCHANGES (default: what the registration asks"
        " for, or entra). Can be repeated",
    )
    command.add_argument(
        "--permission",
        action="append",
        default=[],
        metavar="NAME",
        help="for the exchange `entra`, as in ACS_ENTRA_SCOPES (default: what the registration asks"
        " for, or VoIP). Can be repeated",
    )
    command.add_argument(
        "--identity",
        action="append",
        default=[],
        type=_guid,
        metavar="PRINCIPAL_ID",
        help="managed identity that acts as the broker: the output IDENTITY_PRINCIPAL_ID."
        " Can be repeated",
    )


def _assign(command: argparse.ArgumentParser) -> None:
    command.add_argument("kind", choices=["user", "group", "tenant"])
    command.add_argument(
        "object_id", nargs="?", type=_guid, help="object id; not for a whole tenant"
    )
    command.add_argument("--tenant", required=True, type=_guid, help="the tenant that it is in")


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--user", metavar="NAME_OR_ID", help="user name or object id")
    command.add_argument(
        "--assignments", metavar="FILE", help="what `assignments --json` has printed"
    )
    _wanted(command)


def _common(command: argparse.ArgumentParser, name: str) -> None:
    if name != "assignments":
        command.add_argument(
            "--client-id",
            action="append",
            default=[],
            type=_guid,
            help="of an app that calls the broker. Can be repeated"
            if name in {"setup", "doctor", "consent-url"}
            else "of the app whose tokens count. Can be repeated",
        )
    if name not in {"unassign", "assignments"}:
        registration = command.add_argument_group("which registration")
        registration.add_argument("--broker", type=_guid, metavar="CLIENT_ID", help="the broker's")
        registration.add_argument(
            "--unique-name",
            type=_unique_name,
            default="acs-token-broker",
            help="without --broker (default: %(default)s)",
        )
    access = command.add_argument_group("how to sign in")
    access.add_argument(
        "--sign-in",
        choices=[*SIGN_INS],
        default="cli",
        help="; ".join(f"{key}: {text}" for key, text in SIGN_INS.items())
        + " (default: %(default)s)",
    )
    access.add_argument(
        "--sign-in-tenant",
        type=_tenant,
        metavar="TENANT",
        help="tenant to sign in to, if not the account's own",
    )
    access.add_argument(
        "--authority-host",
        type=_checked(entra_authority),
        default=f"https://{PUBLIC_CLOUD}",
        help="Entra of another cloud or of the local stack (default: %(default)s)",
    )
    access.add_argument(
        "--acs-endpoint",
        type=_checked(acs_endpoint),
        help="of the ACS resource (default: the variable ACS_ENDPOINT). The variable"
        " ACS_CONNECTION_STRING names it too; then its access key is used instead of the sign-in",
    )


def _guid(text: str) -> str:
    if not GUID.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(f"{text} is not a GUID")
    return text.lower()


def _tenant(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", text):
        raise argparse.ArgumentTypeError(f"{text} is neither a tenant id nor a domain")
    return text.lower()


def _unique_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", text):
        raise argparse.ArgumentTypeError(f"{text} has other than letters, digits, - and _")
    return text


def _checked(check: Callable[[str], str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        try:
            return check(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text} {exc}") from exc

    return convert

"""Builds the command lines that the commands advise."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from shared.endpoints import PUBLIC_CLOUD

if TYPE_CHECKING:
    from argparse import Namespace

# What the reader has to put in.
BLANKS = {"<IDENTITY_PRINCIPAL_ID>", "<object id>", "<tenant id>"}
COMMAND = ".venv/bin/python -m infra.entra"
REGISTRATION = {"broker": "", "unique_name": "acs-token-broker"}
EXCHANGES = {"exchange": "", "permission": ""}
SIGN_IN = {"sign_in": "cli", "sign_in_tenant": ""}
RESOURCE = {"acs_endpoint": ""}
# The options that each command has to share with the one before, and their defaults.
SHARED = {
    "setup": REGISTRATION | EXCHANGES | {"identity": ""} | SIGN_IN,
    "consent-url": REGISTRATION | SIGN_IN,
    "assign": REGISTRATION | SIGN_IN | RESOURCE,
    "unassign": SIGN_IN | RESOURCE,
}
CLOUD = {"authority_host": f"https://{PUBLIC_CLOUD}"}


def command_line(arguments: Namespace, name: str, *words: str, here: bool = True) -> str:
    """Return the command line of another command, for what this one was about.

    Without the options that chose the registration, the exchanges, the sign-in and the resource, it
    would change something else.

    Args:
        arguments: of this command.
        name: of the other command.
        words: its own arguments, each as the shell is to give it.
        here: whether the same person runs it, who signs in as before.
    """
    shared = SHARED[name] if here else {}
    if name == "assign" and "--client-id" in words:  # Then it looks no registration up.
        shared = {key: value for key, value in shared.items() if key not in REGISTRATION}
    if "--identity" in words:
        shared = {key: value for key, value in shared.items() if key != "identity"}
    options: list[str] = []
    for key, default in (shared | CLOUD).items():
        value = getattr(arguments, key, None) or default
        if key == "unique_name" and getattr(arguments, "broker", None):
            continue  # The client id decides.
        if value != default:
            for each in value if isinstance(value, list) else [value]:
                options += [f"--{key.replace('_', '-')}", each]
    rest = [each if each in BLANKS else shlex.quote(each) for each in (*words, *options)]
    return " ".join([COMMAND, name, *rest])

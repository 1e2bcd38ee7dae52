"""The command line: `python -m infra.entra --help`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from azure.core.exceptions import AzureError

from infra.entra import commands
from infra.entra.advice import ROLES, what_to_do
from infra.entra.doctor import doctor
from infra.entra.options import parser
from infra.entra.permissions import NoPermissionError
from infra.entra.printable import printable
from infra.entra.rest import RefusedError, UnreachableError
from infra.entra.session import LINE_BREAK, NotDoneError, Session, say

if TYPE_CHECKING:
    from collections.abc import Sequence

NOT_DONE, INTERRUPTED = 2, 130
COMMANDS = {
    "setup": commands.setup,
    "consent-url": commands.consent_url,
    "assign": commands.assign,
    "unassign": commands.unassign,
    "assignments": commands.list_assignments,
    "doctor": doctor,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = parser().parse_args(words)
    # What azure-identity would log is in its exceptions, too.
    logging.getLogger("azure.identity").setLevel(logging.CRITICAL)
    try:
        code = COMMANDS[arguments.command](arguments, Session(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # What cannot be written must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say("Nobody reads the output: what was sent before is done.")
    except (UnreachableError, NoPermissionError) as exc:
        say(f"Not done, or not all of it: {exc}")
    except RefusedError as exc:
        say(f"Not done, or not all of it: {exc}")
        say(what_to_do(exc))
    except (NotDoneError, OSError, ValueError) as exc:
        say(f"Not done: {exc}")
    except AzureError as exc:  # Of azure-identity.
        hint = ROLES["/access/"] if "AADSTS65002" in str(exc) else ""
        # The SDK lists in lines what it has tried.
        said = printable(str(exc).strip(), keep=LINE_BREAK)
        sys.stderr.write(f"The sign-in failed: {said}\n{hint}\n")
    except KeyboardInterrupt:
        say("Interrupted. Run it again to go on.")
        return INTERRUPTED
    else:
        return code
    return NOT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m infra.mappings --help`."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from azure.core.exceptions import AzureError

from infra.mappings.check import Check
from infra.mappings.exporting import export
from infra.mappings.importing import Import
from infra.mappings.report import REFUSED, Report
from infra.mappings.restoring import Restore
from infra.mappings.store import Environment, opened
from shared.errors import StorageUnavailableError
from shared.identifiers import GUID, Person

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, CONFLICTS, NOT_DONE, INTERRUPTED = 0, 1, 2, 130
DESCRIPTION = """\
Imports, exports and restores the identity mappings of an environment. Run it from the top of a
clone, with the Python of `make packages`:

    .venv/bin/python -m infra.mappings export prod people.csv

The broker may go on working meanwhile. No identity comes to belong to two people, and no mapping is
overwritten. The account of `az login` needs Storage Table Data Contributor on the storage account
of the mappings, or Storage Table Data Reader for `export` (Owner is not enough). If that account is
closed to the internet, use a machine inside the network. Files have personal data in them: those
that are written can be read by you alone.

The exit code is 0 if all went well, 1 if rows were refused, and 2 if it could not be done. Run it
again after that: it goes on where it was."""
IMPORT = """\
Gives people the ACS identities that they have in another system. FILE is a .csv file whose header
has the columns

    tenantId, objectId, communicationUserId     and, if known, createdOn and lastUsedOn

or a .jsonl file with an object of these names in each line. Other columns are ignored. Dates are
like 2026-01-31T09:00:00Z. Whoever has no lastUsedOn counts as seen now; whoever was last seen
longer ago than PRUNE_IDLE_DAYS is pruned in the next night.

First the whole file is checked. If a row is wrong by itself (an id that is not one, an identity of
another ACS resource) or contradicts another one (an identity for two people, two for one person),
nothing is imported. Later rows are refused one by one, as when somebody has another identity
already."""
EXPORT = """\
Writes the mappings into FILE, which must not exist. Its name says what it gets:

    .csv, .jsonl    what the rows say about people
    .jsonl.gz       both tables with all that is in them, as a backup has them

It appears only when it is complete."""
RESTORE = """\
Puts back what is in FILE: a backup or an export (.jsonl.gz), an export (.csv, .jsonl), or the
result of infra/queries/workbook-mappings.kql (.json). The tables may be empty or in use.

Whoever has a row keeps it; if FILE has another identity for them, that one is left over, which is
reported. Marks of revocations and erasures are put back, and never move back. What was being
deleted is deleted. What was still being created is not restored. An identity that FILE gives to two
people is given to neither."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(
        prog="python -m infra.mappings", description=DESCRIPTION, formatter_class=form
    )
    # These are no options of `export`, or of `restore` only.
    whole.set_defaults(dry_run=False, acs_resource_id=None, person=None, delete_superseded=False)
    commands = whole.add_subparsers(dest="command", required=True)
    for name, description in (("import", IMPORT), ("export", EXPORT), ("restore", RESTORE)):
        command = commands.add_parser(name, description=description, formatter_class=form)
        command.add_argument("environment", help="as in infra/outputs.sh, such as prod")
        command.add_argument("file", type=Path, metavar="FILE")
        if name != "export":
            command.add_argument(
                "--dry-run",
                action="store_true",
                help="change nothing, and write into the report what would become of each row",
            )
        if name == "restore":
            command.add_argument(
                "--person", type=_person, metavar="TENANT/OBJECT", help="restore one person only"
            )
            command.add_argument(
                "--delete-superseded",
                action="store_true",
                help="have identities deleted that are left over",
            )
        command.add_argument(
            "--report", type=Path, help="where to write the refused rows; FILE.report.csv"
        )
        local = command.add_argument_group(
            "instead of the outputs of the environment's deployment, as for the local stack"
        )
        local.add_argument("--connection-string", help="of the storage account of the mappings")
        local.add_argument("--table", default="IdentityMappings", help="%(default)s")
        if name != "export":
            local.add_argument(
                "--acs-resource-id", type=_guid, help="the GUID in all identities: 8:acs:<GUID>_..."
            )
    return whole


def _guid(text: str) -> str:
    if not GUID.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(f"{text} is not a GUID")
    return text.lower()


def _person(text: str) -> Person:
    tenant_id, _, object_id = text.partition("/")
    return Person(_guid(tenant_id), _guid(object_id))


async def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says, print a summary, and return the exit code."""
    environment = Environment.of(arguments)
    path: Path = arguments.file
    check = None
    if arguments.command != "export":
        check = Check(path, resource_id=environment.resource_id, person=arguments.person)
        if arguments.person and not check.total:
            person = "/".join(arguments.person)
            raise ValueError(f"{path} has nothing about {person}, or nothing that can be read")
    dry_run: bool = arguments.dry_run
    written = arguments.report or path.with_name(f"{path.name}.report.csv")
    async with opened(environment) as store:
        total = check.total if check else None
        with closing(Report(written, total=total, every_row=dry_run)) as report:
            if check is None:
                await export(path, store=store, report=report)
            elif arguments.command == "import":
                importing = Import(check, store=store, report=report, dry_run=dry_run)
                if not await importing.run():
                    sys.stdout.write("Nothing was imported. ")
            else:
                await Restore(
                    check,
                    store=store,
                    report=report,
                    dry_run=dry_run,
                    delete_superseded=arguments.delete_superseded,
                ).run()
    sys.stdout.write(f"{path}: {report}\n")
    if written.exists():
        rows = "each row" if dry_run else "the refused rows"
        sys.stdout.write(f"{written} has {rows}, with the reason.\n")
    return CONFLICTS if report.counts[REFUSED] else DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    whole = parser()
    arguments = whole.parse_args(words)
    needs_id = arguments.command != "export" and arguments.connection_string
    if needs_id and not arguments.acs_resource_id:
        whole.error("--connection-string goes with --acs-resource-id")
    try:
        return asyncio.run(run(arguments))
    except (OSError, ValueError, AzureError, StorageUnavailableError) as exc:
        sys.stderr.write(f"Not done, or not all of it: {exc}\n")
    except subprocess.SubprocessError:
        sys.stderr.write(f"There are no outputs of the environment {arguments.environment}.\n")
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Run it again to go on.\n")
        return INTERRUPTED
    return NOT_DONE


if __name__ == "__main__":
    sys.exit(main())

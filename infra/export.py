"""Write the mapping tables of an environment to files, before it is taken down.

    python3 infra/export.py prod backup/

It writes one file for each table of the storage account, with a row as JSON in each line. Only
these tables say whose each ACS identity is. The account of `az login` needs Storage Table Data
Reader on the storage account (Owner is not enough). If the storage account is closed to the
internet, run this on a machine inside the network. The rows are personal data.
"""  # noqa: INP001 - a script that is run by its path

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

OUTPUTS = Path(__file__).resolve().with_name("outputs.sh")
COMMAND_SECONDS = 300


def ask(*command: str) -> Any:  # noqa: ANN401 - what a command prints as JSON
    """Return what a command prints as JSON.

    Raises:
        subprocess.SubprocessError: it failed, and has printed why.
    """
    finished = subprocess.run(  # noqa: S603 - the Azure CLI, and our own script
        command, stdout=subprocess.PIPE, check=True, timeout=COMMAND_SECONDS
    )
    return json.loads(finished.stdout)


def rows(login: list[str], table: str) -> list[dict[str, object]]:
    """Return all rows of a table, which Azure returns in pages."""
    found: list[dict[str, object]] = []
    marker: list[str] = []
    while True:
        page = ask(
            *("az", "storage", "entity", "query", "--table-name", table),
            *("--num-results", "1000", *login, *marker),
        )
        found += page["items"]
        if not page["nextMarker"]:
            return found
        keys = [f"{key}={value}" for key, value in page["nextMarker"].items() if value is not None]
        marker = ["--marker", *keys]


def main() -> int:
    """Write the tables, print how many rows they have, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        endpoint = ask(str(OUTPUTS), arguments.environment, "--json")["MAPPINGS_TABLE_ENDPOINT"]
        account = (urlsplit(endpoint).hostname or "").partition(".")[0]
        login = ["--account-name", account, "--auth-mode", "login", "--output", "json"]
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for table in ask("az", "storage", "table", "list", *login):
            found = rows(login, table["name"])
            # Other users of this machine must not read it.
            path = arguments.folder / f"{table['name']}.jsonl"
            path.touch(mode=0o600)
            path.write_text("".join(f"{json.dumps(row)}\n" for row in found), encoding="utf-8")
            sys.stdout.write(f"{path}: {len(found)} rows\n")
    except (OSError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"The tables were not exported: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

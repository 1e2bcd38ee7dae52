"""The commands of docs/migrate.md, with programs that answer in place of Azure and MongoDB."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO
from tests.infra.mappings.conftest import acs_id, entry, somebody, write

if TYPE_CHECKING:
    from tests.emulated import Store
    from tests.infra.mappings.conftest import Command

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/migrate.md").read_text()
GRAPH = "https://graph.microsoft.com/v1.0/users"
EXTENSION = "com.contoso.identityMapping"

# What it prints for the words that it is called with, and exits with 1 for others.
STAND_IN = """#!{python}
import json, sys
answers = json.load(open({answers!r}))
print(answers[" ".join(sys.argv[1:])])
"""


def user(number: int, *extensions: dict[str, Any], mail: str | None = None) -> dict[str, Any]:
    """Return a user as Microsoft Graph does."""
    return {"id": somebody(number).object_id, "extensions": list(extensions), "mail": mail}


def mapping(number: int, name: str = EXTENSION) -> dict[str, Any]:
    """Return an open extension as Microsoft Graph does."""
    return {
        "@odata.type": "#microsoft.graph.openTypeExtension",
        "extensionName": name,
        "id": name,
        "acsUserIdentity": acs_id(number),
    }


def row(number: int, provider: str = "aad") -> dict[str, Any]:
    """Return a row of the sample's table, as `az` does."""
    object_id = somebody(number).object_id
    row = {"PartitionKey": object_id, "RowKey": object_id, "AcsUserId": acs_id(number)}
    return row | {"IdentityProvider": provider, "AcsUserToken": "x"}


USERS = f"{GRAPH}?$select=id&$expand=extensions"
MAILS = f"{GRAPH}?$select=id,mail"
ENTITIES = (
    "storage entity query --auth-mode login --account-name ... --table-name UserMappings"
    " --num-results 1000{} --output json"
)
DOCUMENTS = "--uri mongodb://... --collection {} --fields email,spoolID"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with programs that answer."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    pages = {
        USERS: {
            "value": [user(1, mapping(1, "com.contoso.other"), mapping(1)), user(9)],
            "@odata.nextLink": f"{USERS}&$skiptoken=x",
        },
        f"{USERS}&$skiptoken=x": {"value": [user(2, mapping(2)), user(3, mapping(3))]},
        MAILS: {
            "value": [user(1, mail="Ada@contoso.com"), user(2, mail="bob@contoso.com"), user(9)],
            "@odata.nextLink": f"{MAILS}&$skiptoken=x",
        },
        f"{MAILS}&$skiptoken=x": {"value": [user(3, mail="eve@contoso.com")]},
    }
    following = {"nextpartitionkey": "p=1", "nextrowkey": None}
    az = {
        "account show --query tenantId --output tsv": CONTOSO.tenant_id,
        ENTITIES.format(""): json.dumps({"items": [row(1), row(2)], "nextMarker": following}),
        ENTITIES.format(" --marker nextpartitionkey=p=1"): json.dumps(
            {"items": [row(8, "google"), row(3)], "nextMarker": {}}
        ),
    } | {f"rest --url {url} --output json": json.dumps(page) for url, page in pages.items()}
    documents = [
        [{"email": "ada@contoso.com", "spoolID": acs_id(1)}, {"email": "new@contoso.com"}],
        [
            {"email": "bob@contoso.com", "spoolID": acs_id(2)},
            {"email": "EVE@contoso.com", "spoolID": acs_id(3)},
            {"email": "nobody@contoso.com", "spoolID": acs_id(8)},
        ],
    ]
    mongoexport = {
        DOCUMENTS.format(collection): "\n".join(map(json.dumps, found))
        for collection, found in zip(("Patients", "Doctors"), documents, strict=True)
    }
    for name, answers in (("az", az), ("mongoexport", mongoexport)):
        known = tmp_path / f"{name}.json"
        known.write_text(json.dumps(answers))
        (tmp_path / name).write_text(STAND_IN.format(python=sys.executable, answers=str(known)))
        (tmp_path / name).chmod(0o755)
    work = tmp_path / "work"
    (work / "backup").mkdir(parents=True)
    return work


def blocks(heading: str) -> list[str]:
    """Return the shell blocks of a section."""
    section = PAGE.partition(f"## {heading}\n")[2]
    text = re.split(r"^#{2,3} ", section, flags=re.MULTILINE)[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def run(folder: Path, *scripts: str) -> None:
    """Run commands of the page in a folder."""
    path = f"{folder.parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(  # noqa: S603 - the commands of our own page
        ["bash", "-euo", "pipefail", "-c", "\n".join(scripts)],  # noqa: S607 - it is on every PATH
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (finished.returncode, finished.stderr)


@pytest.mark.parametrize(
    ("heading", "block", "given"),
    [
        pytest.param("Microsoft Graph", 0, {}, id="Graph"),
        pytest.param("A table", 0, {}, id="table"),
        pytest.param("Cosmos DB", 0, {}, id="MongoDB"),
        pytest.param(
            "Cosmos DB",
            1,
            {
                "backup/items.json": [
                    {"oid": somebody(n).object_id, "acsUserId": acs_id(n)} for n in (1, 2, 3)
                ]
            },
            id="NoSQL",
        ),
        pytest.param(
            "A file of settings",
            0,
            {
                "appsettings.json": {
                    "AgentUsers": [
                        {"teamsUserId": f"{prefix}{somebody(n).object_id}", "acsUserId": acs_id(n)}
                        for n, prefix in ((1, ""), (2, "8:orgid:"), (3, ""))
                    ]
                }
            },
            id="settings",
        ),
    ],
)
async def test_mapping_is_got_out(
    command: Command,
    store: Store,
    folder: Path,
    heading: str,
    block: int,
    given: dict[str, Any],
) -> None:
    """What the commands of a section write can be imported as it is."""
    for name, content in given.items():
        (folder / name).write_text(json.dumps(content))

    run(folder, *blocks("1. Get the mapping out"), blocks(heading)[block])

    finished = await command("import", folder / "backup/people.jsonl")
    assert (0, {}) == (finished.code, finished.report)
    assert {somebody(n).object_id: acs_id(n) for n in (1, 2, 3)} == {
        row["RowKey"]: row["acsId"] for row in await store.all_rows()
    }


async def test_roll_back(command: Command, folder: Path) -> None:
    """What is new in the broker since the import is found in an export."""
    imported = write(folder / "backup/people.jsonl", [entry(1)])
    await command("import", imported)
    await command("import", write(folder / "new.jsonl", [entry(2)]))
    await command("export", folder / "backup/broker.jsonl")
    (script,) = blocks("5. Roll back")

    run(folder, script.partition("\n")[2])  # After the export.

    [new] = [json.loads(line) for line in (folder / "backup/new.jsonl").read_text().splitlines()]
    assert acs_id(2) == new["communicationUserId"]

"""How the command finds an environment: by its outputs, as the account of `az login`."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from azure.data.tables.aio import TableServiceClient

from infra.mappings.__main__ import main
from local.acs.emulator import RESOURCE_ID
from local.entra.directory import CONTOSO
from local.serving.certificates import Certificates
from local.storage.azurite import azurite
from shared.mappings.table import IdentityMappings
from tests.infra.mappings.conftest import acs_id, entry, somebody, write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from azure.data.tables.aio import TableClient

ROOT = Path(__file__).parents[3]


def entra_token() -> str:
    """Return a token that Azurite accepts: it checks the claims but not the signature."""
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": f"https://sts.windows.net/{CONTOSO.tenant_id}/",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in parts) + ".c2ln"


@pytest.fixture
async def deployed(tmp_path: Path) -> AsyncIterator[tuple[TableClient, dict[str, str]]]:
    """The table of mappings, and the variables of a shell whose `az` finds an environment `dev`."""
    certificates = Certificates(tmp_path)
    name = f"t{secrets.token_hex(8)}"
    async with AsyncExitStack() as stack:
        endpoints = await stack.enter_async_context(azurite(certificates=certificates))
        outputs = {
            "AZURE_RESOURCE_GROUP": "rg-acs-token-broker-dev",
            "ACS_IMMUTABLE_RESOURCE_ID": RESOURCE_ID.upper(),
            "MAPPINGS_TABLE_ENDPOINT": endpoints.table,
            "MAPPINGS_TABLE": name,
        }
        answers = {
            "deployment sub list": [
                {"name": "acs-token-broker-dev", "tags": None, "state": "Succeeded", "time": "1"}
            ],
            "deployment sub show": {key: {"value": value} for key, value in outputs.items()},
            "account get-access-token": {
                "accessToken": entra_token(),
                "expires_on": int(time.time()) + 3600,
            },
        }
        folder = tmp_path / "bin"
        folder.mkdir()
        az = folder / "az"
        az.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"[answer] = [it for words, it in {answers!r}.items()"
            " if ' '.join(sys.argv[1:]).startswith(words)]\n"
            "print(json.dumps(answer))\n"
        )
        az.chmod(0o755)
        service = await stack.enter_async_context(
            TableServiceClient.from_connection_string(
                endpoints.connection_string, connection_verify=str(certificates.authority_file)
            )
        )
        table = await service.create_table(name)
        await service.create_table(f"{name}Orphans")
        yield (
            table,
            {
                "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
                "SSL_CERT_FILE": str(certificates.authority_file),
            },
        )


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator does."""
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "infra.mappings", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_by_its_outputs(deployed: tuple[TableClient, dict[str, str]], tmp_path: Path) -> None:
    """An environment's name is enough: the outputs say where its tables are."""
    table, environment = deployed
    path, out = write(tmp_path / "people.csv", [entry(1)]), tmp_path / "out.csv"

    imported = run(environment, "import", "dev", str(path))
    exported = run(environment, "export", "dev", str(out))

    assert (0, "") == (imported.returncode, imported.stderr)
    assert (0, "") == (exported.returncode, exported.stderr)
    assert acs_id(1) == (await IdentityMappings(table).read(somebody(1))).acs_id
    assert acs_id(1) in out.read_text()


async def test_old_deployment(deployed: tuple[TableClient, dict[str, str]], tmp_path: Path) -> None:
    """A deployment without an output that is needed has to be renewed."""
    _table, environment = deployed
    az = Path(environment["PATH"].partition(os.pathsep)[0]) / "az"
    az.write_text(az.read_text().replace("ACS_IMMUTABLE_RESOURCE_ID", "ACS_ENDPOINT"))

    finished = run(environment, "export", "dev", str(tmp_path / "out.csv"))

    assert 2 == finished.returncode
    assert "no output 'ACS_IMMUTABLE_RESOURCE_ID'" in finished.stderr


async def test_unknown_environment(
    deployed: tuple[TableClient, dict[str, str]], tmp_path: Path
) -> None:
    """An environment that was not deployed is refused before anything else."""
    _table, environment = deployed

    finished = run(environment, "export", "prod", str(tmp_path / "out.csv"))

    assert 2 == finished.returncode
    assert "no outputs of the environment prod" in finished.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("restore dev x --person ada", "is not a GUID", id="person"),
        pytest.param("import dev x --acs-resource-id 7", "is not a GUID", id="resource"),
        pytest.param("import dev x --connection-string y", "goes with", id="resource is missing"),
        pytest.param("export dev x --dry-run", "unrecognized", id="no dry run"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    """Wrong options are refused with the usage."""
    with pytest.raises(SystemExit) as refused:
        main(words.split())

    assert 2 == refused.value.code
    assert message in capsys.readouterr().err


def test_wrong_connection_string(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not a connection string is refused, without quoting it."""
    path = str(tmp_path / "out.csv")

    code = main(["export", "dev", path, "--connection-string", "AccountKey=c2VjcmV0"])

    printed = capsys.readouterr()
    assert 2 == code
    assert "connection string" in printed.err
    assert "c2VjcmV0" not in printed.err + printed.out

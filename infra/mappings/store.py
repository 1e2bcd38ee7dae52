"""Opens the tables of an environment."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.data.tables.aio import TableClient
from azure.identity.aio import AzureCliCredential

from shared.endpoints import table_connection_string
from shared.identifiers import resource_of
from shared.mappings.adoption import Adoption
from shared.mappings.ledger import Ledger
from shared.mappings.table import IdentityMappings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator

OUTPUTS = Path(__file__).resolve().parents[1] / "outputs.sh"
COMMAND_SECONDS = 300
# Retries are those of shared/mappings/attempts.py and of infra/mappings/work.py.
BOUNDS: dict[str, Any] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 30}


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an environment keeps its mappings, and which ACS resource it uses."""

    table: str
    resource_id: str  # The immutable id, which is a part of each ACS identity.
    endpoint: str | None = None  # Opened as the account of `az login`.
    connection_string: str | None = None

    @classmethod
    def of(cls, arguments: Namespace) -> Environment:
        """Return the environment that the command line names.

        Raises:
            ValueError: the connection string is not one, or the deployment is older than this.
            OSError, subprocess.SubprocessError: the outputs of the deployment cannot be read.
        """
        if arguments.connection_string:
            try:
                connection_string = table_connection_string(arguments.connection_string)
            except ValueError as exc:
                raise ValueError(f"the connection string {exc}") from None
            return cls(
                table=arguments.table,
                resource_id=arguments.acs_resource_id or "",
                connection_string=connection_string,
            )
        finished = subprocess.run(  # noqa: S603 - our own script
            [str(OUTPUTS), arguments.environment, "--json"],
            stdout=subprocess.PIPE,
            check=True,
            timeout=COMMAND_SECONDS,
            env={**os.environ, "AZURE_ENV_NAME": ""},
        )
        outputs = json.loads(finished.stdout)
        try:
            return cls(
                table=outputs["MAPPINGS_TABLE"],
                resource_id=outputs["ACS_IMMUTABLE_RESOURCE_ID"].lower(),
                endpoint=outputs["MAPPINGS_TABLE_ENDPOINT"],
            )
        except KeyError as exc:
            raise ValueError(f"deploy the infrastructure again: there is no output {exc}") from exc

    async def owns(self, acs_id: str) -> bool:
        """Return whether an identity belongs to the environment's ACS resource."""
        return resource_of(acs_id) == self.resource_id


@dataclass(frozen=True, slots=True)
class Store:
    """The two tables of an environment, as the broker sees them and as they are."""

    mappings: IdentityMappings
    ledger: Ledger
    adoption: Adoption
    rows: TableClient
    entries: TableClient


@asynccontextmanager
async def opened(environment: Environment) -> AsyncIterator[Store]:
    """Open the tables of an environment while the context lasts.

    Raises:
        StorageUnavailableError: a table is missing, or we may not read it.
    """
    async with AsyncExitStack() as clients:
        credential = None
        if environment.connection_string is None:
            credential = await clients.enter_async_context(AzureCliCredential())
        rows, entries = [
            await clients.enter_async_context(_client(environment, name, credential))
            for name in (environment.table, f"{environment.table}Orphans")
        ]
        mappings, ledger = IdentityMappings(rows), Ledger(entries)
        adoption = Adoption(acs=environment, mappings=mappings, ledger=ledger)
        await mappings.server_time()
        await ledger.recall("nothing")
        yield Store(mappings, ledger, adoption, rows, entries)


def _client(
    environment: Environment, name: str, credential: AzureCliCredential | None
) -> TableClient:
    if environment.connection_string is not None:
        return TableClient.from_connection_string(environment.connection_string, name, **BOUNDS)
    assert environment.endpoint is not None  # noqa: S101 - it has one of the two
    return TableClient(environment.endpoint, name, credential=credential, **BOUNDS)

"""The backup: writes every row of both tables into one blob of another storage account.

ACS cannot list identities, so whoever loses the table loses the people in it. The blob becomes
visible only when it is complete, and never replaces another one. Rows are read page by page and
uploaded as they are compressed, so memory stays flat.

The tables go on changing meanwhile. The mappings are read first: an identity that moves from its
row to the ledger during the run is in both, never in neither, and what the ledger says is newer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, ResourceExistsError

from shared import audit
from shared.errors import StorageUnavailableError
from shared.mappings.attempts import reason_of
from shared.mappings.backup_file import BackupWriter
from shared.mappings.inspection import Inspection, SharedIds
from shared.runs import MAX_DURATION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime, timedelta

    from azure.core.pipeline import PipelineResponse
    from azure.data.tables import TableEntity
    from azure.data.tables.aio import TableClient
    from azure.storage.blob.aio import ContainerClient

    from shared.mappings.fingerprints import Fingerprints

PAGE_SIZE = 1000
PAGE_SECONDS = 100  # A few attempts, each of which may take as long as a page may take.
NAMING_SECONDS = 120


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What one run wrote and found."""

    blob: str
    bytes: int
    rows: int  # Mappings.
    ledger_rows: int
    damaged: int  # Mappings that cannot be read.
    future_dates: int  # Mappings with a date in the future.
    shared_ids: int  # ACS identities that more than one mapping has.


class Backup:
    """Writes both tables to a blob, and looks at each mapping on the way.

    Args:
        mappings: the table of mappings.
        ledger: the ledger of orphans.
        container: where the blob goes.
        page_size: how many rows are read at once; Table Storage gives 1000 at most.
        max_duration: how long it may take until the blob is there.
    """

    def __init__(
        self,
        *,
        mappings: TableClient,
        ledger: TableClient,
        container: ContainerClient,
        page_size: int = PAGE_SIZE,
        max_duration: timedelta = MAX_DURATION,
    ) -> None:
        self._mappings = mappings
        self._ledger = ledger
        self._container = container
        self._page_size = page_size
        self._max_duration = max_duration

    async def run(self) -> BackupReport:
        """Do one run, and write one audit line about it, and one about each of the first bad rows.

        Raises:
            StorageUnavailableError: a table or the container failed. There is no blob, unless
                only the answer to the last request was lost.
        """
        started = time.monotonic()
        report: BackupReport | None = None
        why: dict[str, audit.Field] = {}
        try:
            with audit.decision() as spent:
                report = await self._run()
        except StorageUnavailableError as error:
            why = {"code": error.code, "reason": str(error)}
            raise
        finally:
            spent["ms"] = round((time.monotonic() - started) * 1000)
            if report is None:
                audit.record("backup_failed", {**why, **spent}, level=logging.ERROR)
            else:
                audit.record("backup_finished", {**asdict(report), **spent})
        return report

    async def _run(self) -> BackupReport:
        inspection, writer = Inspection(), BackupWriter()
        try:
            async with asyncio.timeout(self._max_duration.total_seconds()):
                taken_on = await _clock_of(self._mappings)
                blob = f"{taken_on:%Y-%m-%dT%H%M%SZ}.jsonl.gz"
                await self._upload(blob, self._contents(writer, taken_on, inspection))
        except TimeoutError as exc:
            raise StorageUnavailableError("the backup takes too long") from exc
        shared_ids = inspection.shared_ids()
        if shared_ids:
            # If it fails, the blob is there all the same, and the report has the number.
            with suppress(StorageUnavailableError, TimeoutError):
                async with asyncio.timeout(NAMING_SECONDS):
                    await self._name(shared_ids)
        rows, ledger_rows = writer.rows.values()
        return BackupReport(
            blob=blob,
            bytes=writer.bytes,
            rows=rows,
            ledger_rows=ledger_rows,
            damaged=inspection.damaged,
            future_dates=inspection.future_dates,
            shared_ids=len(shared_ids),
        )

    async def _contents(
        self, writer: BackupWriter, taken_on: datetime, inspection: Inspection
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of the file."""
        mappings, ledger = self._mappings.table_name, self._ledger.table_name
        yield writer.begin([mappings, ledger], taken_on=taken_on)
        async for entities, now in _pages_of(self._mappings, self._page_size):
            for entity in entities:
                inspection.look_at(entity, now)
            yield writer.add(mappings, entities)
        async for entities, _now in _pages_of(self._ledger, self._page_size):
            yield writer.add(ledger, entities)
        yield writer.end()

    async def _upload(self, name: str, contents: AsyncIterator[bytes]) -> None:
        """Upload a new blob as blocks, which become one when all are there."""
        run = secrets.token_hex(8)
        try:
            await self._container.upload_blob(
                name, contents, metadata={"run": run}, overwrite=False, max_concurrency=1
            )
        except ResourceExistsError as exc:
            # It may be ours: the SDK repeats a request whose answer was lost.
            if await self._run_of(name) != run:
                raise StorageUnavailableError(f"there is a blob {name} already") from exc
        except AzureError as exc:
            raise _failure("the container of backups", exc) from exc

    async def _run_of(self, name: str) -> str | None:
        try:
            properties = await self._container.get_blob_client(name).get_blob_properties()
        except AzureError as exc:
            raise _failure("the container of backups", exc) from exc
        return properties.metadata.get("run")

    async def _name(self, shared_ids: Fingerprints) -> None:
        """Write audit lines that say who shares an ACS identity with somebody else."""
        shared = SharedIds(shared_ids)
        columns = ["PartitionKey", "RowKey", "acsId"]
        async for entities, _now in _pages_of(self._mappings, self._page_size, select=columns):
            for entity in entities:
                shared.look_at(entity)
        shared.report()


async def _clock_of(table: TableClient) -> datetime:
    """Return the time on a table's clock."""
    # An empty table has a page, too.
    _entities, now = await anext(_pages_of(table, 1, select=["RowKey"]))
    return now


async def _pages_of(
    table: TableClient,
    size: int,
    **options: Any,  # noqa: ANN401 - the SDK's
) -> AsyncIterator[tuple[list[TableEntity], datetime]]:
    """Yield the pages of a table, each with the time on the table's clock."""
    dates: list[datetime] = []

    def keep_date(response: PipelineResponse[Any, Any]) -> None:
        dates[:] = [parsedate_to_datetime(response.http_response.headers["Date"])]

    # An empty page need not be the last one; the iterator follows its continuation token.
    pages = table.list_entities(
        results_per_page=size, raw_response_hook=keep_date, **options
    ).by_page()
    while True:
        try:
            with audit.timed("table_ms"):
                async with asyncio.timeout(PAGE_SECONDS):
                    page = [entity async for entity in await anext(pages)]
        except StopAsyncIteration:
            return
        except (AzureError, TimeoutError) as exc:
            raise _failure(f"the table {table.table_name}", exc) from exc
        yield page, dates[0]


def _failure(what: str, exc: Exception) -> StorageUnavailableError:
    return StorageUnavailableError(f"{what}: {reason_of(exc)}")

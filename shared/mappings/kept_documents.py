"""Small documents that processes keep for each other, in the ledger's table.

Nothing else that reads that table looks at their partition, and a restore leaves them out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from azure.data.tables import UpdateMode

from shared.mappings.attempts import READ_ATTEMPTS, AbsentError, TimeKeeper, attempt

if TYPE_CHECKING:
    from datetime import datetime

    from azure.data.tables.aio import TableClient

    from shared.retry_budget import RetryBudget

KEPT = "kept"
# https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types
MAX_BYTES = 64 * 1024


class KeptDocuments:
    """Documents by name. Raises StorageUnavailableError as `Ledger` does.

    Args:
        table: the ledger's.
        budget: for the retries of reads.
    """

    def __init__(self, table: TableClient, budget: RetryBudget) -> None:
        self._table = table
        self._budget = budget

    async def write(self, name: str, document: bytes) -> None:
        """Keep a document, in place of an earlier one.

        Raises:
            ValueError: it does not fit.
        """
        if len(document) > MAX_BYTES:
            raise ValueError("the document is over 64 KiB")
        entity = {
            "PartitionKey": KEPT,
            "RowKey": name,
            "document": document,
            "sha256": _digest(document),
        }
        # Tried once: the next one is due soon, and nobody waits for it.
        await attempt(
            lambda: self._table.upsert_entity(entity, mode=UpdateMode.REPLACE), 1, budget=None
        )

    async def read(self, name: str) -> tuple[bytes, datetime] | None:
        """Return a document that is as it was written, and the time on the table's clock.

        Raises:
            ValueError: it is damaged.
        """
        keeper = TimeKeeper()
        try:
            entity = await attempt(
                lambda: self._table.get_entity(KEPT, name, raw_response_hook=keeper),
                READ_ATTEMPTS,
                budget=self._budget,
            )
        except AbsentError:
            return None
        document = entity.get("document")
        if not isinstance(document, bytes) or entity.get("sha256") != _digest(document):
            raise ValueError("the document is damaged")
        return document, keeper.known.now


def _digest(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from shared.errors import StorageUnavailableError
from shared.mappings.kept_documents import MAX_BYTES, KeptDocuments
from shared.retry_budget import RetryBudget
from tests.emulated import ACS_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure.data.tables.aio import TableClient

    from tests.emulated import Clock, Store


@pytest.fixture
def documents(ledger_table: TableClient) -> KeptDocuments:
    return KeptDocuments(ledger_table, RetryBudget())


@pytest.fixture
def ledger_table(store: Store) -> TableClient:
    """The ledger's table, behind the proxy with its faults."""
    return store.ledger._table  # noqa: SLF001 - services.py gives the same client to both


async def test_kept(documents: KeptDocuments, clock: Clock) -> None:
    """The latest document is read as it was written, with the time on the table's clock."""
    await documents.write("keys", b"first")
    await documents.write("keys", bytes(range(256)))
    clock.advance(hours=3)

    found = await documents.read("keys")

    assert found is not None
    assert bytes(range(256)) == found[0]
    assert clock.is_now(found[1])
    assert await documents.read("other") is None


async def test_as_much_as_fits(documents: KeptDocuments) -> None:
    """A column holds 64 KiB, and nothing is cut off."""
    await documents.write("keys", b"k" * MAX_BYTES)

    with pytest.raises(ValueError, match="64 KiB"):
        await documents.write("keys", b"k" * (MAX_BYTES + 1))

    found = await documents.read("keys")
    assert found is not None
    assert MAX_BYTES == len(found[0])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda digest: {"document": b"other"}, id="other document"),
        pytest.param(lambda digest: {"document": "kept"}, id="document a text"),
        pytest.param(lambda digest: {"document": None}, id="no document"),
        pytest.param(lambda digest: {"sha256": None}, id="no digest"),
        pytest.param(lambda digest: {"sha256": digest.upper()}, id="digest in capitals"),
    ],
)
async def test_damaged(
    documents: KeptDocuments, store: Store, change: Callable[[str], dict[str, Any]]
) -> None:
    """What is not as it was written is not read."""
    digest = hashlib.sha256(b"kept").hexdigest()
    entity = {"PartitionKey": "kept", "RowKey": "keys", "document": b"kept", "sha256": digest}
    await store.entries.upsert_entity(
        {name: value for name, value in (entity | change(digest)).items() if value is not None}
    )

    with pytest.raises(ValueError, match="damaged"):
        await documents.read("keys")


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}])
async def test_store_fails(documents: KeptDocuments, store: Store, fault: dict[str, Any]) -> None:
    """A write is tried once; neither failure means that there is no document."""
    store.faults.fail_next("*", times=20, **fault)

    with pytest.raises(StorageUnavailableError):
        await documents.read("keys")
    before = store.faults.count("table_update")
    with pytest.raises(StorageUnavailableError):
        await documents.write("keys", b"kept")
    assert before + 1 == store.faults.count("table_update")


async def test_is_not_of_the_ledger(documents: KeptDocuments, store: Store) -> None:
    """Nothing that the ledger is read for sees a document."""
    await documents.write("keys", b"kept")
    await documents.write(ACS_ID, b"kept")

    assert ({}, []) == (await store.orphans(), await store.unfinished())
    assert [] == [owner async for owner in store.ledger.owners()]
    assert await store.ledger.owner(ACS_ID) is None
    assert not await store.ledger.is_orphan(ACS_ID)

"""The backup's timer, run as an operator runs it: by the host's own admin route."""

from __future__ import annotations

import io
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from azure.storage.blob import ContainerClient

from local.stack import BACKUP_CONTAINER
from shared.mappings.backup_file import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from local.stack import FunctionsHost
    from tests.running import Client, Running


async def report_of(app: Client, host: FunctionsHost) -> dict[str, Any]:
    """Run the timer now, and return what it reports."""
    del host.output[:]
    answer = await app.post("/admin/functions/back_up_mappings", json={"input": ""})
    assert 202 == answer.status
    line = await host.printed('"event": "backup_')
    report: dict[str, Any] = json.loads(line[line.index("{") :])
    return report


@pytest.fixture
def container(running: Running) -> Iterator[ContainerClient]:
    """The container for backups, opened past everything that the broker has."""
    with ContainerClient.from_connection_string(
        running.stack.storage.connection_string,
        BACKUP_CONTAINER,
        connection_verify=running.stack.environment.get("SSL_CERT_FILE", True),
    ) as client:
        yield client


async def test_writes_a_backup(running: Running, app: Client, container: ContainerClient) -> None:
    """The timer writes a blob that has the row of somebody who has just got a token."""
    somebody = str(uuid.uuid4())
    answer = await app.get("/api/token", running.token_of_new_person(oid=somebody))

    report = await report_of(app, running.host)

    assert "backup_finished" == report["event"]
    data = container.download_blob(report["blob"]).readall()
    assert len(data) == report["bytes"]
    rows = list(rows_of(io.BytesIO(data)))
    assert report["rows"] + report["ledger_rows"] == len(rows)
    [row] = [row for row in rows if row.entity["RowKey"] == somebody]
    assert ("IdentityMappings", answer.json["user"]["id"]) == (row.table, row.entity["acsId"])


async def test_slow_page(running: Running, app: Client, container: ContainerClient) -> None:
    """The timer waits longer for a page of rows than a request may wait for one row."""
    running.stack.tables.faults.fail_next("table_query", delay=3.5)

    report = await report_of(app, running.host)

    assert container.get_blob_client(report["blob"]).exists()
    assert report["table_ms"] >= 3500


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (
            "blob_block",
            "of backups: HttpResponseError AuthorizationPermissionMismatch",
        ),
        ("table_query", "AuthorizationPermissionMismatch"),
    ],
)
async def test_no_role(
    running: Running, app: Client, container: ContainerClient, operation: str, reason: str
) -> None:
    """Without the role on the container or the table, the run fails, says so and writes nothing."""
    before = {blob.name for blob in container.list_blobs()}
    faults = running.stack.blobs.faults if "blob" in operation else running.stack.tables.faults
    faults.fail_next(operation, status=403, times=9)

    report = await report_of(app, running.host)

    assert ("backup_failed", "storage_unavailable") == (report["event"], report["code"])
    assert report["reason"].endswith(reason)
    assert before == {blob.name for blob in container.list_blobs()}


async def test_off(
    app_at: Callable[[FunctionsHost], Client], another_host: Callable[..., FunctionsHost]
) -> None:
    """Without a place for it there is no backup, and each run says so."""
    host = another_host(BACKUP_CONNECTION_STRING=" ", BACKUP_BLOB_ENDPOINT=" ")

    assert {"event": "backup_off"} == await report_of(app_at(host), host)

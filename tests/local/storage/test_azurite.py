from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from azure.core import MatchConditions
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    HttpResponseError,
    IncompleteReadError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)
from azure.data.tables import TableErrorCode
from azure.data.tables.aio import TableClient
from azure.storage.blob.aio import ContainerClient

from local.serving.application import serve
from local.serving.certificates import Certificates
from local.storage.azurite import AzuriteError, Endpoints, azurite
from local.storage.proxy import BlobProxy, TableProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPOSITORY = Path(__file__).parents[3]
ROW = {"PartitionKey": "a_1f", "RowKey": "it's %2F ü", "state": "active"}
BOUNDS: dict[str, Any] = {"retry_total": 0, "connection_timeout": 1, "read_timeout": 1}


def is_open(port: int) -> bool:
    """Tell whether anything listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_of(endpoint: str) -> int:
    """Return the port of an endpoint's URL."""
    return urlsplit(endpoint).port or 0


class EntraToken:
    """A credential whose token Azurite takes: it looks at the claims and not at the signature."""

    async def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        """Return a token for storage."""
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/1f1c0f9e-5f0e-4a47-9a0f-0d1b8a1f3a77/",
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
        }
        parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
        token = ".".join(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in parts)
        return AccessToken(f"{token}.c2ln", now + 3600)

    async def close(self) -> None:
        """Hold nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Hold nothing."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tables() -> AsyncIterator[Endpoints]:
    """Run Azurite's tables over HTTP."""
    async with azurite() as endpoints:
        yield endpoints


@pytest.fixture
async def proxy(tables: Endpoints) -> AsyncIterator[TableProxy]:
    """Run the proxy in front of Azurite."""
    proxy = TableProxy(tables.table)
    async with serve(proxy.application()) as url:
        proxy.url = url
        yield proxy


@pytest.fixture
async def table(proxy: TableProxy) -> AsyncIterator[TableClient]:
    """Connect to a table through the proxy, without retries."""
    connection = Endpoints(table=proxy.endpoint).connection_string
    async with TableClient.from_connection_string(connection, "Mappings", **BOUNDS) as table:
        await table.create_table()
        yield table
        await table.delete_table()


class TestAzurite:
    """Azurite as a child process."""

    async def test_ends_with_its_context(self) -> None:
        """It answers the real client while the context lasts, and then the port is free."""
        async with azurite() as endpoints:
            async with TableClient.from_connection_string(
                endpoints.connection_string, "Mappings", **BOUNDS
            ) as table:
                await table.create_table()
                await table.create_entity(ROW)
                assert (
                    "active"
                    == (await table.get_entity(ROW["PartitionKey"], ROW["RowKey"]))["state"]
                )
            assert endpoints.blob is None

        assert not is_open(port_of(endpoints.table))

    async def test_all_services(self) -> None:
        """The Functions host finds blobs and queues on the ports that it expects."""
        async with azurite(blob_and_queue_ports=(0, 0)) as endpoints:
            assert endpoints.blob is not None
            assert endpoints.queue is not None
            assert is_open(port_of(endpoints.blob))
            assert is_open(port_of(endpoints.queue))
            assert f"BlobEndpoint={endpoints.blob};Queue" in endpoints.connection_string

    async def test_port_in_use(self) -> None:
        """Azurite's own message about a failed start is passed on."""
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(AzuriteError, match="EADDRINUSE"),
        ):
            async with azurite(table_port=taken.getsockname()[1]):
                pass

    async def test_ends_with_its_parent(self, tmp_path: Path) -> None:
        """Azurite ends when its parent is killed."""
        program = (
            "import asyncio, local.storage.azurite as a\n"
            "async def main():\n"
            "    async with a.azurite() as endpoints:\n"
            "        print(endpoints.table, flush=True)\n"
            "        await asyncio.sleep(60)\n"
            "asyncio.run(main())"
        )
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(tmp_path)},  # It cannot remove its folder.
            stdout=subprocess.PIPE,
        )
        assert parent.stdout is not None
        port = port_of((await parent.stdout.readline()).decode())
        assert is_open(port)

        parent.send_signal(signal.SIGKILL)
        await parent.communicate()

        async with asyncio.timeout(5):
            while is_open(port):  # noqa: ASYNC110 - another process listens
                await asyncio.sleep(0.05)

    def test_no_node(self, tmp_path: Path) -> None:
        """Without Node.js the message says where to get it."""
        found = subprocess.run(
            [sys.executable, "-c", "import local.storage.npm as n; n.find_node()"],
            cwd=REPOSITORY,
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

        has_node = Path(sys.executable).with_name("node").exists()
        assert (
            has_node
            or "pip install --require-hashes -r local/storage/requirements-node.txt" in found.stderr
        )


class TestWithEntraTokens:
    """As with managed identity: TLS, and tokens instead of keys."""

    async def test_through_the_proxy(self, tmp_path: Path) -> None:
        """The real client is served over HTTPS with a token, by a server it can verify."""
        certificates = Certificates(tmp_path)
        trust = ssl.create_default_context(cafile=certificates.authority_file)
        async with azurite(certificates=certificates) as endpoints:
            proxy = TableProxy(endpoints.table, tls=trust)
            async with (
                serve(proxy.application(), tls=certificates.server_context()) as proxy.url,
                TableClient(
                    proxy.endpoint,
                    "Mappings",
                    credential=EntraToken(),
                    connection_verify=str(certificates.authority_file),
                    **BOUNDS,
                ) as table,
            ):
                await table.create_table()
                await table.create_entity(ROW)
                entity = await table.get_entity(ROW["PartitionKey"], ROW["RowKey"])

        assert "active" == entity["state"]
        assert 1 == proxy.faults.count("table_read")


class TestBlobProxy:
    """The proxy in front of Azurite's blobs."""

    async def test_operations(self) -> None:
        """It passes on what the SDK sends, counts it, and fails as Blob Storage can."""
        async with azurite(blob_and_queue_ports=(0, 0)) as endpoints:
            assert endpoints.blob is not None
            proxy = BlobProxy(endpoints.blob)
            async with serve(proxy.application()) as url:
                proxy.url = url
                connection = endpoints.connection_string.replace(endpoints.blob, proxy.endpoint)
                async with ContainerClient.from_connection_string(
                    connection, "backups", retry_total=0, max_single_put_size=1, max_block_size=4
                ) as container:
                    await container.create_container()
                    proxy.faults.fail_next("blob_commit", status=503)
                    with pytest.raises(HttpResponseError, match="ServerBusy"):
                        await container.upload_blob("lost", b"12345678")
                    await container.upload_blob("kept", b"12345678")
                    names = [blob.name async for blob in container.list_blobs()]
                    kept = await (await container.download_blob("kept")).readall()

        assert (["kept"], b"12345678") == (names, kept)
        assert (4, 2) == tuple(map(proxy.faults.count, ("blob_block", "blob_commit")))
        assert proxy.faults.count("blob_read")


class TestTableProxy:
    """Faults on request; everything else is unchanged."""

    async def test_counts_operations(self, proxy: TableProxy, table: TableClient) -> None:
        """Each operation has a name, whatever is in a key."""
        keys = (ROW["PartitionKey"], ROW["RowKey"])
        await table.create_entity(ROW)
        etag = (await table.get_entity(*keys)).metadata["etag"]
        match: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfNotModified}
        await table.update_entity(ROW, **match)
        assert [ROW] == [dict(each) async for each in table.query_entities("state eq 'active'")]
        with pytest.raises(ResourceModifiedError):
            await table.delete_entity(*keys, **match)
        await table.delete_entity(*keys)

        counts = {
            name: proxy.faults.count(f"table_{name}")
            for name in ("create", "insert", "read", "update", "query", "delete", "batch")
        }
        expected = {"create": 1, "insert": 1, "read": 1, "update": 1, "query": 1, "delete": 2}
        assert {**expected, "batch": 0} == counts

    async def test_status(self, proxy: TableProxy, table: TableClient) -> None:
        """A status comes once, with the service's own form of error."""
        proxy.faults.fail_next("table_read", status=503, headers={"Retry-After": "1"})

        with pytest.raises(HttpResponseError) as busy:
            await table.get_entity("p", "r")
        with pytest.raises(ResourceNotFoundError) as missing:
            await table.get_entity("p", "r")

        assert 503 == busy.value.status_code
        codes = [getattr(each.value, "error_code", None) for each in (busy, missing)]
        assert [TableErrorCode.SERVER_BUSY, TableErrorCode.RESOURCE_NOT_FOUND] == codes

    async def test_lost_answer(self, proxy: TableProxy, table: TableClient) -> None:
        """A reply can be lost after the service has acted."""
        proxy.faults.fail_next("table_insert", reset=True, after=True)

        with pytest.raises(ServiceRequestError):
            await table.create_entity(ROW)
        with pytest.raises(ResourceExistsError):
            await table.create_entity(ROW)

    async def test_slow_and_cut(self, proxy: TableProxy, table: TableClient) -> None:
        """The client distinguishes silence from half an answer."""
        proxy.faults.fail_next("table_read", delay=2)
        proxy.faults.fail_next("table_query", truncate=5)

        with pytest.raises(ServiceResponseTimeoutError):
            await table.get_entity("p", "r")
        with pytest.raises(IncompleteReadError):
            [each async for each in table.query_entities("state eq 'active'")]

    async def test_clock(self, proxy: TableProxy, table: TableClient) -> None:
        """The date in an otherwise real answer can be set."""
        seen: list[str] = []
        proxy.faults.fail_next("table_query", headers={"Date": "Mon, 01 Jan 2029 00:00:00 GMT"})

        for _ in range(2):
            pages = table.query_entities(
                "state eq 'active'",
                raw_response_hook=lambda answer: seen.append(answer.http_response.headers["Date"]),
            )
            assert [] == [each async for each in pages]

        assert "Mon, 01 Jan 2029 00:00:00 GMT" == seen[0]
        now = datetime.strptime(seen[1], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)

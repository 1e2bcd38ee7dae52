"""The tables and blobs of the stack: a token opens them only with the role."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    HttpResponseError,
)
from azure.data.tables.aio import TableClient
from azure.storage.blob.aio import ContainerClient

from local.entra.directory import ADA, DAEMON, STORAGE, USER_ASSIGNED_IDENTITY
from local.serving.application import serve
from local.storage.azurite import azurite
from local.storage.proxy import BlobProxy, TableProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra.emulator import EntraEmulator
    from local.serving.certificates import Certificates
    from local.storage.proxy import StorageProxy

ONCE: dict[str, Any] = {"retry_total": 0}


class Credential:
    """A credential with one token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        """Return the token."""
        return AccessToken(self._token, 9999999999)

    async def close(self) -> None:
        """Hold nothing."""


@pytest.fixture
async def proxies(
    certificates: Certificates, entra: EntraEmulator
) -> AsyncIterator[tuple[StorageProxy, StorageProxy]]:
    """The proxies in front of tables and blobs, over HTTPS."""
    trust = ssl.create_default_context(cafile=certificates.authority_file)
    async with azurite(blob_and_queue_ports=(0, 0), certificates=certificates) as storage:
        assert storage.blob
        tables = TableProxy(storage.table, tls=trust, verify_bearer=entra.verify)
        blobs = BlobProxy(storage.blob, tls=trust, verify_bearer=entra.verify)
        tls = certificates.server_context()
        async with (
            serve(tables.application(), tls=tls) as tables_url,
            serve(blobs.application(), tls=tls) as blobs_url,
        ):
            tables.url, blobs.url = tables_url, blobs_url
            yield tables, blobs


async def test_roles(
    entra: EntraEmulator,
    certificates: Certificates,
    proxies: tuple[StorageProxy, StorageProxy],
) -> None:
    """Both take the managed identity's token until its role is taken away, and no other."""
    tables, blobs = proxies
    trusted = {"connection_verify": str(certificates.authority_file), **ONCE}

    async def ask(**changes: Any) -> list[tuple[int | None, str | None]]:
        """Return how the table and the container refuse a token."""
        options = {"user": None, "client": USER_ASSIGNED_IDENTITY, "resource": STORAGE, **changes}
        credential: Any = Credential(entra.issue_access_token(**options))
        table = TableClient(tables.endpoint, "Mappings", credential=credential, **trusted)
        container = ContainerClient(blobs.endpoint, "backup", credential=credential, **trusted)
        refusals = []
        async with table, container:
            with pytest.raises(HttpResponseError) as of_table:
                await table.get_entity("a", "b")
            with pytest.raises(HttpResponseError) as of_container:
                await container.get_container_properties()
        for caught in (of_table, of_container):
            code = getattr(caught.value, "error_code", None)
            refusals.append((caught.value.status_code, code))
        return refusals

    found = [(404, "TableNotFound"), (404, "ContainerNotFound")]
    denied = [(403, "AuthorizationPermissionMismatch")] * 2
    unknown = [(401, "InvalidAuthenticationInfo")] * 2

    assert found == await ask()
    assert denied == await ask(client=DAEMON)
    assert denied == await ask(user=ADA.user_name)
    assert unknown == await ask(audience="https://communication.azure.com")
    assert unknown == await ask(header={"kid": "unknown"})
    for proxy in proxies:
        proxy.roles.take(USER_ASSIGNED_IDENTITY.principal_id)
    assert denied == await ask()
    for proxy in proxies:
        proxy.roles.give(USER_ASSIGNED_IDENTITY.principal_id)
    assert found == await ask()

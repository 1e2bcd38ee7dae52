"""Connection strings: what the settings accept, the SDKs accept, and mean the same by it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import pytest
from azure.communication.identity.aio import CommunicationIdentityClient
from azure.core.credentials import AzureKeyCredential
from azure.data.tables.aio import TableClient
from azure.storage.blob.aio import ContainerClient
from hypothesis import given
from hypothesis import strategies as st

from shared.endpoints import (
    LOOPBACK_HOSTS,
    acs_connection_endpoint,
    acs_connection_key,
    blob_connection_string,
    blob_endpoint,
    table_connection_string,
    table_endpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure.core.credentials import AccessToken

    Fields = list[tuple[str, str]]

STORAGE = [
    ("DefaultEndpointsProtocol", "https"),
    ("AccountName", "contoso"),
    ("AccountKey", "c2VjcmV0"),
    ("EndpointSuffix", "core.windows.net"),
]
ACS = [("endpoint", "https://contoso.communication.azure.com/"), ("accesskey", "c2VjcmV0")]
NAMES = [
    "DefaultEndpointsProtocol",
    "AccountName",
    "AccountKey",
    "EndpointSuffix",
    "TableEndpoint",
    "TableSecondaryEndpoint",
    "BlobEndpoint",
    "BlobSecondaryEndpoint",
    "SharedAccessSignature",
    "UseDevelopmentStorage",
    "endpoint",
    "accesskey",
    "ACCOUNTNAME",
    "Unknown",
    "ſ",
    "",
]
TABLE_HOST = r"[a-z0-9]{3,24}\.table\.core\.windows\.net"
BLOB_HOST = TABLE_HOST.replace("table", "blob")
VALUES = [
    "",
    "true",
    "https",
    "http",
    "contoso",
    "c2VjcmV0",
    "core.windows.net",
    "https://contoso.table.core.windows.net/",
    "https://contoso.blob.core.windows.net",
    "https://fabrikam.blob.core.windows.net",
    "https://contoso.table.core.windows.net/path?sv=1&sig=x",
    "https://contoso.table.core.win\ndows.net",
    "http://127.0.0.1:10002/devstoreaccount1",
    "http://user@127.0.0.1:10002/devstoreaccount1",
    "http://127.0.0.1:99999/devstoreaccount1",
    "//127.0.0.1/devstoreaccount1",
    "ftp://127.0.0.1",
    "HTTP://LOCALHOST:10002/devstoreaccount1",
    "https://contoso.communication.azure.com",
    "https://[",
]


def text_of(fields: Fields) -> str:
    """Return the connection string with these fields."""
    return ";".join(f"{name}={value}" for name, value in fields)


def changed(fields: Fields) -> st.SearchStrategy[str]:
    """Return connection strings that differ from a good one by some fields, or in their text."""
    field = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.text(max_size=8))
    several = st.lists(field, max_size=2)
    kept = st.lists(st.sampled_from(fields), unique=True) | st.just(fields)
    whole = st.builds(lambda some, more: text_of(some + more), kept, several)
    end = st.sampled_from(["", "", ";", ";;", " ", "\n", "="])
    return st.builds(str.__add__, whole, end).map(str.strip)  # The settings are stripped, too.


def accepted(check: Callable[[str], str], text: str) -> bool:
    """Return whether the settings accept a text."""
    try:
        check(text)
    except ValueError:
        return False
    return True


async def _host_of_table(text: str) -> str | None:
    async with TableClient.from_connection_string(text, "Mappings") as client:
        return urlsplit(client.url).hostname


async def _host_of_container(text: str) -> str | None:
    async with ContainerClient.from_connection_string(text, "backup") as client:
        return urlsplit(client.url).hostname


@given(changed(STORAGE))
def test_tables(text: str) -> None:
    """The SDK takes what the settings take, and goes to the host of an account."""
    if accepted(table_connection_string, text):
        host = asyncio.run(_host_of_table(table_connection_string(text))) or ""
        assert host in LOOPBACK_HOSTS or re.fullmatch(TABLE_HOST, host)


@given(changed(STORAGE))
def test_blobs(text: str) -> None:
    """The same for backups."""
    if accepted(blob_connection_string, text):
        host = asyncio.run(_host_of_container(blob_connection_string(text))) or ""
        assert host in LOOPBACK_HOSTS or re.fullmatch(BLOB_HOST, host)


@given(changed(ACS))
def test_acs(text: str) -> None:
    """The SDK takes the endpoint and the key that the settings read, and reads the same."""
    if accepted(acs_connection_endpoint, text) and accepted(acs_connection_key, text):
        asyncio.run(_open_acs(text))


async def _open_acs(text: str) -> None:
    endpoint, key = acs_connection_endpoint(text), acs_connection_key(text)
    async with CommunicationIdentityClient(endpoint, AzureKeyCredential(key)):
        pass
    async with CommunicationIdentityClient.from_connection_string(text) as client:
        assert urlsplit(endpoint).netloc == urlsplit(client._endpoint).netloc  # noqa: SLF001


class NoCredential:
    """A managed identity that nobody asks."""

    async def get_token(self, *_scopes: str, **_options: object) -> AccessToken:
        raise AssertionError

    async def close(self) -> None:
        """Nothing is open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        """Nothing is open."""


async def _host_opened_by_identity(check: Callable[[str], str], endpoint: str) -> str | None:
    credential = NoCredential()
    async with (
        TableClient(endpoint, "Mappings", credential=credential)
        if check is table_endpoint
        else ContainerClient(endpoint, "backup", credential=credential)
    ) as client:
        return urlsplit(client.url).hostname


@pytest.mark.parametrize(("check", "service"), [(table_endpoint, "table"), (blob_endpoint, "blob")])
@given(
    scheme=st.sampled_from(["https://", "HTTPS://", "http://", "//", "", "ftp://"]),
    host=st.sampled_from(
        ["contoso.{}.core.windows.net", "127.0.0.1", "localhost", "[::1]", "evil.example", "[", ""]
    ),
    rest=st.sampled_from(
        [
            "",
            "/",
            "//",
            ":443",
            ":10002/devstoreaccount1",
            ":99999",
            "/x",
            "?sig=x",
            "#x",
            "\n",
            "@",
        ]
    )
    | st.text(max_size=4),
)
def test_storage_endpoints(
    check: Callable[[str], str], service: str, scheme: str, host: str, rest: str
) -> None:
    """Endpoints that a managed identity opens: likewise."""
    text = f"{scheme}{host.format(service)}{rest}"
    if accepted(check, text):
        found = asyncio.run(_host_opened_by_identity(check, check(text)))
        assert found in {*LOOPBACK_HOSTS, f"contoso.{service}.core.windows.net"}


@pytest.mark.parametrize(
    "text",
    [
        text_of(STORAGE),
        text_of(STORAGE) + ";",
        text_of(STORAGE[1:3]),
        text_of([*STORAGE, ("TableEndpoint", "https://contoso.table.core.windows.net/")]),
        text_of([*STORAGE[1:], ("TableEndpoint", "http://127.0.0.1:10002/devstoreaccount1")]),
        "UseDevelopmentStorage=true",
    ],
)
def test_good(text: str) -> None:
    """What Azure's portal and Azurite give is accepted, so the properties above are not empty."""
    assert accepted(table_connection_string, text)
    assert asyncio.run(_host_of_table(table_connection_string(text)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param(
            [STORAGE[2], ("TableEndpoint", "https://contoso.table.core.windows.net")],
            "has no AccountName=",
            id="no account name",
        ),
        pytest.param([STORAGE[1]], "has no AccountKey=", id="no key"),
        pytest.param(
            [STORAGE[1], ("SharedAccessSignature", "sv=1&sig=x")], "has no AccountKey=", id="SAS"
        ),
        pytest.param([*STORAGE, ("Unknown", "")], "is not a connection string", id="no value"),
        pytest.param(
            [*STORAGE[1:], ("TableSecondaryEndpoint", "https://contoso.table.core.windows.net")],
            "has TableSecondaryEndpoint= alone",
            id="only the secondary",
        ),
        pytest.param(
            [*STORAGE, ("TableEndpoint", "https://fabrikam.table.core.windows.net")],
            "has the endpoint of an account other than AccountName=",
            id="another account",
        ),
        pytest.param(
            [*STORAGE, ("TableEndpoint", "https://contoso.table.core.windows.net/?sig=x")],
            "has an endpoint that is not",
            id="a signature in the endpoint",
        ),
        pytest.param(
            [*STORAGE, ("TableEndpoint", "http://127.0.0.1:99999/")], "is not a URL", id="port"
        ),
        pytest.param(
            [*STORAGE, ("UseDevelopmentStorage", "true")],
            "has UseDevelopmentStorage= next to an account",
            id="two accounts",
        ),
    ],
)
def test_bad(fields: Fields, reason: str) -> None:
    """The message says what is missing or wrong, and holds no key."""
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        table_connection_string(text_of(fields))

    assert "c2VjcmV0" not in str(caught.value)

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from local.entra.emulator import EntraEmulator
from local.serving.application import serve
from local.serving.certificates import Certificates
from local.storage.npm import install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra.tokens import SigningKey

JS = Path(__file__).parent.parent / "js"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority, and a certificate for loopback."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def js() -> Path:
    """The folder of the JavaScript clients, with the packages in its lock file installed."""
    install(JS, "the JavaScript clients")
    return JS


@pytest.fixture
async def entra(
    certificates: Certificates, entra_keys: list[SigningKey]
) -> AsyncIterator[EntraEmulator]:
    """An Entra for this test alone, over HTTPS."""
    emulator = EntraEmulator(keys=entra_keys)
    async with serve(emulator.application(), tls=certificates.server_context()) as url:
        emulator.url = url
        yield emulator


@pytest.fixture
async def http(certificates: Certificates) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that trusts the certificates, and keeps cookies."""
    context = ssl.create_default_context(cafile=certificates.authority_file)
    jar = aiohttp.CookieJar(unsafe=True)  # For cookies from an address, not a name.
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:
        yield session

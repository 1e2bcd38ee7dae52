from __future__ import annotations

import fcntl
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from local.certificates import Certificates
from local.entra import EntraEmulator
from local.serving import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra_tokens import SigningKey

JS = Path(__file__).parent.parent / "js"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority, and a certificate for loopback."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def js() -> Path:
    """The folder of the JavaScript clients, with its packages as the lock file has them."""
    lock, installed = JS / "package-lock.json", JS / "node_modules" / ".package-lock.json"
    npm = shutil.which("npm")
    assert npm, "npm is missing: install Node.js 20 or later"
    with lock.open() as held:
        # The tests' processes take turns: the first one installs.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(  # noqa: S603 - npm from the PATH, with fixed arguments
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=JS, check=True
            )
    return JS


@pytest.fixture
async def entra(
    certificates: Certificates, entra_keys: list[SigningKey]
) -> AsyncIterator[EntraEmulator]:
    """An Entra of one's own, over HTTPS."""
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

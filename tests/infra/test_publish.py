"""`infra/publish.py` with a deployment endpoint on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import zipfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra/publish.py"
# The answers of `az`; tests/infra/test_scripts.py tests the calls to it.
AZ = """#!/bin/sh
case "$*" in
  "deployment sub list "*) cat "$0.deployments" ;;
  "deployment sub show "*) cat "$0.outputs" ;;
  "resource show --resource-group rg-acs-token-broker-dev --name func-dev "*) cat "$0.host" ;;
  "account get-access-token --query accessToken "*) echo the-token ;;
  *) exit 1 ;;
esac
"""
DEPLOYMENT = {"name": "acs-token-broker-dev", "tags": None, "state": "Succeeded", "time": "1"}
OUTPUTS = {
    "AZURE_RESOURCE_GROUP": "rg-acs-token-broker-dev",
    "AZURE_FUNCTION_NAME": "func-dev",
    "AZURE_FUNCTION_URL": "https://func-dev.example",
}
DONE = {"status": 4}
FORBIDDEN = "Response status code does not indicate success: 403 (This request is not authorized)."


@dataclass
class Kudu:
    """The deployment endpoint of a function app: its answers, and the requests to it."""

    uploads: list[tuple[int, str]] = field(default_factory=list)
    states: list[tuple[int, object]] = field(default_factory=list)
    log: str = ""
    asked: list[str] = field(default_factory=list)
    packages: list[bytes] = field(default_factory=list)

    async def upload(self, request: web.Request) -> web.Response:
        """Take a package. The last answer is repeated."""
        assert "Bearer the-token" == request.headers["Authorization"]
        assert "application/zip" == request.content_type
        self.asked.append(f"POST {request.path_qs}")
        self.packages.append(await request.read())
        status, text = self.uploads.pop(0) if len(self.uploads) > 1 else self.uploads[0]
        return web.Response(status=status, text=text)

    async def state(self, request: web.Request) -> web.Response:
        """Answer with the state of a deployment. The last answer is repeated."""
        assert "Bearer the-token" == request.headers["Authorization"]
        self.asked.append(f"GET {request.path_qs}")
        if request.path.endswith("/log"):
            return web.Response(text=self.log)
        status, answer = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return web.Response(status=status, text=json.dumps(answer))

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve it, and yield the host and port."""
        app = web.Application(client_max_size=10_000_000)
        app.router.add_post("/api/publish", self.upload)
        app.router.add_get("/api/deployments/{tail:.*}", self.state)
        async with serve(app) as url:
            yield url.removeprefix("http://")


def package(*names: str) -> bytes:
    """Return a zip with some files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return buffer.getvalue()


PACKAGE = package("host.json", "function_app.py", ".python_packages/lib/site-packages/jwt.py")


async def publish(
    folder: Path,
    host: str,
    *,
    wait: float = 30,
    pause: float = 10,
    content: bytes = PACKAGE,
    python: str = sys.executable,
) -> tuple[int | None, str, str]:
    """Run the script as an operator does; return its exit code and output."""
    (folder / "az").write_text(AZ)
    (folder / "az").chmod(0o755)
    (folder / "az.deployments").write_text(json.dumps([DEPLOYMENT]))
    outputs = {name: {"value": value} for name, value in OUTPUTS.items()}
    (folder / "az.outputs").write_text(json.dumps(outputs))
    (folder / "az.host").write_text(host)
    (folder / "app.zip").write_bytes(content)
    (folder / "python3").symlink_to(python)
    arguments = ["dev", "--package", str(folder / "app.zip")]
    arguments += ["--wait", str(wait), "--pause", str(pause)]
    process = await asyncio.create_subprocess_exec(
        python,
        SCRIPT,
        *arguments,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        stdout=-1,
        stderr=-1,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_publishes(tmp_path: Path, each_python: str) -> None:
    """It uploads the package without a build, and waits for that deployment."""
    kudu = Kudu(uploads=[(202, '"d-1"')], states=[(404, {}), (202, {"status": 2}), (200, DONE)])
    async with kudu.served() as host:
        code, out, err = await publish(tmp_path, host, python=each_python)
    assert (0, "") == (code, err)
    assert [PACKAGE] == kudu.packages
    assert "POST /api/publish?RemoteBuild=false&Deployer=acs-token-broker" == kudu.asked[0]
    assert {"GET /api/deployments/d-1"} == set(kudu.asked[1:])
    assert "python3 infra/smoke_test.py https://func-dev.example" in out
    assert "deploying\nsuccess\n" in out
    assert "sha256" in out


async def test_worker_replaced(tmp_path: Path) -> None:
    """If a deployment is first found and then not, it has succeeded: its worker was replaced."""
    kudu = Kudu(uploads=[(202, "d-1")], states=[(202, {"status": 1}), (404, {})])
    async with kudu.served() as host:
        code, _, _ = await publish(tmp_path, host)
    assert 0 == code


@pytest.mark.parametrize(
    "first",
    [
        pytest.param((403, "the role is not here yet"), id="403"),
        pytest.param((409, "another deployment"), id="409"),
        pytest.param((503, "Site Unavailable"), id="503"),
        pytest.param((400, f"InaccessibleStorageException: {FORBIDDEN}"), id="storage"),
    ],
)
async def test_tries_again(tmp_path: Path, first: tuple[int, str]) -> None:
    """It tries again after errors that a new environment causes for a while."""
    kudu = Kudu(uploads=[first, (202, '"d-1"')], states=[(200, DONE)])
    async with kudu.served() as host:
        code, out, _ = await publish(tmp_path, host, pause=0.1)
    assert (0, 2) == (code, len(kudu.packages))
    assert first[1] in out


async def test_storage_role_without_effect(tmp_path: Path) -> None:
    """It tries again if a deployment fails because the app's role has no effect yet."""
    kudu = Kudu(
        uploads=[(202, '"d-1"')],
        states=[(200, {"status": 3, "status_text": ""}), (200, DONE)],
        log=json.dumps([{"message": FORBIDDEN}]),
    )
    async with kudu.served() as host:
        code, out, _ = await publish(tmp_path, host, pause=0.1)
    assert (0, 2) == (code, len(kudu.packages))
    assert FORBIDDEN in out


async def test_fails(tmp_path: Path) -> None:
    """If a deployment fails for good, it prints the log, and does not try again."""
    kudu = Kudu(
        uploads=[(202, '"d-1"')],
        states=[(200, {"status": 3, "status_text": "no host.json"})],
        log="the log",
    )
    async with kudu.served() as host:
        code, _, err = await publish(tmp_path, host)
    assert (1, 1) == (code, len(kudu.packages))
    assert "no host.json" in err
    assert "the log" in err


async def test_refused(tmp_path: Path) -> None:
    """If Azure refuses the package, it does not try again."""
    kudu = Kudu(uploads=[(400, "bad zip")])
    async with kudu.served() as host:
        code, _, err = await publish(tmp_path, host)
    assert (1, 1) == (code, len(kudu.packages))
    assert "Azure answers 400: bad zip" in err


@pytest.mark.parametrize(
    "kudu",
    [
        pytest.param(Kudu(uploads=[(202, '"d-1"')], states=[(200, {"status": 1})]), id="running"),
        pytest.param(Kudu(uploads=[(202, '"d-1"')], states=[(404, {})]), id="unknown"),
        pytest.param(Kudu(uploads=[(403, "no role")]), id="refused"),
    ],
)
async def test_ends(tmp_path: Path, kudu: Kudu) -> None:
    """It gives up when the time is up."""
    async with kudu.served() as host:
        code, _, err = await asyncio.wait_for(publish(tmp_path, host, wait=3), 30)
    assert 1 == code
    assert "time is up" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"text", "is not a zip", id="not a zip"),
        pytest.param(package("host.json", "function_app.py"), "lacks the app", id="sources alone"),
        pytest.param(package("x/host.json"), "lacks the app", id="a folder too deep"),
    ],
)
async def test_wrong_package(tmp_path: Path, content: bytes, said: str) -> None:
    """It uploads nothing that infra/package.py did not build."""
    kudu = Kudu()
    async with kudu.served() as host:
        code, _, err = await publish(tmp_path, host, content=content)
    assert (1, []) == (code, kudu.asked)
    assert said in err

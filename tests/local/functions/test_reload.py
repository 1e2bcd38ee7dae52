"""Edits of an app are taken up while it is served."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, TCPConnector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

REPOSITORY = Path(__file__).parents[3]
HOST = (sys.executable, "-m", "local.functions.host", "--reload")
HEALTHY = (200, '{"status": "healthy"}')
DEPLOYED = ("function_app.py", "host.json")
START_SECONDS = 60


class ReloadingHost:
    """A host that takes up edits of its app, in a copy of the tree."""

    def __init__(self, process: subprocess.Popen[bytes], app: Path, log: Path) -> None:
        self.process = process
        self.app = app
        self._log = log
        self.url = ""

    async def printed(self, text: str, *, times: int = 1) -> str:
        """Return all output, as soon as a text has been printed so many times."""
        async with asyncio.timeout(START_SECONDS):
            while (output := self._log.read_text()).count(text) < times:  # noqa: ASYNC110 - another process prints it
                await asyncio.sleep(0.05)
        return output

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that a file has once."""
        file = self.app / name
        text = file.read_text("utf-8")
        assert 1 == text.count(old)
        file.write_text(text.replace(old, new), "utf-8")


@contextmanager
def reloading(folder: Path) -> Iterator[ReloadingHost]:
    app, log = folder / "app", folder / "log"
    app.mkdir()
    for name in DEPLOYED:
        shutil.copy(REPOSITORY / name, app)
    shutil.copy(REPOSITORY / "local.settings.example.json", app / "local.settings.json")
    shutil.copytree(
        *(REPOSITORY / "shared", app / "shared"), ignore=shutil.ignore_patterns("__pycache__")
    )
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [*HOST, "--app", str(app), "--port", "0"],
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    host = ReloadingHost(process, app, log)
    try:
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    assert 0 == code, log.read_text()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[ReloadingHost]:
    """Serve a copy of the broker."""
    with reloading(tmp_path) as host:
        output = await host.printed("ready ")
        host.url = output.split("ready ")[1].split()[0]
        yield host


async def get(host: ReloadingHost, path: str = "/api/health") -> tuple[int, str]:
    """Ask for what takes no other service, and return status and body."""
    async with (
        ClientSession(connector=TCPConnector(force_close=True)) as session,
        session.get(host.url + path) as answer,
    ):
        return answer.status, await answer.text()


async def test_edits(host: ReloadingHost) -> None:
    """The next answer is that of the edited functions, modules, host.json and settings."""
    assert HEALTHY == await get(host)

    host.edit("function_app.py", '"healthy"', '"edited"')
    await host.printed("Starting again, after an edit of function_app.py\n")
    assert (200, '{"status": "edited"}') == await get(host)

    host.edit("shared/http.py", "_response(status, json.dumps(body))", "_response(status, '{}')")
    await host.printed("Starting again, after an edit of shared/http.py\n")
    assert (200, "{}") == await get(host)

    host.edit("host.json", '"routePrefix": "api"', '"routePrefix": "other"')
    await host.printed("Starting again, after an edit of host.json\n")
    assert (200, "{}") == await get(host, "/other/health")

    host.edit("local.settings.json", "localhost:3000", "localhost:1111")
    await host.printed("Starting again, after an edit of local.settings.json\n")
    async with ClientSession(headers={"Origin": "http://localhost:1111"}) as session:
        answer = await session.get(f"{host.url}/other/health")
        assert "http://localhost:1111" == answer.headers["Access-Control-Allow-Origin"]


async def test_no_request_is_refused(host: ReloadingHost) -> None:
    """A request that comes while the app starts again waits for it."""
    answers = [await get(host)]

    host.edit("function_app.py", '"healthy"', '"edited"')
    async with asyncio.timeout(START_SECONDS):
        while answers[-1] == HEALTHY:
            answers.append(await get(host))

    assert (200, '{"status": "edited"}') == answers[-1]


async def test_broken_edit(host: ReloadingHost) -> None:
    """A broken edit is shown, and answered with what a host says that is not running."""
    host.edit("shared/http.py", "def json_response(", "def json_response)")
    output = await host.printed("The next edit starts it again.")
    broken = await get(host)
    host.edit("shared/http.py", "def json_response)", "def json_response(")

    assert "SyntaxError" in output
    assert (503, "Function host is not running.") == broken
    await host.printed("ready ", times=2)
    assert HEALTHY == await get(host)


async def test_several_files(host: ReloadingHost) -> None:
    """Files that change together start the app again once; others do not at all."""
    (host.app / "shared" / "new.py").write_text("")
    (host.app / "shared" / "notes.txt").write_text("")
    (host.app / "tests.py").write_text("")
    (host.app / "shared" / "openapi.json").unlink()

    output = await host.printed("ready ", times=2)

    assert "after an edit of shared/new.py, shared/openapi.json\n" in output
    assert 1 == output.count("Starting again")


def test_broken_at_first(tmp_path: Path) -> None:
    """An app that has never been served ends the host, as without edits."""
    (tmp_path / "function_app.py").write_text("class")
    (tmp_path / "host.json").write_text("{}")

    ended = subprocess.run(  # noqa: S603 - our own program
        [*HOST, "--app", str(tmp_path), "--port", "0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == ended.returncode
    assert "SyntaxError" in ended.stderr

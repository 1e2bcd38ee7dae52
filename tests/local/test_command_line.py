"""`python -m local`, as a developer runs it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import SubjectAlternativeName, load_pem_x509_certificate

from local.entra.directory import ADA, BROKER, CONTOSO, DESKTOP_APP, FADI
from local.stack import FIXED_PORTS
from local.storage.npm import find_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.x509 import Certificate

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 90
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KEYTOOL = shutil.which("keytool")

# All that use a stack of this module run in one process, so that it is started once.
pytestmark = pytest.mark.xdist_group("command-line")

MSAL = """
import json, os, re, sys
import msal, requests

config = json.loads(sys.argv[1])
app = msal.PublicClientApplication(
    config["clientId"],
    authority=config["authority"],
    instance_discovery=config["discovery"],
)
flow = app.initiate_auth_code_flow(
    config["scopes"], redirect_uri="http://localhost:8400", response_mode="form_post"
)
page = requests.post(flow["auth_uri"], data={"account": config["account"]}).text
first = app.acquire_token_by_auth_code_flow(flow, dict(re.findall('name="(.*?)" value="(.*?)"', page)))
[account] = app.get_accounts()
cached = app.acquire_token_silent(config["scopes"], account)
answer = requests.get(
    config["broker"], headers={"Authorization": "Bearer " + first["access_token"]}
)
print(json.dumps({
    "account": account["home_account_id"],
    "fromCache": cached["access_token"] == first["access_token"],
    "status": answer.status_code,
    "body": answer.json(),
}))
"""  # noqa: E501 - code of another process

GET_IN_JAVA = """
import java.net.*;

class Get {
    public static void main(String[] arguments) throws Exception {
        var connection = (HttpURLConnection) new URL(arguments[0]).openConnection();
        System.out.println(connection.getResponseCode());
    }
}
"""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A stack that was started on the command line, and what it has printed."""

    printed: str

    def found(self, pattern: str) -> str:
        """Return the first group of a pattern in what was printed."""
        match = re.search(pattern, self.printed, re.MULTILINE)
        assert match, self.printed
        return match[1]

    @property
    def authority_file(self) -> str:
        return self.found("^(/.*/ca.pem)$")

    @property
    def certificate(self) -> Certificate:
        file = Path(self.authority_file).with_name("server.pem")
        return load_pem_x509_certificate(file.read_bytes())

    @property
    def entra(self) -> str:
        return self.found("^Entra +(.*)$")

    @property
    def functions(self) -> str:
        return self.found(r"\[all\] (.*)/api/token$")


@contextmanager
def started(log: Path, *arguments: str) -> Iterator[CommandLine]:
    """Run a stack while the context lasts, and check that Ctrl-C stops it."""
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "local", "start", "--free-ports", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(log.parent)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(START_SECONDS * 10):
            if "Ctrl-C stops it" in log.read_text() or process.poll() is not None:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        yield CommandLine(log.read_text())
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert 0 == code, log.read_text()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A stack over HTTPS."""
    with started(tmp_path_factory.mktemp("stack") / "log", "--tls") as stack:
        yield stack


async def run(*command: str | Path, **environment: str) -> str:
    """Run a program to its end, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert 0 == process.returncode, errors.decode()
    return output.decode()


def config(stack: CommandLine) -> str:
    """Return what an app is configured with."""
    return json.dumps(
        {
            "clientId": DESKTOP_APP.client_id,
            "authority": f"{stack.entra}/{CONTOSO.tenant_id}",
            "discovery": f"{stack.entra}/common/discovery/instance",
            "scopes": [f"{BROKER.uris[0]}/access_as_user"],
            "account": ADA.object_id,
            "broker": f"{stack.functions}/api/token",
        }
    )


def assert_signed_in(app: dict[str, Any]) -> None:
    assert f"{ADA.object_id}.{CONTOSO.tenant_id}" == app["account"]
    assert app["fromCache"]
    assert 200 == app["status"], app["body"]
    assert app["body"]["user"]["communicationUserId"].startswith("8:acs:")


class TestTls:
    """`python -m local start --tls`."""

    async def test_msal_for_python(self, stack: CommandLine) -> None:
        """MSAL signs in, and the broker exchanges the token; both are reached over HTTPS."""
        trust = {
            name: stack.authority_file
            for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
            if f"{name}={stack.authority_file}" in stack.printed
        }
        app = await run(sys.executable, "-c", MSAL, config(stack), **trust)

        assert_signed_in(json.loads(app))

    async def test_msal_node(self, stack: CommandLine, js: Path) -> None:
        """So does MSAL for Node.js."""
        trust = stack.found("NODE_EXTRA_CA_CERTS=(.*)$")
        app = await run(
            *(find_node()[0], js / "msal_node.mjs", config(stack)), NODE_EXTRA_CA_CERTS=trust
        )

        assert_signed_in(json.loads(app))

    @pytest.mark.skipif(KEYTOOL is None, reason="Java is not installed")
    async def test_java(self, stack: CommandLine, tmp_path: Path) -> None:
        """Java trusts a store that keytool has made."""
        (tmp_path / "Get.java").write_text(GET_IN_JAVA)
        make, use = stack.found("^Java +(keytool .*)$"), stack.found("^ +java (-D.*)$")
        url = f"{stack.functions}/api/health"

        await run("bash", "-c", f"cd {tmp_path} && {make}")
        status = await run("bash", "-c", f"cd {tmp_path} && java {use} Get.java {url}")

        assert "200" == status.strip()

    @pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
    async def test_chromium(self, stack: CommandLine, tmp_path: Path) -> None:
        """Chromium accepts this certificate, and need not accept any."""
        options = f"--headless --no-sandbox --disable-gpu {stack.found('^Chromium +(.*)$')}"
        url = f"{stack.functions}/api/health"

        page = await run(
            "bash", "-c", f"{CHROMIUM} {options} --dump-dom {url}", TMPDIR=str(tmp_path)
        )

        assert "healthy" in page

    async def test_curl(self, stack: CommandLine) -> None:
        """The command to paste works as it is."""
        command = stack.found("^(curl --cacert .* -H .*)$")

        answer = json.loads(await run("bash", "-c", command))

        assert {"token", "expiresOn", "user"} == answer.keys()

    @pytest.mark.parametrize(
        ("name", "operation"),
        [
            ("Broker", "token"),
            ("Entra", "jwks"),
            ("ACS", "issue"),
            ("Tables", "table_read"),
            ("Blobs", "blob_commit"),
            ("Managed identity", "token"),
        ],
    )
    async def test_faults(self, stack: CommandLine, name: str, operation: str) -> None:
        """Whatever can fail on request is named, with its address."""
        url = stack.found(f"^{name} +(http.*)$")
        ask = ["curl", "--silent", "--show-error", "--fail", "--cacert", stack.authority_file]

        await run(*ask, f"{url}/_local/faults", "-d", json.dumps({"operation": operation}))
        await run(*ask, f"{url}/_local/faults", "-X", "DELETE")

    async def test_settings(self, stack: CommandLine) -> None:
        """The file whose edits are taken up is named; the broker's tables are behind the proxy."""
        file = Path(stack.found("^An edit of the app, or of (.*), is taken up"))

        values = json.loads(file.read_text("utf-8"))["Values"]

        assert values["MAPPINGS_TABLE_ENDPOINT"].startswith(stack.found("^Tables +(http.*)$"))

    async def test_token(self, stack: CommandLine) -> None:
        """So does the one for another person's token."""
        command = stack.found("^For another Entra token: (.*)$")

        token = await run("bash", "-c", command.replace(".venv/bin/python", sys.executable))

        assert 3 == len(token.split("."))

    async def test_page_of_vite(self, stack: CommandLine) -> None:
        """A page on Vite's usual port, over HTTPS, may read the broker's answers."""
        curl = stack.found("^(curl --cacert [^ ]*)")
        origin = "Origin: https://localhost:5173"
        ask = f"{curl} --silent --head --request GET --header '{origin}' "

        headers = await run("bash", "-c", f"{ask} {stack.functions}/api/health")

        assert "Access-Control-Allow-Origin: https://localhost:5173" in headers

    async def test_body_limit(self, stack: CommandLine, tmp_path: Path) -> None:
        """The limit is that of the deployment; the host answers above it, without a body."""
        app = (REPOSITORY / "infra/modules/app.bicep").read_text("utf-8")
        [limit] = re.findall("FUNCTIONS_REQUEST_BODY_SIZE_LIMIT: '([0-9]+)'", app)
        body = tmp_path / "body"
        send = stack.found("^(curl --cacert .* -H .*)$")
        send += f" --silent --data-binary @{body} --write-out %{{http_code}}"

        body.write_bytes(b" " * int(limit))
        within = await run("bash", "-c", send)
        body.write_bytes(b" " * (int(limit) + 1))
        above = await run("bash", "-c", send)

        assert "payload_too_large" in within
        assert "500" == above

    async def test_distrust(self, stack: CommandLine) -> None:
        """Nobody trusts the certificates without having been told to."""
        command = [sys.executable, "-m", "local", "token", "--entra", stack.entra, FADI.user_name]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=REPOSITORY, stderr=asyncio.subprocess.PIPE
        )

        _, errors = await process.communicate()

        assert 1 == process.returncode
        assert b"SSL_CERT_FILE" in errors

    def test_only_loopback(self, stack: CommandLine) -> None:
        """The certificate is good for this computer only."""
        names = stack.certificate.extensions.get_extension_for_class(SubjectAlternativeName).value

        assert {"localhost", "127.0.0.1", "::1"} == {str(name.value) for name in names}

    def test_no_key_of_the_authority(self, stack: CommandLine) -> None:
        """The one private key in a file is that of the server, which signs no certificates."""
        folder = Path(stack.authority_file).parent

        [pem] = [text for file in folder.iterdir() if "PRIVATE KEY" in (text := file.read_text())]

        public_key = load_pem_private_key(pem.encode(), password=None).public_key()
        assert stack.certificate.public_key() == public_key


def test_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C stops everything, and removes all temporary files."""
    log = tmp_path / "log"
    with started(log, "--tls") as stack:
        assert Path(stack.authority_file).is_file()

    assert [log] == list(tmp_path.iterdir())


def test_port_in_use() -> None:
    """A taken port is named before anything is started."""
    port = FIXED_PORTS[-1]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
        except OSError:  # Another stack has it already.
            pass
        ended = subprocess.run(
            [sys.executable, "-m", "local", "start", "--tls"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    assert 1 == ended.returncode
    assert re.search("port [0-9]+ cannot be opened: .*--free-ports", ended.stderr)


@pytest.mark.parametrize("command", [[], ["start"], ["emulators"], ["demo"], ["token"]])
def test_help(command: list[str]) -> None:
    """What each command does is a sentence of its help."""
    shown = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "local", *command, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    assert re.search("^[A-Z].*[.]$", shown.stdout, re.MULTILINE)

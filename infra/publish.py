"""Publish dist/app.zip, which infra/package.py builds, to the function app of an environment.

    python3 infra/publish.py prod

It uploads the package to the app's own deployment endpoint, without a build in Azure, which
`az functionapp deployment source config-zip` forces for Python. The account of `az login` needs
Website Contributor on the resource group. In a new environment, it waits for roles to reach the
storage account. Exit code 0: the package is published; 1: it is not; 2: wrong arguments.
"""  # noqa: INP001 - a script that is run by its path

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"host.json", "function_app.py"}
PACKAGES = ".python_packages/lib/site-packages/"
LOOPBACK_HOSTS = {"127.0.0.1", "localhost"}
COMMAND_SECONDS = 120
UPLOAD_SECONDS = 300  # From the last byte sent to the answer.
REQUEST_SECONDS = 30
# The first is as in azd and the Azure CLI; the second gives a role time to take effect.
POLL_SECONDS = 1
RETRY_SECONDS = 10


class Status(IntEnum):
    """States of a deployment, as in `PublishStatus` of azd (Azure/azure-dev)."""

    CANCELLED = -1
    PENDING = 0
    BUILDING = 1
    DEPLOYING = 2
    FAILED = 3
    SUCCESS = 4
    CONFLICT = 5
    PARTIAL_SUCCESS = 6


# What the platform writes if the app's identity has no access to the storage account yet:
# https://github.com/Azure/azure-dev/issues/8026
NO_ROLE_YET = re.compile(r"InaccessibleStorage|does not indicate success: 403")
RUNNING = {Status.PENDING, Status.BUILDING, Status.DEPLOYING}


class PublishError(Exception):
    """The package was not published."""


class PassingError(PublishError):
    """The package was not published, but another attempt may succeed."""


def read_package(path: Path) -> bytes:
    """Return a package's bytes.

    Raises:
        PublishError: the file is missing, or was not built by infra/package.py.
    """
    if not path.is_file():
        raise PublishError(f"{path} is missing: build it with python3 infra/package.py")
    if not zipfile.is_zipfile(path):
        raise PublishError(f"{path} is not a zip")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    if not names >= NEEDED or not any(name.startswith(PACKAGES) for name in names):
        raise PublishError(
            f"{path} lacks the app or its packages: build it with python3 infra/package.py"
        )
    return path.read_bytes()


def publish(environment: str, package: bytes, *, deadline: float, pause: float) -> None:
    """Upload a package to an environment, and wait until it runs.

    Raises:
        PublishError: it failed, or did not run before the deadline.
    """
    outputs = json.loads(ask(str(ROOT / "infra/outputs.sh"), environment, "--json"))
    group, app = outputs["AZURE_RESOURCE_GROUP"], outputs["AZURE_FUNCTION_NAME"]
    host = ask(
        *("az", "resource", "show", "--resource-group", group, "--name", app),
        *("--resource-type", "Microsoft.Web/sites", "--output", "tsv", "--query"),
        "properties.hostNameSslStates[?hostType=='Repository'].name | [0]",
    )
    digest = hashlib.sha256(package).hexdigest()
    say(f"{len(package) / 1_000_000:.1f} MB, sha256 {digest}, to {app}")
    while True:
        # azd and Core Tools send this token, too. The Azure CLI has it already. For another one it
        # would need a new token from GitHub, which it cannot get ten minutes into a workflow
        # (https://github.com/Azure/login/issues/372).
        token = ask(
            "az", "account", "get-access-token", "--query", "accessToken", "--output", "tsv"
        )
        try:
            Endpoint(host, token).publish(package, deadline)
        except PassingError as exc:
            if time.monotonic() + pause >= deadline:
                raise PublishError(f"{exc}\nThe time is up.") from exc
            say(f"{exc}\nTrying again in {pause:g} seconds.")
            time.sleep(pause)
        else:
            break
    say(f"Published. Next: python3 infra/smoke_test.py {outputs['AZURE_FUNCTION_URL']}")


def say(line: str) -> None:
    """Print a line at once, so that a log shows the progress of a deployment."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def ask(*command: str) -> str:
    """Return what a command prints to stdout; its stderr is this script's own.

    Raises:
        PublishError: it failed, is not installed, took too long, or printed nothing.
    """
    try:
        finished = subprocess.run(  # noqa: S603 - the Azure CLI, and our own script
            command, stdout=subprocess.PIPE, text=True, check=False, timeout=COMMAND_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PublishError(str(exc)) from exc
    said = finished.stdout.strip()
    if finished.returncode or not said:
        raise PublishError(f"{' '.join(command[:3])} failed, or found nothing")
    return said


class Endpoint:
    """The deployment endpoint of a function app on Flex Consumption."""

    def __init__(self, host: str, token: str) -> None:
        self._host = host
        self._token = token

    def publish(self, package: bytes, deadline: float) -> None:
        """Upload a package, and wait until Azure has deployed it.

        Raises:
            PassingError: Azure did not, but may if asked again.
            PublishError: Azure did not.
        """
        say("Uploading ...")
        # RemoteBuild=false is the default, but a wrong build is what this script must avoid.
        path = "/api/publish?RemoteBuild=false&Deployer=acs-token-broker"
        status, body = self._request("POST", path, package, UPLOAD_SECONDS)
        if status == HTTPStatus.ACCEPTED:
            named = re.fullmatch(r'"?([\w-]+)"?', body.strip())
            self._wait(named[1] if named else "latest", deadline)
        elif status != HTTPStatus.OK:
            refuse(status, body)

    def _wait(self, deployment: str, deadline: float) -> None:
        path = f"/api/deployments/{deployment}"
        known = False
        shown = ""
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            try:
                status, body = self._request("GET", path, None, REQUEST_SECONDS)
            except PassingError:
                continue
            if status == HTTPStatus.NOT_FOUND and known:
                return  # The deploying worker was replaced; azd also takes this as success.
            if status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED}:
                if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                    refuse(status, body)
                continue
            try:
                answer = json.loads(body)
                state = Status(answer["status"])
            except (ValueError, KeyError, TypeError):
                continue
            known = True
            progress = f"{state.name.lower()} {answer.get('progress') or ''}".strip()
            if progress != shown:
                say(progress)
                shown = progress
            if state is Status.SUCCESS:
                return
            if state not in RUNNING:
                self._fail(path, state, answer)
        raise PublishError("The time is up, and Azure is still deploying: check again later.")

    def _fail(self, path: str, state: Status, answer: dict[str, object]) -> NoReturn:
        try:
            _, log = self._request("GET", f"{path}/log", None, REQUEST_SECONDS)
        except PassingError:
            log = ""
        said = f"The deployment is {state.name.lower()}: {answer.get('status_text') or ''}\n{log}"
        may_pass = state is Status.CONFLICT or NO_ROLE_YET.search(said)
        raise (PassingError if may_pass else PublishError)(said.strip())

    def _request(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[int, str]:
        """Return the status and the body of an answer.

        Raises:
            PassingError: no answer came.
        """
        # Plain HTTP is only for the tests' own server: the request has a token.
        local = self._host.partition(":")[0] in LOOPBACK_HOSTS
        connect = http.client.HTTPConnection if local else http.client.HTTPSConnection
        connection = connect(self._host, timeout=seconds)
        headers = {"Authorization": f"Bearer {self._token}", "Cache-Control": "no-cache"}
        if body is not None:
            headers["Content-Type"] = "application/zip"
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as exc:
            raise PassingError(f"no answer from {self._host}: {exc!r}") from exc
        finally:
            connection.close()


def refuse(status: int, body: str) -> NoReturn:
    """Raise the error for a refusal."""
    said = f"Azure answers {status}: {body[:500]}".strip()
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        said += (
            "\n(A role of yours or of the app has no effect yet, or the app refuses this address.)"
        )
    elif status == HTTPStatus.CONFLICT:
        said += "\n(Another deployment is under way.)"
    elif status not in {HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)} and not (
        NO_ROLE_YET.search(body)
    ):
        raise PublishError(said)
    raise PassingError(said)


def main() -> int:
    """Publish the package, print the progress, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    name = os.environ.get("AZURE_ENV_NAME")
    parser.add_argument(
        "environment",
        nargs="?" if name else None,
        default=name,
        help="name of the environment (default: $AZURE_ENV_NAME)",
    )
    parser.add_argument("--package", type=Path, default=ROOT / "dist/app.zip", metavar="ZIP")
    parser.add_argument(
        "--wait",
        type=float,
        default=900,
        metavar="SECONDS",
        help="how long to try in all (default: %(default)s)",
    )
    parser.add_argument(
        "--pause",
        type=float,
        default=RETRY_SECONDS,
        metavar="SECONDS",
        help="how long to wait before another attempt (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        package = read_package(arguments.package)
        publish(
            arguments.environment,
            package,
            deadline=time.monotonic() + arguments.wait,
            pause=arguments.pause,
        )
    except PublishError as exc:
        sys.stderr.write(f"{exc}\nThe package was not published.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

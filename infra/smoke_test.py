"""Check a deployed token broker from outside, without signing in.

    python3 infra/smoke_test.py https://func-prod-abc.azurewebsites.net

It checks that the service is up and ready, and that it refuses a call without a token and calls
with forged ones, as the contract says. A new deployment gets time: roles take up to ten minutes to
reach every part of Azure. Exit code 0: every check passed; 1: one failed; 2: wrong arguments.
"""  # noqa: INP001 - a script that is run by its path

from __future__ import annotations

import argparse
import base64
import http.client
import json
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_SECONDS = 30  # Enough for a cold start.
PAUSE_SECONDS = 5
LOOPBACK_HOSTS = {"127.0.0.1", "localhost"}
OK, UNAUTHORIZED, NOT_FOUND, SERVER_ERRORS = 200, 401, 404, range(500, 600)
PROBLEM = "application/problem+json"
NO_FUNCTION = """
The host runs, but has no function. Either no package is published, or it cannot be imported, for
example because Azure built it with another Python than the app's. Build a package with
infra/package.py, and publish it with infra/publish.py.
"""


# Without slots, which the Python 3.9 of a Mac does not support.
@dataclass(frozen=True)
class Answer:
    """What the service answered."""

    status: int
    headers: Mapping[str, str]  # Names in lower case.
    body: bytes

    @property
    def members(self) -> dict[str, object]:
        """The members of the JSON object in the body; empty if it is something else."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Check:
    """One request, and what the contract says about its answer."""

    title: str
    path: str
    status: int
    member: tuple[str, str]  # A member of the JSON body, and its value.
    token: str | None = None
    error: str | None = None  # The error in the RFC 6750 challenge of a 401; None: no error.

    def problems(self, answer: Answer) -> list[str]:
        """Return messages about what is wrong with an answer."""
        name, value = self.member
        found = []
        if answer.status != self.status:
            found.append(f"status {answer.status}, not {self.status}")
        if answer.members.get(name) != value:
            found.append(f"{name} is {answer.members.get(name)!r}, not {value!r}")
        if answer.headers.get("cache-control") != "no-store":
            found.append("no Cache-Control: no-store")
        if self.status == UNAUTHORIZED:
            found += self._challenge_problems(answer)
        return found

    def _challenge_problems(self, answer: Answer) -> list[str]:
        challenge = answer.headers.get("www-authenticate", "")
        found = []
        if not challenge.startswith("Bearer "):
            found.append("no Bearer challenge")
        if self.error is None and "error=" in challenge:
            found.append("a challenge with an error, although no token was sent")
        if self.error is not None and f'error="{self.error}"' not in challenge:
            found.append(f"a challenge without {self.error}")
        if answer.headers.get("content-type", "").partition(";")[0] != PROBLEM:
            found.append(f"not {PROBLEM}")
        if not answer.members.get("traceId"):
            found.append("no traceId")
        return found


def forged_token(algorithm: str) -> str:
    """Return a token that looks like one of Entra's, but has no valid signature."""
    header = {"alg": algorithm, "typ": "JWT", "kid": "smoke-test"}
    claims = {"iss": "https://login.microsoftonline.com/forged/v2.0", "scp": "access_as_user"}
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), secrets.token_bytes(256)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def checks() -> list[Check]:
    """Return the checks, in order."""

    def refuses(what: str, code: str, token: str | None = None) -> Check:
        error = None if token is None else code
        return Check(f"refuses {what}", "/api/token", UNAUTHORIZED, ("code", code), token, error)

    return [
        Check("is up", "/api/health", OK, ("status", "healthy")),
        Check("is ready", "/api/health/ready", OK, ("status", "ready")),
        refuses("a call without a token", "missing_token"),
        refuses("a forged token", "invalid_token", forged_token("RS256")),
        refuses("an unsigned token", "invalid_token", forged_token("none")),
    ]


def ask(url: str, path: str, token: str | None) -> Answer:
    """Return the answer to a GET.

    Raises:
        OSError, http.client.HTTPException: no answer came.
    """
    parts = urlsplit(url)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=REQUEST_SECONDS)
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def problems_until(url: str, check: Check, deadline: float) -> tuple[list[str], int | None]:
    """Return what is wrong, and the status. Problems that may pass are retried until a deadline."""
    while True:
        status = None
        try:
            answer = ask(url, check.path, check.token)
        except (OSError, http.client.HTTPException) as exc:
            found, may_pass = [f"no answer: {type(exc).__name__}: {exc}"], True
        else:
            status = answer.status
            # Until the code has arrived, the host has no function and answers 404.
            may_pass = status in SERVER_ERRORS or status == NOT_FOUND
            found = check.problems(answer)
        if not (found and may_pass) or time.monotonic() >= deadline:
            return found, status
        time.sleep(PAUSE_SECONDS)


def main() -> int:
    """Run the checks, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="URL of the function app, without /api")
    parser.add_argument(
        "--wait",
        type=float,
        default=600,
        metavar="SECONDS",
        help="how long to wait for a service that is not up yet (default: %(default)s)",
    )
    arguments = parser.parse_args()
    url = urlsplit(arguments.url.rstrip("/"))
    if url.path or not url.hostname or url.query:
        parser.error("the URL must have only a scheme and a host")
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in LOOPBACK_HOSTS):
        parser.error("the URL must be https")
    deadline = time.monotonic() + arguments.wait
    failed = False
    statuses = set()
    for check in checks():
        found, status = problems_until(url.geturl(), check, deadline)
        failed = failed or bool(found)
        statuses.add(status)
        sys.stdout.write(f"{'FAILED' if found else 'ok':<8}{check.title}\n")
        sys.stdout.writelines(f"        {problem}\n" for problem in found)
    if statuses == {NOT_FOUND}:
        sys.stdout.write(NO_FUNCTION)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

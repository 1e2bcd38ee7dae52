"""Check a deployed token broker from outside.

    python3 infra/smoke_test.py https://func-prod-abc.azurewebsites.net
    python3 infra/smoke_test.py https://func-prod-abc.azurewebsites.net --probe

It checks that the service is up and ready, and that it refuses a call without a token and calls
with forged ones, as the contract says. After a deployment it gives the service time: roles take up
to ten minutes to reach every part of Azure. As a probe, which a scheduled job runs, it asks once,
looks at the certificate and the times, tries a good token if it has one, and prints one line.
Exit code 0: every check passed; 1: one failed; 2: wrong arguments; 3: a probe has a warning.
"""  # noqa: INP001 - a script that is run by its path

from __future__ import annotations

import argparse
import http.client
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

# Run by its path, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.probe.asking import ask, certificate_of
from infra.probe.checks import checks_with, standard_checks
from infra.probe.issued import USER
from infra.probe.results import Result, Results
from infra.probe.tokens import COMMAND_SECONDS, NoTokenError, good_token, token_from

if TYPE_CHECKING:
    from infra.probe.checks import Check

REQUEST_SECONDS = 30  # Enough for a cold start.
PAUSE_SECONDS = 5
SLOW_MS = 3000
CERTIFICATE_DAYS = 14
LOOPBACK_HOSTS = {"127.0.0.1", "localhost"}
MAX_PORT = 65535
NOT_FOUND, SERVER_ERRORS = 404, range(500, 600)
ORIGIN = r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?"
FOR_PROBE = ("json", "token_command", "user", "slow_ms", "certificate_days")
TOKEN = "PROBE_TOKEN"  # noqa: S105 - the name of a variable
NO_FUNCTION = """
The host runs, but has no function. Either no package is published, or it cannot be imported, for
example because Azure built it with another Python than the app's. Build a package with
infra/package.py, and publish it with infra/publish.py.
"""


def result_of(url: str, check: Check, deadline: float, seconds: float, slow_ms: int) -> Result:
    """Return what became of a check. Problems that may pass are retried until a deadline."""
    while True:
        status, milliseconds, warnings = None, None, []
        try:
            answer = ask(url, check.path, check.token, seconds=seconds)
        except (OSError, http.client.HTTPException) as exc:
            found, may_pass = [f"no answer: {type(exc).__name__}: {exc}"], True
        else:
            status, milliseconds = answer.status, round(answer.seconds * 1000)
            # Until the code has arrived, the host has no function and answers 404.
            may_pass = status in SERVER_ERRORS or status == NOT_FOUND
            found = check.judge(answer)
            if milliseconds > slow_ms:
                warnings = [f"took {milliseconds} ms"]
        if not (found and may_pass) or time.monotonic() >= deadline:
            return Result(check.title, found, warnings, status, milliseconds)
        time.sleep(PAUSE_SECONDS)


def smoke_test(arguments: argparse.Namespace) -> int:
    """Run the checks that need no token, print a line for each, and return the exit code."""
    deadline = time.monotonic() + arguments.wait
    results = Results(arguments.url)
    for check in standard_checks():
        result = result_of(arguments.url, check, deadline, arguments.timeout, sys.maxsize)
        results.checks.append(result)
        sys.stdout.write(f"{'FAILED' if result.problems else 'ok':<8}{check.title}\n")
        sys.stdout.writelines(f"        {problem}\n" for problem in result.problems)
    if {result.status for result in results.checks} == {NOT_FOUND}:
        sys.stdout.write(NO_FUNCTION)
    return results.exit_status


def probe(arguments: argparse.Namespace) -> int:
    """Run all checks, print one line, and return the exit code."""
    deadline = time.monotonic() + arguments.wait
    results = Results(arguments.url)
    if urlsplit(arguments.url).scheme == "https":
        results.checks.append(_certificate_result(results, arguments))

    def run(check: Check) -> Result:
        result = result_of(arguments.url, check, deadline, arguments.timeout, arguments.slow_ms)
        results.checks.append(result)
        return result

    # A service that cannot be reached is one problem, not one for each check.
    is_up, *others = standard_checks()
    is_trusted = not any(result.problems for result in results.checks)
    if is_trusted and run(is_up).status is not None:
        for check in others + _checks_with_token(results, arguments):
            run(check)
    sys.stdout.write(f"{results.as_json() if arguments.json else results.line()}\n")
    return results.exit_status


def _certificate_result(results: Results, arguments: argparse.Namespace) -> Result:
    title = "has a good certificate"
    try:
        certificate = certificate_of(arguments.url, seconds=arguments.timeout)
    except OSError as exc:
        return Result(title, [f"{type(exc).__name__}: {exc}"])
    results.certificate_days, results.tls = certificate.days, certificate.tls
    is_short = certificate.days < arguments.certificate_days
    return Result(title, [], [f"it expires in {certificate.days} days"] if is_short else [])


def _checks_with_token(results: Results, arguments: argparse.Namespace) -> list[Check]:
    """Return the checks with a good token; a token that cannot be had is a failure."""
    given, command = os.environ.get(TOKEN), arguments.token_command
    if given is None and command is None:
        return []
    try:
        token = good_token(given or "") if command is None else token_from(command)
    except NoTokenError as exc:
        results.checks.append(Result("has a token to try", [str(exc)]))
        return []
    return checks_with(token, user=arguments.user)


def _time_limit(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError("leaves no time")
    return seconds


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError("is not a number of seconds")
    return float(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="URL of the function app, without /api")
    parser.add_argument(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="how long to wait for a service that is not up yet (default: 600, as a probe 0)",
    )
    parser.add_argument(
        "--timeout",
        type=_time_limit,
        default=REQUEST_SECONDS,
        metavar="SECONDS",
        help="how long one answer may take (default: %(default)s)",
    )
    probing = parser.add_argument_group("as a probe")
    probing.add_argument("--probe", action="store_true", help="ask once, and print one line")
    probing.add_argument("--json", action="store_true", default=None, help="print it as JSON")
    probing.add_argument(
        "--token-command",
        metavar="COMMAND",
        help="prints an access token for the broker; run without a shell, for up to"
        f" {COMMAND_SECONDS} s. Or set {TOKEN}",
    )
    probing.add_argument("--user", metavar="ID", help="the ACS identity that the user must have")
    probing.add_argument(
        "--slow-ms",
        type=int,
        metavar="MS",
        help=f"warn of an answer that takes longer (default: {SLOW_MS})",
    )
    probing.add_argument(
        "--certificate-days",
        type=int,
        metavar="DAYS",
        help=f"warn of a certificate that expires sooner (default: {CERTIFICATE_DAYS})",
    )
    return _checked(parser, parser.parse_args())


def _checked(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.Namespace:
    text = arguments.url.rstrip("/")
    port = text.rpartition(":")[2]
    if not re.fullmatch(ORIGIN, text) or (port.isdigit() and int(port) > MAX_PORT):
        parser.error("the URL must have only a scheme and a host")
    url = urlsplit(text)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in LOOPBACK_HOSTS):
        parser.error("the URL must be https")
    given = [name for name in FOR_PROBE if vars(arguments)[name] is not None]
    if given and not arguments.probe:
        parser.error(f"--{given[0].replace('_', '-')} is for --probe only")
    if arguments.token_command is not None and TOKEN in os.environ:
        parser.error(f"give either --token-command or {TOKEN}")
    if arguments.user is not None and arguments.token_command is None and TOKEN not in os.environ:
        parser.error(f"--user needs a token: --token-command, or {TOKEN}")
    if arguments.user is not None and not re.fullmatch(USER, arguments.user):
        parser.error("--user must be an ACS identity, such as 8:acs:...")
    if arguments.wait is None:
        arguments.wait = 0 if arguments.probe else 600
    if arguments.slow_ms is None:
        arguments.slow_ms = SLOW_MS
    if arguments.certificate_days is None:
        arguments.certificate_days = CERTIFICATE_DAYS
    arguments.url = url.geturl()
    return arguments


def main() -> int:
    """Run the checks, print what they found, and return the exit code."""
    arguments = _arguments()
    return probe(arguments) if arguments.probe else smoke_test(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Every error that a request can end in, with everything logged, and no secret anywhere.

The host runs at DEBUG level, also for the SDKs, which the app itself keeps at WARNING.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import CONTOSO, DESKTOP_APP
from local.storage.azurite import ACCOUNT_KEY
from shared.errors import BrokerError
from shared.settings import Settings
from tests.e2e.test_administration import ELSEWHERE, path_of
from tests.e2e.test_exchange import BLOCKED, ENTRA, POLICY, TEAMS, refusal
from tests.running import write_app
from tests.test_certificates import GOOD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from local.stack import FunctionsHost
    from tests.running import Answer, Client, Running

# The app as it is, with one more route, whose error quotes the token and the settings.
DEBUGGING = """
import logging, os, sys
import azure.functions as func
from shared.http import answers_problems

@app.route(route="unforeseen")
@answers_problems("GET")
async def unforeseen(req: func.HttpRequest) -> func.HttpResponse:
    try:
        raise ValueError(req.headers["authorization"])
    except ValueError as exc:
        raise RuntimeError(str(dict(os.environ))) from exc

for _logger in logging.root.manager.loggerDict.values():
    if isinstance(_logger, logging.Logger):
        _logger.setLevel(logging.NOTSET)
_handler = logging.StreamHandler(sys.stdout)
_handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
logging.root.addHandler(_handler)
logging.root.setLevel(logging.DEBUG)
"""
MARKER = "mArKeR7f"  # In what the caller sends, what others answer, and in wrong settings.
NAME = "Märta Marker"
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+")  # Any other's, such as one that Entra gave the broker.
EVERYTHING = {  # What another service's answer may quote.
    "error": {"code": MARKER, "message": f"{MARKER} Bearer eyJhbGciOi accesskey=abc"},
    "odata.error": {"code": MARKER, "message": {"value": MARKER}},
}
NONSENSE = json.dumps(EVERYTHING)


class Case:
    """Makes a host meet one error after the other, and keeps what must not be seen again."""

    def __init__(self, app: Client, running: Running) -> None:
        self.app = app
        self.running = running
        self.secrets: set[str] = set()
        self.answers: list[Answer] = []

    def token(self, *, member: bool = False, **claims: Any) -> str:
        """Return a new person's token, of which no part may be seen again."""
        make = self.running.token_of_new_member if member else self.running.token_of_new_person
        token = make(**{"name": NAME, "preferred_username": f"{MARKER}@contoso.example"} | claims)
        return self.secret(token)

    def secret(self, token: str) -> str:
        """Take down the parts of a token."""
        _, payload, signature = token.split(".")
        self.secrets |= {payload, signature, signature[-40:]}
        return token

    async def call(
        self, method: str, path: str, token: str | None = None, **options: Any
    ) -> Answer:
        """Call the app, and keep the answer."""
        answer = await self.app.call(method, path, token, **options)
        self.answers.append(answer)
        if answer.status == 200 and "token" in answer.json:
            self.secret(answer.json["token"])
        return answer

    async def get(self, path: str, token: str | None = None, **options: Any) -> Answer:
        """Call the app with GET."""
        return await self.call("GET", path, token, **options)

    def details(self) -> set[str]:
        """Return what the callers have been told."""
        return {answer.json["detail"] for answer in self.answers if answer.status >= 400}


def kinds(error: type[BrokerError] = BrokerError) -> set[type[BrokerError]]:
    """Return all classes of errors in the product."""
    return {error} | {kind for each in error.__subclasses__() for kind in kinds(each)}


@pytest.fixture
def debug_app(tmp_path: Path) -> Path:
    """The folder of an app that logs everything."""
    write_app(tmp_path, DEBUGGING)
    return tmp_path


@pytest.mark.usefixtures("no_kept_keys")
async def test_no_marker_anywhere(
    debug_app: Path,
    app_at: Callable[[FunctionsHost], Client],
    running: Running,
    another_host: Callable[..., FunctionsHost],
    rewrite_row: Callable[..., Awaitable[None]],
) -> None:
    """No token, key, secret, certificate or claim, and no word of another service."""
    host = another_host(debug_app)
    case = Case(app_at(host), running)
    with_certificate = another_host(
        debug_app,
        ENTRA_CLIENT_CERTIFICATE=GOOD,
        ENTRA_CLIENT_SECRET=" ",
        ACS_EXCHANGES="teams",
        ACS_TOKEN_SCOPES="voip",
    )
    with_policy = another_host(debug_app, TRUST_POLICY=RULES)
    wrong = another_host(debug_app, **WRONG)
    await of_the_keys(case)
    for each in (host, with_certificate, with_policy):
        await app_at(each).get("/api/health/ready")
        # Until then, kept keys may serve, which open nothing to administrators.
        await each.printed('"event": "signing_keys_refreshed"', seconds=60)

    for act in (
        *(of_the_callers_token, of_the_request, of_the_rows, of_acs, of_the_table),
        *(of_the_exchanges, of_the_timers),
    ):
        await act(case, rewrite_row)
    await of_the_policy(case, app_at(with_policy))
    await of_the_settings(case, app_at(with_certificate), app_at(wrong))

    hosts = (host, with_policy, with_certificate, wrong)
    logged = "\n".join(line for each in hosts for line in each.output)
    told = "\n".join(
        f"{answer.headers}\n{answer.text}" for answer in case.answers if answer.status >= 400
    )
    unmet = {kind for kind in kinds() - {BrokerError} if kind.description not in case.details()}
    assert not unmet, "no request above ends in these: add one"
    # Callers are told of it as of any other that is gone.
    assert "the identity belongs to another ACS resource" in logged
    for line in ("DEBUG asyncio", "DEBUG msal", "INFO azure.core", "unforeseen_error"):
        assert line in logged, "not everything is logged"
    secrets = case.secrets | secrets_of(running)
    for text in (logged, told):
        assert [] == [
            line[:1000]
            for line in text.splitlines()
            if TOKEN.search(line) or any(secret in line for secret in secrets)
        ]


def secrets_of(running: Running) -> set[str]:
    """Return what no log and no error may hold, beside the parts of tokens."""
    values = json.loads(running.stack.settings.read_text())["Values"]
    keys = {values[name] for name in values if name.endswith(("_CONNECTION_STRING", "_SECRET"))}
    keys |= {key.partition("accesskey=")[2] for key in keys if "accesskey=" in key}
    words = {MARKER, NAME, "PRIVATE KEY"}
    header = running.stack.environment.get("IDENTITY_HEADER", MARKER)
    return keys | words | {ACCOUNT_KEY, BLOCKED, header, GOOD.splitlines()[3]}


async def of_the_keys(case: Case) -> None:
    """There are none yet."""
    faults = case.running.stack.entra.faults
    faults.fail_next("openid_configuration", status=500, body=NONSENSE)
    await case.get("/api/token", case.token())
    faults.clear()


async def of_the_callers_token(case: Case, _rewrite: Any) -> None:
    """The token is missing, bad, for others, or not enough."""
    entra = case.running.stack.entra
    elsewhere = "11111111-2222-4333-8444-555555555555"
    good = case.token()
    await case.get("/api/token")
    await case.get("/api/token", headers={"Authorization": f"Bearer {good}, Bearer {good}"})
    for bad in (f"{good}x", good[:-9], f"{MARKER}.{MARKER}.{MARKER}", case.token(aud=MARKER)):
        await case.get("/api/token", bad)
    await case.get("/api/token", case.token(tid=elsewhere, iss=entra.issuer(elsewhere)))
    await case.get("/api/token", case.token(azp=DESKTOP_APP.client_id))
    await case.get("/api/token", case.token(scp=MARKER))
    await case.get("/api/users", good)
    await case.get(path_of(str(uuid.uuid4()), tenant_id=elsewhere), administrator(case))
    await case.get("/api/unforeseen", good)


def administrator(case: Case) -> str:
    """Return the token of a new administrator."""
    return case.token(roles=["Mappings.Admin"])


async def of_the_request(case: Case, _rewrite: Any) -> None:
    """The request is not what the contract says, or one too many."""
    token = case.token()
    await case.get(f"/api/token?{MARKER}={MARKER}&access_token={token}", token)
    await case.get("/api/token?scope=chat.join", token)
    await case.call("PATCH", "/api/token", token, data=MARKER)
    await case.call("POST", "/api/token", token, data=MARKER)
    await case.call("POST", "/api/token", token, json={"scopes": [MARKER]})
    await case.call("POST", "/api/token", token, data=MARKER * 3000)
    await case.call("POST", ENTRA, token, json={"accessToken": case.token()[:-8]})
    await case.get("/api/user", token)
    answers = await asyncio.gather(*(case.get("/api/user", token) for _ in range(80)))
    assert 429 in {answer.status for answer in answers}


async def of_the_rows(case: Case, rewrite: Callable[..., Awaitable[None]]) -> None:
    """The row says no: revoked, being made, of another resource, unreadable."""
    token = case.token()
    await case.get("/api/token", token)
    await case.call("POST", "/api/token/revoke", token)
    await case.get("/api/token", token)
    now = datetime.now(UTC)
    being_made, foreign, unreadable = (str(uuid.uuid4()) for _ in range(3))
    await rewrite(
        being_made,
        state="creating",
        attempt="theirs",
        generation=1,
        schema=1,
        createdOn=now,
        lastUsedOn=now,
        leaseUntil=now + timedelta(seconds=20),
    )
    await case.get("/api/token", case.token(oid=being_made))
    for object_id in (foreign, unreadable):
        await case.call("POST", "/api/user", case.token(oid=object_id))
    await rewrite(foreign, acsId=ELSEWHERE)
    await case.get("/api/token", case.token(oid=foreign))
    await case.call("DELETE", path_of(foreign), administrator(case))
    await case.call(
        "PUT",
        path_of(str(uuid.uuid4())),
        administrator(case),
        json={"communicationUserId": ELSEWHERE},
    )
    await rewrite(unreadable, schema=2, acsId=MARKER)
    await case.get("/api/token", case.token(oid=unreadable))


async def of_acs(case: Case, _rewrite: Any) -> None:
    """ACS refuses, fails, is slow, or answers nonsense."""
    acs = case.running.stack.acs
    token = case.token()
    await case.get("/api/token", token)
    faults: list[dict[str, Any]] = [
        *({"delay": 5}, {"body": NONSENSE}, {"reset": True}, {"truncate": 20}),
        *({"status": status, "body": NONSENSE} for status in (400, 401, 403, 404, 409, 500)),
    ]
    for fault in faults:
        acs.faults.fail_next("issue", times=2, **fault)
        await case.get("/api/token", token)
        acs.faults.clear()
    for status in (401, 500):
        acs.faults.fail_next("create", status=status, body=NONSENSE)
        await case.get("/api/token", case.token())
    acs.faults.clear()
    # Afterwards ACS is left alone for a while.
    acs.faults.fail_next("issue", status=429, body=NONSENSE)
    await case.get("/api/token", token)


async def of_the_table(case: Case, _rewrite: Any) -> None:
    """The table refuses, fails, or answers nonsense."""
    tables = case.running.stack.tables
    for fault in ({"status": 403, "body": NONSENSE}, {"status": 503}, {"body": NONSENSE}):
        tables.faults.fail_next("table_read", times=9, **fault)
        await case.get("/api/token", case.token())
        await case.get("/api/health/ready")
        tables.faults.clear()


async def of_the_exchanges(case: Case, _rewrite: Any) -> None:
    """Entra and ACS refuse an exchange, or fail."""
    entra, acs = case.running.stack.entra, case.running.stack.acs
    for fault in (
        refusal(65001),
        refusal(50076, claims=POLICY),
        refusal(50105),
        refusal(50132),
        refusal(7000215, "invalid_client"),
        {"status": 429, "body": NONSENSE},
        {"status": 503, "body": NONSENSE},
        {"body": NONSENSE},
        {"reset": True},
    ):
        entra.faults.fail_next("token", **fault)
        await case.get(ENTRA, case.token(member=True))
        entra.faults.clear()
    for path, operation in ((ENTRA, "exchange_entra"), (TEAMS, "exchange_teams_user")):
        for status in (400, 401, 403, 404, 429, 500):
            acs.faults.fail_next(operation, status=status, body=NONSENSE)
            await case.get(path, case.token(member=True))
            acs.faults.clear()
        assert 200 == (await case.get(path, case.token(member=True))).status


async def of_the_timers(case: Case, _rewrite: Any) -> None:
    """A timer fails, whose exception reaches the host with its traceback."""
    tables = case.running.stack.tables
    for name in ("sweep_ledger", "prune_mappings", "back_up_mappings"):
        tables.faults.fail_next(times=30, status=403, body=NONSENSE)
        await case.app.post(f"/admin/functions/{name}", json={"input": ""})
        tables.faults.clear()


RULES = json.dumps(
    {"rules": [{"name": "signed in twice", "roles": ["Twice"], "scopes": ["chat"], "acrs": "c1"}]}
)


async def of_the_policy(case: Case, app: Client) -> None:
    """No rule fits, or the one that does demands another sign-in."""
    case.app = app
    await case.get("/api/token", case.token())
    await case.get("/api/token", case.token(roles=["Twice"], xms_cc=["cp1"]))
    await case.get("/api/token", case.token(roles=["Twice"]))


# Wrong in ways that a text about them could quote.
WRONG = {
    "ENTRA_CLIENT_ID": MARKER,
    "ACS_CONNECTION_STRING": f"endpoint=https://[{MARKER}/;accesskey={MARKER}!",
    "ACS_ENDPOINT": f"https://{MARKER}.example",
    "MAPPINGS_CONNECTION_STRING": f"AccountName={MARKER};AccountKey={MARKER}!",
    "BACKUP_CONNECTION_STRING": f"BlobEndpoint=https://{MARKER}?sig={MARKER}",
    "ENTRA_CLIENT_CERTIFICATE": f"-----BEGIN {MARKER}",
    "ENTRA_CLIENT_SECRET": MARKER,
    "TRUST_POLICY": f"/{MARKER}",
}


async def of_the_settings(case: Case, with_certificate: Client, wrong: Client) -> None:
    """An exchange is off, Entra refuses the certificate, and nothing fits."""
    for app, path in ((with_certificate, ENTRA), (with_certificate, TEAMS), (wrong, "/api/token")):
        case.app = app
        answer = await case.get(path, case.token(member=True))
        assert answer.status >= 400


def test_settings(running: Running) -> None:
    """What the settings hold is not in their text, nor in that of any part."""
    values = json.loads(running.stack.settings.read_text())["Values"]
    exchange = {"ENTRA_CLIENT_CERTIFICATE": GOOD, "ENTRA_CLIENT_SECRET": ""}
    for changes in ({}, exchange):
        shown = repr(Settings.from_env(values | changes))
        for secret in secrets_of(running) - {MARKER}:
            assert secret not in shown
    assert CONTOSO.tenant_id in shown

"""The exchanges over HTTP: of Entra ID users and Teams users, and each refusal on the way.

With access keys, the broker's registration has a secret; with managed identity, it trusts that.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from local.entra.directory import (
    ACS_CLIENTS,
    ACS_TEAMS,
    ADA,
    BROKER,
    CONTOSO,
    DESKTOP_APP,
    FABRIKAM,
    FADI,
    GRAPH,
    WEB_APP,
)
from tests.running import assert_problem
from tests.test_certificates import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from local.stack import FunctionsHost
    from tests.running import Answer, Client, Running

ENTRA, TEAMS = "/api/token/entra", "/api/token/teams"
POLICY = '{"access_token":{"polids":{"essential":true,"values":["9ab03e19"]}}}'
BLOCKED = "AADSTS50076: ada@contoso.example must use multi-factor authentication."

each_exchange = pytest.mark.parametrize(
    ("path", "operation"),
    [
        pytest.param(ENTRA, "exchange_entra", id="entra"),
        pytest.param(TEAMS, "exchange_teams_user", id="teams"),
    ],
)


@pytest.fixture
def assigned(running: Running) -> Iterator[dict[str, Any]]:
    """Who has access to the ACS resource; the test's own changes are taken back."""
    assignments = running.stack.acs.entra_assignments
    before = deepcopy(assignments)
    yield assignments
    assignments.clear()
    assignments.update(before)


def held(running: Running, user: str = ADA.user_name, **changes: Any) -> str:
    """Return an Entra token for ACS that Contoso's web app has got for Ada, with changes."""
    options: dict[str, Any] = {"resource": ACS_CLIENTS, "scopes": ("VoIP",)} | changes
    return running.stack.entra.issue_access_token(user, **options)


def refusal(number: int, error: str = "invalid_grant", **members: Any) -> dict[str, Any]:
    """Return the fault of an Entra that refuses a token."""
    status = 401 if error == "invalid_client" else 400
    document = {"error": error, "error_codes": [number], "error_description": BLOCKED, **members}
    return {"status": status, "body": json.dumps(document)}


def minutes_left(answer: Answer) -> float:
    expires = datetime.fromisoformat(answer.json["expiresOn"])
    return (expires - datetime.now(UTC)) / timedelta(minutes=1)


class TestServed:
    """What a caller gets."""

    async def test_entra_user(self, app: Client, running: Running) -> None:
        """An ACS token of the caller, with ACS's own id, for as long as the Entra token lives."""
        token = running.token_of_new_member()
        before = len(running.stack.acs.created)

        answer = await app.get(ENTRA, token)
        again = await app.post(ENTRA, token, json={})

        assert (200, 200) == (answer.status, again.status), answer
        user = answer.json["user"]
        object_id = jwt.decode(token, options={"verify_signature": False})["oid"]
        assert user["id"].endswith(f"_{CONTOSO.tenant_id}_{object_id}")
        assert {"communicationUserId": user["id"], "id": user["id"]} == user == again.json["user"]
        assert 58 < minutes_left(answer) < 91
        assert running.stack.acs.token_is_valid(answer.json["token"])
        claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
        assert "voip" in claims["acsScope"].split(",")
        assert "no-store" == answer.headers["Cache-Control"]
        assert before == len(running.stack.acs.created), "no identity of the broker's own"

    async def test_teams_user(self, app: Client, running: Running) -> None:
        """An ACS token of the Teams user, whose id is made of the object id."""
        token = running.token_of_new_member()

        answer = await app.post(TEAMS, token)

        assert 200 == answer.status, answer
        object_id = jwt.decode(token, options={"verify_signature": False})["oid"]
        expected = {"microsoftTeamsUserId": object_id, "id": f"8:orgid:{object_id}"}
        assert expected == answer.json["user"]
        assert 58 < minutes_left(answer) < 91
        claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
        assert {"voip", "chat"} == set(claims["acsScope"].split(","))

    @pytest.mark.parametrize(
        ("path", "resource", "scope"),
        [(ENTRA, ACS_CLIENTS, "VoIP"), (TEAMS, ACS_TEAMS, "Teams.ManageCalls")],
    )
    async def test_held_token(
        self, app: Client, running: Running, path: str, resource: Any, scope: str
    ) -> None:
        """A caller who has an Entra token for ACS sends it, and Entra is not asked for one."""
        before = running.stack.entra.faults.count("token")
        own = held(running, resource=resource, scopes=(scope,), version=2)

        token = running.stack.entra.issue_access_token(ADA.user_name)
        answer = await app.post(path, token, json={"accessToken": own})

        assert 200 == answer.status, answer
        assert ADA.object_id in answer.json["user"]["id"]
        assert before == running.stack.entra.faults.count("token")

    async def test_other_organisation(
        self, app: Client, running: Running, assigned: dict[str, Any]
    ) -> None:
        """The broker asks in the caller's own tenant, once the owner has given it access."""
        token = running.stack.entra.issue_access_token(FADI.user_name)
        refused = await app.get(ENTRA, token)
        assigned[FABRIKAM.tenant_id] = {
            "objectId": FABRIKAM.tenant_id,
            "tenantId": FABRIKAM.tenant_id,
            "principalType": "tenant",
            "clientIds": [BROKER.client_id],
        }

        answer = await app.get(ENTRA, token)

        assert_problem(refused, 403, "not_assigned")
        assert 200 == answer.status
        assert f"{FABRIKAM.tenant_id}_{FADI.object_id}" in answer.json["user"]["id"]

    async def test_audit_line(self, app: Client, running: Running) -> None:
        """The log says for whom, by which app, which exchange, and how long the others took."""
        token = running.token_of_new_member()
        object_id = jwt.decode(token, options={"verify_signature": False})["oid"]

        await app.get(TEAMS, token)

        printed = await running.host.printed(object_id)
        line = json.loads(printed[printed.index("{") :])
        assert "token_exchanged" == line["event"]
        assert ("teams", False) == (line["kind"], line["held"])
        assert (CONTOSO.tenant_id, WEB_APP.client_id) == (line["tenant_id"], line["client_id"])
        assert {"ms", "entra_ms", "acs_ms"} <= line.keys()

    async def test_sign_out_everywhere(self, app: Client, running: Running) -> None:
        """Entra tokens from before are refused, with the challenge for MSAL; later ones are not."""
        token = running.token_of_new_member()
        object_id = jwt.decode(token, options={"verify_signature": False})["oid"]
        assert 204 == (await app.post("/api/token/revoke", token)).status
        await asyncio.sleep(2)  # Tokens and marks have whole seconds, and marks are rounded up.
        now = int(time.time())
        later = running.token_of_new_person(oid=object_id, iat=now, nbf=now)

        for path in (ENTRA, TEAMS):
            refused = await app.get(path, token)
            assert_problem(refused, 401, "token_revoked")
            assert refused.json["claims"]
            assert 200 == (await app.get(path, later)).status


@each_exchange
class TestEntraRefuses:
    """Entra does not issue a token on behalf of the caller."""

    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [
            pytest.param(refusal(65001, suberror="consent_required"), 403, "consent_required"),
            pytest.param(refusal(500011, "invalid_resource"), 403, "consent_required"),
            pytest.param(refusal(50076, claims=POLICY), 403, "insufficient_claims"),
            pytest.param(refusal(53003, "interaction_required"), 403, "insufficient_claims"),
            pytest.param(refusal(50105), 403, "not_assigned"),
            pytest.param(refusal(50057), 401, "token_revoked"),
            pytest.param(refusal(500133), 401, "invalid_token"),
            pytest.param(refusal(50173), 401, "token_revoked"),
            pytest.param(refusal(7000215, "invalid_client"), 502, "upstream_auth"),
            pytest.param(refusal(700213, "invalid_client"), 502, "upstream_auth"),
            pytest.param(refusal(900144, "invalid_request"), 502, "upstream_bad_response"),
            pytest.param({"status": 429}, 503, "upstream_throttled"),
            pytest.param({"status": 503}, 503, "upstream_unavailable"),
            pytest.param({"reset": True}, 503, "upstream_unavailable"),
            pytest.param({"status": 200, "body": "{}"}, 502, "upstream_bad_response"),
        ],
        ids=lambda value: str(value.get("body", value))[:60] if isinstance(value, dict) else None,
    )
    async def test_refusal(
        self,
        app: Client,
        running: Running,
        path: str,
        operation: str,
        fault: dict[str, Any],
        status: int,
        code: str,
    ) -> None:
        """Each refusal has its own code, ACS is not asked, and Entra only once."""
        entra, acs = running.stack.entra.faults, running.stack.acs.faults
        before = acs.count(operation)
        entra.fail_next("token", **fault)

        answer = await app.get(path, running.token_of_new_member())

        assert_problem(answer, status, code)
        assert (1, before) == (entra.count("token"), acs.count(operation))
        assert "AADSTS" not in answer.text
        printed = await running.host.printed(f'"trace_id": "{answer.json["traceId"]}"')
        assert json.loads(printed[printed.index("{") :])["reason"]
        assert "multi-factor" not in "".join(running.host.output), "Entra's text has names"

    async def test_step_up(self, app: Client, running: Running, path: str, operation: str) -> None:
        """What Entra wants reaches the app as it is, in the problem and in the challenge."""
        running.stack.entra.faults.fail_next("token", **refusal(50079, claims=POLICY))

        answer = await app.get(path, running.token_of_new_member())

        assert_problem(answer, 403, "insufficient_claims")
        assert POLICY == answer.json["claims"]
        assert 'error="insufficient_claims"' in answer.headers["WWW-Authenticate"]
        assert "WWW-Authenticate" in answer.headers["Access-Control-Expose-Headers"]
        assert 0 == running.stack.acs.faults.count(operation)

    async def test_retry_after(
        self, app: Client, running: Running, path: str, operation: str
    ) -> None:
        """Entra's own word on when to come back is passed on."""
        fault = {"status": 429, "headers": {"Retry-After": "17"}}
        running.stack.entra.faults.fail_next("token", **fault)

        answer = await app.get(path, running.token_of_new_member())

        assert_problem(answer, 503, "upstream_throttled")
        assert 17 <= int(answer.headers["Retry-After"]) <= 17 * 1.5 + 1
        assert 0 == running.stack.acs.faults.count(operation)


@pytest.mark.parametrize("fault", [{"delay": 6}, {"drip": 0.5}], ids=["silent", "drips"])
async def test_entra_is_slow(app: Client, running: Running, fault: dict[str, Any]) -> None:
    """The caller has an answer within eight seconds."""
    running.stack.entra.faults.fail_next("token", **fault)
    started = time.monotonic()

    answer = await app.get(ENTRA, running.token_of_new_member())

    assert_problem(answer, 503, "upstream_unavailable")
    assert time.monotonic() - started < 8


@each_exchange
class TestAcsRefuses:
    """ACS does not exchange the token."""

    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [
            ({"status": 401, "body": '{"error": {"code": "Denied"}}'}, 502, "upstream_auth"),
            (
                {"status": 401, "body": '{"error": {"code": "InvalidAccessToken"}}'},
                *(502, "upstream_bad_response"),
            ),
            ({"status": 404}, 502, "upstream_bad_response"),
            ({"status": 429, "headers": {"Retry-After": "9"}}, 503, "upstream_throttled"),
            ({"status": 500}, 503, "upstream_unavailable"),
            ({"reset": True, "times": 2}, 503, "upstream_unavailable"),
            ({"delay": 5}, 504, "upstream_timeout"),
            ({"status": 200, "body": "{}"}, 502, "upstream_bad_response"),
        ],
        ids=str,
    )
    async def test_failure(
        self,
        app: Client,
        running: Running,
        path: str,
        operation: str,
        fault: dict[str, Any],
        status: int,
        code: str,
    ) -> None:
        """ACS's failures and its refusal of the broker's own token are not the caller's fault."""
        running.stack.acs.faults.fail_next(operation, **fault)

        answer = await app.get(path, running.token_of_new_member())

        assert_problem(answer, status, code)

    async def test_held_token_refused(
        self, app: Client, running: Running, path: str, operation: str
    ) -> None:
        """A token that the caller sent, and ACS does not take, is a bad request."""
        fault = {"status": 401, "body": '{"error": {"code": "InvalidAccessToken"}}'}
        running.stack.acs.faults.fail_next(operation, **fault)
        resource = ACS_CLIENTS if path == ENTRA else ACS_TEAMS
        own = held(running, resource=resource)

        token = running.stack.entra.issue_access_token(ADA.user_name)
        answer = await app.post(path, token, json={"accessToken": own})

        assert_problem(answer, 400, "invalid_request")


class TestNotAssigned:
    """The ACS resource has not been assigned to the caller."""

    async def test_nobody(self, app: Client, running: Running, assigned: dict[str, Any]) -> None:
        """Without an assignment there is no access."""
        assigned.clear()

        assert_problem(await app.get(ENTRA, running.token_of_new_member()), 403, "not_assigned")

    async def test_other_app(self, app: Client, running: Running, assigned: dict[str, Any]) -> None:
        """An assignment names the apps that it is for: the broker's, on behalf of people."""
        assigned[CONTOSO.tenant_id] |= {"clientIds": [DESKTOP_APP.client_id]}

        assert_problem(await app.get(ENTRA, running.token_of_new_member()), 403, "not_assigned")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"user": FADI.user_name}, id="another tenant"),
        pytest.param({"claims": {"oid": str(uuid.uuid4())}}, id="another person"),
        pytest.param({"client": DESKTOP_APP}, id="another client"),
        pytest.param({"resource": GRAPH}, id="another audience"),
        pytest.param({"resource": BROKER, "scopes": None}, id="the broker's own"),
        pytest.param({"resource": ACS_TEAMS}, id="for the other exchange"),
        pytest.param({"lifetime": timedelta(minutes=-2)}, id="expired"),
        pytest.param({"lifetime": timedelta(minutes=9)}, id="expires too soon"),
        pytest.param({"claims": {"scp": None}}, id="an app's own"),
        pytest.param({"header": {"alg": "none"}}, id="not signed"),
    ],
)
async def test_held_token_of_no_use(app: Client, running: Running, changes: dict[str, Any]) -> None:
    """A token that is not the caller's own, for ACS, never reaches ACS."""
    before = running.stack.acs.faults.count("exchange_entra")
    own = held(running, **changes)

    token = running.stack.entra.issue_access_token(ADA.user_name)
    answer = await app.post(ENTRA, token, json={"accessToken": own})

    assert_problem(answer, 400, "invalid_request")
    assert before == running.stack.acs.faults.count("exchange_entra")


async def test_forged_held_token(app: Client, running: Running) -> None:
    """ACS verifies the signature, which the broker does not."""
    head, payload, _ = held(running).split(".")
    other = held(running).rpartition(".")[2]

    token = running.stack.entra.issue_access_token(ADA.user_name)
    answer = await app.post(ENTRA, token, json={"accessToken": f"{head}.{payload}.{other}"})

    assert_problem(answer, 400, "invalid_request")
    assert 1 == running.stack.acs.faults.count("exchange_entra")


@pytest.mark.parametrize("path", [ENTRA, TEAMS])
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"accessToken": null}',
        b'{"accessToken": ""}',
        b'{"accessToken": "a.b.c"}',
        b'{"accessToken": ["eyJ"]}',
        b'{"token": "eyJ"}',
        b'{"accessToken": "a.b.c", "accessToken": "a.b.c"}',
        b'{"scopes": ["voip"]}',
        b"{",
    ],
)
async def test_bad_bodies(app: Client, running: Running, path: str, body: bytes) -> None:
    """Only nothing, an empty object, or one token."""
    headers = {"Content-Type": "application/json"}

    answer = await app.post(path, running.token_of_new_member(), data=body, headers=headers)

    assert_problem(answer, 400, "invalid_request")


@pytest.mark.parametrize("path", [f"{ENTRA}?scope=voip", f"{TEAMS}?accessToken=eyJ"])
async def test_no_parameters(app: Client, running: Running, path: str) -> None:
    """A token in a URL would end up in logs."""
    assert_problem(await app.get(path, running.token_of_new_member()), 400, "invalid_request")


@pytest.mark.parametrize("path", [ENTRA, TEAMS])
async def test_credentials(app: Client, running: Running, path: str) -> None:
    """The token in Authorization is judged as on any route."""
    other_scope = running.token_of_new_member(scp="other")

    assert_problem(await app.get(path), 401, "missing_token")
    assert_problem(await app.get(path, "garbage"), 401, "invalid_token")
    assert_problem(await app.get(path, other_scope), 403, "insufficient_scope")
    assert_problem(await app.get(path, held(running)), 401, "invalid_token")


async def test_rate_limit(app: Client, running: Running) -> None:
    """The limit of one person counts here, too."""
    token = running.stack.entra.issue_access_token(claims={"oid": str(uuid.uuid4())})

    answers = [await app.post(ENTRA, token, data=b"[") for _ in range(70)]

    assert_problem(answers[-1], 429, "rate_limited")


class TestSettings:
    """The settings decide which exchanges there are, and how the registration proves itself."""

    async def test_certificate(
        self,
        running: Running,
        another_host: Callable[..., FunctionsHost],
        app_at: Callable[[FunctionsHost], Client],
    ) -> None:
        """Entra gets an assertion, which the local one refuses: it knows no certificate."""
        host = another_host(ENTRA_CLIENT_CERTIFICATE=GOOD, ENTRA_CLIENT_SECRET=" ")

        answer = await app_at(host).get(ENTRA, running.token_of_new_member())

        assert_problem(answer, 502, "upstream_auth")
        printed = await host.printed('"event": "request_failed"')
        assert "AADSTS700027" in printed
        assert "PRIVATE KEY" not in "".join(host.output)

    async def test_off(
        self,
        running: Running,
        another_host: Callable[..., FunctionsHost],
        app_at: Callable[[FunctionsHost], Client],
    ) -> None:
        """Without the setting, both routes say that they are off, to people who may know."""
        app = app_at(another_host(ACS_EXCHANGES=" "))
        token = running.token_of_new_member()

        for path in (ENTRA, TEAMS):
            assert_problem(await app.get(path, token), 404, "not_enabled")
            assert_problem(await app.get(path), 401, "missing_token")
        assert 200 == (await app.get("/api/token", token)).status

    async def test_teams_extension_and_everything(
        self,
        running: Running,
        another_host: Callable[..., FunctionsHost],
        app_at: Callable[[FunctionsHost], Client],
    ) -> None:
        """Teams extension has ids of ACS; `.default` stands for all that was consented to."""
        host = another_host(ACS_EXCHANGES="teams-extension,entra", ACS_ENTRA_SCOPES=".default")
        app = app_at(host)
        token = running.token_of_new_member()
        object_id = jwt.decode(token, options={"verify_signature": False})["oid"]
        unassigned = await app.get(TEAMS, token)
        key = (CONTOSO.tenant_id, object_id)
        running.stack.acs.teams_assignments[key] = {"clientIds": [BROKER.client_id]}

        teams, entra = await app.get(TEAMS, token), await app.get(ENTRA, token)

        assert_problem(unassigned, 403, "not_assigned")
        assert (200, 200) == (teams.status, entra.status)
        assert {"communicationUserId", "id"} == teams.json["user"].keys()
        assert teams.json["user"]["id"].startswith("8:acs:")
        claims = jwt.decode(entra.json["token"], options={"verify_signature": False})
        assert {"voip", "voip.join", "chat", "chat.join", "chat.join.limited"} == set(
            claims["acsScope"].split(",")
        )

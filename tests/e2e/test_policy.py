"""A trust policy over HTTP: what it grants, refuses, and how a person steps up with MSAL."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import msal  # type: ignore[import-untyped]
import pytest
import requests

from local.entra.directory import ADA, BROKER, CONTOSO, DESKTOP_APP, WEB_APP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.entra.objects import User
    from local.stack import FunctionsHost
    from tests.running import Client, Running

SALES, CONTRACTORS = str(uuid.uuid4()), str(uuid.uuid4())
POLICY = {
    "rules": [
        {"name": "contractors", "groups": [CONTRACTORS], "scopes": []},
        {"name": "agents", "roles": ["Support.Agent"], "scopes": ["chat", "voip"], "acrs": "c1"},
        {
            "name": "sales",
            "tenants": [CONTOSO.tenant_id],
            "clients": [WEB_APP.client_id],
            "groups": [SALES],
            "scopes": ["chat"],
            "maxLifetimeMinutes": 90,
            "exchanges": ["entra"],
        },
        {"name": "try out", "roles": ["Trial"], "scopes": ["chat"], "mode": "audit"},
    ]
}
C1 = {"access_token": {"acrs": {"essential": True, "value": "c1"}}}
OVERAGE = {
    "_claim_names": {"groups": "src1"},
    "_claim_sources": {"src1": {"endpoint": "http://127.0.0.1:9/getMemberObjects"}},
}


@pytest.fixture
def app_with(
    another_host: Callable[..., FunctionsHost], app_at: Callable[[FunctionsHost], Client]
) -> Callable[..., tuple[FunctionsHost, Client]]:
    """Return a function that starts a host with a policy, and makes an app that calls it."""

    def start(policy: object = POLICY, **settings: str) -> tuple[FunctionsHost, Client]:
        clients = f"{WEB_APP.client_id},{DESKTOP_APP.client_id}"
        host = another_host(
            TRUST_POLICY=json.dumps(policy), ENTRA_ALLOWED_CLIENT_IDS=clients, **settings
        )
        return host, app_at(host)

    return start


async def audited(host: FunctionsHost, oid: str) -> dict[str, Any]:
    """Return the last audit line about a person."""
    await host.printed(oid)
    line = [line for line in host.output if oid in line][-1]
    found: dict[str, Any] = json.loads(line[line.index("{") :])
    return found


def acs_scopes(answer: Any) -> set[str]:
    claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
    return set(claims["acsScope"].split(","))


async def test_rules(
    app_with: Callable[..., tuple[FunctionsHost, Client]], running: Running
) -> None:
    """Each person gets what the first rule that fits grants, and the audit line names it."""
    host, app = app_with()
    created = running.stack.acs.faults.count("create")

    def token(**claims: Any) -> tuple[str, str]:
        oid = str(uuid.uuid4())
        return running.token_of_new_person(oid=oid, **claims), oid

    # A rule narrows what is granted by default, and refuses more.
    sales, oid = token(groups=[SALES, str(uuid.uuid4())])
    assert {"chat"} == acs_scopes(await app.get("/api/token?expiresInMinutes=90", sales))
    assert "sales" == (await audited(host, oid))["policy_rule"]
    refused = await app.get("/api/token?scope=voip", sales)
    assert (403, "scope_not_allowed") == (refused.status, refused.code)
    refused = await app.get("/api/token?expiresInMinutes=91", sales)
    assert (400, "invalid_request") == (refused.status, refused.code)
    assert 1 == running.stack.acs.faults.count("create") - created

    # Nobody else gets anything, but may read, sign out and erase.
    for claims in ({}, {"groups": [SALES, CONTRACTORS]}, OVERAGE, {"wids": ["Support.Agent"]}):
        nobody, oid = token(**claims)
        for method, path in (("GET", "/api/token"), ("POST", "/api/user")):
            refused = await app.call(method, path, nobody)
            assert (403, "not_permitted") == (refused.status, refused.code)
            assert 'error="not_permitted"' in refused.headers["WWW-Authenticate"]
        refused = await app.get("/api/token/teams", nobody)
        assert (403, "not_permitted") == (refused.status, refused.code)
        line = await audited(host, oid)
        assert ("request_refused", "not_permitted") == (line["event"], line["code"])
        assert 404 == (await app.get("/api/user", nobody)).status
        assert 204 == (await app.post("/api/token/revoke", nobody)).status
        assert 204 == (await app.delete("/api/user", running.fresh_token(oid, **claims))).status
    assert 1 == running.stack.acs.faults.count("create") - created

    # The mode of a rule.
    trial, oid = token(roles=["Trial"])
    assert {"chat", "voip"} == acs_scopes(await app.get("/api/token", trial))
    line = await audited(host, oid)
    assert ("try out", "narrow") == (line["policy_rule"], line["policy_would"])


async def test_exchange(
    app_with: Callable[..., tuple[FunctionsHost, Client]], running: Running
) -> None:
    """An exchange needs a rule that names it."""
    _, app = app_with()
    sales = running.token_of_new_member(groups=[SALES])

    assert 200 == (await app.get("/api/token/entra", sales)).status
    refused = await app.get("/api/token/teams", sales)
    assert (403, "not_permitted") == (refused.status, refused.code)


async def test_audit_mode(
    app_with: Callable[..., tuple[FunctionsHost, Client]], running: Running
) -> None:
    """A policy that is tried out first refuses nobody, and says whom it would have refused."""
    host, app = app_with({**POLICY, "mode": "audit"})
    oid = str(uuid.uuid4())

    assert 200 == (await app.get("/api/token", running.token_of_new_person(oid=oid))).status

    line = await audited(host, oid)
    assert ("token_issued", "not_permitted") == (line["event"], line["policy_would"])
    assert "policy_rule" not in line


async def test_invalid_policy(
    app_with: Callable[..., tuple[FunctionsHost, Client]], running: Running
) -> None:
    """Nothing is served with a policy that is wrong, and the log says where it is."""
    host, app = app_with({"rules": [{"name": "all", "scopes": ["sms"], "tenant": []}]})

    answer = await app.get("/api/token", running.token_of_new_person())

    assert (503, "misconfigured") == (answer.status, answer.code)
    line = await host.printed('"event": "settings_invalid"')
    assert r"TRUST_POLICY rules[0].scopes[0] (all) is not in ACS_TOKEN_SCOPES: \"sms\"" in line
    assert "TRUST_POLICY rules[0] (all) has unknown members: 'tenant'" in line


async def test_client_that_cannot_step_up(
    app_with: Callable[..., tuple[FunctionsHost, Client]], running: Running
) -> None:
    """Without cp1 in the token, there is no challenge, and the status is 403."""
    _, app = app_with()

    answer = await app.get("/api/token", running.token_of_new_person(roles=["Support.Agent"]))

    assert (403, "insufficient_claims") == (answer.status, answer.code)
    assert "claims" not in answer.json
    assert "claims=" not in answer.headers["WWW-Authenticate"]


class Person:
    """Somebody who signs in with MSAL, in an app that can handle claims challenges."""

    def __init__(self, running: Running, user: User) -> None:
        self._user = user
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = running.stack.environment.get("SSL_CERT_FILE", True)
        self._app = msal.PublicClientApplication(
            DESKTOP_APP.client_id,
            authority=f"{running.stack.entra.url}/organizations",
            instance_discovery=False,
            client_capabilities=["CP1"],
            http_client=self._session,
        )

    def sign_in(self, claims: str | None = None) -> str:
        flow = self._app.initiate_auth_code_flow(
            [SCOPE],
            redirect_uri="http://localhost:8400",
            response_mode="form_post",
            claims_challenge=claims,
        )
        page = self._session.post(flow["auth_uri"], data={"account": self._user.object_id}).text
        posted = dict(re.findall('name="(.*?)" value="(.*?)"', page))
        result = self._app.acquire_token_by_auth_code_flow(flow, posted)
        token: str = result["access_token"]
        return token

    def silently(self, claims: str | None = None) -> dict[str, Any]:
        [account] = self._app.get_accounts()
        result: dict[str, Any] = self._app.acquire_token_silent_with_error(
            [SCOPE], account, claims_challenge=claims
        )
        return result


SCOPE = f"{BROKER.uris[0]}/access_as_user"


@pytest.mark.parametrize("running", ["managed_identity"], indirect=True)  # MSAL wants HTTPS.
async def test_step_up(
    app_with: Callable[..., tuple[FunctionsHost, Client]],
    running: Running,
    rewrite_row: Callable[..., Awaitable[None]],
) -> None:
    """Refused, MSAL takes the challenge to Entra, the person gives a second factor, and is served.

    The challenge is in the problem and, in base64, in the header. MSAL would offer its cached token
    again without it.
    """
    host, app = app_with({"rules": [{"name": "everybody", "scopes": ["chat"], "acrs": "c1"}]})
    user = replace(ADA, object_id=str(uuid.uuid4()), user_name=f"{uuid.uuid4()}@contoso.example")
    running.stack.entra.directory.users.append(user)
    person = Person(running, user)
    first = await asyncio.to_thread(person.sign_in)

    refused = await app.get("/api/token", first)

    assert (401, "insufficient_claims") == (refused.status, refused.code)
    header = refused.headers["WWW-Authenticate"]
    assert 'error="insufficient_claims"' in header
    [encoded] = re.findall('claims="(.*?)"', header)
    assert C1 == json.loads(refused.json["claims"]) == json.loads(base64.b64decode(encoded))
    assert "everybody" == (await audited(host, user.object_id))["policy_rule"]

    # Without the person, Entra refuses; its own claims are the same again.
    silent = await asyncio.to_thread(person.silently, refused.json["claims"])
    assert "interaction_required" == silent["error"]
    assert C1 == json.loads(silent["claims"])

    second = await asyncio.to_thread(person.sign_in, refused.json["claims"])
    assert 200 == (await app.get("/api/token", second)).status
    # From now on, the cache has a token that is good enough.
    cached = await asyncio.to_thread(person.silently)
    assert second == cached["access_token"]

    # After signing out everywhere, one challenge asks for both: a new token, and the context.
    await rewrite_row(user.object_id, revokedBefore=datetime.now(UTC) - timedelta(seconds=2))
    refused = await app.get("/api/token", second)
    assert (401, "token_revoked") == (refused.status, refused.code)
    asked = json.loads(refused.json["claims"])["access_token"]
    assert {"nbf", "acrs"} == asked.keys()
    third = await asyncio.to_thread(person.silently, refused.json["claims"])
    assert 200 == (await app.get("/api/token", third["access_token"])).status

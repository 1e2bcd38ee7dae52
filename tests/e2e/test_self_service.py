"""Sign out everywhere, and erasure, as a person does them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import BROKER, CONTOSO, GUEST, WEB_APP
from local.entra.requests import SignIn
from local.entra.tokens import base64url
from tests.emulated import until
from tests.running import assert_problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.stack import FunctionsHost
    from tests.running import Answer, Client, Running

    Sweep = Callable[[], Awaitable[dict[str, Any]]]

SETTLED = 30  # seconds after a revocation; 20 would do if the test took no time.


def claims_of(refusal: Answer) -> str:
    """Return the claims request in a challenge, as MSAL hands it to Entra."""
    challenge = refusal.headers["WWW-Authenticate"]
    return base64.b64decode(challenge.partition('claims="')[2].partition('"')[0]).decode()


class TestRevoke:
    """POST /api/token/revoke."""

    async def test_tokens_are_dead(
        self,
        app: Client,
        app_at: Callable[..., Client],
        running: Running,
        another_host: Callable[..., FunctionsHost],
        later: Callable[..., None],
        sweep: Sweep,
    ) -> None:
        """No request with the old Entra token gets a token, and none that it got lives on."""
        other = app_at(another_host())
        object_id = str(uuid.uuid4())
        token = running.token_of_new_person(oid=object_id)
        issued = [await each.get("/api/token", token) for each in (app, other, app, other)]
        assert {200} == {each.status for each in issued}
        del running.host.output[:]

        revoked = await app.post("/api/token/revoke", token)

        assert (204, "", "900") == (
            revoked.status,
            revoked.text,
            revoked.headers["Revoked-Within"],
        )
        refused = await asyncio.gather(
            *(each.get("/api/token", token) for each in [app, other] * 5),
            *(each.post("/api/token", token) for each in [app, other]),
            *(each.get("/api/user", token) for each in [app, other]),
            *(each.post("/api/user", token) for each in [app, other]),
        )
        for each in refused:
            assert_problem(each, 401, "token_revoked")
        assert 204 == (await other.post("/api/token/revoke", token)).status
        line = await running.host.printed('"event": "tokens_revoked"')
        assert object_id in line
        assert '"finished": true' in line
        later(seconds=SETTLED)
        assert "sweep_finished" == (await sweep())["event"]
        acs = running.stack.acs
        assert not any(acs.token_is_valid(each.json["token"]) for each in issued)

    @pytest.mark.parametrize("requests", [1, 20])
    async def test_requests_in_flight(
        self,
        app: Client,
        running: Running,
        later: Callable[..., None],
        sweep: Sweep,
        requests: int,
    ) -> None:
        """Requests that read the row before the mark get tokens; they are dead after the sweep."""
        acs = running.stack.acs
        token = running.token_of_new_person()
        assert 200 == (await app.get("/api/token", token)).status
        acs.faults.clear()
        acs.faults.fail_next("issue", delay=1.5, times=requests)
        lifetimes = range(60, 60 + requests)  # Each its own, so that none shares another's call.
        in_flight = [
            asyncio.create_task(app.get(f"/api/token?expiresInMinutes={each}", token))
            for each in lifetimes
        ]
        await until(lambda: acs.faults.count("issue") == requests)

        revoked = await app.post("/api/token/revoke", token)
        begun_after = await app.get("/api/token", token)
        ended = await asyncio.gather(*in_flight)

        assert 204 == revoked.status
        assert_problem(begun_after, 401, "token_revoked")
        tokens = [each.json["token"] for each in ended if each.status == 200]
        assert tokens, "none was in flight"
        later(seconds=SETTLED)
        await sweep()
        assert not any(acs.token_is_valid(each) for each in tokens)

    async def test_signing_in_again(
        self,
        app: Client,
        running: Running,
        later: Callable[..., None],
        sweep: Sweep,
        remove_row: Callable[[str], Awaitable[None]],
    ) -> None:
        """The claims in the challenge are what Entra needs to issue a token that is accepted."""
        entra = running.stack.entra
        before = await app.get("/api/token", entra.issue_access_token(GUEST.user_name))
        old = entra.issue_access_token(GUEST.user_name)
        assert 204 == (await app.post("/api/token/revoke", old)).status

        # Entra dates tokens back by five minutes: a new one is not enough.
        silently = await app.get("/api/token", entra.issue_access_token(GUEST.user_name))
        assert_problem(silently, 401, "token_revoked")
        claims = claims_of(silently)
        moment = int(json.loads(claims)["access_token"]["nbf"]["value"])
        await asyncio.sleep(max(0, moment - time.time() + 0.1))
        fresh = self._sign_in(running, claims)
        waiting = await app.get("/api/token", fresh)
        later(seconds=SETTLED)
        issued = await app.get("/api/token", fresh)
        await sweep()

        assert_problem(waiting, 503, "busy")
        assert 1 < int(waiting.headers["Retry-After"]) <= SETTLED
        assert (200, before.json["user"]) == (issued.status, issued.json["user"])
        assert running.stack.acs.token_is_valid(issued.json["token"])
        assert not running.stack.acs.token_is_valid(before.json["token"])
        await remove_row(GUEST.object_id)  # Other tests' tokens for the guest are dated back, too.

    @staticmethod
    def _sign_in(running: Running, claims: str) -> str:
        verifier, redirect_uri = "v" * 43, "http://localhost:3000/"
        challenge = base64url(hashlib.sha256(verifier.encode()).digest())
        scope = f"{BROKER.uris[0]}/access_as_user"
        code = running.stack.entra.new_code(
            SignIn(GUEST, WEB_APP, scope, redirect_uri, "", challenge)
        )
        form = {
            "grant_type": "authorization_code",
            "client_id": WEB_APP.client_id,
            "redirect_uri": redirect_uri,
            "code": code,
            "code_verifier": verifier,
            "claims": claims,
        }
        answer = running.stack.entra.redeem(CONTOSO.tenant_id, form, cross_origin=True)
        return str(answer["access_token"])

    async def test_acs_is_down(
        self, app: Client, running: Running, later: Callable[..., None], sweep: Sweep
    ) -> None:
        """202: it is stored, the Entra token is refused at once, and ACS is told later."""
        acs = running.stack.acs
        token = running.token_of_new_person()
        issued = await app.get("/api/token", token)
        acs.faults.fail_next("revoke", status=503)
        del running.host.output[:]

        revoked = await app.post("/api/token/revoke", token)

        assert (202, {"status": "accepted"}) == (revoked.status, revoked.json)
        assert "900" == revoked.headers["Revoked-Within"]
        assert '"finished": false' in await running.host.printed('"event": "tokens_revoked"')
        assert_problem(await app.get("/api/token", token), 401, "token_revoked")
        later(seconds=SETTLED)
        await sweep()
        assert not acs.token_is_valid(issued.json["token"])

    async def test_table_is_down(self, app: Client, running: Running) -> None:
        """503: nothing is stored, so the caller has to come again."""
        token = running.token_of_new_person()
        issued = await app.get("/api/token", token)
        running.stack.tables.faults.fail_next("table_update", status=503, times=9)

        assert_problem(await app.post("/api/token/revoke", token), 503, "storage_unavailable")

        running.stack.tables.faults.clear()
        assert running.stack.acs.token_is_valid(issued.json["token"])
        assert 204 == (await app.post("/api/token/revoke", token)).status

    @pytest.mark.parametrize("path", ["/api/token/revoke", "/api/user"])
    async def test_takes_no_input(self, app: Client, running: Running, path: str) -> None:
        """Whose tokens and identity these are, the Entra token alone says."""
        method = "POST" if path.endswith("revoke") else "DELETE"
        body = {"objectId": str(uuid.uuid4())}

        for options in ({"json": body}, {"params": body}):
            answer = await app.call(method, path, running.token_of_new_person(), **options)
            assert_problem(answer, 400, "invalid_request")


class TestErase:
    """DELETE /api/user."""

    async def test_erased(self, app: Client, running: Running) -> None:
        """Twice with the same token is 204 twice; a fresh sign-in gets another identity."""
        object_id = str(uuid.uuid4())
        token = running.token_of_new_person(oid=object_id)
        old = await app.get("/api/token", token)

        erased = [await app.delete("/api/user", token) for _ in range(2)]

        assert [(204, "")] * 2 == [(each.status, each.text) for each in erased]
        line = await running.host.printed('"event": "user_erased"')
        assert old.json["user"]["id"] in line
        assert object_id in line
        assert old.json["user"]["id"] not in running.stack.acs.identities
        assert not running.stack.acs.token_is_valid(old.json["token"])
        assert_problem(await app.get("/api/token", token), 401, "token_revoked")
        assert_problem(await app.post("/api/user", token), 401, "token_revoked")
        fresh = running.fresh_token(object_id)
        assert_problem(await app.get("/api/user", fresh), 404, "user_not_found")
        new = await app.get("/api/token", fresh)
        assert 200 == new.status
        assert old.json["user"] != new.json["user"]
        shown = await app.get(
            f"/api/users/{CONTOSO.tenant_id}/{object_id}", running.token_of_administrator()
        )
        assert 2 == shown.json["generation"]
        assert_problem(await app.delete("/api/user", token), 401, "token_revoked")
        assert running.stack.acs.token_is_valid(new.json["token"])

    async def test_nobody(self, app: Client, running: Running) -> None:
        """Somebody who was never here cannot be told apart from somebody who was."""
        known, unknown = running.token_of_new_person(), running.token_of_new_person()
        await app.post("/api/user", known)

        answers = {
            name: [await app.call(*call, token) for call in self.CALLS]
            for name, token in (("known", known), ("unknown", unknown))
        }

        seen = {
            name: [(each.status, each.text and each.code) for each in answered]
            for name, answered in answers.items()
        }
        assert seen["known"] == seen["unknown"]
        assert [(204, "")] * 2 == seen["unknown"][:2]
        assert {name: self._names(each) for name, each in answers.items()}["known"] == self._names(
            answers["unknown"]
        )

    CALLS = (
        ("DELETE", "/api/user"),
        ("DELETE", "/api/user"),
        ("GET", "/api/user"),
        ("POST", "/api/token/revoke"),
    )

    @staticmethod
    def _names(answers: list[Answer]) -> list[set[str]]:
        return [set(each.headers) for each in answers]

    async def test_acs_is_down(
        self, app: Client, running: Running, later: Callable[..., None], sweep: Sweep
    ) -> None:
        """202: it is stored, no token is issued any more, and the sweeper finishes it."""
        acs = running.stack.acs
        token = running.token_of_new_person()
        acs_id = (await app.get("/api/token", token)).json["user"]["id"]
        acs.faults.fail_next("delete", status=503)

        erased = await app.delete("/api/user", token)

        assert (202, {"status": "accepted"}) == (erased.status, erased.json)
        assert "Revoked-Within" not in erased.headers
        assert_problem(await app.get("/api/token", token), 401, "token_revoked")
        assert acs_id in acs.identities
        later(minutes=6)
        await sweep()
        assert acs_id not in acs.identities
        assert 204 == (await app.delete("/api/user", token)).status

    async def test_requests_in_flight(self, app: Client, running: Running) -> None:
        """Whatever they get is dead, and nothing is made anew."""
        acs = running.stack.acs
        token = running.token_of_new_person()
        acs_id = (await app.get("/api/token", token)).json["user"]["id"]
        acs.faults.clear()
        acs.faults.fail_next("issue", delay=1)
        in_flight = asyncio.create_task(app.get("/api/token", token))
        await until(lambda: acs.faults.count("issue") == 1)

        assert 204 == (await app.delete("/api/user", token)).status
        ended = await in_flight

        assert_problem(ended, 401, "token_revoked")
        assert acs_id not in acs.identities
        assert 0 == acs.faults.count("create")

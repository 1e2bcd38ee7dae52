"""The administrators' routes, with a person's token and with an app's own."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from local.acs.emulator import RESOURCE_ID, Identity
from local.entra.directory import CONTOSO, DAEMON, EXPENSES_API, FABRIKAM, FADI, GRACE
from shared.mappings.endings import RENEWALS_A_DAY
from tests.running import assert_problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.stack import FunctionsHost
    from tests.running import Client, Running

ELSEWHERE = "8:acs:ac5ac5ac-0000-4000-8000-000000000009_00000005-0000-0000-0000-000000000000"


def path_of(object_id: str, *more: str, tenant_id: str = CONTOSO.tenant_id) -> str:
    return "/".join(["/api/users", tenant_id, object_id, *more])


@pytest.fixture
def existing(running: Running) -> str:
    """An ACS identity that was made without the broker."""
    acs_id = f"8:acs:{RESOURCE_ID}_00000005{str(uuid.uuid4())[8:]}"
    running.stack.acs.identities[acs_id] = Identity(acs_id)
    return acs_id


@pytest.fixture(params=["person", "app"])
def administrator(request: pytest.FixtureRequest, running: Running) -> str:
    """An administrator's token: Grace's, or that of an app by itself."""
    entra = running.stack.entra
    if request.param == "person":
        return entra.issue_access_token(GRACE.user_name)
    return entra.issue_access_token(None, client=DAEMON)


async def test_whole_life(app: Client, running: Running, administrator: str, existing: str) -> None:
    """Bring along, show, look up, revoke, erase: a person as the operator sees them."""
    object_id = str(uuid.uuid4())
    path, body = path_of(object_id), {"communicationUserId": existing}

    absent = await app.get(path, administrator)
    adopted = await app.put(path, administrator, json=body)
    again = await app.put(path, administrator, json=body)
    issued = await app.get("/api/token", running.token_of_new_person(oid=object_id))
    shown = await app.get(path, administrator)
    found = await app.get("/api/users", administrator, params=body)
    revoked = await app.post(path_of(object_id, "revoke"), administrator)
    erased = [await app.delete(path, administrator) for _ in range(2)]
    left = await app.get(path, administrator)
    gone = await app.get("/api/users", administrator, params=body)

    assert_problem(absent, 404, "user_not_found")
    assert (201, 200) == (adopted.status, again.status)
    assert existing == issued.json["user"]["id"]
    user = {"communicationUserId": existing, "id": existing}
    for each in (adopted, again, shown):
        assert (object_id, CONTOSO.tenant_id) == (each.json["objectId"], each.json["tenantId"])
        assert ("active", user) == (each.json["state"], each.json["user"])
    assert {"users": [shown.json]} == found.json
    assert (204, "900") == (revoked.status, revoked.headers["Revoked-Within"])
    assert not running.stack.acs.token_is_valid(issued.json["token"])
    assert [204, 204] == [each.status for each in erased]
    assert existing not in running.stack.acs.identities
    assert "erased" == left.json["state"]
    assert "user" not in left.json
    assert "revokedBefore" in left.json
    assert {"users": []} == gone.json


async def test_audit_lines(app: Client, running: Running, existing: str) -> None:
    """Each line says who did what, and to whom."""
    grace = running.stack.entra.issue_access_token(GRACE.user_name)
    object_id = str(uuid.uuid4())
    path = path_of(object_id)
    calls: list[tuple[str, str, dict[str, Any], str]] = [
        ("PUT", path, {"json": {"communicationUserId": existing}}, "user_adopted"),
        ("GET", path, {}, "user_looked_up"),
        ("POST", path_of(object_id, "revoke"), {}, "tokens_revoked"),
        ("DELETE", path, {}, "user_erased"),
    ]
    for method, where, options, event in calls:
        del running.host.output[:]
        await app.call(method, where, grace, **options)
        line = await running.host.printed(f'"event": "{event}"')
        for expected in (
            f'"object_id": "{GRACE.object_id}"',
            f'"target_tenant_id": "{CONTOSO.tenant_id}"',
            f'"target_object_id": "{object_id}"',
        ):
            assert expected in line
    del running.host.output[:]
    await app.get("/api/users?limit=1", grace)
    line = await running.host.printed('"event": "users_listed"')
    assert f'"target_tenant_id": "{CONTOSO.tenant_id}"' in line


@pytest.mark.parametrize(
    ("method", "more", "body"),
    [
        ("GET", [], None),
        ("PUT", [], {"communicationUserId": ELSEWHERE}),
        ("DELETE", [], None),
        ("POST", ["revoke"], None),
        ("POST", ["renew"], None),
    ],
    ids=["show", "adopt", "erase", "revoke", "renew"],
)
class TestRefused:
    """Who may not use these routes."""

    async def test_another_tenant(
        self, app: Client, running: Running, method: str, more: list[str], body: Any
    ) -> None:
        """Fabrikam's administrator touches nothing of Contoso, and is told nothing about it."""
        object_id = str(uuid.uuid4())
        issued = await app.get("/api/token", running.token_of_new_person(oid=object_id))
        path = path_of(object_id)
        before = await app.get(path, running.token_of_administrator())
        token = running.token_of_fabrikams_administrator()

        known = await app.call(method, path_of(object_id, *more), token, json=body)
        unknown = await app.call(method, path_of(str(uuid.uuid4()), *more), token, json=body)

        for each in (known, unknown):
            assert_problem(each, 403, "admin_required")
        assert before.json == (await app.get(path, running.token_of_administrator())).json
        assert running.stack.acs.token_is_valid(issued.json["token"])

    async def test_no_administrator(
        self, app: Client, running: Running, method: str, more: list[str], body: Any
    ) -> None:
        """A person without the role, a role without the scope, another API, no token."""
        entra = running.stack.entra
        path = path_of(str(uuid.uuid4()), *more)
        for token, status, code in [
            (running.token_of_new_person(), 403, "admin_required"),
            (running.token_of_new_person(roles=["Tokens.Get"]), 403, "admin_required"),
            (running.token_of_new_person(roles="Mappings.Admin"), 401, "invalid_token"),
            (running.token_of_administrator(scp="other"), 403, "insufficient_scope"),
            (running.token_of_administrator(azp=str(uuid.uuid4())), 403, "client_not_allowed"),
            (
                entra.issue_access_token(GRACE.user_name, resource=EXPENSES_API),
                401,
                "invalid_token",
            ),
            (None, 401, "missing_token"),
        ]:
            assert_problem(await app.call(method, path, token, json=body), status, code)

    async def test_not_a_guid(
        self, app: Client, running: Running, method: str, more: list[str], body: Any
    ) -> None:
        """A name or a part of a key is not an id."""
        token = running.token_of_administrator()
        for tenant_id, object_id in [
            (CONTOSO.domain, str(uuid.uuid4())),
            (CONTOSO.tenant_id, "me"),
            (CONTOSO.tenant_id, "%27%20or%20true"),
        ]:
            path = path_of(object_id, *more, tenant_id=tenant_id)
            answer = await app.call(method, path, token, json=body)
            assert_problem(answer, 400, "invalid_request")


async def test_list_of_another_tenant(app: Client, running: Running) -> None:
    """Fabrikam's administrator neither lists Contoso nor finds anybody there."""
    issued = await app.get("/api/token", running.token_of_new_person())
    token = running.token_of_fabrikams_administrator()

    listed = await app.get("/api/users", token, params={"tenantId": CONTOSO.tenant_id})
    found = await app.get(
        "/api/users", token, params={"communicationUserId": issued.json["user"]["id"]}
    )
    own = await app.get("/api/users", token)

    assert_problem(listed, 403, "admin_required")
    assert (200, {"users": []}) == (found.status, found.json)
    assert {each["tenantId"] for each in own.json["users"]} <= {FABRIKAM.tenant_id}


async def test_operator(
    running: Running,
    app_at: Callable[..., Client],
    another_host: Callable[..., FunctionsHost],
) -> None:
    """The administrators of the operator's tenant administer every tenant."""
    app = app_at(another_host(ENTRA_OPERATOR_TENANT_ID=FABRIKAM.tenant_id))
    object_id = str(uuid.uuid4())
    await app.get("/api/token", running.token_of_new_person(oid=object_id))
    token = running.token_of_fabrikams_administrator()

    assert 200 == (await app.get(path_of(object_id), token)).status
    assert 204 == (await app.delete(path_of(object_id), token)).status
    # Contoso's have no more rights than before.
    path = path_of(FADI.object_id, tenant_id=FABRIKAM.tenant_id)
    assert_problem(await app.get(path, running.token_of_administrator()), 403, "admin_required")


async def test_signed_out_administrator(app: Client, running: Running) -> None:
    """An administrator's old token is worth nothing after signing out everywhere."""
    object_id = str(uuid.uuid4())
    token = running.token_of_administrator(oid=object_id)
    assert 200 == (await app.get("/api/users?limit=1", token)).status
    assert 204 == (await app.post("/api/token/revoke", token)).status

    refused = await app.get("/api/users?limit=1", token)

    assert_problem(refused, 401, "token_revoked")
    assert "insufficient_claims" in refused.headers["WWW-Authenticate"]
    fresh = running.fresh_token(object_id, roles=["Mappings.Admin"])
    assert 200 == (await app.get("/api/users?limit=1", fresh)).status


async def test_app_on_the_routes_of_people(app: Client, running: Running) -> None:
    """An app by itself is nobody: it has no ACS identity, tokens or erasure of its own."""
    token = running.stack.entra.issue_access_token(None, client=DAEMON)

    for method, path in [("GET", "/api/token"), ("DELETE", "/api/user"), ("GET", "/api/user")]:
        assert_problem(await app.call(method, path, token), 403, "insufficient_scope")
    assert_problem(await app.post("/api/token/revoke", token), 403, "insufficient_scope")


class TestList:
    """GET /api/users."""

    async def test_pages(self, app: Client, running: Running) -> None:
        """Everybody is on one page, in order, and no page is longer than asked for."""
        object_ids = sorted(str(uuid.uuid4()) for _ in range(5))
        await asyncio.gather(
            *(app.post("/api/user", running.token_of_new_person(oid=each)) for each in object_ids)
        )
        token = running.token_of_administrator()
        listed: list[str] = []
        asked = {"limit": "40", "tenantId": CONTOSO.tenant_id}
        for _ in range(100):
            page = await app.get("/api/users", token, params=asked)
            assert 200 == page.status
            assert len(page.json["users"]) <= 40
            listed += [each["objectId"] for each in page.json["users"]]
            if "continuationToken" not in page.json:
                break
            asked["continuationToken"] = page.json["continuationToken"]

        assert len(listed) == len(set(listed))
        assert object_ids == [each for each in listed if each in object_ids]
        assert page.status == 200
        assert "continuationToken" not in page.json

    async def test_damaged(
        self,
        app: Client,
        running: Running,
        rewrite_row: Callable[..., Awaitable[None]],
        remove_row: Callable[[str], Awaitable[None]],
    ) -> None:
        """Damaged rows are listed as such, with what is wrong, and can be asked for."""
        object_id = str(uuid.uuid4())
        await app.post("/api/user", running.token_of_new_person(oid=object_id))
        await rewrite_row(object_id, acsId="damaged")

        token = running.token_of_administrator()
        asked = {"state": "broken", "limit": "1000"}
        page = (await app.get("/api/users", token, params=asked)).json
        await remove_row(object_id)

        (row,) = [each for each in page["users"] if each["objectId"] == object_id]
        assert "broken" == row["state"]
        assert "acsId" in row["problem"]
        assert {"broken"} == {each["state"] for each in page["users"]}

    @pytest.mark.parametrize(
        "query",
        [
            "?limit=0",
            "?limit=1001",
            "?limit=1&limit=2",
            "?state=absent",
            "?state=",
            "?tenantId=contoso.example",
            "?communicationUserId=8:acs:x",
            "?continuationToken=x",
            "?continuationToken=eyJhdCI6WyJhIiwiYiIsImMiLG51bGxdfQ",
            "?filter=true",
            f"?communicationUserId={ELSEWHERE}&state=active",
        ],
    )
    async def test_bad_queries(self, app: Client, running: Running, query: str) -> None:
        """Unknown parameters, values out of range, and tokens of another list."""
        answer = await app.get(f"/api/users{query}", running.token_of_administrator())

        assert_problem(answer, 400, "invalid_request")


async def test_conflicts(app: Client, running: Running, existing: str) -> None:
    """An identity belongs to one person, and a person has one identity."""
    token = running.token_of_administrator()
    somebody, owner, nobody = (str(uuid.uuid4()) for _ in range(3))
    await app.post("/api/user", running.token_of_new_person(oid=somebody))
    assert (
        201 == (await app.put(path_of(owner), token, json={"communicationUserId": existing})).status
    )
    unknown = f"{existing[:-1]}{'0' if existing[-1] != '0' else '1'}"

    for object_id, acs_id in [
        (somebody, existing),
        (nobody, existing),
        (nobody, ELSEWHERE),
        (nobody, unknown),
    ]:
        answer = await app.put(path_of(object_id), token, json={"communicationUserId": acs_id})
        assert_problem(answer, 409, "conflict")
    assert 404 == (await app.get(path_of(nobody), token)).status


class TestGone:
    """ACS no longer knows an identity."""

    @pytest.mark.usefixtures("no_renewals_today")
    async def test_brake(self, app: Client, running: Running) -> None:
        """A few people a day get a new identity by themselves; the rest wait for the operator."""
        acs = running.stack.acs
        object_ids = [str(uuid.uuid4()) for _ in range(RENEWALS_A_DAY + 2)]
        tokens = [running.token_of_new_person(oid=each) for each in object_ids]
        old = [(await app.get("/api/token", each)).json["user"]["id"] for each in tokens]
        for each in old:
            del acs.identities[each]

        answers = [await app.get("/api/token", each) for each in tokens]

        healed, refused = answers[:RENEWALS_A_DAY], answers[RENEWALS_A_DAY:]
        for before, each in zip(old, healed, strict=False):
            assert 200 == each.status
            assert before != each.json["user"]["id"]
            assert acs.token_is_valid(each.json["token"])
        for each in refused:
            assert_problem(each, 502, "identity_gone")
            assert 45 <= int(each.headers["Retry-After"]) <= 60
        # The identity that is lost is not handed out either.
        assert_problem(await app.get("/api/user", tokens[-1]), 502, "identity_gone")
        assert_problem(await app.post("/api/user", tokens[-1]), 502, "identity_gone")
        line = await running.host.printed('"code": "identity_gone"')
        assert '"event": "request_failed"' in line

        administrator = running.token_of_administrator()
        path = path_of(object_ids[-1])
        shown = (await app.get(path, administrator)).json
        assert ("active", old[-1]) == (shown["state"], shown["user"]["id"])
        assert "goneOn" in shown
        renewed = await app.post(path_of(object_ids[-1], "renew"), administrator)
        assert 200 == renewed.status
        assert old[-1] != renewed.json["user"]["id"]
        issued = await app.get("/api/token", tokens[-1])
        assert renewed.json["user"] == issued.json["user"]
        # It is not gone any more, and nobody can be renewed for nothing.
        again = await app.post(path_of(object_ids[-1], "renew"), administrator)
        assert_problem(again, 409, "conflict")

    @pytest.mark.usefixtures("no_renewals_today")
    async def test_wrong_endpoint(
        self, app: Client, running: Running, rewrite_row: Callable[..., Awaitable[None]]
    ) -> None:
        """Ids of another resource mean that the endpoint is wrong: nothing is replaced."""
        acs = running.stack.acs
        people = {str(uuid.uuid4()): f"{ELSEWHERE[:-1]}{number}" for number in range(3)}
        for object_id, acs_id in people.items():
            await app.post("/api/user", running.token_of_new_person(oid=object_id))
            await rewrite_row(object_id, acsId=acs_id)
        live = set(acs.identities)

        for object_id in people:
            answer = await app.get("/api/token", running.token_of_new_person(oid=object_id))
            assert_problem(answer, 502, "identity_gone")

        administrator = running.token_of_administrator()
        for object_id, acs_id in people.items():
            shown = (await app.get(path_of(object_id), administrator)).json
            assert ("active", acs_id) == (shown["state"], shown["user"]["id"])
        assert live == set(acs.identities)

        # The operator can decide otherwise, as after a move to another resource.
        renewed = await app.post(path_of(object_id, "renew"), administrator)
        assert 200 == renewed.status
        assert renewed.json["user"]["id"] in acs.identities
        assert acs_id not in acs.deleted

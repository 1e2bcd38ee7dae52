"""The local Microsoft Graph: who may list deleted users, and what the list says."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import (
    ADA,
    CONTOSO,
    FABRIKAM,
    FADI,
    GRACE,
    GRAPH,
    SYSTEM_ASSIGNED_IDENTITY,
    USER_ASSIGNED_IDENTITY,
)

if TYPE_CHECKING:
    import aiohttp

    from local.entra.emulator import EntraEmulator

PATH = "/v1.0/directory/deletedItems/microsoft.graph.user"


async def ask(
    http: aiohttp.ClientSession, entra: EntraEmulator, path: str = PATH, **changes: Any
) -> tuple[int, Any]:
    """Ask as the managed identity of the broker; return the status and the body."""
    options: dict[str, Any] = {"client": USER_ASSIGNED_IDENTITY, "resource": GRAPH}
    token = entra.issue_access_token(None, **(options | changes))
    headers = {"Authorization": f"Bearer {token}"}
    async with http.get(f"{entra.url}{path}", headers=headers) as response:
        return response.status, await response.json()


class TestList:
    """What the list says."""

    async def test_empty(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """At first nobody is deleted."""
        status, body = await ask(http, entra)

        assert (200, []) == (status, body["value"])
        assert "@odata.nextLink" not in body

    async def test_users(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """It has the users of the tenant that were deleted in the last 30 days, and when."""
        now = datetime.now(UTC)
        entra.graph.delete(CONTOSO, ADA.object_id, on=datetime(2026, 11, 1, 8, 30, tzinfo=UTC))
        entra.graph.delete(CONTOSO, ADA.object_id, on=now - timedelta(days=29))
        entra.graph.delete(CONTOSO, GRACE.object_id, on=now - timedelta(days=31))
        entra.graph.delete(FABRIKAM, FADI.object_id)

        _, body = await ask(http, entra)

        (user,) = body["value"]
        assert {"id", "deletedDateTime"} == user.keys()
        assert ADA.object_id == user["id"]
        deleted_on = datetime.fromisoformat(user["deletedDateTime"])
        assert timedelta() <= now - timedelta(days=29) - deleted_on < timedelta(seconds=1)

    async def test_pages(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Links lead from page to page, through every user once."""
        ids = {str(uuid.uuid4()) for _ in range(7)}
        for object_id in ids:
            entra.graph.delete(CONTOSO, object_id)
        sizes, found = [], []
        path = f"{PATH}?$select=id,deletedDateTime&$top=3"
        while path:
            _, body = await ask(http, entra, path)
            sizes.append(len(body["value"]))
            found += [user["id"] for user in body["value"]]
            path = body.get("@odata.nextLink", "").removeprefix(entra.url)

        assert [3, 3, 1] == sizes
        assert sorted(ids) == sorted(found)

    async def test_signs_in_no_more(self, entra: EntraEmulator) -> None:
        """A deleted user gets no tokens."""
        entra.graph.delete(CONTOSO, ADA.object_id)

        with pytest.raises(LookupError):
            entra.issue_access_token(ADA.user_name)
        assert entra.issue_access_token(GRACE.user_name)


class TestRefuses:
    """Who is refused, and in which words."""

    @pytest.mark.parametrize(
        ("changes", "status", "code"),
        [
            pytest.param(
                {"client": SYSTEM_ASSIGNED_IDENTITY},
                403,
                "Authorization_RequestDenied",
                id="without the permission",
            ),
            pytest.param(
                {"claims": {"roles": ["User.Read"]}},
                403,
                "Authorization_RequestDenied",
                id="another permission",
            ),
            pytest.param(
                {"audience": "https://storage.azure.com"},
                401,
                "InvalidAuthenticationToken",
                id="another audience",
            ),
            pytest.param(
                {"lifetime": timedelta(seconds=-1)}, 401, "InvalidAuthenticationToken", id="expired"
            ),
        ],
    )
    async def test_token(
        self,
        http: aiohttp.ClientSession,
        entra: EntraEmulator,
        changes: dict[str, Any],
        status: int,
        code: str,
    ) -> None:
        """It takes a valid token for Graph, with the permission."""
        answered, body = await ask(http, entra, **changes)

        assert (status, code) == (answered, body["error"]["code"])

    async def test_no_token(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Without a token nothing is shown."""
        async with http.get(entra.url + PATH) as response:
            assert 401 == response.status

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/v1.0/directory/deletedItems", 400),
            ("/v1.0/directory/deletedItems/microsoft.graph.group", 404),
            (f"{PATH}?$top=0", 400),
            (f"{PATH}?$top=1000", 400),
            (f"{PATH}?$top=many", 400),
            (f"{PATH}?$filter=x", 400),
            (f"{PATH}?$select=displayName", 400),
        ],
    )
    async def test_query(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, path: str, status: int
    ) -> None:
        """Only users can be listed, and only what is emulated can be asked for."""
        assert status == (await ask(http, entra, path))[0]

    async def test_fault(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """Graph fails on command, in its own words, and Entra does not fail with it."""
        entra.faults.fail_next("deleted_users", status=429, headers={"Retry-After": "9"})

        status, body = await ask(http, entra)

        assert (429, "TooManyRequests") == (status, body["error"]["code"])
        assert 1 == entra.faults.count("deleted_users")
        assert 200 == (await ask(http, entra))[0]


class TestCommand:
    """Another process deletes users."""

    async def test_deletes(self, http: aiohttp.ClientSession, entra: EntraEmulator) -> None:
        """The user is in the list at once."""
        command = {
            "tenant": "contoso.example",
            "object_id": ADA.object_id,
            "on": (datetime.now(UTC) - timedelta(days=8)).isoformat(),
        }
        async with http.post(f"{entra.url}/_local/users/delete", json=command) as response:
            assert 204 == response.status

        _, body = await ask(http, entra)
        assert [ADA.object_id] == [user["id"] for user in body["value"]]

    @pytest.mark.parametrize(
        "command",
        [
            {},
            [],
            {"tenant": "contoso.example"},
            {"tenant": "contoso.example", "object_id": "ada"},
            {"tenant": "nobody.example", "object_id": ADA.object_id},
            {"tenant": "contoso.example", "object_id": ADA.object_id, "on": "yesterday"},
            {"tenant": "contoso.example", "object_id": ADA.object_id, "on": "2026-11-01"},
        ],
        ids=str,
    )
    async def test_refuses(
        self, http: aiohttp.ClientSession, entra: EntraEmulator, command: object
    ) -> None:
        """What names no user is refused, and nobody is deleted."""
        async with http.post(f"{entra.url}/_local/users/delete", json=command) as response:
            assert 400 == response.status

        assert [] == (await ask(http, entra))[1]["value"]

"""Microsoft Graph: the list of deleted users is read whole, or not used."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from local.entra.directory import (
    CONTOSO,
    FABRIKAM,
    GRAPH,
    SYSTEM_ASSIGNED_IDENTITY,
    USER_ASSIGNED_IDENTITY,
)
from local.serving.application import serve
from shared.entra import graph as graph_module
from shared.entra.graph import Graph, GraphError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from local.entra.emulator import EntraEmulator
    from local.entra.objects import ManagedIdentity

AUDIENCE = "https://graph.microsoft.com"
OPERATION = "deleted_users"
DATE = "2026-11-01T08:30:00Z"
NEXT = "@odata.nextLink"


class Identity:
    """A managed identity of the local Entra, which counts its tokens."""

    def __init__(self, entra: EntraEmulator, identity: ManagedIdentity) -> None:
        self._entra = entra
        self._identity = identity
        self.scopes: list[str] = []

    async def get_token(self, *scopes: str) -> AccessToken:
        """Return a token as the identity's SDK does."""
        self.scopes += scopes
        return AccessToken(
            self._entra.issue_access_token(None, client=self._identity, resource=GRAPH), 0
        )


@pytest.fixture
def waited() -> list[float]:
    """How many seconds were waited between attempts."""
    return []


@pytest.fixture
async def graph_at(
    entra: EntraEmulator, waited: list[float]
) -> AsyncIterator[Callable[..., Graph]]:
    """Return a function that makes a client for an address."""

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with aiohttp.ClientSession(auto_decompress=False) as session:

        def make(url: str, **changes: Any) -> Graph:
            parts: dict[str, Any] = {
                "session": session,
                "credential": Identity(entra, USER_ASSIGNED_IDENTITY),
                "audience": AUDIENCE,
                "sleep": sleep,
            }
            return Graph(url=url, **(parts | changes))

        yield make


@pytest.fixture
def graph(entra: EntraEmulator, graph_at: Callable[..., Graph]) -> Graph:
    """A client with the permission."""
    return graph_at(entra.url)


async def refusal(graph: Graph) -> str:
    """Return why the list is not used."""
    with pytest.raises(GraphError) as caught:
        await graph.deleted_users()
    return str(caught.value)


class TestReads:
    """Whom Graph lists."""

    async def test_nobody(self, graph: Graph) -> None:
        """Nobody may be deleted."""
        assert {} == await graph.deleted_users()

    async def test_own_tenant(self, entra: EntraEmulator, graph: Graph) -> None:
        """Only the tenant of the identity is asked, whoever was deleted elsewhere."""
        on = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
        here, elsewhere = str(uuid.uuid4()), str(uuid.uuid4())
        entra.graph.delete(CONTOSO, here, on=on)
        entra.graph.delete(FABRIKAM, elsewhere)

        assert {here: on} == await graph.deleted_users()

    async def test_pages(self, entra: EntraEmulator, graph: Graph) -> None:
        """Every page is read, with 999 users in each."""
        ids = {str(uuid.uuid4()) for _ in range(2000)}
        for object_id in ids:
            entra.graph.delete(CONTOSO, object_id)

        assert ids == (await graph.deleted_users()).keys()
        assert 3 == entra.faults.count(OPERATION)

    async def test_twice(self, entra: EntraEmulator, graph: Graph) -> None:
        """Of two dates for one user the later one counts: after it the user was back."""
        object_id, later = str(uuid.uuid4()), datetime.now(UTC).replace(microsecond=0)
        entra.graph.delete(CONTOSO, object_id, on=later)
        first = {
            "value": [{"id": object_id, "deletedDateTime": "2020-01-01T00:00:00Z"}],
            NEXT: entra.url + graph_module.PATH,
        }
        entra.faults.fail_next(OPERATION, body=json.dumps(first))

        assert {object_id: later} == await graph.deleted_users()

    async def test_scope(self, entra: EntraEmulator, graph_at: Callable[..., Graph]) -> None:
        """The token is for Graph, with all permissions that were granted."""
        identity = Identity(entra, USER_ASSIGNED_IDENTITY)
        await graph_at(entra.url, credential=identity).deleted_users()

        assert ["https://graph.microsoft.com/.default"] == identity.scopes


class TestTriesAgain:
    """What passes by itself is waited for; nothing else is."""

    async def test_throttled(self, entra: EntraEmulator, graph: Graph, waited: list[float]) -> None:
        """Graph says how long to wait."""
        entra.faults.fail_next(OPERATION, status=429, headers={"Retry-After": "17"})

        assert {} == await graph.deleted_users()
        (seconds,) = waited
        assert 17 <= seconds <= 18

    @pytest.mark.parametrize(
        ("header", "least", "most"),
        [
            pytest.param("0", 1, 2, id="at once"),
            pytest.param("86400", 60, 61, id="for a day"),
            pytest.param("Wed, 25 Nov 2026 10:00:00 GMT", 2, 3, id="a date"),
            pytest.param("٣", 2, 3, id="digits of another script"),
            pytest.param("-5", 2, 3, id="negative"),
        ],
    )
    async def test_odd_wait(
        self,
        entra: EntraEmulator,
        graph: Graph,
        waited: list[float],
        header: str,
        least: float,
        most: float,
    ) -> None:
        """The wait has limits, whatever the header says."""
        entra.faults.fail_next(OPERATION, status=503, headers={"Retry-After": header})

        await graph.deleted_users()

        assert least <= waited[0] <= most

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    async def test_in_vain(
        self, entra: EntraEmulator, graph: Graph, waited: list[float], status: int
    ) -> None:
        """After four attempts it gives up."""
        entra.faults.fail_next(OPERATION, status=status, times=9)

        assert f"status {status}" == await refusal(graph)
        assert 4 == entra.faults.count(OPERATION)
        assert 3 == len(waited)

    @pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 500])
    async def test_not_again(self, entra: EntraEmulator, graph: Graph, status: int) -> None:
        """Nothing else is asked twice, and no redirect is followed."""
        headers = {"Location": f"{entra.url}/v1.0/directory/deletedItems/microsoft.graph.user"}
        entra.faults.fail_next(OPERATION, status=status, headers=headers)

        assert f"status {status}" == await refusal(graph)
        assert 1 == entra.faults.count(OPERATION)


class TestRefuses:
    """If the list cannot be relied on, it is not used."""

    async def test_permission(self, entra: EntraEmulator, graph_at: Callable[..., Graph]) -> None:
        """Without the permission Graph refuses."""
        identity = Identity(entra, SYSTEM_ASSIGNED_IDENTITY)

        assert "status 403" == await refusal(graph_at(entra.url, credential=identity))

    async def test_no_identity(self, entra: EntraEmulator, graph_at: Callable[..., Graph]) -> None:
        """Without a token Graph is not asked, and what the identity's SDK says stays here."""

        class NoIdentity:
            async def get_token(self, *_scopes: str) -> AccessToken:
                raise ClientAuthenticationError("a secret")

        reason = await refusal(graph_at(entra.url, credential=NoIdentity()))

        assert "ClientAuthenticationError" == reason
        assert 0 == entra.faults.count(OPERATION)

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"reset": True, "times": 2}, id="reset"),  # aiohttp repeats it once.
            pytest.param({"truncate": 40}, id="truncated"),
            pytest.param({"delay": 1}, id="slow"),
            pytest.param({"drip": 0.1}, id="drip by drip"),
        ],
    )
    async def test_connection(
        self, entra: EntraEmulator, graph_at: Callable[..., Graph], fault: dict[str, Any]
    ) -> None:
        """A connection that fails is no empty list."""
        entra.faults.fail_next(OPERATION, **fault)

        assert await refusal(graph_at(entra.url, request_timeout=0.3))

    @pytest.mark.parametrize(
        "page",
        [
            pytest.param("", id="nothing"),
            pytest.param("[]", id="array"),
            pytest.param("{}", id="no value"),
            pytest.param({"value": {}}, id="value is an object"),
            pytest.param({"value": [None]}, id="null among users"),
            pytest.param({"value": [{"deletedDateTime": DATE}]}, id="no id"),
            pytest.param({"value": [{"id": "ada", "deletedDateTime": DATE}]}, id="odd id"),
            pytest.param({"value": [{"id": "0" * 36, "deletedDateTime": DATE}]}, id="not a GUID"),
            pytest.param({"value": [{"id": str(uuid.UUID(int=1))}]}, id="no date"),
            pytest.param(
                {"value": [{"id": str(uuid.UUID(int=1)), "deletedDateTime": None}]},
                id="null for the date, as without the permission for users",
            ),
            pytest.param(
                {"value": [{"id": str(uuid.UUID(int=1)), "deletedDateTime": "2026-11-01"}]},
                id="a date without a time zone",
            ),
            pytest.param(
                {"value": [{"id": str(uuid.UUID(int=1)), "deletedDateTime": "soon"}]},
                id="a word for the date",
            ),
            pytest.param('{"value":[],"value":[]}', id="a name twice"),
            pytest.param({"value": [], "more": "x" * 1024 * 1024}, id="over 1 MiB"),
        ],
    )
    async def test_page(self, entra: EntraEmulator, graph: Graph, page: object) -> None:
        """One page that is not as it should be is enough, and is never quoted."""
        text = page if isinstance(page, str) else json.dumps(page)
        entra.faults.fail_next(OPERATION, body=text)

        reason = await refusal(graph)

        assert not any(word in reason for word in ("soon", "ada", "2026"))
        assert 1 == entra.faults.count(OPERATION)

    @pytest.mark.parametrize(
        "link",
        [
            pytest.param(None, id="null"),
            pytest.param(["HOST/v1.0/x"], id="a list"),
            pytest.param("/v1.0/directory", id="a relative link"),
            pytest.param("https://evil.example/v1.0/x", id="another host"),
            pytest.param("HOST.evil.example/v1.0/x", id="a longer host"),
            pytest.param("HOST@evil.example/v1.0/x", id="a host as user"),
            pytest.param("HOST/_local/faults", id="not Graph"),
        ],
    )
    async def test_next_page(self, entra: EntraEmulator, graph: Graph, link: object) -> None:
        """No other host gets the token, whatever the page says."""
        text = json.dumps({"value": [], NEXT: link}).replace("HOST", entra.url)
        entra.faults.fail_next(OPERATION, body=text)

        assert "the next page is on another host" == await refusal(graph)
        assert 1 == entra.faults.count(OPERATION)

    async def test_second_page(self, entra: EntraEmulator, graph: Graph) -> None:
        """If one page is missing, the others do not count either."""
        for _ in range(1500):
            entra.graph.delete(CONTOSO, str(uuid.uuid4()))
        entra.faults.fail_next(OPERATION, delay=0)
        entra.faults.fail_next(OPERATION, status=500)

        assert "status 500" == await refusal(graph)

    async def test_endless(self, graph_at: Callable[..., Graph]) -> None:
        """A chain of pages without an end ends after some."""
        asked: list[str] = []

        async def page(request: web.Request) -> web.Response:
            asked.append(request.path_qs)
            return web.json_response({"value": [], NEXT: str(request.url)})

        app = web.Application()
        app.add_routes([web.get("/{path:.*}", page)])
        async with serve(app) as url:
            assert "over 200 pages of deleted users" == await refusal(graph_at(url))

        assert graph_module.MAX_PAGES == len(asked)
        assert {graph_module.PATH} == set(asked)

"""People who were deleted from Entra: who counts as gone, and when too many do."""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from azure.core.credentials import AccessToken

from local.entra.directory import CONTOSO, FABRIKAM, GRAPH, USER_ASSIGNED_IDENTITY
from shared.entra.graph import Graph
from shared.identifiers import Person
from shared.leavers import Leaver, Leavers, Search
from shared.settings import LeaversSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra.emulator import EntraEmulator


SETTINGS = LeaversSettings(
    after=timedelta(days=7), tenant_id=CONTOSO.tenant_id, max_share=0.2, max_people=500
)
NOW = datetime(2026, 11, 25, 3, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    """Keep all audit lines."""
    caplog.set_level(logging.INFO)


def somebody(tenant_id: str = CONTOSO.tenant_id) -> Person:
    return Person(tenant_id, str(uuid.uuid4()))


def search_for(left: dict[Person, datetime], *, staying: int = 0, **changes: Any) -> Search:
    """Return a search that has seen these people, and so many others."""
    search = Search(
        settings=replace(SETTINGS, **changes),
        deleted={person.object_id: on for person, on in left.items()},
        now=NOW,
    )
    for person in [*left, *(somebody() for _ in range(staying))]:
        search.add(person, last_used_on=NOW - 20 * DAY)
    return search


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(message) for message in caplog.messages]


class TestDecision:
    """Who counts as gone."""

    @pytest.mark.parametrize(
        ("deleted", "used", "expected"),
        [
            pytest.param(7 * DAY, 20 * DAY, True, id="long enough ago"),
            pytest.param(7 * DAY - HOUR, 20 * DAY, False, id="not long enough ago"),
            pytest.param(-DAY, 20 * DAY, False, id="in the future"),
            pytest.param(10 * DAY, 9 * DAY, True, id="with a token from before"),
            pytest.param(10 * DAY, 10 * DAY - 28 * HOUR, True, id="with the last such token"),
            pytest.param(10 * DAY, 10 * DAY - 29 * HOUR, False, id="back since"),
            pytest.param(10 * DAY, timedelta(), False, id="here today"),
        ],
    )
    def test_deleted(self, deleted: timedelta, used: timedelta, *, expected: bool) -> None:
        """Deleted some days ago, and not seen since the last token expired."""
        person = somebody()
        search = search_for({}, staying=9)
        search.deleted = {person.object_id: NOW - deleted}
        search.add(person, last_used_on=NOW - used)

        found = [Leaver(person, NOW - deleted)] if expected else []
        assert found == search.found()

    def test_unknown_to_entra(self) -> None:
        """Whom Entra does not list has not left, even if it lists nobody at all."""
        search = search_for({}, staying=50)

        assert [] == search.found()

    def test_other_tenant(self, caplog: pytest.LogCaptureFixture) -> None:
        """People of other tenants are counted and left alone, even under a deleted user's id."""
        leaver = somebody()
        search = search_for({leaver: NOW - 10 * DAY}, staying=9)
        search.add(Person(FABRIKAM.tenant_id, leaver.object_id), last_used_on=NOW - 20 * DAY)

        assert [leaver] == [each.person for each in search.found()]
        assert {
            "event": "leavers_found",
            "deleted": 1,
            "people": 10,
            "elsewhere": 1,
            "left": 1,
        } == lines(caplog)[-1]


class TestBrakes:
    """If too many have left at once, nobody has."""

    @pytest.mark.parametrize(
        ("left", "staying", "changes", "stopped"),
        [
            pytest.param(2, 8, {}, None, id="a fifth"),
            pytest.param(3, 8, {}, "share", id="over a fifth"),
            pytest.param(1, 0, {}, "share", id="the only one"),
            pytest.param(3, 0, {"max_share": 1.0}, None, id="all, which is allowed"),
            pytest.param(5, 95, {"max_people": 5}, None, id="as many as allowed"),
            pytest.param(6, 94, {"max_people": 5}, "number", id="one more than allowed"),
        ],
    )
    def test_brake(
        self,
        caplog: pytest.LogCaptureFixture,
        left: int,
        staying: int,
        changes: dict[str, Any],
        stopped: str | None,
    ) -> None:
        """The share of the tenant's people has a limit, and so has the number."""
        search = search_for(
            {somebody(): NOW - 10 * DAY for _ in range(left)}, staying=staying, **changes
        )

        assert (0 if stopped else left) == len(search.found())
        line = lines(caplog)[-1]
        assert ("leavers_stopped" if stopped else "leavers_found", left, stopped) == (
            line["event"],
            line["left"],
            line.get("stopped"),
        )

    def test_others_do_not_count(self) -> None:
        """People of other tenants do not make the share smaller."""
        search = search_for({somebody(): NOW - 10 * DAY}, staying=1)
        for _ in range(50):
            search.add(somebody(FABRIKAM.tenant_id), last_used_on=NOW)

        assert [] == search.found()


class TestSearch:
    """Graph is asked once for each search."""

    @pytest.fixture
    async def leavers(self, entra: EntraEmulator) -> AsyncIterator[Leavers]:
        """Leavers of Contoso."""

        class Identity:
            async def get_token(self, *_scopes: str) -> AccessToken:
                client = USER_ASSIGNED_IDENTITY
                return AccessToken(entra.issue_access_token(None, client=client, resource=GRAPH), 0)

        async with aiohttp.ClientSession(auto_decompress=False) as session:
            graph = Graph(
                session=session,
                credential=Identity(),
                url=entra.url,
                audience="https://graph.microsoft.com",
            )
            yield Leavers(settings=SETTINGS, graph=graph)

    async def test_finds(self, entra: EntraEmulator, leavers: Leavers) -> None:
        """Whom Graph lists for long enough has left."""
        now = datetime.now(UTC).replace(microsecond=0)
        gone, going, staying = somebody(), somebody(), [somebody() for _ in range(8)]
        entra.graph.delete(CONTOSO, gone.object_id, on=now - 8 * DAY)
        entra.graph.delete(CONTOSO, going.object_id, on=now - 6 * DAY)

        search = await leavers.search(now=now)

        assert search
        for person in (gone, going, *staying):
            search.add(person, last_used_on=now - 9 * DAY)
        assert [Leaver(gone, now - 8 * DAY)] == search.found()

    async def test_graph_fails(
        self, entra: EntraEmulator, leavers: Leavers, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If Graph cannot be asked, there is no search, and the log says why."""
        entra.faults.fail_next("deleted_users", status=403)

        assert await leavers.search(now=NOW) is None
        assert [{"event": "leavers_unknown", "reason": "status 403"}] == lines(caplog)
        assert ["ERROR"] == [record.levelname for record in caplog.records]

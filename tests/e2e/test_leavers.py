"""People who were deleted from Entra: the timer asks Microsoft Graph, and removes them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from local.entra.directory import CONTOSO, FABRIKAM, USER_ASSIGNED_IDENTITY
from tests.e2e.test_prune import report_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.stack import FunctionsHost
    from tests.running import Client, Running

ASKING = {
    "PRUNE_DELETED_USERS_AFTER_DAYS": "7",
    "PRUNE_MAX_SHARE": "1",
    "AZURE_TENANT_ID": CONTOSO.tenant_id,
}


@pytest.fixture
def long_ago() -> datetime:
    """A time at which somebody was deleted who has left since."""
    return datetime.now(UTC) - timedelta(days=8)


async def test_removes_leavers(
    running: Running,
    app: Client,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
    rewrite_row: Callable[..., Awaitable[None]],
    long_ago: datetime,
) -> None:
    """Who was deleted long enough ago is removed, and nobody else; it takes managed identity."""
    gone, going, back = (str(uuid.uuid4()) for _ in range(3))
    ids = {
        object_id: (await app.get("/api/token", running.token_of_new_person(oid=object_id))).json[
            "user"
        ]["id"]
        for object_id in (gone, going, back)
    }
    for object_id in (gone, going):
        await rewrite_row(object_id, lastUsedOn=long_ago - timedelta(days=1))
    graph = running.stack.entra.graph
    graph.delete(CONTOSO, gone, on=long_ago)
    graph.delete(CONTOSO, going)
    graph.delete(CONTOSO, back, on=long_ago)  # And was here today.
    graph.delete(FABRIKAM, going, on=long_ago)
    dry = another_host(PRUNE_DRY_RUN="true", **ASKING)
    host = another_host(PRUNE_DRY_RUN="false", **ASKING)

    foreseen = await report_of(app_at(dry), dry)
    assert ids[gone] in running.stack.acs.identities
    report = await report_of(app_at(host), host)

    if "IDENTITY_ENDPOINT" not in running.stack.environment:
        assert 0 == report["left"]
        assert '"reason": "' in await host.printed('"event": "leavers_unknown"')
        return
    assert ("prune_finished", 1, 1) == (report["event"], report["left"], foreseen["left"])
    left = [acs_id for acs_id in ids.values() if acs_id not in running.stack.acs.identities]
    assert [ids[gone]] == left
    deleted = await host.printed('"event": "identity_deleted"')
    assert '"reason": "left"' in deleted
    assert gone in deleted


async def test_permission_is_missing(
    running: Running,
    another_host: Callable[..., FunctionsHost],
    app_at: Callable[[FunctionsHost], Client],
) -> None:
    """If Graph refuses, the log says so, nobody counts as gone, and the run goes on."""
    host = another_host(PRUNE_DRY_RUN="false", **ASKING)
    running.stack.entra.faults.fail_next("deleted_users", status=403)

    report = await report_of(app_at(host), host)

    assert ("prune_finished", 0) == (report["event"], report["left"])
    line = await host.printed('"event": "leavers_unknown"')
    if "IDENTITY_ENDPOINT" in running.stack.environment:
        assert '"reason": "status 403"' in line
        assert USER_ASSIGNED_IDENTITY.client_id not in line

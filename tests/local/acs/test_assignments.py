"""Access to an ACS resource for users, groups and tenants of the local Entra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession

from local.acs.emulator import AcsEmulator
from local.entra.directory import (
    ACS,
    ACS_CLIENTS,
    ADA,
    BROKER,
    CONTOSO,
    FABRIKAM,
    FABRIKAM_CALLERS,
    FADI,
    FARAH,
    GUEST,
    USER_ASSIGNED_IDENTITY,
    WEB_APP,
)
from local.serving.application import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.entra.emulator import EntraEmulator
    from local.entra.objects import App, Tenant, User

PREVIEW = {"api-version": "2025-03-02-preview"}


class Resource:
    """An ACS resource of Contoso's, as its administrator and its callers use it."""

    def __init__(self, entra: EntraEmulator, acs: AcsEmulator, http: ClientSession) -> None:
        self._entra = entra
        self._acs = acs
        self._http = http

    async def assign(self, kind: str, object_id: str, tenant: Tenant, *clients: App) -> None:
        """Give access, as the managed identity, which has the role."""
        token = self._entra.issue_access_token(None, client=USER_ASSIGNED_IDENTITY, resource=ACS)
        body = {
            "principalType": kind,
            "tenantId": tenant.tenant_id,
            "clientIds": [client.client_id for client in clients],
        }
        url = f"{self._acs.url}/access/entra/assignments/{object_id}"
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.put(url, params=PREVIEW, json=body, headers=headers) as response:
            assert 201 == response.status

    async def exchange(self, user: User, client: App = BROKER) -> tuple[int, str]:
        """Return the status, and the identity or the code."""
        token = self._entra.issue_access_token(
            user.user_name, client=client, resource=ACS_CLIENTS, scopes=("VoIP",)
        )
        url = f"{self._acs.url}/access/entra/:exchangeAccessToken"
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.post(url, params=PREVIEW, json={}, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
        kept = answer["error"]["code"] if "error" in answer else answer["identity"]["id"]
        return response.status, kept


@pytest.fixture
async def resource(entra: EntraEmulator) -> AsyncIterator[Resource]:
    """A resource to which nobody has access."""
    acs = AcsEmulator(
        access_key="", verify_bearer=entra.verify, groups_of=entra.directory.groups_of
    )
    async with serve(acs.application()) as acs.url, ClientSession() as http:
        yield Resource(entra, acs, http)


REFUSED = (403, "Forbidden")


async def test_group(entra: EntraEmulator, resource: Resource) -> None:
    """Members of an assigned group get tokens, for as long as they are members."""
    assert REFUSED == await resource.exchange(FADI)
    await resource.assign("group", FABRIKAM_CALLERS.object_id, FABRIKAM, BROKER)

    status, acs_id = await resource.exchange(FADI)
    assert (200, True) == (status, acs_id.endswith(f"_{FABRIKAM.tenant_id}_{FADI.object_id}"))
    assert REFUSED == await resource.exchange(FARAH)
    assert REFUSED == await resource.exchange(FADI, WEB_APP)
    assert REFUSED == await resource.exchange(GUEST)

    entra.directory.members[FABRIKAM_CALLERS.object_id].remove(FADI.object_id)
    assert REFUSED == await resource.exchange(FADI)
    entra.directory.members[FABRIKAM_CALLERS.object_id].add(FARAH.object_id)
    assert 200 == (await resource.exchange(FARAH))[0]


async def test_tenant(resource: Resource) -> None:
    """A tenant is all of its users, with its guests."""
    await resource.assign("tenant", CONTOSO.tenant_id, CONTOSO, BROKER, WEB_APP)

    assert 200 == (await resource.exchange(ADA, WEB_APP))[0]
    status, acs_id = await resource.exchange(GUEST)
    assert (200, True) == (status, acs_id.endswith(f"_{CONTOSO.tenant_id}_{GUEST.object_id}"))
    assert REFUSED == await resource.exchange(FADI)


async def test_user(resource: Resource) -> None:
    """A user is named with the tenant that the token is of."""
    await resource.assign("user", ADA.object_id, FABRIKAM, BROKER)
    assert REFUSED == await resource.exchange(ADA)
    await resource.assign("user", GUEST.object_id, CONTOSO, BROKER)
    assert 200 == (await resource.exchange(GUEST))[0]

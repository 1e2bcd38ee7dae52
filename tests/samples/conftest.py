"""The stack over TLS, as MSAL demands, and people who sign in to it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import msal  # type: ignore[import-untyped] # It publishes no types.
import pytest
import requests
from aiohttp import web
from azure.core.credentials import AccessToken
from azure.data.tables import TableClient

from local.entra.directory import BROKER, DESKTOP_APP
from local.serving.application import serve
from local.stack import emulators, functions_host
from local.storage.azurite import ACCOUNT, ACCOUNT_KEY
from tests.emulated import BackgroundLoop
from tests.samples.sign_in import choose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from local.entra.objects import User
    from local.stack import FunctionsHost, Stack

ROOT = Path(__file__).parents[2]
SCOPE = f"{BROKER.uris[0]}/access_as_user"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests in one process, since starting the stack takes time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("samples"))


@dataclass(frozen=True, slots=True)
class Running:
    """A stack over TLS with one functions host."""

    stack: Stack
    host: FunctionsHost

    @property
    def certificates(self) -> str:
        """Return the file of the certificate authority."""
        return self.stack.environment["SSL_CERT_FILE"]

    @property
    def authority(self) -> str:
        """Return Entra's address for the people of any organisation."""
        return f"{self.stack.entra.url}/organizations"

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of a sample."""
        return {
            **os.environ,
            "BROKER_URL": self.host.url,
            "BROKER_CLIENT_ID": BROKER.client_id,
            "CLIENT_ID": DESKTOP_APP.client_id,
            "AUTHORITY": self.authority,
            "AZURE_AUTHORITY_HOST": self.stack.entra.url,
            "REQUESTS_CA_BUNDLE": self.certificates,
            "NODE_EXTRA_CA_CERTS": self.certificates,
        }

    def revoke(self, user: User) -> None:
        """Refuse a person's Entra tokens from before now, as some time after a sign-out."""
        connection = (
            f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
            f"TableEndpoint={self.stack.tables.endpoint};"
        )
        with TableClient.from_connection_string(
            connection, "IdentityMappings", connection_verify=self.certificates
        ) as table:
            key = f"{user.tenant.tenant_id}_{user.object_id[:2]}"
            # Entra's tokens tell whole seconds, so those of this very second would be refused, too.
            mark = datetime.now(UTC) - timedelta(seconds=2)
            row = {"PartitionKey": key, "RowKey": user.object_id, "revokedBefore": mark}
            table.update_entity(row)


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """The stack."""
    background = BackgroundLoop()
    try:
        stack = background.enter(emulators(managed_identity=True))
        host = background.enter(functions_host(stack, {}))
        yield Running(stack, host)
    finally:
        background.close()


@pytest.fixture(autouse=True)
def no_faults(running: Running) -> None:
    """Start each test with services that work."""
    running.stack.entra.faults.clear()
    running.stack.acs.faults.clear()


class MsalCredential:
    """A person's sign-in with MSAL, as a credential of azure-core's."""

    def __init__(self, running: Running, user: User) -> None:
        session = requests.Session()
        session.trust_env = False
        session.verify = running.certificates
        self._app = msal.PublicClientApplication(
            DESKTOP_APP.client_id,
            authority=running.authority,
            instance_discovery=False,
            http_client=session,
        )
        flow = self._app.initiate_auth_code_flow(
            [SCOPE], "http://localhost:5173/", response_mode="form_post"
        )
        _, answer = choose(session, user.object_id, flow["auth_uri"])
        self._result(self._app.acquire_token_by_auth_code_flow(flow, answer))

    def get_token(self, *scopes: str, claims: str | None = None, **_: Any) -> AccessToken:
        """Return an Entra token from the cache, or a new one if there are claims."""
        [account] = self._app.get_accounts()
        return self._result(
            self._app.acquire_token_silent_with_error(
                list(scopes), account, claims_challenge=claims
            )
        )

    @staticmethod
    def _result(result: dict[str, Any]) -> AccessToken:
        assert "access_token" in result, result
        return AccessToken(result["access_token"], int(result.get("expires_in", 0)))


@pytest.fixture
def sign_in(running: Running) -> Callable[[User], MsalCredential]:
    """Return a function that signs a person in."""
    return lambda user: MsalCredential(running, user)


@pytest.fixture
def answers() -> list[dict[str, Any]]:
    """What the host below answers, the first one first."""
    return []


@pytest.fixture
async def host(answers: list[dict[str, Any]]) -> AsyncIterator[str]:
    """The URL of a host that gives the answers in a list, and then none."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(**answers.pop(0))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serve(app) as url:
        yield url


def issued(token: str, **lifetime: float) -> dict[str, Any]:
    """Return the broker's answer with a token that lives for a `timedelta`."""
    expires_on = datetime.now(UTC) + timedelta(**lifetime)
    body = {"token": token, "expiresOn": expires_on.isoformat(), "user": {"id": "8:acs:ada"}}
    return {"text": json.dumps(body), "content_type": "application/json"}


def problem(status: int, code: str, **members: Any) -> dict[str, Any]:
    """Return a refusal of the broker's."""
    body = {"status": status, "code": code, "detail": "Why not.", "traceId": "a trace id"}
    text = json.dumps(body | members)
    return {"status": status, "text": text, "content_type": "application/problem+json"}


def token_for(*, seconds: float) -> str:
    """Return a token that an SDK takes for one of ACS's."""
    claims = {"exp": int(time.time() + seconds)}
    return jwt.encode(claims, "a key that is nobody's, and long enough")

"""A running stack as tests see it: how they call the broker, sign tokens and read its answers."""

from __future__ import annotations

import base64
import json
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from azure.data.tables import TableClient
from multidict import CIMultiDict

from local.entra.directory import ADA, FADI
from local.stack import REPOSITORY
from local.storage.azurite import ACCOUNT, ACCOUNT_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import aiohttp

    from local.stack import FunctionsHost, Stack
    from tests.emulated import BackgroundLoop

ROLE = "Mappings.Admin"
REAL_APP = f"""
import importlib.util

_spec = importlib.util.spec_from_file_location("the_app", {str(REPOSITORY / "function_app.py")!r})
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
app = _module.app
"""


def write_app(folder: Path, more: str) -> None:
    """Write an app into a folder: the real one as `app`, and what else it does or has.

    `shared` is found because the host runs in the repository.
    """
    (folder / "host.json").write_text((REPOSITORY / "host.json").read_text())
    (folder / "function_app.py").write_text(REAL_APP + more)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str | None:
        return self.json.get("code") if self.text else None


@dataclass(frozen=True, slots=True)
class Running:
    """A stack with one functions host."""

    stack: Stack
    host: FunctionsHost
    background: BackgroundLoop

    def token_of_new_person(self, **claims: Any) -> str:
        """Return an access token of a new person of Contoso."""
        return self.stack.entra.issue_access_token(claims={"oid": str(uuid.uuid4()), **claims})

    def token_of_new_member(self, **claims: Any) -> str:
        """Return an access token of somebody whom Entra knows: a new user of Contoso."""
        new = replace(ADA, object_id=str(uuid.uuid4()), user_name=f"{uuid.uuid4()}@contoso.example")
        self.stack.entra.directory.users.append(new)
        return self.stack.entra.issue_access_token(new.user_name, claims=claims)

    def fresh_token(self, object_id: str, **claims: Any) -> str:
        """Return an access token from after everything that a test has done."""
        soon = int(time.time()) + 10  # Clocks may differ by a minute.
        return self.token_of_new_person(oid=object_id, iat=soon, nbf=soon, **claims)

    def token_of_administrator(self, **claims: Any) -> str:
        """Return an access token of a new administrator of Contoso."""
        return self.token_of_new_person(roles=[ROLE], **claims)

    def token_of_fabrikams_administrator(self) -> str:
        """Return an access token of a new administrator of Fabrikam."""
        claims = {"oid": str(uuid.uuid4()), "roles": [ROLE]}
        return self.stack.entra.issue_access_token(FADI.user_name, claims=claims)


class Client:
    """Calls one functions host as an app would."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def call(
        self, method: str, path: str, token: str | None = None, **options: Any
    ) -> Answer:
        headers = CIMultiDict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._session.request(
            method, self.url + path, headers=headers, **options
        ) as response:
            return Answer(response.status, response.headers, await response.text())

    async def get(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("GET", path, token, **options)

    async def post(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("POST", path, token, **options)

    async def put(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("PUT", path, token, **options)

    async def delete(self, path: str, token: str | None = None, **options: Any) -> Answer:
        return await self.call("DELETE", path, token, **options)


def assert_problem(answer: Answer, status: int, code: str) -> None:
    """Check all that every problem has."""
    assert (status, code) == (answer.status, answer.code), answer
    problem = answer.json
    always = {"type", "title", "status", "detail", "instance", "code", "traceId"}
    assert always == problem.keys() - {"claims"}
    challenge = answer.headers.get("WWW-Authenticate", "")
    encoded = challenge.partition('claims="')[2].partition('"')[0]
    assert problem.get("claims", "") == base64.b64decode(encoded).decode()
    assert status == problem["status"]
    assert "application/problem+json" == answer.headers["Content-Type"].partition(";")[0]
    assert "no-store" == answer.headers["Cache-Control"]
    assert "nosniff" == answer.headers["X-Content-Type-Options"]
    assert (status in {401, 403}) == ("WWW-Authenticate" in answer.headers)
    # 502 has it if a try that comes too early would do harm.
    if status != 502:
        assert (status in {429, 503, 504}) == ("Retry-After" in answer.headers)
    assert 1 <= int(answer.headers.get("Retry-After", 1)) <= 60
    assert f"urn:uuid:{uuid.UUID(problem['traceId'])}" == problem["instance"]


@contextmanager
def table_of(running: Running, name: str) -> Iterator[TableClient]:
    """Open a table of the stack, as an operator could."""
    endpoint = running.stack.tables.endpoint
    with TableClient.from_connection_string(
        f"DefaultEndpointsProtocol={endpoint.partition(':')[0]};AccountName={ACCOUNT};"
        f"AccountKey={ACCOUNT_KEY};TableEndpoint={endpoint};",
        name,
        connection_verify=running.stack.environment.get("SSL_CERT_FILE", True),
    ) as table:
        yield table

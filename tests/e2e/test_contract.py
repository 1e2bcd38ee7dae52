"""The served contract is held against the running service, so that they cannot drift apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode

from local.entra.directory import CONTOSO

if TYPE_CHECKING:
    from tests.running import Client, Running

OPERATIONS = [
    ("GET", "/token"),
    ("POST", "/token"),
    ("GET", "/token/entra"),
    ("POST", "/token/entra"),
    ("GET", "/token/teams"),
    ("POST", "/token/teams"),
    ("POST", "/token/revoke"),
    ("GET", "/user"),
    ("POST", "/user"),
    ("DELETE", "/user"),
    ("GET", "/users"),
    ("GET", "/users/{tenantId}/{objectId}"),
    ("PUT", "/users/{tenantId}/{objectId}"),
    ("DELETE", "/users/{tenantId}/{objectId}"),
    ("POST", "/users/{tenantId}/{objectId}/revoke"),
    ("POST", "/users/{tenantId}/{objectId}/renew"),
    ("GET", "/health"),
    ("GET", "/health/ready"),
    ("GET", "/openapi.json"),
]
LONGEST_URL = 8000  # The host reads request lines of 8190 bytes.


def reaches_the_app(case: schemathesis.Case[Any]) -> bool:
    """Tell whether the app gets the whole query.

    Empty lists and values get lost on the way, and too long a URL is answered by the host.
    """
    sent = case.as_transport_kwargs()
    url = requests.Request(sent["method"], sent["url"], params=sent["params"]).prepare().url or ""
    arriving = parse_qs(urlsplit(url).query)
    return len(url) < LONGEST_URL and arriving.keys() == (case.query or {}).keys()


def makes_sense(case: schemathesis.Case[Any]) -> bool:
    """Tell whether parameters go together and are of our making, which no schema can say."""
    asked = (case.query or {}).keys()
    alone = "communicationUserId" not in asked or asked <= {"communicationUserId", "tenantId"}
    body = case.body if isinstance(case.body, dict) else {}
    return alone and "continuationToken" not in asked and "accessToken" not in body


async def test_every_operation_is_named(app: Client) -> None:
    """The list above is that of the contract."""
    contract = (await app.get("/api/openapi.json")).json

    named = [(m.upper(), path) for path, item in contract["paths"].items() for m in item]
    assert OPERATIONS == named
    assert "3.1.0" == contract["openapi"]


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, GenerationMode.POSITIVE) for method, path in OPERATIONS),
        # The other operations take no input.
        ("GET", "/token", GenerationMode.NEGATIVE),
        ("POST", "/token", GenerationMode.NEGATIVE),
        ("GET", "/users", GenerationMode.NEGATIVE),
        ("PUT", "/users/{tenantId}/{objectId}", GenerationMode.NEGATIVE),
        ("POST", "/token/entra", GenerationMode.NEGATIVE),
        ("POST", "/token/teams", GenerationMode.NEGATIVE),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(schemathesis|hypothesis|jsonschema).*")
def test_behaves_as_the_contract_says(
    running: Running, method: str, path: str, mode: GenerationMode
) -> None:
    """Good requests are served and bad ones refused, each with an answer that is documented."""
    schema = schemathesis.openapi.from_url(f"{running.host.url}/api/openapi.json")
    schema.config.update(base_url=f"{running.host.url}/api")
    operation = schema[path][method]

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case[Any]) -> None:
        # The host may drop the very part that makes a request bad.
        assume(reaches_the_app(case))
        if mode is GenerationMode.POSITIVE:
            assume(makes_sense(case))
        if "tenantId" in (case.path_parameters or {}) and mode is GenerationMode.POSITIVE:
            case.path_parameters["tenantId"] = CONTOSO.tenant_id  # Another is refused with 403.
        # Each request comes from another person, since requests per person are limited.
        is_for_administrators = path.startswith("/users")
        token = (
            running.token_of_administrator()
            if is_for_administrators
            else running.token_of_new_member()
        )
        headers = {"Authorization": f"Bearer {token}"}
        case.call_and_validate(headers=headers)

    check()

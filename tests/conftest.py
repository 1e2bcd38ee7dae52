"""What all tests share: Entra's keys, and tokens signed with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local.directory import BROKER, CONTOSO, FABRIKAM
from local.entra_tokens import SigningKey as EntraKey
from local.entra_tokens import TokenIssuer
from shared.settings import EntraSettings

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "local.settings.example.json"


@pytest.fixture(scope="session")
def entra_keys() -> list[EntraKey]:
    """Keys that take a while to make, and that no test changes."""
    return [EntraKey.generate() for _ in range(2)]


@pytest.fixture
def issuer(entra_keys: list[EntraKey]) -> TokenIssuer:
    """Something that signs as Entra does, at a made-up address."""
    issuer = TokenIssuer(keys=entra_keys)
    issuer.url = "https://login.microsoftonline.com"
    return issuer


@pytest.fixture
def issue_access_token(issuer: TokenIssuer) -> Callable[..., str]:
    """Return a function that signs a good access token of Ada's, with changes."""

    def issue(**changes: Any) -> str:
        return issuer.issue_access_token(claims=changes)

    return issue


@pytest.fixture
def entra_settings() -> EntraSettings:
    """Contoso and Fabrikam may use the broker."""
    return EntraSettings(
        client_id=BROKER.client_id,
        tenant_ids=frozenset({CONTOSO.tenant_id, FABRIKAM.tenant_id}),
        audiences=frozenset(BROKER.uris),
        required_scope="access_as_user",
        allowed_client_ids=frozenset(),
        authority="https://login.microsoftonline.com",
    )


@pytest.fixture
def example() -> dict[str, str]:
    """Return the settings that a developer starts from."""
    values: dict[str, str] = json.loads(EXAMPLE.read_text("utf-8"))["Values"]
    return values


@pytest.fixture
def now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)

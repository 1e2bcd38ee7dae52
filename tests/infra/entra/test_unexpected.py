"""What `setup` and the doctor say about what somebody else has put into the registration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from infra.entra.directory import GRAPH_APP, Directory
from infra.entra.doctor import judged
from infra.entra.options import parser
from infra.entra.reading import Reading
from infra.entra.steps import federated_credential
from infra.entra.unexpected import report, unexpected
from tests.infra.entra.test_setup import (
    AUTHORITY,
    CLIENT,
    ELSEWHERE,
    IDENTITY,
    TENANT,
    principal,
    run,
    wanted,
)

if TYPE_CHECKING:
    from infra.entra.findings import Finding

OTHER = "90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954"


@pytest.fixture
def directory() -> Directory:
    """A tenant in which `setup` has run."""
    made = Directory(
        TENANT,
        clients={CLIENT: {"id": "client", "appId": CLIENT, "displayName": "Calls"}},
        principals={GRAPH_APP: principal(GRAPH_APP, "graph")},
    )
    run(made, wanted())
    return made


def _credential(**changes: Any) -> Any:
    def plant(directory: Directory) -> None:
        made = federated_credential(TENANT, OTHER, AUTHORITY)
        directory.credentials.append({"id": "c", **made, **changes})

    return plant


def _member(name: str, value: Any) -> Any:
    def plant(directory: Directory) -> None:
        assert directory.application
        directory.application[name] = value

    return plant


PLANTED = [
    pytest.param(
        _credential(issuer="https://token.actions.githubusercontent.com"),
        "of https://token.actions.githubusercontent.com",
        ["unexpected-credential"],
        id="issuer",
    ),
    pytest.param(
        _credential(subject=IDENTITY, issuer="https://evil.example"),
        "of https://evil.example",
        ["unexpected-credential"],
        id="same subject",
    ),
    pytest.param(_credential(), f"subject {OTHER}", ["unexpected-credential"], id="identity"),
    pytest.param(
        _member("passwordCredentials", [{"keyId": "k", "displayName": "mine"}]),
        "the secret mine (k)",
        [],
        id="secret",
    ),
    pytest.param(
        _member("keyCredentials", [{"keyId": "k", "displayName": None}]),
        "the certificate (k)",
        [],
        id="certificate",
    ),
    pytest.param(
        _member("spa", {"redirectUris": ["https://evil.example/"]}),
        "the redirect URI https://evil.example/",
        ["unexpected-redirect"],
        id="redirect",
    ),
]


def found(directory: Directory, *identities: str) -> list[Finding]:
    """Return what the doctor finds."""
    reading = Reading(
        directory=directory,
        wanted=wanted(identities=identities),
        broker_id=directory.broker_id,
        arguments=parser().parse_args(["doctor"]),
    )
    return [each for _, findings, _ in judged(reading) for each in findings or ()]


def test_well(directory: Directory) -> None:
    """What was asked for is expected."""
    assert [] == unexpected(directory, wanted())
    assert [] == unexpected(Directory(TENANT), wanted())
    assert [] == found(directory, IDENTITY)
    assert [] == found(directory)


@pytest.mark.parametrize(("plant", "says", "codes"), PLANTED)
def test_planted(directory: Directory, plant: Any, says: str, codes: list[str]) -> None:
    """Whatever lets somebody else act as the broker is grave, and the doctor names it."""
    plant(directory)
    (item,) = unexpected(directory, wanted())
    assert item.is_grave
    assert says in item.says
    (finding,) = found(directory, IDENTITY)
    assert says in finding.says
    assert codes == [finding.code] * finding.is_sure
    assert str(finding).startswith("FAILED   " if codes else "check    ")


def test_identity_that_was_not_named(directory: Directory) -> None:
    """`setup` takes no managed identity for ours; the doctor does unless it is told which."""
    (item,) = unexpected(directory, wanted(identities=()))
    assert IDENTITY in item.says
    assert item.is_grave
    directory.credentials[0]["name"] = "another-name"
    assert ["unexpected-credential"] == [each.code for each in found(directory)]


def test_clients(directory: Directory) -> None:
    """Other client apps are shown; the template writes some, so they are no reason to refuse."""
    run(directory, wanted(client_ids=(ELSEWHERE,)))
    (item,) = unexpected(directory, wanted())
    assert (f"the client app {ELSEWHERE}", False) == (item.says, item.is_grave)


def test_report(directory: Directory) -> None:
    """The report names the registration, its day, what was found, and the owners."""
    application = {"appId": CLIENT, "createdDateTime": "2026-03-01T00:00:00Z"}
    _credential()(directory)
    first, *items = report(application, unexpected(directory, wanted()), ["eve"])
    assert CLIENT in first
    assert "2026-03-01" in first
    assert OTHER in items[0]
    assert "  the owner eve" == items[1]

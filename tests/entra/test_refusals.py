"""Why Entra refuses a token on behalf of a person, told apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.entra.refusals import error_of
from shared.errors import (
    ConsentRequiredError,
    InsufficientClaimsError,
    InvalidTokenError,
    NotAssignedError,
    RevokedTokenError,
    UpstreamAuthError,
    UpstreamBadResponseError,
    UpstreamThrottledError,
    UpstreamUnavailableError,
)

if TYPE_CHECKING:
    from shared.errors import BrokerError

CLAIMS = '{"access_token":{"polids":{"essential":true,"values":["9ab03e19"]}}}'
NOW = 1_790_000_000.5


def judged(answer: dict[str, Any], *, status: int = 400) -> BrokerError:
    """Return the error for an answer of Entra's."""
    return error_of(status, answer, retry_after=7, now=NOW)


def of(error: str, *numbers: int, **members: Any) -> dict[str, Any]:
    """Return an answer of Entra's."""
    return {"error": error, "error_codes": list(numbers), **members}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (of("invalid_grant", 65001, suberror="consent_required"), ConsentRequiredError),
        (of("invalid_grant", 65001), ConsentRequiredError),
        (of("invalid_grant", suberror="consent_required"), ConsentRequiredError),
        (of("interaction_required", 65001, claims=CLAIMS), ConsentRequiredError),
        (of("invalid_grant", 65004), ConsentRequiredError),
        (of("invalid_resource", 500011), ConsentRequiredError),
        (of("invalid_client", 650052), ConsentRequiredError),
        (of("unauthorized_client", 700016), ConsentRequiredError),
        (of("invalid_grant", 50105), NotAssignedError),
        (of("interaction_required", 50105), NotAssignedError),
        (of("interaction_required"), InsufficientClaimsError),
        (of("invalid_grant", 50076), InsufficientClaimsError),
        (of("invalid_grant", 50079), InsufficientClaimsError),
        (of("invalid_grant", 50158), InsufficientClaimsError),
        (of("access_denied", 53003), InsufficientClaimsError),
        (of("invalid_grant", 999999, claims=CLAIMS), InsufficientClaimsError),
        (of("invalid_client", 7000215), UpstreamAuthError),
        (of("invalid_client", 7000222), UpstreamAuthError),
        (of("invalid_client", 700027), UpstreamAuthError),
        (of("invalid_client", 700213), UpstreamAuthError),
        (of("unauthorized_client", 700021), UpstreamAuthError),
        (of("invalid_grant", 500131), UpstreamAuthError),
        (of("invalid_resource", 650057), UpstreamAuthError),
        (of("invalid_grant", 50173), RevokedTokenError),
        (of("invalid_grant", 50133), RevokedTokenError),
        (of("invalid_grant", 50013), InvalidTokenError),
        (of("invalid_grant", 500133), InvalidTokenError),
        (of("invalid_grant", 50057), RevokedTokenError),
        (of("invalid_grant", 50034), RevokedTokenError),
        (of("invalid_grant", 70043), RevokedTokenError),
        (of("invalid_grant", 53011), InsufficientClaimsError),
        (of("invalid_grant", 7000114), UpstreamAuthError),
        (of("invalid_grant", 90033), UpstreamUnavailableError),
        (of("invalid_grant"), InvalidTokenError),
        (of("invalid_grant", 50196), UpstreamThrottledError),
        (of("temporarily_unavailable", 90033), UpstreamUnavailableError),
        (of("server_error"), UpstreamUnavailableError),
        (of("invalid_request", 900144), UpstreamBadResponseError),
        (of("invalid_scope", 70011), UpstreamBadResponseError),
        ({}, UpstreamBadResponseError),
        ({"error": {"code": "Denied"}, "error_codes": {}}, UpstreamBadResponseError),
    ],
    ids=lambda value: json.dumps(value)[:70] if isinstance(value, dict) else None,
)
def test_kinds(answer: dict[str, Any], expected: type[BrokerError]) -> None:
    """By number where it is known, and else by the word of OAuth."""
    assert expected is type(judged(answer))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, UpstreamThrottledError),
        (500, UpstreamUnavailableError),
        (503, UpstreamUnavailableError),
        (302, UpstreamBadResponseError),
        (200, UpstreamBadResponseError),
    ],
)
def test_statuses(status: int, expected: type[BrokerError]) -> None:
    """A status that is Entra's own trouble decides before anything else."""
    answer = of("invalid_grant", 65001) if status in {429, 500, 503} else {}

    assert expected is type(judged(answer, status=status))


def test_retry_after() -> None:
    """Entra's own word on when to come back."""
    assert 7 == judged({}, status=429).retry_after
    assert 7 == judged({}, status=503).retry_after


@pytest.mark.parametrize(
    ("claims", "passed_on"),
    [
        (CLAIMS, CLAIMS),
        (CLAIMS[:-1], None),
        ("[]", None),
        ('{"a": 1, "a": 2}', None),
        ('{"a": "' + "x" * 2048 + '"}', None),
        ('{"a": "' + "\U0001f600" * 600 + '"}', None),
        ({"access_token": {}}, None),
        (None, None),
    ],
)
def test_claims(claims: object, passed_on: str | None) -> None:
    """What Entra wants is passed on as it is, if it is one JSON object that is not too long."""
    error = judged(of("interaction_required", 50076, claims=claims))

    assert passed_on == error.claims
    assert ("claims" in error.challenge()) == (passed_on is not None)


def test_ended_sessions() -> None:
    """MSAL is made to get a new token, which it otherwise would not before the old one expires."""
    error = judged(of("invalid_grant", 50173))

    assert error.claims is not None
    wanted = json.loads(error.claims)["access_token"]["nbf"]
    assert {"essential": True, "value": "1790000000"} == wanted
    assert "insufficient_claims" == error.challenge()["error"]


def test_reason() -> None:
    """The log has Entra's word and numbers, and nothing that names somebody."""
    description = "AADSTS50020: User account 'ada@contoso.example' does not exist."
    error = judged(of("invalid_grant", 50020, 65001, error_description=description))

    assert "Entra answered 400 invalid_grant AADSTS50020 AADSTS65001" == str(error)
    assert "Entra answered 400 ?" == str(
        judged({"error": "eyJ", "error_codes": [-1, True, "x", 1.5]})
    )


@given(
    answer=st.dictionaries(
        st.sampled_from(["error", "error_codes", "suberror", "claims", "access_token"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    ),
    status=st.integers(min_value=200, max_value=599),
)
def test_anything(answer: dict[str, Any], status: int) -> None:
    """Whatever Entra answers becomes an error with a short, plain reason."""
    error = judged(answer, status=status)

    assert str(error).isascii()
    assert "\n" not in str(error)

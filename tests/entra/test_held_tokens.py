"""An Entra token for ACS that a caller holds already must be the caller's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.entra.directory import (
    ACS_CLIENTS,
    ACS_TEAMS,
    ADA,
    BROKER,
    CONTOSO,
    DAEMON,
    DESKTOP_APP,
    FADI,
    GRACE,
    WEB_APP,
)
from shared.entra.access_tokens import Caller
from shared.entra.held_tokens import check_held_token
from shared.errors import UnusableTokenError
from shared.exchange_kinds import entra_kind
from shared.identifiers import Person
from shared.settings import EntraSettings

if TYPE_CHECKING:
    from local.entra.tokens import TokenIssuer

CALLER = Caller(Person(CONTOSO.tenant_id, ADA.object_id), WEB_APP.client_id, 0)
KIND = entra_kind(("VoIP",))
LEAST = timedelta(minutes=10)
SETTINGS = EntraSettings(
    client_id=BROKER.client_id,
    tenant_ids=None,
    audiences=frozenset(BROKER.uris),
    required_scope="access_as_user",
    allowed_client_ids=frozenset(),
    admin_role="Mappings.Admin",
    operator_tenant_id=None,
    authority="https://login.microsoftonline.com",
)


def check(token: str, caller: Caller = CALLER, **changes: Any) -> None:
    """Check a token that a caller has sent."""
    parts: dict[str, Any] = {"kind": KIND, "least": LEAST, "now": datetime.now(UTC)}
    check_held_token(token, caller=caller, settings=SETTINGS, **(parts | changes))


def issue(issuer: TokenIssuer, user: str | None = ADA.user_name, **changes: Any) -> str:
    """Issue a token for ACS's clients that is Ada's, with changes."""
    options: dict[str, Any] = {"resource": ACS_CLIENTS, "scopes": ("VoIP",)} | changes
    return issuer.issue_access_token(user, **options)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("audience", [None, "https://communication.azure.com/clients/"])
def test_good(issuer: TokenIssuer, version: int, audience: str | None) -> None:
    """Both versions name the person, the app and the resource, each in its own way."""
    check(issue(issuer, version=version, audience=audience))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"user": FADI.user_name}, "another tenant"),
        ({"user": GRACE.user_name}, "another person"),
        ({"client": DESKTOP_APP}, "another client"),
        ({"claims": {"appid": None}}, "another client"),
        ({"claims": {"azp": DESKTOP_APP.client_id}}, "another client"),
        ({"claims": {"iss": "https://sts.windows.net/elsewhere/"}}, "another issuer"),
        ({"claims": {"iss": None}}, "another issuer"),
        ({"claims": {"iss": ["https://sts.windows.net/"]}}, "another issuer"),
        ({"claims": {"appid": [WEB_APP.client_id]}}, "another client"),
        ({"claims": {"tid": None}}, "another tenant"),
        ({"claims": {"oid": [ADA.object_id]}}, "another person"),
        ({"claims": {"OID": ADA.object_id}}, "a deciding claim in other letters"),
        ({"resource": ACS_TEAMS}, "another audience"),
        ({"resource": BROKER}, "another audience"),
        ({"claims": {"aud": [ACS_CLIENTS.uris[0]]}}, "another audience"),
        ({"claims": {"scp": ""}}, "no user"),
        ({"claims": {"scp": None}}, "no user"),
        ({"claims": {"idtyp": "app"}}, "no user"),
        ({"claims": {"scp": "Chat voip"}}, "no scope of this exchange"),
        ({"user": None, "client": DAEMON}, "another person"),
        ({"lifetime": timedelta(minutes=-2)}, "expired"),
        ({"lifetime": timedelta(seconds=590)}, "expires too soon"),
        ({"lifetime": timedelta(hours=40)}, "lifetime is zero, negative or over 28 hours"),
        ({"claims": {"exp": "tomorrow"}}, "exp is not a date"),
        ({"claims": {"nbf": None}}, "nbf is not a date"),
        ({"header": {"alg": "none"}}, "alg is not RS256"),
        ({"header": {"typ": "id_token"}}, "typ is neither JWT nor at+jwt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refuses(issuer: TokenIssuer, changes: dict[str, Any], wrong: str) -> None:
    """One claim out of order is enough; the log says which, and quotes nothing."""
    with pytest.raises(UnusableTokenError) as caught:
        check(issue(issuer, **changes))

    assert f"accessToken: {wrong}" == str(caught.value)


def test_caller_without_an_app(issuer: TokenIssuer) -> None:
    """If the verified token names no app, no other token can be from the same one."""
    nobody = Caller(CALLER.person, None, 0)

    with pytest.raises(UnusableTokenError, match="another client"):
        check(issue(issuer), nobody)
    with pytest.raises(UnusableTokenError, match="another client"):
        check(issue(issuer, claims={"appid": None}), nobody)


@given(st.text() | st.from_regex(r"\A[A-Za-z0-9_-]{1,9}(\.[A-Za-z0-9_-]{1,9}){0,4}\Z"))
def test_anything(text: str) -> None:
    """Whatever is sent as a token is refused, or fits."""
    with pytest.raises(UnusableTokenError):
        check(text)

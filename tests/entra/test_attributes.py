"""What a token says about its caller for the rules of a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.entra.attributes import Attributes
from shared.errors import InvalidTokenError

if TYPE_CHECKING:
    from collections.abc import Callable


GROUPS = ["90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954", "27e5b8a0-d93c-4f61-8c57-b4016fa2d3e9"]
ELSEWHERE = {
    "_claim_names": {"groups": "src1"},
    "_claim_sources": {"src1": {"endpoint": "https://attacker.example/getMemberObjects"}},
}


def test_nothing() -> None:
    """A token need not have any of them."""
    attributes = Attributes()

    assert frozenset() == attributes.roles == attributes.groups == attributes.contexts
    assert attributes.methods is None
    assert not attributes.handles_challenges


def test_each() -> None:
    """The claims under their own names; directory roles are not app roles."""
    attributes = Attributes(
        {
            "roles": ["Support.Agent"],
            "wids": ["62e90394-69f5-4237-9190-012177145e10"],
            "groups": GROUPS,
            "acrs": ["c1", "c3"],
            "amr": ["pwd", "mfa"],
            "xms_cc": ["CP1"],
        }
    )

    assert frozenset({"Support.Agent"}) == attributes.roles
    assert frozenset(GROUPS) == attributes.groups
    assert frozenset({"c1", "c3"}) == attributes.contexts
    assert frozenset({"pwd", "mfa"}) == attributes.methods
    assert attributes.handles_challenges


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param(ELSEWHERE, id="named elsewhere"),
        pytest.param({"hasgroups": True}, id="implicit grant"),
        pytest.param({"groups": GROUPS, **ELSEWHERE}, id="some here"),
    ],
)
def test_overage(claims: dict[str, Any]) -> None:
    """Groups that the token leaves out are unknown, not none."""
    assert Attributes(claims).groups is None


@pytest.mark.parametrize(
    "claims",
    [
        {"_claim_names": {"address": "src1"}},
        {"_claim_names": "groups"},
        {"_claim_sources": ELSEWHERE["_claim_sources"]},
    ],
)
def test_no_overage(claims: dict[str, Any]) -> None:
    """Other claims that are elsewhere do not concern groups."""
    assert frozenset() == Attributes(claims).groups


@pytest.mark.parametrize("value", ["c1", {"c1": True}, [1], [["c1"]], 0, True])
@pytest.mark.parametrize(
    ("claim", "read"),
    [
        ("roles", lambda attributes: attributes.roles),
        ("groups", lambda attributes: attributes.groups),
        ("acrs", lambda attributes: attributes.contexts),
        ("amr", lambda attributes: attributes.methods),
    ],
)
def test_other_forms(claim: str, read: Callable[[Attributes], object], value: Any) -> None:
    """No rule is decided by a claim that Entra does not issue in this form."""
    with pytest.raises(InvalidTokenError, match=f"{claim} is not a list of names"):
        read(Attributes({claim: value}))


@pytest.mark.parametrize("value", [["cp1"], ["x", "Cp1"], "CP1"])
def test_handles_challenges(value: Any) -> None:
    """In any letters, among others."""
    assert Attributes({"xms_cc": value}).handles_challenges


@pytest.mark.parametrize("value", [[], ["cp2"], "cp10", 1, None, {"cp1": 1}, [None]])
def test_handles_no_challenges(value: Any) -> None:
    """Whatever else the claim holds."""
    assert not Attributes({"xms_cc": value}).handles_challenges


def test_claims_stay_inside() -> None:
    """The claims are not in what a log might show."""
    attributes = Attributes({"name": "Ada Lovelace"})

    assert "Ada" not in f"{attributes!r} {attributes!s}"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("cp1"),
    lambda inner: st.lists(inner) | st.dictionaries(st.just("groups") | st.text(), inner),
    max_leaves=5,
)
CLAIMS = st.sampled_from(["roles", "groups", "acrs", "amr", "xms_cc", "_claim_names", "hasgroups"])


@given(claims=st.dictionaries(CLAIMS, ANY_JSON))
def test_any_claims(claims: dict[str, Any]) -> None:
    """Whatever the claims hold, an attribute is names, or the token is refused."""
    attributes = Attributes(claims)
    for name in ("roles", "groups", "contexts", "methods", "handles_challenges"):
        try:
            value = getattr(attributes, name)
        except InvalidTokenError:
            continue
        assert value is None or isinstance(value, bool | frozenset)

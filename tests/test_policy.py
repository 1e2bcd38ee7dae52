"""Who may have what, with and without a trust policy."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.entra.directory import CONTOSO, FABRIKAM
from shared import audit
from shared.entra.access_tokens import Caller
from shared.entra.attributes import Attributes
from shared.errors import (
    BrokerError,
    InsufficientClaimsError,
    InvalidRequestError,
    NotPermittedError,
    ScopeNotAllowedError,
    StepUpRequiredError,
)
from shared.identifiers import Person
from shared.policy import Grant, Policy, granted_lifetime, granted_scopes, rule_for
from shared.settings import ACS_SCOPES, AcsSettings
from shared.trust_policy import Rule, TrustPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

HOUR = timedelta(hours=1)
SETTINGS = AcsSettings(
    endpoint="", access_key=None, scopes=("chat", "voip"), lifetime=HOUR, max_lifetime=4 * HOUR
)
ADA = Person(CONTOSO.tenant_id, "7d2f6b1e-43c9-4a80-b5d7-0e91f2a6c834")
WEB_APP, OTHER_APP = "68b2f0e9-3d5c-4a17-b94e-c1f07a8d6e25", "8ac6e413-f05b-4972-a1de-4b93c7205fd8"
SALES, SUPPORT = "90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954", "27e5b8a0-d93c-4f61-8c57-b4016fa2d3e9"
OVERAGE: dict[str, Any] = {"_claim_names": {"groups": "src1"}}
CHAT, BOTH = frozenset({"chat"}), frozenset({"chat", "voip"})


def caller(person: Person = ADA, client_id: str | None = WEB_APP, **claims: Any) -> Caller:
    return Caller(person, client_id, 0, Attributes(claims))


def rule(**members: Any) -> Rule:
    """Return a rule that grants everybody chat for two hours, with changes."""
    good: dict[str, Any] = {
        "name": "a rule",
        "scopes": CHAT,
        "max_lifetime": 2 * HOUR,
        "exchanges": frozenset(),
    }
    return Rule(**{**good, **members})


def policy(*rules: Rule, is_audit: bool = False) -> Policy:
    return Policy(SETTINGS, TrustPolicy(rules, is_audit))


def some(*items: str) -> frozenset[str]:
    return frozenset(items)


class TestWithoutPolicy:
    """The settings decide alone."""

    def test_token(self) -> None:
        """Everything that they allow, whoever asks."""
        plain = Policy(SETTINGS, None)

        assert Grant(BOTH, HOUR) == plain.token(caller(roles="?"), None, None)
        assert Grant(CHAT, 4 * HOUR) == plain.token(caller(), CHAT, 4 * HOUR)
        plain.check_identity(caller(**OVERAGE))
        plain.check_exchange(caller(), "teams")

    def test_more(self) -> None:
        """What they do not allow is refused."""
        plain = Policy(SETTINGS, None)

        with pytest.raises(ScopeNotAllowedError):
            plain.token(caller(), some("chat.join"), None)
        with pytest.raises(InvalidRequestError):
            plain.token(caller(), None, 5 * HOUR)


class TestMatching:
    """The first rule that fits decides."""

    @pytest.mark.parametrize(
        ("members", "who"),
        [
            ({}, caller()),
            ({"tenants": some(CONTOSO.tenant_id, FABRIKAM.tenant_id)}, caller()),
            ({"clients": some(WEB_APP)}, caller()),
            ({"roles": some("A", "B")}, caller(roles=["B", "C"])),
            ({"groups": some(SALES, SUPPORT)}, caller(groups=[SUPPORT])),
            ({"groups": some(SALES), "roles": some("A")}, caller(groups=[SALES], roles=["A"])),
            ({"tenants": some(CONTOSO.tenant_id)}, caller(roles="?", groups="?")),
        ],
    )
    def test_fits(self, members: Mapping[str, Any], who: Caller) -> None:
        """Every condition, each with any of its values; what no rule asks for is not read."""
        assert Grant(CHAT, HOUR) == policy(rule(**members)).token(who, None, None)

    @pytest.mark.parametrize(
        ("members", "who"),
        [
            ({"tenants": some(FABRIKAM.tenant_id)}, caller()),
            ({"clients": some(OTHER_APP)}, caller()),
            ({"clients": some(WEB_APP)}, caller(client_id=None)),
            ({"roles": some("A")}, caller()),
            ({"roles": some("A")}, caller(roles=["a"], wids=["A"], groups=["A"])),
            ({"groups": some(SALES)}, caller(groups=[SUPPORT], roles=[SALES])),
            ({"groups": some(SALES)}, caller(groups=["Sales"])),
            ({"groups": some(SALES), "roles": some("A")}, caller(groups=[SALES])),
        ],
    )
    def test_fits_not(self, members: Mapping[str, Any], who: Caller) -> None:
        """One condition that is not met is enough; whom no rule fits is refused everything."""
        narrow = policy(rule(**members, exchanges=some("teams")))

        with pytest.raises(NotPermittedError, match="no rule"):
            narrow.token(who, None, None)
        with pytest.raises(NotPermittedError):
            narrow.check_identity(who)
        with pytest.raises(NotPermittedError):
            narrow.check_exchange(who, "teams")

    def test_first_one_decides(self) -> None:
        """A later rule that would grant more does not count."""
        two = policy(rule(roles=some("A")), rule(name="all", scopes=BOTH))

        assert CHAT == two.token(caller(roles=["A"]), None, None).scopes
        assert BOTH == two.token(caller(roles=["B"]), None, None).scopes
        with pytest.raises(ScopeNotAllowedError):
            two.token(caller(roles=["A"]), some("voip"), None)


class TestOverage:
    """Groups that are too many for the token."""

    def test_ends_the_search(self) -> None:
        """A rule that might be for the person, such as one that grants nothing, is not skipped."""
        denying = policy(
            rule(groups=some(SALES), scopes=frozenset()), rule(name="all", scopes=BOTH)
        )

        assert BOTH == denying.token(caller(groups=[SUPPORT]), None, None).scopes
        with pytest.raises(NotPermittedError, match="use app roles"):
            denying.token(caller(**OVERAGE), None, None)

    def test_rules_before_and_aside(self) -> None:
        """It matters only if the search comes to a rule that asks for groups."""
        rules = TrustPolicy(
            (
                rule(roles=some("A"), groups=some(SALES)),
                rule(name="by role", roles=some("B")),
                rule(name="by group", groups=some(SALES)),
            )
        )

        by_role = rule_for(caller(roles=["B"], **OVERAGE), rules)
        assert ("by role", "") == (by_role.rule and by_role.rule.name, by_role.obstacle)
        by_group = rule_for(caller(**OVERAGE), rules)
        assert by_group.rule
        assert "by group" == by_group.rule.name
        assert by_group.obstacle


class TestGrants:
    """What the rule grants."""

    def test_lifetime(self) -> None:
        """The default is shortened, a longer request refused."""
        long = AcsSettings("", None, ("chat", "voip"), 3 * HOUR, 4 * HOUR)
        short = Policy(long, TrustPolicy((rule(),)))

        assert 2 * HOUR == short.token(caller(), None, None).lifetime
        assert 2 * HOUR == short.token(caller(), None, 2 * HOUR).lifetime
        with pytest.raises(InvalidRequestError):
            short.token(caller(), None, 3 * HOUR)

    def test_no_scopes(self) -> None:
        """A rule that grants no scopes is for exchanges alone, or refuses."""
        none = policy(rule(scopes=frozenset(), exchanges=some("teams")))

        none.check_exchange(caller(), "teams")
        with pytest.raises(NotPermittedError):
            none.token(caller(), None, None)
        with pytest.raises(NotPermittedError):
            none.check_identity(caller())

    def test_other_exchange(self) -> None:
        """Each exchange is granted by its name."""
        with pytest.raises(NotPermittedError, match="teams-extension"):
            policy(rule(exchanges=some("entra", "teams"))).check_exchange(
                caller(), "teams-extension"
            )


class TestDemands:
    """Step-up: another sign-in than the token shows."""

    def test_met(self) -> None:
        """The context and the method are in the token."""
        strict = policy(rule(context="c1", method="mfa", exchanges=some("teams")))
        who = caller(acrs=["c2", "c1"], amr=["pwd", "mfa"])

        assert CHAT == strict.token(who, None, None).scopes
        strict.check_identity(who)
        strict.check_exchange(who, "teams")

    @pytest.mark.parametrize(
        ("members", "claims", "challenge"),
        [
            (
                {"context": "c1"},
                {},
                {"acrs": {"essential": True, "value": "c1"}},
            ),
            (
                {"context": "c1"},
                {"acrs": ["c11"], "amr": ["c1"]},
                {"acrs": {"essential": True, "value": "c1"}},
            ),
            (
                {"method": "mfa"},
                {"amr": ["pwd"]},
                {"amr": {"essential": True, "values": ["mfa"]}},
            ),
            (
                {"context": "c1", "method": "mfa"},
                {"amr": ["pwd"]},
                {
                    "acrs": {"essential": True, "value": "c1"},
                    "amr": {"essential": True, "values": ["mfa"]},
                },
            ),
            (
                {"context": "c1", "method": "mfa"},
                {"amr": ["mfa"]},
                {"acrs": {"essential": True, "value": "c1"}},
            ),
        ],
    )
    def test_challenge(
        self, members: Mapping[str, Any], claims: Mapping[str, Any], challenge: object
    ) -> None:
        """A client that can handle it is told what to ask Entra for, and nothing else."""
        strict = policy(rule(**members, exchanges=some("teams")))
        who = caller(xms_cc=["cp1"], **claims)

        for ask in (
            lambda: strict.token(who, None, None),
            lambda: strict.check_identity(who),
            lambda: strict.check_exchange(who, "teams"),
        ):
            with pytest.raises(StepUpRequiredError) as caught:
                ask()
            assert {"access_token": challenge} == json.loads(caught.value.claims or "")
            assert (401, "insufficient_claims") == (caught.value.status, caught.value.code)

    def test_demands(self) -> None:
        """What a new token must have, for whatever reason it is new; nothing in audit mode."""
        rules = (
            rule(roles=some("A"), context="c1", method="mfa"),
            rule(name="lenient", roles=some("B"), context="c2", is_audit=True),
            rule(name="all", groups=some(SALES)),
        )

        acrs = {"essential": True, "value": "c1"}
        amr = {"essential": True, "values": ["mfa"]}
        assert {"acrs": acrs, "amr": amr} == policy(*rules).demands(caller(roles=["A"]))
        assert {} == policy(*rules).demands(caller(roles=["B"]))
        assert {} == policy(*rules).demands(caller(groups=[SALES]))
        assert {} == policy(*rules).demands(caller())
        assert {} == Policy(SETTINGS, None).demands(caller(roles="?"))

    def test_client_that_cannot(self) -> None:
        """Without cp1 it is 403, without a challenge."""
        with pytest.raises(InsufficientClaimsError, match="cp1") as caught:
            policy(rule(context="c1")).token(caller(), None, None)

        assert (403, None) == (caught.value.status, caught.value.claims)

    def test_token_that_cannot(self) -> None:
        """v2.0 tokens have no `amr`, so no challenge would help: the app would go in circles."""
        with pytest.raises(InsufficientClaimsError, match="amr"):
            policy(rule(method="mfa")).token(caller(xms_cc=["cp1"]), None, None)

    def test_not_for_nothing(self) -> None:
        """Nobody has to sign in again for what is refused afterwards."""
        strict = policy(rule(context="c1"))

        with pytest.raises(ScopeNotAllowedError):
            strict.token(caller(xms_cc=["cp1"]), some("voip"), None)
        with pytest.raises(NotPermittedError):
            strict.check_exchange(caller(xms_cc=["cp1"]), "teams")


class TestAudit:
    """Audit mode: the settings decide, and the audit line says what the rule would have done."""

    @pytest.mark.parametrize(
        ("members", "asked", "would"),
        [
            ({}, None, "narrow"),
            ({}, CHAT, None),
            ({}, some("voip"), "scope_not_allowed"),
            ({"scopes": frozenset()}, None, "not_permitted"),
            ({"context": "c1"}, CHAT, "insufficient_claims"),
            ({"groups": some(SALES)}, CHAT, "not_permitted"),
        ],
    )
    def test_rule(
        self, members: Mapping[str, Any], asked: frozenset[str] | None, would: str | None
    ) -> None:
        """The rule's own mode."""
        lenient = policy(rule(is_audit=True, **members))

        with audit.decision() as noted:
            granted = lenient.token(caller(**OVERAGE), asked, None)

        assert Grant(asked or BOTH, HOUR) == granted
        assert ("a rule", would) == (noted["policy_rule"], noted.get("policy_would"))

    def test_nobody_fits(self) -> None:
        """The mode of the policy is for those whom no rule fits, and for no others."""
        lenient = policy(rule(tenants=some(CONTOSO.tenant_id)), is_audit=True)

        with audit.decision() as noted:
            somebody = caller(Person(FABRIKAM.tenant_id, ADA.object_id))
            assert BOTH == lenient.token(somebody, None, None).scopes
        assert {"policy_rule": None, "policy_would": "not_permitted"} == noted
        assert CHAT == lenient.token(caller(), None, None).scopes

    def test_exchange(self) -> None:
        """An exchange is allowed, and noted."""
        with audit.decision() as noted:
            policy(rule(is_audit=True)).check_exchange(caller(), "teams")

        assert {"policy_rule": "a rule", "policy_would": "not_permitted"} == noted

    def test_settings_still_hold(self) -> None:
        """What the settings do not allow is refused in audit mode as well."""
        with pytest.raises(ScopeNotAllowedError):
            policy(rule(is_audit=True)).token(caller(), some("chat.join"), None)

    def test_enforced(self) -> None:
        """The audit line names the rule that decided, also about a refusal."""
        with audit.decision() as noted, pytest.raises(ScopeNotAllowedError):
            policy(rule()).token(caller(), some("voip"), None)

        assert {"policy_rule": "a rule"} == noted


SCOPES = st.frozensets(st.sampled_from(sorted(ACS_SCOPES)))
LIFETIMES = st.integers(60, 1440).map(lambda minutes: timedelta(minutes=minutes))
NAMES = st.frozensets(st.sampled_from(["A", "B"]), min_size=1)
RULES = st.builds(
    Rule,
    name=st.just("a rule"),
    scopes=SCOPES,
    max_lifetime=LIFETIMES,
    exchanges=st.frozensets(st.sampled_from(["entra", "teams"])),
    tenants=st.none() | st.just(some(CONTOSO.tenant_id)) | st.just(some(FABRIKAM.tenant_id)),
    roles=st.none() | NAMES,
    groups=st.none() | NAMES,
    context=st.none() | st.just("c1"),
    is_audit=st.booleans(),
)
CALLERS = st.builds(
    lambda claims: caller(**claims),
    st.fixed_dictionaries(
        {},
        optional={
            "roles": NAMES.map(list),
            "groups": NAMES.map(list),
            "acrs": st.just(["c1"]),
            "xms_cc": st.just(["cp1"]),
            **{name: st.just(value) for name, value in OVERAGE.items()},
        },
    ),
)


@given(
    rules=st.lists(RULES, max_size=4),
    is_audit=st.booleans(),
    who=CALLERS,
    scopes=st.none() | SCOPES.filter(bool),
    lifetime=st.none() | LIFETIMES,
)
def test_never_widens(
    rules: list[Rule],
    is_audit: bool,
    who: Caller,
    scopes: frozenset[str] | None,
    lifetime: timedelta | None,
) -> None:
    """Whatever a policy says, nobody gets more than without it; enforced, no more than it says."""
    trust = TrustPolicy(tuple(rules), is_audit)
    try:
        usual = Policy(SETTINGS, None).token(who, scopes, lifetime)
    except BrokerError as error:
        usual = Grant(frozenset(), timedelta(0))
        with pytest.raises(type(error)):
            Policy(SETTINGS, trust).token(who, scopes, lifetime)
        return

    try:
        granted = Policy(SETTINGS, trust).token(who, scopes, lifetime)
    except BrokerError:
        return

    assert granted.scopes <= usual.scopes
    assert granted.lifetime <= usual.lifetime
    decisive = rule_for(who, trust)
    if not decisive.is_audit:
        assert decisive.rule
        assert granted.scopes <= decisive.rule.scopes
        assert granted.lifetime <= decisive.rule.max_lifetime
        assert decisive.rule.context in {None, *who.attributes.contexts}


class TestGranted:
    """What may be asked for."""

    @pytest.mark.parametrize(("asked", "granted"), [(None, BOTH), (CHAT, CHAT), (BOTH, BOTH)])
    def test_scopes(self, asked: frozenset[str] | None, granted: frozenset[str]) -> None:
        """All that are allowed, or those asked for."""
        assert granted == granted_scopes(asked, BOTH)

    @pytest.mark.parametrize("asked", [{"chat.join"}, {"chat", "voip", "voip.join"}])
    def test_more_scopes(self, asked: set[str]) -> None:
        """One scope too many is refused, not left out."""
        with pytest.raises(ScopeNotAllowedError):
            granted_scopes(frozenset(asked), BOTH)

    def test_lifetime(self) -> None:
        """The default, or the one asked for, up to the maximum."""
        assert HOUR == granted_lifetime(None, HOUR, 2 * HOUR)
        assert HOUR == granted_lifetime(None, 2 * HOUR, HOUR)
        assert 2 * HOUR == granted_lifetime(2 * HOUR, HOUR, 2 * HOUR)
        with pytest.raises(InvalidRequestError):
            granted_lifetime(2 * HOUR + timedelta(minutes=1), HOUR, 2 * HOUR)

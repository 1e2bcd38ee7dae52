"""The trust policy in the settings: what is read, and what is wrong with it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import Settings, SettingsError
from shared.trust_policy import (
    MAX_CHARACTERS,
    MAX_ITEMS,
    MAX_RULES,
    Allowed,
    PolicyError,
    Rule,
    TrustPolicy,
    trust_policy,
)

if TYPE_CHECKING:
    from pathlib import Path

CONTOSO, FABRIKAM = "3e7a1c52-90b4-4d6f-8a21-5c0d9e4b7f10", "b19f4d08-6c27-4e35-9d7a-2f8e60c1a394"
APP, OTHER_APP = "68b2f0e9-3d5c-4a17-b94e-c1f07a8d6e25", "8ac6e413-f05b-4972-a1de-4b93c7205fd8"
LACKS = "has an id that ENTRA_TENANT_IDS does not have:"
GROUP = "90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954"
ALLOWED = Allowed(
    tenants=frozenset({CONTOSO, FABRIKAM}),
    clients=frozenset({APP, OTHER_APP}),
    scopes=frozenset({"chat", "voip"}),
    minutes=range(60, 240 + 1),
    exchanges=frozenset({"teams"}),
)
ANYTHING = Allowed(None, None, ALLOWED.scopes, ALLOWED.minutes, ALLOWED.exchanges)


def rule(**members: Any) -> dict[str, Any]:
    """Return a rule that is good, with changes; None leaves a member out."""
    changed = {"name": "everyone", "scopes": ["chat"], **members}
    return {name: value for name, value in changed.items() if value is not None}


def read(*rules: Any, allowed: Allowed = ALLOWED, **members: Any) -> TrustPolicy:
    return trust_policy(json.dumps({"rules": list(rules), **members}), allowed)


def problems(*rules: Any, allowed: Allowed = ALLOWED, **members: Any) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        read(*rules, allowed=allowed, **members)
    return caught.value.problems


def test_all_members() -> None:
    """Each member of a rule is read; ids count in any letters."""
    policy = read(
        rule(
            name="support desk",
            tenants=[CONTOSO.upper()],
            clients=[APP],
            roles=["Support.Agent"],
            groups=[GROUP],
            scopes=["chat", "voip"],
            exchanges=["teams"],
            maxLifetimeMinutes=90,
            acrs="c99",
            amr="mfa",
            mode="audit",
        ),
        mode="audit",
    )

    expected = Rule(
        name="support desk",
        tenants=frozenset({CONTOSO}),
        clients=frozenset({APP}),
        roles=frozenset({"Support.Agent"}),
        groups=frozenset({GROUP}),
        scopes=frozenset({"chat", "voip"}),
        exchanges=frozenset({"teams"}),
        max_lifetime=timedelta(minutes=90),
        context="c99",
        method="mfa",
        is_audit=True,
    )
    assert TrustPolicy((expected,), is_audit=True) == policy


def test_defaults() -> None:
    """Without a condition a rule fits everybody; what it does not name, it does not grant."""
    (read_rule,) = read(rule()).rules

    longest = timedelta(minutes=240)
    assert Rule("everyone", frozenset({"chat"}), longest, frozenset()) == read_rule
    assert not read(rule()).is_audit


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_file(tmp_path: Path, encoding: str) -> None:
    """The setting may be the path of a file, which may begin with a byte order mark."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"rules": [rule()]}, indent=2) + "\n", encoding)

    assert read(rule()) == trust_policy(str(file), ALLOWED)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no/such/file.json", "is neither JSON nor the path of a file that can be read"),
        ("x\0y", "is neither JSON nor the path of a file that can be read"),
        ('{"rules": [}', "is not a JSON object: line 1, column 12"),
        ('{\n  "rules": []\n  "mode": 1}', "is not a JSON object: line 3, column 3"),
        ('{"rules": [], "rules": []}', "is not a JSON object: 'rules' is there twice"),
        ('{"rules": [{"amr": 1, "amr": 2}]}', "is not a JSON object: 'amr' is there twice"),
        ('{"rules": NaN}', "is not a JSON object: NaN is not JSON"),
        ('{"a":' * 40 + "1" + "}" * 40, "is not a JSON object: nested too deeply"),
        ("{" + " " * MAX_CHARACTERS + "}", "is longer than 32 KiB"),
    ],
)
def test_not_json(text: str, problem: str) -> None:
    """The problem says where to look."""
    with pytest.raises(PolicyError) as caught:
        trust_policy(text, ALLOWED)

    assert (problem,) == caught.value.problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is an empty file"),
        (" \n", "is an empty file"),
        ('[{"name": "secret"}]', "is JSON, but not an object"),
        ("secret", "is not a JSON object: line 1, column 1"),
    ],
)
def test_file_with_something_else(tmp_path: Path, text: str, problem: str) -> None:
    """The problem says what the file has, and quotes nothing of it."""
    file = tmp_path / "policy.json"
    file.write_text(text, "utf-8")

    with pytest.raises(PolicyError) as caught:
        trust_policy(str(file), ALLOWED)

    assert (problem,) == caught.value.problems


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": None}, "rules[0].name is missing"),
        ({"name": 1}, "rules[0].name is not a name of 1 to 64 letters, digits, spaces and ._-: 1"),
        (
            {"name": "a\nb"},
            r'rules[0].name is not a name of 1 to 64 letters, digits, spaces and ._-: "a\nb"',
        ),
        ({"color": "red"}, "rules[0] (everyone) has unknown members: 'color'"),
        (
            {"scopes": None},
            "rules[0] (everyone) names neither scopes nor exchanges, which may be empty lists",
        ),
        ({"scopes": "chat"}, 'rules[0].scopes (everyone) is not a list of 0 to 256 texts: "chat"'),
        (
            {"scopes": ["chat", "video"]},
            'rules[0].scopes[1] (everyone) is not in ACS_TOKEN_SCOPES: "video"',
        ),
        (
            {"scopes": ["chat.join"]},
            'rules[0].scopes[0] (everyone) is not in ACS_TOKEN_SCOPES: "chat.join"',
        ),
        (
            {"exchanges": ["entra"]},
            'rules[0].exchanges[0] (everyone) is not in ACS_EXCHANGES: "entra"',
        ),
        ({"tenants": []}, "rules[0].tenants (everyone) is not a list of 1 to 256 texts"),
        ({"tenants": ["contoso"]}, 'rules[0].tenants[0] (everyone) is not a GUID: "contoso"'),
        (
            {"tenants": [GROUP]},
            f"rules[0].tenants (everyone) {LACKS} {GROUP}",
        ),
        (
            {"clients": [GROUP]},
            "rules[0].clients (everyone) has an id that ENTRA_ALLOWED_CLIENT_IDS does not have: "
            + GROUP,
        ),
        ({"groups": ["Sales"]}, 'rules[0].groups[0] (everyone) is not a GUID: "Sales"'),
        ({"groups": [GROUP, 1]}, "rules[0].groups[1] (everyone) is not a GUID: 1"),
        (
            {"groups": [GROUP] * (MAX_ITEMS + 1)},
            "rules[0].groups (everyone) is not a list of 1 to 256 texts",
        ),
        ({"roles": ["a b"]}, 'rules[0].roles[0] (everyone) is not an app role: "a b"'),
        ({"acrs": "c0"}, 'rules[0].acrs (everyone) is not one of c1 to c99: "c0"'),
        (
            {"acrs": "\n" + "c" * 99},
            r'rules[0].acrs (everyone) is not one of c1 to c99: "\n%s...' % ("c" * 37),
        ),
        ({"acrs": "c100"}, 'rules[0].acrs (everyone) is not one of c1 to c99: "c100"'),
        ({"acrs": ["c1"]}, "rules[0].acrs (everyone) is not one of c1 to c99"),
        ({"amr": "MFA"}, 'rules[0].amr (everyone) is not a method such as mfa: "MFA"'),
        (
            {"maxLifetimeMinutes": 59},
            "rules[0].maxLifetimeMinutes (everyone) is not a whole number from 60 to 240: 59",
        ),
        (
            {"maxLifetimeMinutes": 241},
            "rules[0].maxLifetimeMinutes (everyone) is not a whole number from 60 to 240: 241",
        ),
        (
            {"maxLifetimeMinutes": True},
            "rules[0].maxLifetimeMinutes (everyone) is not a whole number from 60 to 240: true",
        ),
        (
            {"maxLifetimeMinutes": 100.5},
            "rules[0].maxLifetimeMinutes (everyone) is not a whole number from 60 to 240: 100.5",
        ),
        (
            {"maxLifetimeMinutes": 10**5},
            "rules[0].maxLifetimeMinutes (everyone) is not a whole number from 60 to 240: 100000",
        ),
        ({"mode": "off"}, 'rules[0].mode (everyone) is neither enforce nor audit: "off"'),
        ({"mode": ["audit"]}, "rules[0].mode (everyone) is neither enforce nor audit"),
    ],
)
def test_bad_rule(changes: dict[str, Any], problem: str) -> None:
    """The problem names the member."""
    assert (problem,) == problems(rule(**changes))


@pytest.mark.parametrize(
    ("rules", "members", "problem"),
    [
        ([], {}, "rules is not a list of 1 to 64 rules"),
        ([rule()] * (MAX_RULES + 1), {}, "rules is not a list of 1 to 64 rules"),
        (["everyone"], {}, "rules[0] is not an object"),
        ([rule()], {"mode": "dry-run"}, 'mode is neither enforce nor audit: "dry-run"'),
        ([rule()], {"version": 1}, "has unknown members: 'version'"),
    ],
)
def test_bad_policy(rules: list[Any], members: dict[str, Any], problem: str) -> None:
    """As of a rule, of the whole."""
    assert (problem,) == problems(*rules, **members)


def test_every_problem_is_named() -> None:
    """Nobody has to deploy twice to find the second one."""
    found = problems(rule(amr=1), "?", rule(scopes=["sms"], mode=0), mode="?", more=1)

    assert {
        "has unknown members: 'more'",
        'mode is neither enforce nor audit: "?"',
        "rules[0].amr (everyone) is not a method such as mfa: 1",
        "rules[1] is not an object",
        'rules[2].scopes[0] (everyone) is not in ACS_TOKEN_SCOPES: "sms"',
        "rules[2].mode (everyone) is neither enforce nor audit: 0",
    } == set(found)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({}, {}),
        ({}, {"groups": [GROUP], "roles": ["A"]}),
        ({"tenants": [CONTOSO, FABRIKAM]}, {"tenants": [CONTOSO], "clients": [APP]}),
        ({"tenants": [CONTOSO, FABRIKAM]}, {}),
        ({"clients": [APP, OTHER_APP]}, {"roles": ["A"]}),
        ({"roles": ["A", "B"]}, {"roles": ["B"]}),
        ({"groups": [GROUP]}, {"groups": [GROUP], "scopes": []}),
    ],
)
def test_hidden_rule(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    """A rule behind one that fits everybody whom it fits is a mistake."""
    found = problems(rule(**earlier), rule(name="hidden", **later))

    what = "rules[1] (hidden) never decides: rules[0] (everyone) fits everybody whom it fits"
    assert (what,) == found


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"tenants": [CONTOSO]}, {}),
        ({"tenants": [CONTOSO]}, {"tenants": [CONTOSO, FABRIKAM]}),
        ({"roles": ["A"]}, {"groups": [GROUP]}),
        ({"tenants": [CONTOSO], "groups": [GROUP]}, {"tenants": [CONTOSO]}),
    ],
)
def test_rule_that_is_not_hidden(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    """One that fits somebody else as well decides about those."""
    assert 2 == len(read(rule(**earlier), rule(name="other", **later)).rules)


def test_all_tenants_are_more_than_two() -> None:
    """Where every organisation is served, a rule for all is not hidden by one for some."""
    rules = rule(tenants=[CONTOSO, FABRIKAM]), rule(name="others")

    assert 2 == len(read(*rules, allowed=ANYTHING).rules)


def test_names_are_unique() -> None:
    """Audit lines name the rule."""
    found = problems(rule(tenants=[CONTOSO]), rule(tenants=[FABRIKAM]))

    assert ("rules[1].name is that of rules[0]: everyone",) == found


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(document=ANY_JSON, members=st.dictionaries(st.sampled_from(["rules", "mode"]), ANY_JSON))
def test_any_json(document: Any, members: dict[str, Any]) -> None:
    """Whatever is there, it is a policy or has problems that say so."""
    for whole in (document, members, {"rules": [document]}, {"rules": [rule(name=document)]}):
        try:
            policy = trust_policy(json.dumps(whole), ALLOWED)
        except PolicyError as error:
            found = error.problems
        else:
            found = tuple(each.name for each in policy.rules)
        assert found
        assert all(found)


class TestSetting:
    """The policy among the other settings."""

    def test_absent(self, example: dict[str, str]) -> None:
        """Without it, the other settings decide alone."""
        assert Settings.from_env(example).policy is None
        assert Settings.from_env(example | {"TRUST_POLICY": " "}).policy is None

    def test_limits(self, example: dict[str, str]) -> None:
        """A rule may have what the settings allow: the example's tenants and exchanges."""
        text = json.dumps({"rules": [rule(tenants=[FABRIKAM], exchanges=["entra", "teams"])]})

        policy = Settings.from_env(example | {"TRUST_POLICY": text}).policy

        assert policy is not None
        assert frozenset({"entra", "teams"}) == policy.rules[0].exchanges

    def test_problems(self, example: dict[str, str]) -> None:
        """Those of the policy stand beside the others, even if its limits are unknown."""
        text = json.dumps({"rules": [rule(tenants=[GROUP], color=1)], "mode": "?"})
        wrong = {"TRUST_POLICY": text, "ENTRA_CLIENT_ID": "?", "ACS_TOKEN_SCOPES": "?"}

        with pytest.raises(SettingsError) as caught:
            Settings.from_env(example | wrong | {"ACS_TOKEN_MAX_LIFETIME_MINUTES": "x"})

        assert {
            'TRUST_POLICY mode is neither enforce nor audit: "?"',
            "TRUST_POLICY rules[0] (everyone) has unknown members: 'color'",
            f"TRUST_POLICY rules[0].tenants (everyone) {LACKS} {GROUP}",
            "ENTRA_CLIENT_ID is not a GUID",
        } <= set(caught.value.problems)
        assert 6 == len(caught.value.problems)

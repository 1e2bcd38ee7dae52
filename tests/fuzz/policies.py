"""The trust policy: what is a policy, and what it leaves of what the settings allow.

Judged by `docs/policy.md`: the first rule that fits decides, and a policy only ever narrows.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shared import policy, trust_policy
from shared.entra.access_tokens import Caller
from shared.entra.attributes import Attributes
from shared.errors import (
    InsufficientClaimsError,
    InvalidTokenError,
    NotPermittedError,
    ScopeNotAllowedError,
    StepUpRequiredError,
)
from shared.identifiers import Person
from tests.fuzz import configured, odd
from tests.fuzz.configured import API, NOW, OTHER_TENANT, PERSON, TENANT, WEB_APP
from tests.fuzz.reading import UnreadableError, json_object
from tests.fuzz.target import differs, refusing

if TYPE_CHECKING:
    from random import Random

GROUP, OTHER_GROUP = "9a000000-0000-4000-8000-00000000000e", "9b000000-0000-4000-8000-00000000000f"
SCOPES = frozenset({"chat", "voip"})  # Those of the settings.
MINUTES = range(60, 1440 + 1)
ALLOWED = trust_policy.Allowed(
    tenants=None, clients=None, scopes=SCOPES, minutes=MINUTES, exchanges=frozenset({"entra"})
)
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
FORMS = {
    "name": re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}"),
    "acrs": re.compile(r"c[1-9][0-9]?"),
    "amr": re.compile(r"[a-z]{2,16}"),
    "mode": re.compile(r"enforce|audit"),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "name": ("staff", "others", "a b", "", "a" * 65, None, "ä"),
    "tenants": ([TENANT], [OTHER_TENANT], [TENANT.upper()], [], "*", [None]),
    "clients": ([WEB_APP], [API, WEB_APP], ["x"]),
    "roles": (["Staff"], ["Staff", "Guest"], [""], [1], []),
    "groups": ([GROUP], [GROUP, OTHER_GROUP], ["g"]),
    "scopes": (["chat"], ["chat", "voip"], [], ["chat.join"], "chat", [["chat"]]),
    "exchanges": (["entra"], [], ["teams"], None),
    "maxLifetimeMinutes": (60, 90, 1440, 59, 1441, 60.0, True, "60"),
    "acrs": ("c1", "c99", "c0", "c100", "C1", None),
    "amr": ("mfa", "MFA", "m", 1),
    "mode": ("enforce", "audit", "off", None, True),
    "scope": (["chat"],),
}
CLAIMS: dict[str, tuple[Any, ...]] = {
    "roles": (["Staff"], ["Guest"], [], ["staff"], "Staff", [1]),
    "groups": ([GROUP], [OTHER_GROUP], [], GROUP, [GROUP.upper()]),
    "_claim_names": ({"groups": "src1"},),
    "hasgroups": (True,),
    "acrs": (["c1"], ["c1", "c2"], [], "c1"),
    "amr": (["pwd", "mfa"], ["pwd"], []),
    "xms_cc": (["cp1"], ["CP1"], "cp1", []),
}


class PolicyTarget:
    """What is no policy is refused, and a caller gets what the first rule that fits leaves."""

    name = "policy"

    def make(self, chance: Random) -> dict[str, Any]:
        """Return a policy, the claims of a caller, and the scopes asked for."""
        rules = [_rule(chance, number) for number in range(chance.choice((1, 1, 2, 3)))]
        document: dict[str, Any] = {"rules": rules}
        if chance.random() < 0.1:
            document["mode"] = chance.choice(CHOICES["mode"])
        if chance.random() < 0.05:
            document = odd.spoilt_object(chance, document)
        text = json.dumps(document) if chance.random() < 0.9 else odd.spelled(chance, document)
        names = chance.sample(list(CLAIMS), chance.randrange(5))
        return {
            "policy": text,
            "claims": {name: chance.choice(CLAIMS[name]) for name in names},
            "tenant": chance.choice((TENANT, OTHER_TENANT)),
            "client": chance.choice((WEB_APP, API, None)),
            "asked": chance.choice((None, ["chat"], ["voip"], ["chat", "voip"])),
        }

    def judge(self, value: dict[str, Any]) -> str | None:
        """Compare with the document."""
        text = value.get("policy", "")
        if not text.startswith("{"):
            return None  # The path of a file.
        rules = None
        try:
            rules = trust_policy.trust_policy(text, ALLOWED)
        except trust_policy.PolicyError as error:
            if not str(error).isprintable() or not error.problems:
                return "a problem that cannot be read"
        members = _valid(text)
        if rules is None or members is None:
            refusals: list[Exception] = [] if rules else [ValueError()]
            # Rules that never decide are refused, too.
            single = members is not None and len(members["rules"]) == 1
            return differs(should=single, refusals=refusals) if members is None or single else None
        return _decided(rules, members, value)


def _rule(chance: Random, number: int) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": f"rule {number}", "scopes": ["chat"]}
    for name in chance.sample(list(CHOICES), chance.randrange(4)):
        good = chance.random() < 0.9
        rule[name] = CHOICES[name][0] if good else chance.choice(CHOICES[name])
    if chance.random() < 0.9:
        rule.pop("scope", None)
    return odd.spoilt_object(chance, rule) if chance.random() < 0.05 else rule


def _valid(text: str) -> dict[str, Any] | None:
    """Return the members of a policy, if it is one."""
    try:
        document = json_object(text.strip().encode())
    except (UnreadableError, UnicodeEncodeError):
        return None
    rules = document.get("rules")
    known = document.keys() <= {"mode", "rules"} and _fits(document, "mode")
    if not known or not isinstance(rules, list) or not 1 <= len(rules) <= 64:
        return None
    return document if all(isinstance(rule, dict) and _is_rule(rule) for rule in rules) else None


def _is_rule(rule: dict[str, Any]) -> bool:
    minutes = rule.get("maxLifetimeMinutes", 60)
    return (
        rule.keys() <= CHOICES.keys() - {"scope"}
        and not rule.keys().isdisjoint({"scopes", "exchanges"})
        and "name" in rule
        and all(_fits(rule, name) for name in FORMS)
        and all(_is_list(rule, name, GUID) for name in ("tenants", "clients", "groups"))
        and _is_list(rule, "roles", re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,120}"))
        and (rule.get("scopes") == [] or _is_list(rule, "scopes", re.compile("chat|voip")))
        and (rule.get("exchanges") == [] or _is_list(rule, "exchanges", re.compile("entra")))
        and type(minutes) is int
        and minutes in MINUTES
    )


def _fits(members: dict[str, Any], name: str) -> bool:
    value = members.get(name, "")
    return name not in members or (
        isinstance(value, str) and FORMS[name].fullmatch(value) is not None
    )


def _is_list(rule: dict[str, Any], name: str, form: re.Pattern[str]) -> bool:
    if name not in rule:
        return True
    items = rule[name]
    texts = isinstance(items, list) and all(isinstance(item, str) for item in items)
    return texts and 1 <= len(items) <= 256 and all(form.fullmatch(item) for item in items)


def _decided(rules: Any, members: dict[str, Any], value: dict[str, Any]) -> str | None:
    """Return what is wrong with what the policy leaves a caller."""
    claims, tenant = value.get("claims", {}), value.get("tenant", TENANT)
    client, asked = value.get("client"), value.get("asked")
    caller = Caller(
        *(Person(tenant, PERSON), client, NOW),
        attributes=Attributes(claims),
    )
    usual = SCOPES if asked is None else frozenset(asked)
    decides = policy.Policy(configured.settings().acs, rules)
    grant: Any = None
    with refusing(
        *(NotPermittedError, ScopeNotAllowedError, StepUpRequiredError),
        *(InsufficientClaimsError, InvalidTokenError),
    ) as refusals:
        grant = decides.token(caller, None if asked is None else usual, None)
    if refusals and isinstance(refusals[0], InvalidTokenError):
        return None if _are_odd(claims) else "a good token counts as a bad one"
    if _are_odd(claims):
        return None
    if grant is not None and not grant.scopes <= usual:
        return "more than what was asked for"
    left, is_audit = _left(members, claims, tenant, client, asked)
    expected = usual if is_audit else left
    verdict = differs(should=bool(expected), refusals=refusals)
    if verdict or grant is None:
        return verdict
    right = grant.scopes == expected and grant.lifetime == timedelta(minutes=60)
    return None if right else "another grant than that of the rule"


def _are_odd(claims: dict[str, Any]) -> bool:
    """Return whether a claim does not have the form that Entra gives it."""
    return any(
        not isinstance(claims.get(name, []), list)
        or not all(isinstance(each, str) for each in claims.get(name, []))
        for name in ("roles", "groups", "acrs", "amr")
    )


def _left(
    members: dict[str, Any],
    claims: dict[str, Any],
    tenant: str,
    client: str | None,
    asked: list[str] | None,
) -> tuple[frozenset[str], bool]:
    """Return the scopes that the deciding rule leaves, and whether it only audits."""
    audits = members.get("mode") == "audit"
    too_many = "_claim_names" in claims or "hasgroups" in claims
    for rule in members["rules"]:
        fits = (
            tenant in {each.lower() for each in rule.get("tenants", [tenant])}
            and client in [each.lower() if each else each for each in rule.get("clients", [client])]
            and ("roles" not in rule or set(rule["roles"]) & set(claims.get("roles", [])))
        )
        if not fits:
            continue
        only_audits = rule.get("mode") == "audit"
        wanted = {each.lower() for each in rule.get("groups", [])}
        if wanted and too_many:
            return frozenset(), only_audits
        if wanted and not wanted & set(claims.get("groups", [])):
            continue
        granted = frozenset(rule.get("scopes", []))
        demands = all(
            name not in rule or rule[name] in claims.get(name, []) for name in ("acrs", "amr")
        )
        within = asked is None or granted >= set(asked)
        if not granted or not demands or not within:
            return frozenset(), only_audits
        return granted if asked is None else frozenset(asked), only_audits
    return frozenset(), audits

"""The trust policy: rules that say who may have what. Here the setting is read and checked.

A rule names whom it is for and what it grants; the first one that fits a caller decides. Nobody
whom a rule fits has more than it grants, and no rule grants more than the other settings do, so a
policy only ever narrows them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import strict_json
from shared.identifiers import APP_ROLE, GUID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# More than any policy that people still oversee.
MAX_CHARACTERS = 32 * 1024
MAX_RULES = 64
MAX_ITEMS = 256
MAX_SHOWN = 3  # Ids in one problem.
MAX_QUOTED = 40  # So many characters of a name or a value are shown.
POLICY_MEMBERS = frozenset({"mode", "rules"})
RULE_MEMBERS = frozenset(
    {"name", "tenants", "clients", "roles", "groups", "scopes", "exchanges"}
    | {"maxLifetimeMinutes", "acrs", "amr", "mode"}
)
# The name goes into audit lines.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
# https://learn.microsoft.com/graph/api/resources/authcontext
_CONTEXT = re.compile(r"c[1-9][0-9]?")
# RFC 8176; Entra has some of its own, such as `ngcmfa`.
_METHOD = re.compile(r"[a-z]{2,16}")


@dataclass(frozen=True, slots=True)
class Rule:
    """Whom a rule is for, what it grants, and what it demands of their tokens.

    Of `tenants`, `clients`, `roles` and `groups`, None fits everybody.
    """

    name: str
    scopes: frozenset[str]  # Of ACS tokens; none: no token is issued.
    max_lifetime: timedelta
    exchanges: frozenset[str]
    tenants: frozenset[str] | None = None
    clients: frozenset[str] | None = None
    roles: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    context: str | None = None  # Has to be in `acrs`.
    method: str | None = None  # Has to be in `amr`.
    is_audit: bool = False  # What it refuses is only noted.


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """The rules in their order, and what becomes of callers whom none of them fits."""

    rules: tuple[Rule, ...]
    is_audit: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the other settings allow, which no rule may exceed."""

    tenants: frozenset[str] | None  # None: all.
    clients: frozenset[str] | None
    scopes: frozenset[str]
    minutes: range
    exchanges: frozenset[str]


class PolicyError(ValueError):
    """The policy is not valid; `problems` says what is wrong, and where."""

    def __init__(self, problems: Collection[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


def trust_policy(text: str, allowed: Allowed) -> TrustPolicy:
    """Return the policy in a setting: JSON, or the path of a file with it.

    Raises:
        PolicyError: it is not one; the error names every problem.
    """
    problems: list[str] = []
    document = _object(text if text.lstrip().startswith("{") else _contents(text))
    policy = _policy(_Members("", document, problems), allowed)
    if not problems:
        problems += _conflicts(policy.rules, allowed)
    if problems:
        raise PolicyError(problems)
    return policy


def _contents(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")  # Editors on Windows may write a byte order mark.
    except (OSError, ValueError):
        raise PolicyError(["is neither JSON nor the path of a file that can be read"]) from None


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_CHARACTERS:
        raise PolicyError([f"is longer than {MAX_CHARACTERS // 1024} KiB"])
    try:
        return strict_json.loads_object(text.strip().encode())
    except ValueError as exc:
        raise PolicyError([_what_is_wrong(text) or f"is not a JSON object: {exc}"]) from None


def _what_is_wrong(text: str) -> str | None:
    """Return why a text is not a policy, if that can be told: only names in it are quoted."""
    if not text.strip():
        return "is an empty file"
    twice: set[str] = set()
    constants: set[str] = set()

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        twice.update(name for name in names if names.count(name) > 1)

    try:
        json.loads(text, object_pairs_hook=look, parse_constant=constants.add)
    except json.JSONDecodeError as exc:
        return f"is not a JSON object: line {exc.lineno}, column {exc.colno}"
    except (ValueError, RecursionError):
        return None
    if not text.lstrip().startswith("{"):
        return "is JSON, but not an object"
    if constants:
        return f"is not a JSON object: {', '.join(sorted(constants))} is not JSON"
    return f"is not a JSON object: {_quoted(twice)} is there twice" if twice else None


def _quoted(names: Collection[str]) -> str:
    return ", ".join(ascii(name[:MAX_QUOTED]) for name in sorted(names))


def _shown(value: object) -> str:
    """Return a colon and a value of the policy, shortened; nothing for what is in brackets."""
    if isinstance(value, list | dict):
        return ""
    text = json.dumps(value)
    return f": {text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + '...'}"


@dataclass(frozen=True, slots=True)
class _Members:
    """The members of one JSON object, and where it is; collects what is wrong with them."""

    path: str
    members: dict[str, Any]
    problems: list[str]

    def problem(self, name: str, what: str) -> None:
        where = ".".join(filter(None, (self.path, name)))
        own = self.members.get("name")
        if self.path and isinstance(own, str) and _NAME.fullmatch(own):
            where += f" ({own})"
        self.problems.append(f"{where} {what}".strip())

    def refuse_others(self, known: frozenset[str]) -> None:
        if unknown := self.members.keys() - known:
            self.problem("", f"has unknown members: {_quoted(unknown)}")

    def text(self, name: str, form: re.Pattern[str], what: str) -> str | None:
        """Return a text, None if there is none."""
        if name not in self.members:
            return None
        value = self.members[name]
        if not isinstance(value, str) or not form.fullmatch(value):
            self.problem(name, f"is not {what}{_shown(value)}")
            return None
        return value

    def texts(
        self, name: str, is_good: Callable[[str], bool], what: str, *, least: int = 1
    ) -> frozenset[str]:
        """Return the texts in a list, which has at least so many; none if there is no such list."""
        if name not in self.members:
            return frozenset()
        items = self.members[name]
        if not isinstance(items, list) or not least <= len(items) <= MAX_ITEMS:
            self.problem(name, f"is not a list of {least} to {MAX_ITEMS} texts{_shown(items)}")
            return frozenset()
        found = set()
        for number, item in enumerate(items):
            if isinstance(item, str) and is_good(item):
                found.add(item)
            else:
                self.problem(f"{name}[{number}]", f"is not {what}{_shown(item)}")
        return frozenset(found)

    def ids(
        self, name: str, setting: str = "", allowed: frozenset[str] | None = None
    ) -> frozenset[str] | None:
        """Return the GUIDs in a list; None if there is no such list."""
        found = self.texts(name, lambda text: bool(GUID.fullmatch(text.lower())), "a GUID")
        ids = frozenset(text.lower() for text in found)
        if allowed is not None and not ids <= allowed:
            others = ", ".join(sorted(ids - allowed)[:MAX_SHOWN])
            self.problem(name, f"has an id that {setting} does not have: {others}")
        return ids or None

    def some_of(self, name: str, setting: str, granted: frozenset[str]) -> frozenset[str]:
        """Return a list of what a setting has; it may be empty."""
        return self.texts(name, granted.__contains__, f"in {setting}", least=0)

    def minutes(self, name: str, allowed: range) -> timedelta:
        value = self.members.get(name, allowed[-1])
        if type(value) is not int or value not in allowed:
            self.problem(
                name, f"is not a whole number from {allowed[0]} to {allowed[-1]}{_shown(value)}"
            )
            value = allowed[-1]
        return timedelta(minutes=value)

    def is_audit(self) -> bool:
        mode = self.members.get("mode", "enforce")
        if mode not in ("enforce", "audit"):
            self.problem("mode", f"is neither enforce nor audit{_shown(mode)}")
        return bool(mode == "audit")


def _policy(members: _Members, allowed: Allowed) -> TrustPolicy:
    members.refuse_others(POLICY_MEMBERS)
    listed = members.members.get("rules")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_RULES:
        members.problem("rules", f"is not a list of 1 to {MAX_RULES} rules")
        listed = []
    rules = []
    for number, each in enumerate(listed):
        path = f"rules[{number}]"
        if isinstance(each, dict):
            rules.append(_rule(_Members(path, each, members.problems), allowed))
        else:
            members.problem(path, "is not an object")
    return TrustPolicy(tuple(rules), members.is_audit())


def _rule(members: _Members, allowed: Allowed) -> Rule:
    members.refuse_others(RULE_MEMBERS)
    if members.members.keys().isdisjoint({"scopes", "exchanges"}):
        members.problem("", "names neither scopes nor exchanges, which may be empty lists")
    if "name" not in members.members:
        members.problem("name", "is missing")
    return Rule(
        name=members.text("name", _NAME, "a name of 1 to 64 letters, digits, spaces and ._-") or "",
        tenants=members.ids("tenants", "ENTRA_TENANT_IDS", allowed.tenants),
        clients=members.ids("clients", "ENTRA_ALLOWED_CLIENT_IDS", allowed.clients),
        roles=members.texts("roles", lambda text: bool(APP_ROLE.fullmatch(text)), "an app role")
        or None,
        groups=members.ids("groups"),
        scopes=members.some_of("scopes", "ACS_TOKEN_SCOPES", allowed.scopes),
        exchanges=members.some_of("exchanges", "ACS_EXCHANGES", allowed.exchanges),
        max_lifetime=members.minutes("maxLifetimeMinutes", allowed.minutes),
        context=members.text("acrs", _CONTEXT, "one of c1 to c99"),
        method=members.text("amr", _METHOD, "a method such as mfa"),
        is_audit=members.is_audit(),
    )


def _conflicts(rules: tuple[Rule, ...], allowed: Allowed) -> list[str]:
    """Return which names are not unique, and which rules never decide."""
    problems = []
    for number, rule in enumerate(rules):
        for first, earlier in enumerate(rules[:number]):
            if earlier.name == rule.name:
                problems.append(f"rules[{number}].name is that of rules[{first}]: {rule.name}")
            if _hides(earlier, rule, allowed):
                problems.append(
                    f"rules[{number}] ({rule.name}) never decides:"
                    f" rules[{first}] ({earlier.name}) fits everybody whom it fits"
                )
    return problems


def _hides(earlier: Rule, later: Rule, allowed: Allowed) -> bool:
    pairs = (
        (earlier.tenants, later.tenants or allowed.tenants),
        (earlier.clients, later.clients or allowed.clients),
        (earlier.roles, later.roles),
        (earlier.groups, later.groups),
    )
    return all(wide is None or (few is not None and few <= wide) for wide, few in pairs)

"""Who may have what: the limits in the settings and, if there is one, the trust policy.

A policy only narrows what the settings allow. Reading, erasing and signing out need no rule: nobody
is kept from giving something up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shared import audit
from shared.errors import (
    BrokerError,
    InsufficientClaimsError,
    InvalidRequestError,
    NotPermittedError,
    ScopeNotAllowedError,
    StepUpRequiredError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from shared.entra.access_tokens import Caller
    from shared.settings import AcsSettings
    from shared.trust_policy import Rule, TrustPolicy

TOO_MANY_GROUPS = (
    "the rule asks for groups, and the person is in too many for the token: use app roles"
)
Granted = TypeVar("Granted")


@dataclass(frozen=True, slots=True)
class Grant:
    """The ACS token that a caller gets."""

    scopes: frozenset[str]
    lifetime: timedelta


@dataclass(frozen=True, slots=True)
class Decisive:
    """The rule that decides about a caller, and why it cannot be met, if it cannot."""

    rule: Rule | None
    is_audit: bool
    obstacle: str = ""


class Policy:
    """Decides what callers may have."""

    def __init__(self, settings: AcsSettings, rules: TrustPolicy | None) -> None:
        self._settings = settings
        self._scopes = frozenset(settings.scopes)
        self._rules = rules

    def token(
        self, caller: Caller, scopes: frozenset[str] | None, lifetime: timedelta | None
    ) -> Grant:
        """Return the token that a caller may have, given what is asked for, if anything.

        Raises:
            InvalidRequestError, ScopeNotAllowedError: that is more than the caller may have.
            NotPermittedError: the caller may not have a token.
            StepUpRequiredError, InsufficientClaimsError: not with this sign-in.
        """
        usual = Grant(
            granted_scopes(scopes, self._scopes),
            granted_lifetime(lifetime, self._settings.lifetime, self._settings.max_lifetime),
        )

        def narrowed(rule: Rule) -> Grant:
            return Grant(
                granted_scopes(scopes, self._scopes_of(rule)),
                min(usual.lifetime, granted_lifetime(lifetime, usual.lifetime, rule.max_lifetime)),
            )

        return self._decide(caller, narrowed, usual)

    def check_identity(self, caller: Caller) -> None:
        """Refuse an identity to a caller who may not have a token for it. Raises as `token`."""
        self._decide(caller, lambda rule: bool(self._scopes_of(rule)), usual=True)

    def check_exchange(self, caller: Caller, name: str) -> None:
        """Refuse an exchange that a caller may not use.

        Raises:
            NotPermittedError, StepUpRequiredError, InsufficientClaimsError: as `token` does.
        """

        def check(rule: Rule) -> None:
            if name not in rule.exchanges:
                raise NotPermittedError(f"the rule does not grant the exchange {name}")

        self._decide(caller, check, None)

    def demands(self, caller: Caller) -> dict[str, object]:
        """Return the claims that the caller's token must have, as a claims request asks for them.

        None in audit mode, which refuses nobody.
        """
        decisive = rule_for(caller, self._rules) if self._rules else None
        if decisive is None or decisive.rule is None or decisive.is_audit:
            return {}
        return demanded(decisive.rule)

    def _scopes_of(self, rule: Rule) -> frozenset[str]:
        scopes = rule.scopes & self._scopes
        if not scopes:
            raise NotPermittedError("the rule grants no scopes")
        return scopes

    def _decide(
        self, caller: Caller, narrowed: Callable[[Rule], Granted], usual: Granted
    ) -> Granted:
        """Return what the deciding rule leaves; in audit mode, note only what that would be."""
        if self._rules is None:
            return usual
        decisive = rule_for(caller, self._rules)
        audit.note(policy_rule=decisive.rule.name if decisive.rule else None)
        try:
            if decisive.rule is None or decisive.obstacle:
                raise NotPermittedError(decisive.obstacle)
            left = narrowed(decisive.rule)
            check_demands(caller, decisive.rule)
        except BrokerError as error:
            if not decisive.is_audit:
                raise
            audit.note(policy_would=error.code)
            return usual
        if not decisive.is_audit:
            return left
        if left != usual:
            audit.note(policy_would="narrow")
        return usual


def rule_for(caller: Caller, policy: TrustPolicy) -> Decisive:
    """Return the first rule that fits a caller.

    If that depends on groups which the token leaves out, the search ends there: to go on would let
    the person pass by a rule that might be for them.
    """
    for rule in policy.rules:
        if mismatch(caller, rule):
            continue
        if rule.groups is None:
            return Decisive(rule, rule.is_audit)
        groups = caller.attributes.groups
        if groups is None:
            return Decisive(rule, rule.is_audit, TOO_MANY_GROUPS)
        if not rule.groups.isdisjoint(groups):
            return Decisive(rule, rule.is_audit)
    return Decisive(None, policy.is_audit, "no rule of the trust policy fits")


def mismatch(caller: Caller, rule: Rule) -> str:
    """Return what about a caller does not fit a rule, apart from groups; nothing if all fits."""
    if rule.tenants is not None and caller.person.tenant_id not in rule.tenants:
        return "tenants"
    if rule.clients is not None and caller.client_id not in rule.clients:
        return "clients"
    if rule.roles is not None and rule.roles.isdisjoint(caller.attributes.roles):
        return "roles"
    return ""


def check_demands(caller: Caller, rule: Rule) -> None:
    """Refuse a sign-in that is not what a rule demands, with a challenge if that can help.

    Raises:
        StepUpRequiredError: another sign-in can be, and the client can ask for it.
        InsufficientClaimsError: the client does not say that it can, or no token would show it.
    """
    lacking = demanded(rule)
    if rule.context is not None and rule.context in caller.attributes.contexts:
        del lacking["acrs"]
    methods = caller.attributes.methods if rule.method is not None else frozenset[str]()
    if rule.method is not None and rule.method in (methods or ()):
        del lacking["amr"]
    if not lacking:
        return
    reason = f"the rule demands {' and '.join(lacking)}"
    if methods is None:
        raise InsufficientClaimsError(f"{reason}: the token has no amr, as v2.0 tokens never have")
    if not caller.attributes.handles_challenges:
        raise InsufficientClaimsError(f"{reason}: the client does not declare cp1")
    claims = json.dumps({"access_token": lacking}, separators=(",", ":"))
    raise StepUpRequiredError(reason, claims=claims)


def demanded(rule: Rule) -> dict[str, object]:
    """Return the claims that a rule demands, in the form of a claims request."""
    claims: dict[str, object] = {}
    if rule.context is not None:
        claims["acrs"] = {"essential": True, "value": rule.context}
    if rule.method is not None:
        claims["amr"] = {"essential": True, "values": [rule.method]}
    return claims


def granted_scopes(asked: frozenset[str] | None, allowed: frozenset[str]) -> frozenset[str]:
    """Return the ACS scopes to ask for: the requested ones, or all that are allowed.

    Raises:
        ScopeNotAllowedError: a requested scope is not allowed.
    """
    if asked is None:
        return allowed
    if not asked <= allowed:
        raise ScopeNotAllowedError("scopes beyond what may be granted")
    return asked


def granted_lifetime(asked: timedelta | None, usual: timedelta, longest: timedelta) -> timedelta:
    """Return the lifetime to ask for.

    Raises:
        InvalidRequestError: it is longer than allowed.
    """
    if asked is None:
        return min(usual, longest)
    if asked > longest:
        raise InvalidRequestError("expiresInMinutes above what may be granted")
    return asked

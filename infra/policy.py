"""Explain what the trust policy makes of an Entra access token, or check the policy alone.

    python -m local token ada@contoso.example |
        python -m infra.policy --settings local.settings.json

The token, or its claims as a JSON object, comes from standard input, so that it is in no history of
a shell; it is never printed. The settings are those of the app: local.settings.json, what
`az functionapp config appsettings list` prints, or a JSON object of names and values. No stack and
no network is needed.

The signature is NOT verified, nor are the dates, the audience, the issuer and the scope: the answer
is about a caller whose token the broker accepts.

Exit code 0: the caller would get a token, or, with --check, the settings are valid; 1: the caller
would get none; 2: wrong arguments, input or settings.
"""  # noqa: INP001 - the folder also has scripts that are run by their paths

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shared import strict_json
from shared.entra.access_tokens import Caller, unverified_claims
from shared.entra.attributes import Attributes
from shared.errors import BrokerError
from shared.identifiers import Person, is_guid
from shared.policy import Policy, check_demands, mismatch, rule_for
from shared.settings import ACS_SCOPES, LIFETIME_MINUTES, Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shared.trust_policy import Rule, TrustPolicy

WOULD, WOULD_NOT, WRONG = 0, 1, 2
MAX_INPUT = 64 * 1024
NOT_VERIFIED = "The signature is not verified: this is no proof that Entra issued the token."


class InputError(ValueError):
    """What was given cannot be used; the message says what to do."""


def settings_from(path: Path) -> dict[str, str]:
    """Return the app settings in a file, in any of the forms that Azure's tools write.

    Raises:
        InputError: it has none.
    """
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} cannot be read as JSON: {type(exc).__name__}") from None
    if isinstance(found, dict) and isinstance(found.get("Values"), dict):
        found = found["Values"]
    if isinstance(found, list):
        found = {each.get("name"): each.get("value") for each in found if isinstance(each, dict)}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(
            f"{path} has no app settings: give local.settings.json, or the output of"
            " `az functionapp config appsettings list`"
        )
    return {name: str(value) for name, value in found.items() if value is not None}


def caller_from(text: str) -> Caller:
    """Return the caller of a token or a claim set that nobody has verified.

    Raises:
        InputError: it is neither, or does not say who the caller is.
    """
    text = text.strip().removeprefix("Bearer ").strip()
    if not text:
        raise InputError("there is no token on standard input: pipe one in, or its claims as JSON")
    try:
        claims = (
            strict_json.loads_object(text.encode()) if text[0] == "{" else unverified_claims(text)
        )
    except (ValueError, BrokerError) as exc:
        raise InputError(
            f"standard input has neither an Entra access token nor its claims as JSON: {exc}"
        ) from None
    tenant_id, object_id = claims.get("tid"), claims.get("oid")
    if not is_guid(tenant_id) or not is_guid(object_id):
        raise InputError("the claims tid and oid are missing, or are not GUIDs")
    client_id = claims.get("azp", claims.get("appid"))
    if client_id is not None and not is_guid(client_id):
        raise InputError("the claim azp or appid is not a GUID")
    return Caller(Person(tenant_id, object_id), client_id, 0, Attributes(claims))


def explain(
    caller: Caller, settings: Settings, scopes: frozenset[str] | None, lifetime: timedelta | None
) -> tuple[list[str], bool]:
    """Return lines that say what a caller would get and why, and whether that is a token."""
    lines = [f"caller   tenant {caller.person.tenant_id}, person {caller.person.object_id}"]
    lines.append(f"         client app {caller.client_id or 'not named'}")
    if unserved := _unserved(caller, settings):
        return [*lines, f"token    refused before any rule: {unserved}"], False
    if settings.policy is None:
        lines.append("policy   none: TRUST_POLICY is not set, so the other settings decide alone")
    else:
        lines += _rules(caller, settings.policy)
    policy = Policy(settings.acs, settings.policy)
    enforced = Policy(settings.acs, _enforced(settings.policy))
    token, would = _token(caller, policy, scopes, lifetime)
    strict, _ = _token(caller, enforced, scopes, lifetime)
    lines.append(f"token    {token}")
    if strict != token:
        lines.append(f"         without audit mode: {strict}")
    return [*lines, *_exchanges(caller, settings, policy, enforced)], would


def _token(
    caller: Caller, policy: Policy, scopes: frozenset[str] | None, lifetime: timedelta | None
) -> tuple[str, bool]:
    """Return the token that a caller would get, in words, and whether that is one."""
    try:
        grant = policy.token(caller, scopes, lifetime)
    except BrokerError as error:
        claims = f", with the claims {error.claims}" if error.claims else ""
        return f"refused: {error.status.value} {error.code}{claims}", False
    minutes = grant.lifetime // timedelta(minutes=1)
    return f"{','.join(sorted(grant.scopes))} for {minutes} minutes", True


def _enforced(policy: TrustPolicy | None) -> TrustPolicy | None:
    """Return a policy without its audit modes."""
    if policy is None:
        return None
    rules = tuple(replace(rule, is_audit=False) for rule in policy.rules)
    return replace(policy, rules=rules, is_audit=False)


def _unserved(caller: Caller, settings: Settings) -> str:
    tenants, clients = settings.entra.tenant_ids, settings.entra.allowed_client_ids
    if tenants is not None and caller.person.tenant_id not in tenants:
        return "ENTRA_TENANT_IDS does not have the tenant"
    if clients and caller.client_id not in clients:
        return "ENTRA_ALLOWED_CLIENT_IDS does not have the client app"
    return ""


def _rules(caller: Caller, policy: TrustPolicy) -> Iterator[str]:
    """Yield a line for each rule up to the one that decides."""
    decisive = rule_for(caller, policy)
    for rule in policy.rules:
        if rule is decisive.rule:
            yield f"rule     {rule.name!r} decides{' (audit)' if rule.is_audit else ''}"
            if decisive.obstacle:
                yield f"         but {decisive.obstacle}"
            else:
                yield f"         it grants {_granted(rule)}"
                yield from _demands(caller, rule)
            return
        yield f"rule     {rule.name!r} does not fit: {mismatch(caller, rule) or 'groups'}"
    yield f"rule     none fits; the policy's mode is {'audit' if policy.is_audit else 'enforce'}"


def _granted(rule: Rule) -> str:
    scopes = ",".join(sorted(rule.scopes)) or "no scopes"
    exchanges = ",".join(sorted(rule.exchanges)) or "none"
    minutes = rule.max_lifetime // timedelta(minutes=1)
    return f"{scopes} for up to {minutes} minutes; exchanges: {exchanges}"


def _demands(caller: Caller, rule: Rule) -> Iterator[str]:
    try:
        check_demands(caller, rule)
    except BrokerError as error:
        yield f"         it is not met: {error}"


def _exchanges(
    caller: Caller, settings: Settings, policy: Policy, enforced: Policy
) -> Iterator[str]:
    for kind in (settings.exchanges.entra, settings.exchanges.teams):
        if kind is None:
            continue
        found, strict = (_exchange(caller, each, kind.name) for each in (policy, enforced))
        yield f"exchange {kind.name}: {found}"
        if strict != found:
            yield f"         without audit mode: {strict}"


def _exchange(caller: Caller, policy: Policy, name: str) -> str:
    try:
        policy.check_exchange(caller, name)
    except BrokerError as error:
        return f"refused: {error.status.value} {error.code}"
    return "allowed"


def _scopes(text: str) -> frozenset[str]:
    scopes = frozenset(scope.strip() for scope in text.split(","))
    if not scopes <= ACS_SCOPES:
        raise argparse.ArgumentTypeError(f"not a list of {', '.join(sorted(ACS_SCOPES))}")
    return scopes


def _number_of_rules(policy: TrustPolicy | None) -> str:
    if policy is None:
        return "no trust policy"
    return f"{len(policy.rules)} rule{'' if len(policy.rules) == 1 else 's'}"


def _path_of(file: Path) -> str:
    """Return the path of a policy. Unlike a setting, an argument may be quoted.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        file.open("rb").close()
    except OSError as exc:
        raise InputError(f"{file} cannot be read: {exc.strerror}") from None
    return str(file)


def _lifetime(text: str) -> timedelta:
    if not text.isdecimal() or int(text) not in LIFETIME_MINUTES:
        least, most = LIFETIME_MINUTES[0], LIFETIME_MINUTES[-1]
        raise argparse.ArgumentTypeError(f"not a whole number from {least} to {most}")
    return timedelta(minutes=int(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="the app settings (default: the environment)"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="a policy to try in place of TRUST_POLICY"
    )
    parser.add_argument("--check", action="store_true", help="check the policy, and read no token")
    parser.add_argument(
        "--scope", type=_scopes, metavar="SCOPES", help="what is asked for, such as voip,chat"
    )
    parser.add_argument(
        "--minutes", type=_lifetime, metavar="N", help="the lifetime that is asked for"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _parser().parse_args(words)
    try:
        env = settings_from(arguments.settings) if arguments.settings else dict(os.environ)
        if arguments.policy:
            env["TRUST_POLICY"] = _path_of(arguments.policy)
        settings = Settings.from_env(env)
        if arguments.check:
            sys.stdout.write(f"The settings are valid: {_number_of_rules(settings.policy)}.\n")
            return WOULD
        caller = caller_from(sys.stdin.read(MAX_INPUT))
        lines, would = explain(caller, settings, arguments.scope, arguments.minutes)
    except SettingsError as exc:
        sys.stderr.write("The broker would serve nothing, since these settings are wrong:\n")
        sys.stderr.writelines(f"  {problem}\n" for problem in exc.problems)
        return WRONG
    except (InputError, BrokerError) as exc:
        sys.stderr.write(f"python -m infra.policy: {exc}\n")
        return WRONG
    sys.stdout.writelines(f"{line}\n" for line in [NOT_VERIFIED, *lines])
    return WOULD if would else WOULD_NOT


if __name__ == "__main__":
    sys.exit(main())

"""The command that explains a trust policy, run as an operator runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local.entra.directory import ADA, CONTOSO, WEB_APP

if TYPE_CHECKING:
    from local.entra.tokens import TokenIssuer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "local.settings.example.json"
GROUP = "90c4f7d2-5ab8-4e13-b6a1-3f8d0e27c954"
RULES = [
    {"name": "agents", "roles": ["Support.Agent"], "scopes": ["chat", "voip"], "acrs": "c1"},
    {"name": "callers", "groups": [GROUP], "scopes": ["chat"], "maxLifetimeMinutes": 90},
]
CLAIMS = {"tid": CONTOSO.tenant_id, "oid": ADA.object_id, "azp": WEB_APP.client_id}


def run(
    *arguments: str | Path, given: str = "", settings: Path = EXAMPLE
) -> tuple[int, list[str], str]:
    """Run the command; return its exit code, the lines that it prints, and its errors."""
    finished = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "infra.policy", "--settings", str(settings), *arguments],
        cwd=ROOT,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={},
    )
    return finished.returncode, finished.stdout.splitlines(), finished.stderr


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A file with a policy."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"rules": RULES}), "utf-8")
    return file


def claims(**changes: Any) -> str:
    return json.dumps(CLAIMS | changes)


def test_explains_a_token(policy: Path, issuer: TokenIssuer) -> None:
    """Which rule decides, why those before do not, what the caller gets; never the token."""
    token = issuer.issue_access_token(claims={"groups": [GROUP]})

    code, lines, errors = run("--policy", policy, given=f"Bearer {token}\n")

    assert (0, "") == (code, errors)
    assert (
        "The signature is not verified: this is no proof that Entra issued the token." == lines[0]
    )
    assert lines[1:] == [
        f"caller   tenant {CONTOSO.tenant_id}, person {ADA.object_id}",
        f"         client app {WEB_APP.client_id}",
        "rule     'agents' does not fit: roles",
        "rule     'callers' decides",
        "         it grants chat for up to 90 minutes; exchanges: none",
        "token    chat for 60 minutes",
        "exchange entra: refused: 403 not_permitted",
        "exchange teams: refused: 403 not_permitted",
    ]
    assert not any(part in "\n".join(lines) for part in token.split("."))


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        ({"roles": ["Support.Agent"]}, [], "it is not met: the rule demands acrs: the client"),
        (
            {"roles": ["Support.Agent"], "xms_cc": ["cp1"]},
            [],
            'token    refused: 401 insufficient_claims, with the claims {"access_token":{"acrs":',
        ),
        ({}, [], "rule     none fits; the policy's mode is enforce"),
        ({}, [], "token    refused: 403 not_permitted"),
        ({"hasgroups": True}, [], "but the rule asks for groups, and the person is in too many"),
        ({"groups": [GROUP]}, ["--scope", "voip"], "token    refused: 403 scope_not_allowed"),
        ({"groups": [GROUP]}, ["--minutes", "91"], "token    refused: 400 invalid_request"),
        ({"tid": GROUP}, [], "token    refused before any rule: ENTRA_TENANT_IDS does not have"),
    ],
)
def test_explains_refusals(
    policy: Path, changes: dict[str, Any], arguments: list[str], expected: str
) -> None:
    """Claims will do in place of a token."""
    code, lines, errors = run("--policy", policy, *arguments, given=claims(**changes))

    assert (1, "") == (code, errors)
    assert any(expected in line for line in lines), lines


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (
            "Trial",
            [
                "token    chat,voip for 60 minutes",
                "         without audit mode: chat for 60 minutes",
                "exchange entra: allowed",
                "exchange teams: allowed",
                "         without audit mode: refused: 403 not_permitted",
            ],
        ),
        (
            "None",
            [
                "token    chat,voip for 60 minutes",
                "         without audit mode: refused: 403 not_permitted",
                "exchange entra: allowed",
                "         without audit mode: refused: 403 not_permitted",
                "exchange teams: allowed",
                "         without audit mode: refused: 403 not_permitted",
            ],
        ),
        (
            "Strict",
            [
                "token    voip for 60 minutes",
                "exchange entra: refused: 403 not_permitted",
                "exchange teams: refused: 403 not_permitted",
            ],
        ),
    ],
)
def test_audit_mode(tmp_path: Path, role: str, expected: list[str]) -> None:
    """The caller gets what the settings allow, and a line says what the policy would leave."""
    file = tmp_path / "policy.json"
    trial = {"name": "trial", "roles": ["Trial"], "scopes": ["chat"], "exchanges": ["entra"]}
    strict = {"name": "strict", "roles": ["Strict"], "scopes": ["voip"]}
    rules = [{**trial, "mode": "audit"}, strict]
    file.write_text(json.dumps({"rules": rules, "mode": "audit"}), "utf-8")

    code, lines, _ = run("--policy", file, given=claims(roles=[role]))

    assert 0 == code
    assert expected == lines[-len(expected) :]


def test_scopes_with_spaces(policy: Path) -> None:
    """A list may have spaces after its commas."""
    given = claims(groups=[GROUP])

    code, lines, _ = run("--policy", policy, "--scope", "chat, voip", given=given)

    assert 1 == code
    assert "token    refused: 403 scope_not_allowed" in lines


def test_no_such_policy(tmp_path: Path) -> None:
    """A file that is not there is named."""
    file = tmp_path / "policy.json"

    code, lines, errors = run("--policy", file, "--check")

    assert (2, []) == (code, lines)
    assert f"{file} cannot be read: No such file or directory" in errors


def test_without_a_policy() -> None:
    """The other settings decide alone."""
    code, lines, _ = run(given=claims())

    assert 0 == code
    assert "policy   none: TRUST_POLICY is not set, so the other settings decide alone" in lines
    assert ["token    chat,voip for 60 minutes", "exchange entra: allowed"] == lines[-3:-1]


@pytest.mark.parametrize("form", ["Values", "list", "names"])
def test_settings_of_azure(policy: Path, tmp_path: Path, form: str) -> None:
    """The settings come in each form that a tool writes them in."""
    values = json.loads(EXAMPLE.read_text("utf-8"))["Values"]
    values["TRUST_POLICY"] = policy.read_text("utf-8")
    listed = [{"name": n, "value": v, "slotSetting": False} for n, v in values.items()]
    file = tmp_path / "settings.json"
    forms = {"Values": {"Values": values}, "list": listed, "names": values}
    file.write_text(json.dumps(forms[form]), "utf-8")

    assert (0, ["The settings are valid: 2 rules."], "") == run("--check", settings=file)


def test_one_rule(tmp_path: Path) -> None:
    """One is not several."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"rules": RULES[:1]}), "utf-8")

    assert (0, ["The settings are valid: 1 rule."], "") == run("--policy", file, "--check")


def test_names_every_problem(tmp_path: Path) -> None:
    """A policy can be checked before it is deployed."""
    file = tmp_path / "policy.json"
    file.write_text('{"rules": [{"scopes": ["sms"], "acrs": "c100"}]}', "utf-8")

    code, lines, errors = run("--policy", file, "--check")

    assert (2, []) == (code, lines)
    assert [
        "The broker would serve nothing, since these settings are wrong:",
        "  TRUST_POLICY rules[0].name is missing",
        '  TRUST_POLICY rules[0].scopes[0] is not in ACS_TOKEN_SCOPES: "sms"',
        '  TRUST_POLICY rules[0].acrs is not one of c1 to c99: "c100"',
    ] == errors.splitlines()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("", "there is no token on standard input"),
        ("secret.secret.secret", "neither an Entra access token nor its claims as JSON"),
        ("{", "neither an Entra access token nor its claims as JSON"),
        ("{}", "the claims tid and oid are missing"),
        (claims(groups="secret"), "groups is not a list of names"),
        (claims(azp=["secret"]), "the claim azp or appid is not a GUID"),
        (claims(azp="secret"), "the claim azp or appid is not a GUID"),
    ],
)
def test_wrong_input(policy: Path, given: str, problem: str) -> None:
    """The error says what to give, and quotes nothing."""
    code, lines, errors = run("--policy", policy, given=given)

    assert (2, []) == (code, lines)
    assert problem in errors
    assert "secret" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("minutes", ["5", "-5", "0", "1441", "an hour"])
def test_wrong_minutes(minutes: str) -> None:
    """A lifetime that the broker would refuse whatever the policy says is a wrong argument."""
    code, lines, errors = run("--minutes", minutes, given=claims())

    assert (2, []) == (code, lines)
    assert "not a whole number from 60 to 1440" in errors


@pytest.mark.parametrize("text", ["[1", "[]", "7", '{"Values": {}}'])
def test_wrong_settings(tmp_path: Path, text: str) -> None:
    """A file that is something else is an error, not a traceback."""
    file = tmp_path / "settings.json"
    file.write_text(text, "utf-8")

    code, lines, errors = run("--check", settings=file)

    assert (2, []) == (code, lines)
    assert errors
    assert "Traceback" not in errors

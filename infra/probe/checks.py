"""What a deployed broker must answer, by its contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from infra.probe.issued import Issued
from infra.probe.tokens import claims_of, forged_token, of_somebody_else, with_other_signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.probe.asking import Answer

    Judge = Callable[[Answer], list[str]]

OK, UNAUTHORIZED, FORBIDDEN = 200, 401, 403
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Check:
    """One request, and what says which problems its answer has."""

    title: str
    path: str
    judge: Judge
    token: str | None = field(default=None, repr=False)


def standard_checks() -> list[Check]:
    """Return the checks that need no token, in order."""
    return [
        Check("is up", "/api/health", partial(_answers, "status", "healthy")),
        Check("is ready", "/api/health/ready", partial(_answers, "status", "ready")),
        _refuses("a call without a token", "missing_token"),
        _refuses("a forged token", "invalid_token", forged_token("RS256")),
        _refuses("an unsigned token", "invalid_token", forged_token("none")),
    ]


def checks_with(token: str, *, user: str | None) -> list[Check]:
    """Return the checks with a good token: a user's gets an ACS token, an app's own gets none.

    Args:
        token: for the broker.
        user: the ACS identity that the token's user must have; None if that is not known.
    """
    spoilt = [
        _refuses("a token with another signature", "invalid_token", with_other_signature(token)),
        _refuses("a token with another person", "invalid_token", of_somebody_else(token)),
    ]
    if "scp" not in claims_of(token):
        code, status = "insufficient_scope", FORBIDDEN
        return [*spoilt, _refuses("an app without a user", code, token, status=status)]
    issued = Issued(user)
    return [
        *spoilt,
        Check("issues a token", "/api/token", partial(_issues, issued), token),
        Check("issues it for the same user", "/api/token", partial(_issues, issued), token),
        Check("knows the user", "/api/user", partial(_knows, issued), token),
    ]


def _refuses(
    what: str, code: str, token: str | None = None, *, status: int = UNAUTHORIZED
) -> Check:
    error = None if token is None else code
    judge = partial(_is_refusal, code=code, status=status, error=error)
    return Check(f"refuses {what}", "/api/token", judge, token)


def _answers(name: str, value: str, answer: Answer, *, status: int = OK) -> list[str]:
    found = answer.members.get(name)
    different = [] if found == value else [f"{name} is {found!r}, not {value!r}"]
    return _common(answer, status) + different


def _common(answer: Answer, status: int) -> list[str]:
    found = []
    if answer.status != status:
        found.append(f"status {answer.status}, not {status}")
    if answer.headers.get("cache-control") != "no-store":
        found.append("no Cache-Control: no-store")
    return found


def _is_refusal(answer: Answer, *, code: str, status: int, error: str | None) -> list[str]:
    """Judge a refusal: RFC 9457 for the body, RFC 6750 for the challenge."""
    found = _answers("code", code, answer, status=status)
    challenge = answer.headers.get("www-authenticate", "")
    if not challenge.startswith("Bearer "):
        found.append("no Bearer challenge")
    if error is None and "error=" in challenge:
        found.append("a challenge with an error, although no token was sent")
    if error is not None and f'error="{error}"' not in challenge:
        found.append(f"a challenge without {error}")
    if answer.headers.get("content-type", "").partition(";")[0] != PROBLEM:
        found.append(f"not {PROBLEM}")
    if not answer.members.get("traceId"):
        found.append("no traceId")
    return found


def _issues(issued: Issued, answer: Answer) -> list[str]:
    found = _common(answer, OK)
    return found + (issued.problems(answer.members) if answer.status == OK else _why(answer))


def _knows(issued: Issued, answer: Answer) -> list[str]:
    found = _common(answer, OK)
    user = answer.members.get("user")
    return found + (issued.user_problems(user) if answer.status == OK else _why(answer))


def _why(answer: Answer) -> list[str]:
    """Return the code of a refusal, without anything else that the answer may hold."""
    return [f"code is {answer.members.get('code')!r}"]

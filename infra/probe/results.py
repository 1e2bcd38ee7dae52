"""What a run found, as lines for a person, as one line, or as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

# The exit status, and the word for it.
PASSED, FAILED, WARNING = 0, 1, 3
WORDS = {PASSED: "OK", FAILED: "FAILED", WARNING: "WARNING"}


@dataclass(frozen=True)
class Result:
    """One check: what is wrong, what could soon be, and how the service answered."""

    title: str
    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    status: int | None = None
    milliseconds: int | None = None


@dataclass
class Results:
    """All checks of one run, and what was learned about the certificate."""

    url: str
    checks: list[Result] = field(default_factory=list)
    certificate_days: int | None = None
    tls: str | None = None

    @property
    def exit_status(self) -> int:
        """0, 1 if a check failed, 3 if one has only a warning."""
        if any(check.problems for check in self.checks):
            return FAILED
        return WARNING if any(check.warnings for check in self.checks) else PASSED

    def line(self) -> str:
        """Return what is wrong, or else the warnings, in one line; the figures are behind a bar."""
        found = [(each.title, each.problems) for each in self.checks if each.problems]
        if not found:
            found = [(each.title, each.warnings) for each in self.checks if each.warnings]
        named = [f"{title}: {', '.join(texts)}" for title, texts in found]
        what = "; ".join(named) or f"{len(self.checks)} checks"
        figures = [f"slowest_ms={self._slowest}"] if self._slowest is not None else []
        if self.certificate_days is not None:
            figures += [f"certificate_days={self.certificate_days}", f"tls={self.tls}"]
        behind_bar = f" | {' '.join(figures)}" if figures else ""
        line = f"{WORDS[self.exit_status]} {self.url} {what}{behind_bar}"
        return " ".join(line.split())  # A service's text must not begin a second line.

    def as_json(self) -> str:
        """Return everything as JSON in one line."""
        document = {
            "result": WORDS[self.exit_status],
            "url": self.url,
            "slowest_ms": self._slowest,
            "certificate_days": self.certificate_days,
            "tls": self.tls,
            "checks": [
                {
                    "check": check.title,
                    "problems": check.problems,
                    "warnings": check.warnings,
                    "status": check.status,
                    "ms": check.milliseconds,
                }
                for check in self.checks
            ],
        }
        return json.dumps(document)

    @property
    def _slowest(self) -> int | None:
        times = [check.milliseconds for check in self.checks if check.milliseconds is not None]
        return max(times, default=None)

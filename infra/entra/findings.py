"""What the doctor found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: its code, what it means, and what to do about it."""

    code: str
    says: str
    fix: str

    def __str__(self) -> str:
        return f"FAILED   {self.code}: {self.says}\n         Fix: {self.fix}"


def shown(title: str, findings: Iterable[Finding] | None, needs: str) -> str:
    """Return the lines about one check; None says that it could not be made, for want of this."""
    if findings is None:
        return f"skipped  {title} (needs {needs})"
    lines = [str(finding) for finding in findings]
    return "\n".join(lines) if lines else f"ok       {title}"

"""What the doctor found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.entra.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: its code, what it means, and what to do about it.

    `is_sure` is False where it may well be right, which only the reader knows.
    """

    code: str
    says: str
    fix: str
    is_sure: bool = True

    def __str__(self) -> str:
        says, fix = printable(self.says), printable(self.fix)
        verdict = "FAILED" if self.is_sure else "check "
        return f"{verdict}   {self.code}: {says}\n         Fix: {fix}"


def shown(title: str, findings: Iterable[Finding] | None, needs: str) -> str:
    """Return the lines about one check; None says that it could not be made, for want of this."""
    if findings is None:
        return f"skipped  {title} (needs {needs})"
    lines = [str(finding) for finding in findings]
    return "\n".join(lines) if lines else f"ok       {title}"

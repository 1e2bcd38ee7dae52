"""What a measurement found, beside the bound that it has to keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        what: which figure it is, such as "503 for a new key after Entra was away for 3 s".
        measured: the figure.
        bound: what it may be at most.
        unit: of both, such as "s", "ms" or "times".
        others: what was measured for other software, with its name; empty if nothing was.
    """

    what: str
    measured: float
    bound: float
    unit: str
    others: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the bound is kept."""
        return self.measured <= self.bound

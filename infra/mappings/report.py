"""Tells the operator what happens: as it goes on, at the end, and row by row what was refused."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from infra.mappings.people import COLUMNS, BadRow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.mappings.people import AnyRow

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 5.0
REFUSED = "refused"


def create(path: Path) -> TextIO:
    """Create a file that other users of the machine cannot read; empty it if it is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return open(descriptor, "w", encoding="utf-8", newline="")  # noqa: PTH123 - a descriptor has no path


class Report:
    """Counts the rows by what became of them, and writes those that were refused into a file.

    The file is made with the first one, and starts anew with each run: who runs a command again
    finds the rows that are still refused.

    Args:
        path: the file.
        total: how many rows there are, if that is known.
        every_row: writes all rows, with what would become of them.
        stream: where progress is shown.
        clock: the seconds of a clock that never goes back.
    """

    def __init__(
        self,
        path: Path,
        *,
        total: int | None = None,
        every_row: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self.counts: Counter[str] = Counter()
        self._total = total
        self._every_row = every_row
        self._file: TextIO | None = None
        self._stream = stream or sys.stderr
        self._clock = clock
        self._shown_at = clock()

    def count(self, outcome: str, row: AnyRow | None = None) -> None:
        """Count a row that was not refused."""
        if self._every_row and row is not None:
            self._write(row, outcome)
        self._count(outcome)

    def refuse(self, row: AnyRow, reason: str) -> None:
        """Count a row that was refused, and write it into the file."""
        self._write(row, reason)
        self._count(REFUSED)

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        self._show()

    def _write(self, row: AnyRow, reason: str) -> None:
        if self._file is None:
            self._file = create(self.path)
            csv.writer(self._file).writerow(["row", *COLUMNS, "reason"])
        csv.writer(self._file).writerow([row.number, *_shown(row), reason])
        self._file.flush()

    def close(self) -> None:
        """Finish the line of the terminal, and close the file."""
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
        if self._file is not None:
            self._file.close()

    def __str__(self) -> str:
        counts = [f"{number} {outcome}" for outcome, number in sorted(self.counts.items())]
        return ", ".join(counts) or "no rows"

    def _show(self) -> None:
        """Show where we are: often on a terminal, every few seconds in a log."""
        interactive, now = self._stream.isatty(), self._clock()
        if now < self._shown_at + (TERMINAL_SECONDS if interactive else LOG_SECONDS):
            return
        self._shown_at = now
        rows = "rows" if self._total is None else f"of {self._total} rows"
        text = f"{self.counts.total()} {rows}: {self}"
        self._stream.write(f"\r\x1b[K{text}" if interactive else f"{text}\n")
        self._stream.flush()


def _shown(row: AnyRow) -> list[str]:
    if isinstance(row, BadRow):
        return [row.shown.get(name, "") for name in COLUMNS]
    return [*(row.person or ("", "")), row.acs_id]

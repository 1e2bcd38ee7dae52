from __future__ import annotations

import io
from typing import TYPE_CHECKING

from infra.mappings.report import Report

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


class Seconds:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_log(tmp_path: Path) -> None:
    """A log gets a line every few seconds."""
    stream, clock = io.StringIO(), Seconds()
    report = Report(tmp_path / "report.csv", total=100, stream=stream, clock=clock)
    for second in range(12):
        clock.now = second
        report.count("imported")
    report.close()

    assert ["6 of 100 rows: 6 imported", "11 of 100 rows: 11 imported"] == (
        stream.getvalue().splitlines()
    )


def test_terminal(tmp_path: Path) -> None:
    """A terminal gets one line that changes several times a second, and is empty at the end."""
    stream, clock = Terminal(), Seconds()
    report = Report(tmp_path / "report.csv", stream=stream, clock=clock)
    for tenth in range(6):
        clock.now = tenth / 10
        report.count("exported")
    report.close()

    shown = stream.getvalue()
    assert "\n" not in shown
    assert ["3 rows: 3 exported", "5 rows: 5 exported", ""] == shown.split("\r\x1b[K")[1:]


def test_starts_anew(tmp_path: Path) -> None:
    """What an earlier run reported is not there any more."""
    path = tmp_path / "report.csv"
    path.write_text("old")

    Report(path).close()

    assert not path.exists()

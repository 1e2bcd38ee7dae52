"""Try each known attack and failure against the local stack, and print what became of it.

    python -m tests.cases [LETTER or ID ...]

Exit code 0: each case ended as expected; 1: one did not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict

import pytest

from tests.cases.catalogue import DIFFERS, FOLDER, IDS, LETTERS, NOT_HERE, cases, id_of_test

PROCESSES = 2


class Outcomes:
    """Collects from pytest which cases have passed and which have failed."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a phase of a test; one that is left out has not passed."""
        case_id = id_of_test(report.nodeid)
        if case_id is None:
            return
        self.seconds[case_id] += report.duration
        if not report.passed:
            self.failed.add(case_id)


def main() -> int:
    """Run the cases, print one line for each, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(f"{letter}  {what}" for letter, what in LETTERS.items())
    parser.add_argument("names", nargs="*", metavar="LETTER or ID", help="default: all")
    names = parser.parse_args().names
    chosen = [
        case_id
        for letter, ids in IDS.items()
        for case_id in ids
        if not names or letter in names or case_id in names
    ]
    if not chosen:
        parser.error(f"there is no such case; the letters are {', '.join(IDS)}")
    print(
        f"{len(chosen)} cases, most of them several tests. First the tests run, which takes about"
        f" two minutes for all {sum(map(len, IDS.values()))} cases; then there is a line for each."
    )
    began = time.monotonic()
    outcomes = _run(chosen)
    known = cases()
    width = max(len(known[each].text) if each in known else 0 for each in chosen)
    for case_id in chosen:
        text = f"{known[case_id].text:<{width}}  " if case_id in known else ""
        print(f"{case_id}  {text}{_outcome(case_id, outcomes)}")
    return _summary(chosen, outcomes, time.monotonic() - began)


def _run(chosen: list[str]) -> Outcomes:
    outcomes = Outcomes()
    only = " or ".join(f"test_{case_id}_" for case_id in chosen)
    options = ["-q", "--no-header", "--tb=short", "-n", str(PROCESSES), "--dist", "loadgroup"]
    pytest.main([str(FOLDER), "-k", only, *options], plugins=[outcomes])
    return outcomes


def _outcome(case_id: str, outcomes: Outcomes) -> str:
    if case_id in NOT_HERE:
        return f"not here: {NOT_HERE[case_id]}"
    if case_id in outcomes.failed or case_id not in outcomes.seconds:
        return "FAIL"
    return f"pass, but: {DIFFERS[case_id]}" if case_id in DIFFERS else "pass"


def _summary(chosen: list[str], outcomes: Outcomes, seconds: float) -> int:
    verdicts = [_outcome(case_id, outcomes).partition(":")[0] for case_id in chosen]
    failed, absent = verdicts.count("FAIL"), verdicts.count("not here")
    passed = len(chosen) - failed - absent
    print(f"Cases: {passed} passed, {failed} failed, {absent} not here, in {seconds:.0f} s.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

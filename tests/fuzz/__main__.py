"""Feeds broken and odd inputs to everything that reads something from outside, on all cores.

Each target makes inputs from a seed: good ones, good ones with a change, and odd ones. The
service's own code reads them, and a second reader, written from the standards alone, says what was
right. A failure is printed with its seed and the smallest input that shows it.

python -m tests.fuzz --inputs 1000000
python -m tests.fuzz --target token --seed 4711 --inputs 1
python -m tests.fuzz --planted
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.fuzz.planted import DEFECTS
from tests.fuzz.target import run
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fuzz.target import Failure

CHUNK = 5000
FOUND_WITHIN = 20_000  # inputs
ENOUGH = 5  # failures of one target
EVERY = 10  # seconds between two lines about the progress


def quiet() -> None:
    """Let no line be logged: that takes longer than what it is about."""
    logging.disable(logging.CRITICAL)


def fuzz(work: tuple[str, range]) -> tuple[str, int, list[Failure]]:
    """Try the inputs of some seeds on a target."""
    name, seeds = work
    return name, len(seeds), run(TARGETS[name](), seeds)


def find(name: str, *, first: int, within: int = FOUND_WITHIN) -> Failure | None:
    """Plant a defect, and return the first failure that it causes."""
    defect = DEFECTS[name]
    target = TARGETS[defect.target]()
    with defect.planted():
        failures = run(target, range(first, first + within), enough=1)
    return failures[0] if failures else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if something is wrong."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if min(asked.inputs, asked.jobs) < 1:
        parser.error("--inputs and --jobs are at least 1")
    if asked.planted:
        return _find_all(asked)
    return _fuzz_all(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each target (1000000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first one (1)")
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, metavar="NAME", help="only: " + ", ".join(TARGETS)
    )
    parser.add_argument("--planted", action="store_true", help="find the planted defects")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once (all cores)")
    return parser


def _fuzz_all(asked: argparse.Namespace) -> int:
    end = asked.seed + asked.inputs
    work = [
        (name, range(first, min(first + CHUNK, end)))
        for name in asked.target or TARGETS
        for first in range(asked.seed, end, CHUNK)
    ]
    began = shown = time.monotonic()
    done: Counter[str] = Counter()
    failures: list[Failure] = []
    with multiprocessing.Pool(asked.jobs, quiet) as pool:
        for name, number, found in pool.imap_unordered(fuzz, work):
            done[name] += number
            room = ENOUGH - sum(failure.target == name for failure in failures)
            for failure in found[:room]:
                print(f"FAILED {failure}", flush=True)
                failures.append(failure)
            if time.monotonic() - shown > EVERY or done[name] == asked.inputs:
                shown = time.monotonic()
                print(f"{shown - began:6.0f} s  {name:10} {done[name]:>9} inputs", flush=True)
    print(f"{done.total()} inputs in {time.monotonic() - began:.0f} s, {len(failures)} failures")
    return 1 if failures else 0


def _find_all(asked: argparse.Namespace) -> int:
    missed = 0
    names = [name for name in DEFECTS if DEFECTS[name].target in (asked.target or TARGETS)]
    with multiprocessing.Pool(asked.jobs, quiet) as pool:
        for name, failure in zip(
            names, pool.imap(partial(find, first=asked.seed), names), strict=True
        ):
            tries = failure.seed - asked.seed + 1 if failure else FOUND_WITHIN
            missed += failure is None
            print(f"{'MISSED' if failure is None else 'found'} {name}: {tries} inputs", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted defects found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs random schedules on all cores, and prints what came of them.

Each schedule is the service's own code in one to four processes, over a simulated network, Table
Storage and ACS, in virtual time: requests and timers while calls are slow, lost, doubled or late
and processes die; then a time without faults, in which everybody must be served and everything
settle. A judge watches every write and every answer.

python -m tests.simulation --schedules 100000 --seed 1
python -m tests.simulation --seed 289 --schedules 1 --trace
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.simulation.mutants import MUTANTS
from tests.simulation.operations import OPERATIONS
from tests.simulation.schedules import CLOCKS, Options, run_schedule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.schedules import Result

CHUNK = 200
_VARIABLE = re.compile(r"8:acs:\S+|\b20\d\d-\S+ \S+|\b[a-d]\d0{6}\S*|[0-9]+(?= unref)|[0-9]+ fault")


@dataclass(slots=True)
class Summary:
    """The numbers of many schedules; several add up."""

    schedules: int = 0
    calls: int = 0
    faults: int = 0
    unreferenced: int = 0
    collateral: int = 0
    violations: int = 0
    slowest: tuple[float, int] = (0.0, 0)  # And its seed.
    answers: Counter[str] = field(default_factory=Counter)
    # By kind of violation: the seeds, the smallest schedules first.
    seeds: defaultdict[str, list[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def count(self, result: Result) -> None:
        """Add one schedule."""
        self.schedules += 1
        self.calls += result.calls
        self.faults += result.faults
        self.unreferenced += result.unreferenced
        self.collateral += result.collateral
        self.violations += bool(result.violations)
        self.slowest = max(self.slowest, (result.served_after, result.seed))
        self.answers.update(result.answers)
        for kind in {_VARIABLE.sub("…", violation) for violation in result.violations}:
            self.seeds[kind].append((result.calls, result.seed))

    def add(self, other: Summary) -> None:
        """Add other schedules."""
        self.schedules += other.schedules
        self.calls += other.calls
        self.faults += other.faults
        self.unreferenced += other.unreferenced
        self.collateral += other.collateral
        self.violations += other.violations
        self.slowest = max(self.slowest, other.slowest)
        self.answers.update(other.answers)
        for kind, seeds in other.seeds.items():
            self.seeds[kind] += seeds


def run_many(seeds: Iterable[int], *, options: Options) -> Summary:
    """Run the schedules of some seeds."""
    summary = Summary()
    for seed in seeds:
        summary.count(run_schedule(seed, options))
    return summary


def quiet() -> None:
    """Let no audit line be written: they cost more than the calls."""
    logging.getLogger("broker").setLevel(logging.CRITICAL + 1)


def main() -> int:
    """Run what the command line asks for; 1 if there was a violation."""
    arguments = _arguments()
    quiet()
    options = Options(
        processes=arguments.processes,
        clocks=arguments.clocks,
        operations=arguments.operations or (),
    )
    if arguments.mutant:
        with MUTANTS[arguments.mutant].planted() as options:
            return _run(arguments, options)
    return _run(arguments, options)


def _run(arguments: argparse.Namespace, options: Options) -> int:
    if arguments.trace:
        return _trace(range(arguments.seed, arguments.seed + arguments.schedules), options)
    started = time.monotonic()
    total = Summary()
    chunks = [
        range(first, min(first + CHUNK, arguments.seed + arguments.schedules))
        for first in range(arguments.seed, arguments.seed + arguments.schedules, CHUNK)
    ]
    with multiprocessing.Pool(arguments.jobs, quiet) as pool:
        for summary in pool.imap_unordered(partial(run_many, options=options), chunks):
            total.add(summary)
            _show_progress(total, arguments.schedules, time.monotonic() - started)
    _show(total, time.monotonic() - started, show_answers=arguments.answers)
    if total.seeds:
        seed = min(min(seeds) for seeds in total.seeds.values())[1]
        print(f"\nThe shortest schedule with a violation, --seed {seed} --schedules 1 --trace:\n")
        _trace([seed], options)
    return 1 if total.violations else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--schedules", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first one (1)")
    parser.add_argument("--processes", type=int, default=0, help="of the service (1 to 4)")
    parser.add_argument("--clocks", choices=CLOCKS, default="seconds", help="how wrong they are")
    parser.add_argument(
        "--operations",
        nargs="+",
        choices=[operation.name for operation in OPERATIONS],
        metavar="NAME",
        help="only these: " + ", ".join(operation.name for operation in OPERATIONS),
    )
    parser.add_argument("--mutant", choices=MUTANTS, help="run the code with a planted defect")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once (all cores)")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--answers", action="store_true", help="print what was answered how often")
    arguments = parser.parse_args()
    if min(arguments.schedules, arguments.jobs) < 1:
        parser.error("--schedules and --jobs are at least 1")
    return arguments


def _trace(seeds: Iterable[int], options: Options) -> int:
    violations = 0
    for seed in seeds:
        result = run_schedule(seed, options, trace=True)
        print("\n".join(result.trace or []))
        print(f"seed {seed}: {result.faults} faults, {len(result.violations)} violations")
        violations += len(result.violations)
    return 1 if violations else 0


def _show_progress(total: Summary, schedules: int, seconds: float) -> None:
    if sys.stderr.isatty():
        text = f"\r{total.schedules} of {schedules}, {total.schedules / seconds:.0f} a second, "
        sys.stderr.write(text + f"{total.violations} with violations ")
        sys.stderr.flush()


def _show(total: Summary, seconds: float, *, show_answers: bool) -> None:
    slowest, seed = total.slowest
    print(f"\nschedules             {total.schedules}")
    print(f"upstream calls        {total.calls}")
    print(f"faults                {total.faults}")
    print(f"with violations       {total.violations}")
    print(f"unreferenced          {total.unreferenced} identities that never had a token")
    print(f"collateral            {total.collateral} tokens that an earlier revocation killed")
    print(f"slowest return        {slowest:.1f} s (seed {seed})")
    print(f"schedules a second    {total.schedules / seconds:.0f}")
    if show_answers:
        for answer, number in sorted(total.answers.items()):
            print(f"  {answer:40} {number}")
    for kind, seeds in sorted(total.seeds.items(), key=lambda each: -len(each[1])):
        shortest = ", ".join(str(seed) for _, seed in sorted(seeds)[:5])
        print(f"VIOLATION {len(seeds)} x {kind}\n          seeds {shortest}")


if __name__ == "__main__":
    sys.exit(main())

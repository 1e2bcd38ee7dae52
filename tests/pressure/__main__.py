"""Put the broker under pressure, on this machine alone, and print each figure beside its bound.

    python -m tests.pressure [NAME ...]

Exit code 0: every bound is kept; 1: one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import TYPE_CHECKING

from tests.pressure import crowd, refusals, rollover, shares

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.pressure.rows import Row

MEASUREMENTS: dict[str, Callable[[], Awaitable[list[Row]]]] = {
    "refusals": refusals.measure,
    "rollover": rollover.measure,
    "crowd": crowd.measure,
    "shares": shares.measure,
}


def main() -> int:
    """Measure, print the table as it grows, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.pressure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"what to measure (default: everything): {', '.join(MEASUREMENTS)}",
    )
    names = parser.parse_args().names
    if not MEASUREMENTS.keys() >= set(names):
        parser.error(f"choose from {', '.join(MEASUREMENTS)}")
    return asyncio.run(_measure(names or list(MEASUREMENTS)))


async def _measure(names: list[str]) -> int:
    missed = 0
    for name in names:
        sys.stdout.write(f"{name} ...\n")
        began = time.monotonic()
        for row in await MEASUREMENTS[name]():
            missed += not row.is_kept
            sys.stdout.write(
                f"  {'ok' if row.is_kept else 'MISSED':<8}{row.what}: {row.measured:.3g} {row.unit}"
                f" (at most {row.bound:.3g}){row.others and f'; {row.others}'}\n"
            )
            sys.stdout.flush()
        sys.stdout.write(f"  {'':<8}measured in {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"{missed} missed.\n" if missed else "Every bound is kept.\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

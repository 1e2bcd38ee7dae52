"""How long an answer says that its caller should wait: what others tell us, and what we tell."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST = 60


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in Retry-After; for its other form, a date, our own default is used.

    https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
    """
    text = headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def spread(wait: float, chance: float) -> int:
    """Return what Retry-After should say: the wait, and up to half as long again by chance.

    Callers who are refused in the same second must not come back in the same second. Nobody waits
    longer than a minute: those who would have to are spread over its last quarter.

    Args:
        wait: how long the caller should wait, in seconds.
        chance: a number from 0 to 1 (exclusive), at random.
    """
    least = min(LONGEST, max(1, math.ceil(wait)))
    most = min(LONGEST, least + math.ceil(least / 2))
    least = min(least, LONGEST * 3 // 4)
    return least + int(chance * (most - least + 1))

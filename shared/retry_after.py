"""How long an answer says that its caller should wait."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in Retry-After; for its other form, a date, our own default is used.

    https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
    """
    text = headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text) else None

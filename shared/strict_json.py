"""Reads JSON from outside, and refuses what two readers could understand differently.

`json.loads` alone takes the last of two equal names, NaN, UTF-16 and a byte order mark, and raises
RecursionError on deep nesting. RFC 8259, and RFC 8725 section 3.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 32


def loads_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that the bytes hold, with nothing before or after it.

    Raises:
        ValueError: they hold anything else, a name twice, a number that is not finite, a NUL or
            half a surrogate pair in a string, or nest more than 32 levels deep. The message never
            quotes the bytes.
    """
    if not (raw.startswith(b"{") and raw.endswith(b"}")):
        raise ValueError("not one JSON object")
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as exc:
        raise ValueError(f"not strict JSON: {type(exc).__name__}") from None
    # Only an escape can bring a NUL or half a surrogate pair, and only brackets can nest. Most
    # documents have too few of both, and a look at the bytes costs less than one at each value.
    if b"\\u" in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check(value, MAX_DEPTH)
    return value  # type: ignore[no-any-return]  # it begins with a brace, so it is an object


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name twice")
    return members


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN or Infinity")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number


# Made once, because `json.loads` with hooks makes a new one each time.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_name_twice, parse_constant=_refuse_constant, parse_float=_finite
)


def _check(value: Any, depth: int) -> None:  # noqa: ANN401 - any JSON value
    """Check an object or array, which may have so many levels."""
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        for name in value:
            _check_characters(name)
        value = value.values()
    for item in value:
        if isinstance(item, dict | list):
            _check(item, depth - 1)
        elif isinstance(item, str):
            _check_characters(item)


def _check_characters(text: str) -> None:
    if text.isascii() and "\0" not in text:
        return
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a NUL or half a surrogate pair")

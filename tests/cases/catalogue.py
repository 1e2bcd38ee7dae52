"""The known attacks and failures, by id: which there are, and which do not fit this service.

The letter says what is attacked or fails; cases of M have to be accepted.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FOLDER = Path(__file__).parent
LETTERS = {
    "A": "the request",
    "B": "the form of a token",
    "C": "its signature and the keys",
    "D": "its dates",
    "E": "its claims",
    "F": "Entra's keys and their fetching",
    "G": "the input",
    "H": "answers and logs",
    "I": "ACS",
    "J": "the table",
    "K": "two things at once",
    "L": "settings and load",
    "M": "what Entra really issues",
}
CASE_ID = re.compile(r"[A-M][0-9]{2}")
# A number that is missing has been given up: ids are never used again.
IDS = {
    letter: [f"{letter}{number}" for number in numbers.split()]
    for letter, numbers in {
        "A": "01 02 03 04 05 06 07 08 09 11 13 15 16 17",
        "B": "01 02 03 04 05 06 07 10 12 13 14 15 17 18 19 20 22 23 24 26 27 28 29 30 31",
        "C": "01 02 03 04 05 06 09 10 12 13 14 15 16 17",
        "D": "01 02 03 04 05 06 07 08 10 12",
        "E": "01 02 03 04 05 06 07 08 09 10 11 12 13 14 16 18 19 22 23 24 25 27 29 31 32 33 34",
        "F": "01 02 03 06 07 08 09 10 11 12 13 14 15 17 18 20",
        "G": "01 03 04 05 06 07 08 09 10 13 14",
        "H": "02 03 04 05 06 07 08 09",
        "I": "01 02 03 04 06 07 09 10 11 12 13 14 15 16 19 20",
        "J": "01 02 03 05 06 07 08 09 11 12 14 15 16",
        "K": "01 02 03 04 06 07 08 09 11 12 13 14 15 16 17 18 20 22",
        "L": "01 02 03 04 06 07 09 10",
        "M": "01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16",
    }.items()
}
# The cases that no test can show of this service, and why.
NOT_HERE: dict[str, str] = {
    "C13": "keys come from Entra itself over TLS, and are not searched for the ROCA weakness",
    "G13": "there is no Idempotency-Key: the same request twice does no more than once",
}
MISCONFIGURED = "the process starts all the same, and answers 503 to all but /api/health"
# The cases in which this service answers otherwise than is usually recommended, and why.
DIFFERS: dict[str, str] = {
    "A11": "line breaks, NUL and the like are refused with 400 by the HTTP server itself",
    "A17": "over the host's own limit, the Functions host answers 500 before this service can",
    "B19": "the log says that a header member is not allowed; the audience is not read",
    "D12": "the code is token_revoked, with the claims that make MSAL get a new token",
    "E13": MISCONFIGURED,
    "F20": "keys that Entra has withdrawn are not kept aside: from then on they verify nothing",
    "I01": "504 is for ACS taking too long; a connection that breaks is 503",
    "I11": "a sign-out that ACS did not hear of is not sent again at once, but stored: 202",
    "I20": MISCONFIGURED,
    "K09": "nobody waits for the daily run: a request gets another identity at once",
    "L01": MISCONFIGURED,
    "K18": MISCONFIGURED,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One case that has a test: what is sent, and what has to come of it."""

    case_id: str
    text: str


def case(case_id: str, text: str) -> pytest.MarkDecorator:
    """Mark the test of a case, whose name begins with `test_` and the id.

    Args:
        case_id: such as "A01".
        text: one line: what is sent or happens, a colon, and what is expected.
    """
    if not CASE_ID.fullmatch(case_id) or ": " not in text:
        raise ValueError(f"{case_id}: not an id, or no colon in {text!r}")
    return pytest.mark.case(case_id, text)


def id_of_test(name: str) -> str | None:
    """Return the id of the case that a test or a node id is about, if any."""
    match = re.search(r"\btest_([A-M][0-9]{2})_", name)
    return match[1] if match else None


def cases() -> dict[str, Case]:
    """Return the cases that have a test in this folder, by id.

    Raises:
        ValueError: a test's name and its mark do not agree, or a case has two tests.
    """
    found: dict[str, Case] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        module = importlib.import_module(f"tests.cases.{path.stem}")
        for each in _marked(vars(module).values()):
            if each.case_id in found:
                raise ValueError(f"{each.case_id} has two tests")
            found[each.case_id] = each
    return found


def _marked(values: Iterable[object]) -> Iterable[Case]:
    for value in values:
        if isinstance(value, type) and value.__name__.startswith("Test"):
            yield from _marked(vars(value).values())
        elif callable(value) and id_of_test(f"{getattr(value, '__name__', '')}"):
            yield _case_of(value)


def _case_of(test: Callable[..., object]) -> Case:
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "case"]
    if len(marks) != 1 or marks[0].args[0] != id_of_test(test.__name__):
        raise ValueError(f"{test.__name__} is not marked as the case of its name")
    return Case(*marks[0].args)

"""What is read from the payload of a token before its signature can be verified.

It only says whether asking Entra for keys is worthwhile. But a wrong date would sign somebody out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from shared.entra import unverified
from tests.fuzz import odd
from tests.fuzz.claims import GUID, V1, V2
from tests.fuzz.configured import NOW
from tests.fuzz.reading import UnreadableError, json_object

if TYPE_CHECKING:
    from random import Random

NAMES = ("iat", "tid", "oid")


class HintTarget:
    """The hints of a payload that Entra could have written are those of its claims."""

    name = "hints"

    def make(self, chance: Random) -> bytes:
        """Return a payload."""
        claims: dict[str, Any] = dict(chance.choice((V1, V2)))
        kind = chance.randrange(5)
        if kind == 0:  # A name that appears elsewhere as well.
            name = chance.choice(NAMES)
            claims = {"a": {name: chance.choice((claims[name], NOW))}, **claims}
        elif kind == 1:
            claims["name"] = chance.choice(('"iat":1,', "iat", '{"tid":"', 'x","iat":"1'))
        elif kind == 2:
            claims = odd.spoilt_object(chance, claims)
        written = json.dumps(claims) if kind < 3 else odd.spelled(chance, claims)
        raw = written.encode("utf-8", "surrogatepass")
        return odd.spoilt_bytes(chance, raw) if chance.random() < 0.1 else raw

    def judge(self, value: bytes) -> str | None:
        """Compare with the claims."""
        issued_at, person = unverified.issued_at(value), unverified.person(value)
        try:
            claims = json_object(value)
        except UnreadableError:
            return None
        iat, *ids = (claims.get(name) for name in NAMES)
        certain = all(value.count(b'"%b"' % name.encode()) == 1 for name in NAMES)
        if type(iat) is int and issued_at not in {None, iat}:
            return "another date"
        if all(isinstance(each, str) for each in ids) and person not in {None, tuple(ids)}:
            return "another person"
        proper = (
            type(iat) is int
            and 0 < iat < 10**12
            and all(isinstance(each, str) and GUID.fullmatch(each) for each in ids)
        )
        found = issued_at is not None and person is not None
        return "a hint is not found" if certain and proper and not found else None

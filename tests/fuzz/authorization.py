"""The `Authorization` header: RFC 9110 section 11.4, RFC 6750 section 2.1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared.errors import InvalidRequestError, MissingTokenError
from shared.requests import bearer_token
from tests.fuzz import odd
from tests.fuzz.target import refusing

if TYPE_CHECKING:
    from random import Random

GOOD = ("Bearer aaa.bbb.ccc", "bearer aaa.bbb.ccc", "BEARER    aaa.bbb.ccc", "Bearer a")
OTHERS = (
    *("Basic YTpi", "DPoP a.b.c", "Negotiate", 'Digest username="a", realm="b"', "Bearer"),
    *("Bearer a.b.c, Bearer d.e.f", "Basic YTpi, Bearer a.b.c", "", " ", "a.b.c", "Bearer "),
)
# Whether what follows the scheme is a token, another check says. Here it is anything but a list.
ONE_TOKEN = re.compile(r"bearer +([^ ,]([^,]*[^ ,])?)", re.IGNORECASE | re.ASCII)
NO_TOKEN = re.compile(r"(bearer *)?", re.IGNORECASE | re.ASCII)
OTHER_SCHEME = re.compile(r"[a-z][a-z0-9-]*( .*)?", re.IGNORECASE | re.ASCII | re.DOTALL)


class AuthorizationTarget:
    """Exactly one bearer token comes out, or an error that fits."""

    name = "header"

    def make(self, chance: Random) -> str:
        """Return the value of a header."""
        good = chance.choice(GOOD + OTHERS)
        kind = chance.randrange(10)
        if kind == 0:
            return good
        if kind == 1:
            return good + chance.choice((", ", ",", " ", ";")) + chance.choice(GOOD + OTHERS)
        if kind == 2:
            return odd.text(chance)
        return odd.spoilt_text(chance, good)

    def judge(self, value: str) -> str | None:
        """Compare with the grammar."""
        read = ""
        with refusing(MissingTokenError, InvalidRequestError) as refusals:
            read = bearer_token({"authorization": value})
        bare = value.strip(" ")
        one = ONE_TOKEN.fullmatch(bare)
        if one:
            return None if read == one[1] else "the token is not the one in the header"
        if not refusals:
            return "something else than one bearer token is accepted"
        absent = NO_TOKEN.fullmatch(bare) or (
            OTHER_SCHEME.fullmatch(bare) and "bearer" not in bare.lower()
        )
        if bool(absent) != isinstance(refusals[0], MissingTokenError):
            return f"a {type(refusals[0]).__name__} that does not fit"
        return None

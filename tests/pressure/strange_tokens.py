"""Tokens that a stranger can send: what costs most to refuse, for each part of a token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from local.entra.tokens import base64url
from shared.entra.compact_form import MAX_HEADER_CHARACTERS, MAX_TOKEN_CHARACTERS

if TYPE_CHECKING:
    from local.entra.tokens import TokenIssuer

NESTED = "[" * 28 + "]" * 28


def strange_tokens(issuer: TokenIssuer) -> dict[str, str]:
    """Return tokens that are refused, by what they are. Those called forged have a known key id."""
    header, payload, signature = typical_token(issuer).split(".")
    forged = f"{'AAAA' if signature[:4] != 'AAAA' else 'BBBB'}{signature[4:]}"
    kid = issuer.keys[0].kid
    rest = f".{payload}.{forged}"
    room = MAX_TOKEN_CHARACTERS - len(rest)
    filled = "A" * (MAX_TOKEN_CHARACTERS - len(header) - len(forged) - 2)
    return {
        "a.b.c": "a.b.c",
        "forged, typical": header + rest,
        "forged, payload of 24 KiB": f"{header}.{filled}.{forged}",
        "header of 24 KiB, flat": _header(kid, "0", room) + rest,
        "header of 24 KiB, nested": _header(kid, NESTED, room) + rest,
        "header at the limit, flat": _header(kid, "0", MAX_HEADER_CHARACTERS) + rest,
        "header at the limit, nested": _header(kid, NESTED, MAX_HEADER_CHARACTERS) + rest,
        "signature of 22 KiB": f"{header}.{payload}.{'A' * 22_000}",
        "24,000 dots": "." * 24_000,
        "24,000 letters": "A" * 24_000,
        "12,000 letters beyond ASCII": "é" * 12_000,
    }


def typical_token(issuer: TokenIssuer) -> str:
    """Return a good token of some 1,500 characters."""
    return issuer.issue_access_token()


def large_token(issuer: TokenIssuer) -> str:
    """Return a good token of 20 KiB, with the names of 200 groups."""
    groups = [f"CONTOSO\\{number:060}" for number in range(200)]
    return issuer.issue_access_token(claims={"groups": groups})


def _header(kid: str, item: str, characters: int) -> str:
    """Return a header of at most so many characters with a list of the item, and a known key."""
    items = [item]
    members = {"alg": "RS256", "typ": "JWT", "kid": kid}
    start, end = json.dumps(members)[:-1] + ',"x":[', "]}"
    bytes_left = characters * 3 // 4 - len(start) - len(end)
    items *= (bytes_left + 1) // (len(item) + 1)
    return base64url(f"{start}{','.join(items)}{end}".encode())

"""Makes odd values, and good values odd: what the grammars of the targets have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.fuzz.target import MARKER

if TYPE_CHECKING:
    from random import Random

CHARACTERS = "aA0.-_~+/= ,;:\"'\\{}[]<>%&?#@!*()\t\r\n\0\x7f\x1f\x0b\xa0é中\u200b\ufeff\u202eİſK😀"
TEXTS = (
    *("", " ", "null", "true", "0", "-1", "1e9", "NaN", "*", "a" * 300, MARKER, "é", "😀"),
    *("\x00", "a b", "a\tb", "a\nb", "a\r\nb", "a,b", "%00", "${x}", "../..", "{tenantid}"),
)
# What is no value in JSON, or one that a strict reader refuses; two are values.
NOT_JSON = (
    *("NaN", "-Infinity", "1e999", "01", "+1", ".5", "1.", "True", "undefined", "/**/1", "1,"),
    *("'a'", '"\\ud800"', '"\\u0000"', '"\t"', '"\\x41"', '"\\ud83d\\ude00"', "1e5"),
)
NUMBERS = (
    *(0, -0.0, 1, -1, 1.0, 1.5, 60, 60.0, 60.5, 59, 1440, 1441, 1e3, 1e308, 5e-324),
    *(2**31, 2**53, 2**63, 2**64, 10**20, -(2**63), 1_900_000_000, 1_900_000_000.0),
)


def text(chance: Random) -> str:
    """Return a short text, seldom a long one."""
    if chance.random() < 0.5:
        return chance.choice(TEXTS)
    return "".join(chance.choices(CHARACTERS, k=chance.randrange(1, 12)))


def value(chance: Random, depth: int = 3) -> Any:
    """Return a JSON value."""
    kind = chance.randrange(8)
    if kind < 2:
        return text(chance)
    if kind == 2:
        return chance.choice(NUMBERS)
    if kind == 3:
        return chance.choice((True, False, None))
    if depth == 0 or kind < 6:
        return chance.choice(([], {}, None, "", 0))
    if kind == 6:
        return [value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {text(chance): value(chance, depth - 1) for _ in range(chance.randrange(4))}


def spoilt_text(chance: Random, good: str) -> str:
    """Return a text with a few changes."""
    characters = list(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(characters) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            characters[at:at] = chance.choice(CHARACTERS)
        elif kind == 1:
            del characters[at : at + 1]
        elif kind == 2:
            characters[at : at + 1] = chance.choice(CHARACTERS)
        elif kind == 3:
            characters[at : at + 1] = [each.swapcase() for each in characters[at : at + 1]]
        elif kind == 4:
            characters[at:at] = characters[at : at + chance.randrange(1, 9)]
        else:
            characters[at:at] = chance.choice(TEXTS)
    return "".join(characters)


def spoilt_bytes(chance: Random, good: bytes) -> bytes:
    """Return bytes with a change that need not be text."""
    at = chance.randrange(len(good) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        return good[:at] + chance.randbytes(chance.randrange(1, 4)) + good[at:]
    if kind == 1:
        return good[:at]
    if kind == 2:
        return good[:at] + good[at + 1 :]
    if kind == 3:
        return chance.choice((b"\xef\xbb\xbf", b" ", b"\x00", b"\xff\xfe", b"\n")) + good
    return good + chance.choice((b" ", b"\n", b"\x00", b"{}", b"}", b"\xc0\x80", good))


def like(chance: Random, good: Any) -> Any:
    """Return a value that resembles another: of another type, in a list, in other letters."""
    kind = chance.randrange(9)
    if isinstance(good, str) and kind < 6:
        return chance.choice(
            (good.upper(), good.title(), f" {good}", f"{good}/", f"{good}\n", good[:-1], [good])
        )
    if isinstance(good, int | float) and kind < 6:
        return chance.choice((str(good), float(good), bool(good), -good, [good], good + 0.5))
    if isinstance(good, list) and kind < 6:
        return chance.choice((good * 2, [], [good], good[:1], good[0] if good else None))
    return value(chance)


def spoilt_object(chance: Random, good: dict[str, Any]) -> dict[str, Any]:
    """Return an object with one member changed, gone, added or named in other letters."""
    changed = dict(good)
    name = chance.choice(list(good)) if good else "a"
    kind = chance.randrange(8)
    if kind == 0:
        changed.pop(name, None)
    elif kind == 1:
        changed[chance.choice((name.upper(), name.title(), f"{name} ", text(chance)))] = (
            chance.choice((changed.get(name), value(chance)))
        )
    elif kind == 2:
        changed[chance.choice((name.upper(), name.title()))] = changed.pop(name, None)
    elif kind == 3 and isinstance(good.get(name), str):
        changed[name] = spoilt_text(chance, good[name])
    else:
        changed[name] = like(chance, good.get(name))
    return changed


def spelled(chance: Random, members: dict[str, Any]) -> str:
    """Write an object as JSON, sometimes in a way that a strict reader refuses."""
    kind = chance.randrange(12)
    if kind == 0:
        written = json.dumps(members, ensure_ascii=False)
    elif kind == 1:
        written = json.dumps(members, indent=chance.randrange(3))
    else:
        written = json.dumps(members, separators=(",", ":"))
    if kind == 2 and members:  # A name twice.
        name = chance.choice(list(members))
        again = json.dumps(chance.choice((members[name], value(chance))))
        twice = f"{json.dumps(name)}:{again}"
        return chance.choice((f"{written[:-1]},{twice}}}", f"{{{twice},{written[1:]}"))
    if kind == 3 and members:  # A name twice, but spelled differently.
        name = chance.choice(list(members)) or "a"
        hidden = f'"\\u{ord(name[0]):04x}{json.dumps(name[1:])[1:]}:null'
        return f"{written[:-1]},{hidden}}}"
    if kind == 4:
        deep = chance.choice((2, 29, 30, 31, 32, 33, 300))
        return f'{written[:-1]},"deep":{"[" * deep}{"]" * deep}}}'
    if kind == 5:
        odd = chance.choice(NOT_JSON)
        return f'{written[:-1]},"odd":{odd}}}'
    if kind == 6:
        return spoilt_text(chance, written)
    return written

"""Slow and strict readers of JSON and base64url, written from the RFCs and from nothing else.

They judge what the service accepts, so they share no code with it, nor the standard library's
parsers that the service uses.
"""

from __future__ import annotations

import math
import re
from typing import Any

DEEPEST = 32
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
# RFC 8259, sections 2 to 7.
_TOKEN = re.compile(
    r"[ \t\n\r]*(?:"
    r"(?P<mark>[{}\[\]:,])"
    r'|"(?P<text>(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"'
    r"|(?P<whole>-?(?:0|[1-9][0-9]*))(?P<rest>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>true|false|null))"
)
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}
_LONGEST_INTEGER = 4300  # digits: Python reads no longer one.


class UnreadableError(Exception):
    """It is not what the RFC describes."""


def base64url(text: str) -> bytes:
    """Return the bytes behind canonical base64url without padding: RFC 4648, sections 3.5 and 5.

    Raises:
        UnreadableError: it is not that.
    """
    if not text or len(text) % 4 == 1 or not set(text) <= _VALUES.keys():
        raise UnreadableError
    read = bytearray()
    for at in range(0, len(text), 4):
        group = text[at : at + 4]
        number = 0
        for digit in group:
            number = number * 64 + _VALUES[digit]
        left_over = len(group) * 6 % 8
        if number % (1 << left_over):  # These bits belong to no byte.
            raise UnreadableError
        read += (number >> left_over).to_bytes(len(group) * 6 // 8, "big")
    return bytes(read)


def json_object(raw: bytes) -> dict[str, Any]:
    """Return the one object that the bytes are, from the first to the last.

    Raises:
        UnreadableError: they are not JSON, or JSON that two readers may understand differently.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableError from None
    if text[:1] != "{":
        raise UnreadableError
    value, end = _Reader(text).value(*_token(text, 0), depth=1)
    if end != len(text):
        raise UnreadableError
    return value  # type: ignore[no-any-return] # it begins with a brace


def _token(text: str, at: int) -> tuple[re.Match[str], int]:
    match = _TOKEN.match(text, at)
    if match is None:
        raise UnreadableError
    return match, match.end()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, token: re.Match[str], at: int, *, depth: int) -> tuple[Any, int]:
        mark = token["mark"]
        if mark == "{":
            return self._members(at, depth)
        if mark == "[":
            return self._items(at, depth)
        if mark:
            raise UnreadableError
        if token["word"]:
            return _WORDS[token["word"]], at
        if token["whole"]:
            return _number(token["whole"], token["rest"]), at
        return _text(token["text"]), at

    def _members(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        token, at = self._first(at, depth)
        if token["mark"] == "}":
            return members, at
        while True:
            if token["text"] is None:
                raise UnreadableError
            name = _text(token["text"])
            if name in members:
                raise UnreadableError
            at = self._mark(at, ":")[1]
            members[name], at = self.value(*_token(self._text, at), depth=depth + 1)
            mark, at = self._mark(at, ",}")
            if mark == "}":
                return members, at
            token, at = _token(self._text, at)

    def _items(self, at: int, depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        token, at = self._first(at, depth)
        if token["mark"] == "]":
            return items, at
        while True:
            item, at = self.value(token, at, depth=depth + 1)
            items.append(item)
            mark, at = self._mark(at, ",]")
            if mark == "]":
                return items, at
            token, at = _token(self._text, at)

    def _first(self, at: int, depth: int) -> tuple[re.Match[str], int]:
        if depth > DEEPEST:
            raise UnreadableError
        return _token(self._text, at)

    def _mark(self, at: int, allowed: str) -> tuple[str, int]:
        token, at = _token(self._text, at)
        if not token["mark"] or token["mark"] not in allowed:
            raise UnreadableError
        return token["mark"], at


def _number(whole: str, rest: str) -> float:
    if not rest:
        if len(whole.lstrip("-")) > _LONGEST_INTEGER:
            raise UnreadableError
        return int(whole)
    number = float(whole + rest)
    if math.isinf(number):
        raise UnreadableError
    return number


def _text(escaped: str) -> str:
    text = escaped
    if "\\" in escaped:
        text = _ESCAPE.sub(
            lambda match: chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[2]),
            escaped,
        )
        # Two halves of a pair make one character; a half alone makes none.
        text = text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")
    if _NO_CHARACTER.search(text):
        raise UnreadableError
    return text

"""How Core Tools read .funcignore for `func azure functionapp publish`.

It only looks like gitignore. The original is
https://github.com/Azure/azure-functions-core-tools/blob/3ee97a6/src/Cli/func/Common/GitIgnoreParser.cs
"""

from __future__ import annotations

import re


class FuncIgnore:
    """The lines of a .funcignore."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.split("\n")]
        lines = [line for line in lines if line and not line.startswith("#")]
        self._ignored = _pattern([line for line in lines if not line.startswith("!")])
        self._kept = _pattern([line[1:] for line in lines if line.startswith("!")])

    def ignores(self, path: str) -> bool:
        """Return whether a file is left out; its path is relative to the root, with slashes."""
        return bool(self._ignored.match(path)) and not self._kept.match(path)


def _pattern(lines: list[str]) -> re.Pattern[str]:
    # A name ends where a word ends: at a slash, but also at a dot or a hyphen.
    names = "|".join(_name(line.removeprefix("/")) for line in lines)
    return re.compile(rf"(?:{names})\b" if lines else r"(?!)", re.ASCII)


def _name(line: str) -> str:
    parts = re.split(r"(\*\*|\*)", line)
    return "".join({"**": ".+", "*": "[^/]+"}.get(part) or re.escape(part) for part in parts)

"""What ASP.NET does with a request before a function sees it: paths, routes, repeated values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

GUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
# The route constraints that depend only on the text of a segment.
CONSTRAINTS = {
    None: "[^/]+",
    "alpha": "[a-z]+",
    "bool": "true|false",
    "guid": rf"[0-9a-f]{{32}}|{GUID}|\{{{GUID}\}}|\({GUID}\)",
    "int": "[-+]?[0-9]+",
    "long": "[-+]?[0-9]+",
}
PARAMETER = re.compile(r"\{(?P<star>\*{0,2})(?P<name>\w+)(?::(?P<constraint>\w+))?(?P<end>\??)\}")


@dataclass(frozen=True, slots=True)
class Route:
    """A route template, such as `api/users/{id:guid}/{*rest}`."""

    template: str
    pattern: re.Pattern[str]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, template: str) -> Route:
        """Return the route for a template.

        Raises:
            ValueError: the template is wrong, or uses something that is not supported here.
        """
        pattern = ""
        names = []
        for segment in template.split("/"):
            parameter = PARAMETER.fullmatch(segment)
            if parameter and parameter["constraint"] in CONSTRAINTS:
                names.append(parameter["name"])
                value = f"/({CONSTRAINTS[parameter['constraint']]})"
                if parameter["star"]:
                    value = "(?:/(.*))?"
                pattern += f"(?:{value})?" if parameter["end"] else value
            elif segment and not re.search(r"[{}*?]", segment):
                pattern += "/" + re.escape(segment)
            else:
                raise ValueError(f"{segment!r} in the route {template!r} is not supported here")
        return cls(template, re.compile(pattern + "/?", re.IGNORECASE | re.DOTALL), tuple(names))

    def match(self, path: str) -> dict[str, str] | None:
        """Return the route parameters in a decoded path, or None if the route does not match."""
        found = self.pattern.fullmatch(path)
        if found is None:
            return None
        return {
            name: value for name, value in zip(self.names, found.groups(), strict=True) if value
        }


def decoded_path(raw: str) -> str:
    """Return a path as Kestrel decodes it: `%2F` and invalid UTF-8 stay as they are.

    Raises:
        ValueError: Kestrel refuses it with 400.
    """

    def decode(encoded: re.Match[str]) -> str:
        try:
            return bytes.fromhex(encoded[0].replace("%", "")).decode()
        except UnicodeDecodeError:
            return encoded[0]

    path = re.sub(r"(?:%(?!2[fF])[0-9A-Fa-f]{2})+", decode, raw)
    if not raw.isascii() or "\0" in path:
        raise ValueError("the path has raw bytes or a null character")
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return values by name, ignoring case, with repeated ones joined by a comma as in ASP.NET."""
    spelling: dict[str, str] = {}
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(spelling.setdefault(name.lower(), name), []).append(value)
    return {name: ",".join(filter(None, each)) for name, each in values.items()}

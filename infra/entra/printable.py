"""Makes text that others have written harmless to show in a terminal."""

from __future__ import annotations


def printable(text: object, *, keep: str = "") -> str:
    """Return a text in which each character that does not print is escaped.

    Names, and what services say, may hold escape sequences, which a terminal obeys, line breaks,
    after which a line of their own seems to be ours, or characters that reverse the direction.

    Args:
        text: what is to be shown.
        keep: characters that stay, such as the line breaks of a layout.
    """
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in str(text)
    )

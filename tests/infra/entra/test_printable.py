"""What others have written is shown, and does nothing else."""

from __future__ import annotations

import pytest

from infra.entra.assignments import Assignment, to_unassign
from infra.entra.directory import Directory
from infra.entra.printable import printable
from infra.entra.rest import Call, RefusedError
from infra.entra.session import say, show
from infra.entra.setup import Preview, settings
from tests.infra.entra.test_setup import TENANT, wanted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë Øst, 山田 & Söhne", "Zoë Øst, 山田 & Söhne"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2K", "\\x9b2K"),
        ("one\r\nok", "one\\r\\nok"),
        ("gro\u202eup\u2028", "gro\\u202eup\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """Names in any script stay; what does not print is escaped."""
    assert shown == printable(text)


def test_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Both outputs escape; only results have several lines."""
    say("a\nb\x1b[2K")
    show("a\nb\x1b[2K")
    assert ("a\nb\\x1b[2K\n", "a\\nb\\x1b[2K\n") == capsys.readouterr()


def test_refusal() -> None:
    """So does what a service says about a refusal."""
    refusal = RefusedError(Call("read", "GET", "/x"), 403, "De\nnied", "\x1b[2K")
    assert "GET /x: 403 De\\nnied: \\x1b[2K" == str(refusal)


def test_layout() -> None:
    """A name adds no line to the settings, nor to a dry run."""
    directory = Directory(TENANT, application={"appId": "b", "identifierUris": ["a\nB=c"]})
    assert "ENTRA_APPLICATION_ID_URI=a\\nB=c\n" in settings(directory, wanted(), ("entra",))
    shown: list[str] = []
    Preview(wanted(), shown.append).send(Call("let a\nb ask", "PATCH", "/x", {}))
    assert "# let a\\nb ask" == shown[0].splitlines()[0]


def test_path() -> None:
    """An id stays a part of the path."""
    present = Assignment("user", "../x?y", TENANT, frozenset({"a"}))
    call = to_unassign([present], present.object_id, frozenset())
    assert call
    assert "/access/entra/assignments/..%2Fx%3Fy" == call.path

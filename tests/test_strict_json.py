"""Strict JSON: text with more than one meaning is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.strict_json import MAX_DEPTH, loads_object


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'"text"', id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b' {"a":1}', id="leading space"),
        pytest.param(b'{"a":1}\n', id="trailing newline"),
        pytest.param(b'{"a":1}{"b":2}', id="two objects"),
        pytest.param(b'{"a":1', id="truncated"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param('{"a":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"a":1}'.encode("utf-32-le"), id="UTF-32"),
        pytest.param(b'{"a":"\xff"}', id="not UTF-8"),
        pytest.param(b'{"a":1,"a":1}', id="a name twice"),
        pytest.param(b'{"b":{"a":1,"a":2}}', id="a name twice inside"),
        pytest.param(rb'{"a":1,"\u0061":2}', id="a name twice, escaped"),
        pytest.param(b'{"a":NaN}', id="NaN"),
        pytest.param(b'{"a":-Infinity}', id="Infinity"),
        pytest.param(b'{"a":1e999}', id="1e999"),
        pytest.param(b'{"a":' + b"9" * 4301 + b"}", id="4301 digits"),
        pytest.param(rb'{"a":"\u0000"}', id="NUL"),
        pytest.param(rb'{"\u0000":1}', id="NUL in a name"),
        pytest.param(rb'{"a":["\ud800"]}', id="half a surrogate pair"),
        pytest.param(b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", id="40 deep"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100000 deep"),
        pytest.param(b"{'a':1}", id="single quotes"),
        pytest.param(b"{}garbage}", id="garbage between"),
    ],
)
def test_refuses(raw: bytes) -> None:
    """Anything that two readers could understand differently is refused, and not quoted."""
    with pytest.raises(ValueError, match=r"^(not|nested|a) ") as caught:
        loads_object(raw)

    assert "garbage" not in str(caught.value)


def test_accepts_unusual_objects() -> None:
    """Emoji, escapes, spacing, flat arrays and nesting up to the bound are all one meaning."""
    raw = (
        b'{ "name" : "Zo\xc3\xab \xf0\x9f\x98\x80", "escaped": "\\ud83d\\ude00 \\/", '
        b'"flat": [' + b",".join([b"[]"] * 70) + b'], "n": [0, -1, 2.5, 1E3, null, true] }'
    )

    assert "Zoë 😀" == loads_object(raw)["name"]
    assert "😀 /" == loads_object(raw)["escaped"]
    deep = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert loads_object(deep)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_reads_what_json_writes(value: dict[str, object]) -> None:
    """Well-formed objects are read in full."""
    assert value == loads_object(json.dumps(value).encode())


@given(st.binary())
def test_raises_nothing_else(raw: bytes) -> None:
    """Whatever comes, it is an object or a ValueError."""
    try:
        value = loads_object(b"{" + raw + b"}")
    except ValueError:
        return
    assert isinstance(value, dict)

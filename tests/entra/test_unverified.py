from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.entra import unverified
from shared.identifiers import Person

TENANT_ID = "7e4a4700-0000-4000-8000-00000000000a"
OBJECT_ID = "0b5e55ed-0000-4000-8000-000000000001"


def read(payload: bytes) -> tuple[int | None, Person | None]:
    """Return both hints."""
    return unverified.issued_at(payload), unverified.person(payload)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\r\n", "\t:\n")])
def test_finds(separators: tuple[str, str]) -> None:
    """What is there once is found, however the JSON is laid out."""
    claims = {"aud": "a", "iat": 1_800_000_000, "oid": OBJECT_ID, "scp": "x", "tid": TENANT_ID}

    payload = json.dumps(claims, separators=separators).encode()

    assert (1_800_000_000, Person(TENANT_ID, OBJECT_ID)) == read(payload)


@pytest.mark.parametrize(
    "iat",
    [
        pytest.param("0", id="zero"),
        pytest.param("-1800000000", id="negative"),
        pytest.param("1800000000.0", id="fraction"),
        pytest.param("18e8", id="exponent"),
        pytest.param("01800000000", id="leading zero"),
        pytest.param('"1800000000"', id="text"),
        pytest.param("null", id="null"),
        pytest.param("true", id="true"),
        pytest.param("[1800000000]", id="list"),
        pytest.param("9" * 13, id="thirteen digits"),
        pytest.param("9" * 20_000, id="very many digits"),
        pytest.param('1800000000,"iat":1', id="twice"),
        pytest.param('1800000000,"a":{"iat":1}', id="once more inside"),
        pytest.param('1800000000,"a":"iat"', id="as a text"),
        pytest.param(f"{' ' * 20_000}1800000000", id="very many spaces"),
        pytest.param("١٨٠٠٠٠٠٠٠٠", id="digits of another script"),
        pytest.param("1800000000", id="the end is missing"),
    ],
)
def test_cannot_tell_when(iat: str) -> None:
    """A time in another form than Entra's, or more than one, counts as not there."""
    end = "" if iat == "1800000000" else "}"

    assert unverified.issued_at(f'{{"iat":{iat}{end}'.encode()) is None


@pytest.mark.parametrize(
    "payload",
    [
        {"tid": TENANT_ID},
        {"oid": OBJECT_ID},
        {"tid": TENANT_ID, "oid": OBJECT_ID.upper()},
        {"tid": TENANT_ID, "oid": f"{OBJECT_ID}0"},
        {"tid": TENANT_ID, "oid": [OBJECT_ID]},
        {"tid": TENANT_ID, "oid": OBJECT_ID, "act": {"oid": OBJECT_ID}},
    ],
)
def test_cannot_tell_who(payload: dict[str, Any]) -> None:
    """A person takes one tenant id and one object id."""
    assert unverified.person(json.dumps(payload).encode()) is None


@given(st.dictionaries(st.text(), st.text()), st.integers(1, 10**12 - 1))
def test_texts_do_not_mislead(others: dict[str, str], iat: int) -> None:
    """Whatever the other claims of a real token say, another time than its own is never found."""
    claims = {"note": '"iat":1,', **others, "iat": iat}

    assert unverified.issued_at(json.dumps(claims).encode()) in {iat, None}
    ascii_only = json.dumps(claims, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert unverified.issued_at(ascii_only) in {iat, None}


@given(st.binary(max_size=200))
def test_never_raises(payload: bytes) -> None:
    """Any bytes may come."""
    read(payload)
    read(b'{"iat":' + payload)
    read(b'{"tid":"' + payload + b'","oid":"' + payload)


@pytest.mark.parametrize(
    "piece", [b'"iat"', b'"iat":', b'"iat":1', b'"tid":"', b" ", b'"oid" : "0']
)
def test_linear(piece: bytes) -> None:
    """A payload as long as a token may be takes no time that matters."""
    payload = (piece * 18_432)[: 18 * 1024]
    spent = []
    for _ in range(5):
        began = time.process_time()
        read(payload)
        spent.append(time.process_time() - began)

    assert 0.002 > min(spent)

from __future__ import annotations

import gzip
import io
import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from azure.data.tables import EdmType, EntityProperty, TableEntity

from shared.mappings.backup_file import BackupFileError, BackupWriter, Row, contents_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

TAKEN_ON = datetime(2026, 11, 25, 1, 30, tzinfo=UTC)
KEYS = {"PartitionKey": "p", "RowKey": "r"}
# A column of each type that Table Storage has, and the ones that are easily mistaken.
VALUES = {
    "text": "it's ü \u2028\n",
    "looksLikeADate": "2026-11-25T01:30:00+00:00",
    "empty": "",
    "number": 1,
    "negative": -(2**31),
    "yes": True,
    "half": 0.5,
    "whole": 1.0,
    "infinite": float("-inf"),
    "long": EntityProperty(1, EdmType.INT64),
    "longest": EntityProperty(2**63 - 1, EdmType.INT64),
    "date": datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC),
    "guid": uuid.UUID("0fa5c3d7-b218-4e69-9c40-7d1e8b6f52a3"),
    "bytes": b"\x00\xff",
}


def backup(**tables: list[dict[str, Any]]) -> bytes:
    """Return a whole backup of some tables."""
    writer = BackupWriter()
    data = writer.begin(tables, taken_on=TAKEN_ON)
    for table, entities in tables.items():
        data += writer.add(table, [TableEntity(entity) for entity in entities])
    data += writer.end()
    assert writer.bytes == len(data)
    return data


def rewritten(data: bytes, change: Callable[[list[str]], list[str]]) -> io.BytesIO:
    """Return a backup whose lines were changed."""
    lines = change(gzip.decompress(data).decode().splitlines(keepends=True))
    return io.BytesIO(gzip.compress("".join(lines).encode()))


GOOD = backup(a=[KEYS, {**KEYS, "RowKey": "s"}], b=[KEYS])


class TestRoundTrip:
    """What is written is read."""

    @pytest.mark.parametrize("name", VALUES)
    def test_types(self, name: str) -> None:
        """A value comes back as it was, and as the same type."""
        (row,) = rows_of(io.BytesIO(backup(a=[{**KEYS, name: VALUES[name]}])))

        assert {**KEYS, name: VALUES[name]} == row.entity
        assert type(VALUES[name]) is type(row.entity[name])

    def test_tables(self) -> None:
        """Rows come in their order, each with its table; the contents say how many there are."""
        rows = list(rows_of(io.BytesIO(GOOD)))

        assert [("a", "r"), ("a", "s"), ("b", "r")] == [
            (row.table, row.entity["RowKey"]) for row in rows
        ]
        contents = contents_of(io.BytesIO(GOOD))
        assert (TAKEN_ON, {"a": 2, "b": 1}) == (contents.taken_on, contents.rows)

    def test_empty(self) -> None:
        """A backup of empty tables is a backup."""
        data = io.BytesIO(backup(a=[], b=[]))

        assert [] == list(rows_of(data))
        assert {"a": 0, "b": 0} == contents_of(data).rows

    def test_readable_without_us(self) -> None:
        """Each line is a JSON object, and says the type that JSON does not have."""
        date = datetime(2026, 11, 25, 12, tzinfo=timezone(timedelta(hours=1)))
        data = backup(a=[{**KEYS, "createdOn": date, "generation": 2}])

        first, row, last = map(json.loads, gzip.decompress(data).splitlines())

        assert {"format", "version", "takenOn", "tables"} == first.keys()
        assert {"rows": {"a": 1}} == last
        assert {
            "table": "a",
            "writtenOn": None,
            "entity": {
                **KEYS,
                "createdOn": "2026-11-25T12:00:00+01:00",
                "createdOn@odata.type": "Edm.DateTime",
                "generation": 2,
            },
        } == row


class TestRefuses:
    """No row is handed out of a file that is not whole and ours."""

    @pytest.mark.parametrize(
        "length", [0, 1, 10, len(GOOD) // 2, len(GOOD) - 8, len(GOOD) - 1], ids=str
    )
    def test_cut(self, length: int) -> None:
        """A file that was cut anywhere is refused before its first row."""
        with pytest.raises(BackupFileError):
            next(rows_of(io.BytesIO(GOOD[:length])))

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            pytest.param(lambda lines: lines[:-1], "cut short", id="without the last line"),
            pytest.param(lambda lines: lines[:1] + lines[2:], "it says", id="a row is missing"),
            pytest.param(lambda lines: [*lines[:2], *lines[1:]], "it says", id="a row twice"),
            pytest.param(lambda lines: lines[1:], "not a backup", id="without the first line"),
            pytest.param(lambda lines: [], "not a backup", id="nothing"),
            pytest.param(lambda lines: ["[1]\n"], "not a backup", id="a list"),
            pytest.param(
                lambda lines: ['{"PartitionKey": "p"}\n'], "not a backup", id="another format"
            ),
            pytest.param(lambda lines: lines * 2, "after the last", id="two in one"),
            pytest.param(
                lambda lines: [lines[0].replace('"version":1', '"version":2'), *lines[1:]],
                "version 2",
                id="a later version",
            ),
            pytest.param(
                lambda lines: [lines[0].replace("+00:00", ""), *lines[1:]],
                "first line",
                id="no zone",
            ),
            pytest.param(
                lambda lines: [lines[0], lines[1].replace('"a"', '"c"'), *lines[2:]],
                "line 2",
                id="an unknown table",
            ),
            pytest.param(
                lambda lines: [lines[0], '{"table": "a"}\n', *lines[2:]], "line 2", id="no entity"
            ),
            pytest.param(lambda lines: [lines[0], "{\n", *lines[2:]], "not JSON", id="not JSON"),
        ],
    )
    def test_changed(self, change: Callable[[list[str]], list[str]], why: str) -> None:
        """A file whose lines were changed is refused, and the error says why."""
        with pytest.raises(BackupFileError, match=why):
            next(rows_of(rewritten(GOOD, change)))

    @pytest.mark.parametrize("data", [b"PK\x03\x04", b"{}\n", GOOD + b"x", GOOD + GOOD])
    def test_foreign(self, data: bytes) -> None:
        """A file of another kind, or one with more behind it, is refused."""
        with pytest.raises(BackupFileError):
            contents_of(io.BytesIO(data))

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            ("yesterday", "Edm.DateTime"),
            ("2026-11-25T01:30:00", "Edm.DateTime"),
            (7, "Edm.DateTime"),
            ("x", "Edm.Int64"),
            ("?", "Edm.Binary"),
            ("x", "Edm.Guid"),
            ("x", "Edm.Double"),
            ("x", "Edm.Decimal"),
        ],
    )
    def test_values(self, value: object, kind: str) -> None:
        """A value that is not of its type is refused."""
        row = {"table": "a", "writtenOn": None, "entity": {"c": value, "c@odata.type": kind}}

        with pytest.raises(BackupFileError, match="line 2"):
            list(rows_of(rewritten(GOOD, lambda ls: [ls[0], f"{json.dumps(row)}\n", *ls[2:]])))


def test_keeps_when_a_row_was_written() -> None:
    """The time of a row's last change is kept beside the row."""
    data = rewritten(
        GOOD,
        lambda ls: [ls[0], ls[1].replace("null", '"2026-11-24T10:00:00+00:00"'), *ls[2:]],
    )

    first = next(rows_of(data))

    assert Row("a", TableEntity(KEYS), datetime(2026, 11, 24, 10, tzinfo=UTC)) == first

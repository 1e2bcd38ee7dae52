"""The file that a backup is: the rows of all tables as JSON Lines, compressed by gzip.

The first line says what the file is, the last one how many rows it has of each table, so a reader
notices a file that was cut short. Each line between them is one row. Its entity is written as Table
Storage itself writes one in JSON: what JSON has no type for has its type beside it, as in
`"createdOn@odata.type": "Edm.DateTime"`. No column is interpreted, so columns that this version
does not know are kept.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import math
import uuid
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from azure.data.tables import EdmType, EntityProperty, TableEntity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FORMAT = "acs-token-broker-backup"
VERSION = 1
TYPE_SUFFIX = "@odata.type"  # Its first character cannot be part of a column's name.
GZIP = 16 + zlib.MAX_WBITS  # Makes zlib write the gzip format.


class BackupFileError(ValueError):
    """The file is not a whole backup that this version can read; the message says why."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup says about itself."""

    taken_on: datetime  # By the tables' clock, before the first row was read.
    rows: Mapping[str, int]  # By table.


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a backup."""

    table: str
    entity: TableEntity
    written_on: datetime | None  # When the row was last changed, by the table's clock.


class BackupWriter:
    """Turns rows into the bytes of a file, piece by piece, without keeping either."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.bytes = 0
        self._gzip = zlib.compressobj(wbits=GZIP)

    def begin(self, tables: Iterable[str], *, taken_on: datetime) -> bytes:
        """Return the bytes that come before the first row."""
        self.rows = dict.fromkeys(tables, 0)
        head = {"format": FORMAT, "version": VERSION, "takenOn": taken_on.isoformat()}
        return self._compressed([{**head, "tables": list(self.rows)}])

    def add(self, table: str, entities: list[TableEntity]) -> bytes:
        """Return the bytes of some rows, as far as they are compressed already."""
        self.rows[table] += len(entities)
        return self._compressed(_line_of(table, entity) for entity in entities)

    def end(self) -> bytes:
        """Return the bytes that come after the last row."""
        last = self._compressed([{"rows": self.rows}])
        rest = self._gzip.flush()
        self.bytes += len(rest)
        return last + rest

    def _compressed(self, lines: Iterable[Mapping[str, Any]]) -> bytes:
        text = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines)
        compressed = self._gzip.compress(text.encode())
        self.bytes += len(compressed)
        return compressed


def contents_of(file: BinaryIO) -> Contents:
    """Read a whole backup, and return what it says about itself.

    Raises:
        BackupFileError: it is cut short, damaged, or not a backup that this version can read.
    """
    contents = None
    for contents, _row in _lines_of(file):  # noqa: B007 - the last one counts
        pass
    assert contents is not None  # noqa: S101 - without a first line, there was an error
    return contents


def rows_of(file: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a backup, none of them unless the whole file is good.

    Args:
        file: is read twice, from its beginning.

    Raises:
        BackupFileError: as for `contents_of`.
    """
    contents_of(file)
    for _contents, row in _lines_of(file):
        if row is not None:
            yield row


def _lines_of(file: BinaryIO) -> Iterator[tuple[Contents, Row | None]]:
    """Yield each row with the contents as counted so far; the first line has no row."""
    lines = _objects_of(file)
    contents, counted = _begun(next(lines, {}))
    yield contents, None
    claimed = None
    for number, line in enumerate(lines, start=2):
        if claimed is not None:
            raise BackupFileError("there are lines after the last one")
        if "rows" in line:
            claimed = line["rows"]
            continue
        try:
            row = _row_of(line)
            counted[row.table] += 1
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise BackupFileError(f"line {number} is not a row: {exc!r}") from exc
        yield contents, row
    if claimed is None:
        raise BackupFileError("it is cut short: the last line is missing")
    if claimed != counted:
        raise BackupFileError(f"it says that it has {claimed} rows, and has {counted}")


def _objects_of(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the object in each line."""
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file) as lines:
            for line in lines:
                value = json.loads(line)
                yield value if isinstance(value, dict) else {}
    except (EOFError, OSError, zlib.error) as exc:
        raise BackupFileError(f"it cannot be decompressed: {exc}") from exc
    except ValueError as exc:
        raise BackupFileError(f"a line is not JSON: {exc}") from exc


def _begun(head: dict[str, Any]) -> tuple[Contents, dict[str, int]]:
    if head.get("format") != FORMAT:
        raise BackupFileError("it is not a backup of the mapping tables")
    if head.get("version") != VERSION:
        raise BackupFileError(f"it is of version {head.get('version')}, and not of {VERSION}")
    try:
        counted = dict.fromkeys(head["tables"], 0)
        return Contents(_date(head["takenOn"]), counted), counted
    except (ValueError, KeyError, TypeError) as exc:
        raise BackupFileError(f"its first line cannot be read: {exc!r}") from exc


def _line_of(table: str, entity: TableEntity) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in entity.items():
        members[name], kind = _as_json(value)
        if kind:
            members[f"{name}{TYPE_SUFFIX}"] = kind
    written_on = entity.metadata.get("timestamp")
    return {
        "table": table,
        "writtenOn": written_on and written_on.isoformat(),
        "entity": members,
    }


def _row_of(line: Mapping[str, Any]) -> Row:
    entity = TableEntity()
    members: Mapping[str, Any] = line["entity"]
    for name, value in members.items():
        if not name.endswith(TYPE_SUFFIX):
            entity[name] = _from_json(value, members.get(f"{name}{TYPE_SUFFIX}"))
    written_on = line["writtenOn"]
    return Row(line["table"], entity, written_on and _date(written_on))


def _as_json(value: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - what a column holds
    """Return a value as JSON, and the name of its type if JSON does not tell."""
    match value:
        case datetime():
            return value.isoformat(), EdmType.DATETIME.value
        case EntityProperty(number, kind):  # Only numbers of 64 bits come as this.
            return number, EdmType(kind).value
        case uuid.UUID():
            return str(value), EdmType.GUID.value
        case bytes():
            return base64.b64encode(value).decode(), EdmType.BINARY.value
        case float() if not math.isfinite(value):
            return str(value), EdmType.DOUBLE.value
        case _:
            return value, None


def _from_json(value: Any, kind: str | None) -> Any:  # noqa: ANN401 - what a column holds
    match kind:
        case None:
            return value
        case "Edm.DateTime":
            return _date(value)
        case "Edm.Int64":
            return EntityProperty(int(value), EdmType.INT64)
        case "Edm.Guid":
            return uuid.UUID(value)
        case "Edm.Binary":
            return _binary(value)
        case "Edm.Double":
            return float(value)
        case _:
            raise ValueError(f"there is no type {kind}")


def _date(text: str) -> datetime:
    date = datetime.fromisoformat(text)
    if date.tzinfo is None:
        raise ValueError("a date without a zone")
    return date


def _binary(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64") from exc

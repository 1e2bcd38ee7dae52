"""Reads files about people: CSV, JSON Lines, a backup, or the results of a query of the log."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from azure.data.tables import TableEntity

from infra.mappings.people import COLUMNS, BadRow, OrphanRow, Row
from shared.errors import StorageUnavailableError
from shared.identifiers import ACS_ID, GUID, Person
from shared.mappings.backup_file import contents_of, rows_of
from shared.mappings.ledger import ORPHANS
from shared.mappings.table import State, mapping_from_entity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from infra.mappings.people import AnyRow

BACKUP = ".jsonl.gz"


class FileError(ValueError):
    """The file cannot be read at all; the message says why."""


def read(path: Path) -> Iterator[AnyRow]:
    """Yield the rows of a file, in its order. Its format follows from its name.

    Raises:
        FileError: it has another format than its name says, or is cut short.
        OSError: it cannot be opened.
    """
    if path.name.endswith(BACKUP):
        return _from_backup(path)
    readers = {".csv": _from_csv, ".jsonl": _from_lines, ".json": _from_array}
    if path.suffix not in readers:
        raise FileError(f"{path} does not end in .csv, .json, .jsonl or {BACKUP}")
    return readers[path.suffix](path)


def _from_csv(path: Path) -> Iterator[AnyRow]:
    # Spreadsheets write a byte order mark.
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file, strict=True)
        missing = set(COLUMNS) - set(lines.fieldnames or ())
        if missing:
            raise FileError(f"{path} has no column {', '.join(sorted(missing))}")
        try:
            for values in lines:
                yield _row(lines.line_num, values)
        except (csv.Error, UnicodeError) as exc:
            raise FileError(f"{path}, line {lines.line_num + 1}: {exc}") from exc


def _from_lines(path: Path) -> Iterator[AnyRow]:
    with path.open(encoding="utf-8") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(number, json.loads(line))
        except ValueError as exc:  # Of JSON, or of UTF-8 in the line after.
            raise FileError(f"{path}, line {number}: {exc}") from exc


def _from_array(path: Path) -> Iterator[AnyRow]:
    """Yield the rows of an array, as `az` writes it; it is read whole."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise FileError(f"{path}: {exc}") from exc
    if not isinstance(rows, list):
        raise FileError(f"{path} is not an array")
    for number, values in enumerate(rows, start=1):
        yield _row(number, values)


def _from_backup(path: Path) -> Iterator[AnyRow]:
    """Yield what is in a backup: the rows, then the orphans; the index follows from the rows."""
    with path.open("rb") as file:
        try:
            mappings, *_ledger = contents_of(file).rows
            for number, row in enumerate(rows_of(file), start=2):  # The first line is the head.
                if row.table == mappings:
                    yield _from_entity(number, row.entity)
                elif row.entity["PartitionKey"] == ORPHANS:
                    yield _from_orphan(number, row.entity)
        except ValueError as exc:
            raise FileError(f"{path}: {exc}") from exc


class _StoredEntity(TableEntity):
    """An entity without what only a table knows about it."""

    @property
    def metadata(self) -> Any:  # noqa: ANN401 - as the SDK has it
        return {"etag": "", "timestamp": None}


def _from_entity(number: int, entity: Mapping[str, Any]) -> AnyRow:
    try:
        mapping = mapping_from_entity(_StoredEntity(entity))
        _check_person(mapping.person)
    except (StorageUnavailableError, ValueError) as exc:
        shown = {
            "tenantId": str(entity.get("PartitionKey", "")).partition("_")[0],
            "objectId": str(entity.get("RowKey", "")),
            "communicationUserId": str(entity.get("acsId", "")),
        }
        return BadRow(number, str(exc), shown)
    return Row(
        number=number,
        person=mapping.person,
        acs_id=mapping.acs_id,
        state=mapping.state,
        created_on=mapping.created_on,
        last_used_on=mapping.last_used_on,
        revoked_before=mapping.revoked_before,
        revoke_again=mapping.revoke_again,
        reason=mapping.reason,
    )


def _from_orphan(number: int, entity: Mapping[str, Any]) -> AnyRow:
    acs_id = str(entity["RowKey"])
    if not ACS_ID.fullmatch(acs_id):
        return BadRow(number, "not an ACS identity", {"communicationUserId": acs_id})
    tenant_id, object_id = entity.get("tenantId"), entity.get("objectId")
    person = Person(str(tenant_id), str(object_id)) if tenant_id and object_id else None
    return OrphanRow(number, acs_id, person, str(entity.get("reason", "")))


def _row(number: int, values: Any) -> AnyRow:  # noqa: ANN401 - what a line of the file holds
    """Return the row in an object of names and values, of a file or of the log."""
    if not isinstance(values, dict):
        return BadRow(number, "not an object")
    if "last_seen" in values:  # From infra/queries/workbook-mappings.kql.
        names = ("tenant_id", "object_id", "acs_id")
        values = {
            **dict(zip(COLUMNS, map(values.get, names), strict=True)),
            # The log may not go back to the creation.
            "createdOn": values["last_seen"],
            "lastUsedOn": values["last_seen"],
        }
    shown = {name: str(values.get(name) or "").strip() for name in COLUMNS}
    tenant_id, object_id, acs_id = shown.values()
    try:
        person = Person(tenant_id.lower(), object_id.lower())
        _check_person(person)
        state = State(values.get("state") or State.ACTIVE)
        has_identity = state in {State.ACTIVE, State.DELETING}
        if not ACS_ID.fullmatch(acs_id) and (acs_id or has_identity):
            raise ValueError("communicationUserId is not an ACS identity")  # noqa: TRY301 - one handler
        return Row(
            number=number,
            person=person,
            acs_id=acs_id,
            state=state,
            created_on=_date(values, "createdOn"),
            last_used_on=_date(values, "lastUsedOn"),
            revoked_before=_date(values, "revokedBefore"),
            reason=str(values.get("reason") or ""),
        )
    except ValueError as exc:
        return BadRow(number, str(exc), shown)


def _check_person(person: Person) -> None:
    for name, value in person._asdict().items():
        if not GUID.fullmatch(value):
            raise ValueError(f"{name} is not a GUID")


def _date(values: Mapping[str, Any], name: str) -> datetime | None:
    text = values.get(name)
    if not text:
        return None
    try:
        date = datetime.fromisoformat(str(text).strip())
    except ValueError:
        date = None
    if date is None or date.tzinfo is None:
        raise ValueError(f"{name} is not a date and time with a zone, such as 2026-01-31T09:00:00Z")
    return date

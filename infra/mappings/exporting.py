"""Writes the mappings of an environment into a file."""

from __future__ import annotations

import csv
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from infra.mappings.files import BACKUP, FileError
from infra.mappings.people import COLUMNS, MORE_COLUMNS, BadRow
from infra.mappings.report import create
from shared.mappings.attempts import pages_of
from shared.mappings.backup_file import BackupWriter
from shared.mappings.table import UnreadableRow, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from infra.mappings.report import Report
    from infra.mappings.store import Store
    from shared.mappings.table import IdentityMapping

EXPORTED = "exported"


async def export(path: Path, *, store: Store, report: Report) -> None:
    """Write the file, page by page; it appears only when it is complete.

    Args:
        path: its suffix says which format it gets.
        store: the tables.
        report: where rows go that cannot be read.

    Raises:
        FileError: the file is there already, or its suffix is not known.
        StorageUnavailableError: Table Storage failed; there is no file.
    """
    with _complete(path) as file:
        if path.name.endswith(BACKUP):
            await _everything(file.buffer, store, report)
        elif path.suffix == ".csv":
            await _people(_csv_writer(file), store, report)
        elif path.suffix == ".jsonl":
            await _people(_line_writer(file), store, report)
        else:
            raise FileError(f"{path} does not end in .csv, .jsonl or {BACKUP}")


@contextmanager
def _complete(path: Path) -> Iterator[Any]:
    """Open a file under another name, and give it its name when it is complete."""
    if path.exists():
        raise FileError(f"{path} exists already")
    partial = path.with_name(f"{path.name}.partial")
    try:
        with create(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


async def _everything(file: BinaryIO, store: Store, report: Report) -> None:
    """Write both tables as they are, as a backup has them."""
    writer = BackupWriter()
    names = [store.rows.table_name, store.entries.table_name]
    file.write(writer.begin(names, taken_on=await store.mappings.server_time()))
    # The mappings come first: an identity that moves from its row to the ledger is then in both.
    for table in (store.rows, store.entries):
        async for page in pages_of(table, ""):
            file.write(writer.add(table.table_name, page.entities))
            for _entity in page.entities:
                report.count(EXPORTED)
    file.write(writer.end())


async def _people(write: Callable[[dict[str, str]], object], store: Store, report: Report) -> None:
    """Write what the rows say about people."""
    number = 0
    async for page in pages_of(store.rows, ""):
        for row in rows_of(page):
            number += 1
            if isinstance(row, UnreadableRow):
                shown = dict(zip(COLUMNS, row.person, strict=False))
                report.refuse(BadRow(number, row.reason, shown), row.reason)
            else:
                write(_values(row))
                report.count(EXPORTED)


def _values(mapping: IdentityMapping) -> dict[str, str]:
    revoked_before = mapping.revoked_before.isoformat() if mapping.revoked_before else ""
    dates = (mapping.created_on.isoformat(), mapping.last_used_on.isoformat())
    more = (*dates, mapping.state.value, revoked_before, mapping.reason)
    named = zip((*COLUMNS, *MORE_COLUMNS), (*mapping.person, mapping.acs_id, *more), strict=True)
    return {name: value for name, value in named if value}


def _csv_writer(file: Any) -> Callable[[dict[str, str]], object]:  # noqa: ANN401 - a text file
    writer = csv.DictWriter(file, (*COLUMNS, *MORE_COLUMNS))
    writer.writeheader()
    return writer.writerow


def _line_writer(file: Any) -> Callable[[dict[str, str]], object]:  # noqa: ANN401 - a text file
    return lambda values: file.write(f"{json.dumps(values)}\n")

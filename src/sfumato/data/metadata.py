"""The table beside images: ``metadata.csv`` or ``metadata.jsonl`` with a column ``file_name`` and one of labels.

The contract: every row names one file of the folder, no file twice, and either every row has a label or none has; a
table of which this is not true is refused, naming the first row that is wrong.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sfumato.data.cards import read_bytes
from sfumato.errors import Refusal, nearest

#: What the table is called.
NAMES = ("metadata.csv", "metadata.jsonl")
#: The column with the files, and the one with the labels unless another is named.
FILE, LABEL = "file_name", "label"


@final
@dataclass(frozen=True)
class Table:
    """``labels``: the label of every file, by its name below the folder (NFC; None where there is no such column);
    ``said``: which column they are from.
    """

    path: Path
    labels: Mapping[str, str | None]
    said: str


def tables(folder: Path) -> list[Path]:
    """The tables that a folder holds."""
    return [folder / name for name in NAMES if (folder / name).is_file()]


def read(folder: Path, column: str | None) -> Table:
    """The table of a folder; ``column``: the one with the labels, by default ``label`` where there is one.

    Raises :class:`Refusal` for a table that cannot be read, lacks a column, or names a file twice or without a label.
    """
    found = tables(folder)
    if len(found) > 1:
        raise Refusal(f"{folder} holds both metadata.csv and metadata.jsonl; keep one of them")
    path = found[0]
    columns, rows = _rows(path)
    if FILE not in columns:
        raise Refusal(f"{path} has no column {FILE} (it has {', '.join(columns)}); add the file name of every image")
    if column is not None and column not in columns:
        raise Refusal(f"{path} has no column {column!r}; {nearest(column, set(columns) - {FILE})}")
    chosen = column or (LABEL if LABEL in columns else None)
    labels: dict[str, str | None] = {}
    for line, row in rows:
        name = _file(path, line, row.get(FILE))
        if name in labels:
            raise Refusal(f"{path} line {line} names {name} a second time; keep one of the rows")
        labels[name] = None if chosen is None else _label(path, line, chosen, row.get(chosen))
    others = ", ".join(name for name in columns if name != FILE) or "none"
    none = f"no column called {LABEL} in {path.name} (others: {others}; choose one with --label-column)"
    return Table(path, labels, none if chosen is None else f"column {chosen} of {path.name}")


def _rows(path: Path) -> tuple[Sequence[str], Iterator[tuple[int, Mapping[str, Any]]]]:
    """The names of the columns, and every row with the number of its line."""
    try:
        text = read_bytes(path, "check its permissions").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    rows = _csv(path, text) if path.suffix == ".csv" else _jsonl(path, text)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    return columns, iter(rows)


def _csv(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, Mapping[str, Any]]] = []
    try:
        head = next(reader, [])
        for row in reader:
            if row and len(row) != len(head):
                raise Refusal(
                    f"{path} line {reader.line_num} has {len(row)} fields, the first line {len(head)}; mend it"
                )
            rows += [(reader.line_num, dict(zip(head, row, strict=True)))] if row else []
    except csv.Error as error:
        raise Refusal(f"{path} line {reader.line_num} is no CSV ({error}); mend it") from None
    return rows


def _jsonl(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Refusal(f"{path} line {number} is no JSON ({str(error).splitlines()[0]}); mend it") from None
        if not isinstance(row, dict):
            raise Refusal(f"{path} line {number} is no object; write one {{...}} with {FILE} on every line")
        rows.append((number, row))
    return rows


def _file(path: Path, line: int, value: Any) -> str:
    """A file's name below the folder, in one form."""
    if not isinstance(value, str) or not value.strip():
        raise Refusal(f"{path} line {line} has no {FILE}; name the image or remove the line")
    name = os.path.normpath(unicodedata.normalize("NFC", value.strip()))
    if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
        raise Refusal(f"{path} line {line}: {value} is not below the folder; write names relative to {path.parent}")
    return name


def _label(path: Path, line: int, column: str, value: Any) -> str:
    """A label as a name."""
    if value is None or value == "":
        raise Refusal(f"{path} line {line} has no {column}; fill it in, or read no classes with --labels none")
    if not isinstance(value, str | int | float):
        raise Refusal(f"{path} line {line}: {column} is a {type(value).__name__}; give one name or number")
    return unicodedata.normalize("NFC", str(value).strip())

"""A file of rows and columns as text: CSV with any separator, and Parquet.

The contract: every cell is stripped text, or None where there is nothing (:data:`MISSING`); columns have different
names and equal lengths; nothing is guessed about types here.  A file that cannot be read so is refused in one line
that names the line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

from sfumato.errors import Refusal

#: A cell of text, or nothing.
Cell = str | None
#: How a missing value is written.
MISSING = frozenset(
    {"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "NaT", "nil"}
)
#: What may separate the cells of a line.
SEPARATORS = (",", ";", "\t", "|")
#: Lines that are looked at to find the separator.
LOOKED_AT = 50


@final
@dataclass(frozen=True)
class RawColumn:
    """A column as it was written.  ``text``: the file says that it is text, whatever it looks like."""

    name: str
    cells: tuple[Cell, ...]
    text: bool = False


@final
@dataclass(frozen=True)
class RawTable:
    """Columns of equal lengths, and ``notes``: what a user should know of how they were read."""

    columns: tuple[RawColumn, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns[0].cells)


def cell(text: str) -> Cell:
    """A cell without the blanks around it; None where it says that there is nothing."""
    stripped = text.strip()
    return None if stripped in MISSING else stripped


def cells(values: Sequence[Any]) -> tuple[Cell, ...]:
    """Values in memory as cells: None, NaN, NaT and NA hold nothing; moments of one column have the same digits."""
    present = [None if v is None or str(v) in MISSING else v for v in values]
    fine = any(isinstance(v, datetime) and v.microsecond for v in present)
    digits = "microseconds" if fine else "seconds"
    return tuple(
        v if v is None else v.isoformat(sep=" ", timespec=digits) if isinstance(v, datetime) else cell(str(v))
        for v in present
    )


def decoded(blob: bytes, path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a file: UTF-8, UTF-16 by its mark, else Windows' Western European, with a note."""
    if blob[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return blob.decode("utf-16"), ()
        except UnicodeDecodeError:
            raise Refusal(f"{path} begins as UTF-16 text but is none; save it as UTF-8") from None
    if b"\0" in blob:
        raise Refusal(f"{path} is no text file; save the table as .csv or .parquet")
    try:
        return blob.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return blob.decode("cp1252", errors="replace"), ("not UTF-8: read as Windows-1252; check letters with accents",)


def lines_of(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """The records of a text with their line numbers; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        return [(reader.line_num, row) for row in reader if row and (len(row) > 1 or row[0].strip())]
    except csv.Error as error:
        raise Refusal(f"{path}: line {reader.line_num} cannot be read ({error}); check its quotes") from None


def separator_of(text: str, path: Path) -> str:
    """The separator that gives the first lines most cells, the same number in each; a comma where none does."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    head = "\n".join(text.splitlines()[:LOOKED_AT])
    counts = {}
    for separator in SEPARATORS:
        widths = {len(row) for _, row in lines_of(head, separator, path)}
        counts[separator] = min(widths) if len(widths) == 1 else 1
    best = max(counts, key=lambda separator: counts[separator])
    if counts[best] > 1:
        return best
    first = next(iter(text.splitlines()), "")  # lines of different lengths: what the header uses, so they can be named
    return max(SEPARATORS, key=first.count)


def read_csv(path: Path, blob: bytes) -> RawTable:
    """The columns of a CSV file, whose first line names them.

    Raises :class:`Refusal` where a line has another number of cells, where two columns have one name, where there is no
    row.  A first column without a name that counts the rows is left out, with a note; any other is named by its place.
    """
    text, notes = decoded(blob, path)
    rows = lines_of(text, separator_of(text, path), path)
    if len(rows) < 2:
        held = "nothing" if not rows else "one line only"
        raise Refusal(f"{path} holds {held}; it needs a line of column names and then rows")
    names = [name.strip() for name in rows[0][1]]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise Refusal(
                f"{path}: line {number} has {len(row)} cells where the first line names {len(names)} columns; mend it "
                "(text that holds the separator needs quotes)"
            )
    columns = [tuple(map(cell, column)) for column in zip(*(row for _, row in rows[1:]), strict=True)]
    if len(columns) > 1 and names[0] == "" and _counts_rows(columns[0]):
        names, columns, notes = names[1:], columns[1:], (*notes, "the first column numbers the rows: left out")
    names, more = named(names, len(rows[0][1]) - len(names))
    require_names(names, path)
    raw = tuple(RawColumn(name, column) for name, column in zip(names, columns, strict=True))
    return RawTable(raw, (*notes, *more))


def _counts_rows(cells: Sequence[Cell]) -> bool:
    first = cells[0]
    if first not in ("0", "1"):
        return False
    return all(value == str(int(first) + k) for k, value in enumerate(cells))


def named(names: Sequence[str], left_out: int = 0) -> tuple[list[str], tuple[str, ...]]:
    """Names, those that are empty by their place in the file (after ``left_out`` others), and a note of each."""
    found = [name.strip() or f"column {k + 1}" for k, name in enumerate(names, left_out)]
    notes = tuple(f"{new}: has no name in the file" for new, name in zip(found, names, strict=True) if not name.strip())
    return found, notes


def require_names(names: Sequence[str], path: Path) -> None:
    """Raises :class:`Refusal` where two columns have one name."""
    twice = [name for k, name in enumerate(names) if name in names[:k]]
    if twice:
        raise Refusal(f"{path} has two columns called {twice[0]!r}; its first line must name each column once")


def read(path: Path, blob: bytes) -> RawTable:
    """The columns of a file by its ending: Parquet, else CSV.  Raises :class:`Refusal` as the reader of each."""
    return read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else read_csv(path, blob)


def read_parquet(path: Path) -> RawTable:
    """The columns of a Parquet file; raises :class:`Refusal` where pyarrow is missing or the file is damaged.

    Columns of lists, structs and bytes are left out, with a note.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Refusal(
            f"reading {path.name} needs pyarrow: pip install 'sfumato[tables]', or save the table as .csv"
        ) from None
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0][:120]
        raise Refusal(f"cannot read {path} ({why}); is it a Parquet file?") from None
    names, said = named(table.column_names)
    columns, notes = [], [*said]
    for name, column in zip(names, table.columns, strict=True):
        values = _arrow_cells(pa, column)
        if values is None:
            notes.append(f"{name}: holds {column.type}, which is no cell of a table: left out")
        else:
            text = _is_text(pa, column.type)
            columns.append(RawColumn(name, values, text))
    require_names([column.name for column in columns], path)
    if not columns or not table.num_rows:
        raise Refusal(f"{path} holds no rows of numbers, dates or text; give a table with some")
    return RawTable(tuple(columns), tuple(notes))


def _is_text(pa: Any, kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _arrow_cells(pa: Any, column: Any) -> tuple[Cell, ...] | None:
    """The cells of an Arrow column as text; None for a type that has no text."""
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        return cells(column.to_pylist())
    if types.is_date(kind):
        return tuple(None if v is None else v.isoformat() for v in column.to_pylist())
    if types.is_floating(kind):
        return tuple(None if v is None or v != v else repr(v) for v in column.to_pylist())
    if _is_text(pa, kind):  # a Parquet file says itself where there is nothing: "NA" is a word
        return tuple(None if v is None else v.strip() or None for v in column.to_pylist())
    plain = (types.is_boolean, types.is_integer, types.is_decimal)
    if not any(test(kind) for test in plain):
        return (None,) * len(column) if types.is_null(kind) else None
    return tuple(None if v is None else cell(str(v)) for v in column.to_pylist())

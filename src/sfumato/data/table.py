"""A table as training data: rows of numbers, categories and dates, read from CSV or Parquet.

The contract: types are inferred (:mod:`sfumato.data.table_columns`) and shown in the report; one row in ten is held
out, chosen by a fixed seed; units are fitted to all rows of the file, so that any of them comes back as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from sfumato.data import arrays, table_read
from sfumato.data.cards import read_bytes
from sfumato.data.options import INFER, Options
from sfumato.data.report import Facts
from sfumato.data.rows import described, index_of, tested
from sfumato.data.table_columns import infer
from sfumato.data.table_read import RawColumn, RawTable
from sfumato.data.table_transform import Frame, TableTransform
from sfumato.errors import Refusal, nearest


@final
@dataclass(frozen=True, eq=False)
class TableSplit:
    """Rows ``x`` as stored (:mod:`sfumato.data.table_transform`), ``x0`` in model units, ``label``."""

    x: Float64[Tensor, "n d"]
    x0: Float32[Tensor, "n d"]
    label: Int64[Tensor, " n"] | None

    def __len__(self) -> int:
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        """``x0``, and ``label`` where there is one, by name."""
        return {"x0": self.x0} if self.label is None else {"x0": self.x0, "label": self.label}


@final
@dataclass(frozen=True)
class Encoded:
    """Rows in model units, as training reads them."""

    split: Any
    device: torch.device

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at ``index`` on the training device: ``x0``, and ``label`` where there are classes."""
        return {name: rows[index].to(self.device) for name, rows in self.split.tensors().items()}


@final
@dataclass(frozen=True, eq=False)
class TableData:
    """A table in memory.  ``notes``: what was decided about its columns, as (column, words)."""

    name: str
    train: TableSplit
    test: TableSplit
    classes: tuple[str, ...]
    transform: TableTransform
    source: str
    sha256: str
    notes: tuple[tuple[str, str], ...] = ()
    options: Options = INFER
    licence: str = "not stated"
    kind: ClassVar[str] = "table"
    class_index = index_of
    held_out = tested
    spec = described

    @property
    def shape(self) -> tuple[int, ...]:
        """``(D,)``: the numbers and the tokens of one row."""
        return (self.transform.width,)

    def prepared(self, settings: Any) -> TableData:
        """The data themselves: a table has one kind of model units."""
        return self

    def rows(self, device: torch.device) -> Encoded:
        """The training split, as training reads it."""
        return Encoded(self.train, device)

    def frame(self, split: TableSplit) -> Frame:
        """The rows of a split in the user's units."""
        return self.transform.rows(split.x)

    def report(self) -> Facts:
        """Rows, the type of every column, and what was decided for the user."""
        columns = [(column.name, column.describe()) for column in self.transform.columns]
        label = torch.zeros(0, dtype=torch.long) if self.train.label is None else self.train.label
        counts = torch.bincount(label, minlength=len(self.classes)).tolist()
        shares = ", ".join(f"{name}: {k:,}" for name, k in zip(self.classes, counts, strict=True))
        facts = [("data", self.name), ("rows", f"{len(self.train):,} train + {len(self.test):,} test")]
        facts += [(f"column {name}", f"{kind}: {detail}") for name, (kind, detail) in columns]
        if self.transform.label is not None:
            facts += [(f"column {self.transform.label[0]}", f"classes: {shares}")]
        facts += [("note", f"{name}: {words}" if name else words) for name, words in self.notes]
        facts += [("options", str(self.options)), ("source", self.source), ("licence", self.licence)]
        facts += [("sha256", self.sha256)]
        if len(self.train) < 1000:
            facts += [("warning", f"only {len(self.train):,} training rows: long training learns them by heart")]
        return Facts(tuple(facts))


def read(path: Path, options: Options = INFER) -> TableData:
    """The table in a file, one row in ten held out.

    ``options.label_column``: the column whose values become the classes.  Raises :class:`Refusal` for a file that
    cannot be read, fewer than 2 rows, and a label column that is not there or has empty cells.
    """
    blob = read_bytes(path)
    raw = table_read.read(path, blob)
    return of_raw(raw, str(path.resolve()), f"the file {path.name}", hashlib.sha256(blob).hexdigest(), options)


def of_columns(columns: Mapping[str, Any], name: str = "table", label_column: str | None = None) -> TableData:
    """A table from columns in memory (a dict of sequences, a pandas or polars frame): cells as CSV would hold them."""
    names = list(getattr(columns, "columns", columns))
    listed = {key: list(columns[key]) for key in names}
    raw = tuple(RawColumn(str(key), table_read.cells(values)) for key, values in listed.items())
    if len({len(column.cells) for column in raw}) != 1:
        raise Refusal("columns of different lengths; give every column one value a row")
    text = "\n".join(",".join(map(str, row)) for row in zip(*(column.cells for column in raw), strict=True))
    digest = hashlib.sha256(("\n".join(map(str, names)) + text).encode()).hexdigest()
    return of_raw(RawTable(raw), name, "columns in memory", digest, Options(label_column=label_column))


def of_raw(raw: RawTable, name: str, source: str, sha256: str, options: Options) -> TableData:
    """The data set of columns as they were written."""
    if len(raw) < 2:
        raise Refusal(f"{name} holds {len(raw)} row; give at least 2, one of them is held out")
    columns = {column.name: column for column in raw.columns}
    label: tuple[str, int] | None = None
    index: Tensor | None = None
    classes: tuple[str, ...] = ()
    if options.label_column is not None:
        chosen = options.label_column
        if chosen not in columns:
            raise Refusal(f"label_column={chosen}: {name} has no such column; {nearest(chosen, columns)}")
        index, classes = _labels(columns[chosen], name)
    found = [(column, infer(column)) for column in raw.columns if column.name != options.label_column]
    notes = [("", words) for words in raw.notes]
    notes += [(column.name, each.note) for column, each in found if each.note is not None]
    if options.label_column is not None:
        before = [column.name for column in raw.columns].index(options.label_column)
        place = sum(each.column is not None for _, each in found[:before])
        label = (options.label_column, place)
    transform = TableTransform(tuple(each.column for _, each in found if each.column is not None), label)
    x = transform.read({column.name: column.cells for column in raw.columns})
    train, test = map(torch.from_numpy, arrays.held_out(len(raw), None if index is None else index.numpy()))
    x0 = transform.encode(x)

    def split(rows: Tensor) -> TableSplit:
        return TableSplit(x[rows], x0[rows], None if index is None else index[rows])

    return TableData(
        name=name,
        train=split(train),
        test=split(test),
        classes=classes,
        transform=transform,
        source=source,
        sha256=sha256,
        notes=tuple(notes),
        options=options,
    )


def _labels(column: RawColumn, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """The class index of every row and the names of the classes; raises :class:`Refusal` for empty cells."""
    from sfumato.data.table_columns import MOST_VALUES, Category, ordered

    if None in column.cells:
        row = column.cells.index(None) + 1
        raise Refusal(f"{name}: row {row} has no {column.name!r}; fill it in, or choose another label_column")
    values = ordered(set(column.cells))
    if len(values) < 2 or len(values) > MOST_VALUES:
        raise Refusal(f"label_column={column.name}: {len(values)} different values; classes are 2 to {MOST_VALUES}")
    index = Category(column.name, values).read(column.cells)[1][0]
    return torch.from_numpy(index), tuple(str(value) for value in values)

"""From a table's columns to the model's state and back to rows: ``decode(encode(x))`` are the rows of the file.

The contract: a row is stored as float64 ``[D]``: the numbers of all columns in their own units (NaN where a cell holds
none), then the tokens of all columns; the model's state has the same places, float32, its numbers in model units of
standard deviation 0.5 (:mod:`sfumato.data.table_codes`).  :class:`Frame` holds rows in the user's units, in the order
of the user's columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from sfumato.data import table_columns
from sfumato.data.table_columns import Column
from sfumato.data.table_read import Cell
from sfumato.errors import Refusal, nearest


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """Rows of a table: ``frame["price"]`` is a typed array, ``frame[3]`` a row by column name, ``frame[2:5]`` rows.

    ``arrays``: int64, float64, text or ``datetime64`` by column; ``cells``: the same as they are written to CSV.
    """

    arrays: Mapping[str, np.ndarray]
    cells: Mapping[str, Sequence[str]]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns in order."""
        return tuple(self.arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.arrays:
                raise Refusal(f"the table has no column {key!r}; {nearest(key, self.names)}")
            return self.arrays[key]
        if isinstance(key, slice):
            return Frame(
                {name: array[key] for name, array in self.arrays.items()},
                {name: cells[key] for name, cells in self.cells.items()},
            )
        return {name: array[key] for name, array in self.arrays.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[k] for k in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.structured()
        return array if dtype is None else array.astype(dtype)

    def structured(self) -> np.ndarray:
        """One structured array ``[n]`` with a field for every column."""
        found = np.empty(len(self), dtype=[(name, array.dtype) for name, array in self.arrays.items()])
        for name, array in self.arrays.items():
            found[name] = array
        return found

    def csv(self) -> str:
        """The rows under a line of column names, separated by commas."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.names)
        writer.writerows(zip(*self.cells.values(), strict=True))
        return text.getvalue()

    def inserted(self, place: int, name: str, cells: Sequence[str]) -> Frame:
        """The same rows with a column of text before column ``place``."""
        names = list(self.names)
        order = [*names[:place], name, *names[place:]]
        arrays = {**self.arrays, name: np.array(cells)}
        texts = {**self.cells, name: cells}
        return Frame({key: arrays[key] for key in order}, {key: texts[key] for key in order})


@final
@dataclass(frozen=True)
class Rows:
    """Rows of a table, stored as a structured array and shown as CSV.

    ``label``: the name and the place of the column that became the classes, which each sample's own class fills.
    """

    label: tuple[str, int] | None = None
    noun: ClassVar[str] = "rows"
    file: ClassVar[str] = "samples.csv"

    def array(self, x: Any) -> np.ndarray:
        """The structured array."""
        return np.asarray(x)

    def show(self, samples: Any) -> bytes:
        """The CSV text, UTF-8."""
        frame: Frame = samples.x
        if self.label is not None:
            name, place = self.label
            frame = frame.inserted(place, name, list(samples.label or [""] * len(frame)))
        return frame.csv().encode()


@final
@dataclass(frozen=True)
class TableTransform:
    """The columns of a table in order, less the one that became the classes (``label``: its name and place)."""

    columns: tuple[Column, ...]
    label: tuple[str, int] | None = None
    dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        if not self.numbers and not self.sizes:
            raise Refusal("nothing in the table can be learned: its columns are constant, or text that hardly repeats")

    @staticmethod
    def stored(columns: Sequence[Mapping[str, Any]], label: Sequence[Any] | None) -> TableTransform:
        """The transform that ``to_json`` described."""
        made = tuple(table_columns.from_json(column) for column in columns)
        return TableTransform(made, None if label is None else (str(label[0]), int(label[1])))

    @cached_property
    def numbers(self) -> int:
        """How many floats a state has."""
        return sum(column.numbers for column in self.columns)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many values every token of a state has."""
        return tuple(size for column in self.columns for size in column.sizes)

    @property
    def width(self) -> int:
        """``D``: the floats and the tokens of a state."""
        return self.numbers + len(self.sizes)

    def read(self, cells: Mapping[str, Sequence[Cell]]) -> Float64[Tensor, "n d"]:
        """The cells of every column, by name, as stored rows."""
        parts = [column.read(cells[column.name]) for column in self.columns]
        numbers = [x for found, _ in parts for x in found]
        tokens = [x.astype(np.float64) for _, found in parts for x in found]
        return torch.from_numpy(np.stack([*numbers, *tokens], 1))

    def encode(self, x: Float[Tensor, "b d"]) -> Float32[Tensor, "b d"]:
        """Stored rows in model units."""
        found = x.detach().to("cpu", torch.float64).numpy().copy()
        place = 0
        for column in self.columns:
            for k in range(place, place + column.numbers):
                found[:, k] = column.encode(found[:, k])
            place += column.numbers
        return torch.from_numpy(found).to(torch.float32)

    def restored(self, x: Float[Tensor, "b d"]) -> Float64[Tensor, "b d"]:
        """States as stored rows: the inverse of :meth:`encode` (0 in place of NaN where a token says no number).

        Raises :class:`Refusal` where a state is not finite or holds an unknown token.
        """
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(1).sum())
            raise Refusal(f"{bad} of {len(x)} rows are not finite; sample with more steps or less guidance")
        found = x.detach().to("cpu", torch.float64).numpy().copy()
        tokens, sizes = found[:, self.numbers :], np.array(self.sizes)
        if bool(((tokens < 0) | (tokens >= sizes) | (tokens != np.rint(tokens))).any()):
            raise Refusal("a state holds a token that is no value of its column; decode what this table's model made")
        place = 0
        for column in self.columns:
            for k in range(place, place + column.numbers):
                found[:, k] = column.decode(found[:, k])
            place += column.numbers
        return torch.from_numpy(found)

    def rows(self, x: Float64[Tensor, "b d"]) -> Frame:
        """Stored rows in the user's units."""
        values = x.numpy()
        arrays: dict[str, np.ndarray] = {}
        cells: dict[str, Sequence[str]] = {}
        number, token = 0, self.numbers
        for column in self.columns:
            own = [values[:, k] for k in range(number, number + column.numbers)]
            said = [values[:, k].astype(np.int64) for k in range(token, token + len(column.sizes))]
            arrays[column.name], cells[column.name] = column.write(own, said, len(values))
            number, token = number + column.numbers, token + len(column.sizes)
        return Frame(arrays, cells)

    def decode(self, x: Float[Tensor, "b d"]) -> Frame:
        """States as rows in the user's units; raises like :meth:`restored`."""
        return self.rows(self.restored(x))

    @property
    def view(self) -> Rows:
        """Rows of CSV."""
        return Rows(self.label)

    def to_json(self) -> dict[str, Any]:
        """Its name and columns."""
        label = None if self.label is None else list(self.label)
        return {"name": "table", "columns": [column.to_json() for column in self.columns], "label": label}

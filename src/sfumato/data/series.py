"""Time series as training data: float arrays, tables of series, and the files of the UCR archive.

The contract: series of one data set have the same channels and the same length, and no missing values; one in ten
is held out, chosen by a fixed seed, never the last one of its class.

* **Arrays** (``.npz`` with ``x`` and, optionally, ``label``; ``.npy``): ``[n, length]``; ``[n, channels, length]`` if
  a value lies outside [-1, 1] (else it is images), or with ``kind=series``.
* **CSV** or **Parquet** with ``kind=series``: *wide*, a line for every series and nothing but numbers in it; or
  *long*, a line for every moment: the first column names the series, the second the moment, the others are channels.
* **UCR**: ``.ts`` with its header, channels separated by colons, the class last; ``.tsv`` without a header, the class
  first.

A ``label_column`` of such a table holds the class of each series.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato.data import arrays, table_read
from sfumato.data.cards import read_bytes
from sfumato.data.options import INFER, Options, refuse_unused
from sfumato.data.report import Facts
from sfumato.data.rows import Dataset, by_name, described, index_of, tested
from sfumato.data.series_transform import Layout, SeriesTransform, plot
from sfumato.data.table_read import RawColumn, decoded
from sfumato.errors import Refusal, nearest

#: How an array file is made that this module reads.
MEND = "save it with numpy.savez(path, x=series, label=labels), x of shape [n, length] or [n, channels, length]"

Values = Float64[np.ndarray, "n c l"]
Index = Int64[np.ndarray, " n"]


@final
@dataclass(frozen=True, eq=False)
class SeriesSplit:
    """Series ``x [n, channels, length]`` on the user's scale and their classes ``label [n]`` (None: unlabelled)."""

    x: Float[Tensor, "n c l"]
    label: Int64[Tensor, " n"] | None
    tensors = by_name

    def __len__(self) -> int:
        return len(self.x)


@final
@dataclass(frozen=True, eq=False)
class SeriesData:
    """Series in memory."""

    name: str
    train: SeriesSplit
    test: SeriesSplit
    classes: tuple[str, ...]
    transform: SeriesTransform
    source: str
    sha256: str
    notes: tuple[str, ...] = ()
    options: Options = INFER
    licence: str = "not stated"
    kind: ClassVar[str] = "series"
    class_index = index_of
    held_out = tested
    spec = described

    @property
    def shape(self) -> tuple[int, int]:
        """``(channels, length)`` of one series."""
        _, c, length = self.train.x.shape
        return c, length

    def prepared(self, settings: Any) -> SeriesData:
        """The data themselves: series are standardised whatever the recipe."""
        return self

    def rows(self, device: torch.device) -> Dataset:
        """The training split, as training reads it."""
        return Dataset(self.train.x, self.train.label, device)

    def report(self) -> Facts:
        """Count, shape, the scale of every channel, classes."""
        c, length = self.shape
        low, high = self.train.x.amin((0, 2)).tolist(), self.train.x.amax((0, 2)).tolist()
        facts = [
            ("data", self.name),
            ("series", f"{len(self.train):,} train + {len(self.test):,} test"),
            ("shape", f"{c} channel{'s' if c > 1 else ''} of {length} values ({self.transform.layout.form})"),
        ]
        for k in range(c):
            centre, std = self.transform.centre[k], self.transform.spread[k] / 2
            facts.append((f"channel {k + 1}", f"{low[k]:.6g} .. {high[k]:.6g}, mean {centre:.6g}, std {std:.6g}"))
        if self.train.label is not None:
            counts = torch.bincount(self.train.label, minlength=len(self.classes)).tolist()
            facts += [("classes", ", ".join(f"{n}: {k:,}" for n, k in zip(self.classes, counts, strict=True)))]
        facts += [("note", note) for note in self.notes]
        facts += [("options", str(self.options)), ("source", self.source), ("licence", self.licence)]
        facts += [("sha256", self.sha256)]
        if len(self.train) < 1000:
            facts += [("warning", f"only {len(self.train):,} training series: long training learns them by heart")]
        return Facts(tuple(facts))

    def pictures(self) -> list[tuple[str, bytes]]:
        """The first training series."""
        label = self.train.label
        names = None if label is None else [self.classes[int(k)] for k in label[:24]]
        return [("Training series", plot(self.train.x[:24].numpy(), names))]


def of_arrays(
    x: np.ndarray,
    label: Any = None,
    *,
    name: str,
    source: str = "arrays in memory",
    licence: str = "not stated",
    sha256: str | None = None,
    layout: Layout | None = None,
    notes: tuple[str, ...] = (),
    options: Options = INFER,
) -> SeriesData:
    """Series ``[n, length]`` or ``[n, channels, length]`` and their classes (integers, names or None) as a data set.

    Raises :class:`Refusal` for another shape, fewer than 2 series, a missing or infinite value, and labels that do not
    go with the series.
    """
    if x.ndim not in (2, 3) or 0 in x.shape or x.dtype.kind not in "iuf":
        raise Refusal(f"{name}: x is {x.dtype} {list(x.shape)}; {MEND}")
    if len(x) < 2:
        raise Refusal(f"{name} holds {len(x)} series; give at least 2, one of them is held out")
    bad = ~np.isfinite(x.reshape(len(x), -1).astype(np.float64)).all(1)
    if bool(bad.any()):
        raise Refusal(
            f"{name}: series {int(bad.argmax()) + 1} has a missing or infinite value ({int(bad.sum())} in all do); "
            "fill them in or leave those series out"
        )
    flat = x.ndim == 2
    values = torch.from_numpy(np.ascontiguousarray(x[:, None] if flat else x).astype(np.float64))
    index, classes = (None, ()) if label is None else _classes(np.asarray(label), len(x), name)
    train, test = arrays.held_out(len(x), index)

    def split(chosen: np.ndarray) -> SeriesSplit:
        rows = torch.from_numpy(chosen)
        return SeriesSplit(values[rows], None if index is None else torch.from_numpy(index)[rows])

    digest = sha256 or hashlib.sha256(values.numpy().tobytes()).hexdigest()
    narrow = x.dtype.kind == "f" and x.dtype.itemsize <= 4
    made = replace(layout or Layout(flat=flat), numbers="float32" if narrow else "float64")
    return SeriesData(
        name, split(train), split(test), classes, SeriesTransform.of(values, made), source, digest, notes, options,
        licence,
    )  # fmt: skip


def _classes(label: np.ndarray, n: int, name: str) -> tuple[Index, tuple[str, ...]]:
    """The class index of every series and the names of the classes."""
    from sfumato.data.table_columns import MOST_VALUES, ordered

    if label.shape != (n,) or label.dtype.kind not in "iuUb":
        raise Refusal(f"{name}: label is {label.dtype} {list(label.shape)}; give an integer or a name for each series")
    texts = [str(v) for v in label.tolist()]
    values = ordered(set(texts))
    if len(values) > MOST_VALUES:
        raise Refusal(f"{name}: {len(values)} classes; a class has several series, leave the labels out")
    place = {value: k for k, value in enumerate(values)}
    return np.array([place[text] for text in texts], dtype=np.int64), tuple(str(v) for v in values)


# -------------------------------------------------------------------------------------------------------------- files


def _file(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a file and what a data set says of it."""
    blob = read_bytes(path)
    facts = {"source": f"the file {path.name}", "sha256": hashlib.sha256(blob).hexdigest()}
    return blob, {**facts, "name": str(path.resolve())}


def holds_series(path: Path, options: Options) -> bool:
    """Whether an array file is read as series: asked for, of two axes, or floats of three axes beyond [-1, 1]."""
    if options.kind == "table":
        raise Refusal(f"kind=table: {path} holds arrays, and a table is a .csv or .parquet file; leave it out")
    if options.kind == "series":
        return True
    try:
        x, _ = arrays.stored(path, read_bytes(path))
    except Refusal:  # whoever reads it says why
        return False
    if x.dtype.kind not in "iuf":
        return False
    return x.ndim == 2 or (x.ndim == 3 and x.dtype.kind == "f" and not bool((np.abs(x) <= 1).all()))


def read_arrays(path: Path, options: Options = INFER) -> SeriesData:
    """The series of an ``.npz`` or ``.npy`` file."""
    refuse_unused(options, ("kind",), f"the series in {path}")
    blob, facts = _file(path)
    x, label = arrays.stored(path, blob, MEND)
    return of_arrays(x, label, options=options, **facts)


def is_ucr(path: Path) -> bool:
    """Whether a ``.tsv`` file is one of the UCR archive: no names, numbers in the first line."""
    try:
        with path.open("rb") as file:
            first = file.readline().decode("utf-8", "replace").strip()
    except OSError:  # whoever reads it says why
        return False
    return len(first.split("\t")) > 2 and all(_is_number(text) for text in first.split("\t"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_ucr(path: Path, options: Options = INFER) -> SeriesData:
    """The series of a UCR file, ``.ts`` or ``.tsv``.

    Raises :class:`Refusal` for series of different lengths, and for a value that is no number (missing ones are ``?``).
    """
    refuse_unused(options, ("kind",), f"the series in {path}")
    blob, facts = _file(path)
    text, notes = decoded(blob, path)
    lines = [(k + 1, line.strip()) for k, line in enumerate(text.splitlines())]
    lines = [(k, line) for k, line in lines if line and not line.startswith("#")]
    if path.suffix.lower() == ".tsv":
        cells = [(k, line.split("\t")) for k, line in lines]
        rows = [(k, [parts[1:]], _whole(parts[0])) for k, parts in cells]
        return _listed(path, rows, facts, notes, options, labelled=True)
    head = [line.lower() for _, line in lines if line.startswith("@")]
    labelled = not any(line.split()[:2] == ["@classlabel", "false"] for line in head)
    rows = []
    for k, line in lines:
        if line.startswith("@"):
            continue
        parts = line.split(":")
        name = parts.pop() if labelled else ""
        rows.append((k, [part.split(",") for part in parts], name.strip()))
    return _listed(path, rows, facts, notes, options, labelled=labelled)


def _whole(text: str) -> str:
    """A class number without the decimals that some files write."""
    return str(int(float(text))) if _is_number(text) and float(text).is_integer() else text


def _listed(
    path: Path, rows: list[tuple[int, list[list[str]], str]], facts: dict[str, Any], notes: tuple[str, ...],
    options: Options, *, labelled: bool,
) -> SeriesData:  # fmt: skip
    """Series from lines of text."""
    if not rows:
        raise Refusal(f"{path} holds no series")
    first = [len(channel) for channel in rows[0][1]]
    for number, channels, _ in rows:
        lengths = [len(channel) for channel in channels]
        if lengths != first or len(set(lengths)) != 1:
            raise Refusal(
                f"{path}: line {number} has series of {lengths} values, the first one {first}; give all one length"
            )
    x = np.array([[[_value(v, number, path) for v in c] for c in channels] for number, channels, _ in rows])
    label = [name for _, _, name in rows] if labelled else None
    flat = x.shape[1] == 1
    return of_arrays(x[:, 0] if flat else x, label, notes=notes, options=options, **facts)


def _value(text: str, line: int, path: Path) -> float:
    if not _is_number(text):
        raise Refusal(f"{path}: line {line} holds {text.strip()!r}, which is no number; fill in what is missing")
    return float(text)


def read_table(path: Path, options: Options) -> SeriesData:
    """The series of a CSV or Parquet file, wide or long; see the top of this module."""
    refuse_unused(options, ("kind", "label_column"), f"the series in {path}")
    blob, facts = _file(path)
    raw = table_read.read(path, blob)
    columns = {column.name: column for column in raw.columns}
    chosen = options.label_column
    if chosen is not None and chosen not in columns:
        raise Refusal(f"label_column={chosen}: {path} has no such column; {nearest(chosen, columns)}")
    label = None if chosen is None else (chosen, list(columns).index(chosen))
    own = [column for column in raw.columns if column.name != chosen]
    classes = None if chosen is None else columns[chosen]
    if not own:
        raise Refusal(f"{path} holds no column beside {chosen!r}; series need columns of numbers")
    if classes is not None and None in classes.cells:
        row = classes.cells.index(None) + 1
        raise Refusal(f"{path}: row {row} has no {chosen!r}; fill it in, or choose another label_column")
    if len(own) >= 3 and len(set(own[0].cells)) < len(raw):
        if _moments(own) is not None:
            return _from_long(path, own, classes, label, facts, raw.notes, options)
        _require_even(path, own)
    x = np.stack([_floats(column, path) for column in own], 1)
    layout = Layout("wide", tuple(column.name for column in own), True, label)
    found = None if classes is None else list(classes.cells)
    return of_arrays(x, found, layout=layout, notes=raw.notes, options=options, **facts)


def _floats(column: RawColumn, path: Path) -> np.ndarray:
    """A column of numbers."""
    for k, text in enumerate(column.cells):
        if text is None or not _is_number(text):
            what = "nothing" if text is None else repr(text)
            raise Refusal(
                f"{path}: row {k + 1} of column {column.name!r} holds {what}; series hold numbers alone (a column of "
                "classes is named by label_column)"
            )
    return np.array([float(str(text)) for text in column.cells])


def _moments(own: list[RawColumn]) -> tuple[str, ...] | None:
    """The moments that all series of a long file share, or their numbers where they differ; None for another file.

    A long file names two series or more, as many different moments of each; series that are named by numbers must
    share their moments (a wide file may repeat numbers, too).
    """
    groups: dict[str, list[str]] = {}
    for name, moment in zip(own[0].cells, own[1].cells, strict=True):
        if name is None or moment is None:
            return None
        groups.setdefault(name, []).append(moment)
    lengths = {len(moments) for moments in groups.values()}
    if len(groups) < 2 or len(lengths) != 1 or any(len(set(moments)) != len(moments) for moments in groups.values()):
        return None
    first = next(iter(groups.values()))
    if all(moments == first for moments in groups.values()):
        return tuple(first)
    return None if all(map(_is_number, groups)) else tuple(map(str, range(len(first))))


def _require_even(path: Path, own: list[RawColumn]) -> None:
    """Raises :class:`Refusal` for a long file whose series have different lengths: every name stands in two lines or
    more, and moments rise within each (a wide file may repeat numbers in its first column, too)."""
    groups: dict[str, list[Any]] = {}
    numbers = all(text is not None and _is_number(text) for text in own[1].cells)
    for name, moment in zip(own[0].cells, own[1].cells, strict=True):
        if name is None or moment is None or (_is_number(name) and not float(name).is_integer()):
            return
        groups.setdefault(name, []).append(float(moment) if numbers else moment)
    lengths = {len(moments) for moments in groups.values()}
    rising = all(a < b for moments in groups.values() for a, b in pairwise(moments))
    if rising and len(lengths) > 1 and min(lengths) > 1:
        raise Refusal(
            f"{path} holds series of {min(lengths)} to {max(lengths)} moments (by {own[0].name!r}); give all one length"
        )


def _from_long(
    path: Path, own: list[RawColumn], classes: RawColumn | None, label: tuple[str, int] | None, facts: dict[str, Any],
    notes: tuple[str, ...], options: Options,
) -> SeriesData:  # fmt: skip
    """Series from lines of moments, which stand in order within their series."""
    names = list(dict.fromkeys(own[0].cells))
    place = {name: k for k, name in enumerate(names)}
    order = np.argsort([place[name] for name in own[0].cells], kind="stable")
    length = len(order) // len(names)
    x = np.stack([_floats(column, path)[order].reshape(len(names), length) for column in own[2:]], 1)
    found = None
    if classes is not None:
        grouped = np.array(classes.cells, dtype=object)[order].reshape(len(names), length)
        mixed = [name for name, own_classes in zip(names, grouped, strict=True) if len(set(own_classes)) > 1]
        if mixed:
            raise Refusal(f"{path}: series {mixed[0]!r} has several {classes.name!r}; a series has one class")
        found = [str(row[0]) for row in grouped]
    layout = Layout("long", tuple(column.name for column in own), x.shape[1] == 1, label, _moments(own) or ())
    return of_arrays(x[:, 0] if layout.flat else x, found, layout=layout, notes=notes, options=options, **facts)

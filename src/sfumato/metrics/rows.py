"""Statistics of generated rows against held-out rows, each a record with the floor that real rows reach.

The contract: every number is a function of the rows alone; the floor is the same computation with as many training rows
in the samples' place (held-out rows for the copies, which know the training rows).

==============  ==============================================================================================  ======
record          what it is                                                                                      better
==============  ==============================================================================================  ======
column NAME     numbers and dates: Kolmogorov-Smirnov distance, or what is empty, whichever is more;            lower
                categories: total variation
columns         the mean of these over all columns                                                              lower
correlations    mean absolute difference of the correlations of any two columns: of normal scores of numbers    lower
                and of indicators of categories and empty cells
copies          share of rows that are rows of the training table, in every cell that was modelled              lower
==============  ==============================================================================================  ======
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float64

from sfumato.data.table import TableData
from sfumato.data.table_transform import Frame, TableTransform
from sfumato.errors import Refusal
from sfumato.metrics.columns import Measured, correlations, kolmogorov_smirnov, records, some, total_variation
from sfumato.metrics.records import Record


@final
@dataclass(frozen=True, eq=False)
class Features:
    """Rows as the metrics see them: ``distances`` reads ``columns``, ``correlations`` reads ``matrix``."""

    numbers: Mapping[str, Float64[np.ndarray, " n"]]
    tokens: Mapping[str, np.ndarray]
    matrix: Float64[np.ndarray, "n d"]
    owner: tuple[int, ...]
    keys: tuple[tuple[str, ...], ...]


def features(x: np.ndarray, frame: Frame, transform: TableTransform) -> Features:
    """The features of rows ``x [n, D]`` as stored, which are the rows of ``frame``."""
    numbers: dict[str, np.ndarray] = {}
    tokens: dict[str, np.ndarray] = {}
    parts: list[np.ndarray] = []
    owner: list[int] = []
    number, token = 0, transform.numbers
    modelled = []
    for k, column in enumerate(transform.columns):
        gone = np.zeros(len(x), dtype=bool)
        if column.sizes:
            said = x[:, token].astype(np.int64)
            tokens[column.name] = said
            gone = said > 0
            indicators = np.eye(column.sizes[0])[said]
            parts.append(indicators)
            owner += [k] * column.sizes[0]
            token += 1
        if column.numbers:
            own = np.where(gone, np.nan, x[:, number])
            numbers[column.name] = own
            parts.append(column.encode(own)[:, None])
            owner.append(k)
            number += 1
        if column.numbers or column.sizes:
            modelled.append(frame.cells[column.name])
    return Features(numbers, tokens, np.concatenate(parts, 1), tuple(owner), tuple(zip(*modelled, strict=True)))


def distances(a: Features, b: Features) -> dict[str, float]:
    """The distance of every column; the larger one where a column has numbers and empty cells."""
    found: dict[str, float] = {}
    for name, own in a.numbers.items():
        found[name] = kolmogorov_smirnov(own, b.numbers[name])
    for name, said in a.tokens.items():
        found[name] = max(found.get(name, 0.0), total_variation(said, b.tokens[name]))
    return found


def correlation_gap(a: Features, b: Features) -> float:
    """The mean absolute difference of the correlations of features of two different columns; 0 for one column."""
    owner = np.array(a.owner)
    apart = owner[:, None] != owner[None]
    if not bool(apart.any()):
        return 0.0
    return float(np.abs(correlations(a.matrix) - correlations(b.matrix))[apart].mean())


def copied(a: Features, train: frozenset[tuple[str, ...]]) -> float:
    """The share of rows that are among those of the training table."""
    return sum(key in train for key in a.keys) / len(a.keys)


def evaluate_table(samples: Frame, data: TableData, *, generated: Mapping[str, Any]) -> list[Record]:
    """Measure generated rows: the records in the table at the top of this module.

    ``generated`` says how the samples were made: ``sampler``, ``nfe`` and ``seed`` (None where not known), and whatever
    else is to be kept.  Raises :class:`Refusal` for fewer than 2 rows and for rows of other columns.
    """
    transform = data.transform
    if len(samples) < 2:
        raise Refusal(f"{len(samples)} rows; sample at least 2 to measure them")
    missing = [column.name for column in transform.columns if column.name not in samples.names]
    if missing:
        raise Refusal(f"the samples have no column {missing[0]!r}; give what a model of {data.name} sampled")
    cells = {column.name: [text or None for text in samples.cells[column.name]] for column in transform.columns}
    own = features(transform.read(cells).numpy(), samples, transform)
    train, test = (features(s.x.numpy(), data.frame(s), transform) for s in (data.train, data.test))
    rows = some(len(data.train), len(samples))
    real = features(data.train.x.numpy()[rows], _rows(data, rows), transform)
    values, floors = distances(own, test), distances(real, test)
    seen = frozenset(train.keys)
    found = [
        Measured("columns", _mean(values), _mean(floors), "mean distance of the columns"),
        Measured("correlations", correlation_gap(own, test), correlation_gap(real, test), "mean gap of correlations"),
        Measured("copies", copied(own, seen), copied(test, seen), "share of rows that are training rows", seen="train"),
    ]
    for name, value in values.items():
        rule = "Kolmogorov-Smirnov distance or total variation, whichever is more"
        found.append(Measured(f"column {name}", value, floors[name], rule))
    floor_rule = f"{len(rows)} training rows"
    return records(found, data, n=len(samples), floor_rule=floor_rule, extractor="columns", generated=generated)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _rows(data: TableData, rows: np.ndarray) -> Frame:
    import torch

    return data.transform.rows(data.train.x[torch.from_numpy(rows)])

"""Distances between two sets of numbers or of categories, and what the metrics of tables and of series share.

The contract: every distance is 0 for equal sets and at most 1; :func:`records` gives each the floor that as many
training rows reach in the samples' place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float64, Shaped

from sfumato import __version__
from sfumato.errors import Refusal
from sfumato.metrics import units
from sfumato.metrics.records import Record

#: What ``generated`` must say; a value may be None where it is not known.
REQUIRED = ("sampler", "nfe", "seed")


def kolmogorov_smirnov(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    """The largest gap between the distribution functions of two sets of numbers; NaN are left out, none at all is 1
    away from some and 0 from none.
    """
    a, b = np.sort(a[~np.isnan(a)]), np.sort(b[~np.isnan(b)])
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    values = np.concatenate([a, b])
    gap = np.searchsorted(a, values, "right") / len(a) - np.searchsorted(b, values, "right") / len(b)
    return float(np.abs(gap).max())


def total_variation(a: Shaped[np.ndarray, " n"], b: Shaped[np.ndarray, " m"]) -> float:
    """Half the sum of the differences of the shares of every value in two sets."""
    values, place = np.unique(np.concatenate([a, b]), return_inverse=True)
    p = np.bincount(place[: len(a)], minlength=len(values)) / len(a)
    q = np.bincount(place[len(a) :], minlength=len(values)) / len(b)
    return float(np.abs(p - q).sum() / 2)


def correlations(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "d d"]:
    """The correlation matrix of the columns of ``x``; 0 where one does not vary."""
    centred = x - x.mean(0)
    norm = np.sqrt((centred**2).sum(0))
    scaled = centred / np.where(norm > 0, norm, 1.0)
    found: np.ndarray = scaled.T @ scaled
    return found


@final
@dataclass(frozen=True)
class Measured:
    """One metric: its value, its floor, and the rule in words.  ``better``: lower or higher."""

    name: str
    value: float
    floor: float
    rule: str
    better: str = "lower"
    seen: str = "test"


def records(
    found: list[Measured], data: Any, *, n: int, floor_rule: str, extractor: str, generated: Mapping[str, Any]
) -> list[Record]:
    """The records of metrics of ``n`` samples against ``data``; raises :class:`Refusal` unless ``generated`` says how
    the samples were made."""
    missing = [key for key in REQUIRED if key not in generated]
    if missing:
        raise Refusal(f"generated lacks {', '.join(missing)}; say how the samples were made (None where not known)")
    known = {"sampler", "steps", "nfe", "seed", "guidance"}
    held = "as many held-out rows"
    return [
        Record(
            name=each.name,
            value=each.value,
            floor=each.floor,
            better=each.better,
            n=n,
            n_ref=len(data.test if each.seen == "test" else data.train),
            reference=units.reference(data, each.seen),
            data_sha256=data.sha256,
            rule=each.rule,
            floor_rule=floor_rule if each.seen == "test" else held,
            extractor=extractor,
            extractor_sha256="",
            preparation="none",
            sampler=generated["sampler"],
            steps=generated.get("steps"),
            nfe=generated["nfe"],
            seed=generated["seed"],
            guidance=generated.get("guidance"),
            version=__version__,
            settings={key: value for key, value in generated.items() if key not in known},
        )
        for each in found
    ]


def some(n: int, wanted: int) -> np.ndarray:
    """Up to ``wanted`` of ``n`` rows, chosen by a fixed seed, in order."""
    if wanted >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[:wanted])

"""Changes of units for one column of numbers: to about normal with standard deviation 0.5, and back.

The contract: ``decode(encode(x)) == x`` to float32's precision for every number that the code was fitted to, and never
a number outside their range.  ``Quantiles`` sends ranks to normal quantiles: any distribution becomes normal, and a
value that many rows share keeps an interval of its own, so that it comes back exactly.  ``Standard`` shifts and scales
what has light tails, so that the gaps between groups of numbers stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float64

from sfumato.errors import Refusal, nearest

#: Quantiles that are stored, at most.
KNOTS = 129
#: The standard deviation in model units, that of images, too.
SPREAD = 0.5
#: Skewness and excess kurtosis up to which tails are light, and the share that no single value may pass then.
SKEWNESS, KURTOSIS, ATOM = 1.0, 3.0, 0.05

Numbers = Float64[np.ndarray, " n"]


@runtime_checkable
class Code(Protocol):
    """An invertible change of units of numbers."""

    @property
    def name(self) -> str: ...

    def encode(self, x: Numbers) -> Numbers:
        """Model units of numbers in the user's."""
        ...

    def decode(self, z: Numbers) -> Numbers:
        """The user's units of numbers in the model's."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What :func:`from_json` rebuilds it from."""
        ...


def _normal_quantile(p: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    quantile: np.ndarray = ndtri(p)
    return quantile


@final
@dataclass(frozen=True)
class Quantiles:
    """Normal scores: ``values`` rise, ``below`` and ``upto`` are the shares of rows ``<`` and ``<=`` each of them.

    A number between two values lies between their intervals, linearly; one of the values goes to the middle rank of
    its interval, and the whole interval comes back as that value.  ``rows``: how many there were.
    """

    values: tuple[float, ...]
    below: tuple[float, ...]
    upto: tuple[float, ...]
    rows: int

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "quantiles"

    @staticmethod
    def of(x: Numbers) -> Quantiles:
        """The code of the numbers ``x``: all different ones where they are few, else evenly spread ranks."""
        ordered, n = np.sort(x), len(x)
        values = np.unique(ordered)
        if len(values) > KNOTS:
            values = np.unique(ordered[np.round(np.linspace(0, n - 1, KNOTS)).astype(int)])
        below = np.searchsorted(ordered, values, "left") / n
        upto = np.searchsorted(ordered, values, "right") / n
        return Quantiles(tuple(values.tolist()), tuple(below.tolist()), tuple(upto.tolist()), n)

    @cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The values and the normal scores of the two ends and the middle of their intervals."""
        below, upto, edge = np.array(self.below), np.array(self.upto), 0.25 / self.rows
        low, high = (SPREAD * _normal_quantile(p.clip(edge, 1 - edge)) for p in (below, upto))
        return np.array(self.values), low, high, SPREAD * _normal_quantile((below + upto) / 2)

    def encode(self, x: Numbers) -> Numbers:
        """Normal scores; numbers beyond the values' range are those of its ends."""
        values, low, high, middle = self._knots
        x = x.clip(values[0], values[-1])
        left = np.searchsorted(values, x, "right") - 1
        right = np.minimum(left + 1, len(values) - 1)
        gap = np.where(right > left, values[right] - values[left], 1.0)
        between = high[left] + (x - values[left]) / gap * (low[right] - high[left])
        scores: np.ndarray = np.where(x == values[left], middle[left], between)
        return scores

    def decode(self, z: Numbers) -> Numbers:
        """The numbers of normal scores, within the values' range."""
        values, low, high, _ = self._knots
        numbers: np.ndarray = np.interp(z, np.stack([low, high], 1).ravel(), values.repeat(2))
        return numbers

    def to_json(self) -> dict[str, Any]:
        """Its name and settings."""
        return {"code": "quantiles", **asdict(self)}


@final
@dataclass(frozen=True)
class Standard:
    """``(x - mean) / (2 std)``, so that the standard deviation is 0.5; ``low`` and ``high`` hold what comes back."""

    mean: float
    std: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "standardised"

    @staticmethod
    def of(x: Numbers) -> Standard:
        """The code of the numbers ``x``, which are not all equal."""
        return Standard(float(x.mean()), float(x.std()), float(x.min()), float(x.max()))

    def encode(self, x: Numbers) -> Numbers:
        """Numbers of mean 0 and standard deviation 0.5."""
        return (x - self.mean) / self.std * SPREAD

    def decode(self, z: Numbers) -> Numbers:
        """The numbers, within their range."""
        return (z / SPREAD * self.std + self.mean).clip(self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        """Its name and settings."""
        return {"code": "standard", **asdict(self)}


def fit(x: Numbers) -> Code:
    """The code of a column: ``Standard`` where numbers are many, of light tails and without a value that many share,
    else ``Quantiles``."""
    values, counts = np.unique(x, return_counts=True)
    if len(values) > KNOTS and counts.max() <= ATOM * len(x):
        z = (x - x.mean()) / x.std()
        if abs(float((z**3).mean())) < SKEWNESS and float((z**4).mean()) - 3 < KURTOSIS:
            return Standard.of(x)
    return Quantiles.of(x)


def from_json(record: Mapping[str, Any]) -> Code:
    """The code that ``to_json`` described.  Raises :class:`Refusal` for an unknown one."""
    known: dict[str, Callable[..., Code]] = {"quantiles": Quantiles, "standard": Standard}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    name = str(settings.pop("code", None))
    if name not in known:
        raise Refusal(f"unknown code of numbers {name!r}; {nearest(name, known)}")
    return known[name](**settings)

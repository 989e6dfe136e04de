"""The discretised decoder: a normal law over grey levels, by integrating its density over each level's bin.

The contract (Ho et al. 2020, eq. 13): level ``k`` of ``count`` evenly spaced ones has the probability of the interval
half a spacing to either side of it, and the first and the last interval reach to infinity; so the probabilities of a
pixel sum to 1.  Everything is computed in float64 and in the logarithm, where far tails keep their digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.trees import flat_sum, precise


@final
@dataclass(frozen=True)
class Levels:
    """``count`` evenly spaced values from ``low`` to ``high``, in the model's units: what one pixel of data can be.

    Raises :class:`Refusal` unless ``low < high`` and ``count >= 2``.
    """

    low: float
    high: float
    count: int = 256

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.count >= 2):
            raise Refusal(f"low={self.low}, high={self.high}, count={self.count}: levels need low < high and 2 of them")

    @staticmethod
    def of(transform: Any, count: int = 256) -> Levels:
        """The levels of the user's data, through a data transform's ``limits``."""
        low, high = transform.limits
        return Levels(low, high, count)

    @property
    def width(self) -> float:
        """The spacing: the width of a bin."""
        return (self.high - self.low) / (self.count - 1)

    def index(self, x: Tensor) -> Tensor:
        """The level ``[b, ...]`` (int64, where float64 is) of states that lie on levels.

        Raises :class:`Refusal` where they do not.
        """
        position = (precise(x) - self.low) / self.width
        index = position.round()
        off = float((position - index).abs().max()) if len(x) else 0.0
        if off > 0.01 or not bool(((index >= 0) & (index < self.count)).all()):
            raise Refusal(
                f"data lie up to {off:.2g} of a spacing off the {self.count} levels in [{self.low:.4g}, "
                f"{self.high:.4g}]; give data in the model's units, not dequantised"
            )
        return index.to(torch.int64)


@final
@dataclass(frozen=True)
class Discretised:
    """Independent discretised normals: ``mean [b, ...]`` and ``var`` (a number, or a tensor that broadcasts)."""

    mean: Tensor
    var: Any
    levels: Levels

    def log_prob(self, index: Tensor) -> Float64[Tensor, "..."]:
        """The log-probability of the levels ``index`` (broadcasts against ``mean``), coordinate by coordinate."""
        mean = precise(self.mean)
        index = index.to(mean.device)
        std: Any = precise(self.var).sqrt() if torch.is_tensor(self.var) else math.sqrt(self.var)
        centre = self.levels.low + self.levels.width * index.double() - mean
        lower = torch.where(index == 0, -math.inf, (centre - self.levels.width / 2) / std)
        upper = torch.where(index == self.levels.count - 1, math.inf, (centre + self.levels.width / 2) / std)
        # the upper tail is mirrored, so that the difference below is between numbers near 0
        mirrored = lower > 0
        a, b = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
        above, below = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
        logp: Tensor = above + torch.log1p(-torch.exp(below - above))
        return logp

    def nll(self, x: Float[Tensor, "b ..."]) -> Float64[Tensor, " b"]:
        """``-log P(x)`` in nats, summed over coordinates, for states on the levels."""
        return flat_sum(-self.log_prob(self.levels.index(x)))

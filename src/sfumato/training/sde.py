"""The rate of the variance-preserving SDEs of Song et al. 2021 (arXiv 2011.13456), as settings that recipes share.

The contract: ``beta(t)`` is linear from ``beta_min`` to ``beta_max`` (appendix C), and training times are uniform on
``[first_time, 1]``, kept off the data, where the score diverges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from sfumato.training.settings import require
from sfumato.training.times import Uniform


@final
@dataclass(frozen=True)
class Rate:
    """``beta_min``, ``beta_max``: the rate of the SDE at both ends; ``first_time``: training times begin there."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    first_time: float = 1e-5

    def __post_init__(self) -> None:
        require(0 < self.beta_min < self.beta_max, "beta_min", self.beta_min, "a number between 0 and beta_max")
        require(0 < self.first_time < 1, "first_time", self.first_time, "a time between 0 and 1")

    @property
    def times(self) -> Uniform:
        """The law of training times."""
        return Uniform(self.first_time)

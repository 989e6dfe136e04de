"""Wrappers that change a belief alone: static and dynamic thresholding of the predicted clean data.

The contract: ``Mapped(denoiser, f)`` believes ``f`` of what the denoiser believes.  Thresholds act on the belief's
point in model units, and a belief's variance is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from sfumato.core import Cond, Denoiser, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal
from sfumato.trees import against


@final
@dataclass(frozen=True)
class Mapped:
    """``f(denoiser(x_t, t, cond))``."""

    denoiser: Denoiser[Any]
    f: Callable[[Law[Any]], Law[Any]]

    def __call__(self, x_t: Any, t: Time, cond: Cond | None = None) -> Law[Any]:
        """The mapped belief."""
        return self.f(self.denoiser(x_t, t, cond))


def _with_point(q: Law[Any], point: Tensor) -> Law[Any]:
    return replace(q, mean=point) if isinstance(q, Normal) else Dirac(point)


@final
@dataclass(frozen=True)
class clip:
    """Static thresholding: clamp the predicted ``x0`` to ``[low, high]`` in model units (Ho et al. 2020)."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise Refusal(f"clip({self.low}, {self.high}): needs low < high")

    def __call__(self, q: Law[Any]) -> Law[Any]:
        """The belief with its point thresholded."""
        return _with_point(q, q.point().clamp(self.low, self.high))


@final
@dataclass(frozen=True)
class dynamic:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clamp to the ``quantile`` of ``|x0|`` per sample,
    rescale.

    Samples whose quantile lies below ``limit`` are clamped to ``limit`` and not rescaled.
    """

    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and self.limit > 0):
            raise Refusal(
                f"dynamic(quantile={self.quantile}, limit={self.limit}): needs 0 < quantile <= 1 and limit > 0"
            )

    def __call__(self, q: Law[Any]) -> Law[Any]:
        """The belief with its point thresholded."""
        x0 = q.point()
        bound = x0.flatten(1).abs().float().quantile(self.quantile, dim=1).clamp(min=self.limit)
        bound = against(bound.to(x0), x0)
        return _with_point(q, x0.clamp(-bound, bound) / bound * self.limit)

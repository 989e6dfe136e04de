"""Which noise levels a network is trained on: quantile functions ``u in (0, 1) -> t in (0, 1]``.

The contract: a time law is its quantile function, in float64, increasing, of the shape of ``u``.  Uniform ``u`` gives
the law's draws; an even spread of ``u`` gives a low-discrepancy batch; fixed ``u`` gives the fixed levels of
validation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.schedules import Schedule, time_at

#: ``u [b] in (0, 1) -> t [b] in (0, 1]``, float64.
TimeLaw = Callable[[Tensor], Tensor]
#: ``u`` closer than this to 0 or 1 is moved there: float32 uniforms can be exactly 0.
EDGE = 2.0**-25


def _normal_quantile(u: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(u.double().clamp(EDGE, 1 - EDGE))
    return quantile


@final
@dataclass(frozen=True)
class Uniform:
    """``t`` uniform on (start, 1] (Liu et al. 2022; the continuous limit of DDPM's uniform step)."""

    start: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise Refusal(f"start={self.start}: times begin in [0, 1)")

    def __call__(self, u: Tensor) -> Tensor:
        return (self.start + (1 - self.start) * u.double()).clamp(EDGE, 1.0)


@final
@dataclass(frozen=True)
class Steps:
    """``t = k / T`` with ``k`` uniform on ``1..T``: the discrete steps of a table (Ho et al. 2020, algorithm 1)."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Refusal(f"steps={self.steps}: a table has at least 1 step")

    def __call__(self, u: Tensor) -> Tensor:
        return ((u.double() * self.steps).floor() + 1).clamp(max=self.steps) / self.steps


@final
@dataclass(frozen=True)
class LogitNormal:
    """``log(t / (1 - t)) ~ N(mean, std^2)`` (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise Refusal(f"std={self.std}: the spread of the time law must be positive")

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u)).clamp(EDGE, 1.0)


@final
@dataclass(frozen=True)
class Shifted:
    """``shift t / (1 + (shift - 1) t)`` for ``t`` of another law (Esser et al. 2024, eq. 23).

    A ``shift`` above 1 moves times towards the noise: ``sqrt(m / n)`` for images of ``m`` pixels in place of ``n``.
    """

    law: TimeLaw
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < float("inf"):
            raise Refusal(f"shift={self.shift}: a shift of times is a positive number; 1 is none")

    def __call__(self, u: Tensor) -> Tensor:
        t = self.law(u)
        return (self.shift * t / (1 + (self.shift - 1) * t)).clamp(EDGE, 1.0)


@final
@dataclass(frozen=True)
class LogNormalSigma:
    """``log(sigma / alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1: mean -1.2, std 1.2), cut at ``t = 1``."""

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise Refusal(f"std={self.std}: the spread of the time law must be positive")

    def __call__(self, u: Tensor) -> Tensor:
        log_sigma = self.mean + self.std * _normal_quantile(u)
        found: Tensor = time_at(self.schedule, -2 * log_sigma)
        return found.clamp(min=EDGE)

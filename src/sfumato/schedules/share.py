"""The schedule that forgets as a recipe trains: at ``t`` a share ``F(t)`` is gone, ``F`` the law of training times.

The contract: ``alpha(t) = 1 - F(t)`` and ``sigma(t) = F(t)``, with ``F`` the distribution function of the times that a
recipe draws, linear between :data:`KNOTS` of its quantiles and exact at both ends.  Whatever the law, every share that
can be gone is trained equally often, and ``E[1 / F(t) * cost at t]`` over the recipe's own times is the integral over
the share: the evidence bound of masked tokens needs no other weight (it does not depend on the schedule).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import Time
from sfumato.schedules.reading import times

#: Quantiles of the law of times that are kept.
KNOTS = 4096


@final
@dataclass(frozen=True)
class Share:
    """``law``: the quantile function of the times, ``u -> t`` (:mod:`sfumato.training.times`)."""

    law: Any

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        u = torch.arange(KNOTS + 1, dtype=torch.float64) / KNOTS
        t = self.law(u).detach().cpu().double()
        t[0], t[-1] = 0.0, 1.0
        return t, u

    def gone(self, t: Time) -> Tensor:
        """``F(t)``, float64, of the shape of ``t``."""
        t = times(t).double()
        knots, u = (each.to(t.device) for each in self._knots)
        right = torch.searchsorted(knots, t.detach().contiguous(), right=True).clamp(1, KNOTS)
        low, high = knots[right - 1], knots[right]
        step = (t - low) / torch.where(high > low, high - low, 1.0)
        return torch.where(t >= 1, 1.0, (u[right - 1] + step * (u[right] - u[right - 1])).clamp(0.0, 1.0))

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at ``t``."""
        gone = self.gone(t)
        return 1 - gone, gone

"""Exponential moving averages of the weights with a power-function profile: warmed up and length-aware by construction.

The contract (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", eq. 1-2): after
step ``k`` the average is ``sum_i w_i theta_i`` with ``w_i = (i^(g+1) - (i-1)^(g+1)) / k^(g+1)``, by the update
``ema <- beta_k ema + (1 - beta_k) theta_k``, ``beta_k = (1 - 1/k)^(g+1)``.  The profile keeps its shape as training
gets longer: its standard deviation is ``sigma_rel`` times the length, and after one step it equals the weights.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from sfumato.errors import Refusal
from sfumato.training.parallel import like, local, whole


def exponent(sigma_rel: float) -> float:
    """``g`` of the profile whose relative width is ``sigma_rel`` (Karras et al. 2024, algorithm 2).

    The positive root of ``g^3 + 7 g^2 + (16 - s) g + (12 - s)`` with ``s = sigma_rel^-2``.  Raises :class:`Refusal`
    unless the width lies between 0 and 0.28, the widest profile (``g = 0``, the plain mean of all steps).
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise Refusal(f"ema={sigma_rel}: needs a relative width between 0 and 0.28 (0.1 is usual)")
    s = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def decay(step: int, g: float) -> float:
    """``beta_k = (1 - 1/k)^(g+1)`` of step ``k >= 1``."""
    return float((1 - 1 / step) ** (g + 1))


class EMA:
    """A frozen copy of a network that follows it.  The trained weights are only ever read.

    ``net``: the copy, in evaluation mode, without gradients; ready to sample from at any moment (where the weights are
    divided among processes: as it was at the last :meth:`gather`).
    """

    def __init__(self, source: nn.Module, sigma_rel: float) -> None:
        self.exponent = exponent(sigma_rel)
        self.net: Any = copy.deepcopy(source).eval().requires_grad_(False)
        self._own: list[torch.Tensor] = list(self.net.parameters())
        self._source: list[torch.Tensor] = list(source.parameters())
        self._buffers = list(zip(self.net.buffers(), source.buffers(), strict=True))
        self._divided: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (counted from 1)."""
        torch._foreach_lerp_(self._own, self._source, 1 - decay(step, self.exponent))
        for own, source in self._buffers:
            own.copy_(source)

    def divide(self, source: nn.Module) -> None:
        """From now on follow ``source``, whose weights were divided among processes, part by part."""
        held = list(source.parameters())
        self._divided = [like(part, own.detach()) for part, own in zip(held, self._own, strict=True)]
        self._own = [local(part) for part in self._divided]
        self._source = [local(part) for part in held]

    @torch.no_grad()
    def gather(self) -> None:
        """Bring ``net`` up to date from the parts; where the weights are divided, all processes must."""
        for own, part in zip(self.net.parameters(), self._divided, strict=bool(self._divided)):
            own.copy_(whole(part))

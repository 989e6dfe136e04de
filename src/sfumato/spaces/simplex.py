"""The probability simplex: ``k`` non-negative numbers that sum to 1 along the last axis; relaxed tokens, mixtures.

The contract: a state is ``[b, ..., k]``; the geometry is flat, geodesics are straight lines, and every straight line
between two members stays inside.  A tangent vector sums to 0.  The uniform law is ``Dirichlet(1, ..., 1)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.spaces.manifold import dimensions, tolerance
from sfumato.trees import against, flat_sum


@final
@dataclass(frozen=True)
class Simplex:
    """A product of probability simplices; states are ``[b, ..., k]``."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """Standard normal tangent vectors: they sum to 0 along the last axis."""
        return self.tangent(like, rng.normal(tuple(like.shape)).to(like))

    def project(self, x: Tensor) -> Tensor:
        """The nearest member: ``max(x - c, 0)`` with the ``c`` that makes it sum to 1 (Held, Wolfe, Crowder 1974)."""
        falling = x.sort(-1, descending=True).values
        excess = falling.cumsum(-1) - 1
        count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        used = (falling * count > excess).sum(-1, keepdim=True)
        c = excess.gather(-1, used - 1) / used
        return (x - c).clamp(min=0)

    def contains(self, x: Tensor) -> bool:
        """Whether every vector is non-negative and sums to 1."""
        return bool((x >= 0).all() and (x.sum(-1) - 1).abs().le(4 * tolerance(x)).all())

    def sites(self, x: Tensor) -> float:
        """Every coordinate counts."""
        return 1.0

    def dof(self, x: Tensor) -> Tensor:
        """``k - 1`` a simplex, ``[b]``."""
        k = x.shape[-1]
        return dimensions(x, x[0].numel() // k * (k - 1) if len(x) else 0)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """``x + v``; where that leaves the simplex, its nearest member."""
        return self.project(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """``y - x``."""
        return y - x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v`` less its mean."""
        return v - v.mean(-1, keepdim=True)

    def square(self, v: Tensor) -> Tensor:
        """``|v|^2``, ``[b]``."""
        return flat_sum(v**2)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The Euclidean distance, ``[b]``."""
        return self.square(y - x).sqrt()

    def cut(self, v: Tensor) -> Tensor:
        """No geodesic stops being the shortest."""
        return v

    def uniform(self, like: Tensor, rng: RNG) -> Tensor:
        """Exponential variables divided by their sum."""
        # 1 - u is in (0, 1]: no logarithm of 0; the floor keeps a row of zeros from being divided by 0
        waits = (-torch.log1p(-rng.uniform(tuple(like.shape)).double())).clamp(min=1e-12).to(like)
        return waits / waits.sum(-1, keepdim=True)

    def log_volume(self, like: Tensor) -> Tensor:
        """``log(sqrt(k) / (k - 1)!)`` a simplex."""
        k = like.shape[-1]
        return self.dof(like) / max(k - 1, 1) * (math.log(k) / 2 - math.lgamma(k))

    def log_spread(self, x: Tensor, y: Tensor, share: Any) -> Tensor:
        """Uniform on a copy of the simplex, ``share`` times as large and with ``x`` where ``x`` was."""
        share = torch.as_tensor(against(share, y), dtype=y.dtype, device=y.device).clamp(min=1e-12)
        end = x + (y - x) / share  # where the way through y to x began
        inside = (end >= -4 * tolerance(y)).flatten(1).all(1)
        shrunk = self.dof(y) * share.log().flatten()
        return torch.where(inside, -shrunk - self.log_volume(y), -math.inf)

    def coordinates(self, x: Tensor) -> Tensor:
        """The numbers themselves, ``[b, m]``."""
        return x.flatten(1)

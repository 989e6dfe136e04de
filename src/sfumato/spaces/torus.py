"""The torus: angles in ``[-pi, pi)``, of any trailing shape; torsions of a molecule, times of day, phases.

The contract: a state is a tensor of angles ``[b, ...]`` in radians, each on its own circle; the product is flat, so
geodesics are straight lines modulo ``2 pi`` and every coordinate counts once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import RNG
from sfumato.spaces.manifold import SHORT, dimensions, spread
from sfumato.trees import against, flat_sum


def wrap(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x`` modulo ``2 pi`` in ``[-pi, pi)``; angles already there are left bitwise as they are."""
    pi = float(torch.tensor(math.pi, dtype=x.dtype))
    y = x - 2 * pi * torch.round(x / (2 * pi))
    y = torch.where(y >= pi, y - 2 * pi, y)
    return y.clamp(min=-pi)


@final
@dataclass(frozen=True)
class Torus:
    """A product of circles; states are angles ``[b, ...]``."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """Standard normal tangent vectors, shaped like ``like``."""
        return rng.normal(tuple(like.shape)).to(like)

    def project(self, x: Tensor) -> Tensor:
        """The same angles, modulo ``2 pi``."""
        return wrap(x)

    def contains(self, x: Tensor) -> bool:
        """Whether every angle is finite and in ``[-pi, pi)`` (pi as the dtype rounds it)."""
        return bool((torch.isfinite(x) & (x >= -math.pi) & (x < math.pi)).all())

    def sites(self, x: Tensor) -> float:
        """Every angle counts once."""
        return 1.0

    def dof(self, x: Tensor) -> Tensor:
        """The number of angles, ``[b]``."""
        return dimensions(x, x[0].numel() if len(x) else 0)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """``x + v`` modulo ``2 pi``."""
        return wrap(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shorter way round: ``y - x`` in ``[-pi, pi)``."""
        return wrap(y - x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """Every vector is tangent."""
        return v

    def square(self, v: Tensor) -> Tensor:
        """``sum v^2``, ``[b]``."""
        return flat_sum(v**2)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The geodesic distance, ``[b]``."""
        return self.square(self.log(x, y)).sqrt()

    def cut(self, v: Tensor) -> Tensor:
        """Every coordinate within half a turn."""
        return v.clamp(-math.pi * SHORT, math.pi * SHORT)

    def uniform(self, like: Tensor, rng: RNG) -> Tensor:
        """Independent uniform angles."""
        return wrap((2 * rng.uniform(tuple(like.shape)) - 1).to(like) * math.pi)

    def log_volume(self, like: Tensor) -> Tensor:
        """``n log(2 pi)``."""
        return self.dof(like) * math.log(2 * math.pi)

    def log_spread(self, x: Tensor, y: Tensor, share: Any) -> Tensor:
        """Uniform on the box of half-width ``pi share`` around ``x``."""
        gap = self.log(x, y).abs()
        return spread(gap, against(share, gap), 0, math.log(2 * math.pi))

    def coordinates(self, x: Tensor) -> Tensor:
        """Cosines and sines ``[b, 2 n]``: a network sees no seam at half a turn."""
        flat = x.flatten(1)
        return torch.cat([flat.cos(), flat.sin()], 1)

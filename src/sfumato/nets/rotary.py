"""Rotary positions (Su et al. 2021): a query and a key are turned by their places, so their product knows the distance.

The contract: ``<rotate(q, i), rotate(k, j)>`` depends on ``i - j`` alone; a rotation keeps every length.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: The slowest pair of features turns once in about ``2 pi BASE`` places.
BASE = 10000.0


def rotations(length: int, d: int) -> tuple[Float[Tensor, "length h"], Float[Tensor, "length h"]]:
    """Cosines and sines of ``place * BASE^(-2 k / d)`` for ``h = d / 2`` pairs of features, float32."""
    speeds = BASE ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * speeds
    return angles.cos().float(), angles.sin().float()


def rotate(
    x: Float[Tensor, "... n d"], cos: Float[Tensor, "n h"], sin: Float[Tensor, "n h"]
) -> Float[Tensor, "... n d"]:
    """Every pair (feature k, feature k + d/2) of the token at row ``i`` turned by the angle of row ``i``."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)

"""The Euclidean space R^n: every tensor of finite numbers is a member, every coordinate counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import RNG


@final
@dataclass(frozen=True)
class Euclidean:
    """Real coordinates without constraints; states of any shape ``[b, ...]``."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """Standard normal noise shaped, typed and placed like ``like``."""
        return rng.normal(tuple(like.shape)).to(like)

    def project(self, x: Tensor) -> Tensor:
        """Every state is already a member."""
        return x

    def contains(self, x: Tensor) -> bool:
        """Whether every coordinate is finite."""
        return bool(torch.isfinite(x).all())

    def sites(self, x: Tensor) -> float:
        """Every coordinate counts once."""
        return 1.0

    def dof(self, x: Tensor) -> Tensor:
        """The number of coordinates of a sample, shape ``[b]``."""
        return torch.full((len(x),), x[0].numel() if len(x) else 0, dtype=x.dtype, device=x.device)

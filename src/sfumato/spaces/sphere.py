"""The sphere ``S^(d-1)``: unit vectors of any dimension along the last axis; places on Earth, directions.

The contract: a state is ``[b, ..., d]`` with unit vectors along the last axis, each on its own sphere of radius 1
and of dimension ``d - 1 >= 1``; a tangent vector is orthogonal to its point.  Two points are no sphere: ``d = 1`` is
refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal
from sfumato.spaces.manifold import SHORT, dimensions, length, spread, tolerance
from sfumato.trees import against, flat_sum


def _ambient(x: Tensor) -> int:
    """``d``, the length of the last axis; raises :class:`Refusal` below 2."""
    d = x.shape[-1] if x.ndim else 0
    if d < 2:
        raise Refusal(f"a state of shape {tuple(x.shape)}: a sphere's are [b, ..., d] with d of 2 (a circle) or more")
    return d


def _axis_of_least(x: Tensor) -> Tensor:
    """The coordinate axis that ``x`` points least along."""
    return torch.nn.functional.one_hot(x.abs().argmin(-1), x.shape[-1]).to(x)


@final
@dataclass(frozen=True)
class Sphere:
    """A product of unit spheres; states are unit vectors ``[b, ..., d]``."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """Standard normal tangent vectors at ``like``."""
        _ambient(like)
        return self.tangent(like, rng.normal(tuple(like.shape)).to(like))

    def project(self, x: Tensor) -> Tensor:
        """``x / |x|``; the origin, which has no nearest member, goes to the first axis."""
        _ambient(x)
        size = length(x)
        first = torch.zeros_like(x)
        first[..., 0] = 1
        return torch.where(size > 0, x / torch.where(size > 0, size, 1.0), first)

    def contains(self, x: Tensor) -> bool:
        """Whether every vector has length 1, in two dimensions or more."""
        unit = (torch.einsum("...i,...i->...", x, x) - 1).abs().le(tolerance(x)).all()
        return x.shape[-1] > 1 and bool(unit)

    def sites(self, x: Tensor) -> float:
        """Every coordinate counts."""
        return 1.0

    def dof(self, x: Tensor) -> Tensor:
        """``d - 1`` a vector, ``[b]``."""
        d = _ambient(x)
        return dimensions(x, x[0].numel() // d * (d - 1) if len(x) else 0)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Along the great circle: ``cos|v| x + sin|v| v / |v|``."""
        angle = length(v)
        return self.project(angle.cos() * x + torch.sinc(angle / math.pi) * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Along the great circle to ``y``; to the antipode, which no direction is nearer to, a fixed one."""
        off = self.tangent(x, y - x)
        sine, cosine = length(off), (x * y).sum(-1, keepdim=True)
        angle = torch.atan2(sine, cosine)
        straight = torch.where(sine > 0, angle / torch.where(sine > 0, sine, 1.0), 1.0) * off
        aside = angle * self.project(self.tangent(x, _axis_of_least(x)))
        # at the antipode nothing is left of the direction but rounding
        return torch.where((cosine > 0) | (sine > 8 * torch.finfo(x.dtype).eps), straight, aside)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v - <x, v> x``."""
        return v - (x * v).sum(-1, keepdim=True) * x

    def square(self, v: Tensor) -> Tensor:
        """``|v|^2``, ``[b]``."""
        return flat_sum(v**2)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The angle between two vectors (of a product: the root of the sum of squares), ``[b]``."""
        return self.square(self.log(x, y)).sqrt()

    def cut(self, v: Tensor) -> Tensor:
        """At most half a great circle."""
        size = length(v)
        return v * (math.pi * SHORT / size.clamp(min=math.pi * SHORT))

    def uniform(self, like: Tensor, rng: RNG) -> Tensor:
        """Directions of normal vectors."""
        return self.project(rng.normal(tuple(like.shape)).to(like))

    def _log_area(self, d: int) -> float:
        return math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)

    def log_volume(self, like: Tensor) -> Tensor:
        """``log(2 pi^(d/2) / Gamma(d/2))`` a vector."""
        d = _ambient(like)
        return self.dof(like) / (d - 1) * self._log_area(d)

    def log_spread(self, x: Tensor, y: Tensor, share: Any) -> Tensor:
        """The cap of angle ``pi share``, denser where the sphere is narrower."""
        d = _ambient(x)
        r = length(self.log(x, y))[..., 0]
        return spread(r, against(share, r), d - 2, self._log_area(d))

    def coordinates(self, x: Tensor) -> Tensor:
        """The vectors themselves, ``[b, m]``."""
        return x.flatten(1)

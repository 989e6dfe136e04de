"""What a curved space offers beyond :class:`~sfumato.core.Space`: geodesics, tangent vectors, volume.

The contract: a tangent vector at ``x`` is a tensor shaped like ``x`` (ambient coordinates); ``exp(x, log(x, y)) = y``,
``distance(x, y)^2 = square(log(x, y))``, and ``exp(x, v)`` is a member for every tangent ``v``.  Angles are radians.
Densities everywhere are per unit of Riemannian volume, ``radian^dof``, so that a narrow heat kernel has the density of
a Normal.  The noise of a manifold at ``x`` is a standard normal tangent vector at ``x``.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.trees import flat_sum, precise

#: A tangent vector is cut this share short of the cut locus, so that ``log(x, exp(x, v)) = v`` there, too.
SHORT = 1 - 1e-6


@runtime_checkable
class Manifold(Protocol):
    """A space with geodesics; the first five methods are those of every space."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """A standard normal tangent vector at ``like``, which must be a member."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The nearest member."""
        ...

    def contains(self, x: Tensor) -> bool:
        """Whether every sample is a member."""
        ...

    def sites(self, x: Tensor) -> Tensor | float:
        """Which coordinates count."""
        ...

    def dof(self, x: Tensor) -> Tensor:
        """The dimension, ``[b]``."""
        ...

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The end of the geodesic that leaves ``x`` with the tangent vector ``v``."""
        ...

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at ``x`` of the shortest geodesic to ``y``: finite everywhere, cut loci included."""
        ...

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """The part of an ambient vector that is tangent at ``x``."""
        ...

    def square(self, v: Tensor) -> Tensor:
        """The squared length of a tangent vector, ``[b]``."""
        ...

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The geodesic distance, ``[b]``."""
        ...

    def cut(self, v: Tensor) -> Tensor:
        """``v``, shortened to where its geodesic is still the shortest one."""
        ...

    def uniform(self, like: Tensor, rng: RNG) -> Tensor:
        """A draw of the uniform law, shaped like ``like``."""
        ...

    def log_volume(self, like: Tensor) -> Tensor:
        """The logarithm of the volume of the space, ``[b]``."""
        ...

    def log_spread(self, x: Tensor, y: Tensor, share: Any) -> Tensor:
        """The log-density ``[b]`` at ``y`` of ``exp(x, share log(x, u))`` with ``u`` uniform; ``share``: a number or
        ``[b]``."""
        ...

    def coordinates(self, x: Tensor) -> Tensor:
        """Smooth coordinates ``[b, m]`` of a state: what a network is given to read."""
        ...


def tolerance(x: Tensor) -> float:
    """How far rounding may take a member of order 1 off its space, for the dtype of ``x``."""
    return float(torch.finfo(x.dtype).eps ** 0.7)


def dimensions(x: Tensor, count: int) -> Tensor:
    """``count`` for every sample, ``[b]``, in the dtype of ``x`` (float32 for integers)."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return torch.full((len(x),), count, dtype=dtype, device=x.device)


def length(v: Tensor) -> Tensor:
    """The norm over the last axis, which is kept."""
    size: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return size


def widths(scale: Tensor | float, narrowest: float) -> Tensor:
    """A kernel's widths in float64 (a python number keeps its digits), none below ``narrowest``."""
    tensor = precise(scale) if torch.is_tensor(scale) else torch.tensor(scale, dtype=torch.float64)
    return tensor.clamp(min=narrowest)


def spread(r: Tensor, share: Any, power: int, log_volume: float) -> Tensor:
    """``[b]``: the log-density of a uniform draw drawn in towards a point, summed over the factors of a product.

    ``r`` ``[b, ...]``: distances from the point on spheres of radius 1; ``share`` ``[b, ...]`` broadcasts against them;
    the area at distance ``r`` grows as ``sin(r)^power``.
    """
    share = torch.as_tensor(share, dtype=r.dtype, device=r.device).clamp(min=1e-12)
    far = r / share
    inside = far <= math.pi * (1 + 1e-9)
    far = torch.where(inside, far, 0.0).clamp(max=math.pi)
    near = torch.where(inside, r, 0.0)
    # sin(r / share) / sin(r) without 0/0 at r = 0; at share = 1 it is 1 up to the antipode
    ratio = (torch.sinc(far / math.pi) / torch.sinc(near / math.pi).clamp(min=1e-300)) / share
    ratio = torch.where(share >= 1, 1.0, ratio.clamp(min=0.0))
    bulk = power * ratio.log() if power else torch.zeros_like(r)
    return flat_sum(torch.where(inside, bulk - torch.log(share) - log_volume, -math.inf))

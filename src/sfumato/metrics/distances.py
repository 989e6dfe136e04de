"""Distances between two sets of feature vectors, in float64, with no network in sight.

* :func:`frechet_distance`: ``|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)``, the squared 2-Wasserstein distance of
  the two Gaussians with the sets' means and (unbiased) covariances.  Heusel et al. 2017, arXiv 1706.08500, eq. 6.
* :func:`kernel_distance`: the unbiased estimate of MMD^2 with ``k(x, y) = (x.y / d + 1)^3``; 0 on average, and negative
  half of the time, for two sets of one law.  Binkowski et al. 2018, arXiv 1801.01401, section 4.
* :func:`precision_recall`: the share of one set that lies within a ball around a member of the other, its radius that
  member's distance to its k-th neighbour.  Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.errors import Refusal

#: Rows handled at once, so that no n x n matrix is ever whole in memory.
ROWS = 1000


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean ``[d]`` and covariance ``[d, d]`` (divided by n - 1) of ``n`` feature vectors, float64."""

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]


def _checked(features: Float[Tensor, "n d"], least: int) -> Float64[Tensor, "n d"]:
    """The features in float64; refuses fewer than ``least`` rows, and non-finite values."""
    if features.ndim != 2 or len(features) < least:
        raise Refusal(f"features have shape {list(features.shape)}; give [n, d] with n at least {least}")
    if not bool(torch.isfinite(features).all()):
        raise Refusal(f"features of shape {list(features.shape)} are not all finite; leave out the broken samples")
    return features.detach().to("cpu", torch.float64)


def _pair(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"], least: int) -> tuple[Tensor, Tensor]:
    """Both sets, checked, of one dimension."""
    if a.shape[-1] != b.shape[-1]:
        raise Refusal(f"features have {a.shape[-1]} and {b.shape[-1]} dimensions; take both from one extractor")
    return _checked(a, least), _checked(b, least)


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Mean and unbiased covariance of ``[n, d]`` features.  Raises :class:`Refusal` for n < 2 or non-finite values."""
    x = _checked(features, 2)
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.mT @ centred / (len(x) - 1))


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """The Fréchet distance of two Gaussians, in squared feature units; covariances may be singular.

    ``tr (C1 C2)^(1/2)`` is the sum of the square roots of the eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which is
    symmetric and positive, so nothing complex or unstable is ever formed.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    return max(0.0, float(shift + a.covariance.trace() + b.covariance.trace() - 2 * cross))


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"]) -> float:
    """The Fréchet distance of two feature sets.

    Raises :class:`Refusal` where either has fewer than ``d + 1`` vectors: its covariance would be singular by counting
    alone, and the distance mostly bias.
    """
    for features in (a, b):
        n, d = features.shape
        if n < d + 1:
            raise Refusal(f"n = {n} images for {d} features; the Fréchet distance needs at least {d + 1}")
    a, b = _pair(a, b, 2)
    return frechet_from_moments(moments(a), moments(b))


def _kernel_sum(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> float:
    """The sum of ``(x.y / d + 1)^3`` over all pairs."""
    one = torch.ones((), dtype=a.dtype)
    parts = [torch.addmm(one, rows, b.mT, alpha=1 / a.shape[1]).pow_(3).sum() for rows in torch.split(a, ROWS)]
    return float(torch.stack(parts).sum())


def kernel_within(x: Float[Tensor, "n d"]) -> float:
    """The mean kernel between two different members of one set: the set's own term of :func:`kernel_distance`."""
    x = _checked(x, 2)
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def kernel_between(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"]) -> float:
    """The mean kernel between a member of ``a`` and a member of ``b``."""
    a, b = _pair(a, b, 1)
    return _kernel_sum(a, b) / (len(a) * len(b))


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"]) -> float:
    """The unbiased MMD^2 of two feature sets with the cubic polynomial kernel, over all pairs (no subsets)."""
    a, b = _pair(a, b, 2)
    return kernel_within(a) + kernel_within(b) - 2 * kernel_between(a, b)


def _radii(x: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The distance of every vector to its k-th nearest other vector."""
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1, dim=1).values for rows in torch.split(x, ROWS)])


def _covered(x: Float64[Tensor, "n d"], centres: Float64[Tensor, "m d"], radii: Float64[Tensor, " m"]) -> float:
    """The share of ``x`` within the radius of any centre."""
    inside = [(torch.cdist(rows, centres) <= radii).any(1) for rows in torch.split(x, ROWS)]
    return float(torch.cat(inside).double().mean())


def precision_recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m _"], k: int = 3) -> tuple[float, float]:
    """(precision, recall): the share of generated within the real manifold, and of real within the generated one.

    Both fall as their set grows sparse, so compare only at equal n and m.  Raises :class:`Refusal` unless each set has
    more than ``k`` vectors.
    """
    if k < 1:
        raise Refusal(f"k = {k} neighbours; the paper takes 3")
    real, generated = _pair(real, generated, k + 1)
    return _covered(generated, real, _radii(real, k)), _covered(real, generated, _radii(generated, k))

"""Distances between two sets of feature vectors, in float64, with no network in sight.

The contract: every function is of the features alone, refuses what is not finite, and works through blocks of
:data:`ROWS` rows, so that its memory is ``O(ROWS (n + m) + (n + m) d)`` at any n and m.

* :func:`frechet_distance`: ``|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)``, the squared 2-Wasserstein distance of
  the two Gaussians with the sets' means and (unbiased) covariances.  Heusel et al. 2017, arXiv 1706.08500, eq. 6.
* :func:`kernel_distance`: the unbiased estimate of MMD^2 with ``k(x, y) = (x.y / d + 1)^3``; 0 on average, and negative
  half of the time, for two sets of one law.  Binkowski et al. 2018, arXiv 1801.01401, section 4.
* :func:`frechet_error`: the standard error of the Fréchet distance over the draw of its first set, by the delta method.

Neighbours are in :mod:`sfumato.metrics.manifolds`, other kernels in :mod:`sfumato.metrics.kernels`, projections in
:mod:`sfumato.metrics.sliced`, what classifiers say in :mod:`sfumato.metrics.scores`.
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
@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over the draw of the samples, the reference held fixed (None: not known)."""

    value: float
    error: float | None = None


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean ``[d]`` and covariance ``[d, d]`` (divided by n - 1) of ``n`` feature vectors, float64."""

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]


def checked(features: Float[Tensor, "n d"], least: int) -> Float64[Tensor, "n d"]:
    """The features in float64; refuses fewer than ``least`` rows, and non-finite values."""
    if features.ndim != 2 or len(features) < least:
        raise Refusal(f"features have shape {list(features.shape)}; give [n, d] with n at least {least}")
    if not bool(torch.isfinite(features).all()):
        raise Refusal(f"features of shape {list(features.shape)} are not all finite; leave out the broken samples")
    return features.detach().to("cpu", torch.float64)


def pair(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"], least: int) -> tuple[Tensor, Tensor]:
    """Both sets, checked, of one dimension."""
    if a.shape[-1] != b.shape[-1]:
        raise Refusal(f"features have {a.shape[-1]} and {b.shape[-1]} dimensions; take both from one extractor")
    return checked(a, least), checked(b, least)


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Mean and unbiased covariance of ``[n, d]`` features.  Raises :class:`Refusal` for n < 2 or non-finite values."""
    x = checked(features, 2)
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
    a, b = pair(a, b, 2)
    return frechet_from_moments(moments(a), moments(b))


def frechet_error(features: Float[Tensor, "n d"], reference: Moments) -> float:
    """The standard error of ``frechet_distance(features, reference)`` over independent draws of the features.

    The delta method: to first order the distance is a mean over the samples of its influence function

    ``2 (m - m_r).y + y.(I - T) y``,  ``y = x - m``,  ``T = C_r^(1/2) (C_r^(1/2) C C_r^(1/2))^(-1/2) C_r^(1/2)``,

    with ``T`` the linear map of the optimal transport from one Gaussian to the other (van der Vaart 1998, chapter 20).
    Directions in which either covariance is nothing but rounding are left out.
    """
    x = checked(features, 2)
    own = moments(x)
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    between, turn = torch.linalg.eigh(root @ own.covariance @ root)
    small = between.max().clamp_min(1e-300) * len(between) * 1e-15
    inverse = torch.where(between > small, between.clamp_min(small).rsqrt(), torch.zeros_like(between))
    half = turn.mT @ root
    transport = half.mT * inverse @ half
    y = x - own.mean
    influence = 2 * (y @ (own.mean - reference.mean)) + y.square().sum(1) - ((y @ transport) * y).sum(1)
    return float(influence.std() / len(x) ** 0.5)


def _kernel_sum(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> float:
    """The sum of ``(x.y / d + 1)^3`` over all pairs."""
    one = torch.ones((), dtype=a.dtype)
    parts = [torch.addmm(one, rows, b.mT, alpha=1 / a.shape[1]).pow_(3).sum() for rows in torch.split(a, ROWS)]
    return float(torch.stack(parts).sum())


def kernel_within(x: Float[Tensor, "n d"]) -> float:
    """The mean kernel between two different members of one set: the set's own term of :func:`kernel_distance`."""
    x = checked(x, 2)
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def kernel_between(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"]) -> float:
    """The mean kernel between a member of ``a`` and a member of ``b``."""
    a, b = pair(a, b, 1)
    return _kernel_sum(a, b) / (len(a) * len(b))


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"]) -> float:
    """The unbiased MMD^2 of two feature sets with the cubic polynomial kernel, over all pairs (no subsets)."""
    a, b = pair(a, b, 2)
    return kernel_within(a) + kernel_within(b) - 2 * kernel_between(a, b)

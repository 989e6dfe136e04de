"""A mixture of Gaussians, and everything about it in closed form.

The contract: data ``x0 ~ sum_k w_k N(m_k, C_k)`` seen through ``x_t = alpha x0 + sigma eps`` has

* ``p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2)``, with responsibilities ``r_k`` by a stable softmax;
* posterior ``p(x0 | x_t) = sum_k r_k N(m_k + G_k (x_t - alpha m_k), C_k - alpha G_k C_k)``,
  ``G_k = alpha C_k (alpha^2 C_k + sigma^2)^-1``;
* velocity ``sum_k r_k (alpha' m_k + (alpha alpha' C_k + sigma sigma')(alpha^2 C_k + sigma^2)^-1 (x_t - alpha m_k))``.

All of it is evaluated in the axes of each covariance, where it is diagonal: exact at sigma = 0 and at alpha = 0, where
the belief is the data itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import RNG, Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.oracles.common import (
    LawDenoiser,
    PointDenoiser,
    divide,
    flatten,
    float64,
    flow_on_circle,
    labels,
    level_rates,
    levels,
    pick,
)
from sfumato.randomness import as_rng

#: Stands for a variance of zero inside logarithms; its square still fits a float64.
_TINY = 1e-200


def _rotate(x: Tensor, basis: Tensor | None) -> Tensor:
    """Into the axes of each component: ``[b, k, d]``."""
    return x if basis is None else torch.einsum("bkd,kde->bke", x, basis)


def _back(z: Tensor, basis: Tensor | None) -> Tensor:
    return z if basis is None else torch.einsum("bke,kde->bkd", z, basis)


@final
@dataclass(frozen=True, eq=False)
class MixturePosterior:
    """The exact posterior of a Gaussian mixture: a law that is neither a Dirac nor a Normal.

    Shapes: ``logr`` ``[b, k]`` log-responsibilities, ``means`` ``[b, k, d]``, ``var`` ``[b, k, d]`` the variances in
    the axes ``basis`` ``[k, d, d]`` (``None``: the coordinate axes), ``shape`` of one sample, ``dtype`` of the states
    it hands out.
    """

    logr: Tensor
    means: Tensor
    var: Tensor
    basis: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    leaves: ClassVar[tuple[str, ...]] = ("logr", "means", "var")

    def _out(self, flat: Tensor) -> Tensor:
        return flat.reshape(len(flat), *self.shape).to(self.dtype)

    def draw(self, rng: RNG) -> Tensor:
        """A component by one uniform a sample, then a normal of that component."""
        b = torch.arange(len(self.logr), device=self.logr.device)
        k = pick(self.logr, rng.uniform((len(b),)).to(self.logr)) if self.logr.shape[1] > 1 else torch.zeros_like(b)
        z = rng.normal((len(k), *self.shape)).to(self.means).flatten(1) * self.var[b, k].sqrt()
        if self.basis is not None:
            z = torch.einsum("be,bde->bd", z, self.basis[k])
        return self._out(self.means[b, k] + z)

    def point(self) -> Tensor:
        """The posterior mean."""
        return self._out((self.logr.exp()[..., None] * self.means).sum(1))

    def covariance(self) -> Float[Tensor, "b d d"]:
        """The posterior covariance of the flattened state."""
        r = self.logr.exp()
        gap = self.means - (r[..., None] * self.means).sum(1, keepdim=True)
        between = torch.einsum("bk,bkd,bke->bde", r, gap, gap)
        if self.basis is None:
            return between + torch.diag_embed((r[..., None] * self.var).sum(1))
        return between + torch.einsum("bk,bke,kde,kfe->bdf", r, self.var, self.basis, self.basis)

    def nll(self, x: Tensor) -> Float[Tensor, " b"]:
        """``-log p(x)`` in nats, float64."""
        z = _rotate(x.to(torch.float64).flatten(1)[:, None] - self.means, self.basis)
        var = self.var.clamp(min=_TINY)
        return -(self.logr - ((z * z / var).sum(2) + (2 * math.pi * var).log().sum(2)) / 2).logsumexp(1)

    def kl(self, other: Law[Tensor]) -> Tensor:
        """Refused: mixtures have no closed-form KL."""
        raise Refusal("KL of a mixture has no closed form; use oracle.denoiser(process) or a Normal belief")

    def tilt(self, ref: Law[Tensor], w: Any) -> Law[Tensor]:
        """Guidance of the points, ``ref + w (self - ref)``: a Dirac, since mixtures are not closed under tilting."""
        return Dirac.pool([ref, self], [1.0 - w, w])


@final
@dataclass(frozen=True, init=False, eq=False)
class GaussianMixture:
    """Data from a Gaussian mixture: exact posteriors for every Gaussian process.

    ``GaussianMixture(weights, means, covariances)``: ``weights`` ``[k]`` (summing to 1), ``means`` ``[k, *shape]``
    (``[k, d]``, or ``[k, c, h, w]`` for images), ``covariances`` one number or ``[k]`` (isotropic *variances*), shaped
    like ``means`` (diagonals), or ``[k, d, d]`` with d the number of coordinates (full).  Lists, arrays and tensors are
    all accepted.  Raises :class:`Refusal` for weights that are no distribution and for covariances that are not
    symmetric and non-negative.

    Conditions: ``cond={"label": [b]}`` picks component ``label``; ``label == k`` is the null label, the whole mixture.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    basis: Tensor | None
    shape: tuple[int, ...]

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        w, m, c = float64(weights), float64(means), float64(covariances)
        if w.ndim != 1 or m.ndim < 1 or len(m) != len(w):
            raise Refusal(f"weights {tuple(w.shape)} and means {tuple(m.shape)} must be [k] and [k, ...] of the same k")
        if bool((w < 0).any()) or abs(float(w.sum()) - 1) > 1e-6:
            raise Refusal(f"weights must be non-negative and sum to 1, not to {float(w.sum()):.6g}")
        if m.ndim == 1:
            m = m[:, None]
        k, shape = len(w), tuple(m.shape[1:])
        d = math.prod(shape)
        basis: Tensor | None = None
        if c.ndim == 0 or c.shape == (k,):
            spectrum = c.expand(k)[:, None].expand(k, d)
        elif c.shape == m.shape:
            spectrum = c.reshape(k, d)
        elif c.shape == (k, d, d):
            if not torch.allclose(c, c.mT, atol=1e-12 * max(1.0, float(c.abs().max()))):
                raise Refusal("a covariance is not symmetric; give C with C == C^T")
            spectrum, basis = torch.linalg.eigh(c)
            spectrum = torch.where(spectrum.abs() < 1e-13 * spectrum.amax(1, keepdim=True), 0.0, spectrum)
        else:
            raise Refusal(
                f"covariances of shape {tuple(c.shape)} for means {tuple(m.shape)}; "
                f"give a number, [{k}], {list(m.shape)} or [{k}, {d}, {d}]"
            )
        if bool((spectrum < 0).any()):
            raise Refusal(f"a covariance has the negative eigenvalue {float(spectrum.min()):.3g}; it must not")
        fields = {"weights": w / w.sum(), "means": m.reshape(k, d), "variances": spectrum, "basis": basis}
        for name, value in (fields | {"shape": shape}).items():
            object.__setattr__(self, name, value)

    # ------------------------------------------------------------------------------------------------ inside
    def _logw(self, cond: Cond | None, batch: int) -> Tensor:
        k = len(self.weights)
        label = labels(cond, batch, k)
        if label is None:
            return self.weights.log().expand(batch, k)
        own = torch.where(torch.arange(k) == label[:, None].cpu(), 0.0, -math.inf).to(torch.float64)
        return torch.where((label == k).cpu()[:, None], self.weights.log(), own)

    def _terms(self, flat: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor, Tensor]:
        """``(log w_k N_k(x_t) [b, k], z = x_t - alpha m_k in the axes of k [b, k, d], its variances [b, k, d])``."""
        a, g = alpha[..., None], sigma[..., None]
        z = _rotate(flat[:, None] - a * self.means.to(flat), self.basis)
        var = a * a * self.variances.to(flat) + g * g
        safe = var.clamp(min=_TINY)
        logn = -((z * z / safe).sum(2) + (2 * math.pi * safe).log().sum(2)) / 2
        return self._logw(cond, len(flat)).to(flat) + logn, z, var

    def _circle(
        self, flat: Tensor, alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, cond: Cond | None
    ) -> Tensor:
        logs, z, var = self._terms(flat, alpha, sigma, cond)
        a, g, da, dg = (v[..., None] for v in (alpha, sigma, dalpha, dsigma))
        rate = divide(a * da * self.variances + g * dg, var)
        return (logs.softmax(1)[..., None] * (da * self.means + _back(rate * z, self.basis))).sum(1)

    # ------------------------------------------------------------------------------------------------ the data
    def sample(self, n: int, rng: Any) -> Float[Tensor, "n *shape"]:
        """``n`` samples, float64; ``rng`` is an RNG, a Generator or a seed."""
        return self.sample_with_label(n, rng)[0]

    def sample_with_label(self, n: int, rng: Any) -> tuple[Float[Tensor, "n *shape"], Int[Tensor, " n"]]:
        """``n`` samples and the component of each."""
        rng = as_rng(rng)
        if len(self.weights) > 1:
            k = pick(self.weights.log().expand(n, -1), rng.uniform((n,)))
        else:
            k = torch.zeros(n, dtype=torch.int64)
        z = rng.normal((n, *self.shape)).to(torch.float64).flatten(1) * self.variances[k].sqrt()
        if self.basis is not None:
            z = torch.einsum("be,bde->bd", z, self.basis[k])
        return (self.means[k] + z).reshape(n, *self.shape), k

    def nll(self, x: Float[Tensor, "b *shape"], cond: Cond | None = None) -> Float[Tensor, " b"]:
        """``-log p(x0)`` of clean data, in nats."""
        flat = flatten(x, self.means.shape[1])
        one, zero = torch.ones(len(flat), 1, dtype=torch.float64), torch.zeros(len(flat), 1, dtype=torch.float64)
        return -self._terms(flat, one, zero, cond)[0].logsumexp(1)

    # ------------------------------------------------------------------------------------------------ at a time t
    def logp(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """``log p_t(x_t)`` in nats."""
        flat = flatten(x, self.means.shape[1])
        return self._terms(flat, *levels(process, t, flat), cond)[0].logsumexp(1)

    def score(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``grad log p_t(x_t)``."""
        flat = flatten(x, self.means.shape[1])
        logs, z, var = self._terms(flat, *levels(process, t, flat), cond)
        return -(logs.softmax(1)[..., None] * _back(divide(z, var), self.basis)).sum(1).reshape(x.shape).to(x.dtype)

    def belief(self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None) -> MixturePosterior:
        """The whole posterior ``p(x0 | x_t)``."""
        flat = flatten(x, self.means.shape[1])
        alpha, sigma = levels(process, t, flat)
        logs, z, var = self._terms(flat, alpha, sigma, cond)
        a, g, spectrum = alpha[..., None], sigma[..., None], self.variances.to(flat)
        means = self.means.to(flat) + _back(divide(a * spectrum, var) * z, self.basis)
        left = divide(spectrum * g * g, var)
        return MixturePosterior(logs.log_softmax(1), means, left, self.basis, tuple(x.shape[1:]), x.dtype)

    def mean(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``E[x0 | x_t]``."""
        return self.belief(process, x, t, cond).point()

    def covariance(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b d d"]:
        """``Cov(x0 | x_t)`` of the flattened state."""
        return self.belief(process, x, t, cond).covariance()

    def velocity(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``dx/dt`` of the probability-flow ODE in the schedule's time; refused where that has no finite derivative."""
        flat = flatten(x, self.means.shape[1])
        return self._circle(flat, *level_rates(process, t, flat), cond).reshape(x.shape).to(x.dtype)

    def flow(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, s: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """The state at ``s`` that the probability-flow ODE carries ``x`` at ``t`` to, to 1e-12 (DOP853)."""
        flat = flatten(x, self.means.shape[1])
        out = flow_on_circle(
            lambda y, cos, sin: self._circle(y, cos, sin, -sin, cos, cond),
            flat,
            levels(process, t, flat),
            levels(process, s, flat),
        )
        return out.reshape(x.shape).to(x.dtype)

    # ------------------------------------------------------------------------------------------------ as models
    def denoiser(self, process: Any) -> PointDenoiser:
        """The perfect point prediction: ``Dirac(E[x0 | x_t])``."""
        return PointDenoiser(self, process)

    def posterior(self, process: Any) -> LawDenoiser:
        """The perfect model: the exact law ``p(x0 | x_t)``."""
        return LawDenoiser(self, process)

"""A finite data set as its own oracle: the model that has memorised it perfectly.

The contract: data uniform on the atoms ``x_1..x_n``; the posterior puts ``softmax(-|x_t - alpha x_i|^2 / (2 sigma^2))``
on atom i, the posterior mean is their weighted sum (at sigma = 0 the nearest atom, at alpha = 0 the mean of the data).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
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

#: Below this angle the flow has already collapsed onto an atom: the rest is the posterior mean.
_NEAR = 1e-6


@final
@dataclass(frozen=True, eq=False)
class Atoms:
    """A law on finitely many states: ``logr`` ``[b, n]`` log-weights of the atoms ``[n, d]``."""

    logr: Tensor
    atoms: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    leaves: ClassVar[tuple[str, ...]] = ("logr",)

    def draw(self, rng: RNG) -> Tensor:
        """One atom a sample, by one uniform."""
        index = pick(self.logr, rng.uniform((len(self.logr),)).to(self.logr))
        return self.atoms[index].reshape(-1, *self.shape).to(self.dtype)

    def point(self) -> Tensor:
        """The mean."""
        return (self.logr.exp() @ self.atoms).reshape(-1, *self.shape).to(self.dtype)

    def covariance(self) -> Float[Tensor, "b d d"]:
        """The covariance of the flattened state."""
        r = self.logr.exp()
        mean = r @ self.atoms
        return torch.einsum("bn,nd,ne->bde", r, self.atoms, self.atoms) - mean[:, :, None] * mean[:, None, :]

    def nll(self, x: Tensor) -> Float[Tensor, " b"]:
        """``-log`` of the probability of ``x``: infinite where it is no atom."""
        hit = (x.to(self.atoms).flatten(1)[:, None] == self.atoms).all(2)
        return -self.logr.masked_fill(~hit, -math.inf).logsumexp(1)

    def kl(self, other: Law[Tensor]) -> Tensor:
        """Refused: a law of atoms has no density to compare."""
        raise Refusal("KL of a law of atoms is infinite or undefined; use oracle.denoiser(process)")

    def tilt(self, ref: Law[Tensor], w: Any) -> Law[Tensor]:
        """Guidance of the points, ``ref + w (self - ref)``."""
        return Dirac.pool([ref, self], [1.0 - w, w])


@final
@dataclass(frozen=True, init=False, eq=False)
class Empirical:
    """A data set ``[n, *shape]`` as an oracle; ``label`` ``[n]`` (optional, integers 0..k-1) makes it conditional.

    ``cond={"label": [b]}`` restricts the posterior to the atoms of that label; ``label == k`` is the null label.
    """

    atoms: Tensor
    label: Tensor | None
    shape: tuple[int, ...]

    def __init__(self, data: Any, label: Any = None) -> None:
        x = float64(data)
        x = x[:, None] if x.ndim == 1 else x
        y = None if label is None else torch.as_tensor(label).to("cpu", torch.int64)
        if x.ndim < 2 or len(x) == 0 or not bool(torch.isfinite(x).all()):
            raise Refusal(f"data of shape {tuple(x.shape)} must be a non-empty, finite [n, ...]")
        if y is not None and (y.shape != (len(x),) or bool((y < 0).any())):
            raise Refusal(f"labels of shape {tuple(y.shape)} for {len(x)} samples; give one integer >= 0 for each")
        for name, value in {"atoms": x.flatten(1), "label": y, "shape": tuple(x.shape[1:])}.items():
            object.__setattr__(self, name, value)

    # ------------------------------------------------------------------------------------------------ inside
    def _logw(self, cond: Cond | None, batch: int) -> Tensor:
        n = len(self.atoms)
        classes = 0 if self.label is None else int(self.label.max()) + 1
        label = labels(cond, batch, classes)
        flat = torch.full((batch, n), -math.log(n), dtype=torch.float64)
        if label is None or self.label is None:
            return flat
        counts = torch.bincount(self.label, minlength=classes + 1).clamp(min=1)[label.cpu()].to(torch.float64)
        own = torch.where(self.label == label.cpu()[:, None], -counts.log()[:, None], -math.inf)
        return torch.where((label.cpu() == classes)[:, None], flat, own)

    def _gaps(self, flat: Tensor, alpha: Tensor) -> Tensor:
        """``|x_t - alpha x_i|`` ``[b, n]``, without the cancellation of the expanded square."""
        exact = "donot_use_mm_for_euclid_dist"
        if bool((alpha == alpha[0]).all()):
            return torch.cdist(flat, alpha[0] * self.atoms, compute_mode=exact)
        one_by_one = [
            torch.cdist(x[None], a * self.atoms, compute_mode=exact) for x, a in zip(flat, alpha, strict=True)
        ]
        return torch.cat(one_by_one)

    def _logs(self, flat: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        """Log-weights ``[b, n]`` and the constant ``[b, 1]`` missing from them to be ``log (w_i N_i(x_t))``."""
        gap = self._gaps(flat, alpha)
        nearest = gap.detach().amin(1, keepdim=True)
        twice = (2 * sigma * sigma).clamp(min=1e-200)
        constant = nearest**2 / twice + flat.shape[1] * (math.pi * twice).log() / 2
        return self._logw(cond, len(flat)) - (gap - nearest) * (gap + nearest) / twice, constant

    def _mean(self, flat: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond | None) -> Tensor:
        return self._logs(flat, alpha, sigma, cond)[0].softmax(1) @ self.atoms

    def _circle(
        self, flat: Tensor, alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, cond: Cond | None
    ) -> Tensor:
        mean = self._mean(flat, alpha, sigma, cond)
        return dalpha * mean + dsigma * divide(flat - alpha * mean, sigma)

    # ------------------------------------------------------------------------------------------------ the data
    def sample(self, n: int, rng: Any) -> Float[Tensor, "n *shape"]:
        """``n`` samples drawn with replacement, float64."""
        index = (as_rng(rng).uniform((n,)).to(torch.float64) * len(self.atoms)).long()
        return self.atoms[index].reshape(n, *self.shape)

    def nll(self, x: Float[Tensor, "b *shape"], cond: Cond | None = None) -> Float[Tensor, " b"]:
        """``-log`` of the probability of ``x``: ``log n`` at an atom, infinite elsewhere."""
        flat = flatten(x, self.atoms.shape[1])
        return Atoms(self._logw(cond, len(flat)), self.atoms, self.shape).nll(flat)

    # ------------------------------------------------------------------------------------------------ at a time t
    def logp(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """``log p_t(x_t)`` in nats, for sigma > 0."""
        flat = flatten(x, self.atoms.shape[1])
        logs, constant = self._logs(flat, *levels(process, t, flat), cond)
        return logs.logsumexp(1) - constant[:, 0]

    def score(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``grad log p_t(x_t)``, for sigma > 0."""
        flat = flatten(x, self.atoms.shape[1])
        alpha, sigma = levels(process, t, flat)
        mean = self._mean(flat, alpha, sigma, cond)
        return ((alpha * mean - flat) / (sigma * sigma)).reshape(x.shape).to(x.dtype)

    def belief(self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None) -> Atoms:
        """The posterior: weights on the atoms."""
        flat = flatten(x, self.atoms.shape[1])
        logs, _ = self._logs(flat, *levels(process, t, flat), cond)
        return Atoms(logs.log_softmax(1), self.atoms, tuple(x.shape[1:]), x.dtype)

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
        """``dx/dt`` of the probability-flow ODE, in the time of the schedule, for sigma > 0."""
        flat = flatten(x, self.atoms.shape[1])
        return self._circle(flat, *level_rates(process, t, flat), cond).reshape(x.shape).to(x.dtype)

    def flow(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, s: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """The state at ``s`` that the probability-flow ODE carries ``x`` at ``t`` to (DOP853 at 1e-12).

        Onto sigma = 0 it ends on an atom: the flow is integrated to an angle of 1e-6, the rest is the posterior mean.
        """
        flat = flatten(x, self.atoms.shape[1])
        start, (alpha, sigma) = levels(process, t, flat), levels(process, s, flat)
        ends = sigma <= _NEAR * alpha
        stop = torch.where(ends, _NEAR * alpha, sigma)
        y = flow_on_circle(lambda y, cos, sin: self._circle(y, cos, sin, -sin, cos, cond), flat, start, (alpha, stop))
        mean = self._mean(y, alpha, stop, cond)
        y = torch.where(ends, alpha * mean + divide(sigma, stop) * (y - alpha * mean), y)
        return y.reshape(x.shape).to(x.dtype)

    # ------------------------------------------------------------------------------------------------ as models
    def denoiser(self, process: Any) -> PointDenoiser:
        """The perfect point prediction: ``Dirac(E[x0 | x_t])``."""
        return PointDenoiser(self, process)

    def posterior(self, process: Any) -> LawDenoiser:
        """The perfect model: the exact law ``p(x0 | x_t)``."""
        return LawDenoiser(self, process)

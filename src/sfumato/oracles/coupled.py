"""Two Gaussians and a coupling between them: every velocity of an interpolant in closed form.

The contract: coordinates are independent of each other; in each, ``x0 ~ N(m0, v0)``, ``x1 ~ N(m1, v1)`` and
``Cov(x0, x1) = c``.  Along ``x_t = alpha x0 + beta x1 + gamma z`` everything is jointly normal, so with
``mu = alpha m0 + beta m1`` and ``V = alpha^2 v0 + beta^2 v1 + 2 alpha beta c + gamma^2``

* the velocity is ``E[v | x_t] = mu' + V' / (2 V) (x_t - mu)``, since ``Cov(v, x_t) = V' / 2``;
* the score is ``-(x_t - mu) / V``.

``c = sqrt(v0 v1)`` is optimal transport, ``c = 0`` independence, and :func:`bridge_covariance` the Schroedinger bridge
in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.oracles.common import PointDenoiser, divide, float64
from sfumato.processes.interpolant import Interpolant
from sfumato.schedules import rates
from sfumato.trees import against


def bridge_covariance(v0: float, v1: float, sigma: float) -> float:
    """``Cov(x0, x1)`` of the static Schroedinger bridge between ``N(., v0)`` and ``N(., v1)`` whose reference is
    Brownian motion of variance ``sigma^2``: ``(sqrt(4 v0 v1 + sigma^4) - sigma^2) / 2`` (Bunne et al. 2023)."""
    return (math.sqrt(4 * v0 * v1 + sigma**4) - sigma**2) / 2


@final
@dataclass(frozen=True, init=False, eq=False)
class CoupledGaussian:
    """Ends ``N(mean0, var0)`` (data) and ``N(mean1, var1)`` (prior) with covariance ``cross``, coordinate by
    coordinate.

    Each is a number or shaped like one sample (a number stands for shape ``[1]``).  Raises :class:`Refusal` where a
    variance is negative or ``cross^2 > var0 var1``.
    """

    mean0: Tensor
    var0: Tensor
    mean1: Tensor
    var1: Tensor
    cross: Tensor

    def __init__(self, mean0: Any, var0: Any, mean1: Any = 0.0, var1: Any = 1.0, cross: Any = 0.0) -> None:
        given = [float64(value) for value in (mean0, var0, mean1, var1, cross)]
        shape = sum(given, torch.zeros(1, dtype=torch.float64)).shape  # all broadcast together
        fields = [value.expand(shape) for value in given]
        for name, value in zip(("mean0", "var0", "mean1", "var1", "cross"), fields, strict=True):
            object.__setattr__(self, name, value)
        if bool((self.var0 < 0).any()) or bool((self.var1 < 0).any()):
            raise Refusal(f"var0={var0}, var1={var1}: variances must not be negative")
        if bool((self.cross**2 > self.var0 * self.var1 * (1 + 1e-9)).any()):
            raise Refusal(f"cross={cross} is more than sqrt(var0 var1): no coupling has it")

    @classmethod
    def fit(cls, x0: Float[Tensor, "n *shape"], x1: Float[Tensor, "n *shape"]) -> CoupledGaussian:
        """The moments of given pairs: for normal pairs, the law that a flow trained on them learns."""
        a, b = x0.double(), x1.double()
        da, db = a - a.mean(0), b - b.mean(0)
        return cls(a.mean(0), (da**2).mean(0), b.mean(0), (db**2).mean(0), (da * db).mean(0))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.mean0.shape)

    def moments(self, process: Interpolant, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(mu, V, mu', V')`` of ``x_t``, each shaped like one sample (``[b, ...]`` for times ``[b]``)."""
        time = t.double() if torch.is_tensor(t) else torch.tensor(float(t), dtype=torch.float64)
        time = against(time, self.mean0[None]).contiguous() if time.ndim else time

        def law(u: Tensor) -> tuple[Tensor, Tensor]:
            alpha, beta = process.ends(u)
            noise = torch.zeros_like(u) if process.gamma is None else process.gamma.variance(u)
            spread = alpha**2 * self.var0 + beta**2 * self.var1 + 2 * alpha * beta * self.cross
            return alpha * self.mean0 + beta * self.mean1, spread + noise

        (mu, var), (dmu, dvar) = torch.func.jvp(law, (time,), (torch.ones_like(time),))[:2]
        return mu, var, dmu, dvar

    def velocity(
        self, process: Interpolant, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``E[alpha' x0 + beta' x1 + gamma' z | x_t]``, finite at both ends for every bump."""
        mu, var, dmu, dvar = self.moments(process, t)
        return (dmu + divide(dvar, 2 * var) * (x.double() - mu)).to(x.dtype)

    def score(
        self, process: Interpolant, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``grad log p_t(x_t)``."""
        mu, var, _, _ = self.moments(process, t)
        return divide(mu - x.double(), var).to(x.dtype)

    def mean(
        self, process: Interpolant, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """What solvers know the velocity by: ``x0hat = (sigma' x - sigma v) / (sigma' alpha - sigma alpha')``."""
        alpha, sigma, dalpha, dsigma = (against(v, x.double()) for v in rates(process.schedule, t))
        wide = x.double()
        top = dsigma * wide - sigma * self.velocity(process, wide, t)
        point: Tensor = top / (dsigma * alpha - sigma * dalpha)
        return point.to(x.dtype)

    def belief(
        self, process: Interpolant, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Law[Tensor]:
        """``Dirac(x0hat)``: a coupled path has no posterior law that a step could use."""
        return Dirac(self.mean(process, x, t, cond))

    def denoiser(self, process: Interpolant) -> PointDenoiser:
        """The perfect velocity model, as solvers take it."""
        return PointDenoiser(self, process)

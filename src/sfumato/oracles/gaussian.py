"""One Gaussian: every sampler is a linear map of it, so samplers can be checked to the last digit.

The contract: data ``x0 ~ N(m, C)``; the posterior is ``N(m + G (x_t - alpha m), C - alpha G C)`` with
``G = alpha C (alpha^2 C + sigma^2)^-1``; the probability flow from t to s multiplies the axis of variance c by
``sqrt((alpha_s^2 c + sigma_s^2) / (alpha_t^2 c + sigma_t^2))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Normal
from sfumato.oracles.common import LawDenoiser, PointDenoiser, divide, flatten, float64, labels, levels
from sfumato.oracles.mixture import GaussianMixture


@final
@dataclass(frozen=True, init=False, eq=False)
class Gaussian:
    """Data from one Gaussian: exact posteriors for every Gaussian process.

    ``Gaussian(mean, covariance)``: ``mean`` of the shape of one sample (a number stands for shape ``[1]``);
    ``covariance`` one number (isotropic *variance*), shaped like ``mean`` (diagonal), or ``[d, d]`` for d coordinates
    (full).  Raises :class:`Refusal` like :class:`GaussianMixture`.
    """

    mixture: GaussianMixture

    def __init__(self, mean: Any, covariance: Any) -> None:
        m, c = float64(mean), float64(covariance)
        m = m[None] if m.ndim == 0 else m
        object.__setattr__(self, "mixture", GaussianMixture([1.0], m[None], c if c.ndim == 0 else c[None]))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.mixture.shape

    @property
    def entropy(self) -> float:
        """The differential entropy, in nats."""
        return float((2 * math.pi * math.e * self.mixture.variances).log().sum() / 2)

    def sample(self, n: int, rng: Any) -> Float[Tensor, "n *shape"]:
        """``n`` samples, float64."""
        return self.mixture.sample(n, rng)

    def nll(self, x: Float[Tensor, "b *shape"], cond: Cond | None = None) -> Float[Tensor, " b"]:
        """``-log p(x0)`` of clean data, in nats."""
        return self.mixture.nll(x, cond)

    def logp(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """``log p_t(x_t)`` in nats."""
        return self.mixture.logp(process, x, t, cond)

    def score(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``grad log p_t(x_t)``."""
        return self.mixture.score(process, x, t, cond)

    def mean(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``E[x0 | x_t]``."""
        return self.mixture.mean(process, x, t, cond)

    def covariance(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b d d"]:
        """``Cov(x0 | x_t)`` of the flattened state; it does not depend on ``x``."""
        return self.mixture.covariance(process, x, t, cond)

    def velocity(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """``dx/dt`` of the probability-flow ODE, in the time of the schedule."""
        return self.mixture.velocity(process, x, t, cond)

    def belief(self, process: Any, x: Float[Tensor, "b *shape"], t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The posterior: a :class:`Normal` for isotropic and diagonal covariances, else the exact correlated law."""
        law = self.mixture.belief(process, x, t, cond)
        if law.basis is not None:
            return law
        return Normal(law.point(), law.var[:, 0].reshape(x.shape).to(x.dtype))

    def flow(
        self, process: Any, x: Float[Tensor, "b *shape"], t: Time, s: Time, cond: Cond | None = None
    ) -> Float[Tensor, "b *shape"]:
        """The state at ``s`` that the probability-flow ODE carries ``x`` at ``t`` to, in closed form."""
        data = self.mixture
        flat = flatten(x, data.means.shape[1])
        labels(cond, len(flat), 1)
        (a, g), (b, h) = levels(process, t, flat), levels(process, s, flat)
        if bool(((a * a * data.variances + g * g) == 0).any() & (h > 0).any()):
            raise Refusal(f"the flow from t={t} starts from a point mass; start where sigma > 0")
        z = flat - a * data.means
        z = z if data.basis is None else z @ data.basis[0]
        z = z * divide(b * b * data.variances + h * h, a * a * data.variances + g * g).sqrt()
        z = z if data.basis is None else z @ data.basis[0].mT
        return (b * data.means + z).reshape(x.shape).to(x.dtype)

    def denoiser(self, process: Any) -> PointDenoiser:
        """The perfect point prediction: ``Dirac(E[x0 | x_t])``."""
        return PointDenoiser(self, process)

    def posterior(self, process: Any) -> LawDenoiser:
        """The perfect model: the exact law ``p(x0 | x_t)``."""
        return LawDenoiser(self, process)

"""The Gaussian process ``x_t = alpha x0 + sigma eps``: four laws and two losses for any schedule and any space.

The contract: ``prior = N(0, sigma(1)^2)``; ``marginal = N(alpha x0, sigma^2)``; ``forward`` is the transition whose
composition with the marginal is the later marginal; ``bridge`` is the posterior of Sohl-Dickstein et al. (2015), in the
family of Song et al. (DDIM, 2021, eq. 7), closed form for Dirac and Normal beliefs, so that a belief with variance
widens the step exactly as integrating over it would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import Law, Space, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal, Through
from sfumato.schedules import Schedule, at, narrow, rates, wide
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import flat_sum


def divide(a: Any, b: Any) -> Any:
    """``a / b`` with ``0 / 0 = 0``: alpha may vanish at the prior and sigma does at the data."""
    if torch.is_tensor(a) or torch.is_tensor(b):
        b = torch.as_tensor(b, dtype=a.dtype if torch.is_tensor(a) else None)
        return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
    return a / b if b else 0.0


def _sqrt(v: Any) -> Any:
    return v.clamp(min=0).sqrt() if torch.is_tensor(v) else math.sqrt(max(v, 0.0))


@final
@dataclass(frozen=True)
class Gaussian:
    """Gaussian destruction along ``schedule`` in ``space``; states are tensors ``[b, ...]``."""

    schedule: Schedule
    space: Space = Euclidean()

    def prior(self, like: Tensor) -> Normal:
        """``N(0, sigma(1)^2)``, shaped like ``like``."""
        return Normal(torch.zeros_like(like), at(self.schedule, 1.0)[1] ** 2, self.space)

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Law[Tensor]:
        """``q(x_t | x0) = N(alpha x0, sigma^2)``; with ``end``, a given draw of the prior, the point it leads to."""
        alpha, sigma = at(self.schedule, t, x0)
        if end is None:
            return Normal(alpha * x0, sigma**2, self.space)
        return Dirac(alpha * x0 + sigma / at(self.schedule, 1.0)[1] * end)

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """``q(x_t | x_s) = N((alpha_t/alpha_s) x_s, sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)`` for ``s <= t``."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = at(self.schedule, s, wide(x_s)), at(self.schedule, t, wide(x_s))
        ratio = divide(alpha_t, alpha_s)
        var = sigma_t**2 - (ratio * sigma_s) ** 2
        return Normal(narrow(ratio, x_s) * x_s, narrow(var, x_s), self.space)

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The law of ``x_s`` given ``x_t`` and the belief ``q`` over ``x0``.

        With ``k = eta^2 (1 - (alpha_t sigma_s / alpha_s sigma_t)^2)`` the fresh share of the variance,
        ``x_s = (alpha_s - alpha_t c) x0 + c x_t + sigma_s sqrt(k) z`` and ``c = (sigma_s / sigma_t) sqrt(1 - k)``
        (DDIM, eq. 7; ``eta = 1`` is DDPM's posterior, eq. 6-7).  A Normal belief adds its variance in closed form; any
        other law is drawn from first.  From ``t = 0`` no noise is left to bridge: with ``eta = 0`` the state goes out
        without any (DDIM inversion), else :class:`Refusal` is raised.
        """
        if not isinstance(q, Dirac | Normal):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, eta))
        # float64 until the last moment: for close times the differences below cancel
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at(self.schedule, t, wide(x_t)), at(self.schedule, s, wide(x_t))
        if isinstance(sigma_t, float) and sigma_t == 0 and eta:
            raise Refusal(f"a bridge from t={t:g}, where sigma = 0, carries no noise; start at a time above 0")
        kept = divide(sigma_s, sigma_t)
        fresh = eta**2 * (1 - (divide(alpha_t, alpha_s) * kept) ** 2) if eta else 0.0
        on_x_t = kept * _sqrt(1 - fresh)
        on_x0 = narrow(alpha_s - alpha_t * on_x_t, x_t)
        mean = on_x0 * q.point() + narrow(on_x_t, x_t) * x_t
        var = narrow(sigma_s**2 * fresh, x_t)
        if isinstance(q, Normal):
            var = var + on_x0**2 * q.var
        return Dirac(mean) if isinstance(var, float) and var == 0 else Normal(mean, var, self.space)

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``|x0hat - x0|^2`` summed over coordinates, shape ``[b]``: finite at both ends; weightings multiply it."""
        return flat_sum((q.point() - x0) ** 2 * self.space.sites(x0))

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``-(1/2) d(alpha^2/sigma^2)/dt |x0hat - x0|^2``, shape ``[b]`` (Kingma et al. 2021, eq. 15)."""
        alpha, sigma, dalpha, dsigma = rates(self.schedule, t)
        fall = alpha**2 * dsigma / sigma**3 - alpha * dalpha / sigma**2
        return (fall.to(x0) if torch.is_tensor(fall) else fall) * self.loss(q, x0, x_t, t)

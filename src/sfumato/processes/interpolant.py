"""Stochastic interpolants ``x_t = alpha x0 + beta x1 + gamma z``: the paths of coupled flows.

The contract: ``(alpha, beta)`` is a schedule from data (``t = 0``) to a draw ``x1`` of the prior (``t = 1``), ``gamma``
a bump of fresh noise that vanishes at both ends (Albergo, Boffi and Vanden-Eijnden 2023, arXiv 2303.08797, section 2).
The pair ``(x0, x1)`` may be coupled (optimal transport, an entropic plan, the two ends of another flow), so a state at
``t`` is no longer all that the future depends on: the process is no Markov chain, has no forward law, no ancestral
bridge and no evidence bound, and refuses all three.  What it has is an ordinary differential equation.

Why the solvers of Gaussian paths run on it: with ``sigma = sqrt(beta^2 + gamma^2)`` a velocity ``v`` is restated as
``x0hat = (sigma' x - sigma v) / (sigma' alpha - sigma alpha')`` and ``epshat = (x - alpha x0hat) / sigma``, and then
``alpha' x0hat + sigma' epshat = v`` identically.  The conversion is a change of variables, whatever the coupling and
whatever ``v``: a solver of ``dx/dt = alpha' x0hat + sigma' epshat`` solves ``dx/dt = v``.  ``x0hat`` is the posterior
mean ``E[x0 | x_t]`` where ``gamma = 0`` or the ends are independent, and a coordinate of the solver otherwise.

==================  ==============================  ===========================================================
method              (alpha, beta); gamma            source
==================  ==============================  ===========================================================
OT-CFM              ``(1 - t, t)``; 0               Tong et al. 2023, section 3 (their sigma 0)
SB-CFM              ``(1 - t, t)``; Bridge          Tong et al. 2023, section 3
rectified flow      ``(1 - t, t)``; 0               Liu et al. 2022, eq. 1
trigonometric       ``(cos, sin)(pi t / 2)``; any   Albergo and Vanden-Eijnden 2022
==================  ==============================  ===========================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import Law, Space, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal
from sfumato.processes.gaussian import Gaussian
from sfumato.schedules import Schedule, at, narrow, wide
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import against


@runtime_checkable
class Bump(Protocol):
    """The standard deviation of the fresh noise, ``t -> gamma``, float64, of the shape of ``t``."""

    def __call__(self, t: Tensor) -> Tensor:
        """``gamma``."""
        ...

    def variance(self, t: Tensor) -> Tensor:
        """``gamma^2`` as a formula of its own: it is smooth where a square root has no slope."""
        ...


#: Where the fall of the log signal-to-noise ratio is verified.
KNOTS = 65


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise Refusal(f"{name}={value}: the fresh noise needs a positive size; give gamma=None for none")


@final
@dataclass(frozen=True)
class Bridge:
    """``gamma = sigma sqrt(t (1 - t))``: the Brownian bridge of variance ``sigma^2`` (Tong et al. 2023, section 3).

    Its derivative is infinite at both ends; the velocity's conditional mean is not.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("sigma", self.sigma)

    def __call__(self, t: Tensor) -> Tensor:
        """``gamma`` at the times ``t``, of its shape."""
        return self.sigma * torch.sqrt(t * (1 - t))

    def variance(self, t: Tensor) -> Tensor:
        """``gamma^2`` at the times ``t``, of its shape."""
        return self.sigma**2 * t * (1 - t)


@final
@dataclass(frozen=True)
class SineSquared:
    """``gamma = scale sin^2(pi t)``: smooth, with zero slope at both ends (Albergo et al. 2023, section 4)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("scale", self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        """``gamma`` at the times ``t``, of its shape."""
        return self.scale * torch.sin(math.pi * t) ** 2

    def variance(self, t: Tensor) -> Tensor:
        """``gamma^2`` at the times ``t``, of its shape."""
        return self(t) ** 2


@final
@dataclass(frozen=True)
class Parabola:
    """``gamma = scale t (1 - t)``: finite slopes at both ends (Albergo et al. 2023, section 4)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("scale", self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        """``gamma`` at the times ``t``, of its shape."""
        return self.scale * t * (1 - t)

    def variance(self, t: Tensor) -> Tensor:
        """``gamma^2`` at the times ``t``, of its shape."""
        return self(t) ** 2


@final
@dataclass(frozen=True)
class Blur:
    """``gamma = noise`` at every time (Tong et al. 2023, section 3): both ends are blurred by it, the data too.

    The one bump that does not vanish at the ends, as those experiments have it.  The samples then follow the data
    convolved with ``N(0, noise^2)``.
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        _require_positive("noise", self.noise)

    def __call__(self, t: Tensor) -> Tensor:
        """``gamma`` at the times ``t``, of its shape."""
        return self.noise + 0.0 * t

    def variance(self, t: Tensor) -> Tensor:
        """``gamma^2`` at the times ``t``, of its shape."""
        return self(t) ** 2


@final
@dataclass(frozen=True)
class Spread:
    """The schedule ``(alpha, sqrt(beta^2 + gamma^2))`` of an interpolant with fresh noise."""

    ends: Schedule
    gamma: Bump

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = t if torch.is_tensor(t) else torch.tensor(t, dtype=torch.float64)
        alpha, beta = self.ends(t)
        return alpha, torch.sqrt(beta**2 + self.gamma.variance(t))


class Levels(NamedTuple):
    """``(alpha, beta, gamma)`` and their time derivatives, ready to broadcast against a state."""

    alpha: Any
    beta: Any
    gamma: Any
    dalpha: Any
    dbeta: Any
    dgamma: Any


@final
@dataclass(frozen=True)
class Interpolant:
    """``x_t = alpha x0 + beta x1 + gamma z`` along ``ends = (alpha, beta)``; states are tensors ``[b, ...]``.

    ``gamma``: None for none.  Raises :class:`Refusal` where ``alpha / sqrt(beta^2 + gamma^2)`` does not fall all the
    way: solvers walk by it.
    """

    ends: Schedule
    gamma: Bump | None = None
    space: Space = Euclidean()
    #: Whether states form a Markov chain: samplers that draw noise ask.
    markov: ClassVar[bool] = False

    def __post_init__(self) -> None:
        t = torch.linspace(0.0, 1.0, KNOTS, dtype=torch.float64)
        alpha, sigma = self.schedule(t)
        angle = torch.atan2(sigma, alpha)
        if not bool((angle.diff() > 0).all()):
            first = float(t[int((angle.diff() <= 0).nonzero()[0])])
            raise Refusal(f"gamma={self.gamma}: the signal-to-noise ratio rises again at t={first:.3f}; use less noise")

    @property
    def schedule(self) -> Schedule:
        """``(alpha, sigma)`` with ``sigma = sqrt(beta^2 + gamma^2)``: all that a solver sees."""
        return self.ends if self.gamma is None else Spread(self.ends, self.gamma)

    def levels(self, t: Tensor, x: Tensor) -> Levels:
        """The path's coefficients and rates at the times ``t`` ``[b]``, float64, shaped against ``x`` ``[b, ...]``."""
        reference = wide(x)
        t = against(t.to(reference.device).double(), reference).contiguous()

        def path(time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            alpha, beta = self.ends(time)
            return alpha, beta, torch.zeros_like(time) if self.gamma is None else self.gamma(time)

        values, slopes = torch.func.jvp(path, (t,), (torch.ones_like(t),))[:2]
        return Levels(*values, *slopes)

    def prior(self, like: Tensor) -> Normal:
        """``N(0, sigma(1)^2)``, shaped like ``like``: the law of ``x1`` that couplings start from."""
        return self._independent.prior(like)

    @property
    def _independent(self) -> Gaussian:
        """The Gaussian process with these marginals where the ends are independent."""
        return Gaussian(self.schedule, self.space)

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Law[Tensor]:
        """``q(x_t | x0, x1 = end) = N(alpha x0 + beta end, gamma^2)``, a Dirac where ``gamma`` is None.

        Without ``end`` the ends are independent: ``N(alpha x0, sigma^2)``.
        """
        if end is None:
            return self._independent.marginal(x0, t)
        alpha, beta = at(self.ends, t, x0)
        mean = alpha * x0 + beta * end
        if self.gamma is None:
            return Dirac(mean)
        times = t if torch.is_tensor(t) else torch.tensor(float(t), dtype=torch.float64)
        variance = self.gamma.variance(against(times.double(), wide(x0)))
        return Normal(mean, narrow(variance, x0), self.space)

    def _refuse(self, what: str) -> NoReturn:
        raise Refusal(
            f"an Interpolant's ends are coupled, so it is no Markov chain and has no {what}; an ODE solver samples it"
        )

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Law[Tensor]:
        """Refused: a coupled path is no Markov chain."""
        self._refuse("forward law")

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The deterministic step: ``alpha_s x0 + (sigma_s / sigma_t) (x_t - alpha_t x0)`` at the belief's point.

        It is exact for a constant ``x0hat``.  Raises :class:`Refusal` for ``eta > 0``, as for a forward law.
        """
        if eta > 0:
            self._refuse(f"bridge of eta={eta:g}")
        return self._independent.bridge(x_t, q, t, s, 0.0)

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``|x0hat - x0|^2`` summed over coordinates, shape ``[b]``; refused where ``gamma`` is not None.

        With fresh noise ``x0hat`` is no posterior mean under a coupling: train the velocity
        (:func:`sfumato.training.velocity.velocity_loss`).
        """
        if self.gamma is not None:
            raise Refusal(f"gamma={self.gamma}: x0 is no target on a noisy interpolant; use velocity_loss")
        return self._independent.loss(q, x0, x_t, t)

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """Refused: without a Markov chain there is no evidence bound."""
        self._refuse("evidence bound")

"""Brownian motion on a manifold: variance-exploding diffusion of torsions and rotations.

The contract: ``q(x_t | x0)`` is the heat kernel of width ``sigma(t)`` around ``x0``, whose limit is the uniform law,
the prior; the chain is Markov, and its transition from ``s`` to ``t`` is the kernel of width ``sqrt(sigma_t^2 -
sigma_s^2)``.  On the torus (Jing et al. 2022, section 3.2) everything is exact, the bridge included, so DDPM samples
it; on SO(3) (Leach et al. 2022; Corso et al. 2022, section 4.4) the bridge has no closed form and the reverse SDE is
walked instead (:class:`~sfumato.samplers.manifold.GeodesicWalk`).

The score of ``p_t`` is a mean over the belief: ``grad log p_t(x_t) = E[grad log q(x_t | x0) | x_t]``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Through
from sfumato.laws.manifold import IGSO3, Along, Uniform, WrappedBridge, WrappedNormal
from sfumato.schedules import Schedule, at, narrow, rates, wide
from sfumato.schedules.continuous import Geometric
from sfumato.spaces import igso3, wrapped_normal
from sfumato.spaces.manifold import Manifold
from sfumato.spaces.so3 import SO3
from sfumato.spaces.torus import Torus

#: Widths between which the mean square of a score is looked up, evenly spaced in their logarithm.
NARROW, WIDE, LEVELS = 1e-4, 20.0, 512


@functools.lru_cache(maxsize=4)
def _table(square_score: Callable[[Tensor], Tensor]) -> Tensor:
    width = torch.linspace(math.log(NARROW), math.log(WIDE), LEVELS, dtype=torch.float64).exp()
    return torch.cat([square_score(part) for part in width.reshape(-1, 64)]).clamp(min=1e-300).log()


def tabulated(square_score: Callable[[Tensor], Tensor], scale: Any) -> Tensor:
    """``square_score(scale)``, linear between tabulated widths on logarithmic axes: training asks at every step."""
    logs = _table(square_score)
    place = torch.as_tensor(scale, dtype=torch.float64).clamp(NARROW, WIDE).log() - math.log(NARROW)
    place = place * ((LEVELS - 1) / math.log(WIDE / NARROW))
    left = place.floor().clamp(max=LEVELS - 2)
    share, index = place - left, left.long()
    logs = logs.to(index.device)
    return ((1 - share) * logs[index] + share * logs[index + 1]).exp()


@runtime_checkable
class HeatKernel(Protocol):
    """What a Brownian process needs to know of a manifold."""

    #: Whether the bridge has a closed form: samplers that walk bridges ask.
    bridged: ClassVar[bool]

    @property
    def space(self) -> Manifold:
        """The manifold."""
        ...

    def law(self, mean: Tensor, scale: Any) -> WrappedNormal | IGSO3:
        """The kernel of width ``scale`` (broadcasts against ``mean``) around ``mean``."""
        ...

    def bridge(self, x_t: Tensor, x0: Tensor, sigma_t: Any, sigma_s: Any, eta: float) -> Law[Tensor]:
        """``q(x_s | x_t, x0)``."""
        ...

    def square_score(self, scale: Any) -> Tensor:
        """``E|score|^2`` of one factor of the product, shaped like ``scale``."""
        ...


@final
@dataclass(frozen=True)
class Circles:
    """The heat kernel of the torus: a wrapped normal an angle."""

    space: Torus = Torus()
    bridged: ClassVar[bool] = True

    def law(self, mean: Tensor, scale: Any) -> WrappedNormal:
        """The wrapped normal."""
        return WrappedNormal(mean, scale, self.space)

    def bridge(self, x_t: Tensor, x0: Tensor, sigma_t: Any, sigma_s: Any, eta: float) -> WrappedBridge:
        """Exact: a mixture over windings."""
        return WrappedBridge(x_t, x0, sigma_t, sigma_s, eta)

    def square_score(self, scale: Any) -> Tensor:
        """Of one angle."""
        return tabulated(wrapped_normal.square_score, scale)


@final
@dataclass(frozen=True)
class Rotations:
    """The heat kernel of SO(3): IGSO(3) a rotation."""

    space: SO3 = SO3()
    bridged: ClassVar[bool] = False

    def law(self, mean: Tensor, scale: Any) -> IGSO3:
        """The isotropic Gaussian."""
        return IGSO3(mean, scale, self.space)

    def bridge(self, x_t: Tensor, x0: Tensor, sigma_t: Any, sigma_s: Any, eta: float) -> NoReturn:
        """Refused: the product of two heat kernels of SO(3) is no known law."""
        raise Refusal("a Brownian bridge on SO(3) has no closed form; use the sampler 'walk'")

    def square_score(self, scale: Any) -> Tensor:
        """Of one rotation."""
        return tabulated(igso3.square_score, scale)


@final
@dataclass(frozen=True)
class Brownian:
    """Heat kernels along ``schedule``, which must explode: ``alpha = 1``, ``sigma`` from 0 to well over a turn's share.

    ``kernel``: :class:`Circles` or :class:`Rotations`.  DiffDock's widths are ``Geometric(0.03, pi)`` for torsions and
    ``Geometric(0.03, 1.55)`` for rotations.  Raises :class:`Refusal` for a schedule that shrinks the data.
    """

    kernel: HeatKernel
    schedule: Schedule = Geometric(0.03, 6.0)

    def __post_init__(self) -> None:
        alpha, _ = at(self.schedule, 1.0)
        if alpha != 1:
            raise Refusal(f"alpha(1)={alpha:.3g}: points of a manifold cannot shrink; use 'geometric' or 'karras'")

    @property
    def space(self) -> Manifold:
        """The manifold."""
        return self.kernel.space

    def _sigma(self, t: Time, x: Tensor) -> Any:
        return at(self.schedule, t, wide(x))[1]

    def prior(self, like: Tensor) -> Uniform:
        """The uniform law: the marginal at 1 is within ``marginal(x0, 1).kl(prior)`` nats of it."""
        return Uniform(self.space, like)

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Law[Tensor]:
        """The heat kernel around ``x0``; raises :class:`Refusal` for a given ``end``, which a random walk has no path
        to."""
        if end is not None:
            raise Refusal("a Brownian process does not lead to a given end; use Geodesic for couplings")
        sigma = self._sigma(t, x0)
        if not torch.is_tensor(sigma) and sigma == 0:
            return Dirac(x0)
        return self.kernel.law(x0, narrow(sigma, x0))

    def log_density(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``log q(x_t | x0)`` per unit of volume, ``[b]``: what exact posteriors are made of."""
        return -self.kernel.law(x0, narrow(self._sigma(t, x0), x0)).nll(x_t)

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Law[Tensor]:
        """``q(x_t | x_s)``: the kernel of width ``sqrt(sigma_t^2 - sigma_s^2)`` around ``x_s``."""
        return self.kernel.law(x_s, narrow(self._between(s, t, x_s) ** 0.5, x_s))

    def _between(self, s: Time, t: Time, x: Tensor) -> Any:
        return self._sigma(t, x) ** 2 - self._sigma(s, x) ** 2

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The law of ``x_s`` given ``x_t`` and the belief ``q``: exact on the torus, refused on SO(3).

        A belief that is no point is drawn from first.  At ``eta = 0`` the only chance left is the winding.  Raises
        :class:`Refusal` for ``eta`` beyond [0, 1].
        """
        if not 0 <= eta <= 1:
            raise Refusal(f"eta={eta:g}: the share of fresh noise of a Brownian bridge lies in [0, 1]")
        if not isinstance(q, Dirac):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, eta))
        sigma_t, sigma_s = self._sigma(t, x_t), self._sigma(s, x_t)
        if not torch.is_tensor(sigma_s) and sigma_s == 0:
            return Dirac(q.x)
        return self.kernel.bridge(x_t, q.x, sigma_t, sigma_s, eta)

    def score(self, q: Law[Tensor], x_t: Tensor, t: Time) -> Tensor:
        """``grad log p_t(x_t)`` under the belief, a tangent vector at ``x_t``; ``t > 0``.

        A point gives the kernel's own score; a network's :class:`~sfumato.laws.manifold.Along` states it as
        ``v / sigma^2`` (Tweedie); a law over finitely many states its mean.  Raises :class:`Refusal` for any other.
        """
        sigma = narrow(self._sigma(t, x_t), x_t)
        if isinstance(q, Along):
            stated: Tensor = q.v / sigma**2
            return stated
        if isinstance(q, Dirac):
            return self.kernel.law(q.x, sigma).score(x_t)
        expect = getattr(q, "expect", None)
        if expect is None:
            raise Refusal(f"the score under a {type(q).__name__} belief is unknown; use a Dirac or Along belief")
        mean: Tensor = expect(lambda x0: self.kernel.law(x0, sigma).score(x_t))
        return mean

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The squared geodesic distance between the belief's point and ``x0``, ``[b]``: finite at both ends."""
        return self.space.square(self.space.log(x0, q.point()))

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``(1/2) d(sigma^2)/dt |score_q - score|^2``, ``[b]``: Girsanov: the limit of a step's KL; ``t > 0``."""
        _, sigma, _, dsigma = rates(self.schedule, t)
        gap = self.score(q, x_t, t) - self.score(Dirac(x0), x_t, t)
        factor = sigma * dsigma
        rate: Tensor = (factor.to(x0) if torch.is_tensor(factor) else factor) * self.space.square(gap)
        return rate

"""Geodesic interpolation on a manifold: Riemannian flow matching (Chen and Lipman 2023, arXiv 2302.03660).

The contract: a state on its way from the data ``x0`` (``t = 0``) to a draw ``x1`` of the prior (``t = 1``) is on the
geodesic between them, ``x_t = exp(x0, share(t) log(x0, x1))`` with the share of the way gone ``share = sigma / (alpha
+ sigma)``; on the flow schedule that is ``t`` itself (Chen and Lipman, eq. 13, with their time reversed).  The velocity
``dx_t / d share = -log(x_t, x0) / share`` is a tangent vector of the constant length ``distance(x0, x1)``; regressing
it gives the ODE whose states have the law of ``x_t`` (their theorem 1), and the deterministic bridge moves from ``x_t``
towards the believed ``x0`` by the share of the way that a step takes.

A geodesic carries no noise of its own: ``x_s`` and ``x_t`` give both ends away, so the process is no Markov chain and
has no forward law, no ancestral bridge and no evidence bound; it refuses all three.  DDIM with ``eta = 0`` samples it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, final

import torch
from torch import Tensor

from sfumato.core import Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Through
from sfumato.laws.manifold import Uniform
from sfumato.processes.gaussian import divide
from sfumato.schedules import ZERO_ALPHA, Schedule, at, narrow, rates, wide
from sfumato.schedules.continuous import Flow
from sfumato.spaces.manifold import Manifold


@final
@dataclass(frozen=True)
class Geodesic:
    """Geodesics of ``space`` between data and a prior; states are members of the space.

    ``schedule`` says how fast the way is gone and must end without signal, ``alpha(1) = 0``; ``base`` makes the prior's
    law from a state of its shape, :class:`~sfumato.laws.manifold.Uniform` where it is None.  Raises :class:`Refusal`
    for a schedule that ends elsewhere.
    """

    space: Manifold
    schedule: Schedule = Flow()
    base: Callable[[Tensor], Any] | None = None
    #: Whether states form a Markov chain: samplers that draw noise ask.
    markov: ClassVar[bool] = False

    def __post_init__(self) -> None:
        alpha, _ = at(self.schedule, 1.0)
        if abs(alpha) > ZERO_ALPHA:
            raise Refusal(
                f"a geodesic must reach the prior, but alpha(1)={alpha:.3g}; use 'flow' or 'cosine-continuous'"
            )

    def share(self, t: Time, x: Tensor | None = None) -> Any:
        """The share of the way gone at ``t``, in [0, 1]: a float, or float64 shaped against ``x`` ``[b, ...]``."""
        alpha, sigma = at(self.schedule, t, None if x is None else wide(x))
        if not torch.is_tensor(sigma):
            return 1.0 if alpha <= ZERO_ALPHA else sigma / (alpha + sigma)
        return sigma / (alpha.clamp(min=0) + sigma)

    def prior(self, like: Tensor) -> Law[Tensor]:
        """The law of ``x1``, shaped like ``like``."""
        prior: Law[Tensor] = Uniform(self.space, like) if self.base is None else self.base(like)
        return prior

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Law[Tensor]:
        """``q(x_t | x0)``: a point of the geodesic to ``end``, or to a draw of the prior where none is given."""
        share = self.share(t, x0)
        if not torch.is_tensor(share) and share == 0:
            return Dirac(x0)
        if end is not None:
            at_end = not torch.is_tensor(share) and share == 1
            return Dirac(end if at_end else self.space.exp(x0, narrow(share, x0) * self.space.log(x0, end)))
        if not torch.is_tensor(share) and share == 1:
            return self.prior(x0)
        return Through(self.prior(x0), lambda drawn: self.marginal(x0, t, drawn.x))

    def log_density(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``log q(x_t | x0)`` per unit of volume, ``[b]``, for the uniform prior: what exact posteriors are made of.

        Raises :class:`Refusal` for another prior, and for a space that has no closed form.
        """
        if self.base is not None:
            raise Refusal("the density of a geodesic path is known for the uniform prior only; leave base=None")
        return self.space.log_spread(x0, x_t, self.share(t))

    def _refuse(self, what: str) -> NoReturn:
        raise Refusal(
            f"a Geodesic's states give both ends away, so it is no Markov chain and has no {what}; 'ddim' samples it"
        )

    def forward(self, x_s: Tensor, s: Time, t: Time) -> NoReturn:
        """Refused: a geodesic is no Markov chain."""
        self._refuse("forward law")

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The deterministic step ``exp(x_t, (1 - share_s / share_t) log(x_t, x0))``, exact for a constant ``x0``.

        A belief that is no point is drawn from first.  Raises :class:`Refusal` for ``eta > 0``.  From ``t = 0`` the
        state stays: the way to an unknown end has no direction yet.
        """
        if eta > 0:
            self._refuse(f"bridge of eta={eta:g}")
        if not isinstance(q, Dirac):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, 0.0))
        share_t, share_s = self.share(t, x_t), self.share(s, x_t)
        if not torch.is_tensor(share_s) and share_s == 0:
            return Dirac(q.x)
        step = narrow(divide(share_t - share_s, share_t), x_t)
        return Dirac(self.space.exp(x_t, step * self.space.log(x_t, q.x)))

    def slope(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``dx_t / d share = -log(x_t, x0) / share``: what a network learns, tangent at ``x_t``; ``t > 0``."""
        slope: Tensor = narrow(divide(-1.0, self.share(t, x_t)), x_t) * self.space.log(x_t, x0)
        return slope

    def velocity(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``dx_t / dt``, a tangent vector at ``x_t``: the slope times the schedule's own speed; ``t > 0``."""
        alpha, sigma, dalpha, dsigma = rates(self.schedule, t, wide(x_t))
        speed = (dsigma * alpha - sigma * dalpha) / (alpha + sigma) ** 2
        velocity: Tensor = narrow(speed, x_t) * self.slope(x0, x_t, t)
        return velocity

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The squared geodesic distance between the belief's point and ``x0``, ``[b]``: finite at both ends."""
        return self.space.square(self.space.log(x0, q.point()))

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> NoReturn:
        """Refused: without a Markov chain there is no evidence bound."""
        self._refuse("evidence bound")

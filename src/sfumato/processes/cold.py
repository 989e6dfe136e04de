"""Cold diffusion: any degradation in place of noise (Bansal et al. 2022, arXiv 2208.09392).

The contract: ``x_t = D(x0, t)`` for a deterministic degradation ``D`` with ``D(x, 0) = x``, so every law is a point:

* marginal: ``D(x0, t)``; it takes the data to degrade, so there is no transition from one state to a later one;
* bridge, for a restored image ``x0hat``: ``x_s = x_t - D(x0hat, t) + D(x0hat, s)`` (algorithm 2, :func:`improved`).
  Where ``D(x, t) = x + t e`` it is exact whatever the restorer says, since ``x0hat`` cancels; to first order in the
  step every smooth ``D`` is of that form.  Algorithm 1 (:func:`naive`) is ``x_s = D(x0hat, s)``: it forgets ``x_t`` and
  keeps every error of the restorer;
* prior: what degraded data look like at ``t = 1``.  It has to be fitted (:meth:`Cold.fit`).

Restoring is deterministic: all that varies between samples is drawn from the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sfumato.core import Cond, Law, Space, Time
from sfumato.degradations import Degradation
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Through
from sfumato.processes.fitted import fitted_law, mixture_prior, start_fitted
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import flat_sum

#: From ``x_t`` and the restored image degraded to ``t`` and to ``s``, to ``x_s``.
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def improved(x_t: Tensor, at_t: Tensor, at_s: Tensor) -> Tensor:
    """Algorithm 2: ``x_t - D(x0hat, t) + D(x0hat, s)``, what is known of ``x_t`` moved on by the change of ``D``."""
    return x_t - at_t + at_s


def naive(x_t: Tensor, at_t: Tensor, at_s: Tensor) -> Tensor:
    """Algorithm 1: ``D(x0hat, s)``, the restored image degraded again."""
    return at_s


def noiseless(t: Tensor) -> tuple[Tensor, Tensor]:
    """``(alpha, sigma) = (1, 0)`` at every time: there is no noise to schedule."""
    return torch.ones_like(t), torch.zeros_like(t)


@final
@dataclass(frozen=True)
class Cold:
    """Degradation by ``degrade(x0, t)``; states are tensors ``[b, ...]``.

    ``law``: from empty states to the law at ``t = 1`` (a :class:`~sfumato.processes.fitted.FittedPrior`, or any
    function); ``step``: :func:`improved` (algorithm 2) or :func:`naive` (algorithm 1).
    """

    degrade: Degradation | Callable[[Tensor, Any], Tensor]
    law: Callable[[Tensor], Law[Any]] | None = field(default=None, compare=False)
    step: Step = improved
    space: Space = Euclidean()

    @property
    def schedule(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The schedule without noise, for grids and records that ask for one."""
        return noiseless

    def fit(
        self,
        x0: Float[Tensor, "n ..."],
        label: Int64[Tensor, " n"] | None = None,
        *,
        directions: int = 16,
        per_class: int = 4,
        noise: float = 0.002,
        seed: int = 0,
    ) -> Cold:
        """The same process with a prior: ``per_class`` Gaussians a class, fitted to ``degrade(x0, 1)``.

        ``directions``: in how many principal directions; ``noise``: added to every coordinate, so that nothing stays
        the same for want of a difference (Bansal et al. 2022, section 5.2).  ``x0 [n, ...]`` in model units.
        """
        classes = 1 if label is None else int(label.max()) + 1
        prior = mixture_prior(tuple(x0.shape[1:]), directions, per_class, classes, noise)
        return replace(self, law=prior.fit_mixture(self.degrade(x0, 1.0), label, seed))

    def prior(self, like: Tensor) -> Law[Tensor]:
        """The fitted law at ``t = 1``, shaped like ``like``; raises :class:`Refusal` where nothing was fitted."""
        return fitted_law("Cold", self.law, like)

    def start(self, like: Tensor, t: float, cond: Cond | None) -> Law[Tensor]:
        """The prior of the condition's class; raises :class:`Refusal` for a grid that begins below ``t = 1``."""
        return start_fitted(self, like, t, cond)

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Dirac:
        """The degraded state itself; ``end`` is refused, since nothing else leads to it."""
        if end is not None:
            self._refuse("given ends")
        return Dirac(self.degrade(x0, t))

    def _refuse(self, what: str) -> NoReturn:
        raise Refusal(f"a Cold process degrades the data itself, without noise, and has no {what}; use marginal")

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Law[Tensor]:
        """Refused: a degradation starts from the data, not from another state."""
        self._refuse("forward law")

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The point ``x_t - D(x0, t) + D(x0, s)`` at the belief's ``x0``; the same for every ``eta``: nothing is drawn.

        A belief that is no point is drawn from first.
        """
        if not isinstance(q, Dirac):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, eta))
        return Dirac(self.step(x_t, self.degrade(q.x, t), self.degrade(q.x, s)))

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``|x0hat - x0|`` summed over coordinates, shape ``[b]`` (Bansal et al. 2022, section 3.1)."""
        return flat_sum((q.point() - x0).abs())

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """Refused: laws that are points have no evidence bound."""
        self._refuse("evidence bound")

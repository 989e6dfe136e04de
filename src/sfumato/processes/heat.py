"""Inverse heat dissipation: images that cool down to their mean (Rissanen et al. 2022, arXiv 2206.13397).

The contract, with ``A_t`` the heat equation run for ``sigma_B(t)^2 / 2``, a blur of ``sigma_B`` pixels:

* marginal: ``u_t = A_t u_0 + sigma eps``, a point at ``t = 0``; given ``u_0`` the states are independent of
  each other, so there is no transition from a state to the next;
* bridge for a given ``u_0``: that marginal at ``s`` (``eta = 1``); in general a share ``eta^2`` of the variance is
  fresh and the rest is the noise of ``u_t``, so that ``eta = 0`` is cold diffusion's algorithm 2.  All of them have the
  right marginals;
* bridge for a :class:`Restoration`, what a network restores: ``N(A_s u0hat, delta^2)``.  Predicting a slightly
  less blurred image and restoring the sharp one are one thing, since the mean is linear: the optimum of the first is
  ``E[A_s u_0 | u_t] = A_s E[u_0 | u_t]``;
* a step of the evidence bound is ``(sigma^2/delta^2 - 1 + log(delta^2/sigma^2)) / 2`` nats a coordinate, whatever the
  network, and ``|A_s (u0hat - u_0)|^2 / (2 delta^2)``;
* prior: a blurred training image with noise ``delta``, which has to be fitted (:meth:`Heat.fit`).

Blurring does not mix frequencies: :func:`sfumato.degradations.cosines` is the basis in which ``A_t`` is diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sfumato.core import RNG, Cond, Law, Space, Time
from sfumato.degradations import diffuse
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal, Through, pool
from sfumato.processes.fitted import fitted_law, kernel_prior, start_fitted
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import against, flat_sum, precise


@final
@dataclass(frozen=True)
class Widths:
    """The blur ``sigma_B(t)`` in pixels: ``levels`` widths from ``least`` to ``greatest``, evenly spaced in their log.

    Level ``k`` lies at ``t = k / levels`` (Rissanen et al. 2022: 0.5 to 20 pixels in 100 levels on MNIST); below the
    first the width falls linearly to 0 at the data.
    """

    least: float = 0.5
    greatest: float = 20.0
    levels: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.least < self.greatest < math.inf:
            raise Refusal(f"least={self.least}, greatest={self.greatest}: a blur grows from one width to a larger one")
        if self.levels < 2:
            raise Refusal(f"levels={self.levels}: needs at least 2")

    def __call__(self, t: Tensor) -> Tensor:
        """``sigma_B`` at the times ``t``, of its shape."""
        first = 1 / self.levels
        share = ((t - first) / (1 - first)).clamp(min=0)
        return torch.where(t < first, self.least * t / first, self.least * (self.greatest / self.least) ** share)


@final
@dataclass(frozen=True)
class Restoration:
    """The point ``x`` that a network restores, and the noise ``delta`` of the steps that are taken on its word."""

    x: Tensor
    delta: float
    leaves: ClassVar[tuple[str, ...]] = ("x",)

    def draw(self, rng: RNG | None) -> Tensor:
        """The point itself."""
        return self.x

    def point(self) -> Tensor:
        """The point itself."""
        return self.x

    def nll(self, x: Tensor) -> Tensor:
        """0 at the point itself, infinite elsewhere."""
        found: Tensor = Dirac(self.x).nll(x)
        return found

    def kl(self, other: Law[Any]) -> Any:
        """``-log other(x)``, as of a point."""
        return other.nll(self.x)

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """``ref + w (self - ref)``."""
        return pool([ref, self], [1.0 - w, w])

    @staticmethod
    def pool(laws: Sequence[Any], weights: Sequence[Any]) -> Restoration:
        """The weighted sum of the points, with the last one's noise."""
        return Restoration(Dirac.pool(laws, weights).x, laws[-1].delta)


@final
@dataclass(frozen=True)
class Constant:
    """``(alpha, sigma)`` of the mode that heat does not touch, the mean: ``(1, sigma)``, and no noise at ``t = 0``."""

    sigma: float

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(1, sigma)`` at the times ``t``, of its shape."""
        return torch.ones_like(t), self.sigma * (t > 0).to(t)


@final
@dataclass(frozen=True)
class Heat:
    """Images ``[b, ..., h, w]`` blurred by ``widths``, with noise ``sigma`` at every level and ``delta`` in every step.

    ``law``: from empty states to the law at ``t = 1``, as of :class:`~sfumato.processes.cold.Cold`.  The noise is in
    the units of the state; the paper's .01 and .0125 belong to images in [0, 1], and their ratio matters most.
    """

    widths: Widths = Widths()
    sigma: float = 0.01
    delta: float = 0.0125
    law: Callable[[Tensor], Law[Any]] | None = field(default=None, compare=False)
    space: Space = Euclidean()

    def __post_init__(self) -> None:
        for name, value in (("sigma", self.sigma), ("delta", self.delta)):
            if not 0 < value < math.inf:
                raise Refusal(f"{name}={value}: a reverse step needs noise, and so does what it is compared with")

    @property
    def schedule(self) -> Constant:
        """``(alpha, sigma)`` of the mean, for grids and records that ask for a schedule."""
        return Constant(self.sigma)

    def blurred(self, x: Float[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ..."]:
        """``A_t x``: exactly ``x`` at ``t = 0``."""
        return diffuse(x, self.time(precise(t) if torch.is_tensor(t) else torch.tensor(float(t), dtype=torch.float64)))

    def time(self, t: Tensor) -> Tensor:
        """How long heat has spread at ``t``: ``sigma_B^2 / 2``, of the shape of ``t``."""
        return self.widths(t) ** 2 / 2

    def fit(
        self,
        x0: Float[Tensor, "n ..."],
        label: Int64[Tensor, " n"] | None = None,
        *,
        directions: int = 16,
        points: int = 4096,
        seed: int = 0,
    ) -> Heat:
        """The same process with a prior: one of ``points`` of the images ``x0 [n, ...]`` (model units), blurred to the
        end, with noise ``delta``; stored by their first principal ``directions``.
        """
        prior = kernel_prior(tuple(x0.shape[1:]), directions, points, self.delta)
        return replace(self, law=prior.fit_kernels(self.blurred(x0, 1.0), label, seed))

    def prior(self, like: Tensor) -> Law[Tensor]:
        """The fitted law at ``t = 1``, shaped like ``like``; raises :class:`Refusal` where nothing was fitted."""
        return fitted_law("Heat", self.law, like)

    def start(self, like: Tensor, t: float, cond: Cond | None) -> Law[Tensor]:
        """The prior of the condition's class; raises :class:`Refusal` for a grid that begins below ``t = 1``."""
        return start_fitted(self, like, t, cond)

    def _refuse(self, what: str) -> NoReturn:
        raise Refusal(f"a Heat process draws every state from the data alone and has no {what}; use marginal or bridge")

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Law[Tensor]:
        """``N(A_t x0, sigma^2)``, the point ``x0`` at ``t = 0``; ``end`` is refused: the states are independent."""
        if end is not None:
            self._refuse("given ends")
        return self._noisy(self.blurred(x0, t), t, self.sigma**2)

    def _noisy(self, mean: Tensor, t: Time, var: float) -> Law[Tensor]:
        """``N(mean, var)``, a point at ``t = 0``."""
        if torch.is_tensor(t):
            return Normal(mean, var * against((t > 0).to(mean), mean), self.space)
        return Normal(mean, var, self.space) if t > 0 else Dirac(mean)

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Law[Tensor]:
        """Refused: given the data, states are independent of each other."""
        self._refuse("forward law")

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """``A_s x0 + sqrt(1 - eta^2) (x_t - A_t x0)`` with fresh noise ``eta sigma``; at ``s = 0`` the point ``x0``.

        With a :class:`Restoration` the fresh noise is ``eta delta``, at ``s = 0``, too (the likelihood ``p(u_0 |
        u_1)``).  Any other belief is drawn from first.  Raises :class:`Refusal` for ``eta`` beyond [0, 1].
        """
        if not 0 <= eta <= 1:
            raise Refusal(f"eta={eta:g}: the share of fresh noise of a Heat bridge lies in [0, 1]")
        if not isinstance(q, Dirac | Restoration):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, eta))
        mean, kept = self.blurred(q.x, s), math.sqrt(1 - eta**2)
        if kept and (torch.is_tensor(s) or s > 0):
            rest = kept * (x_t - self.blurred(q.x, t))
            mean = mean + (against((s > 0).to(mean), mean) * rest if torch.is_tensor(s) else rest)
        if eta == 0:
            return Dirac(mean)
        if isinstance(q, Restoration):
            return Normal(mean, (eta * q.delta) ** 2, self.space)
        return self._noisy(mean, s, (eta * self.sigma) ** 2)

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``|A_s (x0hat - x0)|^2`` with ``s`` one level below ``t``, summed over coordinates, shape ``[b]``.

        It is the paper's regression of the slightly less blurred image, and ``2 delta^2`` times what the network adds
        to the bound of that step.
        """
        before = t - 1 / self.widths.levels
        s: Time = before.clamp(min=0) if torch.is_tensor(before) else max(before, 0.0)
        return flat_sum(self.blurred(q.point() - x0, s) ** 2)

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """Refused: every step costs a constant, so a bound of ever finer steps has no limit."""
        self._refuse("continuous-time bound")

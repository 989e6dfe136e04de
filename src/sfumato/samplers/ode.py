"""Solvers of the probability-flow ODE of a Gaussian process: what they share, Euler and Heun.

The contract: in ``y = x / alpha`` and ``u = sigma / alpha`` the ODE reads ``dy/du = eps`` for every schedule (Karras et
al. 2022, section 4), and in ``lambda = log(alpha / sigma)`` it is linear but for ``x0`` (Lu et al. 2022).  Solvers use
python float times and belief points only.  Where ``alpha = 0`` or ``sigma = 0`` these variables are infinite; there the
exact bridge at the belief's point is taken, so every grid from 1 to 0 is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

from torch import Tensor

from sfumato.core import RNG, Carry, Process
from sfumato.laws import Dirac
from sfumato.samplers.ancestral import require_path
from sfumato.schedules import at, log_snr


class Level(NamedTuple):
    """A time as a solver sees it: ``alpha``, ``sigma`` and ``lam = log(alpha / sigma)``, infinite at exact ends."""

    alpha: float
    sigma: float
    lam: float

    @property
    def ends(self) -> bool:
        """Whether ``alpha`` or ``sigma`` is 0 here: only the exact bridge has finite coefficients."""
        return math.isinf(self.lam)


def level(process: Any, t: float) -> Level:
    """The level of the process's schedule at ``t``."""
    return Level(*at(process.schedule, t), log_snr(process.schedule, t) / 2)


def exact_step(process: Process[Any], x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """The deterministic bridge to ``s`` for a constant ``x0``: first-order, and finite at both ends."""
    point: Tensor = process.bridge(x, Dirac(x0), t, s, 0.0).point()
    return point


@final
@dataclass(frozen=True)
class Euler:
    """Euler's method on ``dy/du = eps`` (Karras et al. 2022, algorithm 1 without its second half).

    The step ``y + (u_s - u_t) eps`` is the deterministic bridge, and is taken as such: no digits cancel near ``alpha =
    0``. So it equals DDIM at ``eta = 0``.
    """

    order: ClassVar[int | None] = 1
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma)."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation."""
        return exact_step(process, x, model(x, t).point(), t, s), None


@final
@dataclass(frozen=True)
class Heun:
    """Heun's method on ``dy/du = eps`` (Karras et al. 2022, algorithm 1): two evaluations a step, one at the ends.

    The step to ``sigma = 0`` is Euler's as published, and so is a step from ``alpha = 0``, where ``u`` is infinite:
    ``2n - 1`` evaluations from an ordinary prior, ``2n - 2`` from a zero terminal SNR (at least ``n``).
    """

    order: ClassVar[int | None] = 2
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 2

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma)."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """An Euler step, then the average of the slopes at both ends of it."""
        x0 = model(x, t).point()
        euler = exact_step(process, x, x0, t, s)
        here, there = level(process, t), level(process, s)
        if here.ends or there.ends:
            return euler, None
        eps = (x - here.alpha * x0) / here.sigma
        eps_next = (euler - there.alpha * model(euler, s).point()) / there.sigma
        du = there.sigma / there.alpha - here.sigma / here.alpha
        return euler + there.alpha * du / 2 * (eps_next - eps), None

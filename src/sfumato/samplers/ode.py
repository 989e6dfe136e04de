"""Solvers of the probability-flow ODE of a Gaussian process: Euler, Heun and DPM-Solver++(2M).

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
from sfumato.samplers.ancestral import require_gaussian
from sfumato.schedules import ZERO_ALPHA, at, log_snr


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
        """Refuses any process but a Gaussian one."""
        require_gaussian(process, self)
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
        """Refuses any process but a Gaussian one."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """An Euler step, then the average of the slopes at both ends of it."""
        x0 = model(x, t).point()
        euler = exact_step(process, x, x0, t, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at(process.schedule, t), at(process.schedule, s)
        if sigma_s == 0 or alpha_t <= ZERO_ALPHA:
            return euler, None
        eps = (x - alpha_t * x0) / sigma_t
        eps_next = (euler - alpha_s * model(euler, s).point()) / sigma_s
        du = sigma_s / alpha_s - sigma_t / alpha_t
        return euler + alpha_s * du / 2 * (eps_next - eps), None


class History(NamedTuple):
    """What a multistep solver remembers: the last belief's point and its lambda."""

    x0: Tensor
    lam: float


@final
@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022b, algorithm 2): second order at one evaluation a step.

    The first step, a step from ``alpha = 0`` (which leaves no history, since its lambda is infinite) and the step to
    ``sigma = 0`` are first-order.
    """

    order: ClassVar[int | None] = 2
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one; the history is empty."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, extrapolated with the previous one."""
        x0 = model(x, t).point()
        lam, lam_next = log_snr(process.schedule, t) / 2, log_snr(process.schedule, s) / 2
        if math.isinf(lam):
            return exact_step(process, x, x0, t, s), None
        if carry is None or math.isinf(lam_next):
            return exact_step(process, x, x0, t, s), History(x0, lam)
        ratio = (lam - carry.lam) / (lam_next - lam)
        midpoint = x0 + (x0 - carry.x0) / (2 * ratio)
        return exact_step(process, x, midpoint, t, s), History(x0, lam)

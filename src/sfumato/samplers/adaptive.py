"""Adaptive Runge-Kutta of order 5(4) on the probability-flow ODE, every sample at its own pace.

The contract: with ``phi = atan2(sigma, alpha)`` and ``y = x / sqrt(alpha^2 + sigma^2)`` the ODE of every schedule reads
``dy/dphi = (cos(phi) y - x0) / sin(phi)``, ``x0`` the belief's point: smooth at ``alpha = 0``, and free of the
schedule's derivative.  Each sample chooses its own steps by its own error, so it is the same alone and in any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Process
from sfumato.dormand_prince import CALLS, NotFinite, OutOfReach, integrate, per_sample
from sfumato.errors import Refusal
from sfumato.samplers.ancestral import require_path
from sfumato.samplers.ode import exact_step
from sfumato.schedules import at, time_at
from sfumato.trees import cast, precise

#: Trial steps of one grid interval after which a tolerance is given up as out of reach.
_MOST_TRIALS = 2000


@final
@dataclass(frozen=True)
class RK45:
    """Dormand and Prince's method from grid point to grid point, to ``rtol`` and ``atol`` (Song et al. 2021, D.4).

    An inner step is accepted where the root mean square of ``error / (atol + rtol |y|)`` over a sample's coordinates is
    at most 1.  The grid is where states are seen, ``[1, 0]`` is enough; the number of evaluations follows from the
    tolerance: 6 a trial step and one more an interval.  Where ``sigma = 0`` the noise has no value: an interval that
    begins or ends there stops at ``sigma / alpha = sqrt(rtol) / 10`` and goes on by the bridge at the belief's point.
    Raises :class:`Refusal` for a tolerance that is not positive or cannot be reached.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    order: ClassVar[int | None] = 5
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 6

    def __post_init__(self) -> None:
        if not (0 < self.rtol < 1 and 0 < self.atol < math.inf):
            raise Refusal(f"rtol={self.rtol}, atol={self.atol}: tolerances are positive, rtol below 1; try 1e-5")

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without a schedule; nothing is remembered between intervals."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """As many evaluations as the hardest sample of the batch needs."""
        least = math.atan(math.sqrt(self.rtol) / 10)
        begin, end = _angle(process, t), _angle(process, s)
        if max(begin, end) <= least:
            return exact_step(process, x, model(x, t).point(), t, s), None
        if begin < least:
            m = _time(process, least)
            x, t, begin = exact_step(process, x, model(x, t).point(), t, m), m, least
        m = s if end >= least else _time(process, least)
        x = self._integrate(model, process, x, begin, max(end, least), t, m)
        return (exact_step(process, x, model(x, m).point(), m, s) if m != s else x), None

    def _integrate(self, model: Any, process: Any, x: Tensor, begin: float, end: float, t: float, s: float) -> Tensor:
        """``x`` at ``t`` carried to ``s``, whose angles are ``begin`` and ``end``."""

        def field(rows: Tensor, phi: Tensor, y: Tensor) -> Tensor:
            # the model sees the whole batch: the first sample on its way stands in for those that have arrived
            seat = torch.zeros(len(x), dtype=torch.int64)
            seat[rows] = torch.arange(len(rows))
            return _slope(model, process, x, y[seat.to(y.device)], phi[seat])[rows.to(y.device)]

        def norm(error: Tensor, before: Tensor, after: Tensor) -> Tensor:
            scale = self.atol + self.rtol * torch.maximum(before.abs(), after.abs())
            return (error / scale).flatten(1).square().mean(1).sqrt()

        y = precise(x) / math.hypot(*at(process.schedule, t))
        try:
            y, _ = integrate(field, y, begin, end, norm, CALLS * _MOST_TRIALS)
        except NotFinite:
            raise Refusal(
                f"rk45: the state is not finite between t={t:g} and {s:g}; use less guidance, or clip"
            ) from None
        except OutOfReach:
            raise Refusal(
                f"rk45 has not reached rtol={self.rtol:g}, atol={self.atol:g} between t={t:g} and {s:g} after "
                f"{_MOST_TRIALS} trial steps; loosen them"
            ) from None
        return cast(y, x) * math.hypot(*at(process.schedule, s))


def _angle(process: Any, t: float) -> float:
    alpha, sigma = at(process.schedule, t)
    return math.atan2(sigma, alpha)


def _time(process: Any, angle: float) -> float:
    return float(time_at(process.schedule, -2 * math.log(math.tan(angle))))


def _slope(model: Any, process: Any, like: Tensor, y: Tensor, phi: Tensor) -> Tensor:
    """``dy/dphi`` at angles ``[b]``; the model sees states like ``like`` at times ``[b]``."""
    times = time_at(process.schedule, -2 * phi.tan().abs().log())
    alpha, sigma = at(process.schedule, times, y)
    x0 = model(cast(torch.hypot(alpha, sigma) * y, like), times).point()
    slope: Tensor = (per_sample(phi.cos(), y) * y - precise(x0)) / per_sample(phi.sin(), y)
    return slope

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
from sfumato.dormand_prince import ERROR, NODES, STAGES
from sfumato.errors import Refusal
from sfumato.samplers.ancestral import require_path
from sfumato.samplers.ode import exact_step
from sfumato.schedules import at, time_at, wide
from sfumato.trees import against

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
        y = x.to(wide(x)) / math.hypot(*at(process.schedule, t))
        phi = torch.full((len(x),), begin, dtype=torch.float64, device=y.device)
        span, share = end - begin, torch.full_like(phi, 0.05)  # the step of every sample, as a share of the interval
        done = torch.zeros_like(phi)
        first = _slope(model, process, x, y, phi)
        for _ in range(_MOST_TRIALS):
            share = torch.minimum(share, 1 - done)
            stages, trial = [first], y
            for place, row in zip(NODES[1:], STAGES[1:], strict=True):
                trial = y + against(span * share, y) * sum(w * k for w, k in zip(row, stages, strict=True))
                stages.append(_slope(model, process, x, trial, begin + span * (done + place * share)))
            off = against(span * share, y) * sum(w * k for w, k in zip(ERROR, stages, strict=True))
            scale = self.atol + self.rtol * torch.maximum(y.abs(), trial.abs())
            error = (off / scale).flatten(1).square().mean(1).sqrt()
            if not bool(torch.isfinite(error).all()):
                raise Refusal(f"rk45: the state is not finite between t={t:g} and {s:g}; use less guidance, or clip")
            kept = error <= 1
            mask = kept.reshape(-1, *[1] * (y.ndim - 1))
            y, first = torch.where(mask, trial, y), torch.where(mask, stages[-1], first)
            done = torch.where(kept, torch.where(share >= 1 - done, 1.0, done + share), done)
            if bool((done == 1).all()):
                return y.to(x) * math.hypot(*at(process.schedule, s))
            share = share * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        raise Refusal(
            f"rk45 has not reached rtol={self.rtol:g}, atol={self.atol:g} between t={t:g} and {s:g} after "
            f"{_MOST_TRIALS} trial steps; loosen them"
        )


def _angle(process: Any, t: float) -> float:
    alpha, sigma = at(process.schedule, t)
    return math.atan2(sigma, alpha)


def _time(process: Any, angle: float) -> float:
    return float(time_at(process.schedule, -2 * math.log(math.tan(angle))))


def _slope(model: Any, process: Any, like: Tensor, y: Tensor, phi: Tensor) -> Tensor:
    """``dy/dphi`` at angles ``[b]``; the model sees states like ``like`` at times ``[b]``."""
    times = time_at(process.schedule, -2 * phi.tan().abs().log())
    alpha, sigma = at(process.schedule, times, y)
    x0 = model((torch.hypot(alpha, sigma) * y).to(like), times.cpu()).point()
    slope: Tensor = (against(phi.cos(), y) * y - x0.to(y)) / against(phi.sin(), y)
    return slope

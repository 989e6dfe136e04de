"""Restart sampling (Xu et al. 2023): solve the ODE, jump back up by the forward process, solve again.

The contract: when the walk reaches the level ``low`` (of ``sigma / alpha``), the state is carried up to ``high`` by the
process's own forward law and down again by the same solver, ``restarts`` times; then the walk goes on.  The noise of
every jump contracts the error made so far; the solver's own error over the short interval is what it adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Process, Sampler
from sfumato.errors import Refusal
from sfumato.samplers.ancestral import require_gaussian, require_rng
from sfumato.samplers.ode import Heun
from sfumato.schedules import log_snr, time_at

#: Times whose log-SNR differs by less are one: no solver is asked for a step of rounding error.
SAME = 1e-6
#: The spacing of the levels inside the interval (Karras et al. 2022, eq. 5).
RHO = 7.0


class Leg(NamedTuple):
    """Where the walk is: the solver's carry, the times of the restart interval, the solver's carries that begin at its
    top and at its end.
    """

    carry: Any
    times: list[float]
    fresh: Any
    rest: Any


@final
@dataclass(frozen=True)
class Restart:
    """``inner`` with ``restarts`` rounds of ``steps`` steps over the levels from ``high`` down to ``low``.

    The defaults are the paper's for EDM on CIFAR-10 (Xu et al. 2023, table 3): twice 3 steps over [.06, .3], spaced as
    eq. 5 of Karras et al. 2022.  A grid without the level ``low`` gets one more step, so that every restart is at it:
    ``n + 1 + restarts * steps`` steps of the solver at most.  Raises :class:`Refusal` for values out of range and, in
    ``start``, for a grid that does not span the interval.
    """

    inner: Sampler = Heun()
    restarts: int = 2
    steps: int = 3
    low: float = 0.06
    high: float = 0.3
    takes: ClassVar[str] = "belief"
    order: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.steps < 1:
            raise Refusal(f"restarts={self.restarts}, steps={self.steps}: both need at least 1")
        if not 0 < self.low < self.high < math.inf:
            raise Refusal(f"low={self.low}, high={self.high}: the interval needs 0 < low < high, in sigma/alpha")

    @property
    def evaluations(self) -> int:
        """The inner solver's, for a step that does not restart."""
        return self.inner.evaluations

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """The times of the interval; refuses processes but Gaussian ones and grids that do not span it."""
        require_gaussian(process, self)
        schedule: Any = process.schedule  # type: ignore[attr-defined]
        top = log_snr(schedule, grid[0])
        if -2 * math.log(self.high) < top or (grid[-1] > 0 and -2 * math.log(self.low) > log_snr(schedule, grid[-1])):
            raise Refusal(
                f"the grid from t={grid[0]:g} to {grid[-1]:g} does not span the restart interval of sigma/alpha from "
                f"{self.high:g} to {self.low:g}; use another interval or a longer grid"
            )
        high, low = self.high ** (1 / RHO), self.low ** (1 / RHO)
        levels = torch.linspace(high, low, self.steps + 1, dtype=torch.float64) ** RHO
        times = [float(t) for t in time_at(schedule, -2 * levels.log())]
        near = [t for t in grid if abs(log_snr(schedule, t) + 2 * math.log(self.low)) < SAME]
        times[-1] = near[0] if near else times[-1]
        whole = sorted({*grid, times[-1]}, reverse=True)
        rest = [t for t in whole if t <= times[-1]]
        carries = [self.inner.start(model, process, part) if len(part) > 1 else None for part in (whole, times, rest)]
        return Leg(carries[0], times, *carries[1:])

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One step of the solver; the step that reaches ``low`` restarts there."""
        source = require_rng(rng, self)
        leg: Leg = carry
        low = leg.times[-1]
        if not s <= low < t:
            x, inner = self.inner.step(model, process, x, t, s, leg.carry, source)
            return x, leg._replace(carry=inner)
        x, inner = self.inner.step(model, process, x, t, low, leg.carry, source)
        for _ in range(self.restarts):
            x, inner = process.forward(x, low, leg.times[0]).draw(source), leg.fresh
            for a, b in pairwise(leg.times):
                x, inner = self.inner.step(model, process, x, a, b, inner, source)
        inner = leg.rest  # histories end at the interval's end
        if s < low:
            x, inner = self.inner.step(model, process, x, low, s, inner, source)
        return x, leg._replace(carry=inner)


def restart(solver: str = "heun", restarts: int = 2, steps: int = 3, low: float = 0.06, high: float = 0.3) -> Restart:
    """Restart sampling around the registered sampler called ``solver``."""
    from sfumato import samplers

    return Restart(samplers.get(solver), restarts, steps, low, high)

"""Churn: raise the noise a little before every step of an ODE solver (Karras et al. 2022, algorithm 2).

The contract: before the step from ``t`` the level ``u = sigma / alpha`` rises to ``(1 + gamma) u`` by the process's own
forward law, its noise scaled by ``s_noise``; then the solver steps from there to exactly ``s``.  ``gamma = min(churn /
n, sqrt(2) - 1)`` where ``s_min <= u <= s_max``, else 0.  No level rises above the grid's first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Process, Sampler
from sfumato.errors import Refusal
from sfumato.laws import Normal
from sfumato.samplers.ancestral import DDIM, Ancestral, require_gaussian, require_rng
from sfumato.samplers.ode import Euler, Heun
from sfumato.schedules import log_snr, time_at

#: The solvers that remember nothing between two steps.
MEMORYLESS = (Euler, Heun, DDIM, Ancestral)


@final
@dataclass(frozen=True)
class Churned:
    """``inner``, a solver without history, with noise added before every step (Karras et al. 2022, algorithm 2).

    ``churn``: the sum of the relative rises over the grid, S_churn; ``s_min``, ``s_max``: where noise is added, in
    ``sigma / alpha``; ``s_noise``: the scale of that noise, a little above 1 against the loss of detail.  The published
    setting for their ImageNet-64 model is (40, .05, 50, 1.003).  Raises :class:`Refusal` for values out of range.
    """

    inner: Sampler
    churn: float
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    takes: ClassVar[str] = "belief"
    order: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 0 < self.churn < math.inf:
            raise Refusal(f"churn={self.churn}: needs a positive amount of noise; without churn use the solver itself")
        if not 0 <= self.s_min < self.s_max:
            raise Refusal(f"s_min={self.s_min}, s_max={self.s_max}: noise is added at s_min <= sigma/alpha <= s_max")
        if not 0 <= self.s_noise < math.inf:
            raise Refusal(f"s_noise={self.s_noise}: the scale of the noise is 0 or more (1 is the process's own)")

    @property
    def evaluations(self) -> int:
        """The inner solver's."""
        return self.inner.evaluations

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """The raised time of every step that has one; refuses processes but Gaussian ones, and inner history."""
        require_gaussian(process, self)
        if not isinstance(self.inner, MEMORYLESS):
            raise Refusal(f"{type(self.inner).__name__} keeps a history, which churn would falsify; use Euler or Heun")
        self.inner.start(model, process, grid)
        schedule: Any = process.schedule  # type: ignore[attr-defined]
        gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)
        raised: dict[float, float] = {}
        for t in grid[:-1]:
            level = math.exp(-log_snr(schedule, t) / 2) if log_snr(schedule, t) > -math.inf else math.inf
            if self.s_min <= level <= self.s_max and level < math.inf:
                raised[t] = level * (1 + gamma)
        if not raised:
            return {}
        times = time_at(schedule, -2 * torch.tensor(list(raised.values()), dtype=torch.float64).log())
        return {t: min(float(time), grid[0]) for t, time in zip(raised, times, strict=True) if time > t < grid[0]}

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """Raise the noise, then one step of the inner solver."""
        source = require_rng(rng, self)
        raised = carry.get(t, t)
        if raised > t:
            law: Normal = process.forward(x, t, raised)
            x = replace(law, var=law.var * self.s_noise**2).draw(source)
        return self.inner.step(model, process, x, raised, s, None, source)[0], carry


def heun(churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Sampler:
    """Heun's method (Karras et al. 2022, algorithm 1), with ``churn > 0`` their stochastic sampler (algorithm 2)."""
    return Churned(Heun(), churn, s_min, s_max, s_noise) if churn else Heun()

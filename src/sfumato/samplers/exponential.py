"""Exponential integrators of the probability-flow ODE: DPM-Solver, DPM-Solver++(2M) and (3M).

The contract: polynomials in ``lambda = log(alpha / sigma)`` of the noise (DPM-Solver) or of the clean data
(DPM-Solver++), and their means over the step: see :mod:`sfumato.samplers.history`.  Steps from ``alpha = 0`` and to
``sigma = 0``, where lambda is infinite, are the bridge at the belief's point.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.samplers.ancestral import require_path
from sfumato.samplers.history import DATA, NOISE, advance, midpoint, polynomial, require_choice
from sfumato.samplers.ode import exact_step, level
from sfumato.samplers.polynomials import combine, exponential_moments, mean_weights
from sfumato.schedules import time_at

#: Where a single step of each order evaluates on its way, in units of its length in lambda.
_ON_THE_WAY: dict[int, tuple[float, ...]] = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}


@final
@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver of order p = 1, 2 or 3, from each grid point to the next (Lu et al. 2022a, algorithms 1 and 2).

    ``method="singlestep"`` evaluates p times a step: also half-way in lambda (p = 2), or one and two thirds of the way
    (p = 3), and keeps no history.  ``method="multistep"`` evaluates once and remembers p - 1 earlier values; where p =
    3 the second value corrects the first-order first step, at no evaluation.  ``integrates="noise"`` is DPM-Solver,
    ``"data"`` is DPM-Solver++ (2S and 3S; Lu et al. 2022b).  Steps from ``alpha = 0`` and to ``sigma = 0`` are of first
    order, at one evaluation.  p = 1 is DDIM; on ``alpha = 1`` the single step of p = 2 is EDM's DPM-2.  Raises
    :class:`Refusal` for an unknown setting.
    """

    p: int = 3
    method: str = "singlestep"
    integrates: str = "noise"
    takes: ClassVar[str] = "belief"

    def __post_init__(self) -> None:
        require_choice(self, "p", (1, 2, 3))
        require_choice(self, "method", ("singlestep", "multistep"))
        require_choice(self, "integrates", ("noise", "data"))

    @property
    def order(self) -> int | None:
        """``p``."""
        return self.p

    @property
    def evaluations(self) -> int:
        """``p`` in a single step, else 1."""
        return self.p if self.method == "singlestep" else 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma); finds the times on the way of every single step at once."""
        require_path(process, self)
        return _ways(process, grid, _ON_THE_WAY[self.p]) if self.method == "singlestep" else None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """``evaluations`` evaluations; one where an end makes the step first-order."""
        x0, axis = model(x, t).point(), NOISE if self.integrates == "noise" else DATA
        if self.method == "multistep":
            return advance(axis, self.p, process, x, x0, t, s, carry, corrected=self.p - 1)
        here, there = level(process, t), level(process, s)
        if here.ends or there.ends:
            return exact_step(process, x, x0, t, s), carry
        value = mean = axis.value(x, x0, here)
        sign = -1.0 if axis.noise else 1.0
        other: tuple[Tensor, float] | None = None
        for m in (*carry[t, s], s):
            end = level(process, m)
            if other is not None:
                h = end.lam - here.lam
                # order 2 reads its line half-way, order 3 at its mean
                moment = 0.5 if self.p == 2 else exponential_moments(sign * h, 2)[1]
                mean = value + (other[0] - value) * (moment * h / (other[1] - here.lam))
            y = axis.step(process, x, x0, value, mean, t, m)
            if m != s:
                other = axis.value(y, model(y, m).point(), end), end.lam
        return y, carry


def _ways(process: Any, grid: list[float], places: tuple[float, ...]) -> dict[tuple[float, float], tuple[float, ...]]:
    """The times on the way of every step of the grid, by one search for all."""
    inner = {(t, s): (level(process, t), level(process, s)) for t, s in pairwise(grid)}
    inner = {step: (a, b) for step, (a, b) in inner.items() if not (a.ends or b.ends)}
    lams = [[a.lam + r * (b.lam - a.lam) for r in places] for a, b in inner.values()]
    if not lams or not places:
        return dict.fromkeys(inner, ())
    times = time_at(process.schedule, 2 * torch.tensor(lams, dtype=torch.float64)).tolist()
    return {step: tuple(way) for step, way in zip(inner, times, strict=True)}


@final
@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order at one evaluation a step.

    ``form="midpoint"``, as published, reads the line through the last two beliefs half-way along the step; ``"mean"``
    takes its exact mean (``heun`` in diffusers).  The first step, a step from ``alpha = 0`` (which leaves no history)
    and the step to ``sigma = 0`` are first-order.  Raises :class:`Refusal` for an unknown setting.
    """

    form: str = "midpoint"
    order: ClassVar[int | None] = 2
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "form", ("midpoint", "mean"))

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma); the history is empty."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, extrapolated with the previous one."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        rule = midpoint if self.form == "midpoint" else polynomial
        return advance(DATA, 2, process, x, q.point(), t, s, carry, rule=rule)


def _published_parabola(values: list[Tensor], places: list[float], moments: list[float], h: float) -> Tensor:
    """The parabola through three values as DPM-Solver++(3M) is published: half of its curvature is left out."""
    if len(values) < 3:
        return midpoint(values, places, moments, h)
    mean = combine(mean_weights(places, moments), values)
    line = combine(mean_weights(places, [moments[0], moments[1], 0.0]), values)
    return (mean + line) / 2


@final
@dataclass(frozen=True)
class DPMSolverPP3M:
    """DPM-Solver++(3M): the parabola through the last three beliefs, at one evaluation a step (Lu et al. 2022b).

    ``form="mean"`` takes the parabola's exact mean, and corrects the first-order first step with the second belief, at
    no evaluation: third order.  ``form="published"`` is the solver as published and as diffusers and k-diffusion have
    it: its last term lacks a factor 2 (the second derivative is twice the second divided difference) and its first
    step stays of first order, so that it is of second order; about 2.3 is measured at 160 to 320 steps.  Raises
    :class:`Refusal` for an unknown setting.
    """

    form: str = "mean"
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "form", ("mean", "published"))

    @property
    def order(self) -> int | None:
        """3; 2 as published."""
        return 3 if self.form == "mean" else 2

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma); the history is empty."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, extrapolated with the two before it."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        if self.form == "published":
            return advance(DATA, 3, process, x, q.point(), t, s, carry, rule=_published_parabola)
        return advance(DATA, 3, process, x, q.point(), t, s, carry, corrected=2)

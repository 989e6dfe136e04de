"""What ``solver_accuracy.py`` measures on, and our own contestants; the other libraries' are in ``solver_peers.py``.

The contract: a :class:`Contestant` walks a :class:`Problem` with at most the given number of evaluations of its exact
model, asked at the very level the solver stands at.

Grids.  A level is the ratio ``u = sigma / alpha``.  Every library runs on the grids that it offers itself
(``offered``), and besides on grids that anyone can take (:func:`common`), among them our own ``shifted``: a solver
loses by what it computes, not by where it was asked to.  A grid ends in 0, or, for others, at a small level ``low``,
where the state is taken as it is, in the scale ``alpha^2 + sigma^2 = 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sfumato as sf
from sfumato import grids, schedules
from sfumato.errors import Refusal
from sfumato.oracles import GaussianMixture
from sfumato.processes.gaussian import Gaussian
from sfumato.samplers.auto import choose
from sfumato.schedules import at

BATCH = 256


@dataclass(frozen=True)
class Problem:
    """One mixture on one schedule: noise ``x1`` and the exact ends ``x0`` of its probability flow."""

    mixture: str
    schedule: str
    oracle: GaussianMixture
    process: Gaussian
    x1: Tensor
    x0: Tensor

    @property
    def top(self) -> float:
        """The largest ``sigma / alpha``, infinite for flows."""
        alpha, sigma = at(self.process.schedule, 1.0)
        return sigma / alpha if alpha > 0 else math.inf

    @property
    def noise(self) -> Tensor:
        """``x1`` of standard deviation 1: where there is noise alone, every scale begins with a multiple of it."""
        return self.x1 / at(self.process.schedule, 1.0)[1]

    def error(self, x: Tensor) -> float:
        """Mean distance to the exact ends over their root mean square norm."""
        return float((x - self.x0).norm(dim=1).mean() / self.x0.norm(dim=1).square().mean().sqrt())


def pose(mixture: str, oracle: GaussianMixture, schedule: str, batch: int = BATCH, seed: int = 0) -> Problem:
    """The problem of ``batch`` starts: exact ends by DOP853, to 1e-12."""
    process = Gaussian(schedules.get(schedule))
    x1 = process.prior(torch.zeros(batch, *oracle.shape, dtype=torch.float64)).draw(sf.Stream(seed))
    return Problem(mixture, schedule, oracle, process, x1, oracle.flow(process, x1, 1.0, 0.0))


@dataclass(frozen=True)
class Contestant:
    """``run(problem, nfe)`` ends a walk of at most ``nfe`` evaluations, or returns None where it cannot take part.

    ``offered``: whether its library itself offers this grid for this schedule (else it accepts it, or it is written
    over its table).
    """

    library: str
    solver: str
    grid: str
    run: Callable[[Problem, int], Tensor | None]
    offered: bool = True

    @property
    def name(self) -> str:
        return f"{self.library} {self.solver} [{self.grid}]"


class Counted:
    """The exact model of a problem, counting its evaluations."""

    def __init__(self, problem: Problem) -> None:
        self.denoiser, self.calls = problem.oracle.denoiser(problem.process), 0

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return self.denoiser(x, t, cond)


# ------------------------------------------------------------------------------------------------- grids for anyone


def spaced(kind: str, top: float, low: float, n: int) -> np.ndarray:
    """``n`` levels from ``top`` to ``low``; ``top`` may be infinite for ``flow time`` alone."""
    if kind == "flow time":  # even in tau = u / (1 + u)
        tau = np.linspace(1.0 if math.isinf(top) else top / (1 + top), low / (1 + low), n)
        with np.errstate(divide="ignore"):
            return np.asarray(tau / (1 - tau))
    top = min(top, 999.0)
    if kind == "log":
        return np.asarray(np.geomspace(top, low, n))
    return np.asarray(np.linspace(top ** (1 / 7), low ** (1 / 7), n) ** 7)  # Karras et al. 2022


SHIFTED = {
    "shifted 1.6 1.5": (1.6, 1.5),
    "shifted 1 1.3": (1.0, 1.3),
    "shifted 2 1.6": (2.0, 1.6),
    "shifted 4 2": (4.0, 2.0),
}


def shifted(problem: Problem, name: str, n: int) -> np.ndarray:
    """The ``n + 1`` levels of our grid ``shifted`` (shift, rho), from the prior's, which may be infinite, to 0."""
    shift, rho = SHIFTED[name]
    times = grids.shifted(problem.process.schedule, n, shift, rho)
    alpha, sigma = problem.process.schedule(times)
    return np.asarray(torch.where(alpha > 0, sigma / alpha, math.inf).numpy())


LOWEST = (0.002, 0.01, 0.03, 0.1)


def common(problem: Problem, kind: str, low: float, zero: bool, n: int) -> np.ndarray:
    """``n + 1`` levels of a common grid: to ``low``, or through ``low`` to 0; ``low = 0`` for ``shifted``, whose last
    but one level takes its place where ``zero`` is false.
    """
    if kind in SHIFTED:
        return shifted(problem, kind, n) if zero else shifted(problem, kind, n + 1)[:-1]
    if zero:
        return np.append(spaced(kind, problem.top, low, n), 0.0)
    return spaced(kind, problem.top, low, n + 1)


def named(kind: str, low: float, zero: bool) -> str:
    """``karras, 0.03, 0``: the spacing, its lowest level, and the step to 0 where there is one."""
    return kind + ("" if kind in SHIFTED else f", {low:g}") + (", 0" if zero else "")


# ------------------------------------------------------------------------------------------------------------- ours

OUR_SOLVERS = (
    *("ddim", "heun", "dpm-solver", "dpmpp-2m", "dpmpp-3m", "pndm", "lms", "deis:p=2", "deis:p=3", "deis:p=4"),
    *(
        "unipc:p=2",
        "unipc:p=2:variant=bh1",
        "unipc:p=3",
        "adams:predictor=1:corrector=2",
        "adams",
        "adams:predictor=3:corrector=4",
    ),
    *("adams:predictor=4:corrector=4", "adams:predictor=4:corrector=0", "adams:last=1", "adams:last=3"),
    *(f"adams:predictor={p}:corrector=4:last={k}" for p, k in ((3, 1), (3, 3), (4, 1), (4, 3))),
)
OUR_GRIDS = (
    *("uniform", "quadratic", "trailing", "uniform-logsnr", "karras", "karras:sigma_min=0.01", "karras:sigma_min=0.03"),
    *("karras:sigma_min=0.1", "shifted", "shifted:shift=0.8:rho=1", "shifted:shift=1:rho=1.3"),
    *("shifted:shift=2:rho=1.6", "shifted:shift=3:rho=2", "shifted:shift=4:rho=2"),
)


def run_ours(sampler: Any, grid: Callable[..., Tensor], problem: Problem, nfe: int) -> Tensor | None:
    """The most steps whose evaluations do not exceed ``nfe``."""
    for n in range(nfe, 0, -1):
        if n * sampler.evaluations > nfe + 1:
            continue
        model = Counted(problem)
        try:
            x: Tensor = sf.sample(model, problem.process, sampler, grid(problem.process.schedule, n), problem.x1)
        except Refusal:
            return None
        if model.calls <= nfe:
            return x
    return None


def run_auto(problem: Problem, nfe: int) -> Tensor | None:
    choice, model = choose(problem.process.schedule, nfe), Counted(problem)
    x: Tensor = sf.sample(model, problem.process, choice.build(), choice.times(), problem.x1)
    assert model.calls == nfe
    return x


def ours() -> Iterator[Contestant]:
    """``auto``, and every deterministic solver on every grid, by the names that ``--sampler`` and ``--grid`` take."""
    yield Contestant("sfumato", "auto", "its rule", run_auto)
    for solver in OUR_SOLVERS:
        for grid in OUR_GRIDS:
            yield Contestant("sfumato", solver, grid, partial(run_ours, sf.samplers.build(solver), grids.build(grid)))

"""The contestants of ``solver_accuracy.py`` from diffusers, k-diffusion and azula: all their deterministic solvers.

The contract: each is run by its own code and made as strong as it can be.  It is asked at the very level it stands at,
in float64, never at a rounded timestep; no evaluation is spent on a step of no length; and beside the grids of its own
library it gets the common ones, our ``shifted`` included.

Some are ours under another name: azula's vAB k is ``adams:predictor=k:corrector=0``, its zAB k (and k-diffusion's LMS)
``lms:p=k``, its zEAB k ``dpm-solver:p=k:method=multistep`` but for the start of the third order; and UniPC and
DPM-Solver++(2M) are the same everywhere.  They stay in: what is compared is the best that a user of each library can
reach.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from solver_contestants import LOWEST, SHIFTED, Contestant, Counted, Problem, common, named
from torch import Tensor

import sfumato as sf
from sfumato import schedules
from sfumato.processes.gaussian import Gaussian
from sfumato.testing.adapters import OwnTimes

# -------------------------------------------------------------------------------------------------------- diffusers


@functools.cache
def betas_of(schedule: str) -> list[float]:
    """The betas whose table has this schedule's 1000 levels (999 for flows, whose last would be infinite)."""
    if schedule == "karras":  # EDM's own levels, 0.002 to 80
        levels = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 1000) ** 7
    else:
        times = torch.arange(1, 1000 if schedule == "flow" else 1001, dtype=torch.float64) / 1000
        alpha, sigma = schedules.get(schedule)(times)
        levels = (sigma / alpha).numpy()
    alpha_bar = 1 / (1 + levels**2)
    return [float(b) for b in 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])]


@dataclass(frozen=True)
class Trimmed:
    """``OwnTimes`` without a last step of no length (final level = the one before), whose evaluation is then spent on
    a step that moves; or, with ``levels``, on these levels (flow times for flow schedulers) instead of its own.
    """

    inner: OwnTimes
    levels: np.ndarray | None = None
    takes = "belief"

    def start(self, model: Any, process: Any, grid: list[float]) -> Any:
        carry = self.inner.start(model, process, grid)
        run = carry.run.scheduler
        if self.levels is not None:
            run.sigmas = torch.from_numpy(self.levels)
        elif _idle_end(run):
            longer = self.inner.start(model, process, [*grid, -1.0])
            carry = longer if _idle_end(longer.run.scheduler) else carry  # else rounding had given it a step too many
            run = carry.run.scheduler
            run.sigmas, run.timesteps = run.sigmas[:-1], run.timesteps[:-1]
            run.num_inference_steps = len(run.timesteps)
            carry.left = len(grid) - 1
        return carry

    def step(self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Any, rng: Any) -> Any:
        return self.inner.step(model, process, x, t, s, carry, rng)


def _idle_end(scheduler: Any) -> bool:
    """Whether the last step has no length."""
    table = getattr(scheduler, "sigmas", None)
    if not torch.is_tensor(table) or len(table) != len(scheduler.timesteps) + 1 or len(table) < 3:
        return False
    return bool(table[-1] > 0) and math.isclose(float(table[-1]), float(table[-2]), rel_tol=1e-4)


def run_scheduler(
    build: Callable[[Problem], Any],
    evaluations: int,
    problem: Problem,
    nfe: int,
    levels: Callable[[Problem, int], np.ndarray] | None = None,
) -> Tensor | None:
    """The most steps whose evaluations do not exceed ``nfe``, on the scheduler's own times or on these levels."""
    scheduler = build(problem)
    for n in range((nfe + evaluations - 1) // evaluations, max(nfe // evaluations - 3, 0), -1):
        model, walk = Counted(problem), OwnTimes(scheduler, 1, evaluations, 0)
        sampler = Trimmed(walk, None if levels is None else levels(problem, n))
        grid = [1 - k / n for k in range(n + 1)]
        x: Tensor = sf.sample(model, problem.process, sampler, grid, problem.x1)
        if model.calls <= nfe:
            return x if bool(torch.isfinite(x).all()) else None
    return None


SPACINGS: dict[str, dict[str, Any]] = {
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},  # DPMSolverMultistepScheduler alone
}
_PLAIN, _ALL = ("leading", "linspace", "trailing"), tuple(SPACINGS)[:-1]
_SINGLE = ("linspace", "karras", "exponential", "beta")
_LAST = {"final_sigmas_type": "sigma_min"}  # DPM-Solver in the noise and UniPC bh1 cannot step to 0
_M, _S = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_DEIS, _UNI, _SA = "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"


def still(_: Any) -> float:
    """SA-Solver's tau of the ODE."""
    return 0.0


#: Class and settings of the multistep solvers, and whether they can step to exactly 0.
MULTISTEP: tuple[tuple[str, str, dict[str, Any], bool], ...] = (
    *((f"DEIS {k}", _DEIS, {"solver_order": k}, False) for k in (2, 3)),
    *((f"DPM++ 2M {kind}", _M, {"solver_order": 2, "solver_type": kind}, True) for kind in ("midpoint", "heun")),
    ("DPM++ 3M", _M, {"solver_order": 3}, True),
    *((f"DPM {k}M", _M, {"solver_order": k, "algorithm_type": "dpmsolver", **_LAST}, False) for k in (2, 3)),
    ("UniPC 2 bh1", _UNI, {"solver_order": 2, "solver_type": "bh1", **_LAST}, False),
    *((f"UniPC {k} bh2", _UNI, {"solver_order": k}, True) for k in (2, 3, 4)),
    ("UniPC 3 bh2 to the end", _UNI, {"solver_order": 3, **_LAST, "lower_order_final": False}, False),
    ("DEIS 3 to the end", _DEIS, {"solver_order": 3, "lower_order_final": False}, False),
    *(
        (f"SA-Solver {p} {c}", _SA, {"predictor_order": p, "corrector_order": c, "tau_func": still}, False)
        for p, c in ((2, 2), (3, 3), (3, 4))
    ),
)
#: Class, settings, evaluations a step, spacings.
OTHERS: tuple[tuple[str, str, dict[str, Any], int, tuple[str, ...]], ...] = (
    ("DDIM", "DDIMScheduler", {"clip_sample": False}, 1, _PLAIN),
    ("PNDM", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, 1, _PLAIN),
    ("Euler", "EulerDiscreteScheduler", {}, 1, _ALL),
    ("Heun", "HeunDiscreteScheduler", {}, 2, _ALL),
    ("KDPM2", "KDPM2DiscreteScheduler", {}, 2, _ALL),
    ("LMS", "LMSDiscreteScheduler", {}, 1, _ALL),
    *((f"DPM++ {k}S", _S, {"solver_order": k}, 1, _SINGLE) for k in (2, 3)),
    *((f"DPM {k}S", _S, {"solver_order": k, "algorithm_type": "dpmsolver", **_LAST}, 1, _SINGLE) for k in (2, 3)),
)
SHIFTS = (0.5, 1.0, 2.0, 3.0)
_GIVEN = (*((kind, 0.0) for kind in SHIFTED), ("flow time", 0.03), ("flow time", 0.1), ("karras", 0.03))


def _build(name: str, settings: dict[str, Any], problem: Problem) -> Any:
    if name == _S:  # takes no spacing: it is always linspace
        settings = {k: v for k, v in settings.items() if k != "timestep_spacing"}
    return _built(name, tuple(settings.items()), problem.schedule)


def _plain(name: str, settings: dict[str, Any], problem: Problem) -> Any:
    return _built(name, tuple(settings.items()), None)


@functools.cache
def _built(name: str, settings: tuple[tuple[str, Any], ...], schedule: str | None) -> Any:
    """A scheduler on the table of ``schedule``, or on none; every walk copies it."""
    import diffusers

    betas = {} if schedule is None else {"trained_betas": betas_of(schedule)}
    steps = {} if schedule is None else {"num_train_timesteps": len(betas_of(schedule))}
    return getattr(diffusers, name)(**betas, **steps, **dict(settings))


def _only(schedule: str, make: Any, evaluations: int, levels: Any, problem: Problem, nfe: int) -> Tensor | None:
    return run_scheduler(make, evaluations, problem, nfe, levels) if problem.schedule == schedule else None


def _given(kind: str, low: float, zero: bool, straight: bool, problem: Problem, n: int) -> np.ndarray:
    """Levels written over a scheduler's table; an infinite one, whose logarithm it takes, as ``tau`` = 1 - 1e-6."""
    u = np.minimum(common(problem, kind, low, zero, n), 1e6 if straight else 999.0)
    return u / (1 + u) if straight else u


def _on_levels(make: Any, kind: str, low: float, zero: bool, problem: Problem, nfe: int) -> Tensor | None:
    return run_scheduler(make, 1, problem, nfe, partial(_given, kind, low, zero, False))


def from_diffusers() -> Iterator[Contestant]:
    """Every solver on every spacing it offers, those of flows on every shift and spacing they admit."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # about settings they change
    everywhere = [*OTHERS]
    for label, name, settings, _ in MULTISTEP:
        everywhere.append((label, name, settings, 1, (*_ALL, "lu") if name == _M else _ALL))
    for label, name, settings, evaluations, spacings in everywhere:
        for spacing in spacings:
            make = partial(_build, name, {**settings, **SPACINGS[spacing]})
            yield Contestant("diffusers", label, spacing, partial(run_scheduler, make, evaluations))
    for label, name, settings, ends in MULTISTEP:
        make = partial(_build, name, settings)
        for kind, low in _GIVEN:
            zero = ends and (kind in SHIFTED or low < 0.1)
            run = partial(_on_levels, make, kind, low, zero)
            yield Contestant("diffusers", label, f"{named(kind, low, zero)}, given", run, False)
    yield from _on_flows()
    for label, name, more in (
        ("EDM Euler", "EDMEulerScheduler", {}),
        ("EDM DPM++ 2M", "EDMDPMSolverMultistepScheduler", {"solver_order": 2}),
        ("EDM DPM++ 3M", "EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ):
        for spacing in ("karras", "exponential"):
            make = partial(_plain, name, {**more, "sigma_schedule": spacing})
            yield Contestant("diffusers", label, spacing, partial(_only, "karras", make, 1, None))


def _on_flows() -> Iterator[Contestant]:
    """Those that walk the straight path itself.  Only FlowMatchEuler and UniPC admit another spacing than a shift
    there: DEIS, DPM-Solver and SA-Solver then forget that the path is straight.
    """
    euler, heun = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
    made: list[tuple[str, str, str, dict[str, Any], int]] = []
    for shift in SHIFTS:
        made.append(("FlowMatchEuler", f"shift {shift:g}", euler, {"shift": shift}, 1))
        made.append(("FlowMatchHeun", f"shift {shift:g}", heun, {"shift": shift}, 2))
    spacings = ("karras", "exponential", "beta")
    made.extend(("FlowMatchEuler", spacing, euler, SPACINGS[spacing], 1) for spacing in spacings)
    multistep = [row for row in MULTISTEP if row[2].get("algorithm_type") != "dpmsolver"]  # knows no flow
    straight = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    singles = [(f"DPM++ {k}S", _S, {"solver_order": k}, True) for k in (2, 3)]
    for label, name, settings, _ in (*multistep, *singles):
        for shift in SHIFTS:
            kept = {**settings, **straight, "flow_shift": shift}
            made.append((f"{label} flow", f"shift {shift:g}", name, kept, 1))
        if name == _UNI:
            made.append((f"{label} flow", "karras", name, {**settings, **straight, **SPACINGS["karras"]}, 1))
            for end in (0.02, 0.1):
                kept = {**settings, **straight, "shift_terminal": end}
                made.append((f"{label} flow", f"shift 1 to {end:g}", name, kept, 1))
    for label, grid, name, settings, evaluations in made:
        make = partial(_plain, name, settings)
        yield Contestant("diffusers", label, grid, partial(_only, "flow", make, evaluations, None))
    for label, name, settings, ends in multistep:
        for kind, low in _GIVEN:
            zero = ends and (kind in SHIFTED or low < 0.1)
            make = partial(_plain, name, {**settings, **straight})
            run = partial(_only, "flow", make, 1, partial(_given, kind, low, zero, True))
            yield Contestant("diffusers", f"{label} flow", f"{named(kind, low, zero)}, given", run, False)


# ------------------------------------------------------------------------------------ the model at a level, for both

_TOP = 1e4
_EXPLODING = Gaussian(schedules.Karras(sigma_max=_TOP))


class Exploding:
    """The exact model in the coordinates of k-diffusion: ``D(x0 + sigma eps, sigma)``."""

    def __init__(self, problem: Problem) -> None:
        self.oracle, self.calls = problem.oracle, 0

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        self.calls += 1
        mean: Tensor = self.oracle.mean(_EXPLODING, x, (float(sigma.flatten()[0]) / _TOP) ** (1 / 7))
        return mean


# ------------------------------------------------------------------------------------------------------ k-diffusion


def k_diffusion() -> Any:
    """k-diffusion's sampling.py alone: its package does not import without packages it does not need here."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.submodule_search_locations is None:
        return None
    folder = Path(next(iter(found.submodule_search_locations)))
    stub, utils = types.ModuleType("k_diffusion_stub"), types.ModuleType("k_diffusion_stub.utils")
    stub.__path__ = []
    utils.append_dims = lambda x, d: x[(...,) + (None,) * (d - x.ndim)]  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion_stub": stub, "k_diffusion_stub.utils": utils}
    for absent in ("torchsde", "torchdiffeq"):
        if importlib.util.find_spec(absent) is None:
            sys.modules[absent] = types.ModuleType(absent)
            sys.modules[absent].odeint = None  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("k_diffusion_stub.sampling", folder / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one(n: int) -> int:
    return n


def two(n: int) -> int:
    return 2 * n - 1


_NONE = {"eta": 0.0, "noise_sampler": lambda a, b: 0.0}
#: Function, settings, evaluations of n steps, and whether it runs on every grid (else on two: it is of low order).
K_SOLVERS: tuple[tuple[str, str, dict[str, Any], Callable[[int], int], bool], ...] = (
    ("euler", "sample_euler", {}, one, False),
    ("heun", "sample_heun", {}, two, False),
    ("dpm_2", "sample_dpm_2", {}, two, False),
    ("dpmpp_2s", "sample_dpmpp_2s_ancestral", {"eta": 0.0}, two, False),
    ("lms 2", "sample_lms", {"order": 2}, one, True),
    ("lms 3", "sample_lms", {"order": 3}, one, True),
    ("lms 4", "sample_lms", {"order": 4}, one, True),
    ("dpmpp_2m", "sample_dpmpp_2m", {}, one, True),
    ("dpmpp_2m_sde heun eta=0", "sample_dpmpp_2m_sde", {**_NONE, "solver_type": "heun"}, one, True),
    ("dpmpp_3m_sde eta=0", "sample_dpmpp_3m_sde", _NONE, one, True),
)


def k_grids(module: Any) -> Iterator[tuple[str, Callable[[float, int], Tensor], bool]]:
    """Name, ``(top, n) -> levels`` by its own functions, and whether solvers of low order run on it, too."""

    def vp(eps: float, top: float, n: int) -> Tensor:  # beta_d so that it begins at the problem's own level
        return _tensor(module.get_sigmas_vp(n, 2 * (math.log1p(top**2) - 0.1), 0.1, eps))

    for low in LOWEST:
        for rho in (7.0, 4.0):
            yield (
                f"karras {rho:g}, {low:g}",
                lambda top, n, low=low, rho=rho: _tensor(module.get_sigmas_karras(n, low, top, rho)),
                rho == 7.0,
            )
        yield (
            f"exponential, {low:g}",
            lambda top, n, low=low: _tensor(module.get_sigmas_exponential(n, low, top)),
            True,
        )
        if low > 0.002:
            for rho in (0.7, 1.5):
                yield (
                    f"polyexponential {rho:g}, {low:g}",
                    lambda top, n, low=low, rho=rho: _tensor(module.get_sigmas_polyexponential(n, low, top, rho)),
                    False,
                )
    for eps in (1e-3, 1e-2):
        yield f"vp, {eps:g}", partial(vp, eps), False


def _tensor(levels: Tensor) -> Tensor:
    return levels.double()


def from_k_diffusion() -> Iterator[Contestant]:
    """Every deterministic solver with a fixed number of evaluations, on its own grids and on two common ones."""
    module = k_diffusion()
    if module is None:
        return

    def walk(
        solve: Any, settings: Any, count: Callable[[int], int], levels: Any, problem: Problem, nfe: int
    ) -> Tensor | None:
        n = max(k for k in range(1, nfe + 1) if count(k) <= nfe)
        if n < 2:
            return None
        sigmas = levels(problem, n)
        sigmas[0] = min(problem.top, 999.0)
        model = Exploding(problem)
        x: Tensor = solve(model, problem.noise * sigmas[0], sigmas, disable=True, **settings)
        assert model.calls <= nfe, (solve, model.calls, nfe)
        return x

    def own(levels: Any, problem: Problem, n: int) -> Tensor:
        found: Tensor = levels(min(problem.top, 999.0), n)
        return found

    def given(kind: str, low: float, problem: Problem, n: int) -> Tensor:
        return torch.from_numpy(common(problem, kind, low, True, n))

    def fast(low: float, problem: Problem, nfe: int) -> Tensor | None:
        top, model = min(problem.top, 999.0), Exploding(problem)
        x: Tensor = module.sample_dpm_fast(model, problem.noise * top, low, top, nfe, disable=True)
        return x if model.calls <= nfe else None

    for label, function, settings, count, every in K_SOLVERS:
        solve = getattr(module, function)
        for name, levels, usual in k_grids(module):
            if every or usual:
                yield Contestant(
                    "k-diffusion", label, name, partial(walk, solve, settings, count, partial(own, levels))
                )
        for kind, low in (*((kind, 0.0) for kind in SHIFTED), *(("flow time", low) for low in LOWEST)):
            run = partial(walk, solve, settings, count, partial(given, kind, low))
            yield Contestant("k-diffusion", label, named(kind, low, True), run, False)
    for low in LOWEST:
        yield Contestant("k-diffusion", "dpm_fast", f"exponential, {low:g}", partial(fast, low))


# ------------------------------------------------------------------------------------------------------------ azula

OWN = "own time"


def own_ratios(problem: Problem, n: int, low: float, zero: bool, whole: bool) -> np.ndarray:
    """Levels at times even from 1 (.999 where alpha(1) = 0, unless ``whole``) to 0 or to where the level is ``low``."""
    last = 0.0 if zero else float(schedules.time_at(problem.process.schedule, -2 * math.log(low)))
    first = 1.0 if whole or math.isfinite(problem.top) else 0.999
    times = torch.linspace(first, last, n + 1, dtype=torch.float64)
    alpha, sigma = problem.process.schedule(times)
    return np.asarray(torch.where(alpha > 0, sigma / alpha, math.inf).numpy())


class Levels:
    """A schedule for azula whose uniform times are given levels: ``alpha^2 + sigma^2 = 1``."""

    def __init__(self, ratios: np.ndarray) -> None:
        self.ratios = torch.from_numpy(np.asarray(ratios)[::-1].copy())

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = self.ratios[(t * (len(self.ratios) - 1)).round().long()]
        alpha = 1 / (1 + u**2).sqrt()
        return alpha, torch.where(u.isinf(), 1.0, u * alpha)


def from_azula() -> Iterator[Contestant]:
    """Its solvers on even times of the schedule, as it has them, on common grids and on ours: it takes any levels."""
    if importlib.util.find_spec("azula") is None:
        return
    from azula import sample as azula
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):  # type: ignore[misc]
        def __init__(self, problem: Problem, levels: Levels) -> None:
            super().__init__()
            self.schedule, self.problem, self.inner = levels, problem, Exploding(problem)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            if float(alpha) == 0:  # noise alone
                self.inner.calls += 1
                return DiracPosterior(self.problem.oracle.mean(self.problem.process, x_t, 1.0))
            return DiracPosterior(self.inner(x_t / alpha, sigma / alpha))

    def walk(
        make: Any, count: int, whole: bool, kind: str, low: float, zero: bool, problem: Problem, nfe: int
    ) -> Tensor | None:
        n = nfe // count
        if kind == OWN:
            ratios = own_ratios(problem, n, low, zero, whole)
        else:
            ratios = common(problem, kind, low, zero, n)
        model = Exact(problem, Levels(ratios if whole else np.minimum(ratios, 999.0)))
        walker = make(model, steps=n, silent=True, dtype=torch.float64)
        _, first = model.schedule(torch.tensor(1.0, dtype=torch.float64))
        x: Tensor = walker(problem.noise * first)
        assert model.inner.calls <= nfe, (make, model.inner.calls, nfe)
        return x if bool(torch.isfinite(x).all()) else None

    # label, class, evaluations a step, whether it can step to 0, whether it can begin at alpha = 0, on every grid
    listed: list[tuple[str, Any, int, bool, bool, bool]] = [
        ("DDIM", azula.DDIMSampler, 1, True, True, False),  # its Euler is the same
        ("Heun", azula.HeunSampler, 2, False, False, False),
        ("REAB 2", partial(azula.REABSampler, order=2), 1, False, False, False),
    ]
    for k in (2, 3, 4):
        listed.append((f"zAB {k}", partial(azula.zABSampler, order=k), 1, True, False, True))
        listed.append((f"vAB {k}", partial(azula.vABSampler, order=k), 1, True, True, True))
    for k in (2, 3):
        listed.append((f"zEAB {k}", partial(azula.zEABSampler, order=k), 1, False, False, True))
        listed.append((f"xEAB {k}", partial(azula.xEABSampler, order=k), 1, False, False, True))
    for label, make, count, ends, whole, every in listed:
        taken = [(OWN, low, False) for low in LOWEST] + [(OWN, 0.0, True)] * ends
        taken += [(kind, 0.0, zero) for kind in SHIFTED for zero in ((True, False) if ends else (False,))]
        for kind in ("karras", "log", "flow time") if every else ():
            taken += [(kind, low, zero) for low in LOWEST for zero in ((True, False) if ends else (False,))]
        for kind, low, zero in taken:
            name = f"{OWN}, 0" if kind == OWN and zero else named(kind, low, zero)
            yield Contestant("azula", label, name, partial(walk, make, count, whole, kind, low, zero), kind == OWN)

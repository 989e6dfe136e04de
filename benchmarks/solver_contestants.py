"""The contestants of ``solver_accuracy.py``: every deterministic solver here, in diffusers, azula and k-diffusion.

The contract: a :class:`Contestant` walks a :class:`Problem` with at most the given number of evaluations of its exact
model, asked at the very level the solver stands at.
"""

from __future__ import annotations

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
from torch import Tensor

import sfumato as sf
from sfumato import grids, schedules
from sfumato.errors import Refusal
from sfumato.processes.gaussian import Gaussian
from sfumato.samplers.auto import choose
from sfumato.schedules import at
from sfumato.testing.adapters import OwnTimes

BATCH = 256


@dataclass(frozen=True)
class Problem:
    """One mixture on one schedule: noise ``x1`` and the exact ends ``x0`` of its probability flow."""

    mixture: str
    schedule: str
    oracle: Any
    process: Gaussian
    x1: Tensor
    x0: Tensor

    @property
    def top(self) -> float:
        """The largest ``sigma / alpha``, infinite for flows."""
        alpha, sigma = at(self.process.schedule, 1.0)
        return sigma / alpha if alpha > 0 else math.inf

    def error(self, x: Tensor) -> float:
        """Mean distance to the exact ends over their root mean square norm."""
        return float((x - self.x0).norm(dim=1).mean() / self.x0.norm(dim=1).square().mean().sqrt())


def pose(mixture: str, oracle: Any, schedule: str, batch: int = BATCH, seed: int = 0) -> Problem:
    process = Gaussian(schedules.get(schedule))
    x1 = process.prior(torch.zeros(batch, *oracle.shape, dtype=torch.float64)).draw(sf.Stream(seed))
    return Problem(mixture, schedule, oracle, process, x1, oracle.flow(process, x1, 1.0, 0.0))


@dataclass(frozen=True)
class Contestant:
    """``run(problem, nfe)`` ends a walk of at most ``nfe`` evaluations, or returns None where it cannot take part.

    ``offered``: whether its library itself offers this grid for this schedule (else it merely accepts it).
    """

    library: str
    solver: str
    grid: str
    run: Callable[[Problem, int], Tensor | None]
    offered: bool = True


class Counted:
    """The exact model of a problem, counting its evaluations."""

    def __init__(self, problem: Problem) -> None:
        self.denoiser, self.calls = problem.oracle.denoiser(problem.process), 0

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return self.denoiser(x, t, cond)


class Exploding:
    """The exact model in the coordinates of k-diffusion: ``D(x0 + sigma eps, sigma)``."""

    def __init__(self, problem: Problem) -> None:
        oracle = problem.oracle
        self.process, self.oracle, self.calls = _EXPLODING, oracle, 0

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        self.calls += 1
        level = float(sigma.flatten()[0])
        time_ = (level / _TOP) ** (1 / 7)
        mean: Tensor = self.oracle.mean(self.process, x, time_)
        return mean


_TOP = 1e4
_EXPLODING = Gaussian(schedules.Karras(sigma_max=_TOP))


# ------------------------------------------------------------------------------------------------------------- ours


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


OUR_SOLVERS = (
    *("ddim", "heun", "dpm-solver", "dpmpp-2m", "dpmpp-3m", "pndm", "lms", "deis:p=2", "deis:p=3", "deis:p=4"),
    *("unipc:p=2", "unipc:p=3", "adams:predictor=1:corrector=2", "adams", "adams:predictor=3:corrector=4"),
    *("adams:predictor=4:corrector=4", "adams:predictor=4:corrector=0"),
)


OUR_GRIDS = (
    *("uniform", "quadratic", "trailing", "uniform-logsnr", "karras", "karras:sigma_min=0.01", "karras:sigma_min=0.03"),
    *(
        "karras:sigma_min=0.1",
        "shifted",
        "shifted:shift=0.8:rho=1",
        "shifted:shift=1:rho=1.3",
        "shifted:shift=2:rho=1.6",
    ),
)


def run_auto(problem: Problem, nfe: int) -> Tensor | None:
    choice, model = choose(problem.process.schedule, nfe), Counted(problem)
    x: Tensor = sf.sample(model, problem.process, choice.build(), choice.times(), problem.x1)
    assert model.calls == nfe
    return x


def ours() -> Iterator[Contestant]:
    yield Contestant("sfumato", "auto", "auto", run_auto)
    for solver in OUR_SOLVERS:
        if solver.split(":")[0] not in sf.samplers.names():
            continue
        for grid in OUR_GRIDS:
            run = partial(run_ours, sf.samplers.build(solver), grids.build(grid))
            yield Contestant("sfumato", solver, grid, run)


# -------------------------------------------------------------------------------------------------------- diffusers


def levels_of(problem: Problem) -> np.ndarray:
    """The 1000 training levels ``sigma / alpha`` that a diffusers table of this schedule holds."""
    if problem.schedule == "karras":  # EDM's own levels, 0.002 to 80
        ramp = np.linspace(0, 1, 1000)
        return np.asarray((0.002 ** (1 / 7) + ramp * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7)
    if problem.schedule == "flow":
        t = np.arange(1, 1000) / 1000
        return np.asarray(t / (1 - t))
    alpha, sigma = at(problem.process.schedule, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    return np.asarray((sigma / alpha).numpy())


def betas_of(problem: Problem) -> list[float]:
    alpha_bar = 1 / (1 + levels_of(problem) ** 2)
    return [float(b) for b in 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])]


SPACINGS: dict[str, dict[str, Any]] = {
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
_PLAIN = ("leading", "linspace", "trailing")

#: Class, settings, evaluations a step, spacings.
DIFFUSERS: tuple[tuple[str, str, dict[str, Any], int, tuple[str, ...]], ...] = (
    ("DDIM", "DDIMScheduler", {"clip_sample": False}, 1, _PLAIN),
    ("PNDM", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, 1, _PLAIN),
    ("Euler", "EulerDiscreteScheduler", {}, 1, tuple(SPACINGS)),
    ("Heun", "HeunDiscreteScheduler", {}, 2, tuple(SPACINGS)),
    ("KDPM2", "KDPM2DiscreteScheduler", {}, 2, tuple(SPACINGS)),
    ("LMS", "LMSDiscreteScheduler", {}, 1, tuple(SPACINGS)),
    *(("DEIS " + str(k), "DEISMultistepScheduler", {"solver_order": k}, 1, tuple(SPACINGS)) for k in (2, 3)),
    *(
        (
            f"DPM++ {k}M {kind}",
            "DPMSolverMultistepScheduler",
            {"solver_order": k, "solver_type": kind},
            1,
            tuple(SPACINGS),
        )
        for k, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint"))
    ),
    *(
        (
            f"DPM {k}M",
            "DPMSolverMultistepScheduler",
            {"solver_order": k, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            1,
            tuple(SPACINGS),
        )
        for k in (2, 3)
    ),
    *(
        (
            f"DPM++ {k}S",
            "DPMSolverSinglestepScheduler",
            {"solver_order": k},
            1,
            ("linspace", "karras", "exponential", "beta"),
        )
        for k in (2, 3)
    ),
    *(
        (f"UniPC {k} {kind}", "UniPCMultistepScheduler", {"solver_order": k, "solver_type": kind}, 1, tuple(SPACINGS))
        for k, kind in ((2, "bh1"), (2, "bh2"), (3, "bh2"))
    ),
)
#: Those that also walk the straight path itself.
DIFFUSERS_FLOW: tuple[tuple[str, str, dict[str, Any], int], ...] = (
    ("FlowMatchEuler", "FlowMatchEulerDiscreteScheduler", {}, 1),
    ("FlowMatchHeun", "FlowMatchHeunDiscreteScheduler", {}, 2),
    *(
        (f"{label} flow", name, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **more}, 1)
        for label, name, more in (
            ("DEIS 2", "DEISMultistepScheduler", {"solver_order": 2}),
            ("DEIS 3", "DEISMultistepScheduler", {"solver_order": 3}),
            ("DPM++ 2M", "DPMSolverMultistepScheduler", {"solver_order": 2}),
            ("DPM++ 3M", "DPMSolverMultistepScheduler", {"solver_order": 3}),
            ("UniPC 2", "UniPCMultistepScheduler", {"solver_order": 2}),
            ("UniPC 3", "UniPCMultistepScheduler", {"solver_order": 3}),
        )
    ),
)


def run_scheduler(build: Callable[[Problem], Any], evaluations: int, problem: Problem, nfe: int) -> Tensor | None:
    scheduler = build(problem)
    for n in range((nfe + evaluations - 1) // evaluations, max(nfe // evaluations - 3, 0), -1):
        model = Counted(problem)
        x: Tensor = sf.sample(
            model,
            problem.process,
            OwnTimes(scheduler, 1, evaluations, 0),
            [1 - k / n for k in range(n + 1)],
            problem.x1,
        )
        if model.calls <= nfe:
            return x if bool(torch.isfinite(x).all()) else None
    return None


def from_diffusers() -> Iterator[Contestant]:
    import diffusers

    def build(name: str, settings: dict[str, Any], problem: Problem) -> Any:
        betas = betas_of(problem)
        if name == "DPMSolverSinglestepScheduler":  # takes no spacing: it is always linspace
            settings = {k: v for k, v in settings.items() if k != "timestep_spacing"}
        return getattr(diffusers, name)(trained_betas=betas, num_train_timesteps=len(betas), **settings)

    for label, name, settings, evaluations, spacings in DIFFUSERS:
        for spacing in spacings:
            make = partial(build, name, {**settings, **SPACINGS[spacing]})
            yield Contestant("diffusers", label, spacing, partial(run_scheduler, make, evaluations))
    for label, name, settings, evaluations in DIFFUSERS_FLOW:
        for shift in (1.0, 3.0):
            key = "shift" if label.startswith("FlowMatch") else "flow_shift"
            kept = {**settings, key: shift}
            make = partial(_flow_only, getattr(diffusers, name), kept)
            yield Contestant("diffusers", label, f"shift {shift:g}", partial(_on_flow, make, evaluations))
    for label, name, more in (
        ("EDM Euler", "EDMEulerScheduler", {}),
        ("EDM DPM++ 2M", "EDMDPMSolverMultistepScheduler", {"solver_order": 2}),
        ("EDM DPM++ 3M", "EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ):
        for spacing in ("karras", "exponential"):
            make = partial(_flow_only, getattr(diffusers, name), {**more, "sigma_schedule": spacing})
            yield Contestant("diffusers", label, spacing, partial(_on_karras, make, 1))


def _flow_only(cls: Any, settings: dict[str, Any], problem: Problem) -> Any:
    return cls(**settings)


def _on_flow(make: Any, evaluations: int, problem: Problem, nfe: int) -> Tensor | None:
    return run_scheduler(make, evaluations, problem, nfe) if problem.schedule == "flow" else None


def _on_karras(make: Any, evaluations: int, problem: Problem, nfe: int) -> Tensor | None:
    return run_scheduler(make, evaluations, problem, nfe) if problem.schedule == "karras" else None


# ------------------------------------------------------------------------------------------------- grids for anyone


def ratio_grids(top: float, low: float) -> dict[str, Callable[[int], np.ndarray]]:
    """Common spacings of ``n`` levels ``sigma / alpha`` from ``top`` down to ``low``, both finite."""

    def power(rho: float, n: int) -> np.ndarray:
        return np.asarray(np.linspace(top ** (1 / rho), low ** (1 / rho), n) ** rho)

    def angle(n: int) -> np.ndarray:
        return np.asarray(np.tan(np.linspace(math.atan(top), math.atan(low), n)))

    def straight(n: int) -> np.ndarray:
        t = np.linspace(top / (1 + top), low / (1 + low), n)
        return np.asarray(t / (1 - t))

    made: dict[str, Callable[[int], np.ndarray]] = {f"karras rho {rho:g}": partial(power, rho) for rho in (5, 7)}
    made |= {"log": lambda n: np.geomspace(top, low, n), "angle": angle, "flow time": straight}
    return made


LOWEST = (0.002, 0.01, 0.03, 0.1)
OWN = "own time"


def own_ratios(problem: Problem, n: int, low: float, zero: bool) -> np.ndarray:
    """``sigma / alpha`` at times even from 1 (0.999 where alpha(1) = 0) to 0, or to the time where it is ``low``."""
    last = 0.0 if zero else float(schedules.time_at(problem.process.schedule, -2 * math.log(low)))
    times = torch.linspace(1.0 if math.isfinite(problem.top) else 0.999, last, n + 1, dtype=torch.float64)
    alpha, sigma = problem.process.schedule(times)
    return np.asarray((sigma / alpha).numpy())


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


#: Function, settings, evaluations as a function of n steps.
K_SOLVERS: tuple[tuple[str, str, dict[str, Any], Callable[[int], int]], ...] = (
    ("euler", "sample_euler", {}, lambda n: n),
    ("heun", "sample_heun", {}, lambda n: 2 * n - 1),
    ("dpm_2", "sample_dpm_2", {}, lambda n: 2 * n - 1),
    ("lms 3", "sample_lms", {"order": 3}, lambda n: n),
    ("lms 4", "sample_lms", {"order": 4}, lambda n: n),
    ("dpmpp_2s", "sample_dpmpp_2s_ancestral", {"eta": 0.0}, lambda n: 2 * n - 1),
    ("dpmpp_2m", "sample_dpmpp_2m", {}, lambda n: n),
    ("dpmpp_2m_sde eta=0", "sample_dpmpp_2m_sde", {"eta": 0.0, "noise_sampler": lambda a, b: 0.0}, lambda n: n),
    ("dpmpp_3m_sde eta=0", "sample_dpmpp_3m_sde", {"eta": 0.0, "noise_sampler": lambda a, b: 0.0}, lambda n: n),
)


def from_k_diffusion() -> Iterator[Contestant]:
    module = k_diffusion()
    if module is None:
        return

    def top_of(problem: Problem) -> float:
        return min(problem.top, 999.0)

    def start(problem: Problem, top: float) -> Tensor:
        return problem.x1 / at(problem.process.schedule, 1.0)[1] * top

    def walk(
        solve: Any, settings: Any, count: Callable[[int], int], low: float, name: str, problem: Problem, nfe: int
    ) -> Tensor | None:
        n = max(k for k in range(1, nfe + 1) if count(k) <= nfe)
        if n < 2:
            return None
        top = top_of(problem)
        sigmas = torch.from_numpy(np.append(ratio_grids(top, low)[name](n), 0.0))
        model = Exploding(problem)
        x: Tensor = solve(model, start(problem, top), sigmas, disable=True, **settings)
        assert model.calls <= nfe, (solve, model.calls, nfe)
        return x

    def fast(low: float, problem: Problem, nfe: int) -> Tensor | None:
        top, model = top_of(problem), Exploding(problem)
        x: Tensor = module.sample_dpm_fast(model, start(problem, top), low, top, nfe, disable=True)
        return x if model.calls <= nfe else None

    for label, function, settings, count in K_SOLVERS:
        for low in LOWEST:
            for name in ratio_grids(1.0, 0.1):
                run = partial(walk, getattr(module, function), settings, count, low, name)
                offered = name in ("karras rho 7", "log")
                yield Contestant("k-diffusion", label, f"{name}, {low:g}", run, offered)
    for low in LOWEST:
        yield Contestant("k-diffusion", "dpm_fast", f"log, {low:g}", partial(fast, low))


# ------------------------------------------------------------------------------------------------------------ azula


def from_azula() -> Iterator[Contestant]:
    if importlib.util.find_spec("azula") is None:
        return
    from azula import sample as azula
    from azula.denoise import Denoiser, DiracPosterior

    class Levels:
        """A schedule of azula whose uniform times are given levels: alpha^2 + sigma^2 = 1."""

        def __init__(self, ratios: np.ndarray) -> None:
            self.ratios = torch.from_numpy(np.asarray(ratios)[::-1].copy())

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            u = self.ratios[(t * (len(self.ratios) - 1)).round().long()]
            return 1 / (1 + u**2).sqrt(), u / (1 + u**2).sqrt()

    class Exact(Denoiser):  # type: ignore[misc]
        def __init__(self, problem: Problem, levels: Levels) -> None:
            super().__init__()
            self.schedule, self.inner = levels, Exploding(problem)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            u = sigma / alpha
            if float(u) == 0:
                return DiracPosterior(x_t)
            return DiracPosterior(self.inner(x_t / alpha, u))

    def walk(make: Any, settings: Any, count: int, name: str, low: float, problem: Problem, nfe: int) -> Tensor | None:
        n = nfe // count
        top, zero = min(problem.top, 999.0), settings.pop("zero", False)
        if name == OWN:  # even in the schedule's own time, as Sampler.timesteps is
            ratios = own_ratios(problem, n, low, zero)
        elif zero:  # to exactly 0 where the solver can divide by it, else to `low`
            ratios = np.append(ratio_grids(top, low)[name](n), 0.0)
        else:
            ratios = ratio_grids(top, low)[name](n + 1)
        model = Exact(problem, Levels(ratios))
        walker = make(model, steps=n, silent=True, dtype=torch.float64, **settings)
        _, sigma = Levels(ratios)(torch.tensor(1.0, dtype=torch.float64))
        x: Tensor = walker(problem.x1 / at(problem.process.schedule, 1.0)[1] * sigma)
        assert model.inner.calls <= nfe, (make, model.inner.calls, nfe)
        return x if bool(torch.isfinite(x).all()) else None

    listed: list[tuple[str, Any, dict[str, Any], int, bool]] = [
        ("DDIM", azula.DDIMSampler, {}, 1, True),
        ("Euler", azula.EulerSampler, {}, 1, True),
        ("Heun", azula.HeunSampler, {}, 2, False),
    ]
    for k in (2, 3, 4):
        listed.append((f"zAB {k}", azula.zABSampler, {"order": k}, 1, True))
        listed.append((f"vAB {k}", azula.vABSampler, {"order": k}, 1, True))
    for k in (2, 3):
        listed.append((f"zEAB {k}", azula.zEABSampler, {"order": k}, 1, False))
        listed.append((f"xEAB {k}", azula.xEABSampler, {"order": k}, 1, False))
        listed.append((f"REAB {k}", azula.REABSampler, {"order": k}, 1, False))
    for label, make, settings, count, zero in listed:
        for low in LOWEST:
            for name in (OWN, "karras rho 7", "log", "angle", "flow time"):
                for end in (True, False) if zero else (False,):
                    grid = f"{name}, {low:g}{', 0' if end else ''}"

                    def run(
                        problem: Problem,
                        nfe: int,
                        make: Any = make,
                        kept: Any = settings,
                        count: int = count,
                        name: str = name,
                        low: float = low,
                        end: bool = end,
                    ) -> Tensor | None:
                        return walk(make, {**kept, "zero": end}, count, name, low, problem, nfe)

                    yield Contestant("azula", label, grid, run, name == OWN)

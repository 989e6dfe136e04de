"""Other libraries' samplers under our laws: adapters that make a diffusers scheduler a :class:`~sfumato.core.Sampler`.

The contract: ``x0`` is the only thing an adapter asks of a model, at the noise level at which the scheduler itself
stands; the scheduler is copied at every start, so that its state never outlives a walk.  Two adapters ask two
questions:

* :class:`OwnTimes` runs a scheduler as a pipeline does: ``set_timesteps(n)``, initial noise times
  ``init_noise_sigma``, its own times to its own end.  Only the number of steps of the grid is used;
* :class:`GivenTimes` imposes the levels of the grid on a scheduler that keeps a table ``sigmas``, so that its update
  can be measured by itself (:func:`~sfumato.testing.check_order`).  A scheduler that computes its own next time from
  the number of steps refuses.

A scheduler's state is ``a x0 + s eps`` with ``(a, s)`` proportional to ``(1, u)``, ``u = sigma / alpha``; how it is
scaled, and what its network is asked for, is one line of :data:`KINDS` per class.  diffusers itself is never imported
here: the objects bring their own code.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Process
from sfumato.errors import Refusal
from sfumato.schedules import Flow, Karras, Schedule, Table, at, time_at

#: How a state is scaled: ``u -> (a, s)`` of ``a x0 + s eps``; ``u`` may be infinite.
Scale = Callable[[float], tuple[float, float]]


def _preserving(u: float) -> tuple[float, float]:
    return (0.0, 1.0) if math.isinf(u) else (1 / math.hypot(1, u), u / math.hypot(1, u))


def _exploding(u: float) -> tuple[float, float]:
    return (0.0, 1.0) if math.isinf(u) else (1.0, u)


def _straight(u: float) -> tuple[float, float]:
    return (0.0, 1.0) if math.isinf(u) else (1 / (1 + u), u / (1 + u))


def _ratio_of_sigma(scheduler: Any, k: int, t: Any) -> float:
    """``u`` where a scheduler with a table of ``sigma / alpha`` stands before its evaluation ``k``."""
    middle = getattr(scheduler, "sigmas_interpol", None)
    table = scheduler.sigmas if middle is None or scheduler.state_in_first_order else middle
    return float(table[k])


def _ratio_of_ancestral(scheduler: Any, k: int, t: Any) -> float:
    """As :func:`_ratio_of_sigma` for the ancestral KDPM2, whose middles are counted one earlier."""
    return float(scheduler.sigmas[k] if scheduler.state_in_first_order else scheduler.sigmas_interpol[k - 1])


def _ratio_of_flow(scheduler: Any, k: int, t: Any) -> float:
    """``u`` where a scheduler with a table of flow times stands: ``t / (1 - t)``."""
    return _divided(float(scheduler.sigmas[k]))


def _divided(time: float) -> float:
    return math.inf if time >= 1 else time / (1 - time)


def _ratio_of_table(scheduler: Any, k: int, t: Any) -> float:
    """``u`` of a training step of a scheduler that walks its table ``alphas_cumprod``."""
    alpha_bar = float(scheduler.alphas_cumprod[int(t)])
    return math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf


def _ratio_of_angle(scheduler: Any, k: int, t: Any) -> float:
    """``u`` of iPNDM's own table (its ``betas`` are noise levels, not variances)."""
    alpha, sigma = float(scheduler.alphas[k]), float(scheduler.betas[k])
    return sigma / alpha if alpha > 1e-6 else math.inf


@final
@dataclass(frozen=True)
class Kind:
    """How a family of schedulers reads its times and scales its states.

    ``table``: its levels cannot be written over.  ``flow``: the sign of the velocity ``eps - x0`` that it is given.
    """

    ratio: Callable[[Any, int, Any], float]
    scale: Scale
    table: bool = False
    flow: float = 1.0


_VP, _VE = Kind(_ratio_of_sigma, _preserving), Kind(_ratio_of_sigma, _exploding)
_FLOW, _TABLE = Kind(_ratio_of_flow, _straight), Kind(_ratio_of_table, _preserving, table=True)

#: The schedulers of diffusers 0.42.1 that walk a Gaussian path from noise to data, by class name.
KINDS: dict[str, Kind] = {
    "DDIMScheduler": _TABLE,
    "DDIMParallelScheduler": _TABLE,
    "CogVideoXDDIMScheduler": _TABLE,
    "DDPMScheduler": _TABLE,
    "DDPMParallelScheduler": _TABLE,
    "UnCLIPScheduler": _TABLE,
    "PNDMScheduler": _TABLE,
    "LCMScheduler": _TABLE,
    "TCDScheduler": _TABLE,
    "IPNDMScheduler": Kind(_ratio_of_angle, _preserving, table=True),
    "DEISMultistepScheduler": _VP,
    "DPMSolverMultistepScheduler": _VP,
    "DPMSolverSinglestepScheduler": _VP,
    "SASolverScheduler": _VP,
    "UniPCMultistepScheduler": _VP,
    "DPMSolverSDEScheduler": _VE,
    "EulerDiscreteScheduler": _VE,
    "EulerAncestralDiscreteScheduler": _VE,
    "HeunDiscreteScheduler": _VE,
    "KDPM2DiscreteScheduler": _VE,
    "KDPM2AncestralDiscreteScheduler": Kind(_ratio_of_ancestral, _exploding, table=True),
    "LMSDiscreteScheduler": _VE,
    "EDMEulerScheduler": _VE,
    "EDMDPMSolverMultistepScheduler": _VE,
    "CosineDPMSolverMultistepScheduler": _VE,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "LTXEulerAncestralRFScheduler": _FLOW,
    "MiniMaxH3Scheduler": Kind(_ratio_of_flow, _straight, table=True, flow=-1.0),
}


def kind_of(scheduler: Any) -> Kind:
    """How ``scheduler`` reads its times; raises :class:`Refusal` for one that walks no Gaussian path."""
    name = type(scheduler).__name__
    if name not in KINDS:
        raise Refusal(f"{name} is not among the {len(KINDS)} Gaussian schedulers of sfumato.testing.adapters.KINDS")
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return _FLOW
    return KINDS[name]


def diffusers_schedule(scheduler: Any) -> Schedule:
    """The schedule a scheduler was built with, as ours: its table, its noise levels, or the straight path."""
    kind = kind_of(scheduler)
    if kind.scale is _straight:
        return Flow()
    if hasattr(scheduler, "alphas_cumprod"):
        return Table(scheduler.alphas_cumprod.double(), type(scheduler).__name__)
    if hasattr(scheduler.config, "sigma_max"):
        return Karras(float(scheduler.config.sigma_max))
    raise Refusal(f"{type(scheduler).__name__} keeps no table of levels; give the process its schedule yourself")


def model_output(scheduler: Any, x: Tensor, x0: Tensor, u: float) -> Tensor:
    """What a perfect network would hand ``scheduler`` for a clean state ``x0``: in its own prediction type.

    ``x`` ``[b, ...]`` is the scheduler's own state at ``u = sigma / alpha``.  v is ``alpha eps - sigma x0`` with
    ``alpha^2 + sigma^2 = 1``; a flow's is ``eps - x0``; EDM schedulers ask for the preconditioned ``F`` of Karras et
    al. 2022, eq. 7.
    """
    config, family = scheduler.config, kind_of(scheduler)
    scale = family.scale
    if hasattr(scheduler, "precondition_outputs"):
        data, sign = float(config.sigma_data), -1.0 if config.prediction_type == "v_prediction" else 1.0
        skip, out = data**2 / (u**2 + data**2), sign * u * data / math.hypot(u, data)
        return (x0 - skip * x) / out
    a, s = scale(u)
    eps = (x - a * x0) / s
    alpha, sigma = _preserving(u)
    outputs: dict[str, Callable[[], Tensor]] = {
        "epsilon": lambda: eps,
        "sample": lambda: x0,
        "v_prediction": lambda: alpha * eps - sigma * x0,
        "flow_prediction": lambda: family.flow * (eps - x0),
    }
    kind = "flow_prediction" if scale is _straight else getattr(config, "prediction_type", _default_output(scheduler))
    if kind not in outputs:
        raise Refusal(f"prediction_type={kind!r} of {type(scheduler).__name__}; use one of {', '.join(outputs)}")
    return outputs[kind]()


def _default_output(scheduler: Any) -> str:
    return "v_prediction" if type(scheduler).__name__ == "IPNDMScheduler" else "epsilon"


@functools.lru_cache(1 << 14)
def _time_of(schedule: Schedule, u: float) -> float:
    """The time of a schedule at which ``sigma / alpha`` is ``u``, its ends where that lies beyond them."""
    if u == 0:
        return 0.0
    return float(time_at(schedule, -2 * math.log(u) if math.isfinite(u) else -math.inf))


def _belief(model: Any, process: Any, x: Tensor, scale: Scale, u: float) -> Tensor:
    """The model's ``x0`` for a scheduler's state at ``u``, asked at the process's own time and scale."""
    t = _time_of(process.schedule, u)
    (alpha, sigma), (a, s) = at(process.schedule, t), scale(u)
    ours = sigma / s if math.isinf(u) or a < 1e-9 else alpha / a
    point: Tensor = model(x * ours, t).point()
    return point


def _generator(rng: RNG, batch: int) -> torch.Generator:
    """A generator seeded by one draw of our rng a sample: schedulers take the noise of a batch from one of them."""
    return torch.Generator().manual_seed(int(rng.uniform((batch,)).double().sum().item() * 2**40))


@dataclass
class _Run:
    """One walk of a copied scheduler: where it stands, and how many evaluations it has asked for."""

    scheduler: Any
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)
    k: int = 0
    evaluations: int = 0

    @property
    def timesteps(self) -> Any:
        return self.scheduler.timesteps

    def ratio(self) -> float:
        return self.kind.ratio(self.scheduler, self.k, self.timesteps[self.k])

    def advance(self, model: Any, process: Any, x: Tensor, rng: RNG | None) -> Tensor:
        """One evaluation and one ``scheduler.step``; ``x`` and the result are the scheduler's own states."""
        t, u = self.timesteps[self.k], self.ratio()
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(x, t)  # some warn, and some set their index, only here
        output = model_output(self.scheduler, x, _belief(model, process, x, self.kind.scale, u), u)
        takes_one = "generator" in inspect.signature(self.scheduler.step).parameters
        if rng is not None and takes_one and "generator" not in self.options:
            self.options["generator"] = _generator(rng, len(x))
        step: Tensor = self.scheduler.step(output, t, x, return_dict=False, **self.options)[0]
        self.k += 1
        self.evaluations += 1
        return step


@final
@dataclass(frozen=True)
class OwnTimes:
    """A diffusers scheduler as a pipeline runs it: its own times, its own initial scale, its own end.

    ``order`` is what it should be held to (``None`` where it draws noise); ``evaluations`` how many timesteps belong to
    one step (2 for Heun and KDPM2); ``begin`` is handed to ``set_begin_index``, which text-to-image pipelines leave out
    and without which a scheduler looks its first step up among its (rounded) times.  A grid only says how many steps:
    ``n`` is handed to ``set_timesteps``.  States in between are the scheduler's own.  Raises :class:`Refusal` in
    ``start`` for a scheduler that walks no Gaussian path.
    """

    scheduler: Any
    order: int | None = None
    evaluations: int = 1
    begin: int | None = None
    takes: ClassVar[str] = "belief"

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """A fresh copy of the scheduler with its times set."""
        kind = kind_of(self.scheduler)
        fresh = copy.deepcopy(self.scheduler)
        fresh.set_timesteps(len(grid) - 1)
        if self.begin is not None and hasattr(fresh, "set_begin_index"):
            fresh.set_begin_index(self.begin)
        _widen(fresh)
        return _Own(_Run(fresh, kind), len(grid) - 1)

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The evaluations of one step; the last step takes all that are left."""
        run: _Run = carry.run
        if run.k == 0:
            noise = x / at(process.schedule, t)[1]
            x = noise * float(getattr(run.scheduler, "init_noise_sigma", 1.0))
        last = carry.left == 1
        until = len(run.timesteps) if last else min(run.k + self.evaluations, len(run.timesteps))
        while run.k < until:
            x = run.advance(model, process, x, rng if self.order is None else None)
        carry.left -= 1
        return x, carry


def _widen(scheduler: Any) -> None:
    """Tables of levels in float64: some solvers refuse to mix them with float64 states."""
    for name in ("sigmas", "sigmas_interpol"):
        if torch.is_tensor(getattr(scheduler, name, None)):
            setattr(scheduler, name, getattr(scheduler, name).double())


@dataclass
class _Own:
    run: _Run
    left: int


@final
@dataclass(frozen=True)
class GivenTimes:
    """A diffusers scheduler's update on the levels of a grid of ours, written over its table ``sigmas``.

    Levels are float64 ``sigma / alpha`` (flow times for flow schedulers).  Raises :class:`Refusal` in ``start`` for a
    scheduler without such a table, whose next time cannot be told, and for a grid from ``alpha = 0`` on a scheduler
    that holds ``sigma / alpha``.
    """

    scheduler: Any
    order: int | None = None
    evaluations: int = 1
    takes: ClassVar[str] = "belief"

    def start(self, model: Any, process: Any, grid: list[float]) -> Carry:
        """A fresh copy of the scheduler with its table overwritten."""
        kind = kind_of(self.scheduler)
        if kind.table:
            raise Refusal(
                f"{type(self.scheduler).__name__} computes its next time itself and cannot be told one; use OwnTimes"
            )
        fresh = copy.deepcopy(self.scheduler)
        fresh.set_timesteps(len(grid) - 1)
        ratios = [_ratio_at(process, t) for t in grid]
        levels = ratios if kind.scale is not _straight else _flow_times(ratios)
        if math.isinf(levels[0]):
            raise Refusal(f"{type(fresh).__name__} holds sigma/alpha, infinite at t={grid[0]:g}; start where alpha > 0")
        _impose(fresh, levels, self.evaluations)
        return _Run(fresh, kind)

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The evaluations of one interval, from our state at ``t`` to our state at ``s``."""
        run: _Run = carry
        x = x * _rescale(process, t, run.kind.scale)
        until = min(run.k + self.evaluations, len(run.timesteps))
        while run.k < until:
            x = run.advance(model, process, x, rng if self.order is None else None)
        return x / _rescale(process, s, run.kind.scale), run


def _ratio_at(process: Any, t: float) -> float:
    alpha, sigma = at(process.schedule, t)
    return float(sigma / alpha) if alpha > 1e-12 else math.inf


def _flow_times(ratios: list[float]) -> list[float]:
    return [1.0 if math.isinf(u) else u / (1 + u) for u in ratios]


def _rescale(process: Any, t: float, scale: Scale) -> float:
    """From our state at ``t`` to a scheduler's."""
    u = _ratio_at(process, t)
    (alpha, sigma), (a, s) = at(process.schedule, t), scale(u)
    return float(s / sigma) if math.isinf(u) else float(a / alpha)


def _impose(scheduler: Any, levels: list[float], evaluations: int) -> None:
    """Write levels over a scheduler's tables, laid out as ``set_timesteps`` lays out its own."""
    table = torch.tensor(levels, dtype=torch.float64)
    count = len(levels) - 1
    if hasattr(scheduler, "sigmas_interpol"):
        middle = table.log().lerp(table.roll(1).log(), 0.5).exp()
        scheduler.sigmas = torch.cat([table[:1], table[1:].repeat_interleave(2), table[-1:]])
        scheduler.sigmas_interpol = torch.cat([middle[:1], middle[1:].repeat_interleave(2), middle[-1:]])
    elif evaluations == 2:
        scheduler.sigmas = torch.cat([table[:1], table[1:-1].repeat_interleave(2), table[-1:]])
    else:
        scheduler.sigmas = table
    halfway = hasattr(scheduler, "sigmas_interpol") and levels[-1] > 0  # its last step, too, has a middle
    evaluated = evaluations * count - (0 if halfway else evaluations - 1)
    # times serve as names of the steps only: they must differ, and fall
    scheduler.timesteps = torch.arange(evaluated, 0, -1, dtype=scheduler.timesteps.dtype)
    scheduler.num_inference_steps = count
    scheduler.set_begin_index(0)


@final
@dataclass(frozen=True)
class Visit:
    """Where an evaluation of a scheduler stands, ``ratio = sigma / alpha``, and the ``(a, s)`` that it ``reached``."""

    timestep: float
    ratio: float
    reached: tuple[float, float] = field(default=(math.nan, math.nan))


def visits(scheduler: Any, n: int) -> list[Visit]:
    """The evaluations of a deterministic scheduler asked for ``n`` steps, and the levels its states really reach.

    Measured, not read: with a model that always answers ``x0`` for the states ``a x0 + s eps``, every right solver
    moves exactly along ``(a, s)``, so two probes ``(x0, eps) = (1, 0)`` and ``(0, 1)`` show the level after every
    evaluation.  States between the evaluations of one step are the scheduler's own.
    """
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(n)
    _widen(fresh)
    run = _Run(fresh, kind_of(fresh))
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    a, s = run.kind.scale(run.ratio())
    x = torch.tensor([[a, s]], dtype=torch.float64)
    seen = []
    for t in fresh.timesteps:
        u = run.ratio()
        if hasattr(fresh, "scale_model_input"):
            fresh.scale_model_input(x, t)
        x = fresh.step(model_output(fresh, x, x0, u), t, x, return_dict=False)[0]
        run.k += 1
        seen.append(Visit(float(t), u, (float(x[0, 0]), float(x[0, 1]))))
    return seen

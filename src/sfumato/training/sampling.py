"""Sampling from a :class:`~sfumato.training.diffusion.Diffusion`: check everything first, then walk the grid in
batches.

The contract: :func:`plan` refuses what does not fit before any work is done; :func:`draw` gives sample ``k`` the
streams of seed ``seed + k`` alone; a state that stops being finite stops the walk with the step and the noise level.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

import sfumato
from sfumato import grids, samplers, schedules, spec
from sfumato.core import Cond, Sampler, Time
from sfumato.denoisers.tokens import Remembers
from sfumato.errors import Refusal, nearest
from sfumato.guidance import Mapped, autoguidance, cfg, interval, thresholds
from sfumato.guidance.prompts import Given, Prompted
from sfumato.guidance.tempered import tempered
from sfumato.processes.fitted import start
from sfumato.randomness import Streams
from sfumato.samplers import auto
from sfumato.samplers.ancestral import advice
from sfumato.training import decoding
from sfumato.training.composition import allowed_steps, level
from sfumato.training.parallel import ALONE, Processes
from sfumato.training.samples import Samples
from sfumato.training.velocity import AtOne

#: The grid that is measured on the model itself, and on how many trajectories.
OPTIMISED, MEASURED = "optimised", 32
#: Seeds are 64-bit numbers.
LARGEST_SEED = 2**63 - 1


@final
@dataclass(frozen=True)
class Plan:
    """A sampling job that fits its model.  ``label``: one class name per sample, or None; ``sampler_name``: as asked
    for, ``solver``: what it means (they differ for ``auto``); ``weak``: the model that autoguidance steers away from,
    or None.
    """

    n: int
    label: tuple[str, ...] | None
    guidance: float
    interval: tuple[float, float] | None
    sampler_name: str
    solver: str
    sampler: Sampler
    grid_name: str
    times: Tensor
    seed: int
    weak: Any = None
    threshold: str = "none"
    given: Given | None = None
    prompt: str | None = None
    choice: tempered = tempered()
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def steps(self) -> int:
        """Steps of the grid."""
        return len(self.times) - 1


def plan(
    model: Any,
    n: int,
    label: Any = None,
    *,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    seed: int = 0,
    autoguide: Any = None,
    threshold: str | None = None,
    prompt: str | None = None,
    infill: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
) -> Plan:
    """Resolve and check a job for ``model``; raises :class:`Refusal` in one line for anything that does not fit."""
    defaults = model.settings.sampling
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise Refusal(f"n={n}: ask for at least 1 sample")
    if not 0 <= seed <= LARGEST_SEED - n:
        raise Refusal(f"seed={seed}: seeds lie between 0 and 2^63")
    count = allowed_steps(model.parts, defaults.sampling_steps) if steps is None else steps
    if model.parts.steps not in (None, count):
        raise Refusal(f"steps={steps}: {model.recipe} takes {model.parts.steps} steps, no more and no fewer")
    if count % model.parts.multiple:
        raise Refusal(
            f"steps={steps}: {model.parts.multiple} blocks appear one after the other; give a multiple of that"
        )
    given = decoding.given(model, prompt, infill)
    names = _labels(model.classes, label, n)
    dropout = model.settings.optimisation.label_dropout
    if names is None and model.classes and dropout == 0:
        raise Refusal(
            f"this model was trained without label dropout and needs a label: one of {', '.join(model.classes)}"
        )
    weight = _guidance(model, names, guidance, interval, autoguide)
    held = _threshold(model, threshold)
    name = sampler or defaults.sampler
    if name == auto.NAME:
        if grid is not None:
            raise Refusal(f"grid={grid}: the sampler 'auto' chooses its own grid; leave the grid out or name a sampler")
        chosen = auto.choose(_schedule(model, name, advice(model.process)), count, weight)
        solver, spacing = spec.text(chosen.sampler, chosen.settings), spec.text(chosen.grid, chosen.grid_settings)
        count = chosen.steps
    else:
        solver, spacing = name, grid or defaults.grid
    if isinstance(model.times, AtOne) and (solver, count) != ("euler", 1):
        raise Refusal(
            f"sampler={solver}, steps={count}: this model was distilled to one step from t=1; use euler and 1 step"
        )
    if interval is not None and isinstance(samplers.build(solver), samplers.RK45):
        raise Refusal(f"interval={interval}: rk45 takes its samples to different times; use a solver on the grid")
    measured = spacing == OPTIMISED
    if measured and (model.transform.view.noun != "images" or model.parts.codec is not None):
        raise Refusal(f"grid=optimised is measured on images; {model.recipe} takes 'uniform'")
    choice, walked = decoding.choice(model, samplers.build(solver), temperature, top_p)
    walked = walked if model.parts.around is None else model.parts.around(walked)
    # even times read no schedule: any stands for the one that a process may not have
    schedule = schedules.get("flow") if spacing == "uniform" else _schedule(model, f"grid {spacing}")
    job = Plan(
        n=n,
        label=names,
        guidance=weight,
        interval=interval,
        sampler_name=name,
        solver=solver,
        sampler=walked if given is None else Prompted(walked, given),
        grid_name=spacing,
        times=grids.build(defaults.grid if measured else spacing)(schedule, count),
        seed=seed,
        weak=autoguide,
        threshold=held,
        given=given,
        prompt=prompt if infill is None else infill,
        choice=choice,
        temperature=getattr(walked, "temperature", choice.temperature),
        top_p=getattr(walked, "top_p", choice.top_p),
    )
    return replace(job, times=_optimised(model, job)(model.process.schedule, count)) if measured else job


def _optimised(model: Any, job: Plan) -> grids.Equidistributed:
    """The grid that suits this job's own model, guidance and order, measured on a few of its trajectories."""
    # every class in turn, whatever was asked for: the times of a sample must not depend on the others
    names = None if job.label is None else tuple(model.classes[k % len(model.classes)] for k in range(MEASURED))
    empty = model.like(MEASURED)
    denoiser = _guided(model, job, _Counted(model.denoiser))
    cond, order = _condition(model, names, MEASURED), min(job.sampler.order or 1, 2)
    return grids.measure(denoiser, model.process, empty, Streams(range(MEASURED)), cond=cond, order=order)


def _schedule(model: Any, what: str, mend: str = "use the grid 'uniform'") -> Any:
    """The schedule of the model's process; refuses ``what`` needs one where there is none."""
    schedule = getattr(model.process, "schedule", None)
    if schedule is None:
        raise Refusal(f"{what} reads a schedule, and {model.recipe} has none for all its sites; {mend}")
    return schedule


def _labels(classes: tuple[str, ...], label: Any, n: int) -> tuple[str, ...] | None:
    if label is None:
        return None
    given = [str(name) for name in ([label] if isinstance(label, str | int) else label)]
    if not classes:
        raise Refusal(
            f"label {given[0] if given else ''!r}: this model was trained without classes; leave the label out"
        )
    for name in given:
        if name not in classes:
            raise Refusal(f"unknown label {name!r}; {nearest(name, classes)}")
    if not given:
        raise Refusal("label=[]: give at least one class name, or None")
    return tuple(given[k % len(given)] for k in range(n))


def _weak_guidance(model: Any, weak: Any, asked: float | None, between: tuple[float, float] | None) -> float:
    """The weight of autoguidance; refuses a weak model of something else."""
    weight = float(model.settings.sampling.guidance if asked is None else asked)
    if not 0 <= weight < float("inf") or weight == 1:
        raise Refusal(f"guidance={weight:g}: autoguidance needs 0 or more, and 1 guides nothing; 2 is usual")
    if between is not None:
        interval(*between)
    pairs = [
        ("images of shape", list(model.data["shape"]), list(weak.data["shape"])),
        ("classes", list(model.classes), list(weak.classes)),
        ("units", model.transform, weak.transform),
        ("process", model.process, weak.process),
    ]
    for what, own, other in pairs:
        if own != other:
            told = f"{what} {other}, this one {own}"
            raise Refusal(
                f"autoguide: the weak model has {told if len(told) < 200 else f'{what} of its own'}; train both alike"
            )
    return weight


def _guidance(
    model: Any, label: tuple[str, ...] | None, asked: float | None, between: tuple[float, float] | None, weak: Any
) -> float:
    if weak is not None:
        return _weak_guidance(model, weak, asked, between)
    if between is not None:
        interval(*between)  # refuses bad bounds
        if label is None or (model.settings.sampling.guidance if asked is None else asked) == 1:
            raise Refusal(
                f"interval={between} limits guidance, and there is none; give a label and guidance other than 1"
            )
    if label is None:
        if asked not in (None, 1.0):
            need = "give a label" if model.classes else "this model was trained without classes"
            raise Refusal(f"guidance={asked:g} needs a label to guide towards; {need}")
        return 1.0
    knows_null = model.settings.optimisation.label_dropout > 0
    own = model.settings.sampling.guidance if knows_null else 1.0  # the recipe's guidance needs what it compares with
    weight = float(own if asked is None else asked)
    if not 0 <= weight < float("inf"):
        raise Refusal(f"guidance={weight}: needs 0 or more (1 is plain conditional)")
    if weight != 1 and not knows_null:
        raise Refusal(
            f"guidance={weight:g} needs a model trained with label dropout; use guidance=1 or train again with it"
        )
    return weight


def _threshold(model: Any, asked: str | None) -> str:
    """The threshold of the predicted clean data with all its settings: the run's own unless asked for another."""
    own = model.settings.sampling
    found = thresholds.parse(asked or (own.threshold if own.clip else "none"))
    if found != "none" and getattr(model.transform, "limits", None) is None:
        raise Refusal(f"threshold={found}: this model's data have no range to hold them in; use threshold=none")
    return found


class _Counted:
    """A denoiser that counts its evaluations, and the rows its network saw, in ``total``, too, where it is given."""

    def __init__(self, denoiser: Any, total: _Counted | None = None) -> None:
        self.denoiser, self.calls, self.rows, self.total = denoiser, 0, 0, total

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Any:
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        if self.total is not None:
            self.total.rows += len(x_t)
        return self.denoiser(x_t, t, cond)


def _guided(model: Any, job: Plan, network: _Counted) -> Any:
    """The denoiser a job samples from: the network, guided, clipped."""

    def null(cond: Cond | None) -> Cond | None:
        return cond and {"label": torch.full_like(cond["label"], len(model.classes))}

    denoiser: Any = network
    if job.guidance != 1:
        when = {} if job.interval is None else {"when": interval(*job.interval)}
        if job.weak is None:
            denoiser = cfg(network, null, job.guidance, **when)
        else:
            denoiser = autoguidance(network, _Counted(job.weak.denoiser, network), job.guidance, **when)
    if model.parts.clean is not None:
        denoiser = Mapped(denoiser, model.parts.clean)
    if job.choice != tempered():
        denoiser = Mapped(denoiser, job.choice)
    if job.threshold == "none":
        return denoiser
    return Mapped(denoiser, thresholds.build(job.threshold, *model.transform.limits))


def _condition(model: Any, names: tuple[str, ...] | None, n: int) -> dict[str, Tensor] | None:
    """The condition of ``n`` samples of these classes; without names the null label, without classes none."""
    if not model.classes:
        return None
    index = [len(model.classes)] * n if names is None else [model.classes.index(name) for name in names]
    return {"label": torch.tensor(index, dtype=torch.int64, device=model.device)}


def walk(model: Any, job: Plan, first: int, last: int, outer: Any) -> Iterator[Tensor]:
    """The states of samples ``first..last-1`` at every time of the job, in model units; grad-neutral."""
    rng = Streams(job.seed + k for k in range(first, last))
    cond = _condition(model, None if job.label is None else job.label[first:last], last - first)
    like, t1 = model.like(last - first), float(job.times[0])
    x1 = start(model.process, like, t1, cond).draw(rng)
    states = samplers.trajectory(outer, model.process, job.sampler, job.times, x1, cond=cond, rng=rng)
    for step, x in enumerate(states):
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
            t = float(job.times[step])
            raise Refusal(
                f"sample with seed {job.seed + first + bad} is not finite after step {step} ({level(model.process, t)})"
                "; use less guidance or more steps"
            )
        yield x


class Walked(NamedTuple):
    """The last states ``x`` of a job in model units, and what they took: evaluations of the denoiser and rows of the
    network a sample, and seconds in all.
    """

    x: Tensor
    nfe: int
    rows: float
    seconds: float


def carry_out(model: Any, job: Plan, *, batch: int = 256, watch: Any = None, processes: Processes = ALONE) -> Walked:
    """Walk a job to its end in batches of ``batch``; ``watch(step, steps, x)`` sees the states of the first.

    Several ``processes`` share the samples out, and all of them get all.
    """
    if batch < 1:
        raise Refusal(f"batch={batch}: needs at least 1")
    own = model.denoiser
    network = _Counted(own.remembering() if isinstance(own, Remembers) else own)
    outer = _Counted(_guided(model, job, network))
    began, ends = time.perf_counter(), [model.like(0).cpu()]
    own, end = processes.share(job.n)

    def work() -> None:
        with torch.no_grad():
            for first in range(own, end, batch):
                for step, x in enumerate(walk(model, job, first, min(first + batch, end), outer)):
                    if watch is not None and first == 0:
                        watch(step, job.steps, x)
                ends.append(x.cpu())

    processes.together(work)
    whole = processes.joined(torch.cat(ends[1:] or ends), own, job.n)
    calls, batches, rows = processes.add(torch.tensor([outer.calls, len(ends) - 1, network.rows])).tolist()
    return Walked(whole, calls // batches, rows / job.n, time.perf_counter() - began)


def sampling_record(model: Any, job: Plan, walked: Walked, batch: int) -> dict[str, Any]:
    """What ``samples.json`` says of how samples were made."""
    return {
        "n": job.n,
        "seeds": [job.seed + k for k in range(job.n)],
        "label": None if job.label is None else list(job.label),
        "sampler": job.sampler_name,
        "solver": job.solver,
        "grid": job.grid_name,
        "steps": job.steps,
        "times": job.times.tolist() if job.grid_name == OPTIMISED else None,
        "nfe": walked.nfe,
        "network_rows_per_sample": walked.rows,
        "guidance": job.guidance,
        "interval": None if job.interval is None else list(job.interval),
        "autoguide": None if job.weak is None else f"{job.weak.recipe}, {job.weak.weights}",
        "prompt": job.prompt,
        "temperature": job.temperature,
        "top_p": job.top_p,
        "clip": job.threshold != "none",
        "threshold": job.threshold,
        "compute": str(model.net.compute_dtype).removeprefix("torch."),
        "batch": batch,
        "seconds": walked.seconds,
        "recipe": model.recipe,
        "weights": model.weights,
        "version": sfumato.__version__,
    }


def draw(model: Any, job: Plan, *, batch: int = 256, watch: Any = None, processes: Processes = ALONE) -> Samples:
    """Carry out a job in batches of ``batch``: its samples in the data's units, with their record."""
    walked = carry_out(model, job, batch=batch, watch=watch, processes=processes)
    record = sampling_record(model, job, walked, batch)
    return Samples(model.decode(walked.x), job.label, model.classes, record, model.transform.view)


def strip(model: Any, job: Plan, columns: int = 10) -> Tensor:
    """How samples come about, uint8 ``[n * columns, h, w]`` or with colours last: a row per sample, noise to image.

    States are scaled to unit variance so that every schedule can be shown.
    """
    from sfumato.schedules import at

    columns = min(columns, job.steps + 1)
    keep = sorted({round(k * job.steps / (columns - 1)) for k in range(columns)}) if columns > 1 else [job.steps]
    frames = []
    with torch.no_grad():
        outer = _guided(model, job, _Counted(model.denoiser))
        for step, x in enumerate(walk(model, job, 0, job.n, outer)):
            if step in keep:
                alpha, sigma = at(model.process.schedule, float(job.times[step]))
                frames.append(model.transform.decode(x / (alpha**2 + sigma**2) ** 0.5).cpu())
    return torch.stack(frames, 1).flatten(0, 1)

"""Compare samplers on one model.

The contract: every job is checked before any work is done; all of them start from the same noise; cells are carried out
by rising number of steps, samplers taking turns, so that a slow minute hurts all alike; a cell that is done is stored
at once, and asking again with the same settings continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch

import sfumato
from sfumato import spec
from sfumato.comparison.ode import ODE, distance, solve, stochastic
from sfumato.comparison.ode import Reference as Solution
from sfumato.comparison.result import Cell, Comparison, read
from sfumato.data.loading import load as load_data
from sfumato.data.sets import Data
from sfumato.errors import Refusal
from sfumato.metrics import units
from sfumato.metrics.evaluate import Reference, limits, made, measure
from sfumato.metrics.records import Record
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.samplers import trajectory
from sfumato.training.files import make_folder, pack_tensors, to_json, write_bytes
from sfumato.training.sampling import Plan, carry_out, draw, plan, sampling_record
from sfumato.words import duration

#: How many samples are measured unless told otherwise (or as many as there are training images).
MEASURED = 2000
#: How many end points are compared with the ODE's unless told otherwise.
SOLVED = 64

#: What settings say of labels that are those of held-out images.
AS_HELD_OUT = "as held out"
#: How the ODE is solved unless told otherwise.
REFERENCE = ODE()

Tell = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """A comparison was interrupted; the message says what is kept and how to go on."""


@final
@dataclass(frozen=True)
class Job:
    """What all cells of a comparison share of a sampling job.

    ``label``: what is asked for in turn, None without labels; ``told``: what the settings say of it.
    """

    n: int
    label: list[str] | None
    told: list[str] | str | None
    guidance: float | None
    interval: tuple[float, float] | None
    seed: int
    batch: int
    autoguide: Any = None
    threshold: str | None = None

    def plans(self, model: Any, samplers: str | Sequence[str], steps: Sequence[int], grids: Any) -> list[Plan]:
        """One checked plan per sampler, grid and number of steps.  Raises :class:`Refusal` for any that does not
        fit."""
        if self.batch < 1:
            raise Refusal(f"batch={self.batch}: needs at least 1")
        names = spec.split(samplers) if isinstance(samplers, str) else list(samplers)
        choices: Sequence[str | None] = spec.split(grids) if isinstance(grids, str) else list(grids or [None])
        if not names or not steps:
            raise Refusal("nothing to compare: give at least one sampler and one number of steps")
        found: dict[tuple[str, str, int], Plan] = {}
        for count, grid, name in itertools.product(sorted(steps), choices, names):
            job = plan(
                model, self.n, self.label, guidance=self.guidance, interval=self.interval, sampler=name, steps=count,
                grid=grid, seed=self.seed, autoguide=self.autoguide, threshold=self.threshold,
            )  # fmt: skip
            trajectory(model.denoiser, model.process, job.sampler, job.times, None)  # refuses what does not fit
            found[_key(job)] = job
        return list(found.values())


def _labels(
    model: Any, label: str | int | Sequence[str | int] | None, usual: list[str] | None
) -> tuple[list[str] | None, list[str] | str | None]:
    """What is asked for in turn (``label``, else the ``usual``), and what the settings say of it."""
    if label is not None:
        given = [str(name) for name in ([label] if isinstance(label, str | int) else label)]
        return given, given
    return usual, usual if usual is None or usual == list(model.classes) else AS_HELD_OUT


def _key(job: Plan) -> tuple[str, str, int]:
    return job.sampler_name, job.grid_name, job.steps


class Measured(NamedTuple):
    """What one cell took and gave."""

    nfe: float
    rows: float
    seconds: float
    records: tuple[Record, ...]


@runtime_checkable
class Yardstick(Protocol):
    """Carries out a job and measures what it gives."""

    def __call__(self, model: Any, job: Plan, batch: int) -> Measured: ...


@final
@dataclass(eq=False)
class Quality:
    """The metrics of :func:`sfumato.metrics.evaluate`, against one reference made when it is first needed."""

    data: Data
    reference: Reference | None = None

    def __call__(self, model: Any, job: Plan, batch: int) -> Measured:
        if self.reference is None:
            self.reference = Reference.of(self.data, job.n)
        samples = draw(model, job, batch=batch)
        r = samples.record
        records = measure(samples.x, samples.index(), self.reference, generated=made(r))
        return Measured(r["nfe"], r["network_rows_per_sample"], r["seconds"], tuple(records))


@final
@dataclass(eq=False)
class AgainstODE:
    """The distance to the ODE's own end points, solved once for every time at which a grid begins."""

    ode: ODE
    tell: Tell
    solved: dict[float, Solution] = field(default_factory=dict)

    def __call__(self, model: Any, job: Plan, batch: int) -> Measured:
        first = float(job.times[0])
        if first not in self.solved:
            solution = self.solved[first] = solve(model, job, self.ode, batch=batch)
            self.tell(f"reference: the ODE from t = {first:g}, {solution.nfe:g} evaluations, {solution.seconds:.1f} s")
        walked = carry_out(model, job, batch=batch)
        generated = made(sampling_record(model, job, walked, batch))
        record = distance(model, walked.x, self.solved[first], self.ode, generated)
        return Measured(walked.nfe, walked.rows, walked.seconds, (record,))


def compare(
    model: Any,
    data: Data | str | Path,
    *,
    samplers: str | Sequence[str],
    steps: Sequence[int],
    grids: str | Sequence[str] | None = None,
    n: int | None = None,
    label: str | int | Sequence[str | int] | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    seed: int = 0,
    batch: int = 256,
    autoguide: Any = None,
    threshold: str | None = None,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> Comparison:
    """Measure ``n`` samples (2000) of every sampler at every number of steps against ``data``, from the same noise.

    ``samplers``: names with settings, such as ``["heun", "ddim:eta=0.5"]``; ``grids``: the run's own unless given, each
    is combined with each sampler; ``label``: taken in turn, unless given all classes, or those of held-out images
    where these are not balanced (:func:`sfumato.metrics.units.labels`); ``autoguide``, ``threshold``: as for
    :meth:`~sfumato.training.diffusion.Diffusion.sample`.  ``out``: a folder for the results, in
    which an interrupted comparison of the same settings continues; ``tell`` is called with a line of progress.  Raises
    :class:`Refusal` before any work for whatever does not fit, and :class:`Interrupted` on Ctrl-C, with everything
    finished kept in ``out``.
    """
    loaded = data if isinstance(data, Data) else load_data(data)
    if loaded.kind != "images":
        raise Refusal(f"{loaded.name} holds {loaded.kind}, and samplers are compared on images")
    least, most = limits(loaded)
    count = min(MEASURED, most) if n is None else n
    if not least <= count <= most:
        raise Refusal(f"n={count}: {loaded.name} can be evaluated with {least} to {most} samples")
    if list(loaded.shape) != list(model.data["shape"]):
        raise Refusal(f"{loaded.name} has images {list(loaded.shape)}, the model makes {list(model.data['shape'])}")
    asked = _labels(model, label, units.labels(loaded, model.classes, count))
    shared = Job(count, *asked, guidance, interval, seed, batch, autoguide, threshold)
    jobs = shared.plans(model, samplers, steps, grids)
    settings = _settings(model, jobs[0], shared) | {
        "measure": "quality", "floor": "real images", "data": loaded.name, "data_sha256": loaded.sha256,
    }  # fmt: skip
    return _carry_out(model, jobs, Quality(loaded), Comparison(settings, ()), batch, out, tell or _silent)


def compare_with_ode(
    model: Any,
    *,
    samplers: str | Sequence[str],
    steps: Sequence[int],
    grids: str | Sequence[str] | None = None,
    n: int = SOLVED,
    label: str | int | Sequence[str | int] | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    seed: int = 0,
    batch: int = 256,
    autoguide: Any = None,
    threshold: str | None = None,
    out: str | Path | None = None,
    tell: Tell | None = None,
    ode: ODE = REFERENCE,
) -> Comparison:
    """The distance of every sampler at every number of steps to the exactly solved ODE from the same noise.

    Arguments and errors as for :func:`compare`; samplers that draw noise are listed as not applicable.  ``ode`` says
    how the reference is solved.
    """
    if not isinstance(model.process, Gaussian | Interpolant) or model.parts.codec is not None:
        raise Refusal(f"recipe {model.recipe!r} has no probability-flow ODE of its data to compare with")
    asked = _labels(model, label, list(model.classes) or None)
    shared = Job(n, *asked, guidance, interval, seed, batch, autoguide, threshold)
    planned = shared.plans(model, samplers, steps, grids)
    left_out = stochastic(planned)
    jobs = [job for job in planned if job.sampler_name not in left_out]
    if not jobs:
        raise Refusal(f"{', '.join(left_out)}: every sampler draws noise; --against-ode needs one that solves the ODE")
    settings = _settings(model, jobs[0], shared) | {
        "measure": f"distance to the ODE by {ode.sampler} on {ode.steps} steps", "floor": "the reference's own error",
    }  # fmt: skip
    yardstick = AgainstODE(ode, tell or _silent)
    return _carry_out(model, jobs, yardstick, Comparison(settings, (), left_out), batch, out, tell or _silent)


def _silent(line: str) -> None:
    """Says nothing."""


def _weights(model: Any) -> str:
    """The checksum of a model's weights."""
    return hashlib.sha256(pack_tensors(model.net.state_dict())).hexdigest()


def _settings(model: Any, job: Plan, shared: Job) -> dict[str, Any]:
    """All that decides a cell beside its sampler, grid and steps, and where its seconds were measured."""
    return {
        "measure": "",
        "recipe": model.recipe,
        "data": model.data["name"],
        "data_sha256": model.data["sha256"],
        "weights": model.weights,
        "weights_sha256": _weights(model),
        "n": job.n,
        "label": shared.told,
        "guidance": float(job.guidance),
        "interval": None if job.interval is None else list(job.interval),
        "autoguide": None if job.weak is None else _weights(job.weak),
        "threshold": job.threshold,
        "seed": job.seed,
        "batch": shared.batch,
        "compute": str(model.net.compute_dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "version": sfumato.__version__,
        "timing": "wall-clock seconds of drawing all n samples, once, after an untimed batch; samplers take turns",
    }


def _stored(out: Path, settings: Mapping[str, Any]) -> Comparison | None:
    """What ``out`` holds of the same comparison; refuses a folder that holds anything else."""
    if not (out / "compare.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise Refusal(f"{out} exists already and is kept; give another --out")
        return None
    found = read(out)
    for name in settings:
        if found.settings.get(name) != settings[name]:
            raise Refusal(
                f"{out} holds a comparison with {name}={found.settings.get(name)}, now {name}={settings[name]}; "
                "give another --out"
            )
    return found


def _carry_out(
    model: Any, jobs: list[Plan], measured: Yardstick, empty: Comparison, batch: int, out: Any, tell: Tell
) -> Comparison:
    folder = None if out is None else Path(out)
    stored = None if folder is None else _stored(folder, empty.settings)
    cells = {cell.key: cell for cell in (stored.cells if stored else ())}
    left_out = {**(stored.left_out if stored else {}), **empty.left_out}
    waiting = [job for job in jobs if _key(job) not in cells]
    names = list(dict.fromkeys([*(k[0] for k in cells), *(job.sampler_name for job in jobs)]))
    grids = list(dict.fromkeys([*(k[1] for k in cells), *(job.grid_name for job in jobs)]))

    def so_far() -> Comparison:
        order = sorted(cells.values(), key=lambda c: (names.index(c.sampler), grids.index(c.grid), c.steps))
        return replace(empty, cells=tuple(order), left_out=left_out)

    if folder is not None:
        make_folder(folder)
    if len(waiting) < len(jobs):
        tell(f"{len(jobs) - len(waiting)} of {len(jobs)} cells are in {folder} already")
    try:
        began, spent = time.perf_counter(), 0.0
        total = sum(map(_cost, waiting))
        if waiting:  # one untimed step of one batch; what it refuses, its cell will say
            first = waiting[0]
            with contextlib.suppress(Refusal):
                carry_out(model, replace(first, n=min(batch, first.n), times=first.times[[0, -1]]), batch=batch)
        for done, job in enumerate(waiting, 1):
            cell = cells[_key(job)] = _cell(model, job, measured, batch)
            spent += _cost(job)
            left = (time.perf_counter() - began) * (total / spent - 1)
            if folder is not None:
                write_bytes(folder / "compare.json", to_json(so_far().to_json()))
            tell(f"[{done}/{len(waiting)}] {_line(cell)}" + (f"; about {duration(left)} left" if left > 0 else ""))
    except KeyboardInterrupt:
        if folder is None:
            raise Interrupted(f"stopped with {len(cells)} of {len(jobs)} cells done") from None
        so_far().save(folder)
        kept = sum(_key(job) in cells for job in jobs)
        raise Interrupted(
            f"stopped with {kept} of {len(jobs)} cells done and kept in {folder}; the same command continues"
        ) from None
    result = so_far()
    if folder is not None:
        result.save(folder)
    return result


def _cost(job: Plan) -> int:
    return job.steps * job.sampler.evaluations


def _cell(model: Any, job: Plan, measured: Yardstick, batch: int) -> Cell:
    """Carry out one job; a walk that stops being finite is a cell with a note."""
    deterministic = job.sampler.order is not None
    try:
        found, note = measured(model, job, batch), ""
    except Refusal as refusal:
        found, note = Measured(0.0, 0.0, 0.0, ()), str(refusal)
    return Cell(
        sampler=job.sampler_name,
        grid=job.grid_name,
        steps=job.steps,
        deterministic=deterministic,
        nfe=float(found.nfe),
        rows=float(found.rows),
        seconds=found.seconds,
        records=found.records,
        note=note,
    )


def _line(cell: Cell) -> str:
    if cell.note:
        return f"{cell.sampler}, {cell.steps} steps: {cell.note}"
    values = ", ".join(f"{r.name} {r.value:.4g}" for r in cell.records if r.name in _TOLD)
    return f"{cell.sampler}, {cell.steps} steps: {cell.nfe:g} evaluations, {cell.seconds:.1f} s, {values}"


_TOLD = ("frechet", "label-accuracy", "ode-distance")

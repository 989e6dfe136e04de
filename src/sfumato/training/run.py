"""``train``: a recipe and data to a trained model and its run folder.

The contract: ``config.json`` is written at the start and fixes everything that decides the result (recipe, settings,
data, horizon, seed); ``--resume`` continues it exactly and refuses anything that contradicts it, but for what becomes
of files that cannot be read.  A run folder always holds the last good checkpoint, whatever stops the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato import watching
from sfumato.data import options as choices
from sfumato.data.folder import require_outside
from sfumato.data.loading import load as load_data
from sfumato.data.options import INFER, Options
from sfumato.data.rows import Source
from sfumato.errors import Refusal
from sfumato.training import checkpoint as checkpoints
from sfumato.training import horizon as horizons
from sfumato.training import parallel
from sfumato.training.devices import resolve_device
from sfumato.training.diffusion import Diffusion, from_config, read_config
from sfumato.training.engine import Course, Interrupt, Stopped, require_fitting
from sfumato.training.estimate import expect, parse_bytes, rows_that_fit, taken
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.horizon import Horizon
from sfumato.training.parallel import Processes
from sfumato.training.settings import FREE, flatten, refuse_idle, resolve

__all__ = ["DEFAULT_MINUTES", "Stopped", "train"]

#: Where neither minutes nor steps are given.
DEFAULT_MINUTES = 3.0


def train(
    recipe: str,
    data: Source | str | Path,
    *,
    options: Options | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    shard: bool = False,
    auto_batch: str | None = None,
    trackers: str | Sequence[str] | None = None,
    **settings: Any,
) -> Diffusion:
    """Train ``recipe`` on ``data`` and return the model with its EMA weights, in evaluation mode.

    ``options``: how the data of that name are read (:class:`~sfumato.data.options.Options`); a resumed run's own
    unless given.  ``minutes`` or ``steps``: the horizon (3 minutes unless given).  ``out``: the run folder; without
    one nothing is written. ``seed``: 0 unless given.  ``settings``: the recipe's, by their flat names.  ``resume``:
    continue the run in ``out``.  ``shard``: divide weights, gradients and the optimiser's state among the processes
    that were launched, in place of keeping them whole on each.  ``auto_batch``: as many rows as fit into this much
    memory (``"4GB"``) for the batch; a batch that is given is kept and worked on in parts.
    ``trackers``: what the run is watched by beside its own log (``"tensorboard,wandb"``; :mod:`sfumato.watching`); a
    resumed run's own unless given.

    Raises :class:`Refusal` for an unknown name or setting, an image size that does not fit, a run that exists, a resume
    that contradicts the run, or a folder that cannot be written; :class:`~sfumato.training.loop.Diverged` where the
    loss stops being finite; and :class:`Stopped` on Ctrl-C, after saving.
    """
    resolve_device(device)
    asked = horizons.choose(minutes, steps)
    run = None if out is None else Path(out)
    if resume and run is None:
        raise Refusal("resume needs out: the run folder to continue")
    if resume and auto_batch is not None:
        raise Refusal(f"auto_batch={auto_batch}: a run that is resumed keeps its batch; leave it out")
    if trackers and run is None:
        raise Refusal(f"trackers={trackers}: they need out, the run folder that says how to continue them")
    own = watching.continued(run) if resume and run is not None and not trackers else ()
    watchers = watching.names(trackers) if trackers else own
    processes = parallel.join(device)
    if shard and processes.count == 1:
        raise Refusal("shard divides weights among processes, and there is one; launch several, or leave it out")
    shard = shard or os.environ.get(parallel.SHARDS, "").lower() == "true"
    with parallel.leaving(processes):
        loaded = _loaded(data, options, run if resume else None, processes)
        if run is not None and not resume:
            require_outside(run, str(loaded.name), "--out")
        if seed is not None and not 0 <= seed < 2**63:
            raise Refusal(f"seed={seed}: seeds lie between 0 and 2^63")
        if resume and run is not None:
            model, units, horizon = processes.together(lambda: _resumed(run, recipe, loaded, asked, seed, settings))
            processes.first(lambda: _note_corrupt(run, loaded))
        else:
            horizon = asked or horizons.Seconds(60 * DEFAULT_MINUTES)
            model, units = _fresh(recipe, loaded, horizon, seed or 0, settings, run, auto_batch, processes, shard)
        processes.alike(_decided(model, units, shard))
        require_fitting(model, processes, shard, run is not None)
        if run is not None and not resume:
            processes.first(lambda: _claim(run, model))
        with Interrupt.caught(run) as interrupt:
            return Course(model, units, run, horizon, processes, shard, watchers).go(interrupt, quiet)


def _decided(model: Diffusion, data: Source, shard: bool) -> dict[str, Any]:
    """What all processes must have alike."""
    own = {"recipe": model.recipe, "data sha256": data.spec()["sha256"], "shard": shard, **model.origin}
    return own | flatten(model.settings)


def _loaded(data: Source | str | Path, options: Options | None, resumed: Path | None, processes: Processes) -> Source:
    """The data, read as asked for, or as the run that is resumed read them."""
    if not isinstance(data, str | Path):
        if options is not None:
            raise Refusal(f"options={options}: {data.name} is loaded already; give the options to sf.data.load")
        return data
    if resumed is None:
        found: Source = processes.in_turn(lambda: load_data(data, options or INFER))  # the first may have to fetch it
        return found
    stored = choices.from_json(read_config(resumed)["data"].get("options", {}))
    if options is not None:  # what becomes of files that cannot be read may change: their checksum stays
        if options not in (replace(stored, corrupt=options.corrupt), Options(corrupt="skip")):
            raise Refusal(f"{resumed} was trained with data options {stored}, not {options}; leave them out")
        stored = replace(stored, corrupt=options.corrupt)
    again: Source = processes.in_turn(lambda: load_data(data, stored))
    return again


def _note_corrupt(run: Path, data: Source) -> None:
    """Store what becomes of files that cannot be read, where a resumed run changed it: its samples are measured so."""
    config = read_config(run)
    stored, now = config["data"].get("options", {}), data.spec().get("options", {})
    changed = {name: value for name, value in stored.items() if name != "corrupt"}
    changed |= {name: value for name, value in now.items() if name == "corrupt"}
    if changed != stored:
        write_bytes(run / "config.json", to_json(config | {"data": config["data"] | {"options": changed}}))


def _fresh(
    recipe: str, data: Source, horizon: Horizon, seed: int, settings: Mapping[str, Any], run: Path | None,
    auto_batch: str | None, processes: Processes, shard: bool,
) -> tuple[Diffusion, Source]:  # fmt: skip
    """An untrained model, and the data in its units."""
    from sfumato import recipes

    chosen = recipes.get(recipe).on(data.kind)
    defaults = chosen.defaults if chosen.settle is None else chosen.settle(settings)
    resolved = resolve(defaults, settings)
    if data.kind != chosen.kind:
        raise Refusal(f"recipe {recipe!r} makes {chosen.kind}, {data.name} holds {data.kind}; give other --data")
    units = data.prepared(resolved)
    origin = {"seed": seed, "horizon": horizon.to_json()}
    model = chosen.build(resolved, units.spec(), origin)
    if auto_batch is not None:
        limit, kept = parse_bytes(auto_batch), "batch" in settings
        resolved = resolve(resolved, _fitting(model, units, limit, kept, processes, shard))
        model = chosen.build(resolved, units.spec(), origin)
    refuse_idle(defaults, resolved, out=run, classes=len(model.classes), kind=chosen.kind, recipe=chosen.name)
    _require_sampling(model)
    if resolved.reporting.best != "none":
        from sfumato.metrics import watch

        watch.require(units, resolved.reporting.best, resolved.reporting.best_samples, model.classes)
    if chosen.begin is not None:
        chosen.begin(model, units)
    return model, units


def _fitting(
    model: Diffusion, data: Source, limit: float, kept: bool, processes: Processes, shard: bool
) -> dict[str, int]:
    """The largest batch whose step fits a memory limit, of all rows at most; where the batch is ``kept``, the fewest
    parts of it that do, and not fewer than were asked for.
    """
    model.net.to(processes.device)
    own, dataset = model.settings.optimisation, data.rows(processes.device)
    expected = processes.together(lambda: expect(model, dataset))
    expected = expected.divided(processes.count) if shard and processes.count > 1 else expected
    found = processes.together(lambda: rows_that_fit(expected, limit, taken(processes.device)))
    rows, count = processes.told(found), processes.count
    if kept:
        parts = max(own.accumulate, -(-own.batch // (rows * count)))
        return {"accumulate": min(parts, max(1, own.batch // count))}  # every part has a row
    return {"batch": max(1, min(rows, len(dataset) // (count * own.accumulate))) * count * own.accumulate}


def _require_sampling(model: Diffusion) -> None:
    """Refuses settings of sampling that do not fit the model, before anything is trained."""
    from sfumato.training.sampling import OPTIMISED, plan

    if model.settings.sampling.grid != OPTIMISED:  # which is measured on what is learned
        job = plan(model, 1, model.classes[0] if model.classes else None)
        job.sampler.start(model.denoiser, model.process, job.times.tolist())


def _claim(run: Path, model: Diffusion) -> None:
    """Make the run folder with its configuration; refuses a folder that holds anything.

    The configuration comes first and whole: a folder has none, and can be claimed, or is a run, and can be resumed.
    """
    if run.exists() and not run.is_dir():
        raise Refusal(f"{run} is a file; give a folder for --out")
    if run.is_dir():
        for left in run.glob(".config.json.*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
    if run.is_dir() and any(run.iterdir()):
        what = (
            "holds a run already; continue it with --resume or" if (run / "config.json").exists() else "is not empty;"
        )
        raise Refusal(f"{run} {what} give another --out")
    make_folder(run)
    write_bytes(run / "config.json", to_json(model.config()))


def _resumed(
    run: Path, recipe: str, data: Source, asked: Horizon | None, seed: int | None, settings: Mapping[str, Any]
) -> tuple[Diffusion, Source, Horizon]:
    """The model, data and horizon of ``run``, after everything asked for agreed with them."""
    config = read_config(run)
    free = {name: settings[name] for name in FREE if name in settings}
    model = from_config(config | {"settings": config["settings"] | free}, run)
    horizon = horizons.from_json(config["horizon"])
    wanted: list[tuple[str, Any, Any]] = [("recipe", recipe, config["recipe"])]
    from sfumato import recipes

    chosen = recipes.get(recipe).on(str(config["data"].get("kind", "images")))
    if recipe == config["recipe"]:
        given = resolve(chosen.defaults, dict(config["settings"]) | dict(settings))
        wanted += _differences(given, model.settings)
    chosen = recipes.get(model.recipe).on(str(config["data"].get("kind", "images")))
    units = data.prepared(model.settings) if data.kind == chosen.kind else data
    spec = units.spec()
    # a file that was moved is the same data: its checksum decides, its name only explains
    keys = ("name", "sha256") if spec["sha256"] != config["data"].get("sha256") else ("shape", "classes")
    wanted += [(f"data {key}", spec[key], config["data"].get(key)) for key in keys]
    wanted += [("seed", seed, config["seed"])] if seed is not None else []
    wanted += [("horizon", asked.to_json(), horizon.to_json())] if asked is not None else []
    for what, now, then in wanted:
        if now != then:
            raise Refusal(
                f"{run} was trained with {what} {_show(then)}, not {_show(now)}; leave it out or give another --out"
            )
    if chosen.begin is not None and not checkpoints.steps_of(run):
        chosen.begin(model, units)  # stopped before its first checkpoint: it begins again
    return model, units, horizon


def _differences(given: Any, stored: Any) -> list[tuple[str, Any, Any]]:
    now, then = flatten(given), flatten(stored)
    return [(key, now[key], then[key]) for key in now]


def _show(value: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

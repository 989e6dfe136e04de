"""``train``: a recipe and data to a trained model and its run folder.

The contract: ``config.json`` is written once, at the start, and fixes everything that decides the result (recipe,
settings, data, horizon, seed); ``--resume`` continues it exactly and refuses anything that contradicts it.  A run
folder always holds the last good checkpoint, whatever stops the run.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, final

from sfumato.data.loading import load as load_data
from sfumato.data.rows import Rows, Source
from sfumato.errors import Refusal
from sfumato.training import checkpoint as checkpoints
from sfumato.training import horizon as horizons
from sfumato.training.checkpoint import Checkpoint
from sfumato.training.devices import place_for_training, resolve_device
from sfumato.training.diffusion import Diffusion, from_config, load_weights, read_config
from sfumato.training.ema import EMA
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.horizon import Clock, Horizon
from sfumato.training.loop import train_steps
from sfumato.training.monitor import Log, Progress, Reporter, progress
from sfumato.training.optim import Optimiser
from sfumato.training.phema import Averages, forget_after
from sfumato.training.settings import refuse_idle, resolve
from sfumato.training.validation import Validation

#: Where neither minutes nor steps are given.
DEFAULT_MINUTES = 3.0
#: The final report may take this much longer than the longest seen so far.
RESERVE = 1.25


class Stopped(KeyboardInterrupt):
    """Training was interrupted and saved; the message says how to go on."""


def train(
    recipe: str,
    data: Source | str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Diffusion:
    """Train ``recipe`` on ``data`` and return the model with its EMA weights, in evaluation mode.

    ``minutes`` or ``steps``: the horizon (3 minutes unless given).  ``out``: the run folder; without one nothing is
    written. ``seed``: 0 unless given.  ``settings``: the recipe's, by their flat names.  ``resume``: continue the run
    in ``out``.  Raises :class:`Refusal` for an unknown name or setting, an image size that does not fit, a run that
    exists, a resume that contradicts the run, or a folder that cannot be written;
    :class:`~sfumato.training.loop.Diverged` where the loss stops being finite; and :class:`Stopped` on Ctrl-C, after
    saving.
    """
    resolve_device(device)
    asked = horizons.choose(minutes, steps)
    loaded = load_data(data) if isinstance(data, str | Path) else data
    run = None if out is None else Path(out)
    if resume and run is None:
        raise Refusal("resume needs out: the run folder to continue")
    if seed is not None and not 0 <= seed < 2**63:
        raise Refusal(f"seed={seed}: seeds lie between 0 and 2^63")
    if resume and run is not None:
        model, units, horizon = _resumed(run, recipe, loaded, asked, seed, settings)
    else:
        horizon = asked or horizons.Seconds(60 * DEFAULT_MINUTES)
        model, units = _fresh(recipe, loaded, horizon, seed or 0, settings, run)
        if run is not None:
            _claim(run, model)
    with _Interrupt.caught(run) as interrupt:
        return _Run(model, units, run, horizon, device).go(interrupt, quiet)


def _fresh(
    recipe: str, data: Source, horizon: Horizon, seed: int, settings: Mapping[str, Any], run: Path | None
) -> tuple[Diffusion, Source]:
    """An untrained model, and the data in its units."""
    from sfumato import recipes

    chosen = recipes.get(recipe)
    defaults = chosen.defaults if chosen.settle is None else chosen.settle(settings)
    resolved = resolve(defaults, settings)
    if data.kind != chosen.kind:
        raise Refusal(f"recipe {recipe!r} makes {chosen.kind}, {data.name} holds {data.kind}; give other --data")
    units = data.prepared(resolved)
    model = chosen.build(resolved, units.spec(), {"seed": seed, "horizon": horizon.to_json()})
    refuse_idle(defaults, resolved, out=run, classes=len(model.classes), kind=chosen.kind, recipe=chosen.name)
    _require_sampling(model)
    if chosen.begin is not None:
        chosen.begin(model, units)
    return model, units


def _require_sampling(model: Diffusion) -> None:
    """Refuses settings of sampling that do not fit the model, before anything is trained."""
    from sfumato.training.sampling import OPTIMISED, plan

    if model.settings.sampling.grid != OPTIMISED:  # which is measured on what is learned
        job = plan(model, 1, model.classes[0] if model.classes else None)
        job.sampler.start(model.denoiser, model.process, job.times.tolist())


def _claim(run: Path, model: Diffusion) -> None:
    """Make the run folder with its configuration; refuses a folder that holds anything."""
    if run.exists() and not run.is_dir():
        raise Refusal(f"{run} is a file; give a folder for --out")
    if run.is_dir() and any(run.iterdir()):
        what = (
            "holds a run already; continue it with --resume or" if (run / "config.json").exists() else "is not empty;"
        )
        raise Refusal(f"{run} {what} give another --out")
    make_folder(run / "grids")
    write_bytes(run / "config.json", to_json(model.config()))


def _resumed(
    run: Path, recipe: str, data: Source, asked: Horizon | None, seed: int | None, settings: Mapping[str, Any]
) -> tuple[Diffusion, Source, Horizon]:
    """The model, data and horizon of ``run``, after everything asked for agreed with them."""
    config = read_config(run)
    model = from_config(config, run)
    horizon = horizons.from_json(config["horizon"])
    wanted: list[tuple[str, Any, Any]] = [("recipe", recipe, config["recipe"])]
    from sfumato import recipes

    chosen = recipes.get(recipe)
    if recipe == config["recipe"]:
        given = resolve(chosen.defaults, dict(config["settings"]) | dict(settings))
        wanted += _differences(given, model.settings)
    chosen = recipes.get(model.recipe)
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
    from sfumato.training.settings import flatten

    now, then = flatten(given), flatten(stored)
    return [(key, now[key], then[key]) for key in now]


def _show(value: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@final
class _Interrupt:
    """Remembers that the user asked to stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @classmethod
    @contextmanager
    def caught(cls, run: Path | None) -> Iterator[_Interrupt]:
        """Catch Ctrl-C and SIGTERM for the length of a run that can be saved (in the main thread; elsewhere neither
        comes).
        """
        interrupt = cls()
        if run is None or threading.current_thread() is not threading.main_thread():
            yield interrupt
            return
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield interrupt
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@final
@dataclass
class _Run:
    """One part of a run, from its newest checkpoint (or the start) to its end or an interrupt."""

    model: Diffusion
    data: Source
    run: Path | None
    horizon: Horizon
    device: str

    def go(self, interrupt: _Interrupt, quiet: bool) -> Diffusion:
        """Train to the end of the horizon."""
        from sfumato import recipes

        settings = self.model.settings
        self.model.net.train()
        self.optimiser = Optimiser(self.model.net, settings.optimisation)
        device = place_for_training(self.model.net, self.optimiser.inner, self.device)
        self.ema = EMA(self.model.net, settings.optimisation.ema)
        self.averages = Averages(self.model.net, settings.optimisation.snapshots if self.run is not None else 0)
        self.sampled = self.model.with_net(self.ema.net, "ema")
        self.step, self.saved, self.clock = 0, -1, Clock()
        with progress(f"{self.model.recipe} on {self.data.name}", quiet=quiet) as display:
            self._restore(display)
            make = recipes.get(self.model.recipe).dataset
            dataset: Rows | None = (
                self.data.rows(device)
                if make is None
                else make(self.model, self.data, self.run, device, display.say, lambda: interrupt.asked)
            )
            if dataset is None:
                raise Stopped(f"stopped before the first step; continue with: {self.resume_command()}")
            self.rows = len(dataset)
            validation = Validation(
                self.model, getattr(dataset, "held_out", self.data.held_out), settings.reporting.validation_images,
                seed=int(self.model.origin["seed"]), batch=settings.optimisation.batch,
            )  # fmt: skip
            log = Log(self.run / "log.jsonl" if self.run else None, self.step)
            title = f"{self.model.recipe} on {self.data.name}, {self.horizon}"
            reporter = Reporter(self.run, log, validation, display, settings.reporting, title)
            self._steps(dataset, reporter, display, interrupt)
        if self.run is not None:
            self._save()
            self.sampled.save_weights(self.run)  # also where the run was stopped between its last checkpoint and these
        return self.sampled

    def _steps(self, dataset: Rows, reporter: Reporter, display: Progress, interrupt: _Interrupt) -> None:
        settings = self.model.settings
        reports = settings.reporting.reports
        done = self.horizon.progress(self.step, self.clock)
        last_save, drawn = self.clock.seconds(), False
        steps = train_steps(
            self.model, dataset, {"net": self.optimiser}, self.horizon, batch=settings.optimisation.batch,
            seed=int(self.model.origin["seed"]), start=self.step, clock=self.clock,
        )  # fmt: skip
        for step in steps:
            self.step = step.step
            self.ema.update(step.step)
            self.averages.update(step.step)
            reporter.log.step(step)
            before, done = done, self.horizon.progress(step.step, self.clock)
            display.step(step, done, self.horizon.remaining(step.step, self.clock))
            if self.run is not None and self.averages.due(before, done):
                self.averages.write(self.run, step.step)  # before the checkpoint, which stands for it
            if done >= 1 or int(done * reports) > int(before * reports):
                began = self.clock.seconds()
                reporter.report(self.sampled, step, self.horizon, self.clock)
                self._save()  # before the pictures: a full disk costs pictures, not weights
                reporter.pictures(self.sampled, step, done >= 1)
                last_save = self.clock.seconds()
                drawn = done >= 1
                self.clock.reserve = max(self.clock.reserve, RESERVE * (last_save - began))
                done = max(done, self.horizon.progress(step.step, self.clock))
            elif self.clock.seconds() - last_save > settings.reporting.checkpoint_seconds:
                self._save()
                last_save = self.clock.seconds()
            if interrupt.asked and done < 1:
                reporter.log.flush()
                self._save()
                reporter.plot()
                raise Stopped(f"stopped at step {self.step} and saved; continue with: {self.resume_command()}")
        # a horizon in seconds may end with a report that was not meant to be the last
        if not drawn:
            reporter.plot()
        if self.run is not None and self.averages.unwritten(self.run, self.step):
            self.averages.write(self.run, self.step)

    def resume_command(self) -> str:
        """The command that continues this run."""
        return shlex.join(
            ["sfumato", "train", self.model.recipe, "--data", self.data.name, "--out", str(self.run), "--resume"]
        )

    def _restore(self, display: Progress) -> None:
        """Continue from the newest whole checkpoint, if the run has one."""
        found, passed = checkpoints.newest(self.run) if self.run is not None else (None, [])
        for line in passed:
            display.say(f"passed over: {line}")
        if self.run is not None:
            checkpoints.sweep(self.run)
        if found is None or self.run is None:
            return
        source = checkpoints.folder_of(self.run, found.step)
        load_weights(self.model.net, found.model, source)
        load_weights(self.ema.net, found.ema, source)
        self.optimiser.load(found.optimiser)
        self.averages.load(found.averages)
        forget_after(self.run, found.step)
        self.step = self.saved = found.step
        self.clock = Clock(found.seconds, found.reserve)
        for step in checkpoints.steps_of(self.run):
            if step > found.step:
                shutil.rmtree(checkpoints.folder_of(self.run, step), ignore_errors=True)
        display.say(f"continuing from step {found.step} of {self.horizon}")

    def _save(self) -> None:
        if self.run is None or self.saved == self.step:
            return
        epoch, offset = divmod(self.step * self.model.settings.optimisation.batch, self.rows)
        checkpoints.write(
            self.run,
            Checkpoint(
                step=self.step,
                seed=int(self.model.origin["seed"]),
                seconds=self.clock.seconds(),
                reserve=self.clock.reserve,
                position={"epoch": epoch, "offset": offset},
                model=self.model.net.state_dict(),
                ema=self.ema.net.state_dict(),
                optimiser=self.optimiser.tensors(),
                averages=self.averages.tensors(),
            ),
        )
        self.sampled.save_weights(self.run)
        self.saved = self.step

"""One part of a run: from its newest checkpoint, or the start, to its end or an interrupt, on one process or several.

The contract: whatever stops a run, its folder holds the last good checkpoint, and going on from it gives what would
have come without the stop.  All processes take the same steps and the same decisions; the first alone writes.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, final

from sfumato import presets
from sfumato.data.rows import Rows, Source
from sfumato.errors import Refusal
from sfumato.reports.run import write as write_report
from sfumato.training import checkpoint as checkpoints
from sfumato.training import parallel
from sfumato.training.checkpoint import Checkpoint
from sfumato.training.diffusion import Diffusion, load_weights, read_config
from sfumato.training.ema import EMA
from sfumato.training.estimate import compiles, expect, recompute
from sfumato.training.files import make_folder
from sfumato.training.horizon import Clock, Horizon, Seconds
from sfumato.training.hybrid import LossHistory
from sfumato.training.loop import Compute, Step, train_steps
from sfumato.training.monitor import Log, Progress, Reporter, progress
from sfumato.training.optim import Optimiser
from sfumato.training.parallel import Processes
from sfumato.training.phema import Averages, forget_after
from sfumato.training.settings import FREE, Optimisation, flatten
from sfumato.training.text import BlockNet
from sfumato.training.validation import Validation
from sfumato.watching import watched

#: The final report may take this much longer than the longest seen so far.
RESERVE = 1.25


class Stopped(KeyboardInterrupt):
    """Training was interrupted and saved; the message says how to go on."""


@final
class Interrupt:
    """Remembers that the user asked to stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @classmethod
    @contextmanager
    def caught(cls, run: Path | None) -> Iterator[Interrupt]:
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


def require_fitting(model: Diffusion, processes: Processes, shard: bool, kept: bool) -> None:
    """Refuses, before anything is written, what cannot be worked on in parts; ``kept``: whether there is a folder."""
    own: Optimisation = model.settings.optimisation
    parts = processes.count * len(processes.shares(own.batch, own.accumulate))
    if parts > 1 and any(isinstance(module, LossHistory) for module in model.net.modules()):
        raise Refusal(
            f"{model.recipe} draws steps by the losses of whole batches; train it in one process with accumulate=1"
        )
    if own.compile == "on" and isinstance(model.net, BlockNet):
        raise Refusal(f"compile=on: {model.recipe} calls its network by blocks, which is not compiled; leave it out")
    if not shard or processes.count == 1:
        return
    parallel.require_shardable(model.net)
    if own.optimiser == "muon":
        raise Refusal("optimiser=muon needs whole matrices; use adamw, or leave --shard out")
    if kept and own.snapshots:
        raise Refusal(f"snapshots={own.snapshots}: their averages are kept whole; use 0, or leave --shard out")


@final
@dataclass
class Course:
    """One part of a run.  ``shard``: divide the weights among the ``processes`` in place of keeping them whole;
    ``trackers``: what it is watched by, by name.
    """

    model: Diffusion
    data: Source
    run: Path | None
    horizon: Horizon
    processes: Processes
    shard: bool = False
    trackers: tuple[str, ...] = ()
    #: Of the part that is under way.
    interrupt: Interrupt = field(init=False)
    asked: bool = field(init=False, default=False)
    clock: Clock = field(init=False)
    step: int = field(init=False, default=0)
    saved: int = field(init=False, default=-1)
    rows: int = field(init=False)
    ema: EMA = field(init=False)
    averages: Averages = field(init=False)
    sampled: Diffusion = field(init=False)
    optimiser: Optimiser = field(init=False)
    validation: Validation = field(init=False)
    watch: Any = field(init=False, default=None)

    def go(self, interrupt: Interrupt, quiet: bool) -> Diffusion:
        """Train to the end of the horizon."""
        settings, net = self.model.settings, self.model.net
        self.interrupt, self.asked = interrupt, False
        net.train().to(self.processes.device)
        self.ema = EMA(net, settings.optimisation.ema)
        self.averages = Averages(net, settings.optimisation.snapshots if self.run is not None else 0)
        self.sampled = self.model.with_net(self.ema.net, "ema")
        self.step, self.saved, self.clock = 0, -1, self._clock()
        if self.run is not None:
            grids = self.run / "grids"
            self.processes.together(lambda: make_folder(grids))
        with progress(f"{self.model.recipe} on {self.data.name}", quiet=quiet or not self.processes.main) as display:
            found = self._found(display)
            dataset = self._dataset(display)
            if dataset is None:
                raise Stopped(f"stopped before the first step; continue with: {self.resume_command()}")
            self.rows = len(dataset)
            compute = self._prepared(dataset, display, quiet)
            self.optimiser = Optimiser(net, settings.optimisation)
            if found is not None:
                state = found.optimiser
                self.processes.together(lambda: self.optimiser.load(state))
            self.validation = Validation(
                self.model, getattr(dataset, "held_out", self.data.held_out), settings.reporting.validation_images,
                seed=int(self.model.origin["seed"]), batch=settings.optimisation.batch, processes=self.processes,
            )  # fmt: skip
            folder = self.run if self.processes.main else None
            with ExitStack() as opened:
                reporter = self.processes.together(lambda: self._watchers(folder, display, opened))
                self._steps(dataset, compute, reporter, display)
        if self.run is not None:
            self._save()
            self._store()  # also where the run was stopped between its last checkpoint and these
            run = self.run
            self.processes.first(lambda: write_report(run))
        return self.sampled

    def _watchers(self, folder: Path | None, display: Progress, opened: ExitStack) -> Reporter:
        """Begin all that the run is watched by, until ``opened`` is closed."""
        watchers = watched(self.trackers, folder, self.model.config(), self.step, display.say)
        log = Log(folder / "log.jsonl" if folder else None, self.step, opened.enter_context(watchers))
        self.watch = self._watch(folder, log, display)
        title = f"{self.model.recipe} on {self.data.name}, {self.horizon}"
        return Reporter(folder, log, display, self.model.settings.reporting, title)

    def _watch(self, folder: Path | None, log: Log, display: Progress) -> Any:
        """What keeps the best weights by a metric; None where none is set."""
        chosen = self.model.settings.reporting
        if folder is None or chosen.best == "none":
            return None
        from sfumato.metrics.watch import Watch

        return Watch(folder, self.data, chosen.best, chosen.best_samples, log.add, display.say)

    def _clock(self, stored: float = 0.0, reserve: float = 0.0) -> Clock:
        return Clock(stored, reserve, self._agree if self.processes.count > 1 else None)

    def _agree(self, seconds: float) -> float:
        seconds, self.asked = self.processes.agree(seconds, self.interrupt.asked)
        return seconds

    def _stopping(self) -> bool:
        """Whether any process was asked to stop, as all of them know."""
        return self.asked if self.processes.count > 1 else self.interrupt.asked

    # ---------------------------------------------------------------------------------------------------- beginning

    def _found(self, display: Progress) -> Checkpoint | None:
        """The newest whole checkpoint, its weights and averages loaded; None where there is none."""
        if self.run is None:
            return None
        run = self.run
        found, passed = self.processes.together(lambda: checkpoints.newest(run))
        self.processes.same(None if found is None else found.step, f"a checkpoint in {run} of step")
        for line in passed:
            display.say(f"passed over: {line}")
        self.processes.first(lambda: checkpoints.sweep(run))
        if found is None:
            return None
        self.processes.together(lambda: self._load(found, checkpoints.folder_of(run, found.step)))
        self.step = self.saved = found.step
        self.clock = self._clock(found.seconds, found.reserve)
        self.processes.first(lambda: self._forget_after(run, found.step))
        display.say(f"continuing from step {found.step} of {self.horizon}")
        return found

    def _load(self, found: Checkpoint, source: Path) -> None:
        load_weights(self.model.net, found.model, source)
        load_weights(self.ema.net, found.ema, source)
        self.averages.load(found.averages)

    @staticmethod
    def _forget_after(run: Path, step: int) -> None:
        """Remove what is later than the checkpoint that a run continues from."""
        forget_after(run, step)
        for later in checkpoints.steps_of(run):
            if later > step:
                shutil.rmtree(checkpoints.folder_of(run, later), ignore_errors=True)

    def _dataset(self, display: Progress) -> Rows | None:
        """What is trained on; where a recipe makes it, the first process does and the others find it."""
        from sfumato import recipes

        make = recipes.get(self.model.recipe).dataset
        if make is None:
            return self.processes.together(lambda: self.data.rows(self.processes.device))

        def made() -> Rows | None:
            stop = self.interrupt
            found: Rows | None = make(
                self.model, self.data, self.run, self.processes.device, display.say, lambda: stop.asked
            )
            return found

        own = self.processes.together(lambda: made() if self.processes.main else None)
        if self.processes.told(own is None):
            return None
        return self.processes.together(lambda: own if self.processes.main else made())

    def _prepared(self, dataset: Rows, display: Progress, quiet: bool) -> Compute:
        """The network as the options want it computed; returns what gives the losses of some rows."""
        own, net, count = self.model.settings.optimisation, self.model.net, self.processes.count
        unused = False
        if not quiet or count > 1:
            expected = self.processes.together(lambda: expect(self.model, dataset))
            unused = expected.unused
            expected = expected.divided(count) if self.shard and count > 1 else expected
            for line in expected.lines(self.horizon, own.batch, own.accumulate, count):
                display.say(line)
            if isinstance(self.horizon, Seconds):
                steps = expected.steps_in(self.horizon.seconds, own.batch, count)
                if advice := presets.hint(flatten(self.model.settings), steps):
                    display.say(advice)
        if own.recompute:
            recompute(parallel.units(net))
        if compiles(own.compile, self.processes.device, self.horizon):
            net.compile()
        if count == 1:
            return self.model.losses
        losses = parallel.Losses(self.model, net)
        if not self.shard:
            return parallel.replicate(losses, self.processes, unused)
        parallel.shard(losses, self.processes)
        self.ema.divide(net)
        return losses

    # ------------------------------------------------------------------------------------------------------ the way

    def _steps(self, dataset: Rows, compute: Compute, reporter: Reporter, display: Progress) -> None:
        settings = self.model.settings
        reports, began_at = settings.reporting.reports, self.step
        self.clock.start()
        self.clock.agree()
        done = self.horizon.progress(self.step, self.clock)
        last_save, drawn = self.clock.seconds(), False
        steps = train_steps(
            self.model, dataset, {"net": self.optimiser}, self.horizon, batch=settings.optimisation.batch,
            seed=int(self.model.origin["seed"]), start=self.step, clock=self.clock,
            accumulate=settings.optimisation.accumulate, processes=self.processes, compute=compute,
        )  # fmt: skip
        for step in steps:
            self.step = step.step
            self.ema.update(step.step)
            self.averages.update(step.step)
            self._log(reporter, step)
            before, done = done, self.horizon.progress(step.step, self.clock)
            display.step(step, done, self.horizon.remaining(step.step, self.clock))
            if self.run is not None and self.averages.due(before, done):
                self._snapshot(self.run)  # before the checkpoint, which stands for it
            if done >= 1 or int(done * reports) > int(before * reports):
                began = self.clock.seconds()
                self._report(reporter, step, done >= 1)
                self.clock.agree()
                last_save = self.clock.seconds()
                drawn = done >= 1
                self.clock.reserve = max(self.clock.reserve, RESERVE * (last_save - began))
                done = max(done, self.horizon.progress(step.step, self.clock))
            elif self.clock.seconds() - last_save > settings.reporting.checkpoint_seconds:
                self._save()
                last_save = self.clock.seconds()
            if self._stopping() and done < 1:
                self.processes.together(reporter.log.flush)
                self._save()
                self.processes.together(reporter.plot)
                raise Stopped(f"stopped at step {self.step} and saved; continue with: {self.resume_command()}")
        # a horizon in seconds may end with a report that was not meant to be the last
        if not drawn:
            self.processes.together(reporter.plot)
        if self.run is not None and self.processes.told(self.averages.unwritten(self.run, self.step)):
            self._snapshot(self.run)
        if self.run is not None and self.step > began_at:
            self._save()
            self._save_clock(self.run)  # what the last report took: else the run would seem to have time left

    def _report(self, reporter: Reporter, step: Step, last: bool) -> None:
        """Measure, save, draw."""
        self.ema.gather()
        found = self.validation(self.sampled)  # whose rows are shared out
        self.processes.first(lambda: self._tell(reporter, found, step))
        self._save()  # before the pictures: a full disk costs pictures, not weights
        self.processes.first(lambda: reporter.pictures(self.sampled, step, last))

    def _tell(self, reporter: Reporter, found: dict[str, Any], step: Step) -> None:
        reporter.report(found, step, self.horizon, self.clock)
        if self.watch is not None:
            self.watch(self.sampled, step.step)

    def _log(self, reporter: Reporter, step: Step) -> None:
        """Take a step into the log; all know it where its line could not be written."""
        if reporter.log.due(step.step):
            self.processes.together(lambda: reporter.log.step(step))
        else:
            reporter.log.step(step)

    def resume_command(self) -> str:
        """The command that continues this run."""
        words = ["sfumato", "train", self.model.recipe, "--data", self.data.name, "--out", str(self.run), "--resume"]
        words += ["--shard"] if self.shard and self.processes.count > 1 else []
        own = flatten(self.model.settings)
        stored = {} if self.run is None else read_config(self.run)["settings"]
        for name in FREE:  # as this part had them, where that is not how the run began
            if stored.get(name, own[name]) != own[name]:
                words += ["--set", f"{name}={str(own[name]).lower()}"]
        return shlex.join(words)

    # ------------------------------------------------------------------------------------------------------- saving

    def _snapshot(self, run: Path) -> None:
        self.processes.first(lambda: self.averages.write(run, self.step))

    def _store(self) -> None:
        """Write the weights to sample from."""
        if self.run is not None:
            run = self.run
            self.processes.first(lambda: self.sampled.save_weights(run))

    def _save_clock(self, run: Path) -> None:
        step, seconds, reserve = self.step, self.clock.seconds(), self.clock.reserve
        self.processes.first(lambda: checkpoints.write_clock(run, step, seconds, reserve))

    def _save(self) -> None:
        if self.run is None or self.saved == self.step:
            return
        run = self.run
        self.ema.gather()
        epoch, offset = divmod(self.step * self.model.settings.optimisation.batch, self.rows)
        checkpoint = Checkpoint(
            step=self.step,
            seed=int(self.model.origin["seed"]),
            seconds=self.clock.seconds(),
            reserve=self.clock.reserve,
            position={"epoch": epoch, "offset": offset},
            model=parallel.whole_tensors(self.model.net.state_dict()),
            ema=self.ema.net.state_dict(),
            optimiser=self.optimiser.tensors(),
            averages=self.averages.tensors(),
        )
        self.processes.first(lambda: checkpoints.write(run, checkpoint))
        self._store()
        self.saved = self.step

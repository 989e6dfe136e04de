"""Watching a run: the log, the progress line, validation, sample grids, the loss plot.

The contract: watching never changes what a step trains; in a horizon of seconds it costs steps.  ``log.jsonl`` has one
object per line, ``kind`` train or validation; after a resume it continues at the checkpoint's step, lines beyond it are
dropped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from sfumato.errors import Refusal
from sfumato.training.composition import allowed_steps
from sfumato.training.files import write_bytes, write_refusal
from sfumato.training.horizon import Clock, Horizon
from sfumato.training.loop import Step
from sfumato.training.pictures import loss_plot
from sfumato.watching.trackers import NOTHING, Trackers

#: A training line is the mean over this many steps.
LOG_EVERY = 10


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was cut off is left out, and a missing log is empty."""
    lines: list[dict[str, Any]] = []
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}") from None
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not isinstance(found, dict):
            raise Refusal(f"{path} is damaged at line {len(lines) + 1}; move it away and go on")
        lines.append(found)
    return lines


@final
class Log:
    """``log.jsonl`` and its lines in memory; ``path`` None keeps the lines in memory only.

    ``trackers`` are told every line that is added.
    """

    def __init__(self, path: Path | None, last_step: int, trackers: Trackers = NOTHING) -> None:
        self.path, self.trackers = path, trackers
        self.lines = [line for line in read_log(path) if line.get("step", 0) <= last_step] if path else []
        if path:
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        self._window: list[Step] = []

    def add(self, line: dict[str, Any]) -> None:
        """Append one line; raises :class:`Refusal` where it cannot be written."""
        self.lines.append(line)
        if self.path:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(line, allow_nan=False) + "\n")
            except OSError as error:
                raise write_refusal(self.path, error) from None
        self.trackers.line(line)

    @staticmethod
    def due(step: int) -> bool:
        """Whether a step writes a line."""
        return step % LOG_EVERY == 0 or step == 1

    def step(self, step: Step) -> None:
        """Take in a training step; every tenth writes the mean of the window."""
        self._window.append(step)
        if self.due(step.step):
            self.flush()

    def flush(self) -> None:
        """Write what the window holds."""
        if not self._window:
            return
        last, n = self._window[-1], len(self._window)
        self.add(
            {
                "kind": "train",
                "step": last.step,
                "loss": sum(s.loss for s in self._window) / n,
                "grad_norm": sum(s.grad_norm for s in self._window) / n,
                "lr": last.lr,
                "images_per_second": n / sum(1 / s.images_per_second for s in self._window),
                "seconds": last.seconds,
            }
        )
        self._window = []


@runtime_checkable
class Progress(Protocol):
    """Shows how far a run is."""

    def step(self, step: Step, done: float, remaining: float | None) -> None:
        """After every step."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...


@final
class Quiet:
    """Shows nothing."""

    def step(self, step: Step, done: float, remaining: float | None) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@final
class Lines:
    """Report lines on standard error, nothing in between: for pipes and logs."""

    def step(self, step: Step, done: float, remaining: float | None) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)


@final
class Bar:
    """A bar with the loss, the speed and the time to go, on a terminal."""

    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task, self.shown = bar, task, 0.0

    def step(self, step: Step, done: float, remaining: float | None) -> None:
        """Move the bar."""
        left = "" if remaining is None else f"{int(remaining) // 60}:{int(remaining) % 60:02d} to go"
        text = f"step {step.step}  loss {step.loss:.4f}  {step.images_per_second:.0f} images/s  {left}"
        self.bar.update(self.task, completed=min(done, 1.0), text=text)

    def say(self, line: str) -> None:
        """Print the line above the bar."""
        self.bar.console.print(line, highlight=False, markup=False)


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Progress]:
    """The progress display that fits standard error: a bar on a terminal, lines elsewhere, nothing where ``quiet``."""
    if quiet:
        yield Quiet()
        return
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[text]}"),
    )
    with Display(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar, bar.add_task(title, total=1.0, text=""))


@final
class Reporter:
    """Tells what was validated, draws the fixed-seed grid and the loss plot; ``run`` None draws nothing."""

    def __init__(self, run: Path | None, log: Log, display: Progress, reporting: Any, title: str) -> None:
        self.run, self.log, self.display = run, log, display
        self.reporting, self.title = reporting, title
        self._plotted, self._plot_seconds = time.perf_counter(), 0.0

    def report(self, found: Mapping[str, Any], step: Step, horizon: Horizon, clock: Clock) -> dict[str, Any]:
        """Log what the validation ``found`` after ``step``, and say it; returns the line."""
        self.log.flush()
        line = {"kind": "validation", "step": step.step, "seconds": step.seconds, **found}
        self.log.add(line)
        remaining = horizon.remaining(step.step, clock)
        left = "" if remaining is None else f"   {int(remaining) // 60}:{int(remaining) % 60:02d} to go"
        held_out = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
        self.display.say(
            f"step {step.step:>6}   training loss {step.loss:.4f}   held-out loss {held_out}   "
            f"{self.log.lines[-2]['images_per_second']:.0f} images/s{left}"
        )
        return line

    def pictures(self, model: Any, step: Step, last: bool) -> None:
        """The sample grid at fixed seeds and the loss plot.

        The ``last`` call always plots; earlier ones do where it takes less than a hundredth of the time.
        """
        if self.run is not None:
            self._samples(model, step.step, self.run)
            if last or time.perf_counter() - self._plotted > max(10.0, 100 * self._plot_seconds):
                self.plot()

    def plot(self) -> None:
        """Draw ``RUN/loss.png`` from the log."""
        if self.run is None:
            return
        began = time.perf_counter()
        loss_plot(self.log.lines, self.run / "loss.png", self.title)
        self._plotted = time.perf_counter()
        self._plot_seconds = self._plotted - began

    def _samples(self, model: Any, step: int, run: Path) -> None:
        columns = self.reporting.grid_columns
        if columns:
            label = list(model.classes) or None
            n = columns * (len(model.classes) or columns)
            samples = model.sample(n, label=label, steps=allowed_steps(model.parts, self.reporting.grid_steps), seed=0)
            path, shown = run / "grids" / f"step-{step:06d}{Path(samples.view.file).suffix}", samples.view.show(samples)
            write_bytes(path, shown)
            self.log.trackers.picture(path, shown, step)

"""The best checkpoint by a metric: a small evaluation at every report of a training, and the best weights kept.

The contract: watching changes nothing of what is trained in a number of steps (in minutes it costs steps).  At each
report the same ``n`` seeds are sampled in the model's own way and measured by one metric against one reference, so that
two values differ by the weights alone;
``RUN/best`` is a run folder of its own (``config.json``, ``model.safetensors``) with the weights of the best value so
far, and ``best.json`` says which.  A choice among many reports flatters itself: measure ``RUN/best`` again on fresh
seeds (``sfumato eval RUN/best --seed 1000000``) before quoting a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from sfumato.errors import Refusal
from sfumato.metrics import units
from sfumato.metrics.evaluate import Reference, evaluate_with, limits, made, measure
from sfumato.metrics.records import Record
from sfumato.training.files import make_folder, read_json, to_json, write_bytes

#: Where the best weights are, in the run folder.
FOLDER = "best"


def require(data: Any, metric: str, n: int, classes: Sequence[str]) -> None:
    """Raises :class:`Refusal` unless n samples of a model of ``classes`` can be measured by ``metric`` on such data."""
    if metric == "label-accuracy" and not classes:
        raise Refusal("best=label-accuracy: this model is trained without classes; take another metric")
    _, names = evaluate_with(data, None, (metric,))
    least, most = limits(data, None, names)
    if not least <= n <= most:
        raise Refusal(f"best_samples={n}: {metric} on {data.name} takes {least} to {most}")


@final
class Watch:
    """Call it with a model at a report.

    ``log`` takes the line of every measurement, ``say`` what a person reads.  A folder that has a best already (a run
    that is resumed) keeps it until it is beaten.
    """

    def __init__(
        self, run: Path, data: Any, metric: str, n: int, log: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.folder, self.data, self.metric, self.n, self.log, self.say = run / FOLDER, data, metric, n, log, say
        self.reference: Reference | None = None
        stored = self.folder / "best.json"
        self.best: float | None = float(read_json(stored)["value"]) if stored.is_file() else None

    def __call__(self, model: Any, step: int) -> Record | None:
        """Measure ``model`` (EMA weights, evaluation mode) after ``step``; keep its weights where it is the best.

        None where its samples cannot be measured, as those of a network that has hardly learned may not be.
        """
        try:
            record = self._measured(model)
        except Refusal as refusal:
            self.say(f"{self.metric} at step {step} is not known: {refusal}")
            return None
        gain = 0.0 if self.best is None else record.value - self.best
        better = self.best is None or (gain < 0 if record.better == "lower" else gain > 0)
        error = {} if record.error is None else {f"{record.name} error": record.error}
        self.log({"kind": "metric", "step": step, record.name: record.value, **error})
        self.say(f"step {step:>6}   {record.name} {record.value:.4g}{'   the best so far' if better else ''}")
        if better:
            self.best = record.value
            self._keep(model, record, step)
        return record

    def _measured(self, model: Any) -> Record:
        if self.reference is None:
            self.reference = Reference.of(self.data, self.n, names=(self.metric,))
        samples = model.sample(self.n, label=units.labels(self.data, model.classes, self.n), seed=0)
        return measure(samples.x, samples.index(), self.reference, generated=made(samples.record))[0]

    def _keep(self, model: Any, record: Record, step: int) -> None:
        """Write the weights, then what they are."""
        make_folder(self.folder)
        model.save_weights(self.folder)
        write_bytes(self.folder / "config.json", to_json(model.config()))
        write_bytes(self.folder / "best.json", to_json({"step": step, **record.to_json()}))

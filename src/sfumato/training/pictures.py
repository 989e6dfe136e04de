"""Pictures of a run: the loss plot and the sample grids.

The contract: a picture is made from what ``log.jsonl`` holds or from a model at fixed seeds, and replaces the old one
whole.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.training.files import write_bytes


def loss_limits(train: Sequence[float], held_out: Sequence[float]) -> tuple[float, float] | None:
    """What the loss axis shows: up to 3 times the median of the held-out losses, so that the first ones do not set the
    scale, and down to 0, or to a little below the least where losses are negative (a learned uncertainty, a density).

    None, matplotlib's own choice, without a positive median.
    """
    values = sorted(held_out or train)
    middle = values[len(values) // 2] if values else 0.0
    return (min(0.0, 1.1 * min((*train, *held_out))), 3 * middle) if middle > 0 else None


def loss_plot(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss over steps, and validation loss by noise level, from the lines of a log."""
    image = io.BytesIO()
    loss_figure(lines, title).savefig(image, format="png", dpi=110)
    write_bytes(path, image.getvalue())


def loss_figure(lines: Sequence[dict[str, Any]], title: str) -> Any:
    """The ``matplotlib`` figure of :func:`loss_plot`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in lines if line["kind"] == "train"]
    reports = [line for line in lines if line["kind"] == "validation" and line["loss"] is not None]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over, levels = figure.subplots(1, 2)
    over.plot([r["step"] for r in train], [r["loss"] for r in train], color="0.7", lw=0.8, label="training")
    over.plot([r["step"] for r in reports], [r["loss"] for r in reports], "o-", ms=3, label="held out, EMA weights")
    over.set_ylim(loss_limits([r["loss"] for r in train], [r["loss"] for r in reports]))
    over.set(xlabel="step", ylabel="loss", title=title)
    over.legend(frameon=False)
    axis = "log_snr" if any(p["log_snr"] is not None for r in reports for p in r["levels"]) else "t"
    for k, report in enumerate(reports):
        points = [(p[axis], p["loss"]) for p in report["levels"] if None not in (p[axis], p["loss"])]
        shade = str(0.85 * (1 - (k + 1) / len(reports)))
        levels.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, color=shade) if points else None
    names = {"log_snr": "log-SNR (noise to the left)", "t": "time (the prior to the right)"}
    levels.set(xlabel=names[axis], title="held-out loss by noise level, darker is later")
    if reports and all(p["loss"] is None or p["loss"] > 0 for r in reports for p in r["levels"]):
        levels.set_yscale("log")
    return figure


def save_png(picture: Any, path: Path) -> None:
    """Write a ``PIL.Image`` atomically."""
    image = io.BytesIO()
    picture.save(image, format="PNG")
    write_bytes(path, image.getvalue())

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


def loss_plot(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss over steps, and validation loss by noise level, from the lines of a log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in lines if line["kind"] == "train"]
    reports = [line for line in lines if line["kind"] == "validation" and line["loss"] is not None]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over, levels = figure.subplots(1, 2)
    over.plot([r["step"] for r in train], [r["loss"] for r in train], color="0.7", lw=0.8, label="training")
    over.plot([r["step"] for r in reports], [r["loss"] for r in reports], "o-", ms=3, label="held out, EMA weights")
    values = [r["loss"] for r in reports] or [r["loss"] for r in train]
    if values and min(values) > 0:
        over.set_ylim(0, 3 * sorted(values)[len(values) // 2])
    over.set(xlabel="step", ylabel="loss", title=title)
    over.legend(frameon=False)
    for k, report in enumerate(reports):
        points = [(p["log_snr"], p["loss"]) for p in report["levels"] if p["log_snr"] is not None and p["loss"]]
        shade = str(0.85 * (1 - (k + 1) / len(reports)))
        levels.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, color=shade) if points else None
    levels.set(xlabel="log-SNR (noise to the left)", title="held-out loss by noise level, darker is later")
    if reports:
        levels.set_yscale("log")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_bytes(path, image.getvalue())


def save_png(picture: Any, path: Path) -> None:
    """Write a ``PIL.Image`` atomically."""
    image = io.BytesIO()
    picture.save(image, format="PNG")
    write_bytes(path, image.getvalue())

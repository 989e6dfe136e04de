"""Pictures of schedules and grids: alpha and sigma, the log-SNR, and what an image looks like along each of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.schedules.reading import Schedule, at, log_snr


def table(schedule: Schedule, rows: int = 11) -> list[tuple[float, float, float, float]]:
    """``(t, alpha, sigma, log-SNR)`` at ``rows`` even times from 0 to 1."""
    moments = [k / (rows - 1) for k in range(rows)]
    with torch.no_grad():
        return [(t, *at(schedule, t), log_snr(schedule, t)) for t in moments]


def strip(schedule: Schedule, image: Tensor, columns: int = 12, seed: int = 0) -> Tensor:
    """An image ``[h, w]`` in [-1, 1] at even times, side by side ``[h, columns * w]``: :func:`along` them."""
    return along(schedule, image, [k / (columns - 1) for k in range(columns)], seed)


def along(schedule: Schedule, image: Tensor, times: Sequence[float], seed: int = 0) -> Tensor:
    """An image ``[h, w]`` in [-1, 1] at these times, side by side ``[h, len(times) * w]``, brought to its own range.

    ``alpha x0 + sigma eps`` with one and the same noise, divided by ``sqrt(alpha^2 + sigma^2)`` and clipped.
    """
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    pieces = []
    with torch.no_grad():
        for t in times:
            alpha, sigma = at(schedule, t)
            pieces.append((alpha * image + sigma * noise) / math.hypot(alpha, sigma))
    return torch.cat(pieces, dim=1).clamp(-1, 1)


def draw(entries: Sequence[tuple[str, Schedule]], path: str | Path, image: Tensor | None = None) -> Path:
    """One row a schedule: alpha and sigma (over sigma's maximum where it exceeds 1), log-SNR, and the image along it.

    ``image``: ``[h, w]`` in [-1, 1]; a digit of the embedded set unless given.
    """
    image = _digit() if image is None else image
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    figure, axes = _rows(len(entries))
    for (left, middle, right), (name, schedule) in zip(axes, entries, strict=True):
        with torch.no_grad():
            alpha, sigma = schedule(t)
            level = log_snr(schedule, t)
        top = max(1.0, float(sigma.max()))
        left.plot(t, alpha, label="alpha")
        left.plot(t, sigma / top, label="sigma")
        middle.plot(t[1:], level[1:].clamp(-30, 30), color="black")
        middle.set(ylim=(-16, 16))
        for axis in (left, middle):
            axis.tick_params(labelsize=6)
        left.set_ylabel(name if top == 1 else f"{name}\n(sigma / {top:g})", fontsize=7)
        right.imshow(strip(schedule, image).numpy(), cmap="gray", vmin=-1, vmax=1, aspect="equal")
        right.set(xticks=[], yticks=[])
    for axis, title in zip(
        axes[0], ("alpha, sigma over t", "log-SNR over t", "t = 0 (data) to t = 1 (prior)"), strict=True
    ):
        axis.set_title(title, fontsize=8)
    axes[0, 0].legend(fontsize=6, loc="center right", frameon=False)
    return _saved(figure, path)


def draw_grids(
    entries: Sequence[tuple[str, Sequence[float]]], schedule: Schedule, path: str | Path, image: Tensor | None = None
) -> Path:
    """One row a grid: its times, the log-SNR that they step through, and the image at each of them, prior to data.

    ``image``: ``[h, w]`` in [-1, 1]; a digit of the embedded set unless given.
    """
    image = _digit() if image is None else image
    figure, axes = _rows(len(entries))
    for (left, middle, right), (name, times) in zip(axes, entries, strict=True):
        left.plot(times, [0.5] * len(times), "|", ms=14, color="black")
        left.set(xlim=(-0.03, 1.03), ylim=(0, 1), yticks=[])
        left.set_ylabel(name.replace(":", ":\n", 1), fontsize=7)
        with torch.no_grad():
            middle.plot([min(max(log_snr(schedule, t), -30), 30) for t in times], ".-", ms=4, color="black")
        middle.set(ylim=(-16, 16))
        for axis in (left, middle):
            axis.tick_params(labelsize=6)
        right.imshow(along(schedule, image, times).numpy(), cmap="gray", vmin=-1, vmax=1, aspect="equal")
        right.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("times", "log-SNR over steps", "t = 1 (prior) to t = 0 (data)"), strict=True):
        axis.set_title(title, fontsize=8)
    return _saved(figure, path)


def _rows(count: int) -> tuple[Any, Any]:
    """A figure of so many rows of three, the last wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.3 + 1.0 * count), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(count, 3, squeeze=False, width_ratios=(1, 1, 3.2))


def _saved(figure: Any, path: str | Path) -> Path:
    """The figure as a PNG of 16 colours: noise is what makes such a picture large."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(16, dither=Image.Dither.NONE).save(path, optimize=True)
    return Path(path)


def _digit() -> Tensor:
    from sfumato import data

    found: Tensor = data.load("mnist").train.x[7, 0].float() / 127.5 - 1
    return found

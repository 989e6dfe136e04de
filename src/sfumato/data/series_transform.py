"""From the scale of a user's time series to the model's, channel by channel, and back; and how series are shown.

The contract: ``decode(encode(x)) == x`` to float32's precision of a channel's own variation, wherever it lies; every
channel has mean 0 and standard deviation 0.5 in model units over all series of the data, and comes back on its own
scale, in the layout and the format that the series came in.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sfumato.errors import Refusal, nearest

#: The standard deviation in model units, that of images, too.
SPREAD = 0.5
#: The spread of a channel that never moves, as a share of its value.
STILL = 1e-6
#: Layouts: arrays, a CSV line a series, a CSV line a moment.
LAYOUTS = ("array", "wide", "long")
#: What the numbers of a user's series are kept in; wider or exact ones (integers, text) in float64.
FORMATS = {"float32": torch.float32, "float64": torch.float64}
#: How many series the plot shows.
SHOWN = 24


@final
@dataclass(frozen=True)
class Layout:
    """How series came: ``form``, one of :data:`LAYOUTS`; ``names``: the columns of a CSV file; ``flat``: without an
    axis of channels; ``label``: the name and the place of the column that became the classes, or None; ``moments``:
    what a long file calls the moments of a series, where all series have the same; ``numbers``: one of
    :data:`FORMATS`."""

    form: str = "array"
    names: tuple[str, ...] = ()
    flat: bool = True
    label: tuple[str, int] | None = None
    moments: tuple[str, ...] = ()
    numbers: str = "float64"

    def __post_init__(self) -> None:
        for what, value, known in (("layout", self.form, LAYOUTS), ("format", self.numbers, FORMATS)):
            if value not in known:
                raise Refusal(f"unknown {what} of series {value!r}; {nearest(value, known)}")


@final
@dataclass(frozen=True)
class SeriesView:
    """Series as an array ``[n, length]`` or ``[n, channels, length]``, plotted as lines.

    ``digits``: of a number in a CSV file.
    """

    layout: Layout = field(default_factory=Layout)
    digits: int = 7
    noun: ClassVar[str] = "series"
    file: ClassVar[str] = "samples.png"

    def array(self, x: Any) -> np.ndarray:
        """The values."""
        return np.asarray(x)

    def show(self, samples: Any) -> bytes:
        """The plot as PNG: up to :data:`SHOWN` series, an axis for each, a line for every channel."""
        label = samples.label
        return plot(self.array(samples.x), label)

    def extra(self, samples: Any) -> dict[str, bytes]:
        """``samples.csv`` in the layout of the user's own file, where that was one."""
        if self.layout.form == "array":
            return {}
        x = self.array(samples.x)
        x = x[:, None] if x.ndim == 2 else x
        rows = _wide if self.layout.form == "wide" else _long
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows(x, self.layout, samples.label, f".{self.digits}g"))
        return {"samples.csv": text.getvalue().encode()}


def _inserted(row: list[str], place: int, value: str) -> list[str]:
    return [*row[:place], value, *row[place:]]


def _wide(x: np.ndarray, layout: Layout, label: Sequence[str] | None, form: str) -> list[list[str]]:
    """A line of names and a line for every series."""
    rows = [list(layout.names), *([format(v, form) for v in series[0].tolist()] for series in x)]
    if layout.label is None:
        return rows
    name, place = layout.label
    values = [name, *(label or [""] * len(x))]
    return [_inserted(row, place, value) for row, value in zip(rows, values, strict=True)]


def _long(x: np.ndarray, layout: Layout, label: Sequence[str] | None, form: str) -> list[list[str]]:
    """A line of names and a line for every moment of every series, numbered from 1."""
    header = list(layout.names)
    rows = [header if layout.label is None else _inserted(header, layout.label[1], layout.label[0])]
    for k, series in enumerate(x):
        for m, values in enumerate(series.T.tolist()):
            moment = layout.moments[m] if layout.moments else str(m)
            row = [str(k + 1), moment, *(format(v, form) for v in values)]
            value = "" if label is None else label[k]
            rows.append(row if layout.label is None else _inserted(row, layout.label[1], value))
    return rows


def plot(x: np.ndarray, label: Sequence[str] | None = None) -> bytes:
    """Series ``[n, length]`` or ``[n, channels, length]`` as a PNG of small plots on one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x = x[:, None] if x.ndim == 2 else x
    shown = min(len(x), SHOWN)
    columns = min(4, shown)
    lines = -(-shown // columns)
    figure = Figure(figsize=(2.6 * columns, 1.5 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for k, ax in enumerate(axes):
        ax.set_visible(k < shown)
        if k < shown:
            ax.plot(x[k].T, lw=0.8)
            ax.tick_params(labelsize=6)
            if label is not None:
                ax.set_title(str(label[k])[:24], fontsize=7, pad=2)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


@final
@dataclass(frozen=True)
class SeriesTransform:
    """``(x - centre) / spread`` for every channel; ``spread`` is twice the standard deviation."""

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    layout: Layout = field(default_factory=Layout)
    dtype: ClassVar[torch.dtype] = torch.float32

    def __post_init__(self) -> None:
        if len(self.centre) != len(self.spread) or not all(spread > 0 for spread in self.spread):
            raise Refusal(f"spread={list(self.spread)}: channels are divided by it, so every one must be positive")

    @staticmethod
    def of(x: Float[Tensor, "n c l"], layout: Layout) -> SeriesTransform:
        """The scale of the series ``x``; a channel that never moves keeps its value to a millionth."""
        x = x.double()
        centre = x.mean((0, 2))
        std = (x - centre[:, None]).square().mean((0, 2)).sqrt()
        least = STILL * centre.abs().clamp(min=1.0)
        spread = torch.where(std > 0, std / SPREAD, least)
        return SeriesTransform(tuple(centre.tolist()), tuple(spread.tolist()), layout)

    @staticmethod
    def stored(
        centre: Sequence[float], spread: Sequence[float], form: str, names: Sequence[str], flat: bool,
        label: Sequence[Any] | None, moments: Sequence[str], numbers: str = "float32",
    ) -> SeriesTransform:  # fmt: skip
        """The transform that ``to_json`` described (without ``numbers`` in runs of older versions)."""
        own = None if label is None else (str(label[0]), int(label[1]))
        layout = Layout(form, tuple(names), flat, own, tuple(moments), numbers)
        return SeriesTransform(tuple(centre), tuple(spread), layout)

    def _shaped(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=x.device)[:, None]

    def encode(self, x: Float[Tensor, "b c l"]) -> Float32[Tensor, "b c l"]:
        """Series in model units."""
        return ((x.double() - self._shaped(self.centre, x)) / self._shaped(self.spread, x)).to(torch.float32)

    def decode(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b l"] | Float[Tensor, "b c l"]:
        """Series on the user's scale and in their format, on the CPU: ``[b, length]`` where they came without channels.

        Raises :class:`Refusal` where a value is not finite.
        """
        x = x.detach().cpu().double()
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise Refusal(f"{bad} of {len(x)} series have non-finite values; sample with more steps or less guidance")
        found = (x * self._shaped(self.spread, x) + self._shaped(self.centre, x)).to(FORMATS[self.layout.numbers])
        return found[:, 0] if self.layout.flat else found

    @property
    def view(self) -> SeriesView:
        """Lines."""
        scales = [(abs(c), s) for c, s in zip(self.centre, self.spread, strict=True) if s != STILL * max(1.0, abs(c))]
        more = max((math.ceil(math.log10(1 + centre / spread)) for centre, spread in scales), default=0)
        return SeriesView(self.layout, min(7 + more, 9 if self.layout.numbers == "float32" else 17))

    def to_json(self) -> dict[str, Any]:
        """Its name and settings."""
        own = self.layout
        return {
            "name": "series", "centre": list(self.centre), "spread": list(self.spread), "form": own.form,
            "names": list(own.names), "flat": own.flat, "label": None if own.label is None else list(own.label),
            "moments": list(own.moments), "numbers": own.numbers,
        }  # fmt: skip

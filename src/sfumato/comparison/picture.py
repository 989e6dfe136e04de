"""The picture of a comparison: a row per metric, against evaluations on the left and seconds on the right."""

from __future__ import annotations

import io
from typing import Any

from sfumato.metrics.records import ARROWS

#: At most this many metrics are drawn, these first.
SHOWN = ("frechet", "label-accuracy", "ode-distance")
MARKERS = "osD^vP*X<>pHd"


def draw(comparison: Any) -> bytes:
    """A PNG file of a :class:`~sfumato.comparison.Comparison` that has records."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    metrics = [name for name in SHOWN if name in comparison.metrics] or comparison.metrics[:1]
    figure = Figure(figsize=(11, 0.6 + 3.6 * len(metrics)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(metrics), 2, squeeze=False, sharey="row")
    lines = list(dict.fromkeys((cell.sampler, cell.grid) for cell in comparison.cells if cell.records))
    several = len({grid for _, grid in lines}) > 1
    palette = colormaps["tab20" if len(lines) > 10 else "tab10"]
    for (left, right), metric in zip(axes, metrics, strict=True):
        first = next(r for r in comparison.records if r.name == metric)
        for k, (sampler, grid) in enumerate(lines):
            cells = [c for c in comparison.cells if (c.sampler, c.grid) == (sampler, grid) and c.records]
            cells = [c for c in cells if c.value(metric) == c.value(metric)]
            look: dict[str, Any] = {
                "marker": MARKERS[k % len(MARKERS)],
                "ms": 4,
                "lw": 1.2,
                "color": palette(k % palette.N),
                "ls": "-" if all(c.deterministic for c in cells) else "--",
                "label": f"{sampler} ({grid})" if several else sampler,
            }
            values = [c.value(metric) for c in cells]
            left.plot([c.nfe for c in cells], values, **look)
            right.plot([c.seconds for c in cells], values, **look)
        for axis, name in ((left, "evaluations a sample"), (right, f"seconds for {comparison.settings['n']} samples")):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
            axis.set_xlabel(name)
            axis.grid(visible=True, which="both", alpha=0.15)
            if first.floor > 0:
                axis.axhline(first.floor, ls=":", color="0.4", lw=1)
        if first.better == "lower" and all(r.value > 0 for r in comparison.records if r.name == metric):
            left.set_yscale("log")
        left.set_ylabel(f"{metric} {ARROWS[first.better]}")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(comparison.heading(), fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()

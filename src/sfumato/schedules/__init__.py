"""Noise schedules: functions ``t -> (alpha, sigma)`` with ``x_t = alpha x0 + sigma eps``, ``t = 0`` data, ``t = 1``
prior.

The contract: a schedule takes a float64 tensor of times and returns float64 ``alpha`` and ``sigma`` of its shape; the
ends are exact, ``(alpha, sigma)(0) = (1, 0)``, and the log signal-to-noise ratio falls strictly.  Derivatives come from
``torch.func.jvp``, never from a second formula.  Samplers read a schedule at python floats (memoised); training reads
it at ``[b]`` tensors.

A table of T discrete steps is a law of continuous t: ``t = k / T`` with ``-log(alpha_bar)`` linear between the knots
and ``alpha_bar(0) = 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.errors import Refusal
from sfumato.registry import Registry
from sfumato.schedules.continuous import (
    VP,
    CosineContinuous,
    Flow,
    Geometric,
    Karras,
    LogLinear,
    LogSNR,
    Sigmoid,
    SubVP,
)
from sfumato.schedules.learned import Frozen, Learned, freeze
from sfumato.schedules.reading import (
    ZERO_ALPHA,
    Schedule,
    at,
    log_snr,
    narrow,
    rates,
    snr,
    time_at,
    wide,
)
from sfumato.schedules.tables import (
    Levels,
    Table,
    ZeroTerminal,
    cosine,
    levels,
    linear,
    polynomial,
    scaled_linear,
    square_root,
    zero_terminal,
)

registry: Registry[Schedule] = Registry("schedule")
registry.add("linear", linear)
registry.add("scaled-linear", scaled_linear)
registry.add("cosine", cosine)
registry.add("cosine-continuous", CosineContinuous)
registry.add("square-root", square_root)
registry.add("flow", Flow)
registry.add("karras", Karras)
registry.add("sigmoid", Sigmoid)
registry.add("polynomial", polynomial)
registry.add("log-linear", LogLinear)
registry.add("vp", VP)
registry.add("sub-vp", SubVP)
registry.add("geometric", Geometric)
registry.add("levels", levels)
registry.add("zero-terminal", zero_terminal)
registry.add("learned", Learned)


def get(name: str, **settings: Any) -> Schedule:
    """The schedule called ``name``; raises :class:`Refusal` for an unknown name or setting."""
    return registry.get(name, **settings)


def names() -> list[str]:
    """The names of all schedules that are fixed: all but ``learned``, which is trained (the recipe ``vdm`` does)."""
    return [name for name in registry if name != "learned"]


def plot(which: str | Schedule | Sequence[str | Schedule], path: str | Path, image: Tensor | None = None) -> Path:
    """Draw schedules, by name or as they are, into a PNG at ``path``: alpha, sigma, log-SNR, and an image along each.

    ``image``: ``[h, w]`` in [-1, 1]; a digit of the embedded set unless given.  Raises :class:`Refusal` for an unknown
    name, and where there is nothing to draw.
    """
    from sfumato.schedules.plots import draw

    listed = list(which) if isinstance(which, Sequence) and not isinstance(which, str) else [which]
    if not listed:
        raise Refusal("no schedule to draw; give a name or a schedule")
    entries = [(entry, get(entry)) if isinstance(entry, str) else (repr(entry), entry) for entry in listed]
    return draw(entries, path, image)


__all__ = [
    "VP",
    "ZERO_ALPHA",
    "CosineContinuous",
    "Flow",
    "Frozen",
    "Geometric",
    "Karras",
    "Learned",
    "Levels",
    "LogSNR",
    "Schedule",
    "Sigmoid",
    "SubVP",
    "Table",
    "ZeroTerminal",
    "at",
    "cosine",
    "freeze",
    "get",
    "levels",
    "linear",
    "LogLinear",
    "log_snr",
    "names",
    "narrow",
    "plot",
    "polynomial",
    "rates",
    "registry",
    "scaled_linear",
    "snr",
    "time_at",
    "wide",
    "zero_terminal",
]

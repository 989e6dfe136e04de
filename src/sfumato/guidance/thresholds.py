"""Wrappers that change a belief alone: static and dynamic thresholding of the predicted clean data.

The contract: ``Mapped(denoiser, f)`` believes ``f`` of what the denoiser believes.  Thresholds act on the belief's
point in model units, and a belief's variance is kept.  :func:`build` makes one from a word, for data in a given range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from sfumato import spec
from sfumato.core import Cond, Denoiser, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.registry import Registry
from sfumato.trees import against

#: From belief to belief.
Change = Callable[[Law[Any]], Law[Any]]


@final
@dataclass(frozen=True)
class Mapped:
    """``f(denoiser(x_t, t, cond))``."""

    denoiser: Denoiser[Any]
    f: Change

    def __call__(self, x_t: Any, t: Time, cond: Cond | None = None) -> Law[Any]:
        """The mapped belief."""
        return self.f(self.denoiser(x_t, t, cond))


def centre(q: Law[Any]) -> str | None:
    """The leaf of a law that is its point, ``x`` or ``mean``: the first; None where the point follows from others."""
    first = next(iter(getattr(q, "leaves", ())), "")
    return first if first in ("x", "mean") else None


def with_point(q: Law[Any], point: Tensor) -> Law[Any]:
    """The same belief around another point; a law without a leaf for it becomes a Dirac there."""
    own: Any = q
    first = centre(q)
    return Dirac(point) if first is None else replace(own, **{first: point})


@final
@dataclass(frozen=True)
class clip:
    """Static thresholding: clamp the predicted ``x0`` to ``[low, high]`` in model units (Ho et al. 2020)."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise Refusal(f"clip({self.low}, {self.high}): needs low < high")

    def __call__(self, q: Law[Any]) -> Law[Any]:
        """The belief with its point thresholded."""
        return with_point(q, q.point().clamp(self.low, self.high))


@final
@dataclass(frozen=True)
class dynamic:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clamp to the ``quantile`` of ``|x0 - centre|`` per
    sample, rescale.

    Samples whose quantile lies below ``limit`` are clamped to ``limit`` and not rescaled.
    """

    quantile: float = 0.995
    limit: float = 1.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and self.limit > 0):
            raise Refusal(
                f"dynamic(quantile={self.quantile}, limit={self.limit}): needs 0 < quantile <= 1 and limit > 0"
            )

    def __call__(self, q: Law[Any]) -> Law[Any]:
        """The belief with its point thresholded."""
        off = q.point() - self.centre
        bound = off.flatten(1).abs().float().quantile(self.quantile, dim=1).clamp(min=self.limit)
        bound = against(bound.to(off), off)
        return with_point(q, self.centre + off.clamp(-bound, bound) / bound * self.limit)


def none(low: float, high: float) -> Change:
    """No threshold: every belief as it is."""
    return lambda q: q


def within(low: float, high: float, quantile: float = 0.995) -> dynamic:
    """Dynamic thresholding about the middle of the range ``[low, high]``, to the range."""
    return dynamic(quantile, (high - low) / 2, (high + low) / 2)


#: What a threshold is called on the command line; each is built for the range of the data.
registry: Registry[Change] = Registry("threshold")
registry.add("none", none)
registry.add("static", clip)
registry.add("dynamic", within)


def parse(text: str) -> str:
    """``text`` with all its settings: ``"dynamic"`` is ``"dynamic:quantile=0.995"``.

    Raises :class:`Refusal` for an unknown name or setting, and for a value out of range.
    """
    name, given = spec.parse("threshold", text, registry.builder, given=2)
    registry.builder(name)(-1.0, 1.0, **given)  # refuses a value out of range
    defaults = {key: own.default for key, own in spec.settings_of(registry.builder(name), 2).items()}
    return spec.text(name, defaults | given)


def build(text: str, low: float, high: float) -> Change:
    """The threshold that a text such as ``"dynamic:quantile=0.99"`` describes, for data in ``[low, high]``."""
    name, given = spec.parse("threshold", text, registry.builder, given=2)
    return registry.builder(name)(low, high, **given)

"""The driver: walk a grid with a sampler, yielding every state.

The contract: ``trajectory`` binds the condition to the model once, hands the sampler ``(t, s)`` pairs straight from the
grid, and holds no state of its own.  It is grad-neutral (the caller chooses ``no_grad``): a context manager inside a
generator would leak into its consumer between two yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch

from sfumato.core import Cond, Process, Sampler, Time
from sfumato.errors import Refusal
from sfumato.grids import validate
from sfumato.randomness import as_rng


@final
@dataclass(frozen=True)
class Conditioned:
    """A model with its condition bound: what samplers call as ``model(x, t)`` (or ``model(x, t, s)`` for a map)."""

    model: Any
    cond: Cond | None

    @property
    def kind(self) -> str:
        """``"belief"`` for denoisers, ``"map"`` for flow maps."""
        return getattr(self.model, "kind", "belief")

    def __call__(self, x: Any, *times: Time) -> Any:
        """The model at ``x`` under the bound condition."""
        return self.model(x, *times, self.cond)


def require_kind(model: Any, sampler: Sampler) -> None:
    """Raises :class:`Refusal` where a sampler of beliefs is given a flow map, or the reverse."""
    kind = getattr(model, "kind", "belief")
    if kind != sampler.takes:
        raise Refusal(
            f"{type(sampler).__name__} samples a {sampler.takes}, but this model is a {kind}; use its own sampler"
        )


def trajectory(
    model: Any, process: Process[Any], sampler: Sampler, grid: Any, x: Any, *, cond: Cond | None = None, rng: Any = None
) -> Iterator[Any]:
    """Yield ``x`` and then the state after every step: ``n + 1`` states for ``n + 1`` times.

    ``grid``: strictly decreasing times in [0, 1] (a float64 tensor of :mod:`sfumato.grids`); ``x``: the state at
    ``grid[0]``; ``rng``: a ``Stream``, ``Streams``, ``torch.Generator`` or int seed, needed by stochastic samplers
    only. Raises :class:`Refusal` at once for a grid, model or process that does not fit.
    """
    times = validate(grid)
    bound = Conditioned(model, cond)
    source = None if rng is None else as_rng(rng)
    require_kind(bound, sampler)
    carry = sampler.start(bound, process, times)
    return walk(bound, process, sampler, times, x, carry, source)


def walk(model: Any, process: Any, sampler: Any, times: list[float], x: Any, carry: Any, rng: Any) -> Iterator[Any]:
    """Yield ``x`` and the state after each interval of ``times``, checked and started by the caller."""
    yield x
    for t, s in pairwise(times):
        x, carry = sampler.step(model, process, x, t, s, carry, rng)
        yield x


def sample(
    model: Any,
    process: Process[Any],
    sampler: Sampler,
    grid: Any,
    x1: Any,
    *,
    cond: Cond | None = None,
    rng: Any = None,
) -> Any:
    """The state at the end of the grid, without gradients; arguments and errors as for :func:`trajectory`."""
    states = trajectory(model, process, sampler, grid, x1, cond=cond, rng=rng)
    with torch.no_grad():
        return deque(states, maxlen=1)[0]

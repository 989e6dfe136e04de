"""Inversion: from data to the noise that a deterministic sampler would make it from.

The contract: the same sampler, the same steps, walked upwards on the same grid.  A solver of order p comes back to
within its own error of that order; nothing here is random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from sfumato.core import Cond, Process, Sampler
from sfumato.errors import Refusal
from sfumato.grids import validate
from sfumato.samplers.ancestral import has_tokens
from sfumato.samplers.driver import Conditioned, require_kind, walk


def inversion(
    model: Any, process: Process[Any], sampler: Sampler, grid: Any, x0: Any, *, cond: Cond | None = None
) -> Iterator[Any]:
    """Yield ``x0`` and then the state after every step up the grid: ``n + 1`` states for ``n + 1`` times.

    ``grid``: the falling grid that one would sample with; ``x0``: the state at its last time.  Raises :class:`Refusal`
    at once for a stochastic sampler, and whatever :func:`~sfumato.samplers.driver.trajectory` refuses.  Grad-neutral.
    """
    times = validate(grid)[::-1]
    bound = Conditioned(model, cond)
    require_kind(bound, sampler)
    if has_tokens(process):
        raise Refusal(f"tokens of a {type(process).__name__} are drawn: no noise leads to given ones; sample instead")
    if sampler.order is None:
        raise Refusal(f"{type(sampler).__name__} draws noise and cannot be walked back; invert with 'ddim'")
    return walk(bound, process, sampler, times, x0, sampler.start(bound, process, times), None)


def invert(model: Any, process: Process[Any], sampler: Sampler, grid: Any, x0: Any, *, cond: Cond | None = None) -> Any:
    """The noise at ``grid[0]`` that ``x0`` comes from (DDIM inversion: Song et al. 2021, section 5.4); no gradients.

    Arguments and errors as for :func:`inversion`.  The first step, out of ``sigma = 0``, adds no noise: the noise of
    clean data has expectation 0.  So no sampler is of an order above 2 from there.
    """
    states = inversion(model, process, sampler, grid, x0, cond=cond)
    with torch.no_grad():
        return deque(states, maxlen=1)[0]

"""Dormand and Prince's 5(4) pair with a step size of its own for every sample.

The contract: ``y' = f(rows, time, y)`` is carried from ``start`` to ``end`` for a batch of independent problems; every
sample accepts, rejects and resizes its own steps and leaves the batch when it arrives, so its result does not depend on
the others.  A step is accepted where its error norm is at most 1, and the next one is ``0.9 norm^(-1/5)`` times as long
(Hairer, Norsett, Wanner 1993, section II.4; coefficients of Dormand and Prince 1980, table 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sfumato.dormand_prince import ERROR, NODES, STAGES
from sfumato.errors import Refusal

#: ``f(rows [m], time [m], y [m, n]) -> dy/dtime [m, n]``; ``rows`` says which samples of the batch are asked for.
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
#: ``(error [m, n], y before [m, n], y after [m, n]) -> norm [m]``; 1 is just tolerated.
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Model calls of an attempted step; the first slope is the last one of the step before.
CALLS = 6


def _combine(y: Tensor, h: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(y)
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            total = total + weight * slope
    return y + h[:, None] * total


def integrate(
    field: Field,
    y: Float64[Tensor, "b n"],
    start: float,
    end: float,
    norm: Norm,
    max_evaluations: int = 20_000,
) -> tuple[Float64[Tensor, "b n"], Int64[Tensor, " b"]]:
    """``y`` at ``end`` and the evaluations that every sample took.

    Raises :class:`Refusal` where a state stops being finite, and where ``max_evaluations`` do not suffice.
    """
    y = y.clone()
    b = len(y)
    time = torch.full((b,), start, dtype=torch.float64)
    size = torch.full((b,), (end - start) / 20, dtype=torch.float64)
    used = torch.ones(b, dtype=torch.int64)
    rows = torch.arange(b)
    slope = field(rows, time, y)
    while len(rows):
        here, now = y[rows], time[rows]
        left = end - now
        h = torch.where(size[rows].abs() < left.abs(), size[rows], left)
        slopes = [slope[rows]]
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            after = _combine(here, h, weights, slopes)
            slopes.append(field(rows, now + node * h, after))
        used[rows] += CALLS
        error = norm(_combine(torch.zeros_like(here), h, ERROR, slopes), here, after)
        if not bool(torch.isfinite(error).all()):
            where = float(now[~torch.isfinite(error)][0])
            raise Refusal(f"the flow of the model is not finite at asinh(alpha/sigma)={where:.3g}; is it trained?")
        kept = error <= 1
        moved = rows[kept]
        y[moved], slope[moved] = after[kept], slopes[-1][kept]
        time[moved] = torch.where(h[kept] == left[kept], end, now[kept] + h[kept])
        size[rows] = h * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        rows = rows[time[rows] != end]
        if len(rows) and int(used[rows].max()) > max_evaluations:
            raise Refusal(f"the flow needs more than {max_evaluations} evaluations; give a larger tolerance")
    return y, used

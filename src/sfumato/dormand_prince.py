"""Dormand and Prince's 5(4) pair with a step size of its own for every sample.

The contract: ``y' = f(rows, time, y)`` is carried from ``start`` to ``end`` for a batch of independent problems; every
sample accepts, rejects and resizes its own steps and leaves the batch when it arrives, so its result does not depend on
the others.  A step is accepted where its error norm is at most 1, and the next one is ``0.9 norm^(-1/5)`` times as long
(Hairer, Norsett and Wanner 1993, section II.4).

Stage ``k`` lies at ``NODES[k]`` of the step and starts from ``y + h sum_j STAGES[k][j] f_j``; the last stage is the
fifth-order result itself, so it is the first one of the next step; ``h sum_j ERROR[j] f_j`` is its difference from the
fourth-order result (Dormand and Prince 1980, table 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sfumato.trees import against, cast, precise

NODES: tuple[float, ...] = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR: tuple[float, ...] = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

#: Evaluations of a trial step; its first slope is the last one of the step before.
CALLS = 6

#: ``f(rows [m], time [m], y [m, ...]) -> dy/dtime [m, ...]``; ``rows`` says which samples of the batch are asked for.
#: Rows and times are on the CPU.
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
#: ``(error [m, ...], y before, y after) -> norm [m]``; 1 is just tolerated.
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


class NotFinite(ArithmeticError):
    """A trial step's error is not finite; ``time``: where the step began, for the first sample it befell."""

    def __init__(self, time: float) -> None:
        super().__init__(f"the flow is not finite at {time:.3g}")
        self.time = time


class OutOfReach(ArithmeticError):
    """The tolerance takes more evaluations than are allowed."""


def per_sample(value: Tensor, y: Tensor) -> Tensor:
    """Numbers ``[m]`` as they act on states ``y [m, ...]``."""
    shaped: Tensor = against(cast(value, y), y)
    return shaped


def _change(h: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """``h sum_j weights[j] slopes[j]``."""
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = total + weight * slope
    return per_sample(h, total) * total


def integrate(
    field: Field, y: Float[Tensor, "b ..."], start: float, end: float, norm: Norm, max_evaluations: int = 20_000
) -> tuple[Float[Tensor, "b ..."], Int64[Tensor, " b"]]:
    """``y`` at ``end``, in its own dtype and place, and the evaluations that every sample took.

    Raises :class:`NotFinite` where an error stops being finite, and :class:`OutOfReach` where ``max_evaluations`` of a
    sample do not suffice.
    """
    y = y.clone()
    b = len(y)
    time = torch.full((b,), start, dtype=torch.float64)
    size = torch.full((b,), (end - start) / 20, dtype=torch.float64)
    used = torch.ones(b, dtype=torch.int64)
    rows = torch.arange(b)
    slope = field(rows, time, y).clone()
    while len(rows):
        here = rows.to(y.device)
        before, now = y[here], time[rows]
        left = end - now
        h = torch.where(size[rows].abs() < left.abs(), size[rows], left)
        slopes, after = [slope[here]], before
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            after = before + _change(h, weights, slopes)
            slopes.append(field(rows, now + node * h, after))
        used[rows] += CALLS
        error = precise(norm(_change(h, ERROR, slopes), before, after)).cpu()
        if not bool(torch.isfinite(error).all()):
            raise NotFinite(float(now[~torch.isfinite(error)][0]))
        kept = error <= 1
        arrived = here[kept.to(y.device)]
        y[arrived], slope[arrived] = after[kept.to(y.device)], slopes[-1][kept.to(y.device)]
        time[rows[kept]] = torch.where(h[kept] == left[kept], end, now[kept] + h[kept])
        size[rows] = h * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        rows = rows[time[rows] != end]
        if len(rows) and int(used[rows].max()) > max_evaluations:
            raise OutOfReach(f"more than {max_evaluations} evaluations")
    return y, used

"""The laws of schedules and grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.schedules import ZERO_ALPHA, Schedule, at, log_snr, rates, time_at
from sfumato.testing.statistics import require


def check_schedule(schedule: Schedule) -> None:
    """A schedule keeps its contract; raises ``AssertionError`` naming the law, the time and the numbers.

    Float64 of the shape of ``t``; exact data end ``(1, 0)``; finite everywhere; the log-SNR falls strictly; the
    derivative is the finite difference; python floats and tensors read the same numbers; ``time_at`` inverts the
    log-SNR, also at levels beyond either end.
    """
    with torch.no_grad():
        _check_values(schedule, f"schedule {schedule!r}")
        _check_rates(schedule, f"schedule {schedule!r}")
        _check_inverse(schedule, f"schedule {schedule!r}")


def _check_values(schedule: Schedule, name: str) -> None:
    t = torch.linspace(0, 1, 1201, dtype=torch.float64)
    alpha, sigma = schedule(t)
    for label, value in (("alpha", alpha), ("sigma", sigma)):
        require(
            value.shape == t.shape and value.dtype == torch.float64, name, f"{label} is {value.dtype} {value.shape}"
        )
        require(bool(torch.isfinite(value).all()), name, f"{label} is not finite on [0, 1]")
        require(bool((value >= -1e-12).all()), name, f"{label} falls to {float(value.min()):.3g}, below 0")
    start = (float(alpha[0]), float(sigma[0]))
    require(start == (1.0, 0.0), name, f"(alpha, sigma)(0) = {start}, must be exactly (1, 0)")
    snr = log_snr(schedule, t)[(sigma > 0) & (alpha > ZERO_ALPHA)]
    worst = int(snr.diff().argmax())
    require(
        bool((snr.diff() < 0).all()), name, f"log-SNR does not fall after t={float(t[worst + 1]):.4f}: {snr[worst]:.6g}"
    )

    for moment in (0.0, 0.25, 0.5, 0.7371, 1.0):
        pair = at(schedule, moment)
        single = schedule(torch.tensor([moment], dtype=torch.float64))
        require(pair == (float(single[0]), float(single[1])), name, f"at({moment}) reads {pair}, the function {single}")


def _check_inverse(schedule: Schedule, name: str) -> None:
    for moment in (1.0, 0.9, 0.5003, 0.31, 0.1, 0.02):
        level = log_snr(schedule, moment)
        if math.isfinite(level):
            back = time_at(schedule, level)
            require(abs(back - moment) < 1e-9, name, f"time_at(log_snr({moment})) = {back}")
    levels = torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64)
    apart = [time_at(schedule, float(v)) for v in levels]
    require(time_at(schedule, levels).tolist() == apart, name, "time_at of a tensor differs from that of its entries")
    for level, end in ((math.inf, 0.0), (log_snr(schedule, 1.0) - 1.0, 1.0)):
        back = time_at(schedule, level)
        require(abs(back - end) < 1e-12, name, f"time_at({level:g}), beyond the end {end:g}, is {back}")


def _check_rates(schedule: Schedule, name: str) -> None:
    h = 1e-6
    moments = torch.tensor([0.11037, 0.33333, 0.5003, 0.77712, 0.95049], dtype=torch.float64)
    values = rates(schedule, moments)
    before, after = schedule(moments - h), schedule(moments + h)
    for k, label in ((0, "alpha"), (1, "sigma")):
        difference = (after[k] - before[k]) / (2 * h)
        gap = (values[2 + k] - difference).abs() / (1 + difference.abs())
        require(float(gap.max()) < 1e-5, name, f"d {label}/dt is off its finite difference by {float(gap.max()):.2e}")
    single = rates(schedule, float(moments[1]))
    require(
        all(math.isclose(a, float(b[1]), rel_tol=1e-12, abs_tol=1e-15) for a, b in zip(single, values, strict=True)),
        name,
        f"rates at a float {single} and at a tensor {[float(v[1]) for v in values]} differ",
    )


def check_grid(
    grid: Callable[[Schedule, int], Tensor],
    schedule: Schedule,
    counts: Iterable[int] = (1, 2, 3, 5, 7, 10, 50, 100, 333),
) -> None:
    """``grid(schedule, n)`` is ``n + 1`` strictly decreasing float64 times in [0, 1] that end in exactly 0.

    Raises ``AssertionError`` naming the grid and the offending ``n``; 0, negative and fractional ``n`` must be refused.
    A grid of table steps may also refuse an ``n`` beyond the table's own number of steps.
    """
    name = f"grid {getattr(grid, '__name__', grid)!s} on {schedule!r}"
    for n in counts:
        try:
            times = grid(schedule, n)
        except Refusal as refusal:
            beyond = n > getattr(schedule, "steps", math.inf)
            require(beyond, name, f"n={n} is refused: {refusal}")
            continue
        require(times.shape == (n + 1,), name, f"n={n} gives {len(times)} times, must be {n + 1}")
        require(times.dtype == torch.float64, name, f"n={n} gives {times.dtype}, must be float64")
        require(bool((times.diff() < 0).all()), name, f"n={n} does not fall strictly: {times.tolist()[:6]}...")
        require(float(times[-1]) == 0.0, name, f"n={n} ends at {float(times[-1])}, must be exactly 0")
        require(0 < float(times[0]) <= 1, name, f"n={n} starts at {float(times[0])}, outside (0, 1]")
    bad: tuple[Any, ...] = (0, -1, 2.5)
    for n in bad:
        try:
            grid(schedule, n)
        except (Refusal, TypeError):  # a run-time type checker may refuse first
            continue
        require(False, name, f"n={n} is not refused")

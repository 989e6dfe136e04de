"""Time grids: pure functions ``(schedule, n) -> n + 1`` strictly decreasing float64 times that end in 0.

The contract: ``n`` steps are exactly ``n`` steps for every ``n`` (integer arithmetic, never a float ``arange``), and
the sampler is always handed the next entry, so nothing recomputes a previous time.  Grids that come from discrete
practice (leading, linspace, trailing) read the number of training steps from the schedule's table, or take 1000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato import spec
from sfumato.core import Cond
from sfumato.errors import Refusal, nearest
from sfumato.laws import Dirac
from sfumato.randomness import as_rng
from sfumato.schedules import Schedule, log_snr, time_at

Grid = Float64[Tensor, " n_plus_1"]


def _check(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise Refusal(f"steps={n}: a grid needs a whole number of at least 1 step")


def _require_levels(schedule: Schedule) -> None:
    """Raises :class:`Refusal` where there are no noise levels to space: a blur or a mask in the place of noise."""
    if not log_snr(schedule, 1.0) < log_snr(schedule, 0.5):
        raise Refusal("this process has no noise that grows with t, so its steps cannot be spaced by it; use 'uniform'")


def _table_steps(schedule: Schedule, n: int) -> int:
    _check(n)
    steps = int(getattr(schedule, "steps", 1000))
    if n > steps:
        raise Refusal(
            f"steps={n} is more than the {steps} steps of the table; use at most {steps}, or the uniform grid"
        )
    return steps


def _to_grid(indices: Iterable[int], steps: int) -> Grid:
    return torch.tensor([*indices, 0], dtype=torch.float64) / steps


def uniform(schedule: Schedule | None, n: int) -> Grid:
    """``t = 1, 1 - 1/n, ..., 0``, whatever the schedule."""
    _check(n)
    return torch.arange(n, -1, -1, dtype=torch.float64) / n


def leading(schedule: Schedule, n: int) -> Grid:
    """Every ``T // n``-th table step from the first one up (DDIM, "leading"); starts below 1, ends through step 1."""
    steps = _table_steps(schedule, n)
    stride = steps // n
    return _to_grid((k * stride + 1 for k in range(n - 1, -1, -1)), steps)


def linspace(schedule: Schedule, n: int) -> Grid:
    """``n`` table steps evenly from the last to the first, both included (rounded half to even), then 0."""
    steps = _table_steps(schedule, n)
    if n == 1:
        return _to_grid([steps], steps)
    return _to_grid((round((steps - 1) * k / (n - 1)) + 1 for k in range(n - 1, -1, -1)), steps)


def trailing(schedule: Schedule, n: int) -> Grid:
    """``T, T - T/n, ...`` rounded to table steps, then 0 (Lin et al. 2023): always starts at the prior."""
    steps = _table_steps(schedule, n)
    return _to_grid((round(steps * (n - k) / n) for k in range(n)), steps)


def quadratic(schedule: Schedule, n: int) -> Grid:
    """``t = (1 - k/n)^2``: finer near the data (DDIM, the quadratic choice of section D.2)."""
    return uniform(schedule, n) ** 2


#: Where a grid in log-SNR begins and ends when the schedule itself is unbounded: alpha/sigma of e^-6 and of e^6.
LOG_SNR_SPAN = (-12.0, 12.0)


def uniform_logsnr(schedule: Schedule, n: int) -> Grid:
    """``n`` times evenly spaced in log-SNR between ``t = 1`` (or -12) and log-SNR 12, then 0 (DPM-Solver, section
    3.2)."""
    _check(n)
    _require_levels(schedule)
    first = max(log_snr(schedule, 1.0), LOG_SNR_SPAN[0])
    return _from_log_snr(schedule, torch.linspace(first, LOG_SNR_SPAN[1], n, dtype=torch.float64), from_prior=True)


def karras(
    schedule: Schedule, n: int, sigma_min: float = 0.002, sigma_max: float | None = None, rho: float = 7.0
) -> Grid:
    """``n`` noise levels ``u = sigma/alpha`` evenly spaced in ``u^(1/rho)``, then 0 (Karras et al. 2022, eq. 5).

    Without ``sigma_max`` the grid begins at the prior, ``t = 1``, and is spaced from the schedule's own highest level
    (at most 80); with it, it begins at that level.  Raises :class:`Refusal` unless ``0 < sigma_min < sigma_max``, and
    for a
    ``sigma_max`` that the schedule does not reach.
    """
    _check(n)
    _require_levels(schedule)
    highest = math.exp(-log_snr(schedule, 1.0) / 2)
    top = min(80.0, highest) if sigma_max is None else sigma_max
    if not rho > 0:
        raise Refusal(f"rho={rho}: the spacing needs a positive number (7 is usual)")
    if not 0 < sigma_min < top:
        raise Refusal(f"sigma_min={sigma_min}, sigma_max={top}: a grid needs 0 < sigma_min < sigma_max")
    if top > highest * (1 + 1e-9):
        raise Refusal(f"sigma_max={top}: this schedule reaches {highest:.4g}; use at most that")
    level = torch.linspace(top ** (1 / rho), sigma_min ** (1 / rho), n, dtype=torch.float64) ** rho
    return _from_log_snr(schedule, -2 * level.log(), from_prior=sigma_max is None)


def shifted(schedule: Schedule, n: int, shift: float = 1.6, rho: float = 1.5) -> Grid:
    """Times of the straight path, ``tau = sigma / (alpha + sigma)``, shifted towards the noise and packed at the data.

    ``tau = shift r / (1 + (shift - 1) r)`` (Esser et al. 2024, eq. 23) for ``r`` falling as ``(1 - k/n)^rho`` from the
    schedule's own prior to 0: ``shift = rho = 1`` is the even grid of a flow.  Raises :class:`Refusal` unless both are
    positive.
    """
    _check(n)
    if not (shift > 0 and rho > 0):
        raise Refusal(f"shift={shift}, rho={rho}: both must be positive")
    _require_levels(schedule)
    highest = math.exp(-log_snr(schedule, 1.0) / 2)
    first = 1.0 if math.isinf(highest) else highest / (shift + highest)
    r = first * (torch.arange(n, 0, -1, dtype=torch.float64) / n) ** rho
    return _from_log_snr(schedule, -2 * (shift * r / (1 - r)).log(), from_prior=True)


def _from_log_snr(schedule: Schedule, values: Tensor, from_prior: bool) -> Grid:
    times = time_at(schedule, values)
    if from_prior:
        times[0] = 1.0  # also where the schedule's end lies beyond the first level
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


@final
@dataclass(frozen=True)
class Equidistributed:
    """A grid function ``(schedule, n) -> times`` that gives every step an equal share of a measured error density.

    ``log_snr`` (rising) and ``share`` (rising from 0 to 1): the share of the density below each level.  The first time
    is 1, the last step, to 0, has one share as every other.  Made by :func:`measure`; n is free.
    """

    log_snr: tuple[float, ...]
    share: tuple[float, ...]

    def __call__(self, schedule: Schedule, n: int) -> Grid:
        _check(n)
        import numpy as np

        levels = np.interp(np.arange(n) / n, self.share, self.log_snr)
        return _from_log_snr(schedule, torch.from_numpy(levels), from_prior=True)


def measure(
    model: Any,
    process: Any,
    x0: Tensor,
    rng: Any,
    *,
    cond: Cond | None = None,
    order: int = 2,
    nodes: int = 120,
) -> Equidistributed:
    """Where on its way from the prior ``model`` needs small steps: an optimised grid for each n (in the manner of Align
    Your Steps, Sabour et al. 2024, who optimise a bound on the same error by stochastic search).

    The step ``h`` of an exponential solver of order ``p`` in ``lambda = log(alpha / sigma)`` replaces the belief's
    point along the trajectory by a polynomial, whose error is ``c |d^p x0hat / d lambda^p| h^(p+1)``.  The sum of these
    errors over n steps is least where every step has the same integral of
    ``rho = (E |d^p x0hat / d lambda^p|^2)^(1 / (2 (p+1)))``.  ``rho`` is measured by differences along trajectories of
    ``nodes`` even steps in lambda that begin at noised ``x0 [b, ...]``, with one call of ``model`` a node.  ``order``:
    1 for ddim and euler, 2 for dpmpp-2m, heun and other second-order solvers.  Raises :class:`Refusal` for an order
    below 1, or with fewer nodes than the differences need.
    """
    if order < 1 or nodes < 8 * order:
        raise Refusal(f"order={order}, nodes={nodes}: measuring needs an order of at least 1 and 8 nodes an order")
    schedule = process.schedule
    _require_levels(schedule)
    first = max(LOG_SNR_SPAN[0], log_snr(schedule, 1.0))
    levels = torch.linspace(first, LOG_SNR_SPAN[1], nodes + 1, dtype=torch.float64)
    points = _points_along(model, process, x0, time_at(schedule, levels).tolist(), as_rng(rng), cond)
    step = float(levels[1] - levels[0]) / 2
    differences = points.diff(n=order, dim=0) / step**order
    size = differences.flatten(2).square().sum(2).mean(1)
    density = size.clamp(min=1e-30 * float(size.max())) ** (1 / (2 * (order + 1)))
    middle = levels[: len(density)] + order * step  # the difference of order p sits p / 2 nodes on
    share = torch.cat([torch.zeros(1, dtype=torch.float64), ((density[1:] + density[:-1]) / 2).cumsum(0)])
    return Equidistributed(tuple(middle.tolist()), tuple((share / share[-1]).tolist()))


@torch.no_grad()
def _points_along(model: Any, process: Any, x0: Tensor, times: list[float], rng: Any, cond: Cond | None) -> Tensor:
    """The belief's point ``[nodes, b, ...]`` (float64) along trajectories of even steps in log-SNR (2M)."""
    x = process.marginal(x0, times[0]).draw(rng)
    points = [model(x, times[0], cond).point()]
    for t, s in pairwise(times):
        ahead = points[-1] if len(points) == 1 else 1.5 * points[-1] - 0.5 * points[-2]
        x = process.bridge(x, Dirac(ahead), t, s, 0.0).point()
        points.append(model(x, s, cond).point())
    return torch.stack([point.cpu().double() for point in points])


def optimised(
    model: Any, process: Any, x0: Tensor, n: int, rng: Any, *, cond: Cond | None = None, order: int = 2
) -> Grid:
    """The grid of ``n`` steps that suits ``model``: :func:`measure` on the samples ``x0 [b, ...]``, then its grid."""
    return measure(model, process, x0, rng, cond=cond, order=order)(process.schedule, n)


_GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": uniform,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "uniform-logsnr": uniform_logsnr,
    "karras": karras,
    "quadratic": quadratic,
    "shifted": shifted,
}


def get(name: str) -> Callable[..., Grid]:
    """The grid function called ``name``; raises :class:`Refusal` for an unknown name."""
    if name not in _GRIDS:
        raise Refusal(f"unknown grid {name!r}; {nearest(name, _GRIDS)}")
    return _GRIDS[name]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``"karras:rho=5"`` as ``("karras", {"rho": 5.0})``: the settings are the function's own, read by their types.

    Raises :class:`Refusal` for an unknown name or setting and for a value of the wrong type.
    """
    return spec.parse("grid", text, get, given=2)


def build(text: str) -> Callable[[Schedule, int], Grid]:
    """The grid function ``(schedule, n) -> times`` that a text such as ``"karras:rho=5"`` describes; see
    :func:`parse`.
    """
    name, settings = parse(text)
    return partial(get(name), **settings)


def names() -> list[str]:
    """The names of all grids."""
    return list(_GRIDS)


def plot(
    which: str | Sequence[str], path: str | Path, schedule: Schedule, n: int = 10, image: Tensor | None = None
) -> Path:
    """Draw grids of ``n`` steps, named as for :func:`build`, into a PNG at ``path``: their times, the log-SNR that they
    step through on ``schedule``, and an image at each.

    ``image``: ``[h, w]`` in [-1, 1]; a digit of the embedded set unless given.  Raises :class:`Refusal` for an unknown
    name or setting, and where there is nothing to draw.
    """
    from sfumato.schedules.plots import draw_grids

    listed = [which] if isinstance(which, str) else list(which)
    if not listed:
        raise Refusal("no grid to draw; give a name")
    return draw_grids([(text, build(text)(schedule, n).tolist()) for text in listed], schedule, path, image)


def validate(grid: Any) -> list[float]:
    """A grid as python floats; raises :class:`Refusal` unless it falls strictly within [0, 1]."""
    times = [float(t) for t in grid]
    if len(times) < 2:
        raise Refusal(f"a grid of {len(times)} times has no step; give at least a start and an end")
    outside = [t for t in times if not 0.0 <= t <= 1.0]
    if outside:
        raise Refusal(
            f"the grid holds t={outside[0]:g}, outside the schedule's [0, 1]; use a function of sfumato.grids"
        )
    for t, s in pairwise(times):
        if not s < t:
            raise Refusal(f"the grid goes from t={t:g} to {s:g}; sampling needs strictly decreasing times")
    return times

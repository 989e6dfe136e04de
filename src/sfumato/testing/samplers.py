"""The laws of samplers: recovery of the data, order, finite ends, one stream per sample, threads.

The contract checked: with a perfect model a sampler returns the data, at the rate it declares, from any grid, and every
sample depends on its own seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import grids
from sfumato.core import Sampler
from sfumato.errors import Refusal
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.randomness import Stream, Streams
from sfumato.samplers.driver import sample, trajectory
from sfumato.schedules import log_snr, time_at
from sfumato.testing.statistics import Z_LIMIT, columns, fail, moments, require, sliced_w2, slope, z_gap
from sfumato.trees import tree_map


def check_sampler(
    sampler: Sampler,
    process: Any,
    oracle: Any,
    *,
    like: Any,
    grid_names: Sequence[str] = ("uniform",),
    steps: int = 200,
) -> None:
    """The laws every sampler keeps on ``process`` with ``oracle``'s perfect model: ends, driver, streams, recovery.

    ``like`` is a state of any batch size that fits the process.  For deterministic samplers of a Gaussian process call
    :func:`check_order` as well.  Raises ``AssertionError`` naming the law and the numbers.
    """
    check_ends(sampler, process, oracle, like, grid_names)
    check_driver(sampler, process, oracle, like)
    check_streams(sampler, process, oracle, like)
    check_recovery(sampler, process, oracle, like, steps=steps)


def _name(sampler: Any, process: Any) -> str:
    return f"{sampler!r} on {getattr(process, 'schedule', process)!r}"


def _batch(like: Any, n: int) -> Any:
    return tree_map(lambda v: torch.zeros((n, *v.shape[1:]), dtype=v.dtype), like)


def _schedule(process: Any) -> Any:
    parts = getattr(process, "parts", None)
    # blocks have one for each of their sites; the uniform grid reads none
    return _schedule(next(iter(parts.values()))) if parts else getattr(process, "schedule", None)


def check_ends(
    sampler: Sampler,
    process: Any,
    oracle: Any,
    like: Any,
    grid_names: Iterable[str] = ("uniform",),
    counts: Sequence[int] = (1, 2, 3, 5, 10),
    bound: float = 30.0,
) -> None:
    """Law 11: from ``t = 1`` (or the grid's start) to exactly 0 in n steps the state is finite and below ``bound``.

    The sampler may refuse instead, in ``start``, with a :class:`Refusal` that gives the reason.  Grids of the same
    times, as most of one step are, are walked once.
    """
    model = oracle.denoiser(process)
    walked: set[tuple[float, ...]] = set()
    for grid_name in grid_names:
        for n in counts:
            grid = grids.get(grid_name)(_schedule(process), n)
            times = tuple(grid.tolist())
            if times in walked:
                continue
            walked.add(times)
            x1 = process.marginal(oracle.sample(32, Stream(0)), float(grid[0])).draw(Streams(range(32)))
            try:
                walk = trajectory(model, process, sampler, grid, x1, rng=Stream(1))
            except Refusal:
                continue
            with torch.no_grad():
                *_, x = walk
            worst = float(columns(x).abs().max())
            where = f"{_name(sampler, process)}, grid {grid_name!r}, n={n}"
            require(math.isfinite(worst), "11 ends", f"{where}: not finite")
            require(worst < bound, "11 ends", f"{where}: |x| = {worst:.3g}, bound {bound:g}")


def check_driver(sampler: Sampler, process: Any, oracle: Any, like: Any, steps: int = 6) -> None:
    """A trajectory yields the start and one state a step, each shaped and typed like it; ``sample`` is its last state.

    The grid has ``steps`` steps.  The start is left untouched, a sampler object used twice gives the same sample twice
    (no hidden state), and a grid that rises, leaves [0, 1] or has no step is refused.
    """
    name = _name(sampler, process)
    model = oracle.denoiser(process)
    x1 = process.prior(_batch(like, 4)).draw(Streams(range(4)))
    before = columns(x1).clone()
    grid = grids.uniform(_schedule(process), steps)
    with torch.no_grad():
        states = list(trajectory(model, process, sampler, grid, x1, rng=Streams(range(4))))
    message = f"{name}: {len(states)} states for {steps} steps, must be {steps + 1}"
    require(len(states) == steps + 1, "driver", message)
    require(bool((columns(x1) == before).all()), "driver", f"{name}: the start is changed in place")
    for state in states:
        require(
            columns(state).shape == before.shape, "driver", f"{name}: a state of shape {tuple(columns(state).shape)}"
        )
    for attempt in range(2):
        again = sample(model, process, sampler, grid, x1, rng=Streams(range(4)))
        gap = float((columns(again) - columns(states[-1])).abs().max())
        require(gap == 0.0, "driver", f"{name}: run {attempt + 2} with the same object and seeds differs by {gap:.2e}")
    for bad in ([0.0, 1.0], [1.5, 0.0], [0.5], [1.0, 1.0, 0.0]):
        try:
            trajectory(model, process, sampler, torch.tensor(bad, dtype=torch.float64), x1, rng=Stream(0))
        except Refusal:
            continue
        fail("driver", f"{name}: the grid {bad} is not refused")


def check_streams(
    sampler: Sampler, process: Any, oracle: Any, like: Any, tolerance: float = 1e-9, steps: int = 12
) -> None:
    """Law 12: the noise of a seed is bitwise its own, and its sample the same alone, in any batch and any order.

    ``tolerance`` is for the model's own rounding with batch size; the prior draw must agree bitwise.  The grid has
    ``steps`` steps, of which few will do for a sampler that chooses its own.
    """
    name = _name(sampler, process)
    model = oracle.denoiser(process)
    grid = grids.uniform(_schedule(process), steps)

    def run(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        rng = Streams(seeds)
        x1 = process.prior(_batch(like, len(seeds))).draw(rng)
        return columns(x1), columns(sample(model, process, sampler, grid, x1, rng=rng))

    seeds = [7, 3, 11, 5, 2]
    start, together = run(seeds)
    _, backwards = run(seeds[::-1])
    gap = float((backwards.flip(0) - together).abs().max())
    require(gap <= tolerance, "12 streams", f"{name}: reversing the batch changes samples by {gap:.2e}")
    for k, seed in enumerate(seeds):
        own_start, alone = run([seed])
        require(
            bool((own_start[0] == start[k]).all()),
            "12 streams",
            f"{name}: the noise of seed {seed} depends on its batch",
        )
        gap = float((alone[0] - together[k]).abs().max())
        message = f"{name}: seed {seed} alone and in a batch of 5 differ by {gap:.2e}, tolerance {tolerance:g}"
        require(gap <= tolerance, "12 streams", message)
    apart = float((together[0] - together[1]).abs().max())
    require(apart > 1e-6, "12 streams", f"{name}: two different seeds give the same sample")


def check_threads(sampler: Sampler, process: Any, oracle: Any, like: Any, threads: int = 8, steps: int = 20) -> None:
    """One sampler object used by many threads at once gives each what it gives alone, bitwise."""
    model = oracle.denoiser(process)
    grid = grids.uniform(_schedule(process), steps)

    def run(seed: int) -> Tensor:
        rng = Streams([seed, seed + 100])
        x1 = process.prior(_batch(like, 2)).draw(rng)
        return columns(sample(model, process, sampler, grid, x1, rng=rng))

    serial = [run(seed) for seed in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        parallel = list(pool.map(run, range(threads)))
    worst = max(float((a - b).abs().max()) for a, b in zip(serial, parallel, strict=True))
    require(worst == 0.0, "threads", f"{_name(sampler, process)}: {threads} threads differ from serial by {worst:.2e}")


def check_recovery(
    sampler: Sampler,
    process: Any,
    oracle: Any,
    like: Any,
    *,
    steps: int = 200,
    grid: str = "uniform",
    n: int = 4000,
    ratio: float = 1.4,
) -> None:
    """Law 4: with a perfect model the samples are the data: moments, and sliced W2 against the floor of iid samples.

    ``ratio`` bounds the distance in units of that floor, the mean over pairs of independent samples of the same size.
    An oracle with a ``posterior`` is sampled through it where the sampler is stochastic, so that any grid is exact.
    """
    exact = oracle.posterior(process) if sampler.order is None else oracle.denoiser(process)
    x1 = process.prior(_batch(like, n)).draw(Stream(5))
    x = columns(sample(exact, process, sampler, grids.get(grid)(_schedule(process), steps), x1, rng=Stream(6)))
    truth = [columns(oracle.sample(n, Stream(seed))) for seed in range(10, 16)]
    floor = sum(sliced_w2(a, b) for a, b in zip(truth[0::2], truth[1::2], strict=True)) / 3
    reached = sum(sliced_w2(x, other) for other in truth) / 6
    name = _name(sampler, process)
    message = f"{name}, {steps} steps: sliced W2 {reached:.4f}, iid floor {floor:.4f}, allowed {ratio:g} times"
    require(reached < ratio * floor, "4 recovery", message)
    z = z_gap(moments(x), moments(torch.cat(truth)))
    require(z < Z_LIMIT, "4 recovery", f"{name}, {steps} steps: moments off by |z| = {z:.1f}, limit {Z_LIMIT}")


def mode_weights(x: Float[Tensor, "n d"], modes: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """The share of samples nearest to each mode."""
    nearest = torch.cdist(x.to(torch.float64), modes.to(torch.float64)).argmin(1)
    return torch.bincount(nearest, minlength=len(modes)).to(torch.float64) / len(x)


def log_snr_grid(
    process: Gaussian | Interpolant, n: int, first: float = -6.0, last: float = 6.0
) -> Float[Tensor, " n_plus_1"]:
    """``n`` steps evenly in log-SNR between two levels (cut to the schedule's own): where orders are measured."""
    first = max(first, log_snr(process.schedule, 1.0))
    return torch.as_tensor(time_at(process.schedule, torch.linspace(first, last, n + 1, dtype=torch.float64)))


def measure_order(
    sampler: Sampler,
    process: Gaussian | Interpolant,
    oracle: Any,
    grid_of: Any,
    steps: Sequence[int],
    *,
    batch: int = 64,
) -> tuple[float, list[float]]:
    """The order at which errors against the exact flow fall over ``grid_of(n)``, n in ``steps``, and those errors."""
    model = oracle.denoiser(process)
    first = grid_of(steps[0])
    t, s = float(first[0]), float(first[-1])
    x = process.marginal(oracle.sample(batch, 1), t).draw(Stream(2))
    truth = oracle.flow(process, x, t, s)
    errors = []
    for n in steps:
        end = sample(model, process, sampler, grid_of(n), x)
        errors.append(float((end - truth).flatten(1).norm(dim=1).mean()))
    return slope(steps, errors), errors


def check_order(
    sampler: Sampler,
    process: Gaussian | Interpolant,
    oracle: Any,
    *,
    steps: Sequence[int] = (80, 160),
    tolerance: float = 0.1,
) -> float:
    """Law 5: the measured order is the declared one within ``tolerance``, on steps even in log-SNR from -6 to 6.

    Errors are against the exact flow.  Returns the measured order; see :func:`check_order_at_ends` for the whole
    interval.
    """
    name = _name(sampler, process)
    declared = sampler.order
    if declared is None:
        fail("5 order", f"{name} declares no order: it is stochastic")
    inside, errors = measure_order(sampler, process, oracle, lambda n: log_snr_grid(process, n), steps)
    message = (
        f"{name}: measured {inside:.2f} inside, declared {declared} (errors {', '.join(f'{e:.2e}' for e in errors)})"
    )
    require(abs(inside - declared) < tolerance, "5 order", message)
    return inside


def check_order_at_ends(
    sampler: Sampler,
    process: Gaussian | Interpolant,
    oracle: Any,
    *,
    steps: Sequence[int] = (160, 320),
    loss: float = 0.45,
) -> float:
    """Law 5 on the whole interval: from ``t = 1`` to exactly 0 on the uniform grid the order falls by at most ``loss``.

    The first and the last step may be of first order there, so that no order above 2 is asked for, and none above the
    declared one believed; errors are against the exact flow.  Returns the order.
    """
    declared = sampler.order
    if declared is None:
        fail("5 order", f"{_name(sampler, process)} declares no order: it is stochastic")
    expected = min(declared, 2)
    whole, errors = measure_order(sampler, process, oracle, lambda n: grids.uniform(process.schedule, n), steps)
    message = f"{_name(sampler, process)}: measured {whole:.2f} from 1 to 0, expected {expected}"
    message += f" (errors {', '.join(f'{e:.2e}' for e in errors)})"
    require(expected - loss < whole < declared + loss, "5 order at the ends", message)
    return whole


def check_same_path(
    a: Sampler, b: Sampler, process: Any, oracle: Any, like: Any, grid: Any, tolerance: float = 1e-9
) -> None:
    """Two samplers that are one in exact arithmetic give the same sample from the same seeds."""
    model = oracle.denoiser(process)
    x1 = process.prior(_batch(like, 8)).draw(Streams(range(8)))
    ends = [columns(sample(model, process, s, grid, x1, rng=Streams(range(8)))) for s in (a, b)]
    gap = float((ends[0] - ends[1]).abs().max())
    require(
        gap < tolerance, "same path", f"{a!r} and {b!r} on {process!r} differ by {gap:.2e}, tolerance {tolerance:g}"
    )

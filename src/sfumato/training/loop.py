"""The training loop, a generator: one yield per step, so that EMA, logs, validation and early stops live outside.

The contract: step ``k`` is a function of (weights, optimiser state, seed, k, progress) alone.  Its data are batch
``k`` of the seeded order, its noise comes from a stream seeded by (seed, k), and so does dropout.  Training ``2N``
steps therefore equals training ``N``, being killed, and resuming.  A loss or gradient that is not finite raises
:class:`Diverged` before it touches the weights.

A batch may be worked on in parts, one after another (``accumulate``) and by several processes at once: a part's rows
have the data and the noise that they have in the whole batch, and the gradient is the whole batch's, but for the order
in which numbers are added up.  Where a row's loss depends on the other rows (couplings), every part sees them all.
Masks of dropout are the exception: each part draws its own.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.data.rows import Rows, ahead
from sfumato.errors import Refusal
from sfumato.randomness import Share, Shared, Stream
from sfumato.training.horizon import Clock, Horizon
from sfumato.training.optim import Optimiser
from sfumato.training.parallel import ALONE, Processes, accumulating
from sfumato.training.seeds import Batches, Order, mix

#: The losses ``[b]`` of some rows, by the name of the optimiser.
Compute = Callable[[Mapping[str, Tensor], RNG], Mapping[str, Tensor]]


@runtime_checkable
class Trainable(Protocol):
    """What the loop trains: unreduced losses of shape ``[b]`` per optimiser, and the noise level of every sample."""

    def losses(self, batch: Any, rng: RNG) -> Mapping[str, Tensor]:
        """Losses ``[b]`` by the name of the optimiser that minimises them."""
        ...

    def describe_level(self, n: int, worst: int, rng: RNG) -> str:
        """The noise level that sample ``worst`` of ``n`` was trained at, given the step's own stream again."""
        ...


class Diverged(Refusal):
    """Training met a loss or gradient that is not finite; the weights are those before the step."""


@final
@dataclass(frozen=True)
class Step:
    """One step of training.  ``step`` counts from 1; ``seconds`` are training seconds so far."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    images_per_second: float


def train_steps(
    system: Trainable,
    data: Rows,
    optimisers: Mapping[str, Optimiser],
    horizon: Horizon,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    clock: Clock | None = None,
    accumulate: int = 1,
    processes: Processes = ALONE,
    compute: Compute | None = None,
) -> Iterator[Step]:
    """Train from step ``start`` to the end of ``horizon``, yielding after every step.

    ``optimisers``: by the names that ``system.losses`` gives.  ``batch``: rows of a step, in ``accumulate`` parts on
    each of the ``processes``.  ``compute``: what gives the losses in the place of ``system.losses`` (the same,
    wrapped).  Raises :class:`Diverged` at the first loss or gradient that is not finite, naming the step and the noise
    level, and :class:`Refusal` for a batch that has fewer rows than parts.
    """
    clock = clock or Clock()
    clock.start()
    clock.agree()
    own = getattr(data, "order", None)  # rows that are quickest to read in an order of their own have one
    order: Batches = Order(seed, len(data)) if own is None else own(seed)
    shares = processes.shares(batch, accumulate)
    losses_of: Compute = compute or system.losses
    feed = ahead(data, _indices(order, batch, shares, start, getattr(system, "couples", False)))
    reads = processes if getattr(data, "ready", 0) else ALONE  # rows in memory are always there
    step = start
    while (progress := horizon.progress(step, clock)) < 1:
        began = time.perf_counter()
        stream_seed = mix(seed, "step", step)
        means: list[Tensor] = []
        parts: list[dict[str, Tensor]] = []
        for share in shares:
            rows = reads.together(lambda: next(feed))
            with (
                torch.random.fork_rng(_cuda(next(iter(rows.values())).device)),
                accumulating(losses_of, share is shares[-1]),
            ):
                # dropout draws from torch's own generator, for every part other masks
                torch.manual_seed(mix(stream_seed, "rows", share.first) if share.first else stream_seed)
                losses = losses_of(rows, _source(stream_seed, share))
                mean = torch.stack([loss.mean() for loss in losses.values()]).sum() * (len(share) / batch)
                (mean * processes.count).backward()  # type: ignore[no-untyped-call]
            means.append(mean.detach())
            parts.append({name: loss.detach() for name, loss in losses.items()})
        loss = float(processes.add(torch.stack(means).cpu().double().sum()))
        if not math.isfinite(loss):
            raise _diverged(system, _gathered(parts, shares, processes), step, stream_seed, f"the loss is {loss}")
        norm, rate = 0.0, 0.0
        for name in parts[0]:
            applied = optimisers[name].apply(step, progress)
            norm, rate = max(norm, applied.grad_norm), applied.lr
            if not math.isfinite(applied.grad_norm):
                what = f"the gradient norm is {applied.grad_norm}"
                raise _diverged(system, _gathered(parts, shares, processes), step, stream_seed, what)
        step += 1
        clock.agree()
        yield Step(step, loss, norm, rate, clock.seconds(), batch / (time.perf_counter() - began))


def _indices(order: Batches, batch: int, shares: list[Share], start: int, whole: bool) -> Iterator[Tensor]:
    """The indices of the rows that every part asks for, one after another: its own, or the ``whole`` batch's."""
    for step in itertools.count(start):
        index = order.batch(step, batch)
        yield from (index if whole else share.of(index) for share in shares)


def _source(seed: int, share: Share) -> RNG:
    """A part's own noise."""
    stream = Stream(seed)
    return stream if len(share) == share.whole else Shared(stream, share)


def _gathered(parts: list[dict[str, Tensor]], shares: list[Share], processes: Processes) -> dict[str, Tensor]:
    """The losses of the whole batch, ``[batch]``, on every process."""
    own = {name: torch.cat([part[name].cpu().double() for part in parts]) for name in parts[0]}
    return {name: processes.joined(losses, shares[0].first, shares[0].whole) for name, losses in own.items()}


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _diverged(system: Trainable, losses: Mapping[str, Tensor], step: int, stream_seed: int, what: str) -> Diverged:
    total = torch.stack([loss.detach().cpu().double() for loss in losses.values()]).sum(0)
    worst = int(torch.nan_to_num(total, nan=float("inf"), posinf=float("inf")).argmax())
    level = system.describe_level(len(total), worst, Stream(stream_seed))
    return Diverged(
        f"step {step + 1}: {what} (worst sample at {level}); the last checkpoint is kept, lower lr to go on"
    )

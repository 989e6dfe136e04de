"""The training loop, a generator: one yield per step, so that EMA, logs, validation and early stops live outside.

The contract: step ``k`` is a function of (weights, optimiser state, seed, k, progress) alone.  Its data are batch
``k`` of the seeded order, its noise comes from a stream seeded by (seed, k), and so does dropout.  Training ``2N``
steps therefore equals training ``N``, being killed, and resuming.  A loss or gradient that is not finite raises
:class:`Diverged` before it touches the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.data.rows import Rows
from sfumato.errors import Refusal
from sfumato.randomness import Stream
from sfumato.training.horizon import Clock, Horizon
from sfumato.training.optim import Optimiser
from sfumato.training.seeds import Order, mix


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
) -> Iterator[Step]:
    """Train from step ``start`` to the end of ``horizon``, yielding after every step.

    ``optimisers``: by the names that ``system.losses`` gives.  Raises :class:`Diverged` at the first loss or gradient
    that is not finite, naming the step and the noise level.
    """
    clock = clock or Clock()
    clock.start()
    order = Order(seed, len(data))
    step = start
    while (progress := horizon.progress(step, clock)) < 1:
        began = time.perf_counter()
        rows = data.batch(order.batch(step, batch))
        stream_seed = mix(seed, "step", step)
        with torch.random.fork_rng(_cuda(next(iter(rows.values())).device)):
            torch.manual_seed(stream_seed)  # dropout draws from torch's own generator
            losses = system.losses(rows, Stream(stream_seed))
            means = {name: loss.mean() for name, loss in losses.items()}
            loss = sum(mean.item() for mean in means.values())
            if not math.isfinite(loss):
                raise _diverged(system, losses, step, stream_seed, f"the loss is {loss}")
            norm, rate = 0.0, 0.0
            for mean in means.values():
                mean.backward()  # type: ignore[no-untyped-call]
            for name in means:
                applied = optimisers[name].apply(step, progress)
                norm, rate = max(norm, applied.grad_norm), applied.lr
                if not math.isfinite(applied.grad_norm):
                    raise _diverged(system, losses, step, stream_seed, f"the gradient norm is {applied.grad_norm}")
        step += 1
        yield Step(step, loss, norm, rate, clock.seconds(), batch / (time.perf_counter() - began))


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _diverged(system: Trainable, losses: Mapping[str, Tensor], step: int, stream_seed: int, what: str) -> Diverged:
    total = torch.stack([loss.detach().cpu().double() for loss in losses.values()]).sum(0)
    worst = int(torch.nan_to_num(total, nan=float("inf"), posinf=float("inf")).argmax())
    level = system.describe_level(len(total), worst, Stream(stream_seed))
    return Diverged(
        f"step {step + 1}: {what} (worst sample at {level}); the last checkpoint is kept, lower lr to go on"
    )

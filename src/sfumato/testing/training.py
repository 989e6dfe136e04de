"""The law of training: a small network that is trained on an oracle's data reaches the loss of the oracle itself.

The contract: a :class:`Lesson` holds a network inside a denoiser, the perfect denoiser of the same kind, the data, and
the loss by which both are judged; :func:`check_training` is one loop for all of them, whatever the process.  It sees
what no exact belief can: a target, a weight or a head that has another minimum than the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.core import RNG
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.randomness import Stream
from sfumato.testing.models import MLP, OracleNet
from sfumato.testing.statistics import columns, require
from sfumato.training.objectives import prediction_loss


@final
@dataclass(frozen=True)
class Lesson:
    """What is to be learned.

    ``net``: the module inside ``model`` that is trained; ``exact``: the perfect model; ``sample(n, rng)``: clean data
    in float32 or tokens; ``loss(model, x0, t [b], rng) -> [b]``, the same for both.
    """

    net: nn.Module
    model: Any
    exact: Any
    sample: Callable[[int, RNG], Any]
    loss: Callable[[Any, Any, Tensor, RNG], Tensor]


def gaussian_lesson(
    process: Gaussian, oracle: Any, prediction: str, *, sigma_data: float = 1.5, seed: int = 0
) -> Lesson:
    """A perceptron that predicts ``prediction``, by the mean square error of its own target."""
    net = seeded(lambda: MLP(len(columns(torch.zeros(1, *oracle.shape))[0])), seed)
    head = GaussianHead(process, prediction, sigma_data)
    exact = Preconditioned(OracleNet(oracle.denoiser(process), head), head)

    def sample(n: int, rng: RNG) -> Tensor:
        drawn: Tensor = oracle.sample(n, rng)
        return drawn.float()

    def loss(model: Preconditioned, x0: Tensor, t: Tensor, rng: RNG) -> Tensor:
        return prediction_loss(model, x0, t, None, rng)

    return Lesson(net, Preconditioned(net, head), exact, sample, loss)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose first weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def check_training(
    lesson: Lesson,
    *,
    steps: int = 400,
    batch: int = 512,
    first: float = 0.02,
    tolerance: float = 0.08,
    seed: int = 0,
    n: int = 50_000,
) -> float:
    """Law 10: the trained network reaches the perfect model's own loss, within a relative ``tolerance``.

    Times are uniform on [``first``, 1]; data of few points cost nothing near ``t = 0``, where a relative tolerance asks
    too much.  Returns the relative excess of the loss on ``n`` fresh samples, both models at the
    same ones; raises ``AssertionError`` with both numbers, also where the network is better than perfect.
    """
    rng = Stream(seed)
    optimiser = torch.optim.AdamW(lesson.net.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        t = rng.uniform((batch,)) * (1 - first) + first
        loss = lesson.loss(lesson.model, lesson.sample(batch, rng), t, rng).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    fresh = Stream(seed + 1)
    with torch.no_grad():
        x0, t = lesson.sample(n, fresh), fresh.uniform((n,)) * (1 - first) + first
        reached, best = (
            float(lesson.loss(model, x0, t, Stream(seed + 2)).double().mean()) for model in (lesson.model, lesson.exact)
        )
    excess = reached / best - 1
    name = f"{type(lesson.model).__name__} of {getattr(lesson.model, 'head', lesson.model)!r}"
    message = f"{name}: loss {reached:.4f}, the oracle's {best:.4f}, excess {excess:.1%}, tolerance {tolerance:.0%}"
    require(-0.01 < excess < tolerance, "10 training", message)
    return excess

"""Training objectives: unreduced losses of shape ``[b]``; weighting and reduction happen outside.

The contract: draw ``x_t`` from the marginal, form the belief, compare.  :func:`objective` does so for any process in
the process's own discrepancy; :func:`prediction_loss` compares a Gaussian network's raw output with its own target,
which keeps all digits near the data where a detour through ``x0`` would cancel them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Process, Time
from sfumato.denoisers import Preconditioned
from sfumato.errors import Refusal
from sfumato.randomness import as_rng
from sfumato.schedules import at, snr

#: ``(process, t, loss [b]) -> [b]``.
Weight = Callable[[Any, Time, Any], Any]


def objective(
    denoiser: Denoiser[Any],
    process: Process[Any],
    x0: Any,
    t: Tensor,
    cond: Cond | None = None,
    weight: Weight | None = None,
    rng: Any = None,
    end: Any = None,
) -> Any:
    """``weight(process, t, process.loss(belief, x0, x_t, t))`` at ``x_t ~ q(x_t | x0)``; shape ``[b]`` (or per part).

    ``end`` fixes the prior draw that ``x_t`` leads to (a coupling); otherwise ``rng`` is needed.
    """
    x_t = process.marginal(x0, t, end).draw(_source(rng, end))
    loss = process.loss(denoiser(x_t, t, cond), x0, x_t, t)
    return weight(process, t, loss) if weight else loss


def _source(rng: Any, given: Any) -> Any:
    """The rng, which only a given end or given noise makes unnecessary."""
    if rng is None and given is None:
        raise Refusal("a loss draws noise but rng is None; pass a Stream, a torch.Generator or an int seed")
    return None if rng is None else as_rng(rng)


def prediction_loss(
    denoiser: Preconditioned,
    x0: Tensor,
    t: Tensor,
    cond: Cond | None,
    rng: Any = None,
    eps: Tensor | None = None,
    end: Tensor | None = None,
) -> Tensor:
    """``|F - F*|^2`` averaged over coordinates, shape ``[b]``: the mean square error of the network's own target.

    ``x0``: ``[b, ...]`` in model units; ``t``: ``[b]``; ``eps``: given noise in place of a draw from ``rng``; ``end``:
    a given draw of the prior, which is that noise times ``sigma(1)``.  Raises :class:`Refusal` where none is given.
    """
    process = denoiser.head.process
    if end is not None:
        eps = end / at(process.schedule, 1.0)[1]
    noise = process.space.noise(x0, _source(rng, eps)) if eps is None else eps
    alpha, sigma = at(process.schedule, t, x0)
    x_t = alpha * x0 + sigma * noise
    output = denoiser.raw(x_t, t, cond)
    output = output[0] if isinstance(output, tuple) else output
    error: Tensor = (output - denoiser.head.target_from_noise(x0, noise, t)) ** 2
    return error.flatten(1).mean(1)


# ------------------------------------------------------------------------------------------------------- weightings


def min_snr(gamma: float = 5.0) -> Weight:
    """``min(SNR, gamma)`` times the x0-loss (Hang et al. 2023): right for every prediction, since losses are in x0."""

    def weight(process: Any, t: Time, loss: Any) -> Any:
        return torch.as_tensor(snr(process.schedule, t)).clamp(max=gamma).to(loss) * loss

    return weight


def as_prediction(denoiser: Preconditioned) -> Weight:
    """Turns the x0-loss into the (summed) loss of the network's own target."""

    def weight(process: Any, t: Time, loss: Any) -> Any:
        return torch.as_tensor(denoiser.weight(t)).to(loss) * loss

    return weight


def per_part(**weights: Weight) -> Weight:
    """Weights the losses of a product's parts apart and adds them up."""

    def weight(process: Any, t: Time, loss: Any) -> Any:
        return sum(own(process.parts[key], t, loss[key]) for key, own in weights.items())

    return weight

"""Score matching: explicit, denoising and sliced, for any score and any denoiser.

The contract: all three have, up to a constant that the model cannot change, the same expectation over their data, and
so the same gradient:

* **explicit** (Hyvarinen 2005, eq. 2): ``|s(x_t) - grad log p_t(x_t)|^2 / 2``, for data whose score is known;
* **denoising** (Vincent 2011, eq. 9): ``|s(x_t) - grad log q(x_t | x0)|^2 / 2``, with ``grad log q = -eps / sigma``;
* **sliced** (Song et al. 2019, eq. 8-9): ``v' grad(s) v + |s|^2 / 2`` (variance-reduced) or ``v' grad(s) v + (v's)^2
  / 2`` over random ``v`` with ``E v v' = I``: needs samples of ``x_t`` alone.

Losses are unreduced, ``[b]``, in nats per sample, and differentiable in the model's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond, Denoiser, Time
from sfumato.errors import Refusal
from sfumato.likelihood.trace import Hutchinson
from sfumato.randomness import as_rng
from sfumato.schedules import at
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import flat_sum

#: ``(x_t [b, ...], t) -> score [b, ...]``.
Score = Callable[[Tensor, Any], Tensor]


def score_of(denoiser: Denoiser[Any], process: Any, cond: Cond | None = None) -> Score:
    """The score that a denoiser's belief implies: ``(alpha x0hat - x_t) / sigma^2`` (Tweedie's formula)."""

    def score(x_t: Tensor, t: Any) -> Tensor:
        alpha, sigma = at(process.schedule, t, x_t)
        found: Tensor = (alpha * denoiser(x_t, t, cond).point() - x_t) / sigma**2
        return found

    return score


def explicit(
    score: Score, x_t: Float[Tensor, "b ..."], t: Time, true_score: Float[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    """``|s - true_score|^2 / 2`` at ``x_t``, for data whose score is known (an oracle's ``score``)."""
    return flat_sum((score(x_t, t) - true_score) ** 2) / 2


def denoising(
    score: Score, process: Any, x0: Float[Tensor, "b ..."], t: Time, rng: Any = None, eps: Tensor | None = None
) -> Float[Tensor, " b"]:
    """``|s(x_t) + eps / sigma|^2 / 2`` at ``x_t = alpha x0 + sigma eps``; ``eps`` from ``rng`` unless given."""
    if eps is None:
        if rng is None:
            raise Refusal("denoising score matching draws noise but rng is None; pass a Stream or an int seed")
        eps = process.space.noise(x0, as_rng(rng))
    alpha, sigma = at(process.schedule, t, x0)
    return flat_sum((score(alpha * x0 + sigma * eps, t) + eps / sigma) ** 2) / 2


def _slices(score: Score, x_t: Tensor, t: Time, rng: Any, probes: Hutchinson | None) -> tuple[Tensor, Any]:
    """The score ``[b, ...]`` and, for every probe ``v``, the pair ``v, v' grad(s) v [b]``."""
    x = x_t.detach().requires_grad_()
    with torch.enable_grad():
        s = score(x, t)
        directions, _ = (probes or Hutchinson()).probes(x_t, Euclidean(), rng)
        pulled = [(v, torch.autograd.grad(s, x, v, create_graph=True)[0]) for v in directions]
        return s, [(v, flat_sum(pull * v)) for v, pull in pulled]


def sliced(
    score: Score, x_t: Float[Tensor, "b ..."], t: Time, rng: Any, probes: Hutchinson | None = None
) -> Float[Tensor, " b"]:
    """``v' grad(s) v + |s|^2 / 2`` averaged over ``probes`` (one Rademacher probe unless given): SSM-VR, eq. 9."""
    s, slices = _slices(score, x_t, t, rng, probes)
    loss: Tensor = sum(curvature for _, curvature in slices) / len(slices) + flat_sum(s**2) / 2
    return loss


def sliced_plain(
    score: Score, x_t: Float[Tensor, "b ..."], t: Time, rng: Any, probes: Hutchinson | None = None
) -> Float[Tensor, " b"]:
    """``v' grad(s) v + (v's)^2 / 2`` averaged over ``probes``: SSM, eq. 8; noisier, with the same expectation."""
    s, slices = _slices(score, x_t, t, rng, probes)
    loss: Tensor = sum(curvature + flat_sum(v * s) ** 2 / 2 for v, curvature in slices) / len(slices)
    return loss

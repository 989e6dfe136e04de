"""Noise conditional score networks: the scores of a ladder of noise levels, sampled by annealed Langevin dynamics.

Song, Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution",
https://arxiv.org/abs/1907.05600.

* levels, section 4.2: a geometric sequence ``sigma_1 > ... > sigma_L`` with ``alpha = 1``; here ``sigma(k / L)``;
* loss, eq. 5 and 6: ``E sigma^2 |s(x, sigma) + (x - x0) / sigma^2|^2`` over the levels, all equally likely
  (``lambda(sigma) = sigma^2``; the factor 1/2 is left out).  The network states the score itself and knows its level;
* sampling, algorithm 1: ``langevin`` with the step size ``eps sigma_i^2 / sigma_L^2``, no denoising at the end.

Published: 10 levels from 1 to .01 and 100 steps a level of ``eps`` 2e-5, on pixels in [0, 1].  Here the pixels have
standard deviation .5 (MNIST's in [0, 1]: .31), so the levels are 1.6 times those; 20 steps a level, at the same
``eps / sigma_L^2``, are 200 evaluations.  The input of the network is scaled to unit variance, as in all recipes.
Sampling visits every level: ``sampling_steps`` is ``levels`` unless given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from sfumato.core import Cond
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.recipes.recipe import Recipe
from sfumato.schedules import at
from sfumato.training.composition import Composition
from sfumato.training.ladders import Ladder
from sfumato.training.objectives import prediction_loss
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling


@final
@dataclass(frozen=True)
class Settings:
    """``sigma_max``, ``sigma_min``, ``levels``: see :class:`~sfumato.training.ladders.Ladder`."""

    ladder: Ladder = Ladder(sigma_max=1.6, sigma_min=0.016, levels=10)
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(
        sampler="langevin:steps=20:size=0.1:denoise=false", grid="uniform", sampling_steps=10, guidance=1.0, clip=False
    )
    reporting: Reporting = Reporting(reports=4)


def settle(given: Mapping[str, Any]) -> Settings:
    """The defaults: sampling visits every level.  A step is a share of its level's variance, whatever the ladder."""
    defaults = Settings()
    ladder = defaults.ladder.given(given)
    return replace(defaults, ladder=ladder, sampling=replace(defaults.sampling, sampling_steps=ladder.levels))


def weighted_score_matching(
    denoiser: Preconditioned,
    x0: Tensor,
    t: Tensor,
    cond: Cond | None,
    rng: Any = None,
    eps: Tensor | None = None,
    end: Tensor | None = None,
) -> Tensor:
    """``sigma^2 |s + eps / sigma|^2`` averaged over coordinates, ``[b]`` (eq. 6): of one size at every level."""
    _, sigma = at(denoiser.head.process.schedule, t)
    loss: Tensor = sigma.to(x0) ** 2 * prediction_loss(denoiser, x0, t, cond, rng, eps, end)
    return loss


def compose(settings: Settings, net: Any) -> Composition:
    """The ladder, a network that states the score, a uniform level, and denoising score matching by eq. 6."""
    head = GaussianHead(settings.ladder.process, "score", sigma_data=0.5)
    return Composition(Preconditioned(net, head), settings.ladder.times, weighted_score_matching)


RECIPE = Recipe(
    name="ncsn",
    title="noise conditional score network: a ladder of levels, annealed Langevin dynamics",
    paper="Song and Ermon 2019, arXiv 1907.05600",
    defaults=Settings(),
    compose=compose,
    settle=settle,
)

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from sfumato import schedules
from sfumato.core import Cond
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.schedules import at
from sfumato.training.composition import Composition
from sfumato.training.objectives import prediction_loss
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import Steps


@final
@dataclass(frozen=True)
class Settings:
    """``sigma_max``, ``sigma_min``, ``levels``: the geometric ladder, in model units."""

    sigma_max: float = 1.6
    sigma_min: float = 0.016
    levels: int = 10
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(
        sampler="langevin:steps=20:size=0.1:denoise=false", grid="uniform", sampling_steps=10, guidance=1.0, clip=False
    )
    reporting: Reporting = Reporting(reports=4)

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "a number between 0 and sigma_max")
        require(self.levels >= 2, "levels", self.levels, "at least 2")


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
    ladder = schedules.get("levels", sigma_max=settings.sigma_max, sigma_min=settings.sigma_min, count=settings.levels)
    head = GaussianHead(Gaussian(ladder), "score", sigma_data=0.5)
    return Composition(Preconditioned(net, head), Steps(settings.levels), weighted_score_matching)


RECIPE = Recipe(
    name="ncsn",
    title="noise conditional score network: a ladder of levels, annealed Langevin dynamics",
    paper="Song and Ermon 2019, arXiv 1907.05600",
    defaults=Settings(),
    compose=compose,
)

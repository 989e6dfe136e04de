"""The variance-exploding SDE: a geometric ladder of noise in continuous time, sampled by predictor and corrector.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations", https://arxiv.org/abs/2011.13456.

* forward SDE, eq. 9: ``dx = sqrt(d sigma^2/dt) dw`` with ``sigma(t) = sigma_min (sigma_max / sigma_min)^t`` (appendix
  C), whose transition (eq. 29) is ``alpha = 1`` and variance ``sigma(t)^2 - sigma(0)^2``: schedule ``geometric``;
* loss, eq. 7 with ``lambda(t) = sigma^2`` at ``t`` uniform on [1e-5, 1]; ``sigma_max`` near the largest distance
  between two data (technique 1 of Song and Ermon 2020);
* sampling: a Langevin corrector, then an ancestral step (eq. 47), at every level (algorithm 1): ``pc``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.networks import AnyNetwork
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import Uniform


@final
@dataclass(frozen=True)
class Settings:
    """``sigma_min``, ``sigma_max``: the ends of the ladder; ``first_time``: training times begin there."""

    sigma_min: float = 0.01
    sigma_max: float = 20.0
    first_time: float = 1e-5
    network: AnyNetwork = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="pc", grid="uniform", sampling_steps=40, guidance=1.5)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "a number between 0 and sigma_max")
        require(0 < self.first_time < 1, "first_time", self.first_time, "a time between 0 and 1")


def compose(settings: Settings, net: Any) -> Composition:
    """The SDE's transition, a network that states the score (as ``eps``), uniform times."""
    process = Gaussian(schedules.get("geometric", sigma_min=settings.sigma_min, sigma_max=settings.sigma_max))
    return Composition(Preconditioned(net, GaussianHead(process, "eps")), Uniform(settings.first_time))


RECIPE = Recipe(
    name="ve-sde",
    title="variance-exploding SDE: a geometric ladder, predictor and corrector",
    paper="Song et al. 2021, arXiv 2011.13456",
    defaults=Settings(),
    compose=compose,
    also=("table", "series"),
)

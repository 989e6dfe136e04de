"""The sub-VP SDE: the drift of the VP SDE with less noise, for better likelihoods.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations", https://arxiv.org/abs/2011.13456.

* forward SDE, eq. 12: ``dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 B(t)))) dw``, whose transition (eq. 29) is
  ``alpha = exp(-B/2)``, ``sigma = 1 - exp(-B)``: the variance ``(1 - exp(-B))^2`` never exceeds that of VP; schedule
  ``sub-vp``;
* loss: eq. 7 with ``lambda(t) = sigma^2`` at ``t`` uniform on [1e-5, 1];
* sampling: the probability-flow ODE (eq. 13) by a black-box adaptive solver (section 4.3, appendix D.4), which also
  gives the likelihood.
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
from sfumato.training.sde import Rate
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling


@final
@dataclass(frozen=True)
class Settings:
    """``beta_min``, ``beta_max``, ``first_time``: see :class:`~sfumato.training.sde.Rate`."""

    rate: Rate = Rate()
    network: AnyNetwork = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="rk45:rtol=0.01:atol=0.01", grid="uniform", sampling_steps=4, guidance=1.5)
    reporting: Reporting = Reporting()


def compose(settings: Settings, net: Any) -> Composition:
    """The SDE's transition, a network that states the score (as ``eps``), uniform times."""
    process = Gaussian(schedules.get("sub-vp", beta_min=settings.rate.beta_min, beta_max=settings.rate.beta_max))
    return Composition(Preconditioned(net, GaussianHead(process, "eps")), settings.rate.times)


RECIPE = Recipe(
    name="subvp-sde",
    title="sub-VP SDE: less noise than VP, for likelihoods",
    paper="Song et al. 2021, arXiv 2011.13456",
    defaults=Settings(),
    compose=compose,
    also=("table", "series"),
)

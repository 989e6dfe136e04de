"""The variance-preserving SDE: score matching in continuous time, sampled by the reverse-time SDE.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, "Score-Based Generative Modeling through Stochastic
Differential Equations", https://arxiv.org/abs/2011.13456.

* forward SDE, eq. 11: ``dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw``, ``beta`` linear from 0.1 to 20 (appendix C), whose
  transition (eq. 29) is ``alpha = exp(-B/2)``, ``sigma^2 = 1 - exp(-B)``, ``B`` the integral of ``beta``: schedule
  ``vp``;
* loss, eq. 7 with ``lambda(t) = sigma^2``: denoising score matching at ``t`` uniform on [1e-5, 1]; the network states
  ``eps = -sigma score``, so it is the plain error of ``eps``;
* sampling: Euler-Maruyama on the reverse SDE (eq. 6).
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
    sampling: Sampling = Sampling(sampler="euler-maruyama", grid="uniform-logsnr", sampling_steps=60, guidance=1.5)
    reporting: Reporting = Reporting()


def compose(settings: Settings, net: Any) -> Composition:
    """The SDE's transition, a network that states the score (as ``eps``), uniform times."""
    process = Gaussian(schedules.get("vp", beta_min=settings.rate.beta_min, beta_max=settings.rate.beta_max))
    return Composition(Preconditioned(net, GaussianHead(process, "eps")), settings.rate.times)


RECIPE = Recipe(
    name="vp-sde",
    title="variance-preserving SDE: score matching in continuous time",
    paper="Song et al. 2021, arXiv 2011.13456",
    defaults=Settings(),
    compose=compose,
    also=("table", "series"),
)

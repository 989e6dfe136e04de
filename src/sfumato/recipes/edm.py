"""EDM: the preconditioned denoiser of Karras et al.

Karras, Aittala, Aila, Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
https://arxiv.org/abs/2206.00364.

* process: ``x = x0 + sigma eps`` (``alpha = 1``), ``sigma = 80 t^7`` so that even steps of ``t`` are eq. 5's grid;
* preconditioning, eq. 7 and table 1: ``D = c_skip x + c_out F(c_in x, t)`` with ``sigma_data = 0.5``;
* loss, eq. 8: ``lambda(sigma) c_out^2 = 1``, that is the plain mean square error of ``F``; levels ``ln sigma ~ N(-1.2,
  1.2^2)``;
* sampling: Heun's method (algorithm 1) on eq. 5's grid, or DPM-Solver++(2M).

The network sees ``t = (sigma / 80)^(1/7)`` in place of ``ln(sigma) / 4``; both are monotone in the noise level.
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
from sfumato.training.times import LogNormalSigma
from sfumato.training.weightings import OWN, weighted


@final
@dataclass(frozen=True)
class Settings:
    """``sigma_data``: the data's standard deviation in model units; ``P_mean``, ``P_std``: the law of ``ln sigma``;
    ``weighting``: of the loss over noise levels (:mod:`sfumato.training.weightings`), the network's own unless given.
    """

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_max: float = 80.0
    weighting: str = OWN
    network: AnyNetwork = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="heun", grid="karras", sampling_steps=10, guidance=2.0, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        weighted(self.weighting)  # refuses what is unknown
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "a positive number")
        require(self.p_std > 0, "p_std", self.p_std, "a positive number")
        require(self.sigma_max > 0, "sigma_max", self.sigma_max, "a positive number")


def compose(settings: Settings, net: Any) -> Composition:
    """The variance-exploding process, the preconditioned network, and log-normal noise levels."""
    schedule = schedules.get("karras", sigma_max=settings.sigma_max)
    head = GaussianHead(Gaussian(schedule), "edm", settings.sigma_data)
    times = LogNormalSigma(schedule, settings.p_mean, settings.p_std)
    return Composition(Preconditioned(net, head), times, weighted(settings.weighting))


RECIPE = Recipe(
    name="edm",
    title="EDM: preconditioned denoiser, log-normal noise levels",
    paper="Karras et al. 2022, arXiv 2206.00364",
    defaults=Settings(),
    compose=compose,
    also=("table", "series"),
)

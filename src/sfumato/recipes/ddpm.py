"""Denoising diffusion probabilistic models.

Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239.

* forward process, eq. 4: ``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps``, betas linear from 1e-4 to 0.02
  over 1000 steps; here a table read at ``t = k / 1000``;
* loss, eq. 14 (``L_simple``): ``E |eps - eps_theta(x_t, t)|^2`` with ``k`` uniform on 1..1000, which is the
  ``"steps"`` law of times;
* sampling: algorithm 2 is ``--sampler ddpm`` (1000 steps); the default is DPM-Solver++(2M) (Lu et al. 2022) on a few
  steps of the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose
from sfumato.training.times import Steps, TimeLaw, Uniform
from sfumato.training.weightings import OWN, weighted


@final
@dataclass(frozen=True)
class Settings:
    """``schedule``: any of ``sfumato list schedules``; ``prediction``: what the network outputs; ``time_law``: steps or
    uniform; ``weighting``: of the loss over noise levels (:mod:`sfumato.training.weightings`), the network's own unless
    given."""

    schedule: str = "linear"
    prediction: str = "eps"
    time_law: str = "steps"
    weighting: str = OWN
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="dpmpp-2m", grid="uniform-logsnr", sampling_steps=20, guidance=2.0)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        weighted(self.weighting)  # refuses what is unknown
        choose("schedule", self.schedule, schedules.names())
        choose("time_law", self.time_law, ("steps", "uniform"))


def compose(settings: Settings, net: Any) -> Composition:
    """The table's process, a network that predicts the noise, and a uniform step."""
    schedule = schedules.get(settings.schedule)
    laws: dict[str, TimeLaw] = {"steps": Steps(getattr(schedule, "steps", 1000)), "uniform": Uniform()}
    return Composition(
        Preconditioned(net, GaussianHead(Gaussian(schedule), settings.prediction)),
        laws[settings.time_law],
        weighted(settings.weighting),
    )


RECIPE = Recipe(
    name="ddpm",
    title="denoising diffusion: linear betas, noise prediction",
    paper="Ho et al. 2020, arXiv 2006.11239",
    defaults=Settings(),
    compose=compose,
)

"""Denoising diffusion probabilistic models.

Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239.

* forward process, eq. 4: ``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps``, betas linear from 1e-4 to 0.02
  over 1000 steps; here a table read at ``t = k / 1000``.  ``schedule`` takes its followers', too: ``scaled-linear``
  (Rombach et al. 2022), ``cosine`` (Nichol and Dhariwal 2021), ``sigmoid`` (Jabri et al. 2022), with settings of their
  own as in ``cosine:steps=250``;
* loss, eq. 14 (``L_simple``): ``E |eps - eps_theta(x_t, t)|^2`` with ``k`` uniform on 1..1000, which is the
  ``"steps"`` law of times;
* sampling: algorithm 2 is ``--sampler ddpm`` (1000 steps); the default is DPM-Solver++(2M) (Lu et al. 2022) on a few
  steps of the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules, spec
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.networks import AnyNetwork
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose
from sfumato.training.times import Steps, TimeLaw, Uniform
from sfumato.training.weightings import OWN, weighted


@final
@dataclass(frozen=True)
class Settings:
    """``schedule``: any of ``sfumato list schedules``, its settings as in ``name:key=value``; ``prediction``: what the
    network outputs; ``time_law``: steps (of the schedule's table, else 1000) or uniform; ``weighting``: of the loss
    over noise levels (:mod:`sfumato.training.weightings`), the network's own unless given."""

    schedule: str = "linear"
    prediction: str = "eps"
    time_law: str = "steps"
    weighting: str = OWN
    network: AnyNetwork = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="dpmpp-2m", grid="uniform-logsnr", sampling_steps=20, guidance=2.0)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        weighted(self.weighting)  # refuses what is unknown
        read(self.schedule)  # refuses what is unknown
        choose("time_law", self.time_law, ("steps", "uniform"))


def read(text: str) -> schedules.Schedule:
    """The schedule that a text such as ``"sigmoid:tau=0.7"`` describes; raises :class:`Refusal` where it is none."""

    def fixed(name: str) -> Callable[..., schedules.Schedule]:
        choose("schedule", name, schedules.names())
        return schedules.registry.builder(name)

    name, own = spec.parse("schedule", text, fixed)
    return schedules.get(name, **own)


def compose(settings: Settings, net: Any) -> Composition:
    """The schedule's process, a network that predicts the noise, and a uniform step."""
    schedule = read(settings.schedule)
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
    also=("table", "series"),
)

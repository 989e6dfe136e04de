"""Improved denoising diffusion: cosine betas, a learned variance, the hybrid objective, loss-aware steps.

Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2102.09672.

* forward process, eq. 17: ``alpha_bar = cos^2((t + 0.008) / 1.008 pi / 2)`` over 1000 steps, betas at most 0.999;
* variance, eq. 15: ``exp(u log beta + (1 - u) log beta~)``, ``u`` from a second half of the network's channels, as a
  Normal belief about the clean image (:mod:`sfumato.training.hybrid`);
* loss, eq. 16: ``L_simple + 0.001 L_vlb``, the bound's gradient kept from the mean; ``objective=vlb`` trains the bound
  itself, with the step drawn by the history of its losses (section 3.3), which the paper found to help this loss alone;
* sampling: ancestral steps of the learned variance, the last of which returns the mean, ``--sampler ddpm:last=point``;
  fewer steps use the same beliefs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.nets.bundle import Bundle
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.grey import GreyLevels, note
from sfumato.training.hybrid import Hybrid, LearnedRange, LossHistory, StepBound
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose, idle, require
from sfumato.training.times import Steps


@final
@dataclass(frozen=True)
class Settings:
    """``schedule``: cosine or linear, of ``table_steps`` steps; ``objective``: hybrid (with ``vlb_weight``) or vlb."""

    schedule: str = "cosine"
    table_steps: int = 1000
    objective: str = "hybrid"
    vlb_weight: float = idle(0.001, objective="vlb")
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="ddpm:last=point", grid="uniform", sampling_steps=50, guidance=2.0)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        choose("schedule", self.schedule, ("cosine", "linear"))
        choose("objective", self.objective, ("hybrid", "vlb"))
        require(self.table_steps >= 2, "table_steps", self.table_steps, "at least 2")
        require(self.vlb_weight > 0, "vlb_weight", self.vlb_weight, "a positive number")


def wrap(settings: Settings, net: Any) -> Bundle:
    """The network with its history of losses and where black and white lie."""
    return Bundle(net, history=LossHistory(settings.table_steps), grey=GreyLevels())


def compose(settings: Settings, net: Any) -> Composition:
    """The cosine table's process, a network of noise and variance, and the chosen objective at a uniform step."""
    schedule, steps = schedules.get(settings.schedule, steps=settings.table_steps), settings.table_steps
    denoiser = Preconditioned(LearnedRange(net, schedule, steps), GaussianHead(Gaussian(schedule), "eps"))
    if settings.objective == "vlb":
        return Composition(denoiser, Steps(steps), StepBound(steps, net.history, net.grey))
    return Composition(denoiser, Steps(steps), Hybrid(StepBound(steps, grey=net.grey), settings.vlb_weight))


RECIPE = Recipe(
    name="improved-ddpm",
    title="improved denoising diffusion: cosine betas, learned variance",
    paper="Nichol and Dhariwal 2021, arXiv 2102.09672",
    defaults=Settings(),
    compose=compose,
    outputs=2,
    wrap=wrap,
    begin=note,
)

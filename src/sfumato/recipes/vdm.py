"""Variational diffusion models: likelihood training with a learned noise schedule.

Kingma, Salimans, Poole, Ho 2021, "Variational Diffusion Models", https://arxiv.org/abs/2107.00630.

* schedule (section 3.2, appendix H): ``gamma = -log SNR`` is a monotone network with learned ends, trained with the
  denoiser; its ends descend the bound, its shape the variance of the bound's estimate (appendix I.2);
* loss (eq. 11): the bound in bits/dim, in continuous time ``E gamma'(u) |eps - eps_theta|^2 / 2`` (eq. 17) plus the
  prior's and the decoder's terms over the 256 grey levels (eq. 8); times spread evenly over a batch (appendix I.1,
  ``low_discrepancy``);
* network: predicts the noise, sees Fourier features of its input in units of grey levels (appendix C) and the noise
  level in place of the time;
* sampling: any sampler of a Gaussian process; the schedule's ``u = 0`` is ``t = 0.001``, below which a ramp leads to
  the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.schedules import Learned
from sfumato.training.composition import Composition
from sfumato.training.grey import GreyLevels, note
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import Uniform
from sfumato.training.variational import FREQUENCIES, BitsPerDim, VariationalNet

#: Times below this belong to the ramp; the bound integrates over the rest.
FIRST = 1e-3


@final
@dataclass(frozen=True)
class Settings:
    """``gamma_0``, ``gamma_1``: the negative log-SNR at the ends of the schedule, where training starts."""

    gamma_0: float = -13.3
    gamma_1: float = 5.0
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="ddpm", grid="uniform-logsnr", sampling_steps=50, guidance=2.0)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        require(self.gamma_0 < self.gamma_1, "gamma_0", self.gamma_0, "a number below gamma_1")


def wrap(settings: Settings, net: Any) -> VariationalNet:
    """The network with its schedule and where the grey levels lie."""
    return VariationalNet(net, Learned(settings.gamma_0, settings.gamma_1, first=FIRST), GreyLevels())


def compose(settings: Settings, net: Any) -> Composition:
    """The process of the learned schedule, noise prediction, and the bound at uniform times."""
    head = GaussianHead(Gaussian(net.schedule), "eps")
    return Composition(Preconditioned(net, head), Uniform(FIRST), BitsPerDim())


RECIPE = Recipe(
    name="vdm",
    title="variational diffusion: learned schedule, the bound in bits/dim",
    paper="Kingma et al. 2021, arXiv 2107.00630",
    defaults=Settings(),
    compose=compose,
    inputs=1 + 2 * len(FREQUENCIES),
    wrap=wrap,
    begin=note,
)

"""NCSNv2: the score network of Song and Ermon with its noise levels, step size and network chosen by theory.

Song, Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", https://arxiv.org/abs/2006.09011.

* techniques 1, 2 and 4: the largest level is the largest distance between two data (25.4 among 6000 digits of MNIST at
  standard deviation .5), neighbouring levels overlap, and the Langevin step fits their number and the steps a level:
  see :mod:`sfumato.training.ladders`;
* technique 3: the network does not know its level, ``s(x, sigma) = s(x) / sigma`` (:class:`NoiseBlind`);
* technique 5: samples come from an average of the weights, here the power-function average of all recipes;
* loss, eq. 2 with ``lambda = sigma^2``: ``E |s(x) + eps|^2`` over the levels, all equally likely;
* sampling, algorithm 1 and section 3.4: ``langevin``, and a denoising step at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato import schedules
from sfumato.core import Cond
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import Steps


@final
@dataclass(frozen=True)
class Settings:
    """``sigma_max``, ``sigma_min``, ``levels``: the geometric ladder, in model units."""

    sigma_max: float = 25.0
    sigma_min: float = 0.016
    levels: int = 94
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(
        sampler="langevin:steps=2:size=0.136", grid="uniform", sampling_steps=94, guidance=1.0, clip=False
    )
    reporting: Reporting = Reporting(reports=4, grid_steps=40)

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "a number between 0 and sigma_max")
        require(self.levels >= 2, "levels", self.levels, "at least 2")


@final
class NoiseBlind(nn.Module):
    """Technique 3 around a network: it is shown ``x`` itself and no time, and its output is ``s(x)``."""

    def __init__(self, net: Any, head: GaussianHead) -> None:
        super().__init__()
        self.net, self.head = net, head

    @property
    def compute_dtype(self) -> torch.dtype:
        """The network's."""
        dtype: torch.dtype = self.net.compute_dtype
        return dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.net.compute_dtype = dtype

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """``eps = -s(x)`` at the state ``x`` before its scaling, ``[b, ...]``."""
        unscaled = x / self.head.input_scale(t, x)
        output: Tensor = self.net(unscaled, torch.zeros_like(t), cond)
        return -output


def head_of(settings: Settings) -> GaussianHead:
    """The ladder and what the network states: ``eps``, which is ``-s(x)``."""
    ladder = schedules.get("levels", sigma_max=settings.sigma_max, sigma_min=settings.sigma_min, count=settings.levels)
    return GaussianHead(Gaussian(ladder), "eps", sigma_data=0.5)


def wrap(settings: Settings, net: Any) -> NoiseBlind:
    """The network without knowledge of its level."""
    return NoiseBlind(net, head_of(settings))


def compose(settings: Settings, net: Any) -> Composition:
    """The ladder, the noise-blind network that :func:`wrap` made, a uniform level."""
    return Composition(Preconditioned(net, head_of(settings)), Steps(settings.levels))


RECIPE = Recipe(
    name="ncsnv2",
    title="NCSNv2: a ladder of levels by theory, a network that does not know its level",
    paper="Song and Ermon 2020, arXiv 2006.09011",
    defaults=Settings(),
    compose=compose,
    wrap=wrap,
)

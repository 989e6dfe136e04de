"""NCSNv2: the score network of Song and Ermon with its noise levels, step size and network chosen by theory.

Song, Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", https://arxiv.org/abs/2006.09011.

* techniques 1, 2 and 4: the largest level is the largest distance between two data (25.4 among 6000 digits of MNIST at
  standard deviation .5), neighbouring levels overlap by half, and the Langevin step fits their number and the steps a
  level: see :mod:`sfumato.training.ladders`.  Where an end is given the number of levels follows from it, and with any
  of the three do the levels, steps and step size of sampling, unless they are given, too;
* technique 3: the network does not know its level, ``s(x, sigma) = s(x) / sigma`` (:class:`NoiseBlind`), which takes
  more steps a level than technique 4 alone says (:func:`~sfumato.training.ladders.blind_steps`): 5, as published;
* technique 5: samples come from an average of the weights, here the power-function average of all recipes;
* loss, eq. 2 with ``lambda = sigma^2``: ``E |s(x) + eps|^2`` over the levels, all equally likely;
* sampling, algorithm 1 and section 3.4: ``langevin``, and a denoising step at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.core import Cond
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.nets.delegated import Delegated
from sfumato.nets.energy import energy_of
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.ladders import Ladder, blind_steps, langevin_size, level_count
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling

#: Technique 2 asks how many coordinates the data has: those of MNIST.
DIMENSION = 28 * 28


@final
@dataclass(frozen=True)
class Settings:
    """``sigma_max``, ``sigma_min``, ``levels``: see :class:`~sfumato.training.ladders.Ladder`."""

    ladder: Ladder = Ladder(sigma_max=25.0, sigma_min=0.016, levels=94)
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(
        sampler="langevin:steps=5:size=0.111", grid="uniform", sampling_steps=94, guidance=1.0, clip=False
    )
    reporting: Reporting = Reporting(reports=4, grid_steps=40)


def settle(given: Mapping[str, Any]) -> Settings:
    """The defaults: levels by technique 2, Langevin steps by techniques 3 and 4, and sampling visits every level."""
    defaults = Settings()
    ladder = defaults.ladder.given(given)
    if "levels" not in given:
        ladder = replace(ladder, levels=max(2, level_count(ladder.sigma_max, ladder.sigma_min, DIMENSION)))
    steps = blind_steps(ladder.sigma_max, ladder.sigma_min, ladder.levels)
    size = langevin_size(ladder.sigma_max, ladder.sigma_min, ladder.levels, steps)
    sampler = f"langevin:steps={steps}:size={size:.3g}"
    sampling = replace(defaults.sampling, sampler=sampler, sampling_steps=ladder.levels)
    return replace(defaults, ladder=ladder, sampling=sampling)


@final
class NoiseBlind(nn.Module):
    """Technique 3 around a network: it is shown ``x`` itself and no time, and its output is ``s(x)``."""

    compute_dtype = Delegated("net")

    def __init__(self, net: Any, head: GaussianHead) -> None:
        super().__init__()
        self.net, self.head = net, head

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """``eps = -s(x)`` at the state ``x`` before its scaling, ``[b, ...]``."""
        unscaled = x / self.head.input_scale(t, x)
        output: Tensor = self.net(unscaled, torch.zeros_like(t), cond)
        return -output

    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """``-c E(x / c)`` for the input's scale ``c``, whose gradient in ``x`` is ``-grad E(x / c)``, the output."""
        scale = self.head.input_scale(t, x)
        inner = energy_of(self.net, x / scale, torch.zeros_like(t), cond)
        found: Tensor = -scale.flatten(1)[:, 0] * inner
        return found


def head_of(settings: Settings) -> GaussianHead:
    """The ladder and what the network states: ``eps``, which is ``-s(x)``."""
    return GaussianHead(settings.ladder.process, "eps", sigma_data=0.5)


def wrap(settings: Settings, net: Any) -> NoiseBlind:
    """The network without knowledge of its level."""
    return NoiseBlind(net, head_of(settings))


def compose(settings: Settings, net: Any) -> Composition:
    """The ladder, the noise-blind network that :func:`wrap` made, a uniform level."""
    return Composition(Preconditioned(net, head_of(settings)), settings.ladder.times)


RECIPE = Recipe(
    name="ncsnv2",
    title="NCSNv2: a ladder of levels by theory, a network that does not know its level",
    paper="Song and Ermon 2020, arXiv 2006.09011",
    defaults=Settings(),
    compose=compose,
    wrap=wrap,
    settle=settle,
)

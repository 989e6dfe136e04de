"""Inverse heat dissipation: images made by reversing the heat equation, coarse to fine.

Rissanen, Heinonen, Solin 2022, "Generative Modelling With Inverse Heat Dissipation",
https://arxiv.org/abs/2206.13397.

* process: a blur of ``sigma_B`` pixels, ``levels`` widths from ``least`` to ``greatest`` evenly spaced in their log,
  and noise ``sigma`` at every level;
* loss: the squared error of the slightly less blurred image, ``|A_s (x0hat - x0)|^2``, at the levels themselves; the
  network adds to its input what that lacks, and sees it beside its deconvolution;
* sampling: ``x_s = A_s x0hat + delta eps`` level by level, the last without noise; ``delta`` a little above ``sigma``;
* prior: a blurred training image with noise ``delta``.

The defaults of ``sigma`` and ``delta`` are the paper's .01 and .0125 for images in [0, 1], in the units of standardised
MNIST, where black and white lie 1.6 apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato.denoisers.restorers import RestorationLoss, heat_restorer
from sfumato.nets.bundle import Bundle
from sfumato.processes.fitted import kernel_prior
from sfumato.processes.heat import Heat, Widths
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.priors import state_shape, training_images
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import Steps


@final
@dataclass(frozen=True)
class Settings:
    """``least``, ``greatest``, ``levels``: the blur in pixels; ``sigma``, ``delta``: noise of a level and of a step;
    ``points``, ``directions``: images of the prior, and the principal directions that they are stored in."""

    least: float = 0.5
    greatest: float = 20.0
    levels: int = 100
    sigma: float = 0.016
    delta: float = 0.02
    points: int = 4096
    directions: int = 16
    network: Network = Network()
    optimisation: Optimisation = Optimisation(precision="float32")
    sampling: Sampling = Sampling(sampler="ddpm:last=point", grid="uniform", sampling_steps=100, clip=False)
    reporting: Reporting = Reporting(grid_steps=50)

    def __post_init__(self) -> None:
        Heat(Widths(self.least, self.greatest, self.levels), self.sigma, self.delta)  # refuses what does not fit
        require(self.points >= 1, "points", self.points, "at least 1 image")
        require(self.directions >= 1, "directions", self.directions, "at least 1")


def wrap(settings: Settings, net: Any) -> Bundle:
    """The network and the prior, which is stored with it."""
    return Bundle(net, prior=kernel_prior(state_shape(net), settings.directions, settings.points, settings.delta))


def compose(settings: Settings, net: Any) -> Composition:
    """Blur and noise with the fitted prior, and a network that restores."""
    widths = Widths(settings.least, settings.greatest, settings.levels)
    process = Heat(widths, settings.sigma, settings.delta, net.prior)
    return Composition(heat_restorer(net, process), Steps(settings.levels), RestorationLoss())


def begin(model: Any, data: Any) -> None:
    """Keep blurred training images for the prior."""
    x0, label, seed = training_images(model, data)
    model.net.prior.fit_kernels(model.process.blurred(x0, 1.0), label, seed)


RECIPE = Recipe(
    name="heat",
    title="inverse heat dissipation: from a blur to an image, coarse to fine",
    paper="Rissanen et al. 2022, arXiv 2206.13397",
    defaults=Settings(),
    compose=compose,
    inputs=2,
    wrap=wrap,
    begin=begin,
)

"""Cold diffusion: restore what was blurred, pixelated, masked or faded, and generate by restoring nothing but a guess.

Bansal, Borgnia, Chu, Li, Kazemi, Huang, Goldblum, Geiping, Goldstein 2022, "Cold Diffusion: Inverting Arbitrary Image
Transforms Without Noise", https://arxiv.org/abs/2208.09392.

* process: ``x_t = D(x0, t)`` without any noise; ``degradation`` names ``D`` (:mod:`sfumato.degradations`);
* loss (section 3.1): ``|R(x_t, t) - x0|``, the L1 norm; the network adds to its input what that lacks, and sees a
  blurred image beside its deconvolution;
* sampling: algorithm 2, ``x_s = x_t - D(x0hat, t) + D(x0hat, s)``; ``algorithm=naive`` is algorithm 1;
* prior (section 5.2): a Gaussian mixture fitted to the degraded training images, here one for every class in a few
  principal directions, with a little noise that breaks the symmetry.  Sampling carries that noise along, so the
  network is trained with it; ``noise=0`` trains and starts without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from sfumato import degradations
from sfumato.denoisers.restorers import RestorationLoss, channels_seen, cold_restorer
from sfumato.nets.bundle import Bundle
from sfumato.processes.cold import Cold, Step, improved, naive
from sfumato.processes.fitted import mixture_prior
from sfumato.recipes.networks import image_net
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.priors import state_shape, training_images
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose, require
from sfumato.training.times import Uniform

ALGORITHMS: dict[str, Step] = {"improved": improved, "naive": naive}


@final
@dataclass(frozen=True)
class Settings:
    """``degradation``: as ``blur:width=6``; ``algorithm``: improved (2) or naive (1).

    The prior: ``components`` Gaussians a class in ``directions`` principal directions, and ``noise`` in every pixel.
    """

    degradation: str = "blur:width=6"
    algorithm: str = "improved"
    components: int = 4
    directions: int = 24
    noise: float = 0.01
    network: Network = Network()
    optimisation: Optimisation = Optimisation(precision="float32")
    sampling: Sampling = Sampling(sampler="ddim", grid="uniform", sampling_steps=30)
    reporting: Reporting = Reporting(grid_steps=20)

    def __post_init__(self) -> None:
        degradations.build(self.degradation)  # refuses what is unknown
        choose("algorithm", self.algorithm, ALGORITHMS)
        require(self.components >= 1, "components", self.components, "at least 1 a class")
        require(self.directions >= 1, "directions", self.directions, "at least 1")
        require(0 <= self.noise < float("inf"), "noise", self.noise, "0 or more")


def make(recipe: Recipe, settings: Settings, spec: Mapping[str, Any], classes: tuple[str, ...]) -> Any:
    """The network, with as many channels as it is shown."""
    seen = channels_seen(degradations.build(settings.degradation))
    return image_net(replace(recipe, inputs=seen), settings, spec, classes)


def wrap(settings: Settings, net: Any) -> Bundle:
    """The network and the prior, which is stored with it."""
    classes = net.settings["classes"] or 1
    return Bundle(
        net, prior=mixture_prior(state_shape(net), settings.directions, settings.components, classes, settings.noise)
    )


def compose(settings: Settings, net: Any) -> Composition:
    """The degradation with its fitted prior, and a network that restores."""
    process = Cold(degradations.build(settings.degradation), net.prior, ALGORITHMS[settings.algorithm])
    return Composition(cold_restorer(net, process, settings.noise), Uniform(), RestorationLoss(settings.noise))


def begin(model: Any, data: Any) -> None:
    """Fit the prior to the degraded training images."""
    x0, label, seed = training_images(model, data)
    model.net.prior.fit_mixture(model.process.degrade(x0, 1.0), label, seed, len(model.classes) or None)


RECIPE = Recipe(
    name="cold",
    title="cold diffusion: restore a blurred or masked image, no noise at all",
    paper="Bansal et al. 2022, arXiv 2208.09392",
    defaults=Settings(),
    compose=compose,
    make=make,
    wrap=wrap,
    begin=begin,
)

"""Latent diffusion of text: an autoencoder's latents, denoised along the straight path.

Lovelace et al. 2023, "Latent Diffusion for Language Generation", https://arxiv.org/abs/2212.09462 (the idea: a language
autoencoder's compact latents, continuous diffusion between its two ends);
Rombach et al. 2022, https://arxiv.org/abs/2112.10752 (the same for images).

* codec: ``group`` tokens share a latent of ``latent`` numbers of unit mean square; the decoder reads noisy latents;
* process: the straight path of rectified flow on latents, velocity prediction;
* loss: the decoder's cross-entropy plus the velocity's square error, whose gradient does not reach the encoder: one run
  trains both ends and what lies between;
* sampling: an ODE solver on latents, then the decoder's likeliest tokens.  No likelihood is stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.embedded import LatentCodec, LatentLoss, LatentNet
from sfumato.training.settings import Optimisation, Reporting, Sampling, require
from sfumato.training.text import OPTIMISATION, Reading, TextNetwork, embedding_net, vocabulary
from sfumato.training.times import Uniform


@final
@dataclass(frozen=True)
class Settings:
    """``group``: tokens that share a latent, a divisor of ``length``; ``latent``: numbers of a latent; ``blur``: noise
    on the latents that the decoder learns from; ``coder_depth``: layers of the encoder and of the decoder."""

    group: int = 4
    latent: int = 48
    blur: float = 0.3
    coder_depth: int = 2
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = Sampling(sampler="heun", grid="uniform", sampling_steps=32, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        length = self.reading.length
        require(self.group >= 1 and length % self.group == 0, "group", self.group, f"a divisor of length={length}")
        require(self.latent >= 2, "latent", self.latent, "at least 2")
        require(self.blur >= 0, "blur", self.blur, "0 or more")
        require(self.coder_depth >= 1, "coder_depth", self.coder_depth, "at least 1 layer")


def make(recipe: Any, settings: Settings, spec: Any, classes: tuple[str, ...]) -> LatentNet:
    """Encoder, decoder and the network between them."""
    size, group, latent = vocabulary(spec), settings.group, settings.latent
    places, width, depth = settings.reading.length // group, settings.network.width, settings.coder_depth
    tokens = max(8, width // group)
    return LatentNet(
        embedding_net(settings, latent, latent, places, "adaln"),
        embedding_net(settings, tokens * group, latent, places, "none", depth),
        embedding_net(settings, latent, size * group, places, "none", depth),
        size,
        tokens,
        group,
    )


def compose(settings: Settings, net: Any) -> Composition:
    """The straight path on latents, its velocity, and the codec."""
    head = GaussianHead(Gaussian(schedules.get("flow")), "flow")
    codec = LatentCodec(net, settings.reading.length, settings.latent)
    return Composition(Preconditioned(net, head), Uniform(), LatentLoss(settings.blur), codec=codec)


RECIPE = Recipe(
    name="latent-text",
    title="latent diffusion of text: an autoencoder and a flow between its ends",
    paper="Lovelace et al. 2023, arXiv 2212.09462",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=make,
)

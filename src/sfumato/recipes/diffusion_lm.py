"""Diffusion-LM: Gaussian diffusion of learned token embeddings, rounded to text at the end.

Li, Thickstun, Gulrajani, Liang, Hashimoto 2022, "Diffusion-LM Improves Controllable Text Generation",
https://arxiv.org/abs/2205.14217.

* state: one embedding a token, of unit mean square, learned with the network (section 4.1);
* process: the square-root table (appendix A), which makes noise at once, so that no token is read off its neighbours;
* head: the network predicts ``x0`` (section 4.2); loss (eq. 2): its square error and the rounding's cross-entropy;
* sampling: ancestral, each predicted ``x0`` moved to the nearest embedding (``clamp``, section 4.2);
* control: any classifier of states or beliefs, :func:`sfumato.guidance.steered` (section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.embedded import EmbeddedCodec, EmbeddedLoss, EmbeddedNelbo, EmbeddedNet
from sfumato.training.settings import Optimisation, Reporting, Sampling, require
from sfumato.training.text import OPTIMISATION, Reading, TextNetwork, embedding_net, vocabulary
from sfumato.training.times import Steps


@final
@dataclass(frozen=True)
class Settings:
    """``embedding``: numbers a token; ``table_steps``: of the schedule; ``anchor``: weight of the tokens' readings;
    ``clamp``: move predictions to the nearest embedding while sampling."""

    embedding: int = 32
    table_steps: int = 1000
    anchor: float = 1.0
    clamp: bool = True
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = Sampling(sampler="ddpm", grid="uniform", sampling_steps=128, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        require(self.embedding >= 2, "embedding", self.embedding, "at least 2")
        require(self.table_steps >= 2, "table_steps", self.table_steps, "at least 2")
        require(self.anchor > 0, "anchor", self.anchor, "a positive number: without it all embeddings become one")


def make(recipe: Any, settings: Settings, spec: Any, classes: tuple[str, ...]) -> EmbeddedNet:
    """The transformer on embeddings, with their table."""
    net = embedding_net(settings, settings.embedding, settings.embedding, settings.reading.length, "adaln")
    return EmbeddedNet(net, vocabulary(spec), settings.embedding)


def compose(settings: Settings, net: Any) -> Composition:
    """The square-root table on embeddings, a network that predicts them, and the codec that rounds."""
    steps, first = settings.table_steps, 1 / settings.table_steps
    process = Gaussian(schedules.get("square-root", steps=steps))
    codec = EmbeddedCodec(net, settings.reading.length)
    return Composition(
        Preconditioned(net, GaussianHead(process, "x0")),
        Steps(steps),
        EmbeddedLoss(first, settings.anchor),
        codec=codec,
        clean=codec.clamp if settings.clamp else None,
        likelihood=EmbeddedNelbo(first),
    )


RECIPE = Recipe(
    name="diffusion-lm",
    title="Diffusion-LM: Gaussian diffusion of learned token embeddings",
    paper="Li et al. 2022, arXiv 2205.14217",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=make,
)

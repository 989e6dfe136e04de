"""Discrete flow matching: a probability path from noise to text, followed by jumps towards what the network expects.

Campbell et al. 2024, "Generative Flows on Discrete State-Spaces", https://arxiv.org/abs/2402.04997;
Gat et al. 2024, "Discrete Flow Matching", https://arxiv.org/abs/2407.15595.

* path (Campbell et al., eq. 6-7): each token is its own with chance ``1 - t`` and one of the source's else; ``source``
  is mask or uniform;
* loss (Campbell et al., eq. 10): the cross-entropy of the clean token, without weights;
* sampling: Euler steps of the jump rates, ``discrete-euler:noise=...``; noise (the papers' eta) adds jumps both ways
  and leaves the path as it is, so it can be chosen after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers.tokens import Posterior, Subs, TokenDenoiser
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import absorbing, uniform
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Optimisation, Reporting, Sampling, choose
from sfumato.training.text import OPTIMISATION, Decoding, Nelbo, Reading, TextNetwork, text_net
from sfumato.training.times import Uniform
from sfumato.training.token_objectives import DiscreteFlow


@final
@dataclass(frozen=True)
class Settings:
    """``source``: where the path begins, mask or uniform."""

    source: str = "uniform"
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = Sampling(sampler="discrete-euler", grid="uniform", sampling_steps=128, clip=False)
    decoding: Decoding = Decoding()
    reporting: Reporting = Reporting()
    attention = "full"
    time = "adaln"

    def __post_init__(self) -> None:
        choose("source", self.source, ("mask", "uniform"))

    @property
    def added_tokens(self) -> int:
        """A mask where the path begins in masks."""
        return int(self.source == "mask")


def compose(settings: Settings, net: Any) -> Composition:
    """The straight mixture path, the posterior of the clean token, and its cross-entropy at uniform times."""
    size, flow = net.settings["vocabulary"], schedules.get("flow")
    sources: dict[str, tuple[Any, Any]] = {"mask": (absorbing, Subs), "uniform": (uniform, Posterior)}
    kernel, head = sources[settings.source]
    return Composition(
        TokenDenoiser(net, head(Jump(kernel(size), flow))), Uniform(), DiscreteFlow(), likelihood=Nelbo()
    )


RECIPE = Recipe(
    name="discrete-flow",
    title="discrete flow matching: the mixture path and jumps along it",
    paper="Campbell et al. 2024, arXiv 2402.04997",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=text_net,
)

"""Masked diffusion language models: tokens are masked and come back, trained on one weighted cross-entropy.

Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", https://arxiv.org/abs/2406.07524.

* process (eq. 3): a token is masked by time ``t`` with chance ``1 - alpha(t)`` and stays masked; ``schedule`` is flow
  (``alpha = 1 - t``) or cosine-continuous, and the bound does not depend on which;
* head (section 3.2.3, SUBS): no mass on the mask, shown tokens are carried over; the network is not told the time;
* loss (eq. 10): ``-alpha' / (1 - alpha)`` times the cross-entropy at masked places, the continuous-time NELBO;
* sampling: ancestral, ``--sampler ddpm-cache`` where steps that show nothing cost nothing, first-hitting, confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers.tokens import Subs, TokenDenoiser
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import absorbing
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Optimisation, Reporting, Sampling, choose
from sfumato.training.text import OPTIMISATION, Decoding, Nelbo, Reading, TextNetwork, ancestral, text_net
from sfumato.training.times import Uniform
from sfumato.training.token_objectives import MDLM


@final
@dataclass(frozen=True)
class Settings:
    """``schedule``: of the chance to be masked, flow or cosine-continuous."""

    schedule: str = "flow"
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = ancestral(128)
    decoding: Decoding = Decoding()
    reporting: Reporting = Reporting()
    #: The mask.
    added_tokens = 1
    attention = "full"
    time = "none"

    def __post_init__(self) -> None:
        choose("schedule", self.schedule, ("flow", "cosine-continuous"))


def compose(settings: Settings, net: Any) -> Composition:
    """The masking process, SUBS, and the continuous-time bound at uniform times."""
    process = Jump(absorbing(net.settings["vocabulary"]), schedules.get(settings.schedule))
    return Composition(TokenDenoiser(net, Subs(process)), Uniform(), MDLM(), likelihood=Nelbo())


RECIPE = Recipe(
    name="mdlm",
    title="masked diffusion for text: SUBS and one weighted cross-entropy",
    paper="Sahoo et al. 2024, arXiv 2406.07524",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=text_net,
)

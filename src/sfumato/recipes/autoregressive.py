"""The autoregressive baseline: the same transformer, one token at a time from left to right.

* process: blocks of one token (:mod:`sfumato.processes.blocks`), so that the ancestral update of every diffusion here
  samples it, too, in as many steps as there are tokens;
* network: causal, moved by one place; all places learn from one pass;
* loss: ``-log p(x_i | x_<i)``, exact, not a bound;
* sampling: what is written is kept as keys and values, so that a step reads one token, after a prompt read at once.

Its two relatives are one setting away: ``block-diffusion`` (blocks of several tokens) and ``mdlm`` (one block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers.tokens import Subs, TokenDenoiser
from sfumato.processes.blocks import Blocks
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import absorbing
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Optimisation, Reporting, Sampling
from sfumato.training.text import (
    OPTIMISATION,
    Decoding,
    Exact,
    NextToken,
    NextTokenLoss,
    Reading,
    TextNetwork,
    ancestral,
    text_net,
)
from sfumato.training.times import Uniform


@final
@dataclass(frozen=True)
class Settings:
    """Nothing of its own: the text, the network, the optimiser, how it decodes."""

    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = ancestral(256)
    decoding: Decoding = Decoding()
    reporting: Reporting = Reporting()
    #: The mask, which also stands before the first token.
    added_tokens = 1
    attention = "causal"
    time = "none"


def compose(settings: Settings, net: Any) -> Composition:
    """Blocks of one token, a causal network, and the exact likelihood."""
    process = Blocks(Jump(absorbing(net.net.settings["vocabulary"]), schedules.get("flow")), 1)
    denoiser = TokenDenoiser(net, Subs(process))
    return Composition(denoiser, Uniform(), NextTokenLoss(), steps=settings.reading.length, likelihood=Exact())


def wrap(settings: Settings, net: Any) -> NextToken:
    """The network, moved by one place."""
    return NextToken(net)


RECIPE = Recipe(
    name="autoregressive",
    title="autoregressive baseline: the same transformer from left to right",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=text_net,
    wrap=wrap,
)

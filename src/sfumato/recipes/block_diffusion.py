"""Block diffusion: blocks from left to right, each block by masked diffusion given those before it.

Arriola et al. 2025, "Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models",
https://arxiv.org/abs/2503.09573.

* process (eq. 5): blocks of ``block`` tokens are masked one after the other (:mod:`sfumato.processes.blocks`);
* network (section 3.3): one pass over the noisy blocks beside the clean ones; noisy tokens see their own block and the
  clean blocks before it;
* loss (eq. 8): the masked bound of every block, all at once, each at its own time;
* sampling: the ancestral update, ``sampling_steps`` over all blocks, as many for each; whole blocks are read once.
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
    BlockBound,
    BlockNelbo,
    BlockNet,
    Decoding,
    Reading,
    TextNetwork,
    ancestral,
    require_block,
    text_net,
)
from sfumato.training.times import Uniform


@final
@dataclass(frozen=True)
class Settings:
    """``block``: tokens of a block, a divisor of ``length``."""

    block: int = 16
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = ancestral(128)
    decoding: Decoding = Decoding()
    reporting: Reporting = Reporting()
    #: The mask.
    added_tokens = 1
    time = "none"

    def __post_init__(self) -> None:
        require_block(self.reading.length, self.block)

    @property
    def attention(self) -> str:
        """Within blocks and to the blocks before."""
        return f"block:size={self.block}"


def compose(settings: Settings, net: Any) -> Composition:
    """Blocks of masked tokens, a network with their attention, and the bound over all blocks at once."""
    denoiser = TokenDenoiser(net, Subs(net.process))
    blocks = settings.reading.length // settings.block
    return Composition(denoiser, Uniform(), BlockBound(), multiple=blocks, likelihood=BlockNelbo())


def wrap(settings: Settings, net: Any) -> BlockNet:
    """The network with its blocks."""
    process = Blocks(Jump(absorbing(net.settings["vocabulary"]), schedules.get("flow")), settings.block)
    return BlockNet(net, process)


RECIPE = Recipe(
    name="block-diffusion",
    title="block diffusion: masked diffusion by blocks, from left to right",
    paper="Arriola et al. 2025, arXiv 2503.09573",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=text_net,
    wrap=wrap,
)

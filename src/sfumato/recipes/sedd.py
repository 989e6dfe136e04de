"""Score entropy discrete diffusion: the network states ratios of probabilities of neighbouring texts.

Lou, Meng, Ermon 2024, "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution",
https://arxiv.org/abs/2310.16834.

* process: tokens are masked (``kernel=absorb``) or redrawn (``kernel=uniform``); ``alpha = exp(-sigma_bar)`` of the
  paper's log-linear noise is the straight line ``1 - t`` (section 5.1), the schedule flow;
* head: where tokens are masked the ratios are a belief times ``1 / (e^sigma - 1)`` (section 4.3); where they are
  redrawn, free ratios need not belong to any law, and the network states the belief that implies them;
* loss (eq. 8): score entropy, whose minimum is the exact ratio and which bounds the likelihood (theorem 3.6);
* sampling: tau-leaping (eq. 17) or the exact bridge, ``ddpm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers.tokens import Posterior, Score, TokenDenoiser
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import absorbing, uniform
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Optimisation, Reporting, Sampling, choose
from sfumato.training.text import OPTIMISATION, Decoding, Nelbo, Reading, TextNetwork, ancestral, text_net
from sfumato.training.times import Uniform
from sfumato.training.token_objectives import ScoreEntropy


@final
@dataclass(frozen=True)
class Settings:
    """``kernel``: absorb (masks) or uniform (redraws)."""

    kernel: str = "absorb"
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = ancestral(128)
    decoding: Decoding = Decoding()
    reporting: Reporting = Reporting()
    attention = "full"
    time = "adaln"

    def __post_init__(self) -> None:
        choose("kernel", self.kernel, ("absorb", "uniform"))

    @property
    def added_tokens(self) -> int:
        """A mask where tokens are masked."""
        return int(self.kernel == "absorb")


def compose(settings: Settings, net: Any) -> Composition:
    """The chosen kernel, its head, and score entropy at uniform times."""
    size, flow = net.settings["vocabulary"], schedules.get("flow")
    heads: dict[str, tuple[Any, Any]] = {"absorb": (absorbing, Score), "uniform": (uniform, Posterior)}
    kernel, head = heads[settings.kernel]
    return Composition(
        TokenDenoiser(net, head(Jump(kernel(size), flow))), Uniform(1e-3), ScoreEntropy(), likelihood=Nelbo()
    )


RECIPE = Recipe(
    name="sedd",
    title="score entropy discrete diffusion",
    paper="Lou et al. 2024, arXiv 2310.16834",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=text_net,
)

"""Discrete denoising diffusion: a Markov chain of T steps on tokens, by any transition matrix.

Austin et al. 2021, "Structured Denoising Diffusion Models in Discrete State-Spaces", https://arxiv.org/abs/2107.03006.

* process (eq. 3, appendix A): ``kernel=absorb`` masks with chance ``1 / (T - k + 1)``, which is the line ``1 - t``;
  ``uniform`` redraws, ``gaussian`` steps to neighbouring tokens (for ordered alphabets), both along a cosine;
* head: the network predicts ``x0`` before it looks at the token itself, and ``q(x_s, x_t | x0)`` is summed over it
  (eq. 4), in closed form;
* loss (eq. 5): ``L_vb + lambda L_ce``, the bound at one random step plus ``lambda`` times the cross-entropy of ``x0``,
  both times T, so that the first is in nats of the text; ``lambda`` (``auxiliary``) is .01 with masks and 0 for the
  others unless given, as in their code for text;
* sampling: the ancestral chain, of T steps or fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers.tokens import Posterior, Subs, TokenDenoiser
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import absorbing, discretised_gaussian, uniform
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Optimisation, Reporting, Sampling, choose, require
from sfumato.training.text import OPTIMISATION, ChainBound, Decoding, Reading, TextNetwork, ancestral, text_net
from sfumato.training.times import Steps
from sfumato.training.token_objectives import D3PM


@final
@dataclass(frozen=True)
class Settings:
    """``kernel``: absorb, uniform or gaussian; ``chain_steps``: T; ``auxiliary``: lambda (see :func:`settle`)."""

    kernel: str = "absorb"
    chain_steps: int = 1000
    auxiliary: float = 0.01
    reading: Reading = Reading()
    network: TextNetwork = TextNetwork()
    optimisation: Optimisation = OPTIMISATION
    sampling: Sampling = ancestral(128)
    decoding: Decoding = Decoding()
    reporting: Reporting = Reporting()
    attention = "full"
    time = "adaln"

    def __post_init__(self) -> None:
        choose("kernel", self.kernel, ("absorb", "uniform", "gaussian"))
        require(self.chain_steps >= 1, "chain_steps", self.chain_steps, "at least 1")
        require(self.auxiliary >= 0, "auxiliary", self.auxiliary, "0 or more")

    @property
    def added_tokens(self) -> int:
        """A mask where tokens are masked."""
        return int(self.kernel == "absorb")


def settle(given: Mapping[str, Any]) -> Settings:
    """The defaults: without masks the loss is the bound alone."""
    defaults = Settings()
    return defaults if given.get("kernel", defaults.kernel) == defaults.kernel else replace(defaults, auxiliary=0.0)


def compose(settings: Settings, net: Any) -> Composition:
    """The chain's kernel and schedule, a network that predicts ``x0``, and the hybrid loss at a uniform step."""
    size, steps = net.settings["vocabulary"], settings.chain_steps
    kernels: dict[str, tuple[Any, str, Any]] = {
        "absorb": (absorbing, "flow", Subs),  # a shown token is certain: the same posterior
        "uniform": (uniform, "cosine-continuous", Posterior),
        "gaussian": (discretised_gaussian, "cosine-continuous", Posterior),
    }
    kernel, schedule, head = kernels[settings.kernel]
    denoiser = TokenDenoiser(net, head(Jump(kernel(size), schedules.get(schedule))))
    return Composition(denoiser, Steps(steps), D3PM(steps, settings.auxiliary), likelihood=ChainBound(steps))


RECIPE = Recipe(
    name="d3pm",
    title="discrete denoising diffusion: a chain of T steps, absorbing, uniform or Gaussian",
    paper="Austin et al. 2021, arXiv 2107.03006",
    defaults=Settings(),
    compose=compose,
    kind="text",
    make=text_net,
    settle=settle,
)

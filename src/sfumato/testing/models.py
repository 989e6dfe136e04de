"""Models to test with: a perfect network for every prediction, independent parts, and a small multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core import Cond, Denoiser, Law, Time
from sfumato.denoisers import GaussianHead
from sfumato.laws import Joint
from sfumato.processes.product import Product
from sfumato.randomness import as_rng


@final
@dataclass(frozen=True)
class OracleNet:
    """The network a perfect training run would give: the exact belief's point, stated as the head's prediction.

    It is called like any network, ``net(c_in x_t, t [b], cond)``; ``t`` arrives in float32, so it is exact at times
    that float32 represents (the uniform grid of 32 steps).
    """

    exact: Denoiser[Tensor]
    head: GaussianHead

    def __call__(self, scaled: Tensor, t: Float[Tensor, " b"], cond: Cond | None) -> Tensor:
        """The exact target at scaled states ``[b, ...]``."""
        moment = t.to(torch.float64)
        x_t = scaled / self.head.input_scale(moment, scaled)
        return self.head.target(self.exact(x_t, moment, cond).point(), x_t, moment)


@final
@dataclass(frozen=True)
class Parts:
    """A denoiser of a product whose parts are independent: one denoiser a part, one joint belief."""

    denoisers: Mapping[str, Any]
    kind: ClassVar[str] = "belief"

    def __call__(self, x_t: Mapping[str, Any], t: Time, cond: Cond | None = None) -> Law[Any]:
        """The joint of the parts' beliefs."""
        return Joint({key: denoiser(x_t[key], t, cond) for key, denoiser in self.denoisers.items()})


@final
@dataclass(frozen=True)
class Independent:
    """An oracle of a product whose parts are independent: one oracle a part."""

    oracles: Mapping[str, Any]

    def sample(self, n: int, rng: Any) -> dict[str, Tensor]:
        """``n`` samples of every part, float64."""
        rng = as_rng(rng)
        return {key: oracle.sample(n, rng) for key, oracle in self.oracles.items()}

    def denoiser(self, process: Product) -> Parts:
        """The perfect point prediction of every part."""
        return Parts({key: oracle.denoiser(process.parts[key]) for key, oracle in self.oracles.items()})

    def posterior(self, process: Product) -> Parts:
        """The exact law of every part."""
        return Parts({key: oracle.posterior(process.parts[key]) for key, oracle in self.oracles.items()})


@final
class MLP(nn.Module):
    """A residual multilayer perceptron on flat states ``[b, d]``: what the training law trains."""

    def __init__(self, dimension: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(dimension + 16, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, dimension)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "b d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b d"]:
        """The raw output for scaled states ``x`` at times ``t``."""
        wave = t[:, None] * (2.0 ** torch.arange(-1, 7)) * math.pi / 2
        h = nn.functional.silu(self.first(torch.cat([x, wave.sin(), wave.cos()], 1)))
        for block in self.blocks:
            h = h + nn.functional.silu(block(h))
        out: Tensor = self.last(h)
        return out

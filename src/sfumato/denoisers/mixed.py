"""A denoiser of numbers and tokens at once: one call of the network, a recipe's own reading of the numbers.

The contract: ``denoiser(x_t, t, cond)`` is a joint belief: of the numbers, what the recipe's own denoiser says whose
network sees the tokens, too; of the tokens, SUBS (:class:`~sfumato.denoisers.tokens.Subs`): shown tokens are
themselves, masked ones a softmax over the values of their own column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Cond, Time
from sfumato.denoisers.tokens import Subs
from sfumato.laws import Categorical, Joint
from sfumato.processes.mixed import NUMBERS, TOKENS, Mixed


@final
class Seeing:
    """A network of numbers that sees the given tokens; keeps the logits of its last call."""

    def __init__(self, net: Any, tokens: Int[Tensor, "b m"]) -> None:
        self.net, self.tokens = net, tokens
        self.logits: Tensor | None = None

    def __call__(self, numbers: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The network's output for the numbers."""
        output: Tensor
        output, self.logits = self.net(numbers, self.own_masks(), t, cond)
        return output

    def own_masks(self) -> Int[Tensor, "b m"]:
        """The tokens with every column's own mask, which follows its values, in the place of the common one."""
        sizes = torch.tensor(self.net.settings["sizes"], dtype=torch.long, device=self.tokens.device)
        return torch.minimum(self.tokens, sizes)


def spread(logits: Float[Tensor, "b k"], sizes: tuple[int, ...], values: int) -> Float[Tensor, "b m v"]:
    """Logits of columns one after the other as ``[b, m, values + 1]``; ``-inf`` beyond a column's values, 0 of the
    mask (which no reading looks at)."""
    wide = logits.new_full((len(logits), len(sizes), values + 1), -math.inf)
    place = 0
    for j, size in enumerate(sizes):
        wide[:, j, :size] = logits[:, place : place + size]
        place += size
    wide[..., -1] = 0.0
    return wide


@final
@dataclass(frozen=True)
class MixedHead:
    """Reads logits as a belief over tokens; ``sizes``: the values of every column."""

    process: Mixed
    sizes: tuple[int, ...]

    def tokens(self, logits: Float[Tensor, "b k"], shown: Int[Tensor, "b m"], t: Time) -> Categorical:
        """The belief about the tokens, given those that are ``shown``."""
        return Subs(self.process.jump)(spread(logits, self.sizes, self.process.values), shown, t)


@final
@dataclass(frozen=True)
class MixedDenoiser:
    """``numbers``: a recipe's denoiser (a dataclass with a ``net``) around ``net``; ``head``: of the tokens."""

    numbers: Any
    net: Any
    head: MixedHead

    def seeing(self, tokens: Int[Tensor, "b m"]) -> tuple[Any, Seeing]:
        """The recipe's denoiser of numbers whose network sees ``tokens``, and that network."""
        net = Seeing(self.net, tokens)
        return replace(self.numbers, net=net), net

    def __call__(self, x_t: Float[Tensor, "b d"], t: Time, cond: Cond | None = None) -> Joint:
        """The belief over rows given ``x_t`` at ``t``."""
        parts = self.head.process.split(x_t)
        numbers, net = self.seeing(parts[TOKENS])
        belief = numbers(parts[NUMBERS], t, cond)
        assert net.logits is not None
        return Joint({NUMBERS: belief, TOKENS: self.head.tokens(net.logits, parts[TOKENS], t)})

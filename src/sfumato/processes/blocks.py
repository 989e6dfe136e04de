"""Blocks of a sequence destroyed one after the other, the last first: from diffusion to an autoregressive model.

The contract: of ``n`` blocks, block ``j`` (from the left) is destroyed by the ``inner`` process while ``t`` runs from
``(n - 1 - j) / n`` to ``(n - j) / n``; before that it is whole, after it is all mask. Backwards, therefore, blocks
appear from left to right. One block is the inner process itself (MDLM); blocks of one token are an autoregressive model
(a factorisation from left to right); sizes between are block diffusion (Arriola et al. 2025, eq. 5). Every law is the
inner one's at the sites' own times, so one ancestral update samples them all, and the evidence bound is the sum of the
blocks' bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import RNG, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Categorical
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import masks
from sfumato.spaces.tokens import Tokens
from sfumato.trees import precise_device


@final
@dataclass(frozen=True)
class Blocks:
    """``inner`` (an absorbing process) on blocks of ``size`` sites of states ``[b, L]``.

    Raises :class:`Refusal` for a kernel that does not mask at once (a rate matrix may reach its mask by way of other
    tokens), states other than sequences, a size below 1, and sequences that are no whole number of blocks.
    """

    inner: Jump
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise Refusal(f"block={self.size}: a block holds at least 1 token")
        if not masks(self.inner.kernel):
            raise Refusal(
                f"blocks appear one after the other from masks, which {self.inner.kernel!r} does not go to at once; "
                "use absorbing(size)"
            )
        if not isinstance(self.inner.space, Tokens):
            raise Refusal(f"blocks are of sequences [b, L], not of {type(self.inner.space).__name__}; give Tokens")

    @property
    def kernel(self) -> Any:
        """The inner process's."""
        return self.inner.kernel

    @property
    def space(self) -> Any:
        """The inner process's."""
        return self.inner.space

    def count(self, length: int) -> int:
        """How many blocks a sequence of ``length`` sites has."""
        if length % self.size:
            raise Refusal(f"block={self.size}: {length} tokens are no whole number of blocks; give a divisor of it")
        return length // self.size

    def block_of(self, length: int) -> Int[Tensor, " sites"]:
        """The block that each site belongs to."""
        self.count(length)
        return torch.arange(length) // self.size

    def active(self, length: int, t: float) -> int:
        """The block that is being destroyed at ``t`` (at a boundary, the one that a step back from ``t`` begins to
        show)."""
        n = self.count(length)
        # t = 1 begins with block 0; float32 times k / n are off a boundary by less than this
        return min(n - 1, max(0, int(n - t * n + 1e-4)))

    def times(self, x: Tensor, t: Time) -> Float[Tensor, "b sites"]:
        """The sites' own times in [0, 1], float64 ``[b, L]``, for ``t``, a number or ``[b]``."""
        n = self.count(x.shape[1])
        where = precise_device(x)
        moment = (t.to(where) if torch.is_tensor(t) else torch.tensor(t, dtype=torch.float64)).double().reshape(-1, 1)
        local = moment * n - (n - 1 - self.block_of(x.shape[1]).to(where))
        # times k / n are not exact in binary: what is a boundary but for rounding is one
        nearest = local.round()
        local = torch.where((local - nearest).abs() < 1e-9, nearest, local)
        return local.clamp(0, 1).expand(x.shape)

    def signal(self, t: Time, x: Tensor | None = None) -> Any:
        """``alpha`` at the sites' own times; ``x`` gives their number.  Raises :class:`Refusal` without it."""
        if x is None:
            raise Refusal("each block has a signal of its own; give the states x")
        return self.inner.signal(self.times(x, t), x)

    def prior(self, like: Tensor) -> Categorical:
        """All mask."""
        return self.inner.prior(like)

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Categorical:
        """The inner marginal at the sites' own times."""
        return self.inner.marginal(x0, self.times(x0, t), end)

    def noised(self, x0: Tensor, t: Time, rng: RNG, end: Tensor | None = None) -> Tensor:
        """A draw of the marginal, as the inner process makes it."""
        return self.inner.noised(x0, self.times(x0, t), rng, end)

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Categorical:
        """The inner transition between the sites' own times."""
        return self.inner.forward(x_s, self.times(x_s, s), self.times(x_s, t))

    def bridge(self, x_t: Tensor, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The inner bridge between the sites' own times."""
        return self.inner.bridge(x_t, q, self.times(x_t, t), self.times(x_t, s), eta)

    def loss(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Float[Tensor, " b"]:
        """The inner loss at the sites' own times."""
        return self.inner.loss(q, x0, x_t, self.times(x_t, t))

    def rate(self, q: Law[Tensor], x0: Tensor, x_t: Tensor, t: Time) -> Float[Tensor, " b"]:
        """``n`` times the inner rate of the block that is being destroyed: the others do not move."""
        local = self.times(x_t, t)
        moving = (local > 0) & (local < 1)
        real = moving if self.space.real is None else moving & self.space.real.to(moving.device)
        within = replace(self.inner, space=Tokens(self.kernel.size, real))
        count: Tensor = within.rate(q, x0, x_t, local.clamp(1e-9, 1 - 1e-9))
        return self.count(x_t.shape[1]) * count

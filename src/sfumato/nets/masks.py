"""Who may look at whom: attention masks over the places of a sequence, and attention under one.

The contract: ``mask.allowed(queries, keys)`` is a function of places alone, so the same mask serves a whole sequence
and one that is read piece by piece; ``block`` is how many tokens must be read together (None: all of them).

========  ==================================================  ========================================================
mask      place i sees place j where                          used by
========  ==================================================  ========================================================
full      always                                              diffusion over whole sequences
causal    j <= i                                              autoregressive models
block     j // size <= i // size                              block diffusion (Arriola et al. 2025)
========  ==================================================  ========================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sfumato.errors import Refusal, nearest
from sfumato.nets import layers
from sfumato.spec import parse as parse_spec

#: On a CPU: up to so many scores in a row of heads all at once, up to so many in blocks, beyond them PyTorch's kernel.
FEW, MANY = 64 * 64, 1024 * 1024


@runtime_checkable
class Mask(Protocol):
    """Which keys a query may see; equal masks have equal hashes."""

    def __hash__(self) -> int: ...
    @property
    def block(self) -> int | None:
        """How many places see each other; None where all do."""
        ...

    def allowed(self, queries: Int64[Tensor, " n"], keys: Int64[Tensor, " m"]) -> Bool[Tensor, "n m"]:
        """Whether the query at a place sees the key at a place."""
        ...


@final
@dataclass(frozen=True)
class Full:
    """Every place sees every place."""

    block: ClassVar[int | None] = None

    def allowed(self, queries: Int64[Tensor, " n"], keys: Int64[Tensor, " m"]) -> Bool[Tensor, "n m"]:
        """All true."""
        return torch.ones(len(queries), len(keys), dtype=torch.bool, device=queries.device)


@final
@dataclass(frozen=True)
class Causal:
    """Every place sees itself and those before it."""

    block: ClassVar[int | None] = 1

    def allowed(self, queries: Int64[Tensor, " n"], keys: Int64[Tensor, " m"]) -> Bool[Tensor, "n m"]:
        """True up to the query's own place."""
        return keys[None] <= queries[:, None]


@final
@dataclass(frozen=True)
class Block:
    """Every place sees its own block of ``size`` places and those before it.  Refuses a size below 1."""

    size: int = 16

    def __post_init__(self) -> None:
        if self.size < 1:
            raise Refusal(f"block:size={self.size}: a block holds at least one token")

    @property
    def block(self) -> int | None:
        """The size."""
        return self.size

    def allowed(self, queries: Int64[Tensor, " n"], keys: Int64[Tensor, " m"]) -> Bool[Tensor, "n m"]:
        """True up to the end of the query's own block."""
        return keys[None] // self.size <= queries[:, None] // self.size


MASKS: dict[str, Callable[..., Mask]] = {"full": Full, "causal": Causal, "block": Block}


def parse(words: str) -> Mask:
    """The mask named ``full``, ``causal`` or ``block:size=16``.  Refuses unknown names and settings."""

    def find(name: str) -> Callable[..., Mask]:
        if name not in MASKS:
            raise Refusal(f"unknown mask {name!r}; {nearest(name, MASKS)}")
        return MASKS[name]

    name, settings = parse_spec("mask", words, find)
    return MASKS[name](**settings)


def _additive(allowed: Bool[Tensor, "n m"], dtype: torch.dtype) -> Tensor:
    """0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


@lru_cache(maxsize=1024)
def bias(mask: Mask, first: int, n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n m"] | None:
    """What is added to the scores of ``n`` queries from place ``first`` on, over all keys up to the last of them.

    None where nothing is forbidden.
    """
    keys = torch.arange(first + n, device=device)
    allowed = mask.allowed(keys[first:], keys)
    return None if bool(allowed.all()) else _additive(allowed, dtype)


@lru_cache(maxsize=16)
def paired_bias(mask: Mask, n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "m m"]:
    """For ``n`` noisy tokens followed by the same ``n`` clean ones: the mask of block diffusion, ``[2n, 2n]``.

    A noisy token sees the noisy tokens of its own block and the clean ones of the blocks before; a clean token sees
    the clean ones up to its own block, and nothing noisy.  Source: Arriola et al. 2025, section 3.2 and appendix B.6.
    Raises :class:`Refusal` for a mask without blocks.
    """
    size = mask.block
    if size is None:
        raise Refusal("a network with the mask 'full' has no blocks; build it with mask=block:size=16")
    place = torch.arange(n, device=device)
    block = place // size
    own, before = block[None] == block[:, None], block[None] < block[:, None]
    noisy = torch.cat([own, before], 1)
    clean = torch.cat([torch.zeros_like(own), mask.allowed(place, place)], 1)
    return _additive(torch.cat([noisy, clean]), dtype)


class _Masked(torch.autograd.Function):
    """``softmax(q k^T + bias) v`` for ``[rows, n, d]``, a few rows at a time.

    The same plan as :class:`sfumato.nets.layers._Attend` (Dao et al. 2022), with a bias that is added in place.
    """

    @staticmethod
    def blocks(q: Tensor, k: Tensor) -> list[slice]:
        step = max(1, layers._Attend.block // (q.shape[1] * k.shape[1]))
        return [slice(first, first + step) for first in range(0, len(q), step)]

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        y, kept = torch.empty_like(q), layers.scores(q, k, back)
        for i in _Masked.blocks(q, k):
            p = torch.softmax((q[i] @ k[i].mT).add_(bias), -1)
            if len(kept):
                kept[i] = p
            y[i] = p @ v[i]
        return y, kept

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:4], *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, bias, y, kept = ctx.saved_tensors
        dy = grads[0].contiguous()
        if torch.is_grad_enabled():  # a second derivative is asked for: all rows at once, nothing in place
            p = torch.softmax(q @ k.mT + bias, -1)
            ds = p * (dy @ v.mT - (dy * (p @ v)).sum(-1, keepdim=True))
            return ds @ k, ds.mT @ q, p.mT @ dy, None, None
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        row = (dy * y).sum(-1, keepdim=True)
        for i in _Masked.blocks(q, k):
            p = kept[i] if len(kept) else torch.softmax((q[i] @ k[i].mT).add_(bias), -1)
            dv[i] = p.mT @ dy[i]
            ds = (dy[i] @ v[i].mT).sub_(row[i]).mul_(p)
            dq[i] = ds @ k[i]
            dk[i] = ds.mT @ q[i]
        return dq, dk, dv, None, None


def attend(
    q: Float[Tensor, "rows n d"],
    k: Float[Tensor, "rows m d"],
    v: Float[Tensor, "rows m d"],
    bias: Float[Tensor, "n m"] | None,
) -> Float[Tensor, "rows n d"]:
    """``softmax(q k^T + bias) v`` in every row; scale ``q`` beforehand.  The way is chosen by device and size."""
    if bias is None and q.shape == k.shape:
        return layers.attend(q, k, v)
    scores = q.shape[1] * k.shape[1] if q.device.type == "cpu" else MANY + 1
    if scores > MANY:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    if scores > FEW and bias is not None:
        y: Tensor = _Masked.apply(q, k, v, bias, layers.way_back(q, k, v))[0]  # type: ignore[no-untyped-call]
        return y
    raw = q @ k.mT
    return torch.softmax(raw if bias is None else raw + bias, -1) @ v

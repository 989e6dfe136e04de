"""Stateless randomness for training: every draw is a function of (seed, purpose, position), so resuming is exact.

The contract: :func:`mix` is a fixed hash of integers and words; :func:`batch_indices` is a permutation of the data per
epoch, read in full batches straight across the epoch's end.  Nothing here remembers anything.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor


def mix(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from ``seed`` and ``parts``: equal inputs give equal seeds, on every machine."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def epoch_order(seed: int, epoch: int, n: int) -> Int64[Tensor, " n"]:
    """The order in which epoch ``epoch`` visits ``n`` data."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, "order", epoch)))


@runtime_checkable
class Batches(Protocol):
    """An endless sequence of batches of indices, any of them by its number."""

    def batch(self, step: int, size: int) -> Tensor:
        """The ``size`` indices of batch ``step``."""
        ...


class Order:
    """The endless sequence of shuffled epochs over ``n`` data; remembers only the orders it computed last."""

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.n = seed, n
        self._orders: dict[int, Tensor] = {}

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}
            self._orders[epoch] = epoch_order(self.seed, epoch, self.n)
        return self._orders[epoch]

    def batch(self, step: int, size: int) -> Int64[Tensor, " size"]:
        """The ``size`` indices of batch ``step``: always full, across the end of an epoch if need be."""
        parts: list[Tensor] = []
        position, missing = step * size, size
        while missing:
            epoch, offset = divmod(position, self.n)
            part = self._epoch(epoch)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

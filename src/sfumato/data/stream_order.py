"""The order in which shards are read: a function of (seed, epoch, position), near enough to sequential for a disk.

The contract: every epoch visits every sample once; batch ``k`` is a function of the arguments alone, so a resumed run
goes on where the interrupted one was, and no buffer has to be stored.

* the shards are shuffled, and taken :data:`TOGETHER` at a time;
* the samples of those are interleaved, each shard spread evenly over the whole;
* windows of ``window`` samples of the result are shuffled: what a shuffle buffer does elsewhere.  A window is read from
  at most :data:`TOGETHER` stretches of the disk, and the operating system's own cache holds them, so the process does
  not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from sfumato.training.seeds import epoch_order, mix

#: Shards that are read at a time.
TOGETHER = 4
#: Bytes of a window, about, and how many samples that may be.
WINDOW_BYTES = 64 * 2**20
WINDOWS = (256, 16_384)


def window_of(samples: int, total_bytes: int) -> int:
    """How many samples of such a size make a window."""
    mean = max(1, total_bytes // max(1, samples))
    return min(max(WINDOW_BYTES // mean, WINDOWS[0]), WINDOWS[1])


def _parted(x: Tensor, size: int) -> list[Tensor]:
    """Parts of ``size`` entries, the last of what is left."""
    return [x[k : k + size] for k in range(0, len(x), size)]


@final
class StreamOrder:
    """The endless sequence of epochs over shards of ``counts`` samples; sample ``j`` of shard ``k`` has the number
    ``sum(counts[:k]) + j``.  Remembers only what it computed last.
    """

    def __init__(self, seed: int, counts: Sequence[int], window: int) -> None:
        self.seed, self.window = seed, window
        self.counts = torch.tensor(counts, dtype=torch.int64)
        self.starts = self.counts.cumsum(0) - self.counts
        self.n = int(self.counts.sum())
        self._shards: dict[int, Tensor] = {}
        self._groups: dict[tuple[int, int], Tensor] = {}

    def batch(self, step: int, size: int) -> Int64[Tensor, " size"]:
        """The ``size`` sample numbers of batch ``step``: always full, across the end of an epoch if need be."""
        parts: list[Tensor] = []
        position, missing = step * size, size
        while missing:
            epoch, offset = divmod(position, self.n)
            part = self._part(epoch, offset, missing)
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

    def _part(self, epoch: int, offset: int, most: int) -> Tensor:
        """At most ``most`` numbers of an epoch from ``offset`` on: those of the group of shards that it falls in."""
        order = self._order(epoch)
        sizes = self.counts[order]
        ends = torch.stack([part.sum() for part in _parted(sizes, TOGETHER)]).cumsum(0)
        group = int(torch.searchsorted(ends, offset, right=True))
        first = int(ends[group - 1]) if group else 0
        return self._group(epoch, group)[offset - first : offset - first + most]

    def _order(self, epoch: int) -> Tensor:
        """The order of the shards in an epoch."""
        if epoch not in self._shards:
            self._shards = {k: v for k, v in self._shards.items() if k >= epoch - 1}
            self._shards[epoch] = epoch_order(mix(self.seed, "shards"), epoch, len(self.counts))
        return self._shards[epoch]

    def _group(self, epoch: int, group: int) -> Tensor:
        """The numbers of all samples of a group of shards, in the order in which they are visited."""
        if (epoch, group) not in self._groups:
            self._groups = {k: v for k, v in self._groups.items() if k >= (epoch, group - 1)}
            shards = self._order(epoch)[TOGETHER * group : TOGETHER * (group + 1)].tolist()
            parts = [torch.arange(int(self.counts[k])) for k in shards]
            shares = torch.cat([(part + 0.5) / max(1, len(part)) for part in parts])
            numbers = torch.cat([part + int(self.starts[k]) for part, k in zip(parts, shards, strict=True)])
            mixed = numbers[shares.argsort(stable=True)]
            seed = mix(self.seed, "windows", epoch)
            windows = _parted(mixed, self.window)
            base = group * (1 << 32)
            self._groups[(epoch, group)] = torch.cat(
                [each[epoch_order(seed, base + w, len(each))] for w, each in enumerate(windows)]
            )
        return self._groups[(epoch, group)]

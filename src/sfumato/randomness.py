"""Randomness is always explicit: an ``rng`` below the user-facing layer, drawn float32 on the CPU, then cast.

The contract: the noise of a sample depends on that sample's seed alone.  With :class:`Streams` sample ``k`` owns its
own generator, so it is bitwise the same alone, in any batch, in any order.  :class:`Stream` is one generator for a
whole batch: training and Monte Carlo.  With :class:`Shared` some rows of a batch get what they would get in the whole
of it: a training step is the same whoever works on which of its rows.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal


@final
class Stream:
    """One generator for a whole batch, seeded by ``seed`` (an int) or given as a ``torch.Generator`` on the CPU."""

    def __init__(self, seed: int | torch.Generator) -> None:
        self.generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Standard normal float32 numbers of ``shape``; rows that a sample does not own are 0."""
        return _own(torch.randn(shape, generator=self.generator, dtype=torch.float32), rows)

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Uniform float32 numbers in [0, 1) of ``shape``; rows that a sample does not own are 0."""
        return _own(torch.rand(shape, generator=self.generator, dtype=torch.float32), rows)


def _own(x: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return x
    owned = torch.arange(x.shape[1]) < rows.cpu()[:, None]
    return x * owned.reshape(owned.shape + (1,) * (x.ndim - 2))


@final
class Streams:
    """One generator per sample: sample ``k`` draws from ``seeds[k]`` only.  ``rows[k]`` limits it to its own rows."""

    def __init__(self, seeds: Iterable[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def _fill(self, draw: Callable[..., Tensor], shape: tuple[int, ...], rows: Tensor | None) -> Tensor:
        if shape[0] != len(self.generators):
            raise Refusal(f"{shape[0]} samples but {len(self.generators)} seeds; give one seed per sample")
        out = torch.zeros(shape, dtype=torch.float32)
        for k, generator in enumerate(self.generators):
            own = out[k] if rows is None else out[k, : int(rows[k])]
            own.copy_(draw(own.shape, generator=generator, dtype=torch.float32))
        return out

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Standard normal float32 numbers of ``shape``; raises :class:`Refusal` where ``shape[0]`` is not the seed
        count."""
        return self._fill(torch.randn, shape, rows)

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Uniform float32 numbers in [0, 1) of ``shape``; raises like :meth:`normal`."""
        return self._fill(torch.rand, shape, rows)


@final
@dataclass(frozen=True)
class Share:
    """Rows ``first .. last - 1`` of a batch of ``whole`` rows; raises :class:`Refusal` where it has none of them."""

    first: int
    last: int
    whole: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.whole:
            raise Refusal(
                f"rows {self.first}..{self.last - 1} of a batch of {self.whole}: a share needs a row at least"
            )

    def __len__(self) -> int:
        return self.last - self.first

    def of(self, rows: Tensor) -> Tensor:
        """Its rows of ``[whole, ...]``."""
        return rows[self.first : self.last]


def split(first: int, last: int, parts: int) -> list[tuple[int, int]]:
    """``first .. last - 1`` in ``parts`` runs, in order, whose lengths differ by one at most.

    Where there is less than one for each, the last are empty.
    """
    n = last - first
    ends = [first - (-k * n // parts) for k in range(parts + 1)]
    return list(itertools.pairwise(ends))


@final
class Shared:
    """What a :class:`Share`'s rows get of the draws that ``source`` makes for the whole batch.

    Every draw of ``source`` is of the whole batch, so all shares see one stream; what a batch draws once for all its
    rows is drawn from ``source`` itself.
    """

    def __init__(self, source: RNG, share: Share) -> None:
        self.source, self.share = source, share

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] != len(self.share):
            raise Refusal(f"a draw of {shape[0]} rows for a share of {len(self.share)}; draw a number for every row")
        return (self.share.whole, *shape[1:])

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Standard normal float32 numbers of ``shape``; raises :class:`Refusal` unless it has the share's rows."""
        return _own(self.share.of(self.source.normal(self._whole(shape))), rows)

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Uniform float32 numbers in [0, 1) of ``shape``; raises like :meth:`normal`."""
        return _own(self.share.of(self.source.uniform(self._whole(shape))), rows)


@final
class Uniforms:
    """Uniform numbers that were drawn before, as a source of randomness: every draw takes the same ones."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """The given numbers; raises :class:`Refusal` where another shape is asked for."""
        if tuple(self.numbers.shape) != tuple(shape):
            raise Refusal(
                f"given uniforms of shape {tuple(self.numbers.shape)} for sites {tuple(shape)}; give one a site"
            )
        return self.numbers

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Refused: tokens take uniform numbers."""
        raise Refusal("given uniforms hold no normal noise; pass a Stream for a process that draws it")


def as_rng(rng: Any) -> RNG:
    """An :class:`RNG` from what users hand in: an RNG as it is, a CPU ``torch.Generator``, or an int seed."""
    if isinstance(rng, int | torch.Generator):
        return Stream(rng)
    if hasattr(rng, "__index__") and not torch.is_tensor(rng):
        return Stream(operator.index(rng))
    if hasattr(rng, "normal") and hasattr(rng, "uniform"):
        given: RNG = rng
        return given
    raise Refusal(f"rng={rng!r} is no source of randomness; use a Stream, Streams, a torch.Generator or an int seed")

"""Maximum mean discrepancy: how far the mean embeddings of two sets are apart, in any kernel.

The contract: ``MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)``, the means over pairs of two *different* members
(Gretton et al. 2012, JMLR 13, eq. 3), so it is unbiased: 0 on average for two sets of one law, and then negative half
of the time.  Kernel matrices are summed by blocks of rows and never whole in memory.

* :class:`Cubic`, ``(x.y / d + 1)^3``: the kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401, section
  4); over all pairs, or over blocks as the papers report it (:func:`block_distance`).
* :class:`Radial`, ``mean_b exp(-|x - y|^2 / (2 b^2))`` over several widths b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.metrics.distances import ROWS, Estimate, checked, pair

#: The widths of :class:`Radial`, times the median distance between reference vectors.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Vectors that the median distance is taken between, evenly spaced since a split may be sorted by class.
MEDIAN_OF = 1000
#: Vectors in a block of :func:`block_distance` where there are enough (Binkowski et al.), and how many blocks at least.
BLOCK, BLOCKS = 1000, 10


@runtime_checkable
class Kernel(Protocol):
    """``k(x, y)`` of every row of one matrix with every row of another."""

    def __call__(self, x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]: ...


@final
@dataclass(frozen=True)
class Cubic:
    """``(x.y / d + 1)^3``."""

    def __call__(self, x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
        return torch.addmm(torch.ones((), dtype=x.dtype), x, y.mT, alpha=1 / x.shape[1]).pow_(3)


@final
@dataclass(frozen=True)
class Radial:
    """The mean of Gaussian kernels of several standard deviations ``widths``, in feature units."""

    widths: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.widths or not all(width > 0 for width in self.widths):
            raise Refusal(f"widths = {self.widths} of a radial kernel; give positive numbers")

    def __call__(self, x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
        square = torch.cdist(x, y).square_()
        return torch.stack([(square / (-2 * width**2)).exp_() for width in self.widths]).mean(0)


def median_distance(x: Float[Tensor, "n d"]) -> float:
    """The median distance between two different vectors among 1,000 evenly spaced ones (all, where there are fewer):
    the scale of a radial kernel.

    Raises :class:`Refusal` where it is 0.
    """
    every = checked(x, 2)
    count = min(len(every), MEDIAN_OF)
    rows = every[torch.arange(count) * len(every) // count]
    found = float(torch.nn.functional.pdist(rows).median())
    if found == 0:
        raise Refusal(f"more than half of {len(rows)} feature vectors are equal; a radial kernel has no scale")
    return found


def radial_of(reference: Float[Tensor, "n d"]) -> Radial:
    """The radial kernel whose widths are 1/4, 1/2, 1, 2 and 4 times the reference's median distance."""
    scale = median_distance(reference)
    return Radial(tuple(width * scale for width in WIDTHS))


def row_sums(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"], kernel: Kernel) -> Float64[Tensor, " n"]:
    """``sum_j k(x_i, y_j)`` for every i."""
    return torch.cat([kernel(rows, y).sum(1) for rows in torch.split(x, ROWS)])


def others(x: Float64[Tensor, "n d"], kernel: Kernel) -> Float64[Tensor, " n"]:
    """``sum_(j != i) k(x_i, x_j)`` for every i."""
    sums = []
    for first, rows in zip(range(0, len(x), ROWS), torch.split(x, ROWS), strict=True):
        block = kernel(rows, x)
        block[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = 0
        sums.append(block.sum(1))
    return torch.cat(sums)


@final
@dataclass(frozen=True, eq=False)
class Embedded:
    """A reference set with its own term of MMD^2, to measure many sets against."""

    x: Float64[Tensor, "m d"]
    kernel: Kernel
    within: float

    @staticmethod
    def of(reference: Float[Tensor, "m d"], kernel: Kernel) -> Embedded:
        """The reference, its pairs summed once."""
        x = checked(reference, 2)
        return Embedded(x, kernel, float(others(x, kernel).sum()) / (len(x) * (len(x) - 1)))

    def distance(self, features: Float[Tensor, "n d"]) -> Estimate:
        """MMD^2, with the standard error of the jackknife that leaves out one vector of ``features`` at a time.

        Raises :class:`Refusal` for fewer than 3 vectors.
        """
        x, y = pair(features, self.x, 3)
        n, own, cross = len(x), others(x, self.kernel), row_sums(x, y, self.kernel) / len(y)
        value = own.sum() / (n * (n - 1)) + self.within - 2 * cross.mean()
        without = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - 2 * (cross.sum() - cross) / (n - 1)
        error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
        return Estimate(float(value), float(error))


def mmd(x: Float[Tensor, "n d"], reference: Float[Tensor, "m _"], kernel: Kernel) -> Estimate:
    """MMD^2 of two sets with its jackknife standard error; see :class:`Embedded`."""
    x, reference = pair(x, reference, 3)
    return Embedded.of(reference, kernel).distance(x)


def block_size(n: int, m: int) -> int:
    """The vectors in a block for sets of n and m: 1,000, or fewer where there would be fewer than ten blocks."""
    return min(BLOCK, min(n, m) // BLOCKS)


def block_distance(x: Float[Tensor, "n d"], reference: Float[Tensor, "m _"], size: int | None = None) -> Estimate:
    """The cubic MMD^2 as a mean over disjoint blocks of ``size`` vectors of each set, with its standard error.

    The B-test of Zaremba et al. 2013, arXiv 1307.1954, eq. 4, of the kernel of Binkowski et al. 2018.  Which vectors
    make a block is drawn by a fixed seed; ``size``: :func:`block_size` unless given.  Raises :class:`Refusal` for fewer
    than 2 blocks, or blocks of fewer than 3.
    """
    x, reference = pair(x, reference, 6)
    size = block_size(len(x), len(reference)) if size is None else size
    blocks = min(len(x), len(reference)) // max(size, 1)
    if size < 3 or blocks < 2:
        raise Refusal(f"blocks of {size} from sets of {len(x)} and {len(reference)}; give at least 2 blocks of 3")
    parts = [side[blocks_of(len(side), blocks, size)] for side in (x, reference)]
    values = torch.tensor([mmd(a, b, Cubic()).value for a, b in zip(*parts, strict=True)], dtype=torch.float64)
    return Estimate(float(values.mean()), float(values.std() / blocks**0.5))


def blocks_of(n: int, blocks: int, size: int) -> Tensor:
    """Row numbers ``[blocks, size]`` out of n, none twice, by a fixed seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[: blocks * size].reshape(blocks, size)

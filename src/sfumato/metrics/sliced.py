"""The sliced 2-Wasserstein distance: optimal transport along many lines.

The contract: ``SW2^2 = mean over directions u of W2^2(u.x, u.y)`` (Bonneel et al. 2015, J. Math. Imaging Vis. 51,
eq. 6-8), with ``W2^2`` on the line exact for any n and m, since there the sorted values are matched in order.  The
directions are a function of (dimension, count, seed) alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.metrics.distances import Estimate, pair
from sfumato.metrics.manifolds import GROUPS, group_jackknife

#: Directions that are drawn unless told otherwise, and handled at once.
PROJECTIONS, AT_ONCE = 256, 32


def directions(d: int, count: int = PROJECTIONS, seed: int = 0) -> Float64[Tensor, "count d"]:
    """Unit vectors ``[count, d]``, uniform on the sphere."""
    drawn = torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


@lru_cache(maxsize=4)
def _levels(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where two inverse distribution functions jump: the widths between the multiples of 1/n and 1/m, and which of n
    and of m sorted values holds on each.
    """
    ends = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    width = torch.diff(ends, prepend=ends.new_zeros(1)).double() / (n * m)
    return width, (ends - 1) // m, (ends - 1) // n


def _sorted(x: Float64[Tensor, "n lines"]) -> Float64[Tensor, "n lines"]:
    """Every column in order; by NumPy, whose sort is many times faster than torch's on the CPU."""
    return torch.from_numpy(np.sort(x.mT.contiguous().numpy(), axis=1)).mT


def line_distance(a: Float64[Tensor, "n lines"], b: Float64[Tensor, "m lines"]) -> Float64[Tensor, " lines"]:
    """``W2^2`` of the columns of sorted values: ``int_0^1 (F_a^-1 - F_b^-1)^2``."""
    if len(a) == len(b):
        return (a - b).square().mean(0)
    width, left, right = _levels(len(a), len(b))
    return width @ (a[left] - b[right]).square()


def _squares(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"], lines: Float64[Tensor, "count d"], groups: int
) -> Float64[Tensor, " values"]:
    """``SW2^2`` of the whole of x, then without each of ``groups`` runs of neighbouring rows."""
    group = torch.arange(len(x)) * groups // len(x)
    total = torch.zeros(1 + groups, dtype=torch.float64)
    for part in torch.split(lines, AT_ONCE):
        a, b = x @ part.mT, _sorted(y @ part.mT)
        kept = [a] + [a[group != g] for g in range(groups)]
        total += torch.stack([line_distance(_sorted(rows), b).sum() for rows in kept])
    return total / len(lines)


def sliced_wasserstein(
    x: Float[Tensor, "n d"], reference: Float[Tensor, "m _"], *, projections: int = PROJECTIONS, seed: int = 0,
    groups: int = GROUPS,
) -> Estimate:  # fmt: skip
    """``SW2`` (not squared, in feature units), with the standard error of a jackknife over ``groups`` of ``x``
    (0: without an error, and so much faster), each of neighbouring rows, where every class is about as often.

    Raises :class:`Refusal` for fewer than 20 vectors, or no projection.
    """
    if projections < 1:
        raise Refusal(f"projections = {projections}; give at least 1")
    x, y = pair(x, reference, 2 * GROUPS)
    found = _squares(x, y, directions(x.shape[1], projections, seed), groups).sqrt()
    return Estimate(float(found[0]), group_jackknife(found[1:]) if groups > 1 else None)

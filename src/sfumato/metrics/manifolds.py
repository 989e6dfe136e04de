"""Neighbourhoods in feature space: do samples lie where real images do, and are all kinds of real images there?

The contract: a set's manifold is the union of balls around its members, each as wide as the distance to that member's
k-th nearest other member; all four numbers count who lies in whose balls, exactly, in float64, block by block.

* precision and recall: Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2.
* density and coverage: Naeem et al. 2020, arXiv 2002.09797, eq. 3-4; only real balls count, so that one stray sample
  cannot cover much.

All fall as a set grows sparse, so compare only at equal n and m.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.metrics.distances import ROWS, Estimate, pair

#: Groups that the delete-a-group jackknife leaves out in turn: runs of neighbouring samples, since every tenth sample
#: of ten classes in turn is of one class.
GROUPS = 10


def radii(x: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The distance of every vector to its k-th nearest other vector."""
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1, dim=1).values for rows in torch.split(x, ROWS)])


def group_jackknife(without: Float64[Tensor, " groups"]) -> float:
    """The standard error of a statistic from its values with one of g equal groups of samples left out.

    ``((g - 1) / g * sum (v_i - mean v)^2)^(1/2)`` (Efron and Tibshirani 1993, eq. 11.5, for groups).
    """
    g = len(without)
    return float(((g - 1) / g * (without - without.mean()).square().sum()).sqrt())


def _spread(per_sample: Float64[Tensor, " n"]) -> Estimate:
    """The mean of independent numbers."""
    return Estimate(float(per_sample.mean()), float(per_sample.std() / len(per_sample) ** 0.5))


def _checked(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise Refusal(f"k = {k} neighbours; the papers take 3 and 5")
    return pair(real, generated, k + 1)


def _by_group(inside: Bool[Tensor, "rows m"], groups: int) -> Bool[Tensor, "rows groups"]:
    """Whether a row lies in a ball of a member of each group; groups are runs of neighbouring members."""
    return torch.stack([part.any(1) for part in torch.tensor_split(inside, groups, dim=1)], 1)


def _covered(found: Bool[Tensor, "m groups"]) -> Estimate:
    """The share of rows that any group reaches, and its standard error over the draw of the groups' members.

    The jackknife of such a share is too large rather than too small (Efron and Stein 1981, Ann. Statist. 9, theorem 2):
    by about a half here.  Radii are those of the whole set.
    """
    count = found.sum(1)
    others = (count[:, None] - found.long()) > 0
    return Estimate(float((count > 0).double().mean()), group_jackknife(others.double().mean(0)))


def precision(real: Float[Tensor, "n d"], generated: Float[Tensor, "m _"], k: int = 3) -> Estimate:
    """The share of generated vectors within the real manifold.  Raises :class:`Refusal` for k vectors or fewer."""
    real, generated = _checked(real, generated, k)
    reach = radii(real, k)
    inside = [(torch.cdist(rows, real) <= reach).any(1) for rows in torch.split(generated, ROWS)]
    return _spread(torch.cat(inside).double())


def recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m _"], k: int = 3) -> Estimate:
    """The share of real vectors within the generated manifold.  Raises :class:`Refusal` for k vectors or fewer."""
    real, generated = _checked(real, generated, k)
    reach, groups = radii(generated, k), min(GROUPS, len(generated))
    found = [_by_group(torch.cdist(rows, generated) <= reach, groups) for rows in torch.split(real, ROWS)]
    return _covered(torch.cat(found))


def density(real: Float[Tensor, "n d"], generated: Float[Tensor, "m _"], k: int = 5) -> Estimate:
    """How many real balls a generated vector lies in, on average, over k; it may exceed 1.

    Raises :class:`Refusal` for k vectors or fewer.
    """
    real, generated = _checked(real, generated, k)
    reach = radii(real, k)
    inside = [(torch.cdist(rows, real) <= reach).sum(1) for rows in torch.split(generated, ROWS)]
    return _spread(torch.cat(inside).double() / k)


def coverage(real: Float[Tensor, "n d"], generated: Float[Tensor, "m _"], k: int = 5) -> Estimate:
    """The share of real balls that hold a generated vector.  Raises :class:`Refusal` for k vectors or fewer."""
    real, generated = _checked(real, generated, k)
    reach, groups = radii(real, k), min(GROUPS, len(generated))
    found = [
        _by_group(torch.cdist(rows, generated) <= part[:, None], groups)
        for rows, part in zip(torch.split(real, ROWS), torch.split(reach, ROWS), strict=True)
    ]
    return _covered(torch.cat(found))


def precision_recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m _"], k: int = 3) -> tuple[float, float]:
    """:func:`precision` and :func:`recall`, without their errors."""
    return precision(real, generated, k).value, recall(real, generated, k).value

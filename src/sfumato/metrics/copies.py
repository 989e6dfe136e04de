"""Are samples copies of training images?  Nearest training neighbours in pixel space, judged by held-out images.

The copy score of an image is its Euclidean pixel distance to the nearest training image, divided by the mean distance
to its 50 nearest: 0 for a copy, near 1 where no neighbour stands out, whatever the local density (Carlini et al. 2023,
arXiv 2301.13188, section 4.2).  An image counts as a copy where its score is below the one that 1% of real held-out
images fall below.  So the rule calls 1% of honest images copies; more than that is memory.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from sfumato.errors import Refusal

#: How many nearest training images the local scale is taken over.
NEIGHBOURS = 50
#: The share of held-out images that the rule calls copies.
HELD_OUT_RATE = 0.01
#: Images handled at once: 200 x 60,000 distances take 48 MB.
ROWS = 200


def _flat(x: UInt8[Tensor, "n *image"]) -> Float32[Tensor, "n d"]:
    """Grey levels in [0, 1], one row per image."""
    return x.reshape(len(x), -1).to(torch.float32).mul_(1 / 255)


def nearest_training(
    x: UInt8[Tensor, "n *image"], train: UInt8[Tensor, "m ..."], k: int = 1
) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Distances (Euclidean, pixels in [0, 1]) and indices of the k nearest training images, nearest first.

    ``x`` and ``train`` have one layout.  Exact up to float32; 2,000 x 60,000 MNIST images take seconds on 2 cores.
    Raises :class:`Refusal` where the shapes differ or there are fewer than ``k`` training images.
    """
    if x.shape[1:] != train.shape[1:]:
        raise Refusal(f"images are {list(x.shape[1:])}, the training images {list(train.shape[1:])}; give one layout")
    if not 1 <= k <= len(train):
        raise Refusal(f"k = {k} neighbours among {len(train)} training images; take 1..{len(train)}")
    basis = _flat(train)
    norms = basis.square().sum(1)
    distances, indices = [], []
    for rows in torch.split(x, ROWS):
        query = _flat(rows)
        square = torch.addmm(norms, query, basis.mT, alpha=-2)
        best = square.topk(k, dim=1, largest=False)
        distances.append((best.values + query.square().sum(1, keepdim=True)).clamp_min_(0).sqrt_())
        indices.append(best.indices)
    return torch.cat(distances), torch.cat(indices)


def copy_scores(x: UInt8[Tensor, "n *image"], train: UInt8[Tensor, "m *image"]) -> Float32[Tensor, " n"]:
    """Nearest distance over the mean of the 50 nearest (of all, where there are fewer), 0..1.

    An image whose 50 neighbours are all itself scores 0.
    """
    distance, _ = nearest_training(x, train, min(NEIGHBOURS, len(train)))
    mean = distance.mean(1)
    return torch.where(mean > 0, distance[:, 0] / mean.clamp_min(1e-12), torch.zeros(()))


def copy_threshold(held_out: Float[Tensor, " n"]) -> float:
    """The score below which 1% of the held-out scores lie."""
    return float(held_out.double().quantile(HELD_OUT_RATE))


def copy_rate(scores: Float[Tensor, " n"], threshold: float) -> float:
    """The share of scores below the threshold."""
    return float((scores.double() < threshold).double().mean())

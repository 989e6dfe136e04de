"""Feature vectors of texts and of time series without any network: counts, statistics and random convolutions.

The contract: a sample's features are a function of the sample and the settings alone; the random kernels are those of
a fixed seed.  Features of series keep the units of the series (or its square, ...): standardise them over a reference.

* texts: n-gram frequencies by the hashing trick (Weinberger et al. 2009, arXiv 0902.2206, eq. 1).
* series: moments, extremes and autocorrelations of each channel, and of random dilated convolutions their largest value
  and the share of positive ones (Dempster et al. 2020, "ROCKET", arXiv 1910.13051, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from sfumato.errors import Refusal

#: Lags of the autocorrelations.
LAGS = (1, 2, 4, 8)
#: What is measured of a channel.
STATISTICS = ("mean", "deviation", "skewness", "kurtosis", "least", "most", *(f"lag {lag}" for lag in LAGS), "step")
#: Lengths that random kernels have.
LENGTHS = (7, 9, 11)


def hashed_grams(texts: Sequence[str], n: int, buckets: int) -> Float32[Tensor, "texts d"]:
    """For each text and each length 1..n: the n-grams of its characters, added up with signs in ``buckets`` places.

    A row is scaled to unit mean square, so that the scalar product over d of two rows is their cosine (a text without
    characters is all zeros).
    """
    from sfumato.metrics.text import code_points, grams

    rows = np.zeros((len(texts), n, buckets))
    for k, text in enumerate(texts):
        for length in range(1, n + 1):
            found = grams([code_points(text)], length)
            sign = 1.0 - 2.0 * ((found >> np.uint64(40)) & np.uint64(1)).astype(np.float64)
            place = (found % np.uint64(buckets)).astype(np.int64)
            rows[k, length - 1] = np.bincount(place, sign, buckets) / max(1, len(found))
    flat = rows.reshape(len(texts), -1)
    scale = np.sqrt((flat**2).mean(1, keepdims=True))
    return torch.from_numpy(np.divide(flat, scale, out=np.zeros_like(flat), where=scale > 0)).float()


def centred(x: Float64[Tensor, "n c length"]) -> Float64[Tensor, "n c length"]:
    """Every channel of every series with mean 0 and deviation 1; a constant one is 0."""
    mean, deviation = x.mean(2, keepdim=True), x.std(2, keepdim=True, correction=0)
    return torch.where(deviation > 0, (x - mean) / deviation.clamp_min(1e-300), torch.zeros_like(x))


def statistics(x: Float64[Tensor, "n c length"]) -> Float64[Tensor, "n d"]:
    """:data:`STATISTICS` of every channel; a constant channel has no shape (skewness, kurtosis, lags: 0).

    Raises :class:`Refusal` for series shorter than 2.
    """
    length = x.shape[2]
    if length < 2:
        raise Refusal(f"series of {length} step; statistics need at least 2")
    z, mean = centred(x), x.mean(2)
    lagged = [(z[..., lag:] * z[..., :-lag]).mean(2) if lag < length else torch.zeros_like(mean) for lag in LAGS]
    found = [
        mean, x.std(2, correction=0), (z**3).mean(2), (z**4).mean(2), x.amin(2), x.amax(2), *lagged,
        x.diff(dim=2).abs().mean(2),
    ]  # fmt: skip
    return torch.stack(found, 2).flatten(1)


def convolved(x: Float64[Tensor, "n c length"], kernels: int, seed: int = 0) -> Float64[Tensor, "n d"]:
    """Of ``kernels`` random convolutions of the :func:`centred` series: the largest value, the share above 0.

    Weights are centred normals, biases uniform in [-1, 1], dilations ``2^u`` with u uniform up to what fits, padding
    keeps the length; all are drawn by ``seed``.
    """
    g = torch.Generator().manual_seed(seed)
    _, channels, length = x.shape
    found, z = [], centred(x)
    for k in range(kernels):
        size = LENGTHS[k % len(LENGTHS)]
        weight = torch.randn(1, channels, size, generator=g, dtype=torch.float64)
        weight = (weight - weight.mean(2, keepdim=True)) / (channels * size) ** 0.5
        u, bias = torch.rand(2, generator=g, dtype=torch.float64)
        room = max(0.0, float(np.log2(max(1, (length - 1) / (size - 1)))))
        dilation = int(2 ** (float(u) * room))
        padding = (size - 1) * dilation // 2
        y = torch.nn.functional.conv1d(z, weight, 2 * bias[None] - 1, dilation=dilation, padding=padding)[:, 0]
        found += [y.amax(1), (y > 0).double().mean(1)]
    return torch.stack(found, 1)

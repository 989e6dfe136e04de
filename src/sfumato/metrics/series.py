"""Statistics of generated series against held-out series, each a record with the floor that real series reach.

The contract: every number is a function of the series alone; the floor is the same computation with as many training
series in the samples' place.

=================  ===========================================================================================  ======
record             what it is                                                                                   better
=================  ===========================================================================================  ======
values             Kolmogorov-Smirnov distance of all values of a channel, mean over channels                   lower
moments            the same at every moment of the series, mean over moments and channels                       lower
autocorrelation    root mean square difference of the autocorrelation functions, lags 1 to half the length      lower
spectrum           total variation of the mean power spectra, each of them a distribution over frequencies      lower
cross-correlation  mean absolute difference of the correlations of any two channels, where there are some       lower
=================  ===========================================================================================  ======
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from sfumato.data.series import SeriesData
from sfumato.errors import Refusal
from sfumato.metrics.columns import Measured, correlations, kolmogorov_smirnov, records, some
from sfumato.metrics.records import Record

Series = Float64[np.ndarray, "n c l"]


def autocorrelation(x: Series) -> Float64[np.ndarray, "c k"]:
    """``sum_i (x_i - m)(x_{i+k} - m) / sum_i (x_i - m)^2`` for lags ``k`` from 1 to half the length: over all series,
    ``m`` their common mean."""
    length = x.shape[-1]
    centred = x - x.mean((0, 2), keepdims=True)
    power = (centred**2).sum((0, 2))
    lags = range(1, max(2, length // 2 + 1)) if length > 1 else range(0)
    sums = [(centred[..., :-k] * centred[..., k:]).sum((0, 2)) for k in lags]
    found = np.array(sums).reshape(len(lags), -1).T
    return found / np.where(power > 0, power, 1.0)[:, None]


def spectrum(x: Series) -> Float64[np.ndarray, "c f"]:
    """The mean power of every frequency but 0 as shares of each channel's power; nothing where a channel is flat."""
    power = (np.abs(np.fft.rfft(x, axis=-1))[..., 1:] ** 2).mean(0)
    total = power.sum(-1, keepdims=True)
    shares: np.ndarray = power / np.where(total > 0, total, 1.0)
    return shares


def gaps(a: Series, b: Float64[np.ndarray, "m c l"]) -> dict[str, float]:
    """All distances of two sets of series."""
    channels, length = a.shape[1:]
    every = [kolmogorov_smirnov(a[:, c].ravel(), b[:, c].ravel()) for c in range(channels)]
    each = [kolmogorov_smirnov(a[:, c, k], b[:, c, k]) for c in range(channels) for k in range(length)]
    lagged = (autocorrelation(a) - autocorrelation(b)) ** 2
    found = {
        "values": float(np.mean(every)),
        "moments": float(np.mean(each)),
        "autocorrelation": float(np.sqrt(lagged.mean())) if lagged.size else 0.0,
        "spectrum": float(np.abs(spectrum(a) - spectrum(b)).sum(-1).mean() / 2),
    }
    if channels > 1:
        flat_a, flat_b = (np.moveaxis(x, 1, 2).reshape(-1, channels) for x in (a, b))
        apart = ~np.eye(channels, dtype=bool)
        found["cross-correlation"] = float(np.abs(correlations(flat_a) - correlations(flat_b))[apart].mean())
    return found


RULES = {
    "values": "Kolmogorov-Smirnov distance of all values, mean over channels",
    "moments": "Kolmogorov-Smirnov distance at every moment, mean",
    "autocorrelation": "root mean square gap of the autocorrelation functions up to half the length",
    "spectrum": "total variation of the power spectra",
    "cross-correlation": "mean gap of the correlations of channels",
}


def evaluate_series(samples: Any, data: SeriesData, *, generated: Mapping[str, Any]) -> list[Record]:
    """Measure generated series ``[n, length]`` or ``[n, channels, length]``: the records at the top of this module.

    ``generated`` says how the samples were made: ``sampler``, ``nfe`` and ``seed`` (None where not known), and whatever
    else is to be kept.  Raises :class:`Refusal` for series of another shape than the data's.
    """
    x = np.asarray(samples, dtype=np.float64)
    x = x[:, None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[1:] != data.shape or len(x) < 2:
        raise Refusal(
            f"samples of shape {list(x.shape)}; {data.name} holds series of {list(data.shape)}, give 2 or more"
        )
    test, train = (split.x.double().numpy() for split in (data.test, data.train))
    real = train[some(len(train), len(x))]
    values, floors = gaps(x, test), gaps(real, test)
    found = [Measured(name, values[name], floors[name], RULES[name]) for name in values]
    floor_rule = f"{len(real)} training series"
    return records(found, data, n=len(x), floor_rule=floor_rule, extractor="series", generated=generated)

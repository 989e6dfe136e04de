"""The mixtures that solvers are measured on, and a way to make others to develop on.

The contract: every function gives the same :class:`~sfumato.oracles.GaussianMixture` at every call, of about unit
scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.oracles.mixture import GaussianMixture
from sfumato.randomness import Stream


def three_modes() -> GaussianMixture:
    """The 2-D mixture of weights .5, .3, .2 and standard deviation .3 that the checks use."""
    return GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)


def unequal() -> GaussianMixture:
    """Four modes in 64 dimensions: covariances in random axes, variances from .01 to 1, wider from mode to mode."""
    scales = (0.25, 0.5, 0.75, 1.0)
    return scattered([0.4, 0.3, 0.2, 0.1], 64, 1.0, (0.01, 1.0), seed=64, scales=scales)


def held_out() -> dict[str, GaussianMixture]:
    """Two more that no rule of ours was made on: five modes in 3 dimensions, three in 32."""
    return {
        "5 modes, 3-D": scattered([0.3, 0.25, 0.2, 0.15, 0.1], 3, 1.3, (0.03, 0.3), seed=3026),
        "3 modes, 32-D": scattered([0.5, 0.3, 0.2], 32, 0.9, (0.01, 0.5), seed=3027),
    }


def scattered(
    weights: Sequence[float],
    dimension: int,
    spread: float,
    variances: tuple[float, float],
    seed: int,
    scales: Sequence[float] | None = None,
) -> GaussianMixture:
    """Modes at ``spread`` times normal noise; covariances in random axes, their variances log-uniform between two
    bounds, those of mode k times ``scales[k]``.
    """
    rng, k = Stream(seed), len(weights)
    means = spread * rng.normal((k, dimension)).double()
    axes = torch.linalg.qr(rng.normal((k, dimension, dimension)).double())[0]
    low, high = (math.log(v) for v in variances)
    spectrum = (low + (high - low) * rng.uniform((k, dimension)).double()).exp()
    spectrum = spectrum * torch.tensor(scales or [1.0] * k, dtype=torch.float64)[:, None]
    covariances: Tensor = (axes * spectrum[:, None]) @ axes.mT
    return GaussianMixture(list(weights), means, (covariances + covariances.mT) / 2)

"""From densities in the model's units to bits per dimension of the user's grey levels.

The contract: with bins of width ``w`` (the spacing of the grey levels in the model's units) a density ``p`` gives level
``x`` the probability of its bin, and by Jensen's inequality ``-log P(x) <= E_q[log q(z|x) - log p(z) - log P(x|z)]``
for every way ``q`` of filling the bin, so dequantisation bounds the discrete likelihood from one side:

* **uniform** (Theis et al. 2016, section 3.1): ``z`` uniform on the bin; ``-log p(z) - d log w``.  On [-1, 1] with 256
  bins of width 1/128 that is the familiar offset of 7 bits;
* **variational, by the model's own noise** (Ho et al. 2019, section 3.1, with ``q(z|x)`` the process's marginal and
  ``P(x|z)`` the discretised decoder, as in Kingma et al. 2021, eq. 11): the first step of the evidence bound, so that
  both likelihoods see the same data.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sfumato.processes.decoder import Levels
from sfumato.randomness import as_rng


def bits_per_dim(nats: Any, dimensions: int) -> Any:
    """Nats of a sample of ``dimensions`` coordinates in bits per coordinate."""
    return nats / (dimensions * math.log(2))


def uniform_dequantise(x0: Tensor, levels: Levels, rng: Any) -> Tensor:
    """``x0`` on the levels, moved to a uniform place in its bin; shape and units of ``x0``."""
    place = as_rng(rng).uniform(tuple(x0.shape)).to(x0) - 0.5
    return x0 + levels.width * place


def uniform_bits(logp: Tensor, levels: Levels, dimensions: int) -> Tensor:
    """Bits/dim of uniformly dequantised data: ``-logp / (d log 2) - log2(width)``, shape ``[b]``."""
    bits: Tensor = bits_per_dim(-logp, dimensions) - math.log2(levels.width)
    return bits


def equal_noise(levels: Levels) -> float:
    """The noise of the variance of a uniform place in a bin, ``width / sqrt(12)``."""
    return levels.width / math.sqrt(12)


__all__ = ["bits_per_dim", "equal_noise", "uniform_bits", "uniform_dequantise"]

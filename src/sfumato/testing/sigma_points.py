"""Noise without chance: exact expectations of quadratics through any code that draws normals.

The contract: :class:`SigmaPoints` hands out +1 and -1 in the pattern of Walsh functions.  Over the rows of a batch
every coordinate ever drawn has mean 0 and mean square 1, and any two have mean product 0.  So the average over the
batch of anything quadratic in the noise (a KL of Normals at a linear belief, the square of a linear sampler's output)
is its exact expectation under standard normal noise.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sfumato.errors import Refusal


@final
class SigmaPoints:
    """An RNG whose ``normal`` is +-1 by Walsh functions, a fresh function for every coordinate of every draw.

    Batches must have a power of two of rows, more than the coordinates drawn in all: ``2048`` rows serve 2047
    coordinates.
    """

    def __init__(self) -> None:
        self.used = 0

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """The next coordinates; raises :class:`Refusal` where the batch has too few rows to keep them uncorrelated."""
        batch, count = shape[0], int(torch.Size(shape[1:]).numel())
        if batch & (batch - 1) or self.used + count >= batch:
            raise Refusal(
                f"{batch} sigma points cannot carry {self.used + count} coordinates; use a larger power of two"
            )
        row = torch.arange(batch)[:, None]
        bits = row & torch.arange(self.used + 1, self.used + count + 1)
        parity = torch.zeros_like(bits)
        while bool(bits.any()):
            parity ^= bits & 1
            bits = bits >> 1
        self.used += count
        return (1.0 - 2.0 * parity).to(torch.float32).reshape(shape)

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Refused: sigma points are exact for normals only."""
        raise Refusal("sigma points replace normal noise only; use a Stream where uniforms are drawn")

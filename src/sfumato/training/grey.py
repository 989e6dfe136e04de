"""Where the 256 grey levels of the data lie in a model's units.

The contract: the limits are a buffer of the model, so they are stored and restored with it; they are fixed once, before
the first step (:func:`note`), and until then ``levels()`` is None.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.processes.decoder import Levels


@final
class GreyLevels(nn.Module):
    """Black and white in the model's units: what the decoder of the first step needs."""

    limits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limits", torch.full((2,), math.nan))

    def set(self, low: float, high: float) -> None:
        """Fix the limits, before training."""
        self.limits.copy_(torch.tensor([low, high]))

    def levels(self) -> Levels | None:
        """256 levels between them; None while they are not known, which leaves the decoder a density."""
        low, high = (float(v) for v in self.limits)
        return None if math.isnan(low) else Levels(low, high)

    def unit(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """``x`` with grey level ``k`` at ``2 k / 256 - 1``, whatever the units; itself while these are unknown."""
        levels = self.levels()
        return x if levels is None else (x - levels.low) / (128 * levels.width) - 1


def note(model: Any, data: Any) -> None:
    """Fix the limits in ``model.net.grey``: what a recipe that needs them does before its first step."""
    model.net.grey.set(*model.transform.limits)

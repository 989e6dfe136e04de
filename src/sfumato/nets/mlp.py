"""A residual multilayer perceptron on flat vectors, told the time by Fourier features: points, angles, rotations.

The contract: ``net(x [b, inputs], t [b], cond) -> [b, outputs]``; the output is 0 at the start of training.  With
``classes``, ``cond["label"]`` picks an embedding, and ``label == classes`` is the null label.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal

#: Waves of the time, from half a period over [0, 1] up to 64 periods: cosines and sines of each.
WAVES = 8


def fourier_features(t: Float[Tensor, " b"]) -> Float[Tensor, "b features"]:
    """Cosines and sines of ``pi 2^k t``, ``k = 0 .. 7``, ``[b, 16]``."""
    angle = t.float()[:, None] * (math.pi * 2.0 ** torch.arange(WAVES, device=t.device))
    return torch.cat([angle.cos(), angle.sin()], 1)


@final
class MLP(nn.Module):
    """``inputs`` numbers to ``outputs``, ``depth`` residual blocks of ``width`` units with SiLU.

    Raises :class:`Refusal` for a size below 1 and for a label that is missing or unasked for.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 128, depth: int = 4, classes: int = 0) -> None:
        super().__init__()
        if min(inputs, outputs, width, depth) < 1 or classes < 0:
            raise Refusal(f"inputs={inputs}, outputs={outputs}, width={width}, depth={depth}: all must be at least 1")
        self.settings: dict[str, Any] = {
            "inputs": inputs, "outputs": outputs, "width": width, "depth": depth, "classes": classes,
        }  # fmt: skip
        self.first = nn.Linear(inputs, width)
        self.time = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.first.weight.dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, self.first.weight.dtype):
            raise Refusal(f"precision={dtype}: a perceptron computes in float32; use precision=float32")

    def forward(
        self, x: Float[Tensor, "b inputs"], t: Float[Tensor, " b"], cond: Any = None
    ) -> Float[Tensor, "b outputs"]:
        """The output in the dtype of ``x``; computed in that of the weights."""
        told = self.time(fourier_features(t).to(self.first.weight.dtype))
        if (self.label is None) != (not cond):
            given = sorted(cond) if cond else "none"
            raise Refusal(
                f"cond={given} for a network of {self.settings['classes']} classes; give 'label' to one of some"
            )
        if self.label is not None:
            told = told + self.label(cond["label"])
        h = self.first(x.to(self.first.weight.dtype))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(norm(h) + told)
        out: Tensor = self.last(h)
        return out.to(x.dtype)

"""A residual network on rows of a table: numbers and tokens in, a number for each number, logits for each token out.

The contract: ``net(numbers [b, n], tokens [b, m], t [b], cond)`` gives ``(numbers [b, n], logits [b, sum of K_j])``;
token ``j`` has values ``0 .. K_j - 1`` and ``K_j``, which says that it is masked.  Both outputs are 0 at the start.
With ``classes``, ``cond["label"]`` picks an embedding and ``label == classes`` is the null label, as is no label.

Source: the residual network of Gorishniy et al. 2021 (https://arxiv.org/abs/2106.11959) with their periodic features of
numbers (2022, https://arxiv.org/abs/2203.05556) at fixed frequencies, modulated by time as the U-Net is (FiLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.nets.mlp import WAVES, fourier_features

#: Frequencies of the features of a number of unit variance, in radians.
FREQUENCIES = (1.0, 2.0, 4.0)


@final
class TableNet(nn.Module):
    """``depth`` residual blocks of ``width`` units for ``numbers`` floats and tokens of ``sizes``.

    Raises :class:`Refusal` for a size below 1, no column at all, and a label without classes.
    """

    def __init__(
        self,
        numbers: int,
        sizes: Sequence[int] = (),
        width: int = 256,
        depth: int = 4,
        classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min([width, depth, *sizes]) < 1 or numbers < 0 or numbers + len(sizes) == 0 or not 0 <= dropout < 1:
            raise Refusal(
                f"numbers={numbers}, sizes={list(sizes)}, width={width}, depth={depth}, dropout={dropout}: "
                "need a column, sizes of at least 1 and a dropout below 1"
            )
        self.settings: dict[str, Any] = {
            "numbers": numbers, "sizes": list(sizes), "width": width, "depth": depth, "classes": classes,
            "dropout": dropout,
        }  # fmt: skip
        self.first = nn.Linear((1 + 2 * len(FREQUENCIES)) * numbers, width) if numbers else None
        # one table for all tokens: column j begins at places[j], its mask is its last row
        starts = torch.tensor([0, *(size + 1 for size in sizes)]).cumsum(0)
        self.register_buffer("places", starts[:-1], persistent=False)
        self.places: Tensor
        self.tokens = nn.Embedding(int(starts[-1]), width) if sizes else None
        self.time = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth + 1))
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth + 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.last = nn.Linear(width, numbers + sum(sizes))
        for zero in (self.last, *self.films):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.last.weight.dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, self.last.weight.dtype):
            raise Refusal(f"precision={dtype}: the network of tables computes in float32; use precision=float32")

    def forward(
        self,
        numbers: Float[Tensor, "b n"],
        tokens: Int[Tensor, "b m"],
        t: Float[Tensor, " b"],
        cond: Any = None,
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b k"]]:
        """The outputs in float32."""
        dtype = self.last.weight.dtype
        x = numbers.to(dtype)
        waves = [f(k * x) for k in FREQUENCIES for f in (torch.sin, torch.cos)]
        h = x.new_zeros(len(x), self.settings["width"]) if self.first is None else self.first(torch.cat([x, *waves], 1))
        if self.tokens is not None:
            h = h + self.tokens(tokens + self.places).sum(1)
        told = self.time(fourier_features(t).to(dtype))
        label = cond.get("label") if cond is not None else None
        if self.label is not None:
            null = torch.full(t.shape, self.label.num_embeddings - 1, dtype=torch.long, device=t.device)
            told = told + self.label(null if label is None else label)
        elif label is not None:
            raise Refusal("this network was built without classes, and was given a label; build it with classes=K")
        told = nn.functional.silu(told)
        for k, norm in enumerate(self.norms):
            scale, shift = self.films[k](told).chunk(2, 1)
            modulated = norm(h) * (1 + scale) + shift
            h = h + self.blocks[k](modulated) if k < len(self.blocks) else modulated
        out: Tensor = self.last(h)
        n = numbers.shape[1]
        return out[:, :n], out[:, n:]

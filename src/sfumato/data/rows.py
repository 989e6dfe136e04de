"""What training reads: rows, any of them as a batch on the training device.

The contract: ``batch(index)`` is a function of the index alone, so a resumed run reads what the interrupted one would
have read.
"""

from __future__ import annotations

from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Rows(Protocol):
    """``n`` rows, any of them as a batch on the training device."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at ``index``: ``"x"`` (as stored), or ``"x0"`` (model units) with its ``"end"``; ``"label"``."""
        ...


@runtime_checkable
class Source(Protocol):
    """A data set of any kind, as training sees it.  ``kind`` says what its samples are: images, text, ..."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def prepared(self, settings: Any) -> Source:
        """The data in the units that a recipe's settings ask for (standardised, cut into tokens)."""
        ...

    def rows(self, device: torch.device) -> Rows:
        """The training split."""
        ...

    @property
    def held_out(self) -> Any:
        """The split that validation reads: ``len`` and ``tensors()``."""
        ...

    def spec(self) -> dict[str, Any]:
        """What a checkpoint stores of it (JSON)."""
        ...


@final
class Dataset:
    """A data set in memory: ``x [n, ...]`` as stored (uint8) and, where there are classes, int64 ``label [n]``."""

    def __init__(self, x: Tensor, label: Tensor | None, device: torch.device) -> None:
        self.x, self.label, self.device = x, label, device

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at ``index``, on the training device."""
        rows = {"x": self.x[index].to(self.device)}
        return rows if self.label is None else rows | {"label": self.label[index].to(self.device)}

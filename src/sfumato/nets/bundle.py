"""A network and whatever else is learned or remembered beside it, as one module.

The contract: calling the bundle calls the network; its ``state_dict`` holds all of it, so one optimiser trains, one
average follows and one file stores the whole.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.core import Cond


@final
class Bundle(nn.Module):
    """``Bundle(net, schedule=..., history=...)``: the modules beside ``net`` are its attributes."""

    def __init__(self, net: Any, **beside: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, module in beside.items():
            self.add_module(name, module)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The network's."""
        dtype: torch.dtype = self.net.compute_dtype
        return dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.net.compute_dtype = dtype

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Any:
        """The network's output."""
        return self.net(x, t, cond)

"""A network and whatever else is learned or remembered beside it, as one module.

The contract: calling the bundle calls the network; its ``state_dict`` holds all of it, so one optimiser trains, one
average follows and one file stores the whole.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from sfumato.core import Cond
from sfumato.nets.delegated import Delegated
from sfumato.nets.energy import energy_of


@final
class Bundle(nn.Module):
    """``Bundle(net, schedule=..., history=...)``: the modules beside ``net`` are its attributes."""

    compute_dtype = Delegated("net")

    def __init__(self, net: Any, **beside: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, module in beside.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Any:
        """The network's output."""
        return self.net(x, t, cond)

    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The network's energy, where it is the gradient of one."""
        return energy_of(self.net, x, t, cond)

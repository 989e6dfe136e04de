"""Settings of the networks of tables and of time series, beside those of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from sfumato.training.settings import Network, require


@final
@dataclass(frozen=True)
class TableNetwork:
    """The residual network of rows: ``depth`` blocks of ``width`` units; ``conditional``: told the class, if any."""

    width: int = 256
    depth: int = 4
    dropout: float = 0.0
    conditional: bool = True

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.depth >= 1, "depth", self.depth, "at least 1 block")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a probability below 1")


@final
@dataclass(frozen=True)
class SeriesNetwork:
    """The one-dimensional U-Net: ``channels`` per stage, residual ``blocks`` per stage, ``attention`` per stage.

    Every stage but the first halves the length; a length that cannot be halved so often is padded inside.
    """

    channels: tuple[int, ...] = (48, 96, 96)
    blocks: int = 2
    attention: tuple[bool, ...] = (False, False, True)
    dropout: float = 0.0
    conditional: bool = True

    def __post_init__(self) -> None:
        require(len(self.channels) > 0 and min(self.channels) > 0, "channels", self.channels, "positive numbers")
        require(self.blocks >= 1, "blocks", self.blocks, "at least 1")
        stages = len(self.channels)
        need = f"{stages} values, one per stage of channels"
        require(len(self.attention) == stages, "attention", self.attention, need)
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a probability below 1")


#: Of a recipe that takes images, tables and series: the network that fits the data.
AnyNetwork = Network | TableNetwork | SeriesNetwork

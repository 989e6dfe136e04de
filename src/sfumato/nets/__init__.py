"""Networks: maps from ``(x, t, cond)`` to a tensor.  They know nothing of diffusion.

``get(name, **settings)`` builds one; ``net.settings`` rebuilds it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.nets.bundle import Bundle
from sfumato.nets.energy import Energy
from sfumato.nets.mp_unet import MPUNet
from sfumato.nets.precision import best_dtype
from sfumato.nets.table_net import TableNet
from sfumato.nets.text_transformer import EmbeddingTransformer, TextTransformer
from sfumato.nets.unet import UNet
from sfumato.nets.unet1d import UNet1d
from sfumato.registry import Registry

_registry: Registry[nn.Module] = Registry("network")
_registry.add("unet", UNet)
_registry.add("mp-unet", MPUNet)
_registry.add("unet-1d", UNet1d)
_registry.add("table-net", TableNet)
_registry.add("text-transformer", TextTransformer)
_registry.add("embedding-transformer", EmbeddingTransformer)


def names() -> list[str]:
    """The names of all networks."""
    return list(_registry)


def get(name: str, **settings: Any) -> nn.Module:
    """Build the network called ``name``; an unknown name or setting is refused with the nearest.

    >>> get("unet", in_channels=1, out_channels=1, size=(28, 28)).settings["blocks"]
    2
    """
    return _registry.get(name, **settings)


__all__ = [
    "Bundle", "EmbeddingTransformer", "Energy", "TableNet", "TextTransformer", "UNet", "UNet1d", "best_dtype", "get",
    "names",
]  # fmt: skip

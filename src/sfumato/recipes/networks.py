"""The networks of recipes: from settings and the description of the data to an untrained module.

The contract: the result is a function of torch's random state and the arguments alone; a size that does not fit is
refused here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato import nets
from sfumato.training.settings import require


def series_net(recipe: Any, settings: Any, spec: Mapping[str, Any], classes: tuple[str, ...]) -> Any:
    """The one-dimensional U-Net for series of ``spec["shape"] = [c, length]``."""
    chosen = settings.network
    return nets.get(
        "unet-1d",
        in_channels=int(spec["shape"][0]),
        out_channels=int(spec["shape"][0]),
        channels=chosen.channels,
        blocks=chosen.blocks,
        attention=chosen.attention,
        classes=len(classes) or None,
        dropout=chosen.dropout,
    )


def image_net(recipe: Any, settings: Any, spec: Mapping[str, Any], classes: tuple[str, ...]) -> Any:
    """The network called ``recipe.net`` for images of ``spec["shape"] = [c, h, w]``, as an energy where asked for.

    Raises :class:`Refusal` for a size that the network cannot halve often enough.
    """
    channels, height, width = (int(v) for v in spec["shape"])
    chosen = settings.network
    net: Any = nets.get(
        recipe.net,
        in_channels=recipe.inputs * channels,
        out_channels=recipe.outputs * channels,
        size=(height, width),
        channels=chosen.channels,
        blocks=chosen.blocks,
        attention=chosen.attention,
        classes=len(classes) or None,
        patch=chosen.patch,
        dropout=chosen.dropout,
    )
    if chosen.energy == "none":
        return net
    need = f"as many outputs as inputs, which recipe {recipe.name!r} has not; use another, or energy=none"
    require(recipe.inputs == recipe.outputs == 1, "energy", chosen.energy, need)
    return nets.Energy(net, chosen.energy)

"""What a recipe is: a published method as a composition of the library's parts, with its defaults.

The contract: a recipe's file says what it composes, its paper and its equations; ``compose(settings, spec)`` returns
the denoiser and the law of training times, and everything else (network, optimiser, EMA, data, sampling) is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from sfumato.data.transforms import from_json
from sfumato.denoisers import Preconditioned
from sfumato.errors import Refusal
from sfumato.nets.unet import UNet
from sfumato.processes.gaussian import Gaussian
from sfumato.training.diffusion import Diffusion
from sfumato.training.seeds import mix
from sfumato.training.settings import flatten
from sfumato.training.times import TimeLaw

#: ``settings, net -> denoiser, law of training times``.
Compose = Callable[[Any, Any], tuple[Preconditioned, TimeLaw]]

_PRECISIONS: dict[str, torch.dtype | None] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@final
@dataclass(frozen=True)
class Recipe:
    """A method by name.  ``defaults``: its settings; ``compose``: the parts they describe."""

    name: str
    title: str
    paper: str
    defaults: Any
    compose: Compose

    def build(self, settings: Any, spec: Mapping[str, Any], origin: Mapping[str, Any]) -> Diffusion:
        """An untrained model for data described by ``spec`` (``Data.spec()``); ``origin["seed"]`` seeds its weights.

        Raises :class:`Refusal` where a part does not fit, e.g. an image size the network cannot halve often enough.
        """
        channels, height, width = (int(v) for v in spec["shape"])
        classes = tuple(str(c) for c in spec["classes"]) if settings.network.conditional else ()
        chosen = settings.network
        with torch.random.fork_rng([]):
            torch.manual_seed(mix(int(origin["seed"]), "weights"))
            net = UNet(
                in_channels=channels,
                out_channels=channels,
                size=(height, width),
                channels=chosen.channels,
                blocks=chosen.blocks,
                attention=chosen.attention,
                classes=len(classes) or None,
                patch=chosen.patch,
                dropout=chosen.dropout,
            )
        net.compute_dtype = _PRECISIONS[settings.optimisation.precision]
        denoiser, times = self.compose(settings, net)
        process = denoiser.head.process
        if not isinstance(process, Gaussian):
            raise Refusal(f"recipe {self.name!r}: images need a Gaussian process, not {type(process).__name__}")
        return Diffusion(
            recipe=self.name,
            settings=settings,
            data=dict(spec),
            transform=from_json(spec["transform"]),
            classes=classes,
            denoiser=denoiser,
            times=times,
            origin=dict(origin),
        )

    def describe(self) -> dict[str, Any]:
        """Its default settings by flat name."""
        return flatten(self.defaults)

"""What a recipe is: a published method as a composition of the library's parts, with its defaults.

The contract: a recipe's file says what it composes, its paper and its equations; ``compose(settings, net)`` returns the
:class:`~sfumato.training.composition.Composition` (denoiser, law of times, objective, coupling), and everything else
(network, optimiser, EMA, data, sampling) is shared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from sfumato import nets
from sfumato.data.transforms import from_json
from sfumato.training.composition import Composition
from sfumato.training.diffusion import Diffusion
from sfumato.training.seeds import mix
from sfumato.training.settings import flatten, require

#: ``settings, net -> the parts``.
Compose = Callable[[Any, Any], Composition]
#: ``settings, network -> the module that owns everything learned``.
Wrap = Callable[[Any, Any], Any]


def bare(settings: Any, net: Any) -> Any:
    """Nothing is learned but the network itself."""
    return net


_PRECISIONS: dict[str, torch.dtype | None] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@final
@dataclass(frozen=True)
class Recipe:
    """A method by name.  ``defaults``: its settings; ``compose``: the parts they describe.

    ``net``: the network's name in :mod:`sfumato.nets`; ``inputs``, ``outputs``: its input and output channels per
    channel of the data (features beside it; 2 out where a variance is learned); ``wrap``: adds what else is learned or
    remembered (a schedule, a history); ``settle``: the defaults where they depend on the settings given (a teacher's
    network); ``dataset``: makes what is trained on where it is not the data itself, from ``(model, data, run folder or
    None, device, say, stop)``, None where ``stop()`` came first; ``begin``: what happens to a fresh model before its
    first step (a teacher's weights).
    """

    name: str
    title: str
    paper: str
    defaults: Any
    compose: Compose
    net: str = "unet"
    inputs: int = 1
    outputs: int = 1
    wrap: Wrap = bare
    settle: Callable[[Mapping[str, Any]], Any] | None = None
    dataset: Callable[..., Any] | None = None
    begin: Callable[[Diffusion], None] | None = None

    def build(self, settings: Any, spec: Mapping[str, Any], origin: Mapping[str, Any]) -> Diffusion:
        """An untrained model for data described by ``spec`` (``Data.spec()``); ``origin["seed"]`` seeds its weights.

        Raises :class:`Refusal` where a part does not fit, e.g. an image size the network cannot halve often enough.
        """
        channels, height, width = (int(v) for v in spec["shape"])
        classes = tuple(str(c) for c in spec["classes"]) if settings.network.conditional else ()
        chosen = settings.network
        with torch.random.fork_rng([]):
            torch.manual_seed(mix(int(origin["seed"]), "weights"))
            net: Any = nets.get(
                self.net,
                in_channels=self.inputs * channels,
                out_channels=self.outputs * channels,
                size=(height, width),
                channels=chosen.channels,
                blocks=chosen.blocks,
                attention=chosen.attention,
                classes=len(classes) or None,
                patch=chosen.patch,
                dropout=chosen.dropout,
            )
            if chosen.energy != "none":
                need = f"as many outputs as inputs, which recipe {self.name!r} has not; use another, or energy=none"
                require(self.inputs == self.outputs == 1, "energy", chosen.energy, need)
                net = nets.Energy(net, chosen.energy)
            net.compute_dtype = _PRECISIONS[settings.optimisation.precision]
            net = self.wrap(settings, net)
        compose = functools.partial(self.compose, settings)
        compose(net)  # refuses parts that do not fit before anything is written
        return Diffusion(
            recipe=self.name,
            settings=settings,
            data=dict(spec),
            transform=from_json(spec["transform"]),
            classes=classes,
            net=net,
            compose=compose,
            origin=dict(origin),
        )

    def describe(self) -> dict[str, Any]:
        """Its default settings by flat name."""
        return flatten(self.defaults)

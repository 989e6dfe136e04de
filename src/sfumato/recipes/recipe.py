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

from sfumato.data.transforms import from_json
from sfumato.recipes.networks import image_net
from sfumato.training.composition import Composition
from sfumato.training.diffusion import Diffusion
from sfumato.training.seeds import mix
from sfumato.training.settings import flatten

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

    ``kind``: of the data it takes (images, text, ...); ``also``: other kinds that :meth:`on` fits it to; ``make``: its
    network for settings, data and classes; ``net``: the network's name in :mod:`sfumato.nets`; ``inputs``,
    ``outputs``: its input and output channels per channel of the data (features beside it; 2 out where a variance is
    learned); ``wrap``: adds what else is learned or remembered (a schedule, a history); ``settle``: the defaults where
    they depend on the settings given (a teacher's network); ``dataset``: makes what is trained on where it is not the
    data itself, from ``(model, data, run folder or None, device, say, stop)``, None where ``stop()`` came first;
    ``begin``: what happens to a fresh model before its first step, given its data (a teacher's weights, a prior fitted
    to the data).
    """

    name: str
    title: str
    paper: str
    defaults: Any
    compose: Compose
    kind: str = "images"
    also: tuple[str, ...] = ()
    make: Callable[[Any, Any, Mapping[str, Any], tuple[str, ...]], Any] = image_net
    net: str = "unet"
    inputs: int = 1
    outputs: int = 1
    wrap: Wrap = bare
    settle: Callable[[Mapping[str, Any]], Any] | None = None
    dataset: Callable[..., Any] | None = None
    begin: Callable[[Diffusion, Any], None] | None = None

    def on(self, kind: str) -> Recipe:
        """This method for data of another ``kind`` (:mod:`sfumato.recipes.kinds`); itself where it takes none such."""
        if kind not in self.also:
            return self
        from sfumato.recipes.kinds import adapted

        return adapted(self, kind)

    def build(self, settings: Any, spec: Mapping[str, Any], origin: Mapping[str, Any]) -> Diffusion:
        """An untrained model for data described by ``spec`` (``Data.spec()``); ``origin["seed"]`` seeds its weights.

        Raises :class:`Refusal` where a part does not fit, e.g. an image size the network cannot halve often enough.
        """
        classes = tuple(str(c) for c in spec["classes"]) if settings.network.conditional else ()
        with torch.random.fork_rng([]):
            torch.manual_seed(mix(int(origin["seed"]), "weights"))
            net = self.make(self, settings, spec, classes)
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

"""A sampler per part of a product, on one network call a step.

The contract: the joint belief is formed once; every part's own update (a sampler of one evaluation a step) then moves
that part with its own carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from sfumato.core import RNG, Carry, Process
from sfumato.errors import Refusal
from sfumato.processes.product import Product, parts_of
from sfumato.samplers.ancestral import advice


@final
@dataclass(frozen=True)
class _Formed:
    """A belief already formed, in the place of a model: a part's sampler may ask for it once."""

    q: Any
    t: float

    def __call__(self, x: Any, t: float) -> Any:
        if t is not self.t and bool(torch.as_tensor(t != self.t).any()):
            raise Refusal(
                f"a part's sampler asked for a belief at t={t} inside a step; use one of one evaluation a step"
            )
        return self.q


@final
@dataclass(frozen=True)
class PerPart:
    """``samplers[name]`` moves part ``name``; every one must take one evaluation a step (ddpm, ddim, euler, dpmpp-2m).

    Raises :class:`Refusal` in ``start`` unless the process is a product of just these parts.
    """

    samplers: Mapping[str, Any]
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """One carry per part."""
        if not isinstance(process, Product) or set(process.parts) != set(self.samplers):
            raise Refusal(
                f"PerPart moves the parts {sorted(self.samplers)}; the process must be a Product of just these"
            )
        for key, sampler in self.samplers.items():
            if sampler.evaluations != 1:
                name = type(sampler).__name__
                raise Refusal(
                    f"{name} evaluates part {key!r} {sampler.evaluations} times a step, and one belief serves all "
                    f"parts; {advice(process.parts[key])}"
                )
        return {key: sampler.start(model, process.parts[key], grid) for key, sampler in self.samplers.items()}

    def step(
        self, model: Any, process: Any, x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One network call, then every part's own update."""
        q = model(x, t)
        beliefs = parts_of(q)
        moved = {
            key: sampler.step(_Formed(beliefs[key], t), process.parts[key], x[key], t, s, carry[key], rng)
            for key, sampler in self.samplers.items()
        }
        return {key: state for key, (state, _) in moved.items()}, {key: rest for key, (_, rest) in moved.items()}

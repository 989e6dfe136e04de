"""The optimiser: fused AdamW, linear warm-up, a decay to zero over a fixed horizon, and clipping by the global norm.

The contract: the learning rate is a function of (step, progress) alone, so a resumed run continues it exactly; a
gradient that is not finite is reported and never applied.  Its state is a flat dict of named tensors, without pickle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.training.settings import Optimisation


def _cosine(x: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * x)


def _linear(x: float) -> float:
    return 1 - x


#: Shapes of the decay: from 1 at ``x = 0`` to 0 at ``x = 1``.
DECAYS: dict[str, Callable[[float], float]] = {"cosine": _cosine, "linear": _linear}


def learning_rate(settings: Optimisation, step: int, progress: float) -> float:
    """The rate of step ``step`` (counted from 0) at ``progress`` in [0, 1] of the horizon."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    after = (progress - settings.hold) / (1 - settings.hold)
    return settings.lr * warm * DECAYS[settings.decay](min(1.0, max(0.0, after)))


@final
@dataclass(frozen=True)
class Applied:
    """What one step of the optimiser did: the rate it used and the norm of the gradient before clipping."""

    lr: float
    grad_norm: float


class Optimiser:
    """Fused AdamW on a network's parameters; ``inner`` is the plain torch optimiser."""

    def __init__(self, net: nn.Module, settings: Optimisation) -> None:
        self.settings = settings
        self.names = [name for name, p in net.named_parameters() if p.requires_grad]
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.inner = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def apply(self, step: int, progress: float) -> Applied:
        """Clip, step and clear the gradients.  With a gradient that is not finite, the weights stay as they are."""
        rate = learning_rate(self.settings, step, progress)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm, foreach=True).item()
        if math.isfinite(norm):
            for group in self.inner.param_groups:
                group["lr"] = rate
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return Applied(rate, norm)

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: ``exp_avg.NAME`` and so on."""
        return {
            f"{key}.{name}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for key, value in self.inner.state[parameter].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors`; raises :class:`Refusal` where they belong to another network."""
        states: dict[int, dict[str, Tensor]] = {}
        for index, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            found = {key: tensors.get(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            state: dict[str, Tensor] = {}
            for key, value in found.items():
                if value is None or (key != "step" and value.shape != parameter.shape):
                    raise Refusal(f"the optimiser state does not fit the network at {key}.{name}; train again")
                # the fused kernel reads memory in order: a moment must lie as its parameter does
                state[key] = value.clone() if key == "step" else torch.empty_like(parameter.detach()).copy_(value)
            states[index] = state
        self.inner.load_state_dict({"state": states, "param_groups": self.inner.state_dict()["param_groups"]})

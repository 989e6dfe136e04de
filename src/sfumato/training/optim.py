"""The optimiser: AdamW (or Muon on hidden matrices), warm-up, a decay over the horizon or by steps, clipping.

The contract: the learning rate is a function of (step, progress) alone, so a resumed run continues it exactly; a
gradient that is not finite is reported and never applied.  Its state is a flat dict of named tensors, without pickle.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; PyTorch's ``torch.optim.Muon``) replaces the
momentum of a kernel, seen as a matrix ``[out, in * height * width]``, by the nearest orthogonal one: every direction
learns at one rate.  Everything else (stem and head, biases, norms, embeddings, attention) stays with AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.training.parallel import like, whole, whole_tensors
from sfumato.training.settings import Optimisation


def _cosine(x: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * x)


def _linear(x: float) -> float:
    return 1 - x


#: Shapes of the decay: from 1 at ``x = 0`` to 0 at ``x = 1``.
DECAYS: dict[str, Callable[[float], float]] = {"cosine": _cosine, "linear": _linear}


def rate_share(settings: Optimisation, step: int, progress: float) -> float:
    """The share of the full rate of step ``step`` (counted from 0) at ``progress`` in [0, 1] of the horizon.

    ``inverse-sqrt`` knows no horizon: ``1 / sqrt(max(step / decay_step, 1))`` (Karras et al. 2024, eq. 67).
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.decay == "inverse-sqrt":
        return warm / math.sqrt(max(step / settings.decay_step, 1.0))
    after = (progress - settings.hold) / (1 - settings.hold)
    return warm * DECAYS[settings.decay](min(1.0, max(0.0, after)))


@final
@dataclass(frozen=True)
class Applied:
    """What one step of the optimiser did: the rate it used and the norm of the gradient before clipping."""

    lr: float
    grad_norm: float


class Kernels:
    """Kernels, of convolutions or plain, in the place of the matrices that Muon trains; the memory is theirs."""

    def __init__(self, kernels: list[nn.Parameter], settings: Optimisation) -> None:
        self.kernels = kernels
        self.matrices = [nn.Parameter(_matrix(k.detach(), k)) for k in kernels]
        self.inner = torch.optim.Muon(self.matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay)

    def step(self) -> None:
        """One step on the kernels' gradients."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            assert kernel.grad is not None
            matrix.data = _matrix(kernel.detach(), kernel)  # the kernel may have moved to another device
            matrix.grad = _matrix(kernel.grad, kernel)
        self.inner.step()  # type: ignore[no-untyped-call]


def _matrix(x: Tensor, kernel: nn.Parameter) -> Tensor:
    """``[o, i, h, w]`` as ``[o, i * h * w]`` in the order of the kernel's memory, so that it is a view of a kernel."""
    return x.flatten(1) if kernel.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1)


def is_hidden_kernel(parameter: Tensor) -> bool:
    """Whether Muon trains it: a convolution kernel that mixes at least 16 channels into at least 16."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) >= 16


def is_beside(module: nn.Module, name: str) -> bool:
    """Whether a parameter of what a recipe wraps is not the network's but, say, a learned schedule's.

    Weight decay would pull those towards 0, which means nothing for the ends of a schedule.
    """
    return isinstance(getattr(module, "net", None), nn.Module) and not name.startswith("net.")


def hidden(net: nn.Module) -> set[str]:
    """The names of what Muon trains: convolution kernels (:func:`is_hidden_kernel`), and the weights of the layers that
    a module lists in ``matrices``."""
    kernels = {name for name, p in net.named_parameters() if is_hidden_kernel(p)}
    listed = {
        f"{name}.{layer}.weight".lstrip(".") for name, module in net.named_modules()
        for layer in getattr(type(module), "matrices", ())
    }  # fmt: skip
    return kernels | listed


@final
@dataclass(frozen=True)
class Part:
    """Some parameters, the torch optimiser that holds their state, and what it calls that state."""

    inner: torch.optim.Optimizer
    step: Callable[[], object]
    lr: float
    names: list[str]
    held: list[nn.Parameter]
    state: tuple[str, ...]


class Optimiser:
    """AdamW on a network's parameters, or AdamW and Muon (``settings.optimiser``)."""

    def __init__(self, net: nn.Module, settings: Optimisation) -> None:
        self.settings = settings
        named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        found = hidden(net) if settings.optimiser == "muon" else set()
        inner = [n for n, _ in named if n in found]
        plain = sorted(((n, p) for n, p in named if n not in found), key=lambda each: is_beside(net, each[0]))
        groups = [
            {"params": [p for n, p in plain if is_beside(net, n) == beside], "weight_decay": decay}
            for beside, decay in ((False, settings.weight_decay), (True, 0.0))
        ]
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )
        moments = ("step", "exp_avg", "exp_avg_sq")
        self.parts = [Part(adamw, adamw.step, settings.lr, [n for n, _ in plain], [p for _, p in plain], moments)]
        if inner:
            kernels = Kernels([p for name, p in named if name in found], settings)
            self.parts.append(
                Part(kernels.inner, kernels.step, settings.muon_lr, inner, kernels.matrices, ("momentum_buffer",))
            )

    @property
    def inner(self) -> list[torch.optim.Optimizer]:
        """The plain torch optimisers."""
        return [part.inner for part in self.parts]

    def apply(self, step: int, progress: float) -> Applied:
        """Clip, step and clear the gradients.  With a gradient that is not finite, the weights stay as they are."""
        share = rate_share(self.settings, step, progress)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm, foreach=True)))
        if math.isfinite(norm):
            for part in self.parts:
                for group in part.inner.param_groups:
                    group["lr"] = part.lr * share
                part.step()
        for parameter in self.parameters:
            parameter.grad = None
        return Applied(self.settings.lr * share, norm)

    def tensors(self) -> dict[str, Tensor]:
        """The state as named whole tensors: ``exp_avg.NAME`` and so on (all processes must ask)."""
        return whole_tensors(
            {
                f"{key}.{name}": value
                for part in self.parts
                for name, held in zip(part.names, part.held, strict=True)
                for key, value in part.inner.state[held].items()
            }
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors`; raises :class:`Refusal` where they belong to another network."""
        for part in self.parts:
            states: dict[int, dict[str, Tensor]] = {}
            for index, (name, held) in enumerate(zip(part.names, part.held, strict=True)):
                state: dict[str, Tensor] = {}
                for key in part.state:
                    value = tensors.get(f"{key}.{name}")
                    if value is None or (key != "step" and value.shape != held.shape):
                        raise Refusal(f"the optimiser state does not fit the network at {key}.{name}; train again")
                    # the fused kernel reads memory in order: a moment must lie as its parameter does
                    state[key] = value.clone() if key == "step" else like(held.detach(), value)
                states[index] = state
            part.inner.load_state_dict({"state": states, "param_groups": part.inner.state_dict()["param_groups"]})

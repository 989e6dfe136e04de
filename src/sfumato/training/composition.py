"""What a recipe composes: a denoiser, the law of its times, an objective and, where it has one, a coupling.

The contract: everything here is a function of the network alone, so the same composition is made again around averaged
or loaded weights; whatever else is learned or remembered (a schedule, a variance, a history of losses) is a parameter
or buffer of that network and is trained, averaged and stored with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor

from sfumato.core import RNG, Cond
from sfumato.schedules import log_snr
from sfumato.training.objectives import prediction_loss
from sfumato.training.times import TimeLaw


@runtime_checkable
class Objective(Protocol):
    """Unreduced training losses."""

    def __call__(
        self,
        denoiser: Any,
        x0: Tensor,
        t: Tensor,
        cond: Cond | None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """The loss ``[b]`` at clean data ``x0 [b, ...]`` (model units) and times ``t [b]``.

        ``eps``: given standard noise in place of a draw from ``rng`` (validation); ``end``: the prior draw that is
        coupled to ``x0``.
        """
        ...


@runtime_checkable
class Coupling(Protocol):
    """Pairs data with draws of the prior."""

    def __call__(self, x0: Tensor, end: Tensor, label: Tensor | None, rng: RNG) -> Tensor:
        """The prior draws ``end [b, ...]`` rearranged so that row ``k`` goes with ``x0[k]``; ``label``: ``[b]``."""
        ...


@runtime_checkable
class Codec(Protocol):
    """The two ends of a latent model: where the sampled states live and how they are read as data."""

    def like(self, n: int, device: Any) -> Tensor:
        """``n`` empty states."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """States ``[n, ...]`` as data in the model's units (what the data's transform decodes)."""
        ...


@final
@dataclass(frozen=True)
class Composition:
    """The parts of a method: what trains (``objective`` at ``times``, ends by ``coupling``) and what samples.

    ``codec``: where states are not the data themselves (the objective encodes; embeddings, latents); ``steps``: the
    number of sampling steps, where the method allows one only (a token at a time); ``multiple``: what that number must
    be a multiple of (blocks that appear one after the other); ``clean``: a map of beliefs while
    sampling (clamping to embeddings); ``likelihood``: how held-out data is
    scored in nats per sample, where the recipe has its own way (text); ``around``: what stands around every sampler
    (tokens beside numbers).
    """

    denoiser: Any
    times: TimeLaw
    objective: Objective = prediction_loss
    coupling: Coupling | None = None
    codec: Codec | None = None
    steps: int | None = None
    multiple: int = 1
    clean: Callable[[Any], Any] | None = None
    likelihood: Any = None
    around: Callable[[Any], Any] | None = None


def allowed_steps(parts: Composition, asked: int) -> int:
    """The number of sampling steps that a composition allows, at least ``asked`` where it has a choice."""
    return -(-asked // parts.multiple) * parts.multiple if parts.steps is None else parts.steps


def snr_of(process: Any, t: float) -> float | None:
    """The log-SNR of a process at ``t``; None where the process has no schedule, or no finite one there."""
    schedule = getattr(process, "schedule", None)
    if schedule is None or log_snr(schedule, 0.5) == log_snr(schedule, 1.0):  # a constant says nothing of the level
        return None
    value = log_snr(schedule, t)
    return value if math.isfinite(value) else None


def level(process: Any, t: float) -> str:
    """The noise level at ``t``, in words."""
    value = snr_of(process, t)
    return f"t={t:.4f}" if value is None else f"t={t:.4f}, log-SNR {value:.2f}"

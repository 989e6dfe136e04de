"""What a recipe composes: a denoiser, the law of its times, an objective and, where it has one, a coupling.

The contract: everything here is a function of the network alone, so the same composition is made again around averaged
or loaded weights; whatever else is learned or remembered (a schedule, a variance, a history of losses) is a parameter
or buffer of that network and is trained, averaged and stored with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor

from sfumato.core import RNG, Cond
from sfumato.denoisers import Preconditioned
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


@final
@dataclass(frozen=True)
class Composition:
    """The parts of a method: what trains (``objective`` at ``times``, ends by ``coupling``) and what samples."""

    denoiser: Preconditioned
    times: TimeLaw
    objective: Objective = prediction_loss
    coupling: Coupling | None = None

"""How the trace of a Jacobian is taken: exactly, by one vector-Jacobian product a coordinate, or by random probes.

The contract: :meth:`probes` gives directions ``v [k, b, ...]`` and a factor ``c`` such that ``c sum_k v_k' J v_k`` is
the trace of ``J``, exactly or in expectation (Hutchinson 1990: ``E v v' = I``).  A sample's probes come from its own
stream and stay the same along its whole trajectory, so the flow stays a smooth ODE (Grathwohl et al. 2019, section
3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import Space
from sfumato.errors import Refusal, nearest
from sfumato.randomness import as_rng


@runtime_checkable
class Trace(Protocol):
    """A way to take the trace of a square Jacobian."""

    def probes(self, like: Tensor, space: Space, rng: Any) -> tuple[Tensor, float]:
        """Directions ``[k, b, ...]`` within ``space`` and their common factor."""
        ...


@final
@dataclass(frozen=True)
class Exact:
    """Every coordinate's own derivative: as many backward passes an evaluation as a sample has coordinates."""

    def probes(self, like: Tensor, space: Space, rng: Any) -> tuple[Tensor, float]:
        """The coordinate axes."""
        d = math.prod(like.shape[1:])
        axes = torch.eye(d, dtype=like.dtype, device=like.device).reshape(d, 1, *like.shape[1:])
        return torch.stack([space.project(axis.expand(like.shape)) for axis in axes]), 1.0


@final
@dataclass(frozen=True)
class Hutchinson:
    """``count`` random probes a sample: ``"rademacher"`` (signs; exact for a diagonal Jacobian) or ``"gaussian"``.

    The estimate of a log-likelihood is unbiased; its variance falls as ``1 / count``.  Raises :class:`Refusal` for
    ``count < 1`` and for an unknown law.
    """

    count: int = 1
    law: str = "rademacher"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise Refusal(f"count={self.count}: an estimate of the trace needs at least 1 probe")
        if self.law not in ("rademacher", "gaussian"):
            raise Refusal(f"unknown law of probes {self.law!r}; {nearest(self.law, ('rademacher', 'gaussian'))}")

    def probes(self, like: Tensor, space: Space, rng: Any) -> tuple[Tensor, float]:
        """Random directions; raises :class:`Refusal` without an ``rng``."""
        if rng is None:
            raise Refusal("Hutchinson's probes are random but rng is None; pass rng=Streams(seeds) or a seed")
        shape = (len(like), self.count, *like.shape[1:])
        if self.law == "gaussian":
            v = as_rng(rng).normal(shape)
        else:
            v = 1 - 2 * (as_rng(rng).uniform(shape) < 0.5).to(torch.float32)
        return torch.stack([space.project(probe.to(like)) for probe in v.unbind(1)]), 1 / self.count

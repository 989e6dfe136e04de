"""Velocity regression on an interpolant: flow matching, OT-CFM, SB-CFM, rectified flow, stochastic interpolants.

The contract: for data ``x0`` and the draw ``x1`` of the prior that a coupling joined it to, set
``x_t = alpha x0 + beta x1 + gamma z`` and regress the network on ``v = alpha' x0 + beta' x1 + gamma' z``.  The
minimiser at every ``t`` is ``E[v | x_t]``, the velocity of an ODE whose states have the law of ``x_t`` (Lipman et al.
2022, theorems 1 and 2; Albergo et al. 2023, section 2).

Both ends stay finite.  A Brownian bridge has ``gamma' = sigma (1 - 2 t) / (2 sqrt(t (1 - t)))``, infinite at 0 and 1:
the target's mean is finite there, its variance is not, and the mean over uniform ``t`` of the plain square error
diverges.  So the square error is divided by ``1 + gamma'^2``, the growth of the target's own variance: the minimiser
is the same at every ``t``, the loss is bounded, and without a bump the weight is 1.  Times are kept ``2^-25`` off both
ends (:class:`Inside`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond
from sfumato.denoisers import Preconditioned
from sfumato.errors import Refusal
from sfumato.processes.interpolant import Interpolant
from sfumato.randomness import as_rng
from sfumato.schedules import at, narrow
from sfumato.training.times import EDGE, TimeLaw


@final
@dataclass(frozen=True)
class Inside:
    """A law of times kept off both ends: ``t`` in ``[2^-25, 1 - 2^-25]``."""

    law: TimeLaw

    def __call__(self, u: Tensor) -> Tensor:
        return self.law(u).clamp(EDGE, 1 - EDGE)


@final
@dataclass(frozen=True)
class AtOne:
    """``t = 1`` alone: what one step of a straight flow needs (Liu et al. 2022, distillation)."""

    def __call__(self, u: Tensor) -> Tensor:
        return torch.ones_like(u, dtype=torch.float64)


def interpolant_of(denoiser: Preconditioned) -> Interpolant:
    """The path whose velocity the network states; raises :class:`Refusal` for another process or prediction."""
    process = denoiser.head.process
    if not isinstance(process, Interpolant) or denoiser.head.prediction != "flow":
        raise Refusal(
            f"a {denoiser.head.prediction!r} head on {type(process).__name__} has no velocity to regress; use "
            "GaussianHead(Interpolant(...), 'flow')"
        )
    return process


def velocity_loss(
    denoiser: Preconditioned,
    x0: Float[Tensor, "b *shape"],
    t: Float[Tensor, " b"],
    cond: Cond | None = None,
    rng: Any = None,
    eps: Float[Tensor, "b *shape"] | None = None,
    end: Float[Tensor, "b *shape"] | None = None,
) -> Float[Tensor, " b"]:
    """``|F - v|^2 / (1 + gamma'^2)`` averaged over coordinates, at data ``x0`` (model units) and times ``t``.

    ``end``: the prior draw joined to ``x0``; else ``eps``, standard noise of an independent one; else drawn from
    ``rng``.  Raises :class:`Refusal` for a process or prediction without a velocity, and where ``rng`` is needed (for
    the end, or for the fresh noise of ``gamma``) but None.
    """
    process = interpolant_of(denoiser)
    if rng is None and (process.gamma is not None or (eps is None and end is None)):
        raise Refusal("a loss draws noise but rng is None; pass a Stream, a torch.Generator or an int seed")
    source: Any = None if rng is None else as_rng(rng)
    if end is None:
        end = at(process.ends, 1.0)[1] * (process.space.noise(x0, source) if eps is None else eps)
    path = process.levels(t, x0)
    x_t = narrow(path.alpha, x0) * x0 + narrow(path.beta, x0) * end
    target = narrow(path.dalpha, x0) * x0 + narrow(path.dbeta, x0) * end
    if process.gamma is not None:
        z = process.space.noise(x0, source)
        x_t = x_t + narrow(path.gamma, x0) * z
        target = target + narrow(path.dgamma, x0) * z
    output = denoiser.raw(x_t, t, cond)
    output = output[0] if isinstance(output, tuple) else output
    size = narrow(torch.sqrt(1 + path.dgamma**2), x0)
    error: Tensor = ((output - target) / size) ** 2
    return error.flatten(1).mean(1)

"""The exact log-likelihood of a model's probability-flow ODE.

The contract: with ``l = asinh(alpha / sigma)`` and ``y = x_t / sqrt(alpha^2 + sigma^2)`` the flow of every Gaussian
path is

    ``dy/dl = x0hat(x_t, t) - tanh(l) y``,

with no singular coefficient: ``l`` runs from 0 (no signal) or the schedule's own end to ``asinh(1 / noise)`` at the
data, and is half the log-SNR (plus log 2) wherever there is signal.  Along it

    ``d log p(y)/dl = d tanh(l) - tr(d x0hat/dy)``

(Chen et al. 2018, theorem 1; Song et al. 2021, eq. 39), so one backward pass an evaluation and a prior give ``log p``
of the data with noise of standard deviation ``noise`` added.  It needs the belief's point and the schedule alone, so it
serves diffusion and flow matching alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato.core import Cond, Denoiser, Space
from sfumato.dormand_prince import NotFinite, OutOfReach, integrate
from sfumato.errors import Refusal
from sfumato.likelihood.trace import Exact, Trace
from sfumato.schedules import Schedule, at, time_at
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import against, flat_sum, precise, precise_device

#: ``x_1 [b, ...] -> log p(x_1) [b]`` in nats.
LogDensity = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class FlowLikelihood:
    """``logp`` in nats; ``latent``: where the flow ends, at ``t = 1``; ``evaluations`` that every sample took."""

    logp: Float64[Tensor, " b"]
    latent: Float[Tensor, "b ..."]
    evaluations: Int64[Tensor, " b"]


def level(schedule: Schedule, t: float) -> float:
    """``asinh(alpha / sigma)`` at ``t``; infinite at ``t = 0``."""
    alpha, sigma = at(schedule, t)
    return math.asinh(alpha / sigma) if sigma else math.inf


def level_of(noise: float) -> float:
    """``asinh(1 / noise)`` for a noise-to-signal ratio ``sigma / alpha``.  Raises :class:`Refusal` unless positive."""
    if not noise > 0:
        raise Refusal(f"noise={noise}: the flow starts at a positive ratio sigma / alpha (1e-4 is next to none)")
    return math.asinh(1 / noise)


def times_at(schedule: Schedule, levels: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """The times at which ``asinh(alpha / sigma)`` has the given values."""
    found: Tensor = time_at(schedule, 2 * torch.sinh(levels.clamp(min=0)).log())
    return found


def log_prob(
    denoiser: Denoiser[Any],
    process: Any,
    x0: Float[Tensor, "b ..."],
    *,
    trace: Trace | None = None,
    noise: float = 1e-4,
    tolerance: float = 1e-5,
    prior: LogDensity | None = None,
    cond: Cond | None = None,
    rng: Any = None,
    max_evaluations: int = 20_000,
) -> FlowLikelihood:
    """``log p(x0)`` in nats of the model's probability-flow ODE, for states in the model's units.

    What is evaluated is the density of ``x0 + noise * eps``: ``noise`` is the ratio ``sigma / alpha`` where the flow
    begins, and an exact model errs by ``O(noise^2)``.  ``trace``: :class:`Exact` (the default) or
    :class:`Hutchinson`, which needs ``rng``.  ``tolerance``: the error a step may make, per coordinate, relative to
    ``1 + |y|``, and in nats per coordinate.  ``prior``: the log-density at ``t = 1`` in place of the process's own; the
    exact one removes the mismatch of a prior that is not quite reached.  Raises :class:`Refusal` for a ``noise`` beyond
    the schedule's, and where the flow is not finite or takes more than ``max_evaluations``.
    """
    if not tolerance > 0:
        raise Refusal(f"tolerance={tolerance}: needs a positive number, e.g. 1e-5")
    schedule = process.schedule
    space: Space = getattr(process, "space", Euclidean())
    start, end = level_of(noise), level(schedule, 1.0)
    if not start > end:
        raise Refusal(f"noise={noise:g} is no less than the schedule's own {1 / math.sinh(end):.4g} at t=1; give less")
    directions, factor = (trace or Exact()).probes(x0, space, rng)
    dof = precise(space.dof(x0)).cpu()
    shape, b = x0.shape[1:], len(x0)
    d = math.prod(shape)

    def field(rows: Tensor, levels: Tensor, state: Tensor) -> Tensor:
        here = rows.to(x0.device)
        t = times_at(schedule, levels)
        alpha, sigma = at(schedule, t)
        radius = against(torch.hypot(alpha, sigma), x0).to(x0)
        given = None if cond is None else {key: value[here] for key, value in cond.items()}
        y = state[:, :d].reshape(-1, *shape).to(x0).requires_grad_()
        with torch.enable_grad():
            point = denoiser(radius * y, t, given).point()
            found = torch.zeros(len(rows), dtype=torch.float64)
            for k, v in enumerate(directions):
                (pulled,) = torch.autograd.grad(point, y, v[here], retain_graph=k + 1 < len(directions))
                found = found + factor * flat_sum(precise(pulled * v[here]).cpu())
        slope = precise(point.detach()).cpu().flatten(1) - torch.tanh(levels)[:, None] * state[:, :d]
        rate = found - dof[rows] * torch.tanh(levels)
        return torch.cat([slope, rate[:, None]], 1)

    def norm(error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        scale = 1 + torch.maximum(before[:, :d].abs(), after[:, :d].abs())
        states = (error[:, :d] / scale).square().mean(1).sqrt()
        return torch.maximum(states, error[:, d].abs() / d) / tolerance

    first = torch.cat([math.tanh(start) * precise(x0.detach()).cpu().flatten(1), torch.zeros(b, 1).double()], 1)
    try:
        with torch.no_grad():
            last, evaluations = integrate(field, first, start, end, norm, max_evaluations)
    except NotFinite as found:
        raise Refusal(
            f"the flow of the model is not finite at asinh(alpha/sigma)={found.time:.3g}; is it trained?"
        ) from None
    except OutOfReach:
        raise Refusal(f"the flow needs more than {max_evaluations} evaluations; give a larger tolerance") from None
    radius = math.hypot(*at(schedule, 1.0))
    latent = (radius * last[:, :d]).reshape(-1, *shape)
    density = prior or (lambda x: -process.prior(x).nll(x))
    ends = precise(density(latent.to(precise_device(x0)))).cpu()
    logp = ends + last[:, d] + dof * (math.log(radius) + math.log(math.tanh(start)))
    return FlowLikelihood(logp, latent.to(x0), evaluations)

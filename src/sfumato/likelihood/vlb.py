"""The evidence bound on the likelihood of data on levels: ``L_T + L_t + L_0``, on a grid and in continuous time.

The contract (Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5): ``-log P(x) <= KL(q(x_1|x) || prior) + sum over steps
of KL(q(x_s|x_t,x) || p(x_s|x_t)) - E log P(x | x_first)``, where the last step is the discretised decoder about the
belief at the lowest noise level.  As the steps shrink, the middle becomes the integral of the process's ``rate``
(Kingma et al. 2021, eq. 15), here over ``l = asinh(alpha / sigma)``, in which ``rate dt = alpha sqrt(alpha^2 +
sigma^2) / sigma^2 |x0hat - x0|^2 dl`` for every schedule.

Both are unbiased Monte Carlo estimates: a sample's steps are an even spread with a random offset of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond, Denoiser, Law
from sfumato.errors import Refusal
from sfumato.grids import validate
from sfumato.laws import Normal
from sfumato.likelihood.ode import level, level_of, times_at
from sfumato.processes.bound import step_kl
from sfumato.processes.decoder import Discretised, Levels
from sfumato.processes.gaussian import Gaussian
from sfumato.randomness import as_rng
from sfumato.schedules import at
from sfumato.trees import precise, precise_device


@final
@dataclass(frozen=True)
class DataBound:
    """The bound of every sample in nats, float64 ``[b]``: ``prior`` (L_T), ``diffusion`` (L_t), ``reconstruction``
    (L_0).

    ``latent`` is the state, at ``time``, that ``reconstruction`` was measured at; ``evaluations`` counts the network's
    calls a sample.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    latent: Tensor
    time: float
    evaluations: int

    @property
    def total(self) -> Float[Tensor, " b"]:
        """The sum of the three."""
        return self.prior + self.diffusion + self.reconstruction


def _require_bound(process: Any) -> None:
    if not isinstance(process, Gaussian):
        raise Refusal(f"{type(process).__name__} has no evidence bound; its ODE has a likelihood (log_prob)")


def latent(process: Any, x0: Tensor, t: float, rng: Any) -> Tensor:
    """``alpha x0 + sigma eps``, the state that decoders and dequantisation start from, shaped like ``x0``."""
    alpha, sigma = at(process.schedule, t)
    drawn: Tensor = alpha * x0 + sigma * process.space.noise(x0, as_rng(rng))
    return drawn


def decoder(process: Any, belief: Law[Tensor], t: Any, levels: Levels) -> Discretised:
    """``P(x | x_t)``: the belief's normal over levels; a point belief is given the variance ``sigma_t^2``.

    That is Ho et al.'s decoder of variance ``beta_1`` at the first step of a table.
    """
    if isinstance(belief, Normal):
        return Discretised(belief.mean, belief.var, levels)
    point = belief.point()
    return Discretised(point, at(process.schedule, t, point)[1] ** 2, levels)


def reconstruction(
    denoiser: Denoiser[Any], process: Any, x0: Tensor, x_t: Tensor, t: float, levels: Levels, cond: Cond | None = None
) -> Float[Tensor, " b"]:
    """``L_0 = -log P(x0 | x_t)`` in nats, ``[b]``."""
    return decoder(process, denoiser(x_t, t, cond), t, levels).nll(x0)


def _spread(n: int, draws: int, rng: Any) -> Tensor:
    """``[draws, n]`` even spreads in [0, 1), each sample with an offset of its own."""
    offset = rng.uniform((n,)).double()
    nats: Tensor = (torch.arange(draws, dtype=torch.float64)[:, None] + offset) / draws
    return nats


def _require_draws(draws: int | None) -> None:
    if draws is not None and draws < 1:
        raise Refusal(f"draws={draws}: an estimate of the bound needs at least 1")


def grid_bound(
    denoiser: Denoiser[Any],
    process: Any,
    x0: Float[Tensor, "b ..."],
    grid: Any,
    levels: Levels,
    rng: Any,
    cond: Cond | None = None,
    draws: int | None = None,
) -> DataBound:
    """The bound on the steps of ``grid`` (decreasing times that end in 0), one latent a step.

    ``draws``: measure this many of the steps above the last, an even spread, in place of all.  Raises :class:`Refusal`
    for a bad grid and for data off the levels.
    """
    _require_bound(process)
    _require_draws(draws)
    times, rng = torch.tensor(validate(grid), dtype=torch.float64), as_rng(rng)
    if float(times[-1]) != 0:
        raise Refusal(f"the grid ends at t={float(times[-1]):g}: a bound on the data needs a grid that ends in 0")
    inner, b = len(times) - 2, len(x0)
    prior = process.marginal(x0, float(times[0])).kl(process.prior(x0))
    total = torch.zeros(b, dtype=torch.float64, device=precise_device(x0))
    chosen = [torch.full((b,), k) for k in range(inner)]
    if draws is not None and draws < inner:
        chosen = list((_spread(b, draws, rng) * inner).long().clamp(max=inner - 1))
    for k in chosen:
        t, s = times[k], times[k + 1]
        x_t = process.marginal(x0, t).draw(rng)
        total = total + precise(step_kl(process, denoiser(x_t, t, cond), x0, x_t, t, s))
    first = float(times[-2])
    x_t = latent(process, x0, first, rng)
    last = reconstruction(denoiser, process, x0, x_t, first, levels, cond)
    return DataBound(precise(prior), total * (inner / max(len(chosen), 1)), last, x_t, first, len(chosen) + 1)


def continuous_bound(
    denoiser: Denoiser[Any],
    process: Any,
    x0: Float[Tensor, "b ..."],
    levels: Levels,
    rng: Any,
    cond: Cond | None = None,
    draws: int = 32,
    noise: float | None = None,
) -> DataBound:
    """The bound in the limit of infinitely many steps, from ``noise = sigma / alpha`` (a bin's own spread unless given)
    to the prior, estimated at ``draws`` times.

    Raises :class:`Refusal` for a ``noise`` beyond the schedule's, and for data off the levels.
    """
    _require_bound(process)
    _require_draws(draws)
    rng, b = as_rng(rng), len(x0)
    end = level(process.schedule, 1.0)
    start = level_of(levels.width / 12**0.5 if noise is None else noise)
    if not start > end:
        raise Refusal(f"noise={noise}: is no less than the schedule's own at t=1; give less")
    prior = process.marginal(x0, 1.0).kl(process.prior(x0))
    total = torch.zeros(b, dtype=torch.float64, device=precise_device(x0))
    for u in _spread(b, draws, rng):
        where = end + u * (start - end)
        t = times_at(process.schedule, where)
        x_t = process.marginal(x0, t).draw(rng)
        loss = precise(process.loss(denoiser(x_t, t, cond), x0, x_t, t))
        total = total + (torch.sinh(where) * torch.cosh(where)).to(loss.device) * loss
    first = float(times_at(process.schedule, torch.tensor([start], dtype=torch.float64)))
    x_t = latent(process, x0, first, rng)
    last = reconstruction(denoiser, process, x0, x_t, first, levels, cond)
    return DataBound(precise(prior), total * ((start - end) / draws), last, x_t, first, draws + 1)


def latent_log_prob(process: Any, x0: Tensor, x_t: Tensor, t: float) -> Tensor:
    """``log q(x_t | x0)`` in nats, float64 ``[b]``: what variational dequantisation pays for its noise."""
    alpha, sigma = at(process.schedule, t)
    law = Normal(alpha * precise(x0), sigma**2, process.space)
    return -law.nll(precise(x_t))


__all__ = [
    "DataBound", "continuous_bound", "decoder", "grid_bound", "latent", "latent_log_prob", "reconstruction",
]  # fmt: skip

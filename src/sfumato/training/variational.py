"""Variational diffusion: the continuous-time bound in bits/dim with a learned schedule (Kingma, Salimans, Poole, Ho
2021, "Variational Diffusion Models", https://arxiv.org/abs/2107.00630).

The contract: with ``gamma = -log SNR`` and ``u`` uniform on [0, 1], the bound on ``-log P(x)`` is the sum of (eq. 11)

* the prior term ``KL(q(z_1|x) || N(0, sigma_1^2)) = |x|^2 exp(-gamma_1) / 2``;
* the diffusion term ``E gamma'(u) |eps - eps_theta(z_u, gamma(u))|^2 / 2`` (eq. 17), whose expectation depends on the
  schedule through its ends only;
* the reconstruction ``-E log P(x|z_0)`` with ``P(x|z_0)`` proportional to ``q(z_0|x)`` over the grey levels (eq. 8).

So the ends of the schedule descend the bound, and its interior the variance of the estimate (appendix I.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core import Cond
from sfumato.errors import Refusal
from sfumato.nets.delegated import Delegated
from sfumato.processes.decoder import Levels
from sfumato.randomness import as_rng
from sfumato.schedules import Learned
from sfumato.training.grey import GreyLevels
from sfumato.trees import against, cast, flat_sum, precise

#: Exponents of the Fourier features of the input: wavelengths of 2 and 1 grey levels (appendix C).
FREQUENCIES = (7, 8)


def fourier_features(x: Float[Tensor, "b c h w"], unit: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f h w"]:
    """``x`` and ``sin(2^n pi unit)``, ``cos(2^n pi unit)`` for each of :data:`FREQUENCIES`, along the channels.

    ``unit``: ``x`` with grey level ``k`` at ``2 k / 256 - 1`` (:meth:`~sfumato.training.grey.GreyLevels.unit`).
    """
    angles = [2.0**n * math.pi * unit for n in FREQUENCIES]
    return torch.cat([x, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], dim=1)


@final
class VariationalNet(nn.Module):
    """The network and its schedule, one module.  The network is told ``S = (gamma - gamma_0) / (gamma_1 - gamma_0)``.

    So it knows the noise level and not the time, which the bound's invariance needs: a schedule of another shape is
    then the same model.
    """

    compute_dtype = Delegated("net")

    def __init__(
        self,
        net: Any,
        schedule: Learned,
        grey: GreyLevels,
        features: Callable[[Tensor, Tensor], Tensor] = fourier_features,
    ) -> None:
        super().__init__()
        self.net, self.schedule, self.grey = net, schedule, grey
        self.features = features

    def predict(self, z: Tensor, position: Float[Tensor, " b"], cond: Cond | None = None) -> Tensor:
        """``eps_theta`` at states ``z [b, ...]`` and levels ``position = S`` in [0, 1]."""
        out: Tensor = self.net(self.features(z, self.grey.unit(z)), cast(position, z), cond)
        return out

    def forward(self, x: Tensor, t: Float[Tensor, " b"], cond: Cond | None = None) -> Tensor:
        """``eps_theta`` at the library's times ``t``."""
        schedule = self.schedule
        return self.predict(x, schedule.shape(schedule.inner(t.cpu().double())), cond)


@final
@dataclass(frozen=True)
class Terms:
    """The bound of every sample in nats, ``[b]``."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Float[Tensor, " b"]:
        """The bound."""
        return self.prior + self.diffusion + self.reconstruction


def diffusion_term(
    net: Any,
    x0: Float[Tensor, "b ..."],
    u: Float[Tensor, " b"],
    eps: Tensor,
    cond: Cond | None = None,
    unit: float = 1.0,
) -> Float[Tensor, " b"]:
    """``gamma'(u) |eps - eps_theta|^2 / 2`` in nats, at times ``u`` in [0, 1] of the schedule and noise ``eps``.

    Its value is the bound's; its gradient is the bound's in the network and in the ends of the schedule.  In the
    schedule's shape it is the gradient of the *squared* loss in units of ``unit`` nats, ``d (l / unit)^2 = 2 l dl /
    unit^2``: since the mean does not depend on the shape, that is the gradient of the estimate's variance.  The factor
    is applied, sample by sample, to what arrives at ``S(u)`` and ``S'(u)`` (appendix I.2).
    """
    shape, slope = net.schedule.shape_and_slope(u)
    low, high = net.schedule.ends(u.device)
    gamma = low + (high - low) * shape
    alpha, sigma = (against(cast(torch.sigmoid(v).sqrt(), x0), x0) for v in (-gamma, gamma))
    error = flat_sum((net.predict(alpha * x0 + sigma * eps, shape, cond) - eps) ** 2)
    loss: Tensor = cast((high - low) * slope, error) * error / 2
    factor = 2 * precise(loss.detach()).to(shape.device) / unit
    for tensor in (shape, slope):
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: gradient * factor)
    return loss


def reconstruction_term(x0: Float[Tensor, "b ..."], ratio: Tensor, eps: Tensor, levels: Levels) -> Float[Tensor, " b"]:
    """``-log P(x0 | z_0)`` in nats, ``[b]``, for ``z_0 / alpha_0 = x0 + ratio eps``, ``ratio = sigma_0 / alpha_0``.

    ``P(level | z_0)`` is proportional to ``exp(-(z_0 / alpha_0 - level)^2 / (2 ratio^2))``; levels more than 9 standard
    deviations from ``z_0`` are left out.  Raises :class:`Refusal` for data off the levels.
    """
    index = levels.index(x0)
    x0, eps = precise(x0), precise(eps)
    ratio = precise(ratio).to(x0.device)
    seen = (x0 - levels.low) / levels.width + (ratio / levels.width) * eps  # in spacings
    reach = min(levels.count - 1, math.ceil(9 * float(ratio.detach()) / levels.width) + 1)
    centre = seen.detach().round().clamp(0, levels.count - 1)
    near = centre[..., None] + torch.arange(-reach, reach + 1, device=x0.device)
    spread = (levels.width / ratio) ** 2 / 2
    weight = torch.where((near >= 0) & (near < levels.count), -spread * (seen[..., None] - near) ** 2, -math.inf)
    return flat_sum(weight.logsumexp(-1) + spread * (seen - index) ** 2)


def bound(
    net: Any,
    x0: Float[Tensor, "b ..."],
    u: Float[Tensor, " b"],
    levels: Levels,
    rng: Any,
    cond: Cond | None = None,
    eps: Tensor | None = None,
) -> Terms:
    """One estimate of the bound at times ``u`` in [0, 1]; ``eps``: given noise of the diffusion term."""
    source = as_rng(rng)
    count = x0[0].numel()
    noise = source.normal(tuple(x0.shape)).to(x0) if eps is None else eps
    diffusion = diffusion_term(net, x0, u, noise, cond, unit=count * math.log(2))
    low, high = net.schedule.ends()
    square = flat_sum(precise(x0) ** 2)
    prior = square * torch.exp(-high).to(square.device) / 2
    last = reconstruction_term(x0, torch.exp(low / 2), source.normal(tuple(x0.shape)).to(x0), levels)
    return Terms(cast(prior, diffusion), diffusion, cast(last, diffusion))


@final
@dataclass(frozen=True)
class BitsPerDim:
    """The objective: the bound in bits per dimension, ``[b]``, at times of the schedule's own law (``t > first``).

    The data's grey levels are those that the network holds (``net.grey``), [-1, 1] where nothing was noted.
    """

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
        if end is not None:
            raise Refusal("a coupled end has no bound; train vdm on its own noise")
        net = denoiser.net
        levels = net.grey.levels() or Levels(-1.0, 1.0)
        terms = bound(net, x0, net.schedule.inner(t), levels, rng, cond, eps)
        return terms.total / (x0[0].numel() * math.log(2))

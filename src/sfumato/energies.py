"""Log-densities of a denoiser whose network is the gradient of an energy.

The contract: a head's clean point is affine in state and output, ``x0 = a x_t + b F``; with ``F = grad E`` at the
network's input ``c_in x_t``, the score ``(alpha x0 - x_t) / sigma^2`` (Tweedie's formula) is the gradient of

    ``log p_t(x_t) = (alpha a - 1) / (2 sigma^2) |x_t|^2 + alpha b / (sigma^2 c_in) E(c_in x_t, t) + const(t, cond)``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond, Time
from sfumato.denoisers import Preconditioned
from sfumato.nets.energy import energy_of
from sfumato.schedules import at, narrow
from sfumato.trees import cast, precise


def log_density(
    denoiser: Preconditioned, x_t: Float[Tensor, "b ..."], t: Time, cond: Cond | None = None
) -> Float[Tensor, " b"]:
    """``log p_t(x_t | cond)`` in nats, ``[b]``, up to a constant for every ``(t, cond)``; needs ``t > 0``.

    Differences between states at one ``t`` are log-density differences.  Raises :class:`~sfumato.errors.Refusal` where
    the network is no :class:`~sfumato.nets.energy.Energy` and wraps none.
    """
    net, head, x = denoiser.net, denoiser.head, precise(x_t)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    a, b = head(zero, one, t).point(), head(one, zero, t).point()
    alpha, sigma = at(head.process.schedule, t, x)
    c_in = head.input_scale(t, x)
    times = torch.as_tensor(t, dtype=torch.float32).to(x_t.device).expand(len(x_t))
    energy = precise(energy_of(net, narrow(c_in, x_t) * x_t, times, cond))
    quadratic = ((alpha * a - 1) / (2 * sigma**2) * x.square()).flatten(1).sum(1)
    factor = (alpha * b / (sigma**2 * c_in)).flatten(1)[:, 0]
    density: Tensor = quadratic + factor * energy
    return cast(density, x_t)

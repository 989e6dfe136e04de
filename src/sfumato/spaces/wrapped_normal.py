"""The heat kernel on the circle: the wrapped normal ``sum_k N(angle + 2 pi k; 0, sigma^2)``.

The contract: for every ``sigma`` in ``[1e-8, inf)`` and every angle in ``[-pi, pi)``, density and score are exact to
rounding: a sum over windings where sigma is small, its Fourier series ``(1 + 2 sum_n exp(-n^2 sigma^2 / 2) cos(n
angle)) / (2 pi)`` where it is large.  ``E cos = exp(-sigma^2 / 2)``.  Everything is float64, shapes broadcast, angles
are radians.  Used as the kernel of torsional diffusion by Jing et al. 2022 (section 3.2) and Corso et al. 2022.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.spaces.manifold import widths
from sfumato.trees import precise

#: Windings below, the Fourier series above.  At this width seven windings and six waves are both exact.
SWITCH = 1.5
WINDINGS, WAVES = 3, 6
#: Below this width the kernel is a point.
NARROWEST = 1e-8


def _prepare(angle: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """The angle and the two widths that the two series see, broadcast, float64, with an axis for their terms."""
    angle = precise(angle)
    width = widths(sigma, NARROWEST).to(angle.device)
    angle, width = torch.broadcast_tensors(angle, width)  # type: ignore[no-untyped-call]
    return angle[..., None], width.clamp(max=SWITCH)[..., None], width.clamp(min=SWITCH)[..., None]


def _windings(angle: Tensor) -> Tensor:
    return angle + 2 * math.pi * torch.arange(-WINDINGS, WINDINGS + 1, dtype=torch.float64, device=angle.device)


def _waves(angle: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    n = torch.arange(1, WAVES + 1, dtype=torch.float64, device=angle.device)
    return n, torch.exp(-((n * width) ** 2) / 2)


def _choose(sigma: Tensor | float, small: Tensor, large: Tensor) -> Tensor:
    return torch.where(widths(sigma, NARROWEST).to(small.device) <= SWITCH, small, large)


def log_density(angle: Tensor, sigma: Tensor | float) -> Float64[Tensor, "..."]:
    """``log p(angle)`` per radian, for a kernel of width ``sigma`` around 0; shapes broadcast."""
    angle, near, far = _prepare(angle, sigma)
    small = (-(_windings(angle) ** 2) / (2 * near**2)).logsumexp(-1) - near[..., 0].log() - math.log(2 * math.pi) / 2
    n, weight = _waves(angle, far)
    large = torch.log1p(2 * (weight * torch.cos(n * angle)).sum(-1)) - math.log(2 * math.pi)
    return _choose(sigma, small, large)


def score(angle: Tensor, sigma: Tensor | float) -> Float64[Tensor, "..."]:
    """``d log p / d angle``; 0 at 0 and at half a turn; shapes broadcast."""
    angle, near, far = _prepare(angle, sigma)
    lifted = _windings(angle)
    share = (-(lifted**2) / (2 * near**2)).softmax(-1)
    small = -(share * lifted).sum(-1) / near[..., 0] ** 2
    n, weight = _waves(angle, far)
    large = -2 * (n * weight * torch.sin(n * angle)).sum(-1) / (1 + 2 * (weight * torch.cos(n * angle)).sum(-1))
    return _choose(sigma, small, large)


def _average(value: Tensor, angle: Tensor, sigma: Tensor) -> Tensor:
    """The mean of ``value`` at the angles of :func:`_nodes`."""
    return torch.trapezoid(value * log_density(angle, sigma[..., None]).exp(), angle, dim=-1)


def _nodes(sigma: Tensor) -> Tensor:
    """Angles over the circle, or over 12 sigma where the rest of it is empty, where a trapezoid rule is exact."""
    reach = (12 * sigma).clamp(max=math.pi)
    return reach[..., None] * torch.linspace(-1, 1, 1025, dtype=torch.float64, device=sigma.device)


def square_score(sigma: Tensor | float) -> Float64[Tensor, "..."]:
    """``E[score^2]`` by quadrature, ``1 / sigma^2`` where sigma is small: a score loss is divided by it (DiffDock)."""
    width = widths(sigma, NARROWEST)
    angle = _nodes(width)
    return _average(score(angle, width[..., None]) ** 2, angle, width)


def information(sigma: Tensor | float) -> Float64[Tensor, "..."]:
    """``KL(kernel || uniform)`` in nats by quadrature: how much the kernel still tells of its centre."""
    width = widths(sigma, NARROWEST)
    angle = _nodes(width)
    return _average(log_density(angle, width[..., None]) + math.log(2 * math.pi), angle, width).clamp(min=0)

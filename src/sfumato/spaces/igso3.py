"""The heat kernel on rotations: the isotropic Gaussian IGSO(3) of Nikolayev and Savyolov (1970).

The contract: with the rotation angle ``w`` in ``[0, pi]`` and the width ``eps`` (a random walk of rotation vectors
``N(0, eps^2 / n)`` has this law as ``n`` grows), the density relative to Haar's measure is

    f(w) = sum_l (2 l + 1) exp(-l (l + 1) eps^2 / 2) sin((l + 1/2) w) / sin(w / 2),

and that of the angle is ``f(w) (1 - cos w) / pi``; ``E[1 + 2 cos w] = 3 exp(-eps^2)``.  For ``eps >= 1`` this is a
cosine series without any division.  For less it cancels hopelessly (at ``eps = .1`` it has no correct digit), so its
Poisson dual is summed,

    f(w) = exp(eps^2 / 8) sqrt(2 pi) eps^-3 sum_k (-1)^k (w + 2 pi k) exp(-(w + 2 pi k)^2 / (2 eps^2)) / sin(w / 2),

whose first term is the small-noise form ``score = -w / eps^2 + 1 / w - cot(w / 2) / 2`` and whose others bend the score
to 0 at half a turn, as symmetry asks.  Both are exact to rounding; all is finite for ``eps`` in ``[1e-4, 10]`` and
every angle.  Float64 throughout; shapes broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.spaces.manifold import widths
from sfumato.trees import precise

#: The dual below, the series above: at this width both are exact with the terms they keep.
SWITCH = 1.0
ORDERS = 12
IMAGES = (-2, -1, 1, 2)
#: Below this width the kernel is a point; below these angles it, and its images, are at their limits.
NARROWEST, LEAST, LEVEL = 1e-8, 1e-12, 1e-4
#: Intervals of the tables that angles are drawn and averaged by.
INTERVALS = 256


def _prepare(angle: Tensor, eps: Tensor | float) -> tuple[Tensor, Tensor]:
    angle = precise(angle)
    width = widths(eps, NARROWEST).to(angle.device)
    angle, width = torch.broadcast_tensors(angle.clamp(0, math.pi), width)  # type: ignore[no-untyped-call]
    return angle, width


def _series(angle: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """``f`` and ``f'`` as the cosine series ``sum_k d_k cos(k w)``, from ``sin((l + 1/2) w) / sin(w / 2) = 1 + 2 sum_k
    cos(k w)``."""
    order = torch.arange(ORDERS + 1, dtype=torch.float64, device=angle.device)
    width = width.clamp(min=SWITCH)[..., None]
    terms = (2 * order + 1) * torch.exp(-order * (order + 1) * width**2 / 2)
    tails = terms.flip(-1).cumsum(-1).flip(-1)
    weights = torch.cat([tails[..., :1], 2 * tails[..., 1:]], -1)
    waves = order * angle[..., None]
    return (weights * waves.cos()).sum(-1), -(weights * order * waves.sin()).sum(-1)


def _images(angle: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """With ``R`` the dual's sum over ``k != 0``, the factor ``exp(-w^2 / (2 eps^2))`` taken out: ``R / w`` and
    ``(R' - R / w) / w^2``.  Both are even in ``w`` and level at 0, where they would divide rounding by 0."""
    angle = angle.clamp(min=LEVEL)
    rest, slope = torch.zeros_like(angle), torch.zeros_like(angle)
    for k in IMAGES:
        shifted = angle + 2 * math.pi * k
        weight = (-1) ** k * torch.exp(-2 * math.pi * k * (angle + math.pi * k) / width**2)
        rest = rest + shifted * weight
        slope = slope + (1 - shifted * 2 * math.pi * k / width**2) * weight
    return rest / angle, (slope - rest / angle) / angle**2


def _gap(angle: Tensor) -> Tensor:
    """``1 / w - cot(w / 2) / 2``, by its Taylor series where the difference cancels."""
    square = angle**2
    small = angle * (1 / 12 + square * (1 / 720 + square * (1 / 30240 + square / 1209600)))
    apart = angle.clamp(min=0.2)
    return torch.where(angle < 0.2, small, 1 / apart - torch.cos(apart / 2) / torch.sin(apart / 2) / 2)


def _either(width: Tensor, dual: Callable[[], Tensor], series: Callable[[], Tensor]) -> Tensor:
    """The dual where the width is small and the series where it is large; neither is summed where it is not needed."""
    small = width <= SWITCH
    if bool(small.all()):
        return dual()
    return torch.where(small, dual(), series()) if bool(small.any()) else series()


def log_density(angle: Tensor, eps: Tensor | float) -> Float64[Tensor, "..."]:
    """``log f(w)``, relative to Haar's probability measure (subtract ``log(8 pi^2)`` for a density per volume)."""
    angle, width = _prepare(angle, eps)
    near, apart = width.clamp(max=SWITCH), angle.clamp(min=LEAST)

    def dual() -> Tensor:
        scale = near**2 / 8 + math.log(2 * math.pi) / 2 - 3 * near.log() - (angle / near) ** 2 / 2
        return scale + torch.log(apart / torch.sin(apart / 2)) + torch.log1p(_images(angle, near)[0])

    return _either(width, dual, lambda: _series(angle, width)[0].log())


def score(angle: Tensor, eps: Tensor | float) -> Float64[Tensor, "..."]:
    """``d log f / d w`` per radian: never positive, 0 at 0 and at half a turn."""
    angle, width = _prepare(angle, eps)
    near = width.clamp(max=SWITCH)

    def dual() -> Tensor:
        ratio, bend = _images(angle, near)
        return -angle / near**2 + angle * bend / (1 + ratio) + _gap(angle)

    def series() -> Tensor:
        f, df = _series(angle, width)
        return df / f

    return _either(width, dual, series)


def angle_density(angle: Tensor, eps: Tensor | float) -> Float64[Tensor, "..."]:
    """The density of the rotation angle, ``f(w) (1 - cos w) / pi`` per radian on ``[0, pi]``."""
    angle = precise(angle)
    return 2 / math.pi * torch.sin(angle / 2) ** 2 * log_density(angle, eps).exp()


def _nodes(width: Tensor, intervals: int) -> Tensor:
    """Evenly spaced angles ``[..., 2 intervals + 1]``, from 0 to where the density is below rounding."""
    reach = (12 * width).clamp(max=math.pi)
    return reach[..., None] * torch.linspace(0, 1, 2 * intervals + 1, dtype=torch.float64, device=width.device)


def _average(value: Tensor, angle: Tensor, width: Tensor) -> Tensor:
    """The mean of ``value`` over the angle's law by Simpson's rule."""
    density = value * angle_density(angle, width[..., None])
    step = angle[..., 2] - angle[..., 0]
    ends, middles = density[..., 2:-1:2].sum(-1), density[..., 1::2].sum(-1)
    return step / 6 * (density[..., 0] + density[..., -1] + 2 * ends + 4 * middles)


def square_score(eps: Tensor | float) -> Float64[Tensor, "..."]:
    """``E[score^2]`` by quadrature (about ``3 / eps^2`` where eps is small): what a score loss is divided by."""
    width = widths(eps, NARROWEST)
    angle = _nodes(width, 2 * INTERVALS)
    return _average(score(angle, width[..., None]) ** 2, angle, width)


def mean_trace(eps: Tensor | float) -> Float64[Tensor, "..."]:
    """``E[trace] = E[1 + 2 cos w]`` by quadrature; in exact arithmetic it is ``3 exp(-eps^2)``."""
    width = widths(eps, NARROWEST)
    angle = _nodes(width, INTERVALS)
    return _average(1 + 2 * angle.cos(), angle, width)


def information(eps: Tensor | float) -> Float64[Tensor, "..."]:
    """``KL(kernel || Haar)`` in nats by quadrature: how much the kernel still tells of its centre."""
    width = widths(eps, NARROWEST)
    angle = _nodes(width, INTERVALS)
    return _average(log_density(angle, width[..., None]), angle, width).clamp(min=0)


def draw_angle(u: Tensor, eps: Tensor | float) -> Float64[Tensor, "..."]:
    """Rotation angles by the inverse cdf of uniform numbers ``u`` in ``[0, 1)``, one each; shapes broadcast.

    The cdf is tabulated by Simpson's rule at 256 angles and inverted as a cubic between them: off by 1e-8 at most.
    """
    u = precise(u)
    u, width = torch.broadcast_tensors(u, widths(eps, NARROWEST).to(u.device))  # type: ignore[no-untyped-call]
    levels, which = torch.unique(width.reshape(-1), return_inverse=True)
    nodes = _nodes(levels, INTERVALS)
    density = angle_density(nodes, levels[:, None])
    step = nodes[:, 2] - nodes[:, 0]
    mass = step[:, None] / 6 * (density[:, :-2:2] + 4 * density[:, 1::2] + density[:, 2::2])
    total = mass.sum(1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(total), (mass / total).cumsum(1)], 1)
    slope = density[:, ::2] * step[:, None] / total  # per interval
    # every row's cdf lifted by its index: one increasing sequence to search
    lifted = (cdf + torch.arange(len(levels), device=cdf.device)[:, None]).reshape(-1)
    flat = u.reshape(-1)
    place = torch.searchsorted(lifted, flat + which, right=True) - 1 - which * (INTERVALS + 1)
    place = place.clamp(0, INTERVALS - 1)
    low, high, left, right = (v[which, place + k] for v in (cdf, slope) for k in (0, 1))
    below, above = torch.zeros_like(flat), torch.ones_like(flat)
    for _ in range(32):
        s = (below + above) / 2
        rise = (1 - s) ** 2 * ((1 + 2 * s) * low + s * left) + s**2 * ((3 - 2 * s) * high - (1 - s) * right)
        below, above = torch.where(rise < flat, s, below), torch.where(rise < flat, above, s)
    angle: Tensor = ((place + (below + above) / 2) * step[which]).reshape(u.shape)
    return angle

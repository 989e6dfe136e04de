"""Two-dimensional densities for flows, exactly as the studies that we compare with define them.

The contract: ``sample(name, n, rng)`` gives float64 ``[n, 2]`` that depend on the arguments alone.

==============  ====================================================================================================
name            law
==============  ====================================================================================================
gaussian        ``N(0, I)``
8gaussians      eight modes at distance 5, covariance ``sqrt(0.1) I`` (torchcfm's generator: std .562, not .316)
moons           two half circles on an even grid, each point moved along the diagonal by ``U[0, .2]``; times 3, less 1
scurve          ``1.5 (sin t, sign(t) (cos t - 1))``, ``t`` uniform on ``3 pi / 2 [-1, 1]``, noise .05 before scaling
checkerboard    uniform on 8 of 16 unit squares of ``[-2, 2]^2``, divided by .45: density .0253125, entropy 3.676456
==============  ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal, nearest
from sfumato.oracles.mixture import GaussianMixture
from sfumato.randomness import as_rng

#: The scale of the checkerboard of the flow_matching library's notebook.
CHECKERBOARD_SCALE = 0.45
#: Its differential entropy in nats: the area of 8 unit squares divided by .45^2.
CHECKERBOARD_ENTROPY = math.log(8 / CHECKERBOARD_SCALE**2)


def eight_gaussians() -> GaussianMixture:
    """The eight modes as an oracle: posterior, score and likelihood are exact."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(torch.full((8,), 1 / 8), centres, math.sqrt(0.1))


def _gaussian(n: int, rng: RNG) -> Tensor:
    return rng.normal((n, 2)).double()


def _eight_gaussians(n: int, rng: RNG) -> Tensor:
    return eight_gaussians().sample(n, rng)


def _moons(n: int, rng: RNG) -> Tensor:
    outer, inner = n // 2, n - n // 2
    a, b = (torch.linspace(0, math.pi, count, dtype=torch.float64) for count in (outer, inner))
    x = torch.cat([a.cos(), 1 - b.cos()])
    y = torch.cat([a.sin(), 0.5 - b.sin()])
    return 3 * (torch.stack([x, y], 1) + 0.2 * rng.uniform((n, 1)).double()) - 1


def _scurve(n: int, rng: RNG) -> Tensor:
    t = 3 * math.pi * (rng.uniform((n,)).double() - 0.5)
    clean = torch.stack([t.sin(), t.sign() * (t.cos() - 1)], 1)
    return 1.5 * (clean + 0.05 * rng.normal((n, 2)).double())


def _checkerboard(n: int, rng: RNG) -> Tensor:
    u = rng.uniform((n, 3)).double()
    x = 4 * u[:, 0] - 2
    y = u[:, 1] - 2 * (u[:, 2] < 0.5) + x.floor() % 2
    return torch.stack([x, y], 1) / CHECKERBOARD_SCALE


TOYS: dict[str, Callable[[int, RNG], Tensor]] = {
    "gaussian": _gaussian,
    "8gaussians": _eight_gaussians,
    "moons": _moons,
    "scurve": _scurve,
    "checkerboard": _checkerboard,
}


def names() -> list[str]:
    """The densities that there are."""
    return list(TOYS)


def sample(name: str, n: int, rng: Any) -> Float64[Tensor, "n 2"]:
    """``n`` points of the density called ``name``; ``rng``: an RNG, a Generator or a seed.

    Raises :class:`Refusal` for an unknown name and for fewer than 1 point.
    """
    if name not in TOYS:
        raise Refusal(f"unknown density {name!r}; {nearest(name, TOYS)}")
    if n < 1:
        raise Refusal(f"n={n}: ask for at least 1 point")
    return TOYS[name](n, as_rng(rng))

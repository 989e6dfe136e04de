"""Synthetic data on manifolds, made by code from fixed seeds: what the geodesic examples train on.

None of it is measured.  The contract: ``sample(name, n, rng)`` depends on its arguments alone and gives float32 members
of ``space(name)``; ``load(name)`` gives the fixed training and test sets.

==============  ======================================================================================================
name            law
==============  ======================================================================================================
torsions        pairs (phi, psi) of backbone angles on the torus: wrapped normals at the textbook places of a
                Ramachandran plot (alpha helix, beta sheet, polyproline II, left-handed helix, bridge)
quakes          places on the sphere: three arcs of a great circle, as plate boundaries are, and two clusters on them
rotations       orientations: a mixture of four IGSO(3) kernels of width 0.15 to 0.4
==============  ======================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal, nearest
from sfumato.laws.manifold import IGSO3
from sfumato.oracles.common import pick
from sfumato.randomness import Stream, as_rng
from sfumato.spaces import SO3, Sphere, Torus
from sfumato.spaces.manifold import Manifold
from sfumato.spaces.so3 import rotation

#: The seeds and sizes of the fixed sets.
SEEDS = {"train": 2302, "test": 3660}
SIZES = {"train": 20_000, "test": 4_000}
#: Weight, phi, psi, width in phi, width in psi (degrees), correlation.
REGIONS = (
    (0.42, -63, -42, 11, 12, -0.5),
    (0.26, -118, 130, 24, 20, -0.2),
    (0.20, -69, 148, 14, 15, -0.3),
    (0.07, 57, 44, 10, 14, -0.5),
    (0.05, -90, 2, 18, 16, -0.6),
)
#: Weight; pole of the great circle; first and last longitude along it (degrees); width across it (radians).
ARCS = (
    (0.30, (0.2, 0.3, 0.93), (0, 140), 0.04),
    (0.25, (0.9, 0.1, 0.42), (40, 150), 0.03),
    (0.25, (-0.4, 0.8, 0.45), (200, 330), 0.05),
    (0.12, (0.2, 0.3, 0.93), (100, 112), 0.08),
    (0.08, (0.9, 0.1, 0.42), (60, 70), 0.07),
)
#: Weight, rotation vector of the centre (radians), width.
KERNELS = (
    (0.4, (0.0, 0.0, 0.0), 0.3),
    (0.3, (0.0, 2.2, 0.0), 0.15),
    (0.2, (1.8, 0.0, -1.8), 0.4),
    (0.1, (-1.0, 1.0, 0.5), 0.2),
)


class Parted(NamedTuple):
    """The fixed sets of one law: states ``[n, ...]``, float32."""

    train: Tensor
    test: Tensor


def _which(rows: tuple[Any, ...], n: int, rng: RNG) -> Tensor:
    weights = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    return pick((weights / weights.sum()).log().expand(n, -1), rng.uniform((n,)))


def _torsions(n: int, rng: RNG) -> Tensor:
    table = torch.tensor(REGIONS, dtype=torch.float64)[_which(REGIONS, n, rng)]
    z = rng.normal((n, 2)).double()
    joint = torch.stack([z[:, 0], table[:, 5] * z[:, 0] + (1 - table[:, 5] ** 2).sqrt() * z[:, 1]], 1)
    return Torus().project((table[:, 1:3] + table[:, 3:5] * joint) * (math.pi / 180))


def _quakes(n: int, rng: RNG) -> Tensor:
    k = _which(ARCS, n, rng)
    pole = Sphere().project(torch.tensor([arc[1] for arc in ARCS], dtype=torch.float64))[k]
    aside = Sphere().project(torch.linalg.cross(pole, torch.tensor([1.0, 0.0, 0.0]).double().expand(n, 3)))
    ahead = torch.linalg.cross(pole, aside)
    ends = torch.tensor([arc[2] for arc in ARCS], dtype=torch.float64)[k] * (math.pi / 180)
    width = torch.tensor([arc[3] for arc in ARCS], dtype=torch.float64)[k]
    along = (ends[:, 0] + (ends[:, 1] - ends[:, 0]) * rng.uniform((n,)).double())[:, None]
    across = (width * rng.normal((n,)).double())[:, None]
    return Sphere().project(across.cos() * (along.cos() * aside + along.sin() * ahead) + across.sin() * pole)


def _rotations(n: int, rng: RNG) -> Tensor:
    k = _which(KERNELS, n, rng)
    centres = rotation(torch.tensor([kernel[1] for kernel in KERNELS], dtype=torch.float64))[k]
    return IGSO3(centres, torch.tensor([kernel[2] for kernel in KERNELS], dtype=torch.float64)[k]).draw(rng)


_MAKERS: dict[str, tuple[Manifold, Callable[[int, RNG], Tensor]]] = {
    "torsions": (Torus(), _torsions),
    "quakes": (Sphere(), _quakes),
    "rotations": (SO3(), _rotations),
}


def names() -> list[str]:
    """The laws that there are."""
    return list(_MAKERS)


def _found(name: str) -> tuple[Manifold, Callable[[int, RNG], Tensor]]:
    if name not in _MAKERS:
        raise Refusal(f"unknown data {name!r}; {nearest(name, _MAKERS)}")
    return _MAKERS[name]


def space(name: str) -> Manifold:
    """Where the states of ``name`` live; raises :class:`Refusal` for an unknown name."""
    return _found(name)[0]


def sample(name: str, n: int, rng: Any) -> Float32[Tensor, "n *shape"]:
    """``n`` states of the law called ``name``; ``rng``: an RNG, a Generator or a seed.

    Raises :class:`Refusal` for an unknown name and for fewer than 1 state.
    """
    where, make = _found(name)
    if n < 1:
        raise Refusal(f"n={n}: ask for at least 1 state")
    return where.project(make(n, as_rng(rng)).float())


def load(name: str) -> Parted:
    """The fixed training and test sets, 20,000 and 4,000 synthetic states; the same at every call."""
    return Parted(*(sample(name, SIZES[part], Stream(SEEDS[part])) for part in ("train", "test")))

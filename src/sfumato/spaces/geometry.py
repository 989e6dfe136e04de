"""Geometry of molecules: best superposition, torsion angles, turning about a bond.

The contract: points are ``[n, 3]`` or ``[..., n, 3]``; angles are radians.  Turning about a bond changes that bond's
torsion by the angle asked for and no other torsion; superposing the result on the old points (a rigid motion) changes
none, which is how DiffDock keeps torsional updates apart from those of position and orientation (Corso et al. 2022,
section 3 and appendix A).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.spaces.manifold import length
from sfumato.spaces.so3 import SO3, rotation


def superpose(moving: Float[Tensor, "*b n 3"], onto: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
    """``moving`` after the rigid motion that brings it nearest to ``onto`` in root mean square (Kabsch 1976)."""
    centre, target = moving.mean(-2, keepdim=True), onto.mean(-2, keepdim=True)
    turn = SO3().project((onto - target).mT @ (moving - centre))
    return (moving - centre) @ turn.mT + target


def rmsd(a: Float[Tensor, "*b n 3"], b: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b"]:
    """The root mean square distance of points, as they lie."""
    return ((a - b) ** 2).sum(-1).mean(-1).sqrt()


def torsion(x: Float[Tensor, "*b n 3"], atoms: tuple[int, int, int, int]) -> Float[Tensor, "*b"]:
    """The torsion angle of four points in ``[-pi, pi]``, by the sign convention of IUPAC: clockwise along the bond."""
    a, b, c, d = (x[..., i, :] for i in atoms)
    before, bond, after = b - a, c - b, d - c
    left, right = torch.linalg.cross(before, bond), torch.linalg.cross(bond, after)
    sine = length(bond)[..., 0] * (before * right).sum(-1)
    return torch.atan2(sine, (left * right).sum(-1))


def turn_about_bond(
    x: Float[Tensor, "*b n 3"], bond: tuple[int, int], side: Tensor, angle: Float[Tensor, "*b"]
) -> Float[Tensor, "*b n 3"]:
    """Turn the points of ``side`` (booleans ``[n]``, those beyond ``bond[1]``) about ``bond`` by ``angle``.

    The torsion about the bond grows by ``angle``.  Raises :class:`Refusal` where ``side`` holds the bond's first atom.
    """
    if bool(side[bond[0]]):
        raise Refusal(f"side holds atom {bond[0]}, the fixed end of the bond {bond}; give the atoms beyond {bond[1]}")
    pivot = x[..., bond[1], None, :]
    axis = x[..., bond[1], :] - x[..., bond[0], :]
    turned = (x - pivot) @ rotation(angle[..., None] * axis / length(axis)).mT + pivot
    return torch.where(side[:, None], turned, x)


def turn_torsions(
    x: Float[Tensor, "*b n 3"], bonds: list[tuple[int, int]], sides: list[Tensor], angles: Float[Tensor, "*b m"]
) -> Float[Tensor, "*b n 3"]:
    """Turn about every bond by its angle ``[..., m]``, then superpose the result on ``x``: DiffDock's update."""
    y = x
    for k, (bond, side) in enumerate(zip(bonds, sides, strict=True)):
        y = turn_about_bond(y, bond, side, angles[..., k])
    return superpose(y, x)

"""Rotations ``SO(3)``: 3 x 3 matrices; orientations of molecules and protein frames, poses.

The contract: a state is ``[b, ..., 3, 3]``; a tangent vector at ``R`` is ``R hat(w)`` with a rotation vector ``w``
(radians), of squared length ``|w|^2``, which is half the squared Frobenius norm; distances are rotation angles.  The
uniform law is Haar's, and the volume in ``radian^3`` is ``8 pi^2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import RNG
from sfumato.spaces.manifold import SHORT, dimensions, length, tolerance
from sfumato.trees import against, flat_sum

#: The logarithm of the volume of SO(3) where lengths are rotation angles.
LOG_VOLUME = math.log(8 * math.pi**2)


def hat(w: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The skew matrix of a rotation vector: ``hat(w) u = w x u``."""
    a, b, c = w.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).reshape(*w.shape, 3)


def vee(m: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3"]:
    """The rotation vector of the skew part of a matrix: the inverse of :func:`hat`."""
    skew = (m - m.mT) / 2
    return torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)


def rotation(w: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The rotation by the angle ``|w|`` about ``w`` (Rodrigues), smooth at 0."""
    angle = length(w)[..., None]
    k = hat(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    turned: Tensor = eye + torch.sinc(angle / math.pi) * k + torch.sinc(angle / (2 * math.pi)) ** 2 / 2 * (k @ k)
    return turned


def rotation_vector(r: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3"]:
    """The rotation vector of a rotation, of length in ``[0, pi]``; all digits are kept near 0 and near half a turn.

    By the quaternion component that is largest (Shepperd 1978), so that nothing small is divided by.
    """
    a, b, c = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    x, y, z = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    p, q, s = r[..., 1, 0] + r[..., 0, 1], r[..., 2, 0] + r[..., 0, 2], r[..., 2, 1] + r[..., 1, 2]
    # four multiples of the same quaternion, (4 q_m) q, m = the component on the diagonal
    rows = [(1 + a + b + c, x, y, z), (x, 1 + a - b - c, p, q), (y, p, 1 - a + b - c, s), (z, q, s, 1 - a - b + c)]
    multiples = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = torch.diagonal(multiples, dim1=-2, dim2=-1).argmax(-1)
    quaternion = multiples.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    quaternion = quaternion / length(quaternion)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    scalar, vector = quaternion[..., :1], quaternion[..., 1:]
    sine = length(vector)
    factor = torch.where(sine > 0, 2 * torch.atan2(sine, scalar) / torch.where(sine > 0, sine, 1.0), 2.0)
    return factor * vector


@final
@dataclass(frozen=True)
class SO3:
    """A product of rotation groups; states are rotation matrices ``[b, ..., 3, 3]``."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """Standard normal tangent vectors at ``like``: three numbers a rotation."""
        w = rng.normal(tuple(like.shape[:-1])).to(like)
        # like @ hat(w), row by row: a matrix product may round differently in batches of different size
        turned: Tensor = torch.linalg.cross(like, w[..., None, :].expand(like.shape))
        return turned

    def project(self, x: Tensor) -> Tensor:
        """The nearest rotation in the Frobenius norm (the special orthogonal Procrustes problem)."""
        u, _, vt = torch.linalg.svd(x)
        sign = torch.det(u @ vt)
        flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
        rotated: Tensor = (u * flip[..., None, :]) @ vt
        return rotated

    def contains(self, x: Tensor) -> bool:
        """Whether every matrix is orthogonal and keeps orientation."""
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        off = (torch.einsum("...ki,...kj->...ij", x, x) - eye).abs().le(4 * tolerance(x)).all()
        triple = (torch.linalg.cross(x[..., 0], x[..., 1]) * x[..., 2]).sum(-1)
        return bool(off and (triple > 0).all())

    def sites(self, x: Tensor) -> float:
        """Every entry counts."""
        return 1.0

    def dof(self, x: Tensor) -> Tensor:
        """3 a rotation, ``[b]``."""
        return dimensions(x, x[0].numel() // 3 if len(x) else 0)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """``x rotation(w)`` for ``v = x hat(w)``, kept orthogonal by one step of Newton's iteration."""
        moved = x @ rotation(vee(x.mT @ v))
        return 1.5 * moved - 0.5 * moved @ moved.mT @ moved

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """``x hat(w)`` with the shortest rotation vector ``w`` that leads to ``y``."""
        return x @ hat(rotation_vector(x.mT @ y))

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``x`` times the skew part of ``x^T v``."""
        return x @ hat(vee(x.mT @ v))

    def square(self, v: Tensor) -> Tensor:
        """The squared angle, ``[b]``: half the squared Frobenius norm."""
        return flat_sum(v**2) / 2

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The angle of the rotation between (of a product: the root of the sum of squares), ``[b]``."""
        return flat_sum(rotation_vector(x.mT @ y) ** 2).sqrt()

    def cut(self, v: Tensor) -> Tensor:
        """At most half a turn."""
        angle: Tensor = torch.linalg.matrix_norm(v, keepdim=True) / math.sqrt(2)
        return v * (math.pi * SHORT / angle.clamp(min=math.pi * SHORT))

    def uniform(self, like: Tensor, rng: RNG) -> Tensor:
        """A draw of Haar's measure: the rotation of a uniform unit quaternion, four normals a rotation."""
        q = rng.normal((*like.shape[:-2], 4)).to(like)
        q = q / length(q)
        vector = q[..., 1:]
        eye = torch.eye(3, dtype=like.dtype, device=like.device)
        square = vector[..., :, None] * vector[..., None, :]
        stretch = 1 - 2 * (vector**2).sum(-1)[..., None, None]
        return stretch * eye + 2 * square + 2 * q[..., :1, None] * hat(vector)

    def log_volume(self, like: Tensor) -> Tensor:
        """``log(8 pi^2)`` a rotation."""
        return self.dof(like) / 3 * LOG_VOLUME

    def log_spread(self, x: Tensor, y: Tensor, share: Any) -> Tensor:
        """Haar's measure drawn in to rotations by at most ``pi share``: a cap of the 3-sphere of half angles."""
        angle = length(rotation_vector(x.mT @ y))[..., 0]
        share = against(share, angle)
        inside = angle <= math.pi * share * (1 + 1e-9)
        # spread() counts a whole half great circle as its support; half angles reach half of it
        density = self._half(angle / 2, share)
        return flat_sum(torch.where(inside, density, -math.inf))

    def _half(self, r: Tensor, share: Any) -> Tensor:
        share = torch.as_tensor(share, dtype=r.dtype, device=r.device).clamp(min=1e-12)
        far = (r / share).clamp(max=math.pi / 2)
        ratio = torch.sinc(far / math.pi) / torch.sinc(r / math.pi) / share
        density: Tensor = 2 * ratio.log() - share.log() - LOG_VOLUME
        return density

    def coordinates(self, x: Tensor) -> Tensor:
        """The entries of the matrices, ``[b, m]``."""
        return x.flatten(1)

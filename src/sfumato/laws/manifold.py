"""Laws on manifolds: uniform, heat kernels on the torus and on SO(3), the torus's bridge, points by tangents.

The contract: as for :mod:`sfumato.laws`; densities are per unit of Riemannian volume (``radian^dof``), so a narrow heat
kernel has the density of a Normal.  Angles cannot be averaged like numbers, so laws here refuse to be pooled; a belief
that is guided is stated as a tangent vector at ``x_t`` (:class:`Along`), and those mix linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, final

import torch
from torch import Tensor

from sfumato.core import RNG, Law
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.spaces import igso3, wrapped_normal
from sfumato.spaces.manifold import Manifold, length
from sfumato.spaces.so3 import LOG_VOLUME, SO3, hat, rotation_vector
from sfumato.spaces.torus import Torus, wrap
from sfumato.trees import against, flat_sum


def _refuse_tilt(law: object) -> NoReturn:
    raise Refusal(f"{type(law).__name__} cannot be tilted: points of a manifold do not average; guide an Along belief")


def _refuse_kl(law: object, other: object) -> NoReturn:
    raise Refusal(f"KL from a {type(law).__name__} is known to the Uniform law alone, not to {type(other).__name__}")


def _squeezed(value: Any, x: Tensor, axes: int) -> Any:
    """A number, a tensor ``[b]`` or one that broadcasts against ``x``, as it broadcasts against ``x`` less its last
    ``axes`` axes."""
    if not torch.is_tensor(value) or value.ndim == 0:
        return value
    if value.ndim == x.ndim:
        return value.reshape(value.shape[: value.ndim - axes])
    return value.reshape(value.shape + (1,) * (x.ndim - axes - value.ndim))


@final
@dataclass(frozen=True)
class Uniform:
    """The uniform law of a manifold, shaped like ``like``: the prior of geodesic and Brownian processes."""

    space: Manifold
    like: Tensor
    leaves: ClassVar[tuple[str, ...]] = ("like",)

    def draw(self, rng: RNG) -> Tensor:
        """A uniform draw for every sample."""
        return self.space.uniform(self.like, rng)

    def point(self) -> NoReturn:
        """Refused: no point of a manifold stands for its uniform law."""
        raise Refusal("a Uniform law has no mean or mode; draw from it")

    def nll(self, x: Tensor) -> Tensor:
        """The logarithm of the volume, ``[b]``."""
        return self.space.log_volume(x)

    def kl(self, other: Law[Any]) -> Tensor:
        """0 to the same law; raises :class:`Refusal` for any other."""
        if not isinstance(other, Uniform):
            _refuse_kl(self, other)
        return torch.zeros_like(self.space.log_volume(self.like))

    def tilt(self, ref: Law[Any], w: Any) -> NoReturn:
        """Refused."""
        _refuse_tilt(self)


@final
@dataclass(frozen=True)
class Along:
    """All mass on ``exp(x, v)``: a point stated by the tangent vector ``v`` at ``x`` that leads to it.

    Two of them at one ``x`` pool as their vectors do: guidance on a manifold.  ``v`` beyond the cut locus is kept for
    pooling, and cut for the point.
    """

    x: Tensor
    v: Tensor
    space: Manifold
    leaves: ClassVar[tuple[str, ...]] = ("x", "v")

    def draw(self, rng: RNG | None) -> Tensor:
        """The point."""
        return self.point()

    def point(self) -> Tensor:
        """``exp(x, v)``."""
        return self.space.exp(self.x, self.space.cut(self.v))

    def nll(self, x: Tensor) -> Tensor:
        """0 at the point, infinite elsewhere."""
        found: Tensor = Dirac(self.point()).nll(x)
        return found

    def kl(self, other: Law[Any]) -> Any:
        """``-log other(point)``."""
        return other.nll(self.point())

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """``ref + w (self - ref)``, of the tangent vectors; raises :class:`Refusal` for another kind of ``ref``."""
        if not isinstance(ref, Along):
            _refuse_tilt(ref)
        return Along.pool([ref, self], [1.0 - w, w])

    @staticmethod
    def pool(laws: Sequence[Along], weights: Sequence[Any]) -> Along:
        """A weighted sum of the tangent vectors; the laws must be stated at one ``x``."""
        first = laws[0]
        total: Any = 0.0
        for law, weight in zip(laws, weights, strict=True):
            total = total + against(weight, law.v) * law.v
        return Along(first.x, total, first.space)


@final
@dataclass(frozen=True)
class WrappedNormal:
    """The heat kernel on the torus: independent wrapped normals around ``mean`` ``[b, ...]``, widths ``scale``.

    ``scale``: a number, or a tensor that broadcasts against ``mean`` (radians).
    """

    mean: Tensor
    scale: Any
    space: Torus = Torus()
    leaves: ClassVar[tuple[str, ...]] = ("mean", "scale")

    def draw(self, rng: RNG) -> Tensor:
        """``mean + scale * noise`` modulo ``2 pi``."""
        drawn: Tensor = wrap(self.mean + against(self.scale, self.mean) * self.space.noise(self.mean, rng))
        return drawn

    def point(self) -> Tensor:
        """The mean direction."""
        return self.mean

    def nll(self, x: Tensor) -> Tensor:
        """``-log p`` per ``radian^n``, ``[b]``."""
        gap = wrap(x - self.mean)
        return -flat_sum(wrapped_normal.log_density(gap, against(self.scale, gap))).to(x)

    def score(self, x: Tensor) -> Tensor:
        """``grad log p`` at ``x``, a tangent vector."""
        gap = wrap(x - self.mean)
        return wrapped_normal.score(gap, against(self.scale, gap)).to(x)

    def kl(self, other: Law[Any]) -> Tensor:
        """To the uniform law, by quadrature; raises :class:`Refusal` for any other."""
        if not isinstance(other, Uniform):
            _refuse_kl(self, other)
        each = wrapped_normal.information(against(self.scale, self.mean)).to(self.mean)
        return flat_sum(each.expand(self.mean.shape))

    def tilt(self, ref: Law[Any], w: Any) -> NoReturn:
        """Refused."""
        _refuse_tilt(self)


@final
@dataclass(frozen=True)
class IGSO3:
    """The heat kernel on SO(3) around ``mean`` ``[b, ..., 3, 3]`` of width ``scale``, in the convention of
    :mod:`sfumato.spaces.igso3`.

    ``scale``: a number, ``[b]``, or a tensor that broadcasts against ``mean`` with last two axes of length 1.
    """

    mean: Tensor
    scale: Any
    space: SO3 = SO3()
    leaves: ClassVar[tuple[str, ...]] = ("mean", "scale")

    @property
    def _width(self) -> Any:
        return _squeezed(self.scale, self.mean, 2)

    def draw(self, rng: RNG) -> Tensor:
        """A uniform axis, and an angle by the inverse cdf: three normals and one uniform number a rotation."""
        shape = tuple(self.mean.shape[:-2])
        axis = rng.normal((*shape, 3)).to(self.mean)
        axis = axis / length(axis).clamp(min=1e-12)
        angle = igso3.draw_angle(rng.uniform(shape).to(self.mean), self._width).to(self.mean)
        return self.space.exp(self.mean, self.mean @ hat(angle[..., None] * axis))

    def point(self) -> Tensor:
        """The centre."""
        return self.mean

    def _gap(self, x: Tensor) -> Tensor:
        return rotation_vector(self.mean.mT @ x)

    def nll(self, x: Tensor) -> Tensor:
        """``-log p`` per ``radian^3`` of volume, ``[b]``; subtract ``log(8 pi^2)`` a rotation for Haar's measure."""
        angle = length(self._gap(x))[..., 0]
        return -flat_sum(igso3.log_density(angle, self._width) - LOG_VOLUME).to(x)

    def score(self, x: Tensor) -> Tensor:
        """``grad log p`` at ``x``: the radial derivative times the unit tangent vector away from the centre."""
        w = self._gap(x)
        angle = length(w)
        radial = igso3.score(angle[..., 0], self._width)[..., None].to(x)
        return x @ hat(radial / angle.clamp(min=igso3.LEAST) * w)

    def kl(self, other: Law[Any]) -> Tensor:
        """To the uniform law, by quadrature; raises :class:`Refusal` for any other."""
        if not isinstance(other, Uniform):
            _refuse_kl(self, other)
        each = igso3.information(self._width).to(self.mean)
        return flat_sum(each.expand(self.mean.shape[:-2]))

    def tilt(self, ref: Law[Any], w: Any) -> NoReturn:
        """Refused."""
        _refuse_tilt(self)


@final
@dataclass(frozen=True)
class WrappedBridge:
    """The law of an angle between two others on a random walk on the circle: ``q(x_s | x_t, x_0)``, exactly.

    Unrolled onto the line the walk is Gaussian, but how often it went round is unknown: ``k`` windings have the weight
    ``exp(-(gap + 2 pi k)^2 / (2 sigma_t^2))``, and given ``k`` the bridge is the Gaussian one around ``x0 + c (gap + 2
    pi k)``.  ``kept = sigma_s / sigma_t``, ``fresh = eta^2 (1 - kept^2)``, ``c = kept sqrt(1 - fresh)``, as in DDIM.
    """

    x_t: Tensor
    x0: Tensor
    sigma_t: Any
    sigma_s: Any
    eta: float = 1.0
    leaves: ClassVar[tuple[str, ...]] = ("x_t", "x0", "sigma_t", "sigma_s")

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-weights and means ``[b, ..., k]`` on the line from ``x0``, the standard deviation, the gap to ``x_t``."""
        gap = wrap(self.x_t - self.x0).double()
        outer = torch.as_tensor(against(self.sigma_t, gap), dtype=torch.float64, device=gap.device).clamp(min=1e-12)
        inner = torch.as_tensor(against(self.sigma_s, gap), dtype=torch.float64, device=gap.device)
        count = max(3, math.ceil(1.5 * float(outer.max())))
        lifted = gap[..., None] + 2 * math.pi * torch.arange(-count, count + 1, device=gap.device)
        logw = (-(lifted**2) / (2 * outer[..., None] ** 2)).log_softmax(-1)
        kept = inner / outer
        fresh = self.eta**2 * (1 - kept**2)
        c = kept * (1 - fresh).sqrt()
        return logw, c[..., None] * lifted, (inner * fresh.clamp(min=0).sqrt()).expand(gap.shape), c * gap

    def draw(self, rng: RNG) -> Tensor:
        """Windings by one uniform number an angle, then, where ``eta > 0``, one normal."""
        logw, means, std, _ = self._parts
        u = rng.uniform(tuple(self.x_t.shape)).to(logw)
        cdf = logw.exp().cumsum(-1)
        k = torch.searchsorted(cdf, u[..., None] * cdf[..., -1:], right=True).clamp(max=cdf.shape[-1] - 1)
        mean = means.gather(-1, k)[..., 0]
        if self.eta:
            mean = mean + std * rng.normal(tuple(self.x_t.shape)).to(mean)
        return wrap(self.x0 + mean.to(self.x0))

    def point(self) -> Tensor:
        """On the shorter way round: ``exp(x0, c log(x0, x_t))``."""
        return wrap(self.x0 + self._parts[3].to(self.x0))

    def nll(self, x: Tensor) -> Tensor:
        """``-log p`` per ``radian^n``, ``[b]``; needs ``eta > 0`` and ``sigma_s > 0``."""
        logw, means, std, _ = self._parts
        gap = wrap(x - self.x0).double()[..., None] - means
        logp = (logw + wrapped_normal.log_density(wrap(gap), std[..., None])).logsumexp(-1)
        return -flat_sum(logp).to(x)

    def kl(self, other: Law[Any]) -> NoReturn:
        """Refused: a mixture over windings has no KL in closed form."""
        raise Refusal("KL of a WrappedBridge has no closed form; use Brownian.rate, its limit for short steps")

    def tilt(self, ref: Law[Any], w: Any) -> NoReturn:
        """Refused."""
        _refuse_tilt(self)


__all__ = ["IGSO3", "Along", "Uniform", "WrappedBridge", "WrappedNormal"]

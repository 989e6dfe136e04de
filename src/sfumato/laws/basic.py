"""Everything random is a law: Dirac, Normal, Categorical, their joints, and draws through a kernel.

The contract: ``draw`` is the only consumer of randomness; ``nll`` and ``kl`` are in nats and of shape ``[b]`` (a dict
of them for a joint law); ``tilt(ref, w) = pool([ref, self], [1 - w, w])``, so ``w = 1`` is the law itself and ``w = 0``
the reference.  Laws carry their space: a Normal on a subspace draws noise of that subspace and counts its dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.core import RNG, Law, Space
from sfumato.errors import Refusal
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import against, counted, flat_sum, site_uniforms, tree_map


def _no_closed_form(what: str, law: object) -> Refusal:
    return Refusal(f"{what} of {type(law).__name__} has no closed form; use a Dirac, Normal or Categorical belief")


def _like(value: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _weighted_sum(values: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
    total: Any = 0.0
    for weight, value in zip(weights, values, strict=True):
        total = total + against(weight, value) * value
    return total if torch.is_tensor(total) else torch.as_tensor(total)


@final
@dataclass(frozen=True)
class Dirac:
    """All mass on the state ``x``: what a point prediction believes."""

    x: Any
    leaves: ClassVar[tuple[str, ...]] = ("x",)

    def draw(self, rng: RNG | None) -> Any:
        """The state itself."""
        return self.x

    def point(self) -> Any:
        """The state itself."""
        return self.x

    def nll(self, x: Any) -> Any:
        """0 at the state itself, infinite elsewhere."""
        if isinstance(self.x, Mapping):
            return {key: Dirac(value).nll(x[key]) for key, value in self.x.items()}
        off = flat_sum((x != self.x).to(torch.float32))
        return torch.where(off > 0, math.inf, 0.0).to(off)

    def kl(self, other: Law[Any]) -> Any:
        """``-log other(x)``: with a density on the right this is the reconstruction term ``L_0`` of the ELBO."""
        return other.nll(self.x)

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """``ref + w (self - ref)``."""
        return pool([ref, self], [_complement(w), w])

    @staticmethod
    def pool(laws: Sequence[Any], weights: Sequence[Any]) -> Dirac:
        """A weighted sum of the points."""
        return Dirac(tree_map(lambda *points: _weighted_sum(points, weights), *(law.point() for law in laws)))


@final
@dataclass(frozen=True)
class Normal:
    """Independent normals with mean ``[b, ...]`` and variance ``var`` (a number or a tensor that broadcasts)."""

    mean: Tensor
    var: Any
    space: Space = Euclidean()
    leaves: ClassVar[tuple[str, ...]] = ("mean", "var")

    def draw(self, rng: RNG) -> Tensor:
        """``mean + sqrt(var) * noise``, with the noise of the space."""
        drawn: Tensor = self.mean + self.var**0.5 * self.space.noise(self.mean, rng)
        return drawn

    def point(self) -> Tensor:
        """The mean."""
        return self.mean

    def _sum_free(self, value: Tensor) -> Tensor:
        """Sum a per-coordinate constant over the free dimensions of every sample."""
        full = value.expand(self.mean.shape) if value.ndim <= self.mean.ndim else value
        sites = flat_sum(full * self.space.sites(self.mean))
        count = flat_sum(torch.ones_like(self.mean) * self.space.sites(self.mean))
        free: Tensor = sites * self.space.dof(self.mean) / count
        return free

    def nll(self, x: Tensor) -> Tensor:
        """``|x - mean|^2 / (2 var) + dof log(2 pi var) / 2``, in nats, shape ``[b]``."""
        var = _like(self.var, self.mean)
        square: Tensor = flat_sum((x - self.mean) ** 2 / var * self.space.sites(x)) / 2
        return square + self._sum_free((2 * math.pi * var).log() / 2)

    def kl(self, other: Law[Any]) -> Tensor:
        """``KL(self || other)`` for two normals, shape ``[b]``; raises :class:`Refusal` for any other law.

        Where this variance is 0 it is the negative log-density of the other at the mean, as it is for a Dirac: a batch
        of steps may hold some that end in ``s = 0``.
        """
        if not isinstance(other, Normal):
            raise _no_closed_form("KL from a Normal", other)
        var, over = _like(self.var, self.mean), _like(other.var, self.mean)
        gap = (self.mean - other.mean) ** 2
        square: Tensor = flat_sum(torch.where(gap == 0, 0.0, gap / over) * self.space.sites(self.mean)) / 2
        ratio = torch.where(var == 0, 1.0, var / torch.where(over == 0, 1.0, over))
        shape = torch.where(over == 0, torch.where(var == 0, 0.0, math.inf), (ratio - 1 - ratio.log()) / 2)
        sharp = torch.where((var == 0) & (over > 0), (2 * math.pi * over).log() / 2, shape)
        return square + self._sum_free(sharp)

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """Score-linear guidance: the mean moves, this law's variance stays."""
        return pool([ref, self], [_complement(w), w])

    @staticmethod
    def pool(laws: Sequence[Any], weights: Sequence[Any]) -> Normal:
        """Means mix linearly (scores do, too); the variance is the last law's: classifier-free guidance as
        published."""
        last = laws[-1]
        return Normal(_weighted_sum([law.point() for law in laws], weights), last.var, last.space)


@final
@dataclass(frozen=True)
class Categorical:
    """Independent categorical sites: normalised log-probabilities ``[b, ..., k]``; ``-inf`` forbids a token."""

    logp: Tensor
    space: Space = Euclidean()
    leaves: ClassVar[tuple[str, ...]] = ("logp",)

    def draw(self, rng: RNG) -> Tensor:
        """One token per site by the inverse cdf: exactly one uniform number a free site."""
        p = self.logp.exp()
        cdf = p.cumsum(-1)
        u = site_uniforms(self.space, tuple(p.shape[:-1]), rng).to(p)[..., None] * cdf[..., -1:]
        token = torch.searchsorted(cdf, u, right=True)[..., 0]
        # rounding may carry u to the very end of the cdf: stay on the last token that has any mass
        last = p.shape[-1] - 1 - (p > 0).flip(-1).to(torch.int8).argmax(-1)
        return self.space.project(torch.minimum(token, last))

    def point(self) -> Tensor:
        """The most likely token of every site."""
        return self.space.project(self.logp.argmax(-1))

    def nll(self, x: Tensor) -> Tensor:
        """``-log p(x)`` in nats summed over sites, shape ``[b]``."""
        return counted(-self.logp.gather(-1, x[..., None])[..., 0], self.space.sites(x))

    def kl(self, other: Law[Any]) -> Tensor:
        """``KL(self || other)`` summed over sites, shape ``[b]``; raises :class:`Refusal` for any other law."""
        if not isinstance(other, Categorical):
            raise _no_closed_form("KL from a Categorical", other)
        p = self.logp.exp()
        here = p > 0  # masked before subtracting, so that tokens forbidden on both sides have no gradient
        gap = torch.where(here, self.logp, 0.0) - torch.where(here, other.logp, 0.0)
        terms = (p * gap).sum(-1)
        return counted(terms, self.space.sites(terms))

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """``log p`` moves from the reference's by ``w``; what either forbids (at non-zero weight) stays forbidden."""
        return pool([ref, self], [_complement(w), w])

    @staticmethod
    def pool(laws: Sequence[Any], weights: Sequence[Any]) -> Categorical:
        """A log-linear pool, normalised; a token that any law of non-zero weight forbids stays forbidden."""
        forbidden = torch.zeros_like(laws[0].logp, dtype=torch.bool)
        for law, weight in zip(laws, weights, strict=True):
            weight = torch.as_tensor(against(weight, law.logp))
            forbidden = forbidden | ((law.logp == -math.inf) & (weight != 0))
        mixed = _weighted_sum([law.logp.masked_fill(law.logp == -math.inf, 0.0) for law in laws], weights)
        return Categorical(mixed.masked_fill(forbidden, -math.inf).log_softmax(-1), laws[0].space)


@final
@dataclass(frozen=True)
class Joint:
    """Independent parts, one law each, keyed by name: the law of a product."""

    parts: Mapping[str, Any]
    leaves: ClassVar[tuple[str, ...]] = ("parts",)

    def draw(self, rng: RNG) -> dict[str, Any]:
        """A draw of every part, in the order of the keys."""
        return {key: law.draw(rng) for key, law in self.parts.items()}

    def point(self) -> dict[str, Any]:
        """The point of every part."""
        return {key: law.point() for key, law in self.parts.items()}

    def nll(self, x: Mapping[str, Any]) -> dict[str, Any]:
        """Per part, so that parts can be logged and weighted apart."""
        return {key: law.nll(x[key]) for key, law in self.parts.items()}

    def kl(self, other: Law[Any]) -> dict[str, Any]:
        """Per part; raises :class:`Refusal` where the other law is not a joint one."""
        if not isinstance(other, Joint):
            raise _no_closed_form("KL from a Joint", other)
        return {key: law.kl(other.parts[key]) for key, law in self.parts.items()}

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """Part by part; ``w`` may be a dict with one scale per part."""
        return pool([ref, self], [_complement(w), w])

    @staticmethod
    def pool(laws: Sequence[Any], weights: Sequence[Any]) -> Joint:
        """Pool part by part; a weight may be a dict with one number per part."""
        return Joint(
            {
                key: pool([law.parts[key] for law in laws], [w[key] if isinstance(w, Mapping) else w for w in weights])
                for key in laws[0].parts
            }
        )


@final
@dataclass(frozen=True)
class Through:
    """Draw from the belief ``q``, then from ``kernel(Dirac(draw))``: the fallback where no closed form exists."""

    q: Any
    kernel: Callable[[Dirac], Law[Any]]

    def draw(self, rng: RNG) -> Any:
        """A draw of the belief carried through the kernel."""
        return self.kernel(Dirac(self.q.draw(rng))).draw(rng)

    def point(self) -> Any:
        """The kernel's point at the belief's point."""
        return self.kernel(Dirac(self.q.point())).point()

    def nll(self, x: Any) -> Any:
        """Refused: a mixture over draws has no closed form."""
        raise _no_closed_form("the likelihood", self)

    def kl(self, other: Law[Any]) -> Any:
        """Refused: a mixture over draws has no closed form."""
        raise _no_closed_form("KL", self)

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """Refused: tilt the belief instead."""
        raise _no_closed_form("a tilt", self)


def _complement(w: Any) -> Any:
    return {key: 1.0 - value for key, value in w.items()} if isinstance(w, Mapping) else 1.0 - w


def pool(laws: Sequence[Any], weights: Sequence[Any]) -> Any:
    """Combine beliefs with weights that sum to 1: guidance, three-way guidance, negative prompts, conjunction.

    A weight is a number, a per-sample tensor ``[b]``, or (for joint laws) a dict with one per part.  Laws of one kind
    pool as that kind does; laws of mixed kinds pool their points.
    """
    kind = type(laws[0])
    alike = all(type(law) is kind for law in laws) and hasattr(kind, "pool")
    return kind.pool(laws, weights) if alike else Dirac.pool(laws, weights)


def natural_pool(laws: Sequence[Normal], weights: Sequence[Any]) -> Normal:
    """The exact tilt of normals in natural parameters: the law proportional to ``prod p_i ** w_i``.

    The precision is floored at the broadest law's, since a weighted sum of precisions may vanish or turn negative;
    where the floor acts the mean is the linear pool's.
    """
    precisions = [1 / (_like(law.var, law.mean) + torch.zeros_like(law.mean)) for law in laws]
    mixed = _weighted_sum(precisions, weights)
    floor = torch.stack(precisions).amin(0)
    proper = mixed > floor
    exact = _weighted_sum([p * law.mean for p, law in zip(precisions, laws, strict=True)], weights)
    linear = _weighted_sum([law.mean for law in laws], weights)
    mean = torch.where(proper, exact / torch.where(proper, mixed, torch.ones_like(mixed)), linear)
    return Normal(mean, 1 / torch.where(proper, mixed, floor), laws[0].space)

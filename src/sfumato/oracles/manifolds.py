"""A finite data set on a manifold as its own oracle, for geodesic and Brownian processes.

The contract: data uniform on the points ``a_1..a_n``; the posterior at ``x_t`` puts the weight ``q(x_t | a_i) / sum_j
q(x_t | a_j)`` on point i, with the process's own exact density: a ball drawn in to ``a_i`` (Geodesic with the uniform
prior, on Torus, Sphere and SO3) or a heat kernel (Brownian).  The point that deterministic samplers use is ``exp(x_t,
E[log(x_t, x0) | x_t])``, so that the geodesic bridge towards it is a step along the exact marginal velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import RNG, Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws.manifold import Along
from sfumato.oracles.common import LawDenoiser, pick
from sfumato.randomness import as_rng
from sfumato.spaces.manifold import Manifold
from sfumato.trees import against


@final
@dataclass(frozen=True, eq=False)
class ManifoldAtoms:
    """A law on finitely many points of a manifold, believed at ``x`` ``[b, ...]``: ``logr`` ``[b, n]``, ``atoms`` ``[n,
    ...]``."""

    logr: Tensor
    x: Tensor
    atoms: Tensor
    space: Manifold
    leaves: ClassVar[tuple[str, ...]] = ("logr", "x")

    def draw(self, rng: RNG) -> Tensor:
        """One point a sample, by one uniform number."""
        return self.atoms[pick(self.logr, rng.uniform((len(self.logr),)).to(self.logr))].to(self.x)

    def expect(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``E[f(x0)]`` for an ``f`` from points ``[b, ...]`` to tensors of their shape."""
        weights = self.logr.exp()
        total = torch.zeros_like(self.x)
        for i, atom in enumerate(self.atoms.to(self.x)):
            total = total + against(weights[:, i], self.x) * f(atom.expand(self.x.shape))
        return total

    def along(self) -> Along:
        """The mean of the tangent vectors to the points: the exact marginal velocity's belief."""
        return Along(self.x, self.expect(lambda x0: self.space.log(self.x, x0)), self.space)

    def point(self) -> Tensor:
        """``exp(x, E[log(x, x0)])``."""
        return self.along().point()

    def nll(self, x: Tensor) -> Float[Tensor, " b"]:
        """``-log`` of the probability of ``x``: infinite where it is none of the points."""
        hit = (x.flatten(1)[:, None] == self.atoms.to(x).flatten(1)).all(2)
        return -self.logr.masked_fill(~hit, -math.inf).logsumexp(1)

    def kl(self, other: Law[Tensor]) -> NoReturn:
        """Refused: a law of points has no density to compare."""
        raise Refusal("KL of a law of points is infinite or undefined; compare its draws")

    def tilt(self, ref: Law[Tensor], w: Any) -> Any:
        """Guidance of the tangent vectors, ``ref + w (self - ref)``; both must be believed at one ``x``."""
        other = ref.along() if isinstance(ref, ManifoldAtoms) else ref
        return self.along().tilt(other, w)


@final
@dataclass(frozen=True, init=False, eq=False)
class ManifoldData:
    """A data set ``[n, ...]`` of members of ``space`` as an oracle.  Raises :class:`Refusal` for states off the
    space."""

    space: Manifold
    atoms: Tensor

    def __init__(self, space: Manifold, data: Any) -> None:
        atoms = torch.as_tensor(data, dtype=torch.float64).detach().cpu()
        if atoms.ndim < 2 or len(atoms) == 0 or not space.contains(atoms):
            raise Refusal(f"data of shape {tuple(atoms.shape)} are no members of {type(space).__name__}; project them")
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "atoms", atoms)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.atoms.shape[1:])

    def sample(self, n: int, rng: Any) -> Float[Tensor, "n *shape"]:
        """``n`` samples drawn with replacement, float64."""
        index = (as_rng(rng).uniform((n,)).to(torch.float64) * len(self.atoms)).long()
        return self.atoms[index]

    def belief(self, process: Any, x: Tensor, t: Time, cond: Cond | None = None) -> ManifoldAtoms:
        """The posterior ``p(x0 | x_t)``; a state that no point can have led to is believed to come from the nearest."""
        if cond:
            raise Refusal(f"cond has {sorted(cond)}; this oracle knows no conditions")
        wide = x.double()
        centres = [atom.expand(wide.shape) for atom in self.atoms.to(wide.device)]
        logs = torch.stack([process.log_density(centre, wide, t).double() for centre in centres], 1)
        lost = ~torch.isfinite(logs).any(1, keepdim=True)
        if bool(lost.any()):
            far = torch.stack([self.space.distance(wide, centre) for centre in centres], 1)
            nearest = torch.where(far == far.amin(1, keepdim=True), 0.0, -math.inf).to(logs)
            logs = torch.where(lost, nearest, logs)
        return ManifoldAtoms(logs.log_softmax(1), x, self.atoms, self.space)

    def mean(self, process: Any, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The belief's point, shaped like ``x``."""
        return self.belief(process, x, t, cond).point()

    def score(self, process: Any, x: Tensor, t: Time) -> Tensor:
        """``grad log p_t(x_t)`` for a Brownian process, a tangent vector at ``x``; ``t > 0``."""
        score: Tensor = process.score(self.belief(process, x, t), x, t)
        return score

    def logp(self, process: Any, x: Tensor, t: Time) -> Float[Tensor, " b"]:
        """``log p_t(x_t)`` per unit of volume, ``t > 0``."""
        logs = [process.log_density(atom.expand(x.shape), x.double(), t).double() for atom in self.atoms]
        return torch.stack(logs, 1).logsumexp(1) - math.log(len(self.atoms))

    def denoiser(self, process: Any) -> LawDenoiser:
        """The perfect model: its belief's point is the exact velocity's, its mean score the exact score."""
        return LawDenoiser(self, process)

    def posterior(self, process: Any) -> LawDenoiser:
        """The same: the exact law ``p(x0 | x_t)``."""
        return LawDenoiser(self, process)

"""From a raw network output to a belief on a manifold: the same seam as :mod:`sfumato.denoisers`, for tangent vectors.

The contract: a network reads the space's smooth coordinates ``[b, m]`` and answers with an ambient vector ``[b, k]``,
which a head shapes like the state and projects to the tangent space at ``x_t``.  What a belief becomes is an
:class:`~sfumato.laws.manifold.Along`, so that two of them can be guided.

============  =======================================  ==========================================================
head          target, a tangent vector at ``x_t``      source
============  =======================================  ==========================================================
Velocity      ``-log(x_t, x0) / share``                Chen and Lipman 2023, eq. 14 (per share of the way, not of
                                                       time: of constant length, finite at both ends)
Endpoint      ``log(x_t, x0)``                         the same belief by its end; the loss of Geodesic itself
Score         ``grad log q(x_t | x0) / rms``           Corso et al. 2022, section 4.4; ``rms^2 = E score^2`` of one
                                                       factor, so that the target has unit size at every level
============  =======================================  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.laws.manifold import Along
from sfumato.processes.brownian import Brownian
from sfumato.processes.geodesic import Geodesic
from sfumato.randomness import as_rng
from sfumato.schedules import at, narrow, wide
from sfumato.spaces.manifold import Manifold


@runtime_checkable
class TangentHead(Protocol):
    """A head whose output is a tangent vector at ``x_t``."""

    @property
    def process(self) -> Any:
        """The process whose states it reads."""
        ...

    def __call__(self, raw: Tensor, x_t: Tensor, t: Time) -> Along:
        """The belief that a tangent vector ``raw`` at ``x_t`` states."""
        ...

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """What the network should output."""
        ...


@final
@dataclass(frozen=True)
class VelocityHead:
    """The output is ``dx_t / d share``: Riemannian flow matching."""

    process: Geodesic

    def __call__(self, raw: Tensor, x_t: Tensor, t: Time) -> Along:
        """``exp(x_t, -share raw)``."""
        return Along(x_t, -narrow(self.process.share(t, x_t), x_t) * raw, self.process.space)

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``-log(x_t, x0) / share``; ``t > 0``."""
        return self.process.slope(x0, x_t, t)


@final
@dataclass(frozen=True)
class EndpointHead:
    """The output is ``log(x_t, x0)`` itself."""

    process: Geodesic

    def __call__(self, raw: Tensor, x_t: Tensor, t: Time) -> Along:
        """``exp(x_t, raw)``."""
        return Along(x_t, raw, self.process.space)

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``log(x_t, x0)``."""
        return self.process.space.log(x_t, x0)


@final
@dataclass(frozen=True)
class ScoreHead:
    """The output is the score over its root mean square: Brownian processes."""

    process: Brownian

    def _levels(self, t: Time, x: Tensor) -> tuple[Any, Tensor]:
        """``sigma^2`` and the root mean square of one factor's score at ``t``, shaped against ``x``."""
        sigma = at(self.process.schedule, t, wide(x))[1]
        rms = self.process.kernel.square_score(sigma).clamp(min=1e-12).sqrt()
        return narrow(sigma, x) ** 2, rms.to(x)

    def __call__(self, raw: Tensor, x_t: Tensor, t: Time) -> Along:
        """``exp(x_t, sigma^2 score)``: Tweedie's formula to the order of the noise."""
        square, rms = self._levels(t, x_t)
        return Along(x_t, square * rms * raw, self.process.space)

    def mean(self, q: Law[Tensor], x_t: Tensor, t: Time) -> Tensor:
        """The score under a belief over its root mean square: what a perfect network outputs; ``t > 0``."""
        _, rms = self._levels(t, x_t)
        return self.process.score(q, x_t, t) / rms

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """The kernel's score over its root mean square; ``t > 0``."""
        return self.mean(Dirac(x0), x_t, t)


@final
@dataclass(frozen=True)
class OnManifold:
    """A network and the head that reads it: a :class:`~sfumato.core.Denoiser` on a manifold.

    ``net(coordinates [b, m], t [b] float32, cond) -> [b, k]`` with the ``k`` numbers of a state.
    """

    net: Any
    head: TangentHead

    @property
    def space(self) -> Manifold:
        """The manifold."""
        space: Manifold = self.head.process.space
        return space

    def raw(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The network's answer as a tangent vector at ``x_t``."""
        times = torch.as_tensor(t, dtype=torch.float32).to(x_t.device).expand(len(x_t))
        answer: Tensor = self.net(self.space.coordinates(x_t), times, cond)
        if answer.numel() != x_t.numel():
            raise Refusal(
                f"the network gives {answer.shape[1]} numbers for a state of {x_t[0].numel()}; set its outputs"
            )
        return self.space.tangent(x_t, answer.to(x_t).reshape(x_t.shape))

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Along:
        """The belief over ``x0`` given ``x_t`` ``[b, ...]`` at ``t``."""
        return self.head(self.raw(x_t, t, cond), x_t, t)

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """What :meth:`raw` should be."""
        return self.head.target(x0, x_t, t)


def tangent_loss(
    denoiser: OnManifold,
    x0: Float[Tensor, "b *shape"],
    t: Float[Tensor, " b"],
    cond: Cond | None = None,
    rng: Any = None,
    end: Float[Tensor, "b *shape"] | None = None,
) -> Float[Tensor, " b"]:
    """``|raw - target|^2`` in the manifold's metric, per dimension, at data ``x0`` and times ``t > 0``.

    ``end``: a draw of the prior coupled to ``x0`` (Geodesic only); else ``rng`` draws.  Raises :class:`Refusal` where
    neither is given.
    """
    if rng is None and end is None:
        raise Refusal("a loss draws noise but rng is None; pass a Stream, a torch.Generator or an int seed")
    process, space = denoiser.head.process, denoiser.space
    x_t = process.marginal(x0, t, end).draw(None if rng is None else as_rng(rng))
    error = denoiser.raw(x_t, t, cond) - denoiser.target(x0, x_t, t)
    loss: Tensor = space.square(error) / space.dof(x0)
    return loss

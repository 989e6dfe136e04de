"""The protocols every part of Sfumato is written against.  Read this file first.

The contract, in three lines:

* a **denoiser** states a belief about the clean data: a law ``p(x0 | x_t)``;
* a **process** knows how data is destroyed, and the *bridge* back from ``t`` to ``s`` that a belief implies: a law
  ``p(x_s | x_t)``;
* **sampling is: form the belief, draw from the bridge, repeat.**  Everything random is a :class:`Law`, and only
  :meth:`Law.draw` sees randomness.

Conventions that hold everywhere: time is continuous, ``t = 0`` is data and ``t = 1`` is the prior; samplers pass times
as python floats, training passes tensors of shape ``[b]``; a state is a tensor with a leading sample axis, or a dict of
such tensors (a product).  Nothing in this module computes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

#: A time: a python float in a sampler, a tensor of shape ``[b]`` in training.
Time = float | Tensor
#: What a denoiser may be conditioned on: named tensors with a leading sample axis.
Cond = Mapping[str, Tensor]
#: A number for every sample, or one per part of a product.
PerSample = Any
#: What a sampler remembers between two steps (its history); ``None`` for memoryless samplers.
Carry = Any

S = TypeVar("S")


@runtime_checkable
class RNG(Protocol):
    """A source of randomness.  ``rows[k]`` says how many leading rows sample ``k`` owns (padded sets draw no more)."""

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Standard normal float32 numbers on the CPU, of the given shape."""
        ...

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        """Uniform float32 numbers in [0, 1) on the CPU, of the given shape."""
        ...


@runtime_checkable
class Law(Protocol[S]):
    """A probability law over states.  It may refuse anything but :meth:`draw`."""

    def draw(self, rng: RNG) -> S:
        """One draw for every sample: the only consumer of randomness in the library."""
        ...

    def point(self) -> S:
        """The state a deterministic sampler uses: the mean (Gaussian) or the mode (categorical)."""
        ...

    def nll(self, x: S) -> PerSample:
        """Negative log-density (or log-probability) in nats, shape ``[b]``; a dict of them for a joint law."""
        ...

    def kl(self, other: Law[S]) -> PerSample:
        """``KL(self || other)`` in nats, shape ``[b]``; a dict of them for a joint law."""
        ...

    def tilt(self, ref: Law[S], w: Any) -> Any:
        """Guidance: ``ref + w (self - ref)``, so that ``w = 1`` is ``self`` and ``w = 0`` is ``ref``."""
        ...


@runtime_checkable
class Space(Protocol):
    """Where a state lives.  ``contains`` is written independently of ``project``, so that a test can catch either."""

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """The space's own standard noise, shaped like ``like``."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The nearest member of the space."""
        ...

    def contains(self, x: Tensor) -> bool:
        """Whether every sample is a member, to the precision of its dtype."""
        ...

    def sites(self, x: Tensor) -> Tensor | float:
        """A weight that broadcasts against ``x``: 1 where a coordinate counts, 0 for padding or a mirrored copy."""
        ...

    def dof(self, x: Tensor) -> Tensor:
        """The number of free dimensions of every sample, shape ``[b]``; likelihoods need it."""
        ...


@runtime_checkable
class Process(Protocol[S]):
    """How data is destroyed: four laws and two losses.  Sampling and every objective are built from these alone."""

    def prior(self, like: S) -> Law[S]:
        """The law at ``t = 1``, shaped like ``like``."""
        ...

    def marginal(self, x0: S, t: Time, end: S | None = None) -> Law[S]:
        """``q(x_t | x0)``.  ``end``: a given draw of the prior (a coupling, reflow, fixed-noise validation)."""
        ...

    def forward(self, x_s: S, s: Time, t: Time) -> Law[S]:
        """``q(x_t | x_s)`` for ``s <= t``; refused where the process is not Markov."""
        ...

    def bridge(self, x_t: S, q: Law[S], t: Time, s: Time, eta: float = 1.0) -> Law[S]:
        """The law of ``x_s`` given ``x_t`` and the belief ``q`` over ``x0``.

        With ``q = Dirac(x0)`` it is ``q(x_s | x_t, x0)``; with a belief it is ``p(x_s | x_t)``, in closed form where
        there is one.  ``eta`` scales the fresh noise: 1 is ancestral, 0 is deterministic (DDIM).
        """
        ...

    def loss(self, q: Law[S], x0: S, x_t: S, t: Time) -> PerSample:
        """The natural unweighted discrepancy between a belief and the truth, finite at both ends, shape ``[b]``."""
        ...

    def rate(self, q: Law[S], x0: S, x_t: S, t: Time) -> PerSample:
        """The integrand of the continuous-time ELBO: the limit of ``step_kl / (t - s)``, shape ``[b]``."""
        ...


@runtime_checkable
class Head(Protocol):
    """The seam from a raw network output to a law."""

    def __call__(self, raw: Any, x_t: Any, t: Time) -> Law[Any]:
        """The law that a raw output states."""
        ...


@runtime_checkable
class Denoiser(Protocol[S]):
    """States a belief about the clean data."""

    def __call__(self, x_t: S, t: Time, cond: Cond | None = None) -> Law[S]:
        """The belief about ``x0`` given ``x_t``."""
        ...


@runtime_checkable
class FlowMap(Protocol[S]):
    """Jumps along trajectories: consistency functions and distilled students (``kind = "map"``)."""

    kind: ClassVar[str]

    def __call__(self, x_t: S, t: Time, s: Time, cond: Cond | None = None) -> S:
        """The state at ``s`` of the trajectory through ``x_t``."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Walks one interval of the grid at a time, without hidden state.

    ``order`` is the declared order of convergence on the probability-flow ODE away from the ends (``None`` for
    stochastic samplers); ``takes`` is the kind of model it samples, ``"belief"`` or ``"map"``; ``evaluations`` is the
    number of model calls of an interior step.
    """

    @property
    def order(self) -> int | None:
        """The declared order, or None."""
        ...

    @property
    def takes(self) -> str:
        """The kind of model it samples."""
        ...

    @property
    def evaluations(self) -> int:
        """Model calls of an interior step."""
        ...

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuse what does not fit (raises :class:`sfumato.errors.Refusal`), precompute, return the first carry."""
        ...

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """Carry ``x`` from ``t`` to exactly ``s``: the next grid entry is always handed in, never recomputed."""
        ...


@runtime_checkable
class System(Protocol):
    """What a recipe builds and the training loop trains: nets, losses (one per optimiser), samples."""

    def losses(self, batch: Any, rng: RNG) -> Mapping[str, Tensor]:
        """Unreduced losses of shape ``[b]``, one entry per optimiser."""
        ...

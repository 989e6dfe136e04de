"""Samplers that draw from the bridge: DDPM and DDIM, for every process.

The contract: one evaluation a step; the step is ``process.bridge`` of the belief, nothing else.  The noise of a step is
the space's own, so these samplers run unchanged on products and on any space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.processes.product import Product


def require_gaussian(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where a sampler written for Gaussian processes is given another one."""
    if not isinstance(process, Gaussian):
        raise Refusal(
            f"{type(sampler).__name__} needs a Gaussian process, not {type(process).__name__}; use 'ddpm' or 'ddim'"
        )


def require_path(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where an ODE solver is given a process without ``(alpha, sigma)``: it takes a Gaussian
    process, or the coupled path of an Interpolant, whose ODE is the same in these variables."""
    if not isinstance(process, Gaussian | Interpolant):
        raise Refusal(
            f"{type(sampler).__name__} needs a process with an (alpha, sigma) schedule, not {type(process).__name__}; "
            "use 'ddpm' or 'ddim'"
        )


def require_markov(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where a sampler that draws noise is given a coupled path, which has no law to draw it
    from, or a process (or part of a product) that says ``markov = False``."""
    for part in getattr(process, "parts", {}).values():
        require_markov(part, sampler)
    if not getattr(process, "markov", True):
        raise Refusal(
            f"{type(sampler).__name__} draws noise from a Markov chain, and a {type(process).__name__} is none; use "
            "'ddim'"
        )
    if isinstance(process, Interpolant):
        raise Refusal(
            f"{type(sampler).__name__} draws noise from a Markov chain, and an Interpolant is none; use an ODE solver, "
            "'ddim' or 'heun'"
        )


def require_numbers(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where a sampler that takes the point of a law is given tokens: the likeliest tokens are
    one and the same for all samples."""
    parts: Any = process.parts.values() if isinstance(process, Product) else (process,)
    for part in parts:
        if hasattr(getattr(part, "kernel", None), "mask"):
            raise Refusal(f"{type(sampler).__name__} follows points, and tokens have none between them; use 'ddpm'")


def require_bridge(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where the bridge that a sampler walks has no closed form (random walks of rotations)."""
    for part in getattr(process, "parts", {}).values():
        require_bridge(part, sampler)
    if not getattr(getattr(process, "kernel", None), "bridged", True):
        raise Refusal(
            f"{type(sampler).__name__} walks a bridge, and that of {type(process).__name__} on "
            f"{type(process.space).__name__} has no closed form; use the sampler GeodesicWalk"
        )


def require_rng(rng: RNG | None, sampler: object) -> RNG:
    """The rng of a stochastic step; raises :class:`Refusal` where none was given."""
    if rng is None:
        raise Refusal(
            f"{type(sampler).__name__} draws noise but rng is None; pass rng=Stream(seed), Streams(seeds) or a seed"
        )
    return rng


@final
@dataclass(frozen=True)
class Ancestral:
    """Draw from the belief's own bridge: DDPM with the posterior variance (Ho et al. 2020, algorithm 2; "fixed small").

    A belief with variance widens the step by exactly that variance, so the exact belief is sampled exactly.  ``last``:
    what the step to ``s = 0`` returns, a ``"draw"`` from the belief or, as networks of learned variance do (Nichol and
    Dhariwal 2021), its ``"point"``.
    """

    last: str = "draw"
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.last not in ("draw", "point"):
            raise Refusal(f"last={self.last!r}: the last step returns a 'draw' or the 'point'")

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Fits every Markov process whose bridge is known; remembers nothing."""
        require_markov(process, self)
        require_bridge(process, self)
        return None

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One evaluation, one draw."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """The update for a belief already formed."""
        law = process.bridge(x, q, t, s)
        return (law.point() if s == 0 and self.last == "point" else law.draw(require_rng(rng, self))), None


@final
@dataclass(frozen=True)
class AncestralLarge:
    """DDPM with the transition's variance ``beta`` in place of the posterior's (Ho et al. 2020, "fixed large").

    The step to ``s = 0`` returns the belief's point, as there.  Gaussian processes only.  The two variances agree as
    steps get short; on few steps, and on variance-exploding paths above all, this one is far too wide.
    """

    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One evaluation, one draw."""
        law = process.bridge(x, Dirac(model(x, t).point()), t, s)
        if isinstance(law, Normal) and s > 0:
            forward: Any = process.forward(x, s, t)
            law = replace(law, var=forward.var)
        return law.draw(require_rng(rng, self)), None


@final
@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2021, eq. 12): the bridge at the belief's point with ``eta`` of the posterior's noise.

    ``eta = 0`` is deterministic and of order 1; ``eta = 1`` is DDPM with the posterior variance of a point belief.
    Raises :class:`Refusal` unless ``0 <= eta <= 1``.
    """

    eta: float = 0.0
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise Refusal(f"eta={self.eta}: DDIM's share of fresh noise lies in [0, 1]")

    @property
    def order(self) -> int | None:
        """1 where deterministic."""
        return None if self.eta else 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Fits every process of numbers at ``eta = 0`` and every Markov process above it; remembers nothing."""
        require_numbers(process, self)
        require_bridge(process, self)
        if self.eta > 0:
            require_markov(process, self)
        return None

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One evaluation; a draw only where ``eta > 0``."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """The update for a belief already formed.  Its point, not a draw: an ODE step adds no noise."""
        law = process.bridge(x, Dirac(q.point()), t, s, self.eta)
        return (law.draw(require_rng(rng, self)) if self.eta else law.point()), None

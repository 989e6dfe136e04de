"""Samplers that draw from the bridge: DDPM and DDIM, for every process whose bridge is known.

The contract: one evaluation a step; the step is ``process.bridge`` of the belief, nothing else.  The noise of a step is
the space's own, so these samplers run unchanged on products and on any space.  What a sampler refuses names one that
takes the process (:func:`advice`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal
from sfumato.processes.brownian import Brownian
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.processes.mixed import Mixed
from sfumato.processes.product import Product


def singles(process: Any) -> list[Any]:
    """The single processes that a state is made of: the parts of a product, or the process itself."""
    whole = process.product if isinstance(process, Mixed) else process
    if not isinstance(whole, Product):
        return [whole]
    return [single for part in whole.parts.values() for single in singles(part)]


def has_noise(process: Any) -> bool:
    """Whether the process, or a part of it, is a Markov chain, whose way back is drawn."""
    return bool(getattr(process, "markov", True))


def has_tokens(process: Any) -> bool:
    """Whether a part of the state is tokens."""
    return any(hasattr(getattr(single, "kernel", None), "mask") for single in singles(process))


def has_bridge(process: Any) -> bool:
    """Whether every part of the state has a bridge in closed form."""
    return all(getattr(getattr(single, "kernel", None), "bridged", True) for single in singles(process))


def fitting(process: Any) -> list[str]:
    """The samplers for any process that take this one, by name; none for a product whose parts have none in common."""
    takes = {
        "ddpm": has_bridge(process) and has_noise(process),
        "ddim": has_bridge(process) and not has_tokens(process),
        "walk": isinstance(process, Brownian),
    }
    return [name for name, fits in takes.items() if fits]


def advice(process: Any) -> str:
    """What a refusal advises: samplers that take ``process``, or one for each of its parts."""
    names = [repr(name) for name in fitting(process)]
    if names:
        return f"use {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else f"use {names[0]}"
    parts = process.parts if isinstance(process, Product) else {}
    own = [f"{(fitting(part) or ['PerPart'])[0]!r} for {key!r}" for key, part in parts.items()]
    return f"use PerPart with {', '.join(own)}" if own else "it needs a sampler of its own"


def require_gaussian(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where a sampler written for Gaussian processes is given another one."""
    if not isinstance(process, Gaussian):
        raise Refusal(
            f"{type(sampler).__name__} needs a Gaussian process, not {type(process).__name__}; {advice(process)}"
        )


def require_path(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where an ODE solver is given a process without ``(alpha, sigma)``: it takes a Gaussian
    process, or the coupled path of an Interpolant, whose ODE is the same in these variables."""
    if not isinstance(process, Gaussian | Interpolant):
        raise Refusal(
            f"{type(sampler).__name__} needs a process with an (alpha, sigma) schedule, not {type(process).__name__}; "
            f"{advice(process)}"
        )


def require_noise(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where a sampler that draws noise is given a process without any: a coupled path or a
    geodesic, which is no Markov chain, or a product of such parts alone."""
    if not has_noise(process):
        raise Refusal(
            f"{type(sampler).__name__} draws noise from a Markov chain, and {type(process).__name__} is none: there "
            f"is nothing to draw; {advice(process)}"
        )


def require_numbers(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where a sampler that takes the point of a law is given tokens: the likeliest tokens are
    one and the same for all samples."""
    if has_tokens(process):
        raise Refusal(f"{type(sampler).__name__} follows points, and tokens have none between them; {advice(process)}")


def require_bridge(process: Any, sampler: object) -> None:
    """Raises :class:`Refusal` where the bridge that a sampler walks has no closed form (random walks of rotations)."""
    for single in singles(process):
        if not has_bridge(single):
            raise Refusal(
                f"{type(sampler).__name__} walks a bridge, and that of {type(single).__name__} on "
                f"{type(single.space).__name__} has no closed form; {advice(process)}"
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

    A belief with variance widens the step by exactly that variance, so the exact belief is sampled exactly.  Parts of a
    product that are no Markov chain (geodesics, coupled paths) have no noise to draw and move as under :class:`DDIM`:
    one update samples coordinates on a manifold and their types.  ``last``:
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
        """Fits every process whose bridge is known and of which some part is Markov; remembers nothing."""
        require_noise(process, self)
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
        """Fits every process of numbers at ``eta = 0``, and above it where some part is Markov; remembers nothing."""
        require_numbers(process, self)
        require_bridge(process, self)
        if self.eta > 0:
            require_noise(process, self)
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

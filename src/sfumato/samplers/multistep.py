"""Adams-Bashforth solvers of ``d(x/alpha) = eps d(sigma/alpha)``: DEIS, LMS and PNDM.

The contract: a polynomial through the last noises, integrated over the step.  DEIS integrates it exactly, in time or in
``log(sigma/alpha)``; LMS in ``sigma/alpha``; PNDM takes the weights of even steps and its own transfer map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.samplers.ancestral import require_path
from sfumato.samplers.history import NOISE, NOISE_IN_RATIO, NOISE_IN_TIME, Axis, advance, require_choice
from sfumato.samplers.ode import exact_step, level
from sfumato.samplers.polynomials import combine

_AXES: dict[str, Axis] = {"t": NOISE_IN_TIME, "rho": NOISE_IN_RATIO, "log-rho": NOISE}


@final
@dataclass(frozen=True)
class DEIS:
    """DEIS, the multistep kind (Zhang and Chen 2023, eq. 15): p = 1 to 4 values, at one evaluation a step.

    ``axis``: the variable of the polynomial: ``"t"`` (tAB-DEIS), ``"rho"`` (rhoAB-DEIS; rho = sigma / alpha) or
    ``"log-rho"``.  ``warmup="classic"`` begins with the lower orders that a short history allows, which caps the order
    at 2; ``"corrected"`` also corrects those first steps by the beliefs at their ends, at no evaluation.  Raises
    :class:`Refusal` for an unknown setting.
    """

    p: int = 3
    axis: str = "t"
    warmup: str = "corrected"
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "p", (1, 2, 3, 4))
        require_choice(self, "axis", tuple(_AXES))
        require_choice(self, "warmup", ("classic", "corrected"))

    @property
    def order(self) -> int | None:
        """``p``, but at most 3 after a corrected and 2 after a classic warm-up."""
        return min(self.p, 3 if self.warmup == "corrected" else 2)

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one; the history is empty."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, extrapolated with those before it."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        corrected = self.p - 1 if self.warmup == "corrected" else 0
        return advance(_AXES[self.axis], self.p, process, x, q.point(), t, s, carry, corrected=corrected)


@final
@dataclass(frozen=True)
class LMS:
    """Linear multistep in ``sigma / alpha`` with exact coefficients, p = 1 to 4 values (k-diffusion's ``sample_lms``).

    In this variable ``sigma = 0`` is an ordinary point, so the last step is extrapolated like any other.  The first
    steps have the order that their history allows; they cap the order at 2, which shows late (2.5 is measured at 160 to
    320 steps).  Raises :class:`Refusal` for an unknown setting.
    """

    p: int = 4
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "p", (1, 2, 3, 4))

    @property
    def order(self) -> int | None:
        """``p``, but at most 2."""
        return min(self.p, 2)

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one; the history is empty."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, extrapolated with those before it."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        return advance(NOISE_IN_RATIO, self.p, process, x, q.point(), t, s, carry)


#: Adams-Bashforth weights of even steps, the latest value first (Liu et al. 2022, eq. 12).
_EVEN_STEPS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@final
@dataclass(frozen=True)
class PNDM:
    """Pseudo-numerical methods on manifolds (Liu et al. 2022, algorithm 2): even-step weights, a transfer map of noise.

    ``transfer`` is the paper's phi (eq. 11): DDIM's step for a given noise.  Four noises are combined with the weights
    of Adams and Bashforth for even steps (PLMS), whatever the grid.  ``warmup="heun"`` takes the first interval twice,
    the second time with the mean of the noises at both ends (n + 1 evaluations, "skip_prk" in diffusers);
    ``"runge-kutta"`` takes the first three by the classical method of order 4, its middle half-way in time (n + 9).  A
    step from ``alpha = 0`` is DDIM's and leaves no history.  Raises :class:`Refusal` for an unknown setting.
    """

    warmup: str = "heun"
    order: ClassVar[int | None] = 2
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "warmup", ("heun", "runge-kutta"))

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process without a schedule; the history is empty."""
        require_path(process, self)
        return ()

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation; 2 or 4 in the first intervals."""
        here, there = level(process, t), level(process, s)
        x0 = model(x, t).point()
        if here.ends:
            return exact_step(process, x, x0, t, s), ()
        noise = (x - here.alpha * x0) / here.sigma
        noises = (noise, *carry)[:4]

        def at_end(mean: Tensor, m: float) -> Tensor:
            end = level(process, m)
            y = transfer(process, x, mean, t, m)
            found: Tensor = (y - end.alpha * model(y, m).point()) / end.sigma
            return found

        if self.warmup == "heun" and not carry and not there.ends:
            mean = (noise + at_end(noise, s)) / 2
        elif self.warmup == "runge-kutta" and len(carry) < 3 and not there.ends:
            middle = (t + s) / 2
            second = at_end(noise, middle)
            third = at_end(second, middle)
            mean = (noise + 2 * second + 2 * third + at_end(third, s)) / 6
        else:
            mean = combine(_EVEN_STEPS[len(noises) - 1][::-1], noises[::-1])
        return transfer(process, x, mean, t, s), noises


def transfer(process: Any, x: Tensor, noise: Tensor, t: float, s: float) -> Tensor:
    """``phi(x, noise, t, s)``: the state at ``s`` if the noise in ``x`` is this (Liu et al. 2022, eq. 11); alpha(t) >
    0."""
    here = level(process, t)
    return exact_step(process, x, (x - here.sigma * noise) / here.alpha, t, s)

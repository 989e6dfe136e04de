"""Adams-Bashforth-Moulton on the straight path: a predictor-corrector of the flow velocity, one evaluation a step.

The contract: every Gaussian path ``x = alpha x0 + sigma eps`` is, but for its scale and its clock, one path (Karras et
al. 2022, section 4).  Rescaled to the straight one, ``z = x / (alpha + sigma)`` with the clock
``tau = sigma / (alpha + sigma)``, it has the velocity ``dz/dtau = eps - x0`` of rectified flow (Liu et al. 2022, eq.
1), which is finite and smooth from pure noise to clean data, both ends included.

There the ordinary methods of Adams apply (Hairer, Norsett and Wanner 1993, section III.1): the predictor integrates the
polynomial through the last velocities, and the velocity found at the end of a step also corrects that step, at no
evaluation, before the next one begins (as in UniPC: Zhao et al. 2023).  No end is special: the step to ``sigma = 0`` is
extrapolated like any other, and ``alpha = 0`` leaves a history.

On few steps the last ones are the longest beside what happens in them, and a line through two velocities overshoots
there.  ``last`` of them are predicted from one velocity (and still corrected by all), as the published code of
DPM-Solver++ and UniPC lowers its order at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.samplers.ancestral import require_path
from sfumato.samplers.history import require_choice
from sfumato.samplers.ode import exact_step
from sfumato.samplers.polynomials import combine, mean_weights
from sfumato.schedules import at


class Moved(NamedTuple):
    """The carry: the last velocities and their clocks, oldest first, the state the last step went out from, and the
    time from which on steps are predicted from one velocity.
    """

    velocities: tuple[Tensor, ...] = ()
    clocks: tuple[float, ...] = ()
    z: Tensor | None = None
    ending: float = math.nan


@final
@dataclass(frozen=True)
class Adams:
    """The method of Adams with ``predictor`` (1 to 4) and ``corrector`` (0 for none, 2 to 4) velocities.

    The corrector's include the one found at the end of the step, so it may use one more than the predictor.  The first
    steps use as many as there are, the ``last`` (0 to 3) ones predict with one.  ``predictor=1, corrector=0`` is DDIM.
    States of a trajectory are predictions; the steps go on from corrected ones.  Raises :class:`Refusal` for an unknown
    setting.
    """

    predictor: int = 2
    corrector: int = 3
    last: int = 0
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "predictor", (1, 2, 3, 4))
        require_choice(self, "corrector", (0, 2, 3, 4))
        require_choice(self, "last", (0, 1, 2, 3))
        if self.corrector > self.predictor + 1:
            raise Refusal(
                f"Adams: corrector={self.corrector} needs more velocities than predictor={self.predictor} remembers; "
                f"use at most {self.predictor + 1}"
            )

    @property
    def order(self) -> int | None:
        """The corrector's where there is one, at most 3, else the predictor's, at most 2: the first step, of first
        order, holds more velocities back (with one they pay on few steps, where orders are not reached).  A last step
        of first order leaves 2.
        """
        order = min(self.corrector, 3) if self.corrector else min(self.predictor, 2)
        return min(order, 2) if self.last else order

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma); the history is empty."""
        require_path(process, self)
        return Moved(ending=grid[-1 - min(self.last, len(grid) - 1)] if self.last else math.nan)

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation: it corrects the step before and predicts the next."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at(process.schedule, t), at(process.schedule, s)
        tau, end = sigma_t / (alpha_t + sigma_t), sigma_s / (alpha_s + sigma_s)
        past: Moved = Moved() if carry is None else carry
        if tau == 0:  # upwards from the data, where the noise has no value yet
            return exact_step(process, x, q.point(), t, s), past
        z = x / (alpha_t + sigma_t)
        velocity = (z - q.point()) / tau
        velocities, clocks = (*past.velocities, velocity), (*past.clocks, tau)
        if self.corrector and past.z is not None:
            z = _moved(past.z, velocities[-self.corrector :], clocks[-self.corrector :], clocks[-2], tau)
        velocities, clocks = velocities[-self.predictor :], clocks[-self.predictor :]
        ending = s < t <= past.ending or past.ending <= t < s  # false where it is no number
        used = 1 if ending else self.predictor
        predicted = _moved(z, velocities[-used:], clocks[-used:], tau, end) * (alpha_s + sigma_s)
        return predicted, Moved(velocities, clocks, z, past.ending)


def _moved(z: Tensor, velocities: tuple[Tensor, ...], clocks: tuple[float, ...], start: float, end: float) -> Tensor:
    """``z`` plus the integral, over the step, of the polynomial through these velocities."""
    places = [(clock - start) / (end - start) for clock in clocks]
    weights = mean_weights(places, [1 / (k + 1) for k in range(len(places))])
    return z + (end - start) * combine(weights, velocities)

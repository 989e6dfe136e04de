"""UniPC: the unified predictor-corrector (Zhao et al. 2023), one evaluation a step.

The contract: the predictor UniP-p is the exponential multistep solver of order p in the clean data; the corrector
UniC-p takes the last step again with the belief found at its end, which raises the order by one and costs nothing,
since that belief is the next step's own.

Steps at the start of a history are of the order that it allows: the first is a line at most, whose error of order
``h^3`` is never made good.  So, however many values it remembers, the solver is of order 3 in the end, of 2 without the
corrector, and looks of order ``p + 1`` as long as that first error, where the noise is all there is, is too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.samplers.ancestral import require_path
from sfumato.samplers.history import DATA, Rule, advance, midpoint, polynomial, require_choice
from sfumato.samplers.polynomials import combine, mean_weights


def _bh1(values: list[Tensor], places: list[float], moments: list[float], h: float) -> Tensor:
    """``B(h) = h``: a line through two values is read at ``h / (2 (1 - e^-h))`` of the step."""
    if len(values) != 2:
        return polynomial(values, places, moments, h)
    return combine(mean_weights(places, [1.0, -h / math.expm1(-h) / 2]), values)


#: The paper's free function B(h) matters only where a line is read (section 3.4); bh2, ``e^h - 1``, reads half-way.
_VARIANTS: dict[str, Rule] = {"bh1": _bh1, "bh2": midpoint}


@final
@dataclass(frozen=True)
class UniPC:
    """UniPC of predictor order 1 to 4 (Zhao et al. 2023, algorithms 1 and 2, data prediction).

    ``variant``: ``"bh1"`` or ``"bh2"``, which differ for two values only.  ``corrector="on"`` corrects every state with
    the next belief, and the interior steps are then of order ``p + 1``; ``"off"`` leaves the predictor, of order p: at
    p = 2 with bh2 it is DPM-Solver++(2M).  ``order`` is what the start of the history leaves of that.  States of a
    trajectory are predictions; the steps go on from corrected ones.
    Steps from ``alpha = 0`` and to ``sigma = 0`` are first-order.  Raises :class:`Refusal` for an unknown setting.
    """

    p: int = 3
    variant: str = "bh2"
    corrector: str = "on"
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "p", (1, 2, 3, 4))
        require_choice(self, "variant", tuple(_VARIANTS))
        require_choice(self, "corrector", ("on", "off"))

    @property
    def order(self) -> int | None:
        """``p + 1``, but at most 3, with the corrector; else ``p``, but at most 2."""
        return min(self.p + 1, 3) if self.corrector == "on" else min(self.p, 2)

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without (alpha, sigma); the history is empty."""
        require_path(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation: it corrects the step before and predicts the next."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        corrected = self.p + 1 if self.corrector == "on" else 0
        rule = _VARIANTS[self.variant]
        return advance(DATA, self.p, process, x, q.point(), t, s, carry, rule=rule, corrected=corrected)

"""The rule behind ``sampler="auto"``: from evaluations, schedule and guidance to a solver and its grid.

The contract: :func:`choose` is a pure function; what it returns is ordinary (names and settings of a registered sampler
and grid) and is recorded as such.  With ``n`` evaluations and ``g = max(1, guidance)`` it is always
:class:`~sfumato.samplers.adams.Adams` on the grid ``shifted`` (shift 1.6, rho 1.5), with the first line that holds:

===================  ===================================
where                velocities: predictor, corrector
===================  ===================================
``n >= 8 + 3 g``     4, 4
``n >= 8 + 1.6 g``   3, 4
``n >= 4 + g``       2, 3
``n >= g``           1, 2
otherwise            1, none (DDIM)
===================  ===================================

Why: on the straight path the error of few evaluations is that of a polynomial, so the order rises with n.  Guidance of
weight g makes the field stiffer, which high orders amplify: so a guided field waits for more evaluations.  The schedule
enters through the grid alone: its levels are shares of the straight path's clock between the schedule's own prior and
the data, on which all schedules are one problem.  Data are taken to have about unit scale, as the transforms of
:mod:`sfumato.data` make them.  The rule was fixed on mixtures of its own before it was scored on any other
(``docs/solver-accuracy.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from sfumato.core import Sampler
from sfumato.errors import Refusal
from sfumato.schedules import Schedule

#: What stands for the rule on the command line and in settings.
NAME = "auto"
#: The least evaluations ``a + b g`` for which velocities (predictor, corrector) pay, best first.
STAIRS: tuple[tuple[float, float, tuple[int, int]], ...] = (
    (8.0, 3.0, (4, 4)),
    (8.0, 1.6, (3, 4)),
    (4.0, 1.0, (2, 3)),
    (0.0, 1.0, (1, 2)),
    (0.0, 0.0, (1, 0)),
)


@final
@dataclass(frozen=True)
class Choice:
    """A sampler and a grid, each by name and settings, and the number of steps on this schedule."""

    sampler: str
    settings: Mapping[str, Any]
    grid: str
    grid_settings: Mapping[str, Any]
    steps: int
    schedule: Schedule

    def build(self) -> Sampler:
        """The sampler."""
        from sfumato.samplers import get

        return get(self.sampler, **self.settings)

    def times(self) -> Float64[Tensor, " n_plus_1"]:
        """The grid."""
        from sfumato import grids

        times: Tensor = grids.get(self.grid)(self.schedule, self.steps, **self.grid_settings)
        return times


def choose(schedule: Schedule, evaluations: int, guidance: float = 1.0) -> Choice:
    """What ``auto`` means for this many calls of a model guided with this weight (1 is plain conditional).

    Raises :class:`Refusal` for less than one evaluation and for a guidance that is not finite.
    """
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise Refusal(f"evaluations={evaluations}: ask for a whole number of at least 1")
    if not math.isfinite(guidance):
        raise Refusal(f"guidance={guidance}: needs a finite weight (1 is plain conditional)")
    g = max(1.0, guidance)
    predictor, corrector = next(counts for a, b, counts in STAIRS if evaluations >= a + b * g)
    settings = {"predictor": predictor, "corrector": corrector}
    return Choice("adams", settings, "shifted", {"shift": 1.6, "rho": 1.5}, evaluations, schedule)

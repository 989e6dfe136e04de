"""The reverse of a Brownian process on a manifold: geodesic random walks.

The contract: with ``v = sigma_t^2 - sigma_s^2`` and a standard normal tangent vector ``z``, a step from ``t`` to ``s``
goes to ``exp(x, (1 + eta^2) / 2 v score + eta sqrt(v) z)``: the reverse SDE at ``eta = 1``, the probability-flow ODE at
``eta = 0`` (De Bortoli et al. 2022, algorithm 2; Corso et al. 2022, appendix B).  The step to ``s = 0`` returns the
belief's point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.processes.brownian import Brownian
from sfumato.samplers.ancestral import advice, require_rng
from sfumato.schedules import at


@final
@dataclass(frozen=True)
class GeodesicWalk:
    """Walks the reverse SDE (``eta = 1``) or its ODE (``eta = 0``) of a Brownian process along geodesics.

    Of weak order 1, of order 1 as a solver of the ODE.  Raises :class:`Refusal` unless ``eta`` is in [0, 1].
    """

    eta: float = 1.0
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise Refusal(f"eta={self.eta}: the share of fresh noise lies in [0, 1]; 0 is the ODE, 1 the SDE")

    @property
    def order(self) -> int | None:
        """1 where deterministic."""
        return None if self.eta else 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Brownian one."""
        if not isinstance(process, Brownian):
            raise Refusal(f"GeodesicWalk needs a Brownian process, not {type(process).__name__}; {advice(process)}")
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation; a draw only where ``eta > 0``."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        source = require_rng(rng, self) if self.eta else None
        if s == 0:
            return q.point(), None
        between = at(process.schedule, t)[1] ** 2 - at(process.schedule, s)[1] ** 2
        move = (1 + self.eta**2) / 2 * between * process.score(q, x, t)
        if source is not None:
            move = move + self.eta * between**0.5 * process.space.noise(x, source)
        return process.space.exp(x, move), None

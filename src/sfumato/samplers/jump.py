"""Samplers that step the rates of a jump process: tau-leaping and the Euler step of discrete flow matching.

The contract: the rates ``R(x_t -> y)`` that a belief implies are held over the step, every site by itself.  Both steps
are laws over tokens, so that they can be enumerated; both end, at ``s = 0``, with a draw of the belief; both converge
to the data's law as the steps shrink, with errors of order 1 in the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.laws import Categorical
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import beside
from sfumato.samplers.ancestral import advice, require_rng
from sfumato.samplers.history import require_choice

Tokens = Int[Tensor, "b ..."]
Rates = Float[Tensor, "b ... k"]

#: Jumps a site may be expected to make in one step before their Poisson law underflows.
MOST_JUMPS = 700.0


def require_jump(process: Any, sampler: object) -> Jump:
    """The process, if it is a jump process; raises :class:`Refusal` otherwise."""
    if not isinstance(process, Jump):
        raise Refusal(
            f"{type(sampler).__name__} steps the rates of a Jump process, not of {type(process).__name__}; "
            f"{advice(process)}"
        )
    return process


def _law(p: Rates, x: Tokens, process: Jump) -> Categorical:
    """The law that leaves ``x`` with the probabilities ``p`` (0 at ``x``) and stays else."""
    stay = (1 - p.sum(-1, keepdim=True)).clamp(min=0)
    return Categorical(p.scatter(-1, x[..., None], stay).log().log_softmax(-1), process.space)


@final
@dataclass(frozen=True)
class TauLeaping:
    """Tau-leaping (Campbell et al. 2022, section 4.2): Poisson numbers of jumps at the rates held from ``t``.

    Between ``t`` and ``s`` a site makes ``Poisson((t - s) R(x_t -> y))`` jumps to every ``y``.  ``several`` says what
    becomes of more than one: for categorical tokens no sum of jumps means anything, so all are rejected and the site
    stays (``reject``, as published); for ordered tokens, such as grey levels, they add up, ``x + sum of (y - x)``,
    held between the first and the last (``sum``).  ``corrections`` steps of ``size`` follow at ``s``, one evaluation
    each: of the kernel forwards and its reversal together, which leave the marginal at ``s`` as it is (section 4.4).
    The step to ``s = 0``, where rates are infinite, is a draw of the belief.

    Raises :class:`Refusal` for values out of range; in ``start`` for a process that is no Jump and, for ``sum``, where
    the rates are infinite at the first time; in a step for more jumps than a Poisson law can hold.
    """

    several: str = "reject"
    corrections: int = 0
    size: float = 0.1
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"

    def __post_init__(self) -> None:
        require_choice(self, "several", ("reject", "sum"))
        if self.corrections < 0 or not 0 < self.size < math.inf:
            raise Refusal(f"corrections={self.corrections}, size={self.size}: needs 0 or more, of a positive size")

    @property
    def evaluations(self) -> int:
        """One, and one for every correction."""
        return 1 + self.corrections

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses processes but Jump, and infinite rates where jumps add up."""
        if require_jump(process, self).signal(grid[0]) == 0 and self.several == "sum":
            raise Refusal(
                f"tau-leaping with several=sum: the rates are infinite at t={grid[0]:g}, where alpha=0; use a schedule "
                "with alpha(1) > 0 or a grid that begins below"
            )
        return None

    def law(self, q: Law[Any], process: Jump, x: Tokens, t: float, s: float) -> Categorical:
        """The law of ``x_s`` given ``x_t`` with ``several=reject``: ``P(y) = m_y exp(-sum of m)`` for means ``m``."""
        means = (t - s) * process.reverse_rates(q, x, t)
        return _law(means * (-means.sum(-1, keepdim=True)).exp(), x, process)

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One leap and its corrections."""
        jump, source = require_jump(process, self), require_rng(rng, self)
        if s == 0:
            return jump.bridge(x, model(x, t), t, s).draw(source), None
        x = self._leap((t - s) * jump.reverse_rates(model(x, t), x, t), x, jump, source)
        for _ in range(self.corrections):
            x = self._leap(self.size * stationary_rates(model(x, s), jump, x, s), x, jump, source)
        return x, None

    def _leap(self, means: Rates, x: Tokens, process: Jump, rng: RNG) -> Tokens:
        if self.several == "reject":
            return _law(means * (-means.sum(-1, keepdim=True)).exp(), x, process).draw(rng)
        jumps = poisson(means, rng.uniform(tuple(means.shape)).to(means))
        distance = torch.arange(means.shape[-1], device=x.device) - x[..., None]
        found: Tensor = process.space.project((x + (jumps * distance).sum(-1)).clamp(0, means.shape[-1] - 1))
        return found


def poisson(means: Float[Tensor, "*n"], u: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Poisson numbers by the inverse cdf of uniform ones; raises :class:`Refusal` for means beyond 700."""
    most = float(means.max())
    if not most <= MOST_JUMPS:
        raise Refusal(f"tau-leaping expects {most:.0f} jumps of one site in one step; use more steps")
    count = torch.zeros_like(means, dtype=torch.int64)
    p = (-means).exp()
    cdf = p.clone()
    for k in range(1, int(most + 12 * math.sqrt(most)) + 20):
        later = u >= cdf
        if not bool(later.any()):
            break
        count = count + later
        p = p * means / k
        cdf = cdf + p
    return count


def stationary_rates(q: Law[Any], process: Jump, x: Tokens, t: float) -> Rates:
    """The kernel's jumps forwards and their reversal under the belief, ``[b, ..., K]``: together they leave ``p_t`` as
    it is (Campbell et al. 2022, proposition 4)."""
    return process.kernel.outflow(x) + process.kernel.inflow(x) * process.ratio(q, x, t)


@final
@dataclass(frozen=True)
class DiscreteEuler:
    """The Euler step of discrete flow matching (Campbell et al. 2024, section 3; Gat et al. 2024, eq. 24).

    Its rates lead straight to ``x0``: a site that jumps between ``t`` and ``s`` (with chance ``(alpha_s - alpha_t) / (1
    - alpha_t)`` where the kernel redraws) is drawn from the belief.  ``noise`` adds stochasticity: jumps of the kernel
    forwards at that rate per unit of time (remasking, for an absorbing kernel) and their reversal, which together leave
    the law of every time as it is; 0 is none, 5 to 15 are usual.  Where both act the first jump counts.  The step to
    ``s = 0`` adds none.

    Without ``noise`` this is ``ddpm`` for an absorbing kernel, the same law.  Raises :class:`Refusal` for negative
    ``noise`` and, in ``start``, for a process that is no Jump.
    """

    noise: float = 0.0
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise Refusal(f"noise={self.noise}: the rate of added jumps is 0 or more, per unit of time")

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses processes but Jump."""
        require_jump(process, self)
        return None

    def law(self, q: Law[Any], process: Jump, x: Tokens, t: float, s: float) -> Law[Any]:
        """The law of ``x_s`` given ``x_t`` and the belief."""
        straight = process.bridge(x, q, t, s, 0.0)
        if s == 0 or self.noise == 0 or not isinstance(straight, Categorical):
            return straight
        p = beside(straight.logp, x).exp().scatter(-1, x[..., None], 0.0)
        leave = p.sum(-1, keepdim=True).clamp(max=1)
        # the rate of a first jump that leaves with this chance; none may be left to leave, or to stay
        pace = torch.where(leave > 0, -torch.log1p(-leave) / torch.where(leave > 0, leave, 1.0), 0.0)
        means = p * pace + (t - s) * self.noise * stationary_rates(q, process, x, t)
        total = means.sum(-1, keepdim=True)
        first = -torch.expm1(-total) * means / torch.where(total > 0, total, 1.0)
        return _law(torch.where(leave < 1, first, p), x, process)

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One evaluation, one draw."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """The update for a belief already formed."""
        return self.law(q, require_jump(process, self), x, t, s).draw(require_rng(rng, self)), None

"""A sampler of numbers that takes tokens along: any solver of a Gaussian process samples the rows of a table.

The contract: in a step from ``t`` to ``s`` the first belief that the numbers' sampler asks for also moves the tokens to
``s``, by their own bridge; whatever it asks after that (a second evaluation at ``s``, say) sees them there.  So a step
takes as many evaluations as the sampler of the numbers alone, and one network call states both parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process, Time
from sfumato.errors import Refusal
from sfumato.processes.mixed import NUMBERS, TOKENS, Mixed, join


@final
@dataclass
class _Believed:
    """The numbers' own belief, for the numbers' sampler; the first one asked for moves the tokens."""

    model: Any
    process: Mixed
    tokens: Tensor
    t: float
    s: float
    rng: RNG
    moved: bool = False

    def __call__(self, numbers: Tensor, t: Time, cond: Any = None) -> Law[Tensor]:
        beliefs = self.process.beliefs(self.model(join({NUMBERS: numbers, TOKENS: self.tokens}), t)).parts
        if not self.moved and self.tokens.shape[1]:
            bridge = self.process.jump.bridge(self.tokens, beliefs[TOKENS], self.t, self.s)
            self.tokens, self.moved = bridge.draw(self.rng), True
        found: Law[Tensor] = beliefs[NUMBERS]
        return found


@final
@dataclass(frozen=True)
class Beside:
    """``inner`` moves the numbers of a :class:`~sfumato.processes.mixed.Mixed` state, the tokens go with it."""

    inner: Any
    takes: ClassVar[str] = "belief"

    @property
    def order(self) -> int | None:
        """That of the numbers' sampler."""
        order: int | None = self.inner.order
        return order

    @property
    def evaluations(self) -> int:
        """Those of the numbers' sampler."""
        evaluations: int = self.inner.evaluations
        return evaluations

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process of another kind, and what the numbers' sampler refuses."""
        if not isinstance(process, Mixed):
            raise Refusal(f"a {type(process).__name__} has no tokens beside its numbers; use the sampler alone")
        return self.inner.start(model, process.gaussian, grid)

    def step(
        self, model: Any, process: Any, x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """The numbers' own step; raises :class:`Refusal` without a source of randomness, which tokens need."""
        if rng is None:
            raise Refusal("tokens are drawn as they appear, but rng is None; pass a Stream or an int seed")
        parts = process.split(x)
        believed = _Believed(model, process, parts[TOKENS], t, s, rng)
        numbers, carry = self.inner.step(believed, process.gaussian, parts[NUMBERS], t, s, carry, rng)
        return join({NUMBERS: numbers, TOKENS: believed.tokens}), carry

"""Numbers and tokens side by side in one tensor: a product of a Gaussian and a jump process.

The contract: a state is float ``[b, n + m]``, ``n`` numbers and then ``m`` tokens as whole numbers; :meth:`Mixed.split`
and :meth:`Mixed.join` are inverses; every law is the :class:`~sfumato.processes.product.Product`'s joint law, drawn
into one tensor.  The schedule that grids read is that of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import RNG, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Joint
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import absorbing
from sfumato.processes.product import Product, moved

#: The parts of a state.
NUMBERS, TOKENS = "numbers", "tokens"


@final
@dataclass(frozen=True)
class Together:
    """A joint law of numbers and tokens whose draws are one tensor."""

    joint: Joint
    leaves: ClassVar[tuple[str, ...]] = ("joint",)

    def draw(self, rng: RNG) -> Tensor:
        """A draw of both parts."""
        return join(self.joint.draw(rng))

    def point(self) -> Tensor:
        """The point of both parts."""
        return join(self.joint.point())

    def nll(self, x: Tensor) -> dict[str, Tensor]:
        """Per part, in nats ``[b]``."""
        found: dict[str, Tensor] = self.joint.nll(split(x, self._numbers))
        return found

    def kl(self, other: Law[Any]) -> dict[str, Tensor]:
        """Per part; raises :class:`Refusal` where the other law is not of this kind."""
        found: dict[str, Tensor] = self.joint.kl(other.joint if isinstance(other, Together) else other)
        return found

    def tilt(self, ref: Law[Any], w: Any) -> Together:
        """Part by part."""
        return Together(self.joint.tilt(ref.joint if isinstance(ref, Together) else ref, w))

    @property
    def _numbers(self) -> int:
        return int(self.joint.parts[NUMBERS].point().shape[-1])


def split(x: Float[Tensor, "b d"], numbers: int) -> dict[str, Tensor]:
    """The two parts of a state: float numbers and int64 tokens."""
    return {NUMBERS: x[:, :numbers], TOKENS: x[:, numbers:].round().long()}


def join(parts: Mapping[str, Tensor]) -> Float[Tensor, "b d"]:
    """One tensor of both parts, in the dtype of the numbers."""
    return torch.cat([parts[NUMBERS], parts[TOKENS].to(parts[NUMBERS])], 1)


@final
@dataclass(frozen=True)
class Mixed:
    """``gaussian`` for ``numbers`` floats, masking along ``shares`` for the rest; tokens ``0 .. values - 1``, mask
    ``values``."""

    gaussian: Any
    numbers: int
    values: int
    shares: Any

    @cached_property
    def jump(self) -> Jump:
        """The process of the tokens."""
        return Jump(absorbing(self.values + 1), self.shares)

    @cached_property
    def product(self) -> Product:
        """Both processes."""
        return Product({NUMBERS: self.gaussian, TOKENS: self.jump})

    @property
    def schedule(self) -> Any:
        """That of the numbers."""
        return self.gaussian.schedule

    def split(self, x: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """The parts of a state by name."""
        return split(x, self.numbers)

    def beliefs(self, q: Law[Any]) -> Joint:
        """A belief over states by part; raises :class:`Refusal` for one that has no parts."""
        if isinstance(q, Dirac):
            return Joint({key: Dirac(part) for key, part in self.split(q.x).items()})
        found = q.joint if isinstance(q, Together) else q
        if not isinstance(found, Joint):
            raise Refusal(f"a {type(q).__name__} belief says nothing of numbers and tokens apart; give a Joint")
        return found

    def prior(self, like: Tensor) -> Together:
        """Noise and masks."""
        return Together(self.product.prior(self.split(like)))

    def marginal(self, x0: Tensor, t: Time, end: Tensor | None = None) -> Together:
        """``q(x_t | x0)``, part by part."""
        return Together(self.product.marginal(self.split(x0), t, None if end is None else self.split(end)))

    def forward(self, x_s: Tensor, s: Time, t: Time) -> Together:
        """``q(x_t | x_s)``, part by part."""
        return Together(self.product.forward(self.split(x_s), s, t))

    def bridge(self, x_t: Tensor, q: Law[Any], t: Time, s: Time, eta: float = 1.0) -> Together:
        """The law of ``x_s``, part by part; masked tokens take no ``eta``, their law has one form only."""
        beliefs, parts = self.beliefs(q).parts, self.split(x_t)
        numbers = moved(self.gaussian, parts[NUMBERS], beliefs[NUMBERS], t, s, eta)
        return Together(Joint({NUMBERS: numbers, TOKENS: self.jump.bridge(parts[TOKENS], beliefs[TOKENS], t, s)}))

    def loss(self, q: Law[Any], x0: Tensor, x_t: Tensor, t: Time) -> dict[str, Any]:
        """Per part."""
        return self.product.loss(self.beliefs(q), self.split(x0), self.split(x_t), t)

    def rate(self, q: Law[Any], x0: Tensor, x_t: Tensor, t: Time) -> dict[str, Any]:
        """Per part."""
        return self.product.rate(self.beliefs(q), self.split(x0), self.split(x_t), t)

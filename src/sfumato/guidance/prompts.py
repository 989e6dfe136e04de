"""Prompts and infilling: some tokens are given, the others are sampled.

The contract: with ``Prompted(sampler, given)`` every state after a step shows the given tokens at their places, the
belief there is certain, and the denoiser sees them at every step.  For an absorbing process with the exact belief the
rest follows the conditional law ``p(x | given)`` as exactly as the sampler follows ``p(x)``: what a masked site may be
depends on what is shown alone.  For kernels that replace tokens (uniform, marginal) the denoiser takes the given tokens
for noisy ones, as it was trained: they come back unchanged, but the law of the rest is approximate (Lou et al. 2024 pin
them in the same way).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Cond, Denoiser, Law, Process, Sampler, Time
from sfumato.errors import Refusal
from sfumato.guidance.tempered import require_categorical
from sfumato.processes.jump import Jump


def _beyond(size: int) -> str:
    return f"a given token lies beyond the vocabulary 0..{size - 1}; encode the prompt with the model's own"


@final
@dataclass(frozen=True, eq=False)
class Given:
    """Tokens that are known: ``tokens`` (integers) where ``known`` (bool, of the same shape) is true.

    The shape is that of one sample, for all samples alike, or has a leading sample axis.  Raises :class:`Refusal` for
    other types, for shapes that differ and for negative tokens.
    """

    tokens: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        if self.tokens.is_floating_point() or self.known.dtype != torch.bool:
            raise Refusal(
                f"given tokens of {self.tokens.dtype}, known of {self.known.dtype}: needs integers and booleans"
            )
        if self.tokens.shape != self.known.shape:
            raise Refusal(
                f"given tokens of shape {tuple(self.tokens.shape)} but known of {tuple(self.known.shape)}; make them "
                "alike"
            )
        if bool((self.tokens < 0)[self.known].any()):
            raise Refusal(f"a given token is {int(self.tokens[self.known].min())}; tokens are 0 or more")

    def _fit(self, shape: torch.Size) -> None:
        if self.tokens.shape not in (shape, shape[1:]):
            raise Refusal(
                f"given tokens of shape {tuple(self.tokens.shape)} for samples of {tuple(shape[1:])}; give one entry a "
                "place (inside guidance: for all samples alike)"
            )

    def state(self, x: Tensor) -> Tensor:
        """``x`` ``[b, ...]`` with the given tokens in their places."""
        self._fit(x.shape)
        return torch.where(self.known.to(x.device), self.tokens.to(x), x)

    def belief(self, q: Law[Any]) -> Law[Any]:
        """``q`` made certain of the given tokens; raises :class:`Refusal` for a token beyond its vocabulary."""
        law = require_categorical(q, self)
        logp = law.logp
        self._fit(logp.shape[:-1])
        known, tokens = self.known.to(logp.device), self.tokens.to(logp.device)
        named = torch.where(known, tokens, 0)
        if int(named.max()) >= logp.shape[-1]:
            raise Refusal(_beyond(logp.shape[-1]))
        certain = torch.where(torch.nn.functional.one_hot(named, logp.shape[-1]) > 0, 0.0, -math.inf).to(logp)
        return replace(law, logp=torch.where(known[..., None], certain, logp))


def prompt(tokens: Sequence[int] | Tensor, length: int) -> Given:
    """The ``tokens`` a sequence of ``length`` places begins with; raises :class:`Refusal` where they are more."""
    first = torch.as_tensor(tokens).flatten()
    if len(first) > length:
        raise Refusal(f"a prompt of {len(first)} tokens for {length} places; shorten it or make longer sequences")
    whole = torch.zeros(length, dtype=torch.int64)
    whole[: len(first)] = first
    return Given(whole, torch.arange(length) < len(first))


@final
@dataclass(frozen=True)
class Infilled:
    """A denoiser that sees the given tokens in their places and is certain of them there.

    With any sampler that ends in ``t = 0`` it makes samples that hold them; :class:`Prompted` shows them in every
    state, too.
    """

    denoiser: Denoiser[Any]
    given: Given

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Any]:
        """The belief over all places."""
        return self.given.belief(self.denoiser(self.given.state(x_t), t, cond))


@final
@dataclass(frozen=True)
class _Bound:
    """As :class:`Infilled`, for a model whose condition the walk has bound."""

    model: Any
    given: Given

    def __call__(self, x_t: Tensor, *times: Time) -> Law[Any]:
        return self.given.belief(self.model(self.given.state(x_t), *times))


@final
@dataclass(frozen=True)
class Prompted:
    """``sampler`` with given tokens: shown in every state it makes, certain in every belief it asks for.

    Raises :class:`Refusal` in ``start`` for a sampler of maps and for given tokens that are the mask or beyond the
    vocabulary; in a step for tokens that do not fit the states.
    """

    sampler: Sampler
    given: Given
    takes: ClassVar[str] = "belief"

    @property
    def order(self) -> int | None:
        """The sampler's own."""
        return self.sampler.order

    @property
    def evaluations(self) -> int:
        """The sampler's own."""
        return self.sampler.evaluations

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """The sampler's own start."""
        if self.sampler.takes != "belief":
            raise Refusal(f"a prompt needs a sampler of beliefs; {type(self.sampler).__name__} samples maps")
        named = self.given.tokens[self.given.known]
        if isinstance(process, Jump) and len(named):
            size, mask = process.kernel.size, process.kernel.mask
            if int(named.max()) >= size:
                raise Refusal(_beyond(size))
            if mask is not None and bool((named == mask).any()):
                raise Refusal(f"the mask, token {mask}, is among the given ones; leave its places unknown")
        return self.sampler.start(_Bound(model, self.given), process, grid)

    def step(
        self, model: Any, process: Process[Any], x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One step of the sampler between two states that show the given tokens."""
        bound = _Bound(model, self.given)
        moved, carry = self.sampler.step(bound, process, self.given.state(x), t, s, carry, rng)
        return self.given.state(moved), carry

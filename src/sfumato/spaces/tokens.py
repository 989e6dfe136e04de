"""Sequences of tokens: int64 states ``[b, ...]`` with values ``0 .. size - 1``, padded to one length where they differ.

The contract: a member holds an integer below ``size`` at every real site and 0 at every padded one; its noise is a
uniform token at every site; ``sites`` is 1 where a site is real, so that no padded site enters a likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal


@final
@dataclass(frozen=True, eq=False)
class Tokens:
    """``size`` tokens (a mask token counts as one) at sites of any shape ``[b, ...]``.

    ``real``: a bool tensor that broadcasts against the states, True where a site holds data; None where all do.  Two of
    one size and padding are equal.
    Raises :class:`Refusal` for an empty vocabulary.
    """

    size: int
    real: Bool[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise Refusal(f"size={self.size}: a vocabulary needs at least one token")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens) or self.size != other.size:
            return False
        if self.real is None or other.real is None:
            return self.real is other.real
        return torch.equal(self.real, other.real)

    def __hash__(self) -> int:
        return hash(self.size)

    @property
    def padded(self) -> bool:
        """Whether some sites hold token 0 for good."""
        return self.real is not None

    def noise(self, like: Tensor, rng: RNG) -> Int[Tensor, "..."]:
        """Uniform tokens shaped and placed like ``like``: one uniform number a site."""
        return self.project((rng.uniform(tuple(like.shape)) * self.size).long().to(like.device))

    def project(self, x: Tensor) -> Int[Tensor, "..."]:
        """The nearest member: rounded, held between 0 and ``size - 1``, and 0 at padded sites."""
        nearest = (x.round() if x.is_floating_point() else x).long().clamp(0, self.size - 1)
        return nearest if self.real is None else nearest * self.real.to(x.device)

    def contains(self, x: Tensor) -> bool:
        """Whether every site holds an int64 token of the vocabulary, and every padded one token 0."""
        if x.dtype != torch.int64:
            return False
        inside = bool(((x >= 0) & (x < self.size)).all())
        return inside and (self.real is None or not bool(x[~self.real.to(x.device).expand(x.shape)].any()))

    def sites(self, x: Tensor) -> Float[Tensor, "..."] | float:
        """1 at real sites, 0 at padded ones; the number 1 where there is no padding."""
        return 1.0 if self.real is None else self.real.to(x.device, torch.float32).expand(x.shape)

    def dof(self, x: Tensor) -> Float[Tensor, " b"]:
        """The number of real sites of a sample, shape ``[b]``: what nats per token are averaged over."""
        one = torch.ones(x.shape, device=x.device)
        return (one * self.sites(x)).flatten(1).sum(1)

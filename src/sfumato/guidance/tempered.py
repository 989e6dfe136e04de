"""Temperature and nucleus of a categorical belief: which token, never when.

The contract: ``tempered(temperature, top_p)`` maps a belief over tokens to a sharper one, site by site.  A site whose
token is certain stays as it is, so tokens carried over are not touched; a mask that a belief forbids stays forbidden,
so the bridge of an absorbing process unmasks at the same rate at every temperature.

It is used as ``Mapped(denoiser, tempered(0.8))`` with any sampler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Law
from sfumato.errors import Refusal
from sfumato.laws import Categorical


def require_categorical(q: Law[Any], who: object) -> Categorical:
    """The belief, if it is one over tokens; raises :class:`Refusal` otherwise."""
    if not isinstance(q, Categorical):
        raise Refusal(f"{type(who).__name__} needs a belief over tokens (Categorical), not {type(q).__name__}")
    return q


def nucleus(logp: Float[Tensor, "*sites k"], top_p: float) -> Float[Tensor, "*sites k"]:
    """The smallest set of likeliest tokens whose mass reaches ``top_p``, renormalised (Holtzman et al. 2020, sec. 3.1).

    The likeliest token always belongs to it; of equally likely tokens the lower numbers come first.
    """
    ranked, index = logp.sort(dim=-1, descending=True, stable=True)
    p = ranked.exp()
    outside = p.cumsum(-1) - p >= top_p
    outside[..., 0] = False
    dropped = torch.zeros_like(outside).scatter(-1, index, outside)
    return logp.masked_fill(dropped, -math.inf).log_softmax(-1)


@final
@dataclass(frozen=True)
class tempered:
    """The belief at ``temperature``, then cut to its nucleus of mass ``top_p``.

    ``temperature`` divides the log-probabilities: 1 leaves them, below 1 sharpens, 0 is greedy (the likeliest token of
    every site, the lower number where two tie).  Raises :class:`Refusal` for values out of range and, when called, for
    a belief that is not one over tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise Refusal(f"temperature={self.temperature}: needs 0 (greedy) or more, and finite")
        if not 0 < self.top_p <= 1:
            raise Refusal(f"top_p={self.top_p}: the mass of the nucleus lies in (0, 1]")

    def __call__(self, q: Law[Any]) -> Law[Any]:
        """The mapped belief, of the same space."""
        belief = require_categorical(q, self)
        logp = belief.logp
        if self.temperature == 0:
            best = torch.full_like(logp, -math.inf).scatter(-1, logp.argmax(-1, keepdim=True), 0.0)
            return replace(belief, logp=best)
        if self.temperature != 1:
            # the largest first: a small temperature overflows
            logp = ((logp - logp.amax(-1, keepdim=True)) / self.temperature).log_softmax(-1)
        return replace(belief, logp=logp if self.top_p == 1 else nucleus(logp, self.top_p))

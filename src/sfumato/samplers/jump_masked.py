"""Samplers for processes that mask: the order of decoding, the exact hitting times, the cached belief.

The contract: a masked site is shown once and for all, at the times the process sets: between ``t`` and ``s`` with
chance ``(alpha_s - alpha_t) / (1 - alpha_t)``.  *Which* sites and *which* tokens may follow the belief; *how many*
follows the schedule alone, whatever the temperature.  Every random number of a sample comes from its own stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.guidance.tempered import require_categorical, tempered
from sfumato.laws import Categorical
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import masks
from sfumato.randomness import Uniforms
from sfumato.samplers.ancestral import Ancestral, advice, has_tokens, require_rng
from sfumato.samplers.history import require_choice

#: The smallest uniform number whose logarithm is taken: half a step of a float32 draw.
SMALLEST = 2.0**-25


def mask_of(process: Any, sampler: object) -> int:
    """The token that an absorbing process turns all into; raises :class:`Refusal` where there is none, or it is reached
    by way of others, and for blocks, whose order is fixed."""
    name = type(sampler).__name__
    if not isinstance(process, Jump):
        raise Refusal(
            f"{name} shows the masks of a Jump process, not those of {type(process).__name__}; {advice(process)}"
            if has_tokens(process)
            else f"{name} shows masked tokens, and {type(process).__name__} has none; {advice(process)}"
        )
    mask = process.kernel.mask if masks(process.kernel) else None
    if mask is None:
        raise Refusal(
            f"{name} shows masked tokens, and this Jump process masks none at once; use 'ddpm' or 'discrete-euler'"
        )
    return mask


def masked_sites(x: Int[Tensor, "b ..."], process: Any, sampler: object) -> Bool[Tensor, "b sites"]:
    """Which real sites are masked, flattened."""
    real = torch.as_tensor(process.space.sites(x), device=x.device) > 0
    return ((x == mask_of(process, sampler)) & real).flatten(1)


# ---- which sites first -------------------------------------------------------------------------------------------


def _confidence(q: Categorical, tokens: Tensor, u: Tensor) -> Tensor:
    return q.logp.gather(-1, tokens[..., None])[..., 0]


def _entropy(q: Categorical, tokens: Tensor, u: Tensor) -> Tensor:
    p = q.logp.exp()
    return (p * torch.where(p > 0, q.logp, 0.0)).sum(-1)


def _margin(q: Categorical, tokens: Tensor, u: Tensor) -> Tensor:
    first, second = q.logp.exp().topk(2, dim=-1).values.unbind(-1)
    return first - second


def _random(q: Categorical, tokens: Tensor, u: Tensor) -> Tensor:
    return u


#: ``(belief, drawn tokens, uniform numbers) -> score`` of every site: the highest are shown first.
RANKINGS: dict[str, Callable[[Categorical, Tensor, Tensor], Tensor]] = {
    "confidence": _confidence,
    "entropy": _entropy,
    "margin": _margin,
    "random": _random,
}


def best(
    scores: Float[Tensor, "b sites"], among: Bool[Tensor, "b sites"], count: Int[Tensor, " b"]
) -> Bool[Tensor, "b sites"]:
    """The ``count`` sites of highest score among the allowed ones, per sample; the earlier of equal ones."""
    scores = scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(~among, -math.inf)
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < count[:, None]
    return torch.zeros_like(among).scatter(1, ranked, chosen) & among


@final
@dataclass(frozen=True)
class ConfidenceOrdered:
    """Decoding in the order of confidence (MaskGIT: Chang et al. 2022, section 3.2; LLaDA: Nie et al. 2025).

    ``by`` ranks the masked sites: ``confidence``, the belief in the token drawn there; ``entropy``, the least uncertain
    belief; ``margin``, the gap between its two likeliest tokens (Kim et al. 2025); ``random``.  ``count`` says how many
    are shown in a step: ``drawn``, as many as the ancestral sampler would show (binomial); ``expected``, its mean,
    rounded so that ``n (1 - alpha_s)`` of ``n`` sites stay masked, as published.  ``temperature`` and ``top_p`` change
    which token is drawn, never how many.  ``noise`` adds Gumbel noise of that scale times ``1 - alpha_s`` to the
    scores, which are log-probabilities for ``by=confidence``: MaskGIT's annealed choice.

    With the exact belief and one site a step ``entropy``, ``margin`` and ``random`` draw from the exact law: their
    order looks at what is shown alone.  ``confidence`` looks at the tokens drawn, too, so it favours likely ones: that
    is its point, and its bias.  Raises :class:`Refusal` for values out of range and, in ``start``, for a process
    without mask.
    """

    by: str = "confidence"
    count: str = "expected"
    temperature: float = 1.0
    top_p: float = 1.0
    noise: float = 0.0
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_choice(self, "by", tuple(RANKINGS))
        require_choice(self, "count", ("drawn", "expected"))
        tempered(self.temperature, self.top_p)
        if not 0 <= self.noise < math.inf:
            raise Refusal(f"noise={self.noise}: the scale of the Gumbel noise is 0 or more")

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without mask."""
        mask_of(process, self)
        return None

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One evaluation; three uniform numbers a site."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed.  The carry: how many sites there were, shown ones included."""
        belief, source = require_categorical(q, self), require_rng(rng, self)
        tokens = tempered(self.temperature, self.top_p)(belief).draw(source)
        chance, noise = (source.uniform(tuple(x.shape)).flatten(1).double() for _ in range(2))
        masked = masked_sites(x, process, self)
        left = masked.sum(1).cpu().double()
        alpha_t, alpha_s = process.signal(t), process.signal(s)
        whole = left / (1 - alpha_t) if carry is None else carry
        if self.count == "drawn":
            leaves = chance * (1 - alpha_t) < alpha_s - alpha_t
            shown = (leaves & (torch.arange(masked.shape[1]) < left[:, None])).sum(1)
        else:
            shown = (left - (whole * (1 - alpha_s)).round()).clamp(min=0).to(torch.int64)
        scores = RANKINGS[self.by](belief, tokens, noise.to(belief.logp).reshape(x.shape)).flatten(1)
        if self.noise:
            gumbel = -(-noise.clamp(min=SMALLEST).log()).log()
            scores = scores + self.noise * (1 - alpha_s) * gumbel.to(scores)
        chosen = best(scores, masked, shown.to(x.device)).reshape(x.shape)
        return process.space.project(torch.where(chosen, tokens, x)), whole


# ---- one token at a time, at its own time ------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class FirstHitting:
    """The first-hitting sampler (Zheng et al. 2024, algorithm 1): one token at a time, at the time it is shown.

    Of ``n`` masked sites the next is shown at the time where ``1 - alpha`` has fallen by the factor ``u^(1/n)``; it is
    any of them with equal chance.  On every grid, ``[1, 0]`` included, this is the process in continuous time: with the
    exact belief the law of the samples is exact.  A walk over one interval costs one evaluation a token; over more, at
    most one a token and interval.  ``at_once`` shows that many tokens on one belief: fewer evaluations, a law no longer
    exact.  The network sees the time of the hit, ``[b]``.  Raises :class:`Refusal` in ``start`` for a process without
    mask.
    """

    at_once: int = 1
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise Refusal(f"at_once={self.at_once}: at least one token is shown on a belief")

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without mask."""
        mask_of(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """All hits between ``t`` and ``s``: three uniform numbers each, and three for the one that comes too late."""
        source = require_rng(rng, self)
        end = 1 - process.signal(s)
        level = torch.full((len(x),), 1 - process.signal(t), dtype=torch.float64)
        walking = torch.ones(len(x), dtype=torch.bool)
        law: Any = None
        hits = 0
        while True:
            masked = masked_sites(x, process, self)
            left = masked.sum(1).cpu()
            walking = walking & (left > 0)
            if not bool(walking.any()):
                return x, None
            u = source.uniform((len(x), 3), 3 * walking)
            level = torch.where(walking, level * u[:, 0].double() ** (1 / left.clamp(min=1)), level)
            walking = walking & ((level > end) | (end == 0))  # at the data none comes too late, u = 0 included
            if not bool(walking.any()):
                return x, None
            if hits % self.at_once == 0:
                law = require_categorical(model(x, _time_of(process, level.clamp(min=end)).float().to(x.device)), self)
            hits += 1
            shown = _show(law, x, masked, u[:, 1:].to(x.device), walking.to(x.device))
            x = process.space.project(shown)


def _time_of(process: Any, level: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The times at which ``1 - alpha`` is ``level``, by bisection: it rises from 0 at the data."""
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(60):
        middle = (low + high) / 2
        later = 1 - process.signal(middle) < level
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    return high


def _show(
    law: Categorical, x: Tensor, masked: Bool[Tensor, "b sites"], u: Float[Tensor, "b 2"], walking: Bool[Tensor, " b"]
) -> Tensor:
    """``x`` with one of its masked sites shown in every sample that is walking: its site, its token by one number."""
    count = masked.sum(1, keepdim=True)
    rank = torch.minimum((u[:, :1] * count).floor(), count - 1)
    site = (masked.cumsum(1) > rank).to(torch.int8).argmax(1, keepdim=True)
    logp = law.logp.flatten(1, -2)
    own = logp.gather(1, site[..., None].expand(-1, 1, logp.shape[-1]))
    token = Categorical(own).draw(Uniforms(u[:, 1:]))
    shown = x.flatten(1).scatter(1, site, token)
    return torch.where(walking[:, None], shown, x.flatten(1)).reshape(x.shape)


# ---- the ancestral sampler, asked less often ---------------------------------------------------------------------

#: Beliefs whose probabilities differ by less are one.
SAME_BELIEF = 1e-6


class Seen(NamedTuple):
    """The last state a belief was formed at, that belief, and whether the network was found not to read the time."""

    x: Tensor
    q: Categorical
    timeless: bool


@final
@dataclass(frozen=True)
class CachedAncestral:
    """The ancestral sampler that keeps its belief while no token of the batch changes (Sahoo et al. 2024, sec. 4.1).

    For a network that does not read the time the samples are those of ``ddpm``, number for number, on at most as many
    evaluations.  The first time a belief could be kept it is formed anew and compared: a network (or a guidance
    interval that switches there) which reads the time is refused with :class:`Refusal`.  The fewer samples a batch
    holds and the more steps per token, the more is saved.
    """

    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses a process without mask: where every token may change at any time nothing can be kept."""
        mask_of(process, self)
        return None

    def step(
        self, model: Any, process: Process[Any], x: Any, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Any, Carry]:
        """One draw; one evaluation where a token changed since the last."""
        seen: Seen | None = carry
        if seen is None or not torch.equal(seen.x, x):
            seen = Seen(x, require_categorical(model(x, t), self), seen is not None and seen.timeless)
        elif not seen.timeless:
            again = require_categorical(model(x, t), self)
            gap = float((again.logp.exp() - seen.q.logp.exp()).abs().max())
            if not gap < SAME_BELIEF:
                raise Refusal(
                    f"ddpm-cache: at t={t:g} the same tokens give beliefs that differ by {gap:.1e}, so the network "
                    "reads the time; use 'ddpm'"
                )
            seen = Seen(x, again, True)
        moved, _ = Ancestral()(seen.q, process, x, t, s, None, rng)
        return moved, seen

"""Guidance by combining beliefs: classifier-free, autoguidance, three-way and negative prompts.

The contract: a list of terms ``(denoiser, change of condition, weight)`` whose weights sum to 1 is pooled into one
belief (:func:`sfumato.laws.pool`).  For Gaussian beliefs that is score-linear: classifier-free guidance (Ho and
Salimans 2022, eq. 6, with ``w = 1 + w'``).  Terms of the same denoiser are evaluated in one batched forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch

from sfumato.core import Cond, Denoiser, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import pool
from sfumato.trees import batch_size, concatenate, tree_map

#: From the user's condition to the one a term sees (the null condition, a negative prompt, itself).
Change = Callable[[Cond | None], Cond | None]


class Term(NamedTuple):
    """One belief in a pool: who states it, under which condition, with which weight (a number, ``[b]``, or per
    part)."""

    denoiser: Denoiser[Any]
    change: Change
    weight: Any


def always(t: Time) -> bool:
    """Guide at every time."""
    return True


@final
@dataclass(frozen=True)
class interval:
    """Guide only while ``low < t <= high`` (Kynkaanniemi et al. 2024); raises :class:`Refusal` unless ``0 <= low <
    high <= 1``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise Refusal(f"guidance interval ({self.low}, {self.high}]: needs 0 <= low < high <= 1")

    def __call__(self, t: Time) -> bool:
        """Whether to guide at ``t``; raises :class:`Refusal` for a batch of differing times."""
        if torch.is_tensor(t) and t.numel() != 1:
            raise Refusal(
                f"a guidance interval needs one time for the whole batch, not {t.numel()}; guide while sampling"
            )
        return self.low < float(t) <= self.high


@final
@dataclass(frozen=True)
class Guided:
    """A denoiser that pools ``terms``; where ``when(t)`` is false the last term alone is evaluated and believed."""

    terms: tuple[Term, ...]
    when: Callable[[Time], bool] = always

    def __call__(self, x_t: Any, t: Time, cond: Cond | None = None) -> Law[Any]:
        """The pooled belief; one forward of ``k b`` rows for ``k`` terms that share a denoiser."""
        if not self.when(t):
            last = self.terms[-1]
            return last.denoiser(x_t, t, last.change(cond))
        groups: dict[int, list[int]] = {}
        for index, term in enumerate(self.terms):
            groups.setdefault(id(term.denoiser), []).append(index)
        beliefs: list[Any] = [None] * len(self.terms)
        for indices in groups.values():
            conds = [self.terms[i].change(cond) for i in indices]
            for i, belief in zip(indices, _together(self.terms[indices[0]].denoiser, x_t, t, conds), strict=True):
                beliefs[i] = belief
        pooled: Law[Any] = pool(beliefs, [term.weight for term in self.terms])
        return pooled


def _together(denoiser: Denoiser[Any], x_t: Any, t: Time, conds: list[Cond | None]) -> list[Any]:
    """The beliefs of one denoiser under several conditions, by one batched forward."""
    count, size = len(conds), batch_size(x_t)
    if count == 1:
        return [denoiser(x_t, t, conds[0])]
    missing = [cond is None for cond in conds]
    if any(missing) and not all(missing):
        raise Refusal(
            "guidance mixes a condition with None in one forward; name the null condition, e.g. the null label"
        )
    keys = [sorted(cond) for cond in conds if cond is not None]
    if any(names != keys[0] for names in keys):
        raise Refusal(
            f"guidance terms see different conditions, {keys[0]} and {keys[-1]}; name every one in every term"
        )
    times = torch.cat([t] * count) if torch.is_tensor(t) and t.ndim else t
    joined = None if all(missing) else concatenate(conds)
    belief = denoiser(concatenate([x_t] * count), times, joined)

    def own(
        v: torch.Tensor, k: int
    ) -> torch.Tensor:  # a tensor shared by all samples (a broadcast variance) stays whole
        return v[k * size : (k + 1) * size] if v.ndim and len(v) == count * size else v

    return [tree_map(functools.partial(own, k=k), belief) for k in range(count)]


def same(cond: Cond | None) -> Cond | None:
    """The user's own condition."""
    return cond


def cfg(denoiser: Denoiser[Any], null: Change, w: Any, when: Callable[[Time], bool] = always) -> Guided:
    """Classifier-free guidance ``ref + w (cond - ref)``: ``null`` maps a condition to the one the reference sees.

    ``w`` is a number, a per-sample tensor ``[b]`` or a dict per part; ``when(t)`` limits it to some times.
    """
    return Guided((Term(denoiser, null, _complement(w)), Term(denoiser, same, w)), when)


def autoguidance(denoiser: Denoiser[Any], weak: Denoiser[Any], w: Any, when: Callable[[Time], bool] = always) -> Guided:
    """``weak + w (denoiser - weak)`` under the same condition: away from the errors of a worse model of the same data.

    Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself",
    https://arxiv.org/abs/2406.02507.  ``weak``: the same model earlier, smaller or averaged over less; it needs no
    label, nor a null one.  ``w`` and ``when`` as in :func:`cfg`; where ``when(t)`` is false ``weak`` is not evaluated.
    """
    return Guided((Term(weak, same, _complement(w)), Term(denoiser, same, w)), when)


def _complement(w: Any) -> Any:
    return {k: 1.0 - v for k, v in w.items()} if isinstance(w, dict) else 1.0 - w

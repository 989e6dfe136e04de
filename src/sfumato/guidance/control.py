"""Control by a gradient: classifier guidance, and guidance by a function of the predicted clean data.

The contract: a state ``x_t = alpha x0 + sigma eps`` of which ``log p(y | x_t)`` is known has, by Bayes' rule and
Tweedie's formula, the posterior mean

    ``E[x0 | x_t, y] = E[x0 | x_t] + (sigma^2 / alpha) grad log p(y | x_t)``,

so ``steered`` moves a belief's point by ``w`` times the second term (Dhariwal and Nichol 2021, algorithm 2, and to
first order in the step their algorithm 1; Li et al. 2022, Diffusion-LM, section 5), whatever the network predicts.

With the exact gradient and ``w = 1`` every sampler draws from ``p(x0 | y)`` as exactly as it draws from ``p(x0)``
without; other ``w`` weigh what the gradient says.  A belief's variance is kept, as published.

A steered belief is detached: no gradient flows through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.core import Cond, Denoiser, Law, Time
from sfumato.errors import Refusal
from sfumato.guidance.guided import always
from sfumato.guidance.thresholds import centre, with_point
from sfumato.processes.gaussian import Gaussian
from sfumato.schedules import Schedule, at, narrow, time_at, wide
from sfumato.spaces.euclidean import Euclidean
from sfumato.trees import against, tree_map

#: With less signal than this ``grad / alpha`` is nearly 0 / 0, and a network's errors in it grow without bound: the
#: state is read at the time that has as much.  What that misses in ``x0`` reaches ``x_s`` by the factor ``alpha`` only.
LEAST_ALPHA = 0.02


@runtime_checkable
class Control(Protocol):
    """What steers: a gradient at ``x_t``, and the belief it was formed from, where there is one."""

    def __call__(
        self, denoiser: Denoiser[Tensor], x_t: Tensor, t: Time, cond: Cond | None
    ) -> tuple[Tensor, Law[Tensor] | None]:
        """The gradient, shaped like ``x_t``, and a belief that may be used again, or None."""
        ...


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _gradient(logp: Any, x: Tensor) -> Tensor:
    """``d logp[k] / d x[k]``, shaped like ``x``."""
    if not torch.is_tensor(logp) or logp.shape != (len(x),):
        found = tuple(logp.shape) if torch.is_tensor(logp) else type(logp).__name__
        raise Refusal(f"a control gives {found} for {len(x)} states; it must be one log-probability a state, [b]")
    slope = torch.autograd.grad(logp.sum(), x, allow_unused=True)[0] if logp.requires_grad else None
    if slope is None:
        raise Refusal(
            "a control does not depend on x_t: its gradient is cut by detach, no_grad or an argmax; leave them out"
        )
    return slope


@final
@dataclass(frozen=True)
class of_state:
    """A classifier of noisy states: ``log_prob(x_t [b, ...], t, cond) -> log p(y | x_t) [b]`` in nats, for the ``y``
    that is wanted; differentiable in ``x_t``."""

    log_prob: Callable[[Tensor, Time, Cond | None], Tensor]

    def __call__(
        self, denoiser: Denoiser[Tensor], x_t: Tensor, t: Time, cond: Cond | None
    ) -> tuple[Tensor, Law[Tensor] | None]:
        """The gradient at ``x_t``; no belief is formed."""
        with torch.inference_mode(False), torch.enable_grad():
            x = _leaf(x_t)
            return _gradient(self.log_prob(x, t, cond), x), None


@final
@dataclass(frozen=True)
class of_prediction:
    """A function of the predicted clean data: ``log_prob(x0hat [b, ...], cond) -> [b]`` in nats; no classifier of noise
    is needed.

    The gradient is taken through the denoiser: one evaluation a step, forwards and backwards, and one more where alpha
    is below ``LEAST_ALPHA``.  It stands for that of ``log E[p(y | x0) | x_t]``, exactly so where ``log_prob`` is linear
    and the data Gaussian, and the better the less noise is left (Chung et al. 2023, eq. 11).
    """

    log_prob: Callable[[Tensor, Cond | None], Tensor]

    def __call__(
        self, denoiser: Denoiser[Tensor], x_t: Tensor, t: Time, cond: Cond | None
    ) -> tuple[Tensor, Law[Tensor] | None]:
        """The gradient at ``x_t`` and the belief at ``t``: one evaluation, forwards and backwards."""
        with torch.inference_mode(False), torch.enable_grad():
            x = _leaf(x_t)
            q = denoiser(x, t, cond)
            slope = _gradient(self.log_prob(q.point(), cond), x)
        return slope, tree_map(lambda v: v.detach(), q)


def _readable(schedule: Schedule, t: Time) -> Time:
    """``t`` itself, or the latest time before it with a signal of ``LEAST_ALPHA``."""
    alpha, _ = at(schedule, t)
    if float(torch.as_tensor(alpha).min()) >= LEAST_ALPHA:
        return t
    latest = float(time_at(schedule, 2 * math.log(LEAST_ALPHA / at(schedule, 1.0)[1])))
    return t.clamp(max=latest) if torch.is_tensor(t) else min(t, latest)


@final
@dataclass(frozen=True)
class steered:
    """``denoiser``, moved by ``w`` times the gradient that ``control`` gives: an :class:`of_state` or an
    :class:`of_prediction`.

    ``process``: the Gaussian process whose states they are; ``w``: a number or ``[b]``; ``when(t)``: steer only there.
    A denoiser like any other, so it fits every sampler of the process and every other wrapper.  Raises
    :class:`Refusal` for another process, and when called for a control without one log-probability a state, or whose
    gradient is cut, and for a belief that has no point to move (an oracle's exact posterior).
    """

    denoiser: Denoiser[Tensor]
    process: Any
    control: Control
    w: Any = 1.0
    when: Callable[[Time], bool] = always

    def __post_init__(self) -> None:
        if not isinstance(self.process, Gaussian) or not isinstance(self.process.space, Euclidean):
            where = type(getattr(self.process, "space", None)).__name__
            raise Refusal(
                f"steered needs a Gaussian process of free coordinates, not {type(self.process).__name__} on {where}"
            )

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The steered belief over ``x0`` given ``x_t`` ``[b, ...]`` at ``t``."""
        if not self.when(t):
            return self.denoiser(x_t, t, cond)
        moment = _readable(self.process.schedule, t)
        slope, formed = self.control(self.denoiser, x_t, moment, cond)
        q = self.denoiser(x_t, t, cond) if formed is None or moment is not t else formed
        if centre(q) is None:
            name = type(q).__name__
            raise Refusal(
                f"steered moves a point, but {name} has none to move; give a Dirac, as oracle.denoiser(process)"
            )
        alpha, sigma = at(self.process.schedule, moment, wide(x_t))
        shift = against(self.w, x_t) * narrow(sigma**2 / alpha, x_t) * slope
        return with_point(q, q.point().detach() + shift)

"""Learned variance: the range-interpolated variance of improved DDPM, its hybrid objective, and loss-aware steps.

Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2102.09672.

The contract: a network's second half of channels is ``v``, and the step from ``k / T`` to ``(k - 1) / T`` has variance
``exp(u log beta_k + (1 - u) log beta~_k)`` with ``u = (v + 1) / 2`` (eq. 15; the paper's code maps [-1, 1] to the
range).  Here that is a Normal **belief about x0**: believing the variance ``sigma_t^2`` gives a step the variance
``beta``, believing 0 gives it ``beta~``, and in between ``sigma_t^2 expm1(u L) / expm1(L)``, ``L = log(beta / beta~) =
log(sigma_t^2 / sigma_s^2)``, gives exactly the geometric mean above.  A belief holds for every later step, so sampling
on fewer steps needs no second rule.  In the first step, to the data, ``beta~`` is 0 and is clipped to that of the
second, as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sfumato.core import Cond
from sfumato.processes.bound import step_kl
from sfumato.processes.decoder import Discretised, Levels
from sfumato.randomness import as_rng
from sfumato.schedules import Schedule, at
from sfumato.training.grey import GreyLevels
from sfumato.trees import against, cast, precise

#: The least share of ``sigma_t^2`` that is believed about x0; below it the value stays and the gradient goes through.
LEAST = 1e-6


def step_of(t: Tensor, steps: int) -> Tensor:
    """``t T``, moved onto the step it is within 1e-3 of (networks are told times in float32); float64 ``[b]``."""
    position = precise(t).cpu() * steps
    return torch.where((position - position.round()).abs() < 1e-3, position.round(), position)


@final
@dataclass(frozen=True)
class LearnedRange:
    """A network whose output's second half of channels (axis 1) is ``v``, read as the ``(F, log_var)`` of a head.

    ``schedule`` has ``steps`` steps (a table, or any schedule with that many uniform ones).
    """

    net: Any
    schedule: Schedule
    steps: int

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """``F [b, c, ...]`` and ``log_var``, of the variance about x0 over ``sigma_t^2``."""
        output, v = self.net(x, t, cond).chunk(2, dim=1)
        return output, self.log_share(v, t)

    def log_share(self, v: Tensor, t: Tensor) -> Tensor:
        """``log(var0 / sigma_t^2)`` for outputs ``v [b, ...]`` at times ``t [b]``."""
        position = step_of(t, self.steps)
        s = (position - 1).clamp(min=0) / self.steps
        now, before = (at(self.schedule, time)[1] for time in (position / self.steps, s))
        (alpha_1, sigma_1), (alpha_2, sigma_2) = (
            at(self.schedule, torch.tensor(min(k, self.steps) / self.steps, dtype=torch.float64)) for k in (1, 2)
        )
        clipped = (sigma_2**2 - (alpha_2 / alpha_1 * sigma_1) ** 2) * (sigma_1 / sigma_2) ** 2
        last = s == 0
        span = torch.where(last, now**2 / clipped, (now / torch.where(last, now, before)) ** 2).log()
        u = (v + 1) / 2
        span, last = against(span, v).to(v), against(last, v).bool().to(v.device)
        share = torch.expm1(u * span) / torch.expm1(span)
        # a straight-through floor: a belief has no negative variance, and what falls below can still learn its way up
        share = share + (share.clamp(min=LEAST) - share).detach()
        return torch.where(last, (u - 1) * span, share.clamp(min=LEAST / 2).log())


@final
class LossHistory(nn.Module):
    """The last losses of every step, as buffers: stored and resumed with the weights.

    Draws step ``k`` with probability proportional to the root mean square of its last ``depth`` losses, mixed with a
    thousandth of uniform (Nichol and Dhariwal 2021, section 3.3); uniformly until every step has ``depth`` of them.
    """

    losses: Tensor
    seen: Tensor
    #: The steps that were drawn last, of training that is under way; never stored.
    drawn: Tensor | None

    def __init__(self, steps: int, depth: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        self.uniform, self.drawn = uniform, None
        self.register_buffer("losses", torch.zeros(steps, depth))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """The probability of each step, float64 ``[T]`` on the CPU."""
        steps, depth = self.losses.shape
        even = torch.full((steps,), 1 / steps, dtype=torch.float64)
        if not bool((self.seen >= depth).all()):
            return even
        size = precise(self.losses).cpu().square().mean(1).sqrt()
        return (1 - self.uniform) * size / size.sum() + self.uniform * even

    def draw(self, u: Tensor) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        """The steps ``1..T`` at quantiles ``u [b]``, and the factors ``1 / (T p)`` that keep a mean over them true."""
        p = self.probabilities()
        k = torch.searchsorted(p.cumsum(0), u.double().cpu(), right=True).clamp(max=len(p) - 1)
        self.drawn = k + 1
        return k + 1, 1 / (len(p) * p[k])

    @torch.no_grad()
    def record(self, k: Tensor, losses: Tensor) -> None:
        """Take in the losses ``[b]`` of steps ``k [b]``, the oldest of each step first out."""
        depth = self.losses.shape[1]
        for step, loss in zip((k - 1).tolist(), losses.detach().tolist(), strict=True):
            if math.isfinite(loss):
                self.losses[step, int(self.seen[step]) % depth] = loss
                self.seen[step] += 1


def vlb_term(
    denoiser: Any, raw: tuple[Tensor, Tensor], x0: Tensor, x_t: Tensor, t: Tensor, steps: int, levels: Levels | None
) -> Float[Tensor, " b"]:
    """The term of the bound that ``raw``, the network's output at ``x_t``, has at step ``t T``: in nats, ``[b]``.

    The KL of the step, and at the first one the discretised decoder (without ``levels``, the density).
    """
    process = denoiser.head.process
    belief = denoiser.head(raw, x_t, t)
    position = step_of(t, steps)
    terms: Tensor = step_kl(process, belief, x0, x_t, t, (position - 1).clamp(min=0) / steps)
    first = (position <= 1).nonzero()[:, 0].to(x0.device)
    if levels is not None and len(first):
        law = Discretised(belief.mean[first], belief.var[first], levels)
        terms = terms.index_put((first,), cast(law.nll(x0[first]), terms))
    return terms


def _state(denoiser: Any, x0: Tensor, t: Tensor, rng: Any, eps: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(x_t, eps)``."""
    process = denoiser.head.process
    noise = process.space.noise(x0, as_rng(rng)) if eps is None else eps
    alpha, sigma = at(process.schedule, t, x0)
    return alpha * x0 + sigma * noise, noise


@final
@dataclass(frozen=True)
class StepBound:
    """``L_vlb``: ``T`` times the bound's term at a drawn step, in bits/dim ``[b]``; mean and variance both learn.

    In training (``history.training``) the uniform steps that arrive are exchanged for steps drawn by the ``history`` of
    losses, whose factors keep the mean true, and their losses are recorded.
    """

    steps: int
    history: LossHistory | None = None
    grey: GreyLevels | None = None

    def exchanged(self, t: Tensor) -> Tensor:
        """The times ``[b]`` that the last training loss was measured at in the place of ``t [b]``."""
        drawn = None if self.history is None else self.history.drawn
        return t if drawn is None else drawn.double() / self.steps

    def terms(self, denoiser: Any, raw: tuple[Tensor, Tensor], x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The term at ``t``, times ``T``, in bits/dim."""
        levels = None if self.grey is None else self.grey.levels()
        nats = vlb_term(denoiser, raw, x0, x_t, t, self.steps, levels)
        return nats * (self.steps / (math.log(2) * x0[0].numel()))

    def __call__(
        self,
        denoiser: Any,
        x0: Tensor,
        t: Tensor,
        cond: Cond | None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """``L_vlb`` ``[b]``; a given ``end`` is the noise times ``sigma(1)``."""
        eps = eps if end is None else end / at(denoiser.head.process.schedule, 1.0)[1]
        factor = torch.ones(len(t), dtype=torch.float64)
        drawn = self.history is not None and self.history.training
        if self.history is not None and drawn:
            u = (step_of(t, self.steps) - 1 + as_rng(rng).uniform((len(t),)).double()) / self.steps
            k, factor = self.history.draw(u)
            t = k.double() / self.steps
        x_t, _ = _state(denoiser, x0, t, rng, eps)
        loss = self.terms(denoiser, denoiser.raw(x_t, t, cond), x0, x_t, t)
        if self.history is not None and drawn:
            self.history.record((t * self.steps).round().long(), loss)
        return factor.to(loss) * loss


@final
@dataclass(frozen=True)
class Hybrid:
    """``L_hybrid = L_simple + weight L_vlb`` (eq. 16), ``[b]``: the bound teaches the variance alone.

    The mean that the bound sees is cut off from its gradient, so the mean learns by the simple loss as in DDPM.
    """

    bound: StepBound
    weight: float = 0.001

    def __call__(
        self,
        denoiser: Any,
        x0: Tensor,
        t: Tensor,
        cond: Cond | None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """``L_hybrid`` ``[b]``; arguments as for :class:`StepBound`."""
        eps = eps if end is None else end / at(denoiser.head.process.schedule, 1.0)[1]
        x_t, noise = _state(denoiser, x0, t, rng, eps)
        output, log_var = denoiser.raw(x_t, t, cond)
        simple = ((output - denoiser.head.target_from_noise(x0, noise, t)) ** 2).flatten(1).mean(1)
        loss: Tensor = simple + self.weight * self.bound.terms(denoiser, (output.detach(), log_var), x0, x_t, t)
        return loss

"""Reading a schedule: at python floats (memoised) for samplers, at ``[b]`` tensors for training; rates and inverse.

The contract: ``at``, ``rates`` and ``log_snr`` compute in float64 and give the same numbers at a float and at a tensor;
derivatives come from ``torch.func.jvp``, never from a second formula; ``time_at`` inverts ``log_snr``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato.core import Time
from sfumato.trees import against, cast, precise, precise_device

#: ``t -> (alpha, sigma)``, both of the shape of ``t``.
Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]


def times(t: Time) -> Tensor:
    """``t`` as a tensor; python numbers become float64."""
    return t if torch.is_tensor(t) else torch.tensor(t, dtype=torch.float64)


def _with_rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = t.contiguous()  # jvp refuses expanded tensors
    values, derivatives = torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[:2]
    (alpha, sigma), (dalpha, dsigma) = values, derivatives
    return alpha, sigma, dalpha, dsigma


R = TypeVar("R")


def _memoised(read: Callable[[Any, float], R]) -> Callable[[Any, float], R]:
    """Remember readings of schedules that cannot change; a module (it may be learning) or unhashable one is read
    anew."""
    remembered = functools.lru_cache(1 << 16)(read)

    def reader(schedule: Any, t: float) -> R:
        fixed = type(schedule).__hash__ is not None and not isinstance(schedule, torch.nn.Module)
        return remembered(schedule, t) if fixed else read(schedule, t)

    return reader


@_memoised
def _float_at(schedule: Schedule, t: float) -> tuple[float, float]:
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return alpha.item(), sigma.item()


@_memoised
def _float_rates(schedule: Schedule, t: float) -> tuple[float, float, float, float]:
    alpha, sigma, dalpha, dsigma = _with_rates(schedule, torch.tensor(t, dtype=torch.float64))
    return alpha.item(), sigma.item(), dalpha.item(), dsigma.item()


def _tensor_times(t: Tensor, x: Tensor | None) -> Tensor:
    t = precise(t)
    return t if x is None else against(t, torch.empty((1,) * x.ndim, dtype=torch.float64))


def at(schedule: Schedule, t: Time, x: Tensor | None = None) -> tuple[Any, Any]:
    """``(alpha, sigma)`` at ``t``: python floats for a float ``t`` (memoised), else tensors that broadcast against
    ``x``.

    Tensor times ``[b]`` are computed in float64 and cast to the dtype and device of ``x`` (float64 where ``x`` is
    None). Floats are remembered for schedules that cannot change (not for an ``nn.Module``, which may be learning).
    """
    if not torch.is_tensor(t):
        return _float_at(schedule, float(t))
    values = schedule(_tensor_times(t, x))
    return values if x is None else (cast(values[0], x), cast(values[1], x))


def wide(x: Tensor) -> Tensor:
    """What stands for ``x`` in :func:`at` where coefficients are to stay float64 until they are combined."""
    return torch.empty((1,) * x.ndim, dtype=torch.float64, device=precise_device(x))


def narrow(value: Any, x: Tensor) -> Any:
    """A coefficient in the dtype and on the device of ``x``; numbers pass through."""
    return cast(value, x) if torch.is_tensor(value) else value


def rates(schedule: Schedule, t: Time, x: Tensor | None = None) -> tuple[Any, Any, Any, Any]:
    """``(alpha, sigma, d alpha/dt, d sigma/dt)`` at ``t``, shaped and cast like :func:`at`."""
    if not torch.is_tensor(t):
        return _float_rates(schedule, float(t))
    alpha, sigma, dalpha, dsigma = _with_rates(schedule, _tensor_times(t, x))
    if x is None:
        return alpha, sigma, dalpha, dsigma
    return cast(alpha, x), cast(sigma, x), cast(dalpha, x), cast(dsigma, x)


#: ``alpha`` at or below this is rounding error around a zero terminal signal (cos(pi/2) is 6e-17).
ZERO_ALPHA = 1e-12


def log_snr(schedule: Schedule, t: Time) -> Any:
    """``log(alpha^2 / sigma^2)``: a float for a float ``t``, else a float64 tensor; infinite at exact ends."""
    alpha, sigma = at(schedule, t)
    if not torch.is_tensor(alpha):
        if sigma == 0:
            return math.inf
        return -math.inf if alpha <= ZERO_ALPHA else 2 * math.log(alpha / sigma)
    ratio = 2 * (alpha.clamp(min=1e-300).log() - sigma.clamp(min=1e-300).log())
    ratio = torch.where(sigma == 0, math.inf, ratio)
    return torch.where(alpha <= ZERO_ALPHA, -math.inf, ratio)


def snr(schedule: Schedule, t: Time) -> Any:
    """``alpha^2 / sigma^2``, infinite at ``t = 0``."""
    alpha, sigma = at(schedule, t)
    if not torch.is_tensor(alpha):
        return math.inf if sigma == 0 else (alpha / sigma) ** 2
    return torch.where(sigma == 0, math.inf, (alpha / torch.where(sigma == 0, 1.0, sigma)) ** 2)


def time_at(schedule: Schedule, value: float | Tensor) -> Any:
    """The time in [0, 1] at which ``log_snr`` is ``value``: the inverse, by bisection in float64 unless the schedule
    has a ``time_at`` of its own.

    A float gives a float; a tensor gives a float64 tensor of its shape.  Values beyond the schedule's range give its
    ends.
    """
    target = torch.as_tensor(value, dtype=torch.float64)
    own = getattr(schedule, "time_at", None)
    if own is not None:
        exact: Tensor = own(target)
        return exact if torch.is_tensor(value) else exact.item()
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(64):
        middle = (low + high) / 2
        later = log_snr(schedule, middle) > target
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    # the end of the final bracket whose log-SNR is nearer, so that knots and exact ends are hit
    found = torch.where((log_snr(schedule, low) - target).abs() <= (log_snr(schedule, high) - target).abs(), low, high)
    found = torch.where(target <= log_snr(schedule, torch.ones_like(target)), 1.0, found)
    found = torch.where(target == math.inf, 0.0, found)
    return found if torch.is_tensor(value) else found.item()

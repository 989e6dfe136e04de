"""Schedules given by a formula in continuous time.

The contract: every one is a frozen dataclass, exact at both ends, with ``sigma`` computed without cancellation near the
data and, where there is a closed form, its own inverse ``time_at``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import Time
from sfumato.errors import Refusal
from sfumato.schedules.reading import times


@final
@dataclass(frozen=True)
class CosineContinuous:
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``: zero terminal signal (Salimans and Ho 2022)."""

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form."""
        return torch.atan(torch.exp(-value / 2)) * (2 / math.pi)


@final
@dataclass(frozen=True)
class Flow:
    """The straight path ``alpha = 1 - t'``, ``sigma = t'`` of rectified flow (Liu et al. 2022; Lipman et al. 2022).

    ``t' = shift t / (1 + (shift - 1) t)`` spends more time at high noise, as large images need (Esser et al. 2024,
    eq. 23, ``shift = sqrt(m / n)`` for ``m`` pixels in place of ``n``); ``shift=1`` is the plain path.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not (self.shift > 0 and math.isfinite(self.shift)):
            raise Refusal(f"shift={self.shift}: the shift of the flow schedule must be positive; 1 is none")

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        scale = 1 + (self.shift - 1) * t
        return (1 - t) / scale, self.shift * t / scale

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form."""
        return 1 / (1 + self.shift * torch.exp(value / 2))


@final
@dataclass(frozen=True)
class Karras:
    """Variance exploding with ``alpha = 1``, ``sigma = sigma_max t^rho`` (Karras et al. 2022, eq. 5 with sigma_min
    0)."""

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (self.sigma_max > 0 and self.rho > 0):
            raise Refusal(f"sigma_max={self.sigma_max}, rho={self.rho}: both must be positive")

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form, which :func:`time_at` prefers: training at given levels needs it every step."""
        return (torch.exp(-value / 2) / self.sigma_max).clamp(0.0, 1.0) ** (1 / self.rho)


@final
@dataclass(frozen=True)
class VP:
    """The variance-preserving SDE ``dx = -beta x / 2 dt + sqrt(beta) dw`` (Song et al. 2021, eq. 11), beta linear in t.

    ``alpha = exp(-B/2)``, ``sigma^2 = 1 - exp(-B)`` with the exact integral
    ``B = beta_min t + (beta_max - beta_min) t^2 / 2``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        integral = _integral(self.beta_min, self.beta_max, times(t))
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form: ``B = log(1 + 1/SNR)``."""
        return _time_of_integral(self.beta_min, self.beta_max, torch.logaddexp(-value, torch.zeros_like(value)))


@final
@dataclass(frozen=True)
class SubVP:
    """The sub-variance-preserving SDE (Song et al. 2021, eq. 12): ``alpha = exp(-B/2)``, ``sigma = 1 - exp(-B)``.

    ``B`` is that of :class:`VP`; the variance stays below VP's at every time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        integral = _integral(self.beta_min, self.beta_max, times(t))
        return torch.exp(-integral / 2), -torch.expm1(-integral)

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form: ``sigma / alpha = 2 sinh(B/2)``."""
        return _time_of_integral(self.beta_min, self.beta_max, 2 * torch.asinh(torch.exp(-value / 2) / 2))


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min <= beta_max:
        raise Refusal(f"beta_min={beta_min}, beta_max={beta_max}: need 0 < beta_min <= beta_max")


def _integral(beta_min: float, beta_max: float, t: Tensor) -> Tensor:
    return beta_min * t + (beta_max - beta_min) * t**2 / 2


def _time_of_integral(beta_min: float, beta_max: float, integral: Tensor) -> Tensor:
    # the root of the quadratic in the form that cancels nothing; an infinite integral lies beyond t = 1
    integral = integral.clamp(max=(beta_min + beta_max) / 2)
    return 2 * integral / (beta_min + torch.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral))


@final
@dataclass(frozen=True)
class Geometric:
    """The variance-exploding SDE with geometric levels (Song et al. 2021, eq. 9 and appendix C).

    ``alpha = 1`` and ``sigma^2 = s(t)^2 - s(0)^2``, ``s(t) = sigma_min (sigma_max / sigma_min)^t``: the SDE's exact
    transition from the data, so that ``sigma(0) = 0`` (the paper drops the ``sigma_min^2``).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise Refusal(f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: need 0 < sigma_min < sigma_max")

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        return torch.ones_like(t), self.sigma_min * torch.sqrt(torch.expm1(rate * t))

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form."""
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        return torch.log1p(torch.exp(-value) / self.sigma_min**2).clamp(max=rate) / rate


@final
@dataclass(frozen=True)
class Sigmoid:
    """``alpha^2`` is a falling logistic curve from 1 to ``floor`` (Jabri et al. 2022, appendix B; Chen 2023, eq. 2).

    ``1 - alpha^2 = (1 - floor) (v(t) - v(0)) / (v(1) - v(0))``, ``v(t) = sigmoid((start + (end - start) t) / tau)``.
    ``floor`` stands for the papers' clipping at 1e-9, which would stop the log-SNR from falling; 0 gives a zero
    terminal SNR.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    floor: float = 1e-9

    def __post_init__(self) -> None:
        if not (self.start < self.end and self.tau > 0 and 0 <= self.floor < 1):
            raise Refusal(
                f"start={self.start}, end={self.end}, tau={self.tau}, floor={self.floor}: need start < end, tau > 0 "
                "and a floor from 0 to below 1"
            )

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        first, last = self.start / self.tau, self.end / self.tau
        half, here = (last - first) / 2, first + (last - first) * t
        # differences of logistic curves as sinh and cosh: nothing cancels at either end
        scale = math.sinh(half) * torch.cosh(here / 2)
        risen = torch.sinh(half * t) * math.cosh(last / 2) / scale
        left = torch.sinh(half * (1 - t)) * math.cosh(first / 2) / scale
        return torch.sqrt(self.floor + (1 - self.floor) * left), torch.sqrt((1 - self.floor) * risen)

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form."""
        first, last = self.start / self.tau, self.end / self.tau
        low, high = (1 / (1 + math.exp(-v)) for v in (first, last))
        risen = (torch.sigmoid(-value) / (1 - self.floor)).clamp(max=1.0)
        found = (torch.logit(low + (high - low) * risen) - first) / (last - first)
        return torch.where(risen >= 1, 1.0, torch.where(risen == 0, 0.0, found.clamp(0, 1)))


def ramped(t: Tensor, neg_log_snr: Callable[[Tensor], Tensor], first: float) -> tuple[Tensor, Tensor]:
    """``(alpha, sigma)`` with ``alpha^2 = sigmoid(-gamma(u))``, ``u = (t - first) / (1 - first)``, exact at the data.

    ``gamma`` (the negative log-SNR) is finite at ``u = 0``; below ``t = first``, ``-log(alpha^2)`` is linear in ``t``
    down to 0, exactly as a table is below its first step.
    """
    gamma = neg_log_snr(((t - first) / (1 - first)).clamp(min=0))
    exponent = torch.logaddexp(gamma, torch.zeros_like(gamma)) * (t / first).clamp(max=1)
    return torch.exp(-exponent / 2), torch.sqrt(-torch.expm1(-exponent))


@final
@dataclass(frozen=True)
class LogSNR:
    """A variance-preserving schedule given by its log-SNR: ``log_snr(u)``, strictly falling for ``u`` in [0, 1].

    ``u = (t - first) / (1 - first)``; below ``t = first`` a short ramp leads to ``(1, 0)``, see :func:`ramped`.
    """

    log_snr: Callable[[Tensor], Tensor]
    first: float = 1e-3

    def __post_init__(self) -> None:
        check_first(self.first)

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        return ramped(times(t), lambda u: -self.log_snr(u), self.first)


def check_first(first: float) -> None:
    """Raises :class:`Refusal` unless a ramp can end at ``first``."""
    if not 0 < first < 1:
        raise Refusal(f"first={first}: the ramp must end strictly between 0 and 1, say at 0.001")


@final
@dataclass(frozen=True)
class LogLinear:
    """The log-SNR falls linearly from ``highest`` to ``lowest``: where the learned schedule of Kingma et al. (2021)
    starts.

    Below ``t = first`` a short ramp leads to ``(1, 0)``, see :func:`ramped`.
    """

    highest: float = 13.3
    lowest: float = -10.0
    first: float = 1e-3

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise Refusal(f"highest={self.highest}, lowest={self.lowest}: the log-SNR must fall; give highest > lowest")
        check_first(self.first)

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        return ramped(times(t), lambda u: (self.highest - self.lowest) * u - self.highest, self.first)

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form: linear in the log-SNR, on the ramp linear in ``-log(alpha^2)``."""
        line = self.first + (1 - self.first) * ((self.highest - value) / (self.highest - self.lowest)).clamp(max=1)
        ramp = self.first * torch.exp(-value).log1p() / math.log1p(math.exp(-self.highest))
        return torch.where(value > self.highest, ramp, line)

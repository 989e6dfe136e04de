"""From a raw network output to a belief: the only seam between networks and laws.

The contract: a network predicts ``F* = p x0 + q eps``, one pair ``(p, q)`` per prediction and noise level.  Since
``x_t = alpha x0 + sigma eps``, the clean data is ``x0 = (q x_t - sigma F) / (q alpha - p sigma)``; nothing downstream
knows which prediction a network was trained for.

============  =========================================  =============================================
prediction    target ``F*``                              source
============  =========================================  =============================================
``eps``       ``eps``                                    Ho et al. 2020, eq. 12
``x0``        ``x0``                                     Ho et al. 2020, section 3.2
``v``         ``alpha eps - sigma x0``                   Salimans and Ho 2022, section 4
``score``     ``-eps / sigma``                           Song et al. 2021, eq. 7
``flow``      ``d alpha/dt x0 + d sigma/dt eps``         Lipman et al. 2022, eq. 10
``edm``       ``(sigma x0 / s - alpha s eps) / n``       Karras et al. 2022, eq. 7-8; ``s = sigma_data``,
                                                         ``n = sqrt(alpha^2 s^2 + sigma^2)``
============  =========================================  =============================================

The network is called as ``net(c_in x_t, t, cond)`` with ``c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2)``, so that
its input has unit variance, and ``t`` of shape ``[b]`` in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import Cond, Law, Time
from sfumato.errors import Refusal, nearest
from sfumato.laws import Dirac, Normal
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.schedules import ZERO_ALPHA, at, narrow, rates, wide

#: ``(alpha, sigma, d alpha/dt, d sigma/dt, sigma_data) -> (p, q)`` of the target ``F* = p x0 + q eps``.
Coefficients = Callable[[Any, Any, Any, Any, float], tuple[Any, Any]]


def _eps(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, sigma_data: float) -> tuple[Any, Any]:
    return 0.0, 1.0


def _x0(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, sigma_data: float) -> tuple[Any, Any]:
    return 1.0, 0.0


def _v(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, sigma_data: float) -> tuple[Any, Any]:
    return -sigma, alpha


def _score(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, sigma_data: float) -> tuple[Any, Any]:
    return 0.0, -1.0 / sigma


def _flow(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, sigma_data: float) -> tuple[Any, Any]:
    return dalpha, dsigma


def _edm(alpha: Any, sigma: Any, dalpha: Any, dsigma: Any, sigma_data: float) -> tuple[Any, Any]:
    norm = (alpha**2 * sigma_data**2 + sigma**2) ** 0.5
    return sigma / sigma_data / norm, -alpha * sigma_data / norm


#: The conversion table.  Every network output passes through it, and nothing else converts.
PREDICTIONS: dict[str, Coefficients] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "score": _score,
    "flow": _flow,
    "edm": _edm,
}


#: Predictions whose target needs the schedule's derivative; the others are spared its milliseconds at tensor times.
_WITH_RATES = frozenset({"flow"})


def express(
    prediction: str, process: Gaussian | Interpolant, x0: Tensor, x_t: Tensor, t: Time, sigma_data: float = 1.0
) -> Tensor:
    """A clean state ``x0`` restated as another prediction: the target ``F*`` that a network would have to output.

    Raises :class:`Refusal` for an unknown prediction.
    """
    return GaussianHead(process, prediction, sigma_data).target(x0, x_t, t)


@final
@dataclass(frozen=True)
class GaussianHead:
    """Turns a raw output into a belief for a process with a schedule: Gaussian, or an Interpolant's velocity ("flow").

    A raw output that is a pair ``(F, log_var)`` gives a Normal belief of variance ``sigma^2 exp(log_var)``; a plain one
    a Dirac.  ``sigma_data`` is the standard deviation of the data in model units.
    """

    process: Gaussian | Interpolant
    prediction: str
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise Refusal(f"unknown prediction {self.prediction!r}; {nearest(self.prediction, PREDICTIONS)}")
        if not self.sigma_data > 0:
            raise Refusal(f"sigma_data={self.sigma_data}: the data's standard deviation must be positive")

    def require_invertible(self) -> None:
        """Raises :class:`Refusal` where the output at ``t = 1`` says nothing of ``x0`` (eps or score at zero alpha)."""
        alpha, sigma, p, q = self._coefficients(1.0, None)
        if abs(q * alpha - p * sigma) <= ZERO_ALPHA * math.hypot(p, q) * math.hypot(alpha, sigma):
            raise Refusal(
                f"prediction {self.prediction!r} cannot give x0 at t=1, where alpha={alpha:.0e} (zero terminal SNR); "
                "use 'v', 'x0', 'flow' or 'edm'"
            )

    def _coefficients(self, t: Time, x: Tensor | None) -> tuple[Any, Any, Any, Any]:
        # float64 until the last moment: the differences below cancel near both ends
        reference = None if x is None else wide(x)
        if self.prediction in _WITH_RATES:
            alpha, sigma, dalpha, dsigma = rates(self.process.schedule, t, reference)
        else:
            (alpha, sigma), dalpha, dsigma = at(self.process.schedule, t, reference), math.nan, math.nan
        p, q = PREDICTIONS[self.prediction](alpha, sigma, dalpha, dsigma, self.sigma_data)
        return alpha, sigma, p, q

    def input_scale(self, t: Time, x: Tensor) -> Any:
        """``c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2)``, shaped to broadcast against ``x``."""
        alpha, sigma, _, _ = self._coefficients(t, x)
        return narrow((alpha**2 * self.sigma_data**2 + sigma**2) ** -0.5, x)

    def __call__(self, raw: Any, x_t: Tensor, t: Time) -> Law[Tensor]:
        """The belief that the raw output states: ``x0 = (q x_t - sigma F) / (q alpha - p sigma)``."""
        output, log_var = raw if isinstance(raw, tuple) else (raw, None)
        alpha, sigma, p, q = self._coefficients(t, x_t)
        scale = 1 / (q * alpha - p * sigma)
        x0 = narrow(q * scale, x_t) * x_t - narrow(sigma * scale, x_t) * output
        return Dirac(x0) if log_var is None else Normal(x0, narrow(sigma, x_t) ** 2 * log_var.exp(), self.process.space)

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """``F* = p x0 + q eps`` for the noise that ``x_t`` implies; shape of ``x0``.  Needs ``sigma(t) > 0``."""
        alpha, sigma, p, q = self._coefficients(t, x0)
        target: Tensor = narrow(p - q * alpha / sigma, x0) * x0 + narrow(q / sigma, x0) * x_t
        return target

    def target_from_noise(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """``F* = p x0 + q eps`` from the noise itself: no digits are lost near the data."""
        _, _, p, q = self._coefficients(t, x0)
        target: Tensor = narrow(p, x0) * x0 + narrow(q, x0) * eps
        return target

    def weight(self, t: Time, x: Tensor | None = None) -> Any:
        """``((q alpha - p sigma) / sigma)^2``: the factor from ``|x0hat - x0|^2`` to ``|F - F*|^2``."""
        alpha, sigma, p, q = self._coefficients(t, x)
        weight = ((q * alpha - p * sigma) / sigma) ** 2
        return weight if x is None else narrow(weight, x)


@final
@dataclass(frozen=True)
class Preconditioned:
    """A network and the head that reads it: a :class:`~sfumato.core.Denoiser`.

    ``net(c_in x_t, t [b], cond) -> F`` or ``(F, log_var)``.  Raises :class:`Refusal` at construction where the
    prediction cannot give ``x0`` at ``t = 1``.
    """

    net: Any
    head: GaussianHead

    def __post_init__(self) -> None:
        self.head.require_invertible()

    def raw(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Any:
        """The network's own output at ``x_t``."""
        times = torch.as_tensor(t, dtype=torch.float32).to(x_t.device).expand(len(x_t))
        return self.net(self.head.input_scale(t, x_t) * x_t, times, cond)

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The belief over ``x0`` given ``x_t`` ``[b, ...]`` at ``t``."""
        return self.head(self.raw(x_t, t, cond), x_t, t)

    def target(self, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """What the network should output: see :meth:`GaussianHead.target`."""
        return self.head.target(x0, x_t, t)

    def weight(self, t: Time, x: Tensor | None = None) -> Any:
        """The factor from x0-loss to the network's own loss: see :meth:`GaussianHead.weight`."""
        return self.head.weight(t, x)

"""Weightings of the loss over noise levels, by name and as recipes use them.

The contract: a weighting is a factor on ``|x0hat - x0|^2``, a function of the noise level alone.  Since the loss of any
other prediction is that one times a known factor (:meth:`~sfumato.denoisers.GaussianHead.weight`), a weighting means
the same for every prediction; written for the noise instead, the same words mean something else for each network.

With ``SNR = alpha^2 / sigma^2``, which is also the factor from the x0-loss to the eps-loss:

==================  ==========================  ==================================================================
name                factor on the x0-loss       source
==================  ==========================  ==================================================================
``x0``              1                           Ho et al. 2020, section 3.2 (predicting x0)
``simple``          SNR                         Ho et al. 2020, eq. 14 (L_simple, whatever is predicted)
``snr+1``           SNR + 1                     Salimans and Ho 2022, section 4 (the v-loss)
``truncated-snr``   max(SNR, 1)                 Salimans and Ho 2022, section 4
``min-snr``         min(SNR, gamma)             Hang et al. 2023, eq. 8
``p2``              SNR / (k + SNR)^gamma       Choi et al. 2022, eq. 8
``edm``             SNR + 1 / sigma_data^2      Karras et al. 2022, table 1: (sigma^2 + s^2) / (sigma s)^2
``sigmoid``         SNR sigmoid(bias - log SNR) Kingma and Gao 2023, section 4; Hoogeboom et al. 2024, eq. 6
``vlb``             -(d SNR / dt) / 2           Kingma et al. 2021, eq. 16: the full bound, for uniform times
==================  ==========================  ==================================================================

All but ``vlb`` say how much a level counts when it is drawn; how often it is drawn is the law of times'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato import spec
from sfumato.core import Cond, Time
from sfumato.errors import Refusal, nearest
from sfumato.schedules import log_snr, rates, snr
from sfumato.training.objectives import Weight, min_snr, prediction_loss


def _scaled(factor: Callable[[Tensor], Tensor]) -> Weight:
    """The weighting of a factor that depends on the SNR alone."""

    def weight(process: Any, t: Time, loss: Any) -> Any:
        return factor(torch.as_tensor(snr(process.schedule, t), dtype=torch.float64)).to(loss) * loss

    return weight


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise Refusal(f"{name}={value}: a weighting needs a positive number here")


def x0() -> Weight:
    """1: the x0-loss as it is."""
    return _scaled(torch.ones_like)


def simple() -> Weight:
    """SNR: the loss of the noise."""
    return _scaled(lambda ratio: ratio)


def snr_plus_1() -> Weight:
    """SNR + 1: the loss of v on variance-preserving schedules."""
    return _scaled(lambda ratio: ratio + 1)


def truncated_snr() -> Weight:
    """max(SNR, 1): never less than the x0-loss."""
    return _scaled(lambda ratio: ratio.clamp(min=1.0))


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """SNR / (k + SNR)^gamma: plays down the levels at which only imperceptible detail is left to learn."""
    _positive("k", k)
    # as a product of what stays finite where the SNR is infinite
    return _scaled(lambda ratio: ratio ** (1 - gamma) * (1 / (k / ratio + 1)) ** gamma)


def edm(sigma_data: float = 0.5) -> Weight:
    """SNR + 1 / sigma_data^2: gives EDM's network target a loss of 1 at every level."""
    _positive("sigma_data", sigma_data)
    return _scaled(lambda ratio: ratio + sigma_data**-2)


def sigmoid(bias: float = 2.0) -> Weight:
    """SNR sigmoid(bias - log SNR) = e^bias sigmoid(log SNR - bias): the eps-loss, shut off above a log-SNR of bias."""

    def weight(process: Any, t: Time, loss: Any) -> Any:
        level = torch.as_tensor(log_snr(process.schedule, t), dtype=torch.float64)
        return (math.exp(bias) * torch.sigmoid(level - bias)).to(loss) * loss

    return weight


def vlb() -> Weight:
    """-(d SNR / dt) / 2: with uniform times the loss is the continuous-time evidence bound in nats."""

    def weight(process: Any, t: Time, loss: Any) -> Any:
        alpha, sigma, dalpha, dsigma = rates(process.schedule, t)
        fall = alpha * (alpha * dsigma - sigma * dalpha) / sigma**3
        return torch.as_tensor(fall, dtype=torch.float64).to(loss) * loss

    return weight


#: Every weighting by name; settings are written ``min-snr:gamma=3``.
WEIGHTINGS: dict[str, Callable[..., Weight]] = {
    "x0": x0,
    "simple": simple,
    "snr+1": snr_plus_1,
    "truncated-snr": truncated_snr,
    "min-snr": min_snr,
    "p2": p2,
    "edm": edm,
    "sigmoid": sigmoid,
    "vlb": vlb,
}
#: The network's own mean square error, whatever it predicts.
OWN = "own"


def _find(name: str) -> Callable[..., Weight]:
    if name not in WEIGHTINGS:
        raise Refusal(f"unknown weighting {name!r}; {nearest(name, [*WEIGHTINGS, OWN])}")
    return WEIGHTINGS[name]


def get(name: str, **settings: Any) -> Weight:
    """The weighting called ``name``; raises :class:`Refusal` for an unknown name."""
    return _find(name)(**settings)


def names() -> list[str]:
    """The names of all weightings."""
    return list(WEIGHTINGS)


@final
@dataclass(frozen=True)
class WeightedLoss:
    """An objective: the x0-loss (mean over coordinates) under ``weight``, measured on the network's own target.

    The square error of the target keeps its digits near the data, where the one of ``x0`` would cancel them; it is
    turned into the x0-loss by the head's known factor in float64.
    """

    weight: Weight

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
        """The weighted loss ``[b]``; arguments as for :func:`~sfumato.training.objectives.prediction_loss`."""
        own = prediction_loss(denoiser, x0, t, cond, rng, eps=eps, end=end)
        factor: Tensor = self.weight(denoiser.head.process, t.double(), 1 / denoiser.head.weight(t.double()))
        return factor.to(own) * own


def weighted(text: str) -> Any:
    """The objective for a recipe's ``weighting`` setting: ``"own"``, a name, or ``name:key=value``.

    Raises :class:`Refusal` for an unknown name or setting.
    """
    if text == OWN:
        return prediction_loss
    name, settings = spec.parse("weighting", text, _find)
    return WeightedLoss(get(name, **settings))

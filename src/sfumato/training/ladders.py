"""Ladders of noise levels chosen by theory: techniques 1, 2 and 4 of Song and Ermon 2020 (arXiv 2006.09011), and one
condition more that technique 3 brings with it.

The contract: a ladder is ``L`` levels from ``sigma_max`` down to ``sigma_min`` in geometric progression, ``gamma =
(sigma_max / sigma_min)^(1 / (L - 1))``, climbed down by a few Langevin steps ``x + a score + sqrt(2 a) z`` a level with
``a = size sigma_i^2``, ``size = eps / sigma_min^2``.  Each function is one rule of the paper for one of these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import schedules
from sfumato.errors import Refusal
from sfumato.processes.gaussian import Gaussian
from sfumato.training.settings import require, resolve
from sfumato.training.times import Steps


@final
@dataclass(frozen=True)
class Ladder:
    """Settings that recipes share: ``levels`` in geometric progression from ``sigma_max`` to ``sigma_min``, in model
    units."""

    sigma_max: float
    sigma_min: float
    levels: int

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max, "sigma_min", self.sigma_min, "a number between 0 and sigma_max")
        require(self.levels >= 2, "levels", self.levels, "at least 2")

    @property
    def process(self) -> Gaussian:
        """Noise of these levels, ``sigma(k / levels)``."""
        return Gaussian(schedules.get("levels", sigma_max=self.sigma_max, sigma_min=self.sigma_min, count=self.levels))

    @property
    def times(self) -> Steps:
        """All levels equally likely."""
        return Steps(self.levels)

    def given(self, settings: Mapping[str, Any]) -> Ladder:
        """This ladder with what ``settings`` say of it; raises :class:`Refusal` for values that are none."""
        return resolve(self, {f.name: settings[f.name] for f in fields(self) if f.name in settings})


def widest_distance(x: Float[Tensor, "n ..."], block: int = 1000) -> float:
    """The largest Euclidean distance between two rows of ``x``: technique 1's ``sigma_1``."""
    flat = x.flatten(1).double()
    return max(float(torch.cdist(part, flat).max()) for part in torch.split(flat, block))


def level_ratio(dimension: int, overlap: float = 0.5) -> float:
    """``gamma = sigma_(i-1) / sigma_i`` of technique 2 (proposition 2): ``Phi(sqrt(2 D)(g - 1) + 3 g) - Phi(sqrt(2 D)(g
    - 1) - 3 g) = overlap``.  Raises :class:`Refusal` unless ``0 < overlap < .997``.
    """
    if dimension < 1 or not 0 < overlap < 0.997:
        raise Refusal(f"dimension={dimension}, overlap={overlap}: levels need 1 dimension and an overlap in (0, .997)")

    def overlaps(gamma: float) -> float:
        gap, width = math.sqrt(2 * dimension) * (gamma - 1), 3 * gamma
        return (math.erf((gap + width) / math.sqrt(2)) - math.erf((gap - width) / math.sqrt(2))) / 2

    low, high = 1.0, 2.0
    while overlaps(high) > overlap and high < 1e6:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if overlaps(middle) > overlap else (low, middle)
    return low


def level_count(sigma_max: float, sigma_min: float, dimension: int, overlap: float = 0.5) -> int:
    """How many geometric levels technique 2 puts between the ends: ``gamma^(L - 1) = sigma_max / sigma_min``."""
    return 1 + round(math.log(sigma_max / sigma_min) / math.log(level_ratio(dimension, overlap)))


def spread(size: float, gamma: float, steps: int) -> float:
    """``s_T^2 / sigma_i^2`` (proposition 3): the variance that ``steps`` Langevin steps of ``size`` leave of the last
    level's noise, over this level's.
    """
    rest = 2 / (2 - size)
    return (1 - size) ** (2 * steps) * (gamma**2 - rest) + rest


def langevin_size(sigma_max: float, sigma_min: float, levels: int, steps: int) -> float:
    """``eps / sigma_L^2`` of technique 4: the step at which :func:`spread` is nearest to 1, to 1e-9.

    Times ``sigma_min^2`` it is the published ``eps``.
    """
    gamma = (sigma_max / sigma_min) ** (1 / (levels - 1))
    low, high = 0.0, 1.0
    while high - low > 1e-9:  # one minimum: the noise left falls in size, the noise added grows
        a, b = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, b) if spread(a, gamma, steps) < spread(b, gamma, steps) else (a, high)
    return (low + high) / 2


def blind_lag(size: float, gamma: float, steps: int) -> float:
    """The noise that is really there over the level's, where a network blind to its level climbs down a long ladder.

    Technique 4 takes the score for ``-x / sigma_i^2``: too much noise is met by a pull in proportion.  A network that
    does not know its level (technique 3) states ``-x / (|x| sigma_i)`` instead, the same pull however much there is.
    At a ratio ``r`` a step leaves ``sqrt((r - size)^2 + 2 size)`` of it, so that ``log r`` falls by ``size / 4`` at
    most: unless ``steps size > 4 log(gamma)``, and a little more, the noise falls behind the ladder for good (``inf``).
    """
    ratio, before = 1.0, 0.0
    while abs(ratio - before) > 1e-9:
        before, ratio = ratio, ratio * gamma
        for _ in range(steps):
            ratio = math.sqrt((ratio - size) ** 2 + 2 * size)
        if ratio > 100:
            return math.inf
    return ratio


def blind_steps(sigma_max: float, sigma_min: float, levels: int, lag: float = 1.25) -> int:
    """The fewest Langevin steps a level, of technique 4's size, at which :func:`blind_lag` is within ``lag``: from 5,
    the paper's number, to 100 (a ladder of few, far levels would need any number of them).
    """
    gamma, steps = (sigma_max / sigma_min) ** (1 / (levels - 1)), 5
    while steps < 100 and blind_lag(langevin_size(sigma_max, sigma_min, levels, steps), gamma, steps) > lag:
        steps += 1
    return steps

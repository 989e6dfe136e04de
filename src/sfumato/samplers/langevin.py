"""Langevin dynamics: annealed over the levels of a grid, and as the corrector of predictor-corrector sampling.

The contract: one step at a fixed level is ``x + a score + sqrt(2 a) z``, with ``score = (alpha x0 - x) / sigma^2`` at
the belief's point.  Its stationary law is ``p_t`` up to a relative bias of order ``a / sigma^2``.  Step sizes are
proportional to ``sigma^2``, so that the bias is the same at all levels (Song and Ermon 2019, section 4.3); no step size
depends on another sample of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from sfumato.core import RNG, Carry, Process, Sampler
from sfumato.errors import Refusal, nearest
from sfumato.samplers.ancestral import require_gaussian, require_rng
from sfumato.samplers.sde import EulerAncestral
from sfumato.schedules import at
from sfumato.trees import against, flat_sum


def score(process: Any, x0: Tensor, x: Tensor, t: float) -> Tensor:
    """``grad log p_t(x)`` for the belief's point ``x0`` (Song et al. 2021, eq. 7): ``(alpha x0 - x) / sigma^2``."""
    alpha, sigma = at(process.schedule, t)
    slope: Tensor = (alpha * x0 - x) / sigma**2
    return slope


@final
@dataclass(frozen=True)
class Langevin:
    """Annealed Langevin dynamics (Song and Ermon 2019, algorithm 1): ``steps`` Langevin steps at every level.

    The step size at level i is ``eps sigma_i^2 / sigma_L^2``; ``size`` is ``eps / sigma_L^2``, so it is free of units
    (NCSN: 2e-5 / 2 / .01^2 = .1, its equation halves the step; NCSNv2 on CIFAR-10: 6.2e-6 / .01^2 = .062).  The chain
    passes from a level to the next as it is; where ``alpha`` is not 1, its believed data moves with ``alpha``.
    ``denoise``: end with the belief's point at the last level, one more evaluation (Song and Ermon 2020, section 3.4
    after Jolicoeur-Martineau et al.); else with the chain's own state.  Costs ``n * steps`` evaluations, and that one.
    """

    steps: int = 5
    size: float = 0.1
    denoise: bool = True
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Refusal(f"steps={self.steps}: every level needs at least 1 Langevin step")
        if not 0 < self.size < 2:
            raise Refusal(f"size={self.size}: Langevin steps of eps/sigma^2 outside (0, 2) diverge; use about 0.1")

    @property
    def evaluations(self) -> int:
        """One a Langevin step."""
        return self.steps

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """All Langevin steps of level ``t``, then the move to ``s``."""
        source = require_rng(rng, self)
        (alpha, sigma), ahead = at(process.schedule, t), at(process.schedule, s)[0]
        a = self.size * sigma**2
        for _ in range(self.steps):
            x0 = model(x, t).point()
            x = x + a * score(process, x0, x, t) + math.sqrt(2 * a) * process.space.noise(x, source)
        if s == 0 and self.denoise:
            return model(x, t).point(), None
        return x + (ahead - alpha) * x0, None


#: ``(process, t, score, noise, snr)`` -> the corrector's step size: a number, or ``[b]``.
StepSize = Callable[[Any, float, Tensor, Tensor, float], Any]


def by_level(process: Any, t: float, slope: Tensor, noise: Tensor, snr: float) -> float:
    """``2 (snr sigma)^2``: what :func:`by_norm` tends to in many dimensions, where ``|score| sigma`` is ``|z|``.

    It does not depend on the state, so the corrector leaves ``p_t`` as it is in few dimensions, too.
    """
    return float(2 * (snr * at(process.schedule, t)[1]) ** 2)


def by_norm(process: Any, t: float, slope: Tensor, noise: Tensor, snr: float) -> Tensor:
    """``2 (snr |z| / |score|)^2`` of every sample (Song et al. 2021, algorithms 4 and 5), ``[b]``.

    The published code takes the norms' means over the batch, which couples its samples.  A step is at most ``alpha^2 +
    sigma^2``, so that it stays finite where the score vanishes.
    """
    sites = process.space.sites(slope)
    ratio = flat_sum(noise**2 * sites) / flat_sum(slope**2 * sites).clamp(min=1e-30)
    return (2 * snr**2 * ratio).clamp(max=sum(v * v for v in at(process.schedule, t)))


STEP_SIZES: dict[str, StepSize] = {"level": by_level, "norm": by_norm}


@final
@dataclass(frozen=True)
class PredictorCorrector:
    """Predictor-corrector sampling (Song et al. 2021, algorithm 1): Langevin steps at ``t``, then a step to ``s``.

    ``predictor``: any sampler; ``corrections``: Langevin steps per level; ``snr``: the signal-to-noise ratio of such a
    step (.16 in the paper); ``rule``: its size, ``level`` or ``norm``.  The order is that of the published code: the
    last move is the predictor's, so the end is denoised.  Raises :class:`Refusal` for values out of range.
    """

    predictor: Sampler = EulerAncestral()
    corrections: int = 1
    snr: float = 0.16
    rule: str = "level"
    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"

    def __post_init__(self) -> None:
        if self.corrections < 1:
            raise Refusal(f"corrections={self.corrections}: needs at least 1; without corrector use the predictor")
        if not 0 < self.snr < 1:
            raise Refusal(f"snr={self.snr}: the corrector's step diverges outside (0, 1); use about 0.16")
        if self.rule not in STEP_SIZES:
            raise Refusal(f"unknown rule {self.rule!r}; {nearest(self.rule, STEP_SIZES)}")

    @property
    def evaluations(self) -> int:
        """The predictor's and one a correction."""
        return self.predictor.evaluations + self.corrections

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one; the carry is the predictor's first one, and stays that: a history
        would belong to the states before their correction, so a multistep predictor begins anew at every step."""
        require_gaussian(process, self)
        return self.predictor.start(model, process, grid)

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """Correct at ``t``, then predict at ``s``."""
        source = require_rng(rng, self)
        for _ in range(self.corrections):
            x = self.correct(model, process, x, t, source)
        return self.predictor.step(model, process, x, t, s, carry, source)[0], carry

    def correct(self, model: Any, process: Any, x: Tensor, t: float, rng: RNG) -> Tensor:
        """One Langevin step at ``t``: it leaves ``p_t`` as it is, up to its step size."""
        slope = score(process, model(x, t).point(), x, t)
        noise = process.space.noise(x, rng)
        a = torch.as_tensor(STEP_SIZES[self.rule](process, t, slope, noise, self.snr)).to(x)
        a = against(a, x)
        corrected: Tensor = x + a * slope + (2 * a).sqrt() * noise
        return corrected


def pc(
    predictor: str = "euler-ancestral",
    corrections: int = 1,
    snr: float = 0.16,
    rule: Literal["level", "norm"] = "level",
) -> PredictorCorrector:
    """Predictor-corrector sampling with the registered sampler called ``predictor``."""
    from sfumato import samplers

    return PredictorCorrector(samplers.get(predictor), corrections, snr, rule)

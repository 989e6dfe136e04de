"""Schedules of discrete practice as laws of continuous time: tables of alpha-bar, their rescale, and lists of levels.

The contract: step ``k`` of ``T`` is read at ``t = k / T`` exactly; between the knots ``-log(alpha_bar)`` is linear (the
levels of :class:`Levels` are geometric there), and ``(alpha, sigma)(0) = (1, 0)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.core import Time
from sfumato.errors import Refusal, nearest
from sfumato.schedules.reading import times


def _knot(position: Tensor, steps: int) -> Tensor:
    """The interval that holds ``position``, by its left end: the nearest knot wins within rounding."""
    position = position.detach()
    knot = position.round()
    return torch.where((position - knot).abs() < 1e-9, knot, position.floor()).clamp(0, steps - 1)


@final
class Table:
    """The discrete schedule of ``alpha_bar[0..T-1]`` (steps 1..T) as a law of continuous time.

    ``alpha^2 = alpha_bar(t)``, ``sigma^2 = 1 - alpha_bar(t)``; at ``t = k / T`` it is ``alpha_bar[k - 1]`` exactly.
    Raises :class:`Refusal` unless ``1 > alpha_bar[0] > ... > alpha_bar[T-1] > 0``.
    """

    def __init__(self, alpha_bar: Sequence[float] | Tensor, name: str = "table") -> None:
        values = torch.as_tensor(alpha_bar, dtype=torch.float64)
        knots = torch.cat([torch.ones(1, dtype=torch.float64), values])
        if values.ndim != 1 or len(values) == 0 or not bool((knots.diff() < 0).all()) or float(values[-1]) <= 0:
            raise Refusal("alpha_bar must fall strictly from below 1 to above 0; check the betas it was made from")
        self.name = name
        self.steps = len(values)
        self._exponent = -knots.log()

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor, name: str = "table") -> Table:
        """The table of ``alpha_bar_t = prod (1 - beta_s)`` (Ho et al. 2020, eq. 4)."""
        return cls(torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), 0), name)

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        position = t * self.steps
        left = _knot(position, self.steps)  # so that t = k / T reads the table itself
        exponent = self._exponent.to(t.device)
        lower, upper = exponent[left.long()], exponent[left.long() + 1]
        value = lower + (position - left) * (upper - lower)
        return torch.exp(-value / 2), torch.sqrt(-torch.expm1(-value))

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form: ``-log(alpha_bar) = log(1 + 1 / SNR)``, linear between the knots."""
        exponent = self._exponent.to(value.device)
        height = torch.logaddexp(torch.zeros_like(value), -value).clamp(max=float(exponent[-1]))
        left = torch.searchsorted(exponent, height, right=True).clamp(1, self.steps) - 1
        lower, upper = exponent[left], exponent[left + 1]
        return (left + (height - lower) / (upper - lower)) / self.steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and torch.equal(self._exponent, other._exponent)

    def __hash__(self) -> int:
        return hash((self.steps, float(self._exponent[-1]), float(self._exponent[self.steps // 2])))

    def __repr__(self) -> str:
        return f"Table({self.name!r}, steps={self.steps})"


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Table:
    """DDPM's linear betas (Ho et al. 2020, section 4); ``steps`` other than 1000 keeps the given betas."""
    _check_steps(steps)
    return Table.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), "linear")


def scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Table:
    """Betas linear in their square root (Rombach et al. 2022, the latent-diffusion schedule)."""
    _check_steps(steps)
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64)
    return Table.from_betas(roots**2, "scaled-linear")


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Table:
    """Improved DDPM's cosine table (Nichol and Dhariwal 2021, eq. 17), betas clipped at ``max_beta``."""
    _check_steps(steps)
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    return Table.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), "cosine")


def square_root(steps: int = 1000, offset: float = 1e-4, max_beta: float = 0.999) -> Table:
    """Diffusion-LM's table ``alpha_bar = 1 - sqrt(k / T + offset)`` (Li et al. 2022, appendix A): noise at once.

    The knots are ``k = 1..T``, betas clipped at ``max_beta``.  The formula's ``1 - sqrt(offset) = 0.99`` at ``k = 0``
    is no knot: ``t = 0`` is the data, ``alpha_bar = 1``, and the first step adds that noise with its own, from 1 to
    ``1 - sqrt(1 / T + offset)`` (0.966834 for 1000 steps).
    """
    _check_steps(steps)
    time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - (time + offset).sqrt()).clamp(min=1e-12)])
    return Table.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), "square-root")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise Refusal(f"a schedule of steps={steps} has no law; use at least 1")


def polynomial(steps: int = 1000, power: float = 2.0, precision: float = 1e-5) -> Table:
    """E(3)-EDM's polynomial table (Hoogeboom et al. 2022, section 4 and appendix B; ``power=2`` is "polynomial_2").

    ``alpha_bar_k = (1 - 2s) (1 - (k/T)^power)^2 + s`` for ``k = 0..T``, ``s = precision``, with every ratio of
    neighbours held at .001 or more before ``s`` enters.  Already ``k = 0`` carries noise, so the table has ``T + 1``
    steps: the paper's ``k`` is the time ``(k + 1) / (T + 1)``, and the last step, to ``t = 0``, is its decoder.
    """
    _check_steps(steps)
    if not (power > 0 and 0 < precision < 0.5):
        raise Refusal(f"power={power}, precision={precision}: need power above 0 and precision between 0 and 0.5")
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    falling = (1 - time**power) ** 2
    ratios = (falling[1:] / falling[:-1]).clamp(min=0.001)
    clipped = torch.cat([falling[:1], torch.cumprod(ratios, 0)])
    return Table((1 - 2 * precision) * clipped + precision, "polynomial")


@final
class ZeroTerminal:
    """A table whose last step carries no signal at all (Lin et al. 2023, algorithm 1).

    ``alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T)`` from step 1 on, so that ``alpha'_1 = alpha_1`` and
    ``alpha'_T = 0`` exactly; below step 1 it is the table's own.  ``sigma' = sqrt(1 - alpha'^2)``.
    """

    def __init__(self, base: Table) -> None:
        if base.steps < 2:
            raise Refusal(f"a rescale of steps={base.steps} leaves nothing; use a table of at least 2 steps")
        self.base = base
        self.steps = base.steps
        self._first, self._last = (float(base(t)[0]) for t in (1 / base.steps, 1.0))

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        alpha, sigma = self.base(t)
        rescaled = (alpha - self._last) * (self._first / (self._first - self._last))
        rescaled = torch.where(t.detach() < 1, rescaled, rescaled - rescaled.detach())  # exactly 0, and its slope kept
        before = t.detach() * self.steps <= 1
        return torch.where(before, alpha, rescaled), torch.where(before, sigma, torch.sqrt(1 - rescaled**2))

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse by that of the table: its own below step 1, at the alpha before the rescale from there on."""
        rescaled = torch.sigmoid(value).sqrt()
        alpha = self._last + rescaled * (self._first - self._last) / self._first
        inner = torch.where(rescaled >= self._first, value, 2 * alpha.log() - torch.log1p(-(alpha**2)))
        return self.base.time_at(inner)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZeroTerminal) and self.base == other.base

    def __hash__(self) -> int:
        return hash(("zero-terminal", self.base))

    def __repr__(self) -> str:
        return f"ZeroTerminal({self.base!r})"


def zero_terminal(base: str = "scaled-linear", steps: int = 1000) -> ZeroTerminal:
    """:class:`ZeroTerminal` of a named table: linear, scaled-linear, cosine or polynomial; raises :class:`Refusal`."""
    if base not in _TABLES:
        raise Refusal(f"base={base!r} is no table; {nearest(base, _TABLES)}")
    return ZeroTerminal(_TABLES[base](steps))


@final
class Levels:
    """Variance exploding through given noise levels: ``alpha = 1``, ``sigma(k / T) = sigma_k`` for ``k = 1..T``.

    Geometric between the levels and linear from ``sigma(0) = 0`` to ``sigma_1``: the list of an NCSN (Song and Ermon
    2019, section 4.2) as a law of continuous time.  The order in which the levels are given does not matter.  Raises
    :class:`Refusal` unless they are positive, finite and distinct.
    """

    def __init__(self, sigmas: Sequence[float] | Tensor) -> None:
        levels = torch.as_tensor(sigmas, dtype=torch.float64).flatten().sort().values
        proper = len(levels) > 0 and float(levels[0]) > 0 and math.isfinite(float(levels[-1]))
        if not proper or not bool((levels.diff() > 0).all()):
            raise Refusal(f"sigmas of {len(levels)} noise levels must be positive, finite and distinct; check the list")
        self.steps = len(levels)
        self.sigmas: tuple[float, ...] = tuple(levels.tolist())
        self._levels = levels

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = times(t)
        position = t * self.steps
        left = _knot(position, self.steps)
        levels = self._levels.to(t.device)
        index = left.long()
        lower, upper = levels[(index - 1).clamp(min=0)], levels[index]
        sigma = torch.where(left == 0, levels[0] * position, lower * (upper / lower) ** (position - left))
        return torch.ones_like(t), sigma

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form."""
        levels = self._levels.to(value.device)
        sigma = torch.exp(-value / 2).clamp(max=self.sigmas[-1])
        index = torch.searchsorted(levels, sigma).clamp(1, max(self.steps - 1, 1))
        lower, upper = levels[index - 1], levels[index.clamp(max=self.steps - 1)]
        position = torch.where(upper > lower, index + (sigma / lower).log() / (upper / lower).log(), index.double())
        return torch.where(sigma <= levels[0], sigma / levels[0], position).clamp(0, self.steps) / self.steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Levels) and torch.equal(self._levels, other._levels)

    def __hash__(self) -> int:
        return hash(("levels", self.steps, float(self._levels[0]), float(self._levels[-1])))

    def __repr__(self) -> str:
        return f"Levels({self.steps} from {self.sigmas[0]:g} to {self.sigmas[-1]:g})"


def levels(sigma_max: float = 50.0, sigma_min: float = 0.01, count: int = 232) -> Levels:
    """``count`` geometric levels; the defaults are NCSNv2's for 32 x 32 images (Song and Ermon 2020, appendix B)."""
    _check_steps(count)
    if not 0 < sigma_min < sigma_max:
        raise Refusal(f"sigma_min={sigma_min}, sigma_max={sigma_max}: levels need 0 < sigma_min < sigma_max")
    exponent = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.ones(1, dtype=torch.float64)
    return Levels(sigma_min * (sigma_max / sigma_min) ** exponent)


_TABLES: dict[str, Callable[[int], Table]] = {
    "linear": linear,
    "scaled-linear": scaled_linear,
    "cosine": cosine,
    "polynomial": polynomial,
}

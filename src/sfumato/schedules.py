"""Noise schedules: functions ``t -> (alpha, sigma)`` with ``x_t = alpha x0 + sigma eps``, ``t = 0`` data, ``t = 1``
prior.

The contract: a schedule takes a float64 tensor of times and returns float64 ``alpha`` and ``sigma`` of its shape; the
ends are exact, ``(alpha, sigma)(0) = (1, 0)``, and the log signal-to-noise ratio falls strictly.  Derivatives come from
``torch.func.jvp``, never from a second formula.  Samplers read a schedule at python floats (memoised); training reads
it at ``[b]`` tensors.

A table of T discrete steps is a law of continuous t: ``t = k / T`` with ``-log(alpha_bar)`` linear between the knots
and
``alpha_bar(0) = 1``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from sfumato.core import Time
from sfumato.errors import Refusal
from sfumato.registry import Registry
from sfumato.trees import against

#: ``t -> (alpha, sigma)``, both of the shape of ``t``.
Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]


def _times(t: Time) -> Tensor:
    return t if torch.is_tensor(t) else torch.tensor(t, dtype=torch.float64)


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
        t = _times(t)
        position = t * self.steps
        # the nearest knot wins within rounding, so that t = k / T reads the table itself
        knot = position.detach().round()
        left = torch.where((position.detach() - knot).abs() < 1e-9, knot, position.detach().floor())
        left = left.clamp(0, self.steps - 1)
        exponent = self._exponent.to(t.device)
        lower, upper = exponent[left.long()], exponent[left.long() + 1]
        value = lower + (position - left) * (upper - lower)
        return torch.exp(-value / 2), torch.sqrt(-torch.expm1(-value))

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


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise Refusal(f"a schedule of steps={steps} has no law; use at least 1")


@final
@dataclass(frozen=True)
class CosineContinuous:
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``: zero terminal signal (Salimans and Ho 2022)."""

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = _times(t)
        return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


@final
@dataclass(frozen=True)
class Flow:
    """The straight path ``alpha = 1 - t``, ``sigma = t`` of rectified flow (Liu et al. 2022; Lipman et al. 2022)."""

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        t = _times(t)
        return 1 - t, t


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
        t = _times(t)
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def time_at(self, value: Tensor) -> Tensor:
        """The inverse in closed form, which :func:`time_at` prefers: training at given levels needs it every step."""
        return (torch.exp(-value / 2) / self.sigma_max).clamp(0.0, 1.0) ** (1 / self.rho)


registry: Registry[Schedule] = Registry("schedule")
registry.add("linear", linear)
registry.add("scaled-linear", scaled_linear)
registry.add("cosine", cosine)
registry.add("cosine-continuous", CosineContinuous)
registry.add("flow", Flow)
registry.add("karras", Karras)


def get(name: str, **settings: Any) -> Schedule:
    """The schedule called ``name``; raises :class:`Refusal` for an unknown name or setting."""
    return registry.get(name, **settings)


def names() -> list[str]:
    """The names of all registered schedules."""
    return list(registry)


# ------------------------------------------------------------------------------------------------ reading a schedule


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
    t = t.double() if t.device.type != "mps" else t.cpu().double()
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
    return values if x is None else (values[0].to(x), values[1].to(x))


def wide(x: Tensor) -> Tensor:
    """What stands for ``x`` in :func:`at` where coefficients are to stay float64 until they are combined."""
    return torch.empty((1,) * x.ndim, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)


def narrow(value: Any, x: Tensor) -> Any:
    """A coefficient in the dtype and on the device of ``x``; numbers pass through."""
    return value.to(x) if torch.is_tensor(value) else value


def rates(schedule: Schedule, t: Time, x: Tensor | None = None) -> tuple[Any, Any, Any, Any]:
    """``(alpha, sigma, d alpha/dt, d sigma/dt)`` at ``t``, shaped and cast like :func:`at`."""
    if not torch.is_tensor(t):
        return _float_rates(schedule, float(t))
    alpha, sigma, dalpha, dsigma = _with_rates(schedule, _tensor_times(t, x))
    return (alpha, sigma, dalpha, dsigma) if x is None else (alpha.to(x), sigma.to(x), dalpha.to(x), dsigma.to(x))


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
    has a
    ``time_at`` of its own.

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

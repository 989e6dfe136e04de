"""A learned schedule: a monotone network for the negative log-SNR (Kingma et al. 2021, section 3.2 and appendix H).

The contract: ``gamma(u) = gamma_0 + (gamma_1 - gamma_0) S(u)`` on ``u`` in [0, 1] with ``S(0) = 0``, ``S(1) = 1`` and
``S`` rising strictly, whatever the weights; ``alpha^2 = sigmoid(-gamma)``, ``sigma^2 = sigmoid(gamma)``.  The paper's
``u = 0``, where the data is seen with noise ``gamma_0``, is the time ``t = first`` here; below it a short ramp leads to
``(1, 0)``, as a table does below its first step.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from sfumato.core import Time
from sfumato.errors import Refusal
from sfumato.schedules.continuous import check_first, ramped
from sfumato.schedules.reading import Schedule, times


def _positive(raw: Tensor) -> Tensor:
    return nn.functional.softplus(raw)


def _raw(value: Tensor) -> Tensor:
    """The parameter whose softplus is ``value``."""
    return value + torch.log(-torch.expm1(-value))


@final
class Learned(nn.Module):
    """A schedule whose shape and ends are parameters; a module, so it is never memoised: :func:`freeze` it to sample.

    ``gamma_0``, ``gamma_1``: the negative log-SNR at the ends, where training starts (the paper's -13.3 and 5).
    ``hidden``: logistic units of the monotone network, whose start is a straight line.  All weights that must be
    positive are softplus of a parameter.  Raises :class:`Refusal` unless ``gamma_0 < gamma_1``.
    """

    def __init__(self, gamma_0: float = -13.3, gamma_1: float = 5.0, hidden: int = 64, first: float = 1e-3) -> None:
        super().__init__()
        if not gamma_0 < gamma_1:
            raise Refusal(f"gamma_0={gamma_0}, gamma_1={gamma_1}: the noise must rise; give gamma_0 < gamma_1")
        if hidden < 1:
            raise Refusal(f"hidden={hidden}: the monotone network needs at least 1 unit")
        check_first(first)
        self.first = first
        self.low = nn.Parameter(torch.tensor(float(gamma_0)))
        self.log_span = nn.Parameter(torch.tensor(math.log(gamma_1 - gamma_0)))
        # units spread evenly over [0, 1]: no two alike, and nothing random
        self.slope = nn.Parameter(_raw(torch.tensor(1.0)))
        self.height = nn.Parameter(_raw(torch.full((hidden,), 0.1 / hidden)))
        self.steepness = nn.Parameter(_raw(torch.full((hidden,), 8.0)))
        self.centre = nn.Parameter((torch.arange(hidden) + 0.5) / hidden)

    def _rise(self, u: Tensor) -> Tensor:
        """The network before it is scaled to rise from 0 to 1, of the shape of ``u``."""
        slope, height, steepness = (
            _positive(p.to(u.device).double()) for p in (self.slope, self.height, self.steepness)
        )
        steps = torch.sigmoid(steepness * (u[..., None] - self.centre.to(u.device).double()))
        return slope * u + (height * steps).sum(-1)

    def shape(self, u: Tensor) -> Tensor:
        """``S(u)`` in [0, 1], float64 of the shape of ``u``."""
        start, end = self._rise(torch.zeros_like(u)), self._rise(torch.ones_like(u))
        return (self._rise(u) - start) / (end - start)

    def shape_and_slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``S(u)`` and ``S'(u)``, both differentiable in the parameters."""
        u = u.contiguous()
        shape, slope = torch.func.jvp(self.shape, (u,), (torch.ones_like(u),))[:2]
        return shape, slope

    def ends(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """``(gamma_0, gamma_1)``, differentiable, float64."""
        low = self.low.to(device).double()
        return low, low + self.log_span.to(device).double().exp()

    def inner(self, t: Tensor) -> Tensor:
        """The paper's time ``u = (t - first) / (1 - first)``, 0 below ``first``."""
        return ((t - self.first) / (1 - self.first)).clamp(min=0)

    def gamma(self, u: Tensor) -> Tensor:
        """The negative log-SNR at the paper's times ``u``, float64 of their shape."""
        low, high = self.ends(u.device)
        return low + (high - low) * self.shape(u)

    def forward(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        return ramped(times(t), self.gamma, self.first)

    def freeze(self, knots: int = 1024) -> Frozen:
        """The schedule as it is now, without parameters: see :class:`Frozen`."""
        with torch.no_grad():
            u = torch.linspace(0, 1, knots + 1, dtype=torch.float64)
            low, high = self.ends()
            shape, slope = self.shape_and_slope(u)
            return Frozen((low + (high - low) * shape).cpu(), ((high - low) * slope).cpu(), self.first)


@final
class Frozen:
    """A variance-preserving schedule tabulated by its negative log-SNR ``gamma [k]`` and slopes ``[k]`` on [0, 1].

    Cubic Hermite between the knots, so its derivative is continuous and agrees with the given one at them; slopes are
    held below three times the neighbouring secants, which keeps it rising (Fritsch and Carlson 1980).  It cannot
    change, so samplers remember their readings.  Raises :class:`Refusal` unless ``gamma`` rises strictly.
    """

    def __init__(self, gamma: Float64[Tensor, " k"], slope: Float64[Tensor, " k"], first: float = 1e-3) -> None:
        if len(gamma) < 2 or not bool((gamma.diff() > 0).all()) or not bool(torch.isfinite(slope).all()):
            raise Refusal(f"gamma of {len(gamma)} knots must rise strictly and be finite; the schedule has collapsed")
        check_first(first)
        self.first = first
        self._gamma = gamma.detach().clone()
        secant = gamma.diff()
        limit = 3 * torch.minimum(torch.cat([secant[:1], secant]), torch.cat([secant, secant[-1:]]))
        self._slope = torch.minimum((slope / (len(gamma) - 1)).clamp(min=0), limit).detach()  # per knot

    def gamma(self, u: Tensor) -> Tensor:
        """The negative log-SNR at ``u`` in [0, 1], of its shape."""
        values, slopes = self._gamma.to(u.device), self._slope.to(u.device)
        position = u * (len(values) - 1)
        left = position.detach().floor().clamp(0, len(values) - 2)
        i, x = left.long(), position - left
        y0, y1, d0, d1 = values[i], values[i + 1], slopes[i], slopes[i + 1]
        rise = y1 - y0
        return y0 + x * (d0 + x * ((3 * rise - 2 * d0 - d1) + x * (d0 + d1 - 2 * rise)))

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at the times ``t``, of its shape."""
        return ramped(times(t), self.gamma, self.first)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Frozen)
            and self.first == other.first
            and torch.equal(self._gamma, other._gamma)
            and torch.equal(self._slope, other._slope)
        )

    def __hash__(self) -> int:
        return hash((self.first, len(self._gamma), float(self._gamma[0]), float(self._gamma[-1])))

    def __repr__(self) -> str:
        return f"Frozen(gamma from {float(self._gamma[0]):.4g} to {float(self._gamma[-1]):.4g})"


def freeze(schedule: Schedule) -> Schedule:
    """An immutable fast copy of a learned schedule, for sampling; a schedule that cannot change is returned itself."""
    own = getattr(schedule, "freeze", None)
    frozen: Schedule = own() if own is not None else schedule
    return frozen

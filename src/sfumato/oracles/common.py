"""What all oracles share: levels of noise, shapes, the two denoisers, and the exact flow along the circle.

The contract: everything is computed in float64; states come back in the dtype of ``x_t``, log-densities in float64.
Times are numbers or tensors of shape ``[b]``, anywhere in [0, 1], both ends included.

The probability-flow ODE of a Gaussian process depends on its schedule only through the ratio sigma / alpha: with
``phi = atan2(sigma, alpha)`` and ``y = x_t / sqrt(alpha^2 + sigma^2)`` it is
``dy/dphi = E[cos(phi) eps - sin(phi) x0 | y]``, smooth at both ends.  :func:`flow_on_circle` integrates that form: no
schedule needs a derivative and none is singular.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato import schedules
from sfumato.core import Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Dirac


@runtime_checkable
class Oracle(Protocol):
    """Data whose every posterior is known."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        ...

    def mean(self, process: Any, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """``E[x0 | x_t]``, shaped like ``x``."""
        ...

    def belief(self, process: Any, x: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The whole law ``p(x0 | x_t)``."""
        ...


@final
@dataclass(frozen=True)
class PointDenoiser:
    """The perfect model of a point prediction: believes ``Dirac(E[x0 | x_t])``."""

    oracle: Oracle
    process: Any
    kind: ClassVar[str] = "belief"

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The belief at ``x_t`` ``[b, ...]`` and time ``t``; ``cond={"label": [b]}`` picks a component."""
        return Dirac(self.oracle.mean(self.process, x_t, t, cond))


@final
@dataclass(frozen=True)
class LawDenoiser:
    """The perfect model: believes the exact posterior law ``p(x0 | x_t)``."""

    oracle: Oracle
    process: Any
    kind: ClassVar[str] = "belief"

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The belief at ``x_t`` ``[b, ...]`` and time ``t``; ``cond={"label": [b]}`` picks a component."""
        return self.oracle.belief(self.process, x_t, t, cond)


def float64(value: Any) -> Tensor:
    """Numbers, lists, arrays or tensors as a detached float64 tensor on the CPU."""
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()


def schedule_of(process: Any) -> Any:
    """The schedule of a Gaussian process; raises :class:`Refusal` for a process without one."""
    if not hasattr(process, "schedule"):
        raise Refusal(f"{type(process).__name__} has no (alpha, sigma) schedule; the oracles know Gaussian processes")
    return process.schedule


def _column(value: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=x.device).reshape(-1, 1).expand(len(x), 1)


def levels(process: Any, t: Time, flat: Tensor) -> tuple[Tensor, Tensor]:
    """``(alpha, sigma)`` at ``t``, each ``[b, 1]`` float64, for flat states ``[b, d]``."""
    alpha, sigma = schedules.at(schedule_of(process), t, flat)
    return _column(alpha, flat), _column(sigma, flat)


def level_rates(process: Any, t: Time, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(alpha, sigma, alpha', sigma')`` at ``t``, each ``[b, 1]`` float64; refused where a derivative is infinite."""
    columns = tuple(_column(v, flat) for v in schedules.rates(schedule_of(process), t, flat))
    if not all(bool(torch.isfinite(v).all()) for v in columns):
        raise Refusal(f"the schedule has no finite derivative at t={t}; ask for the velocity at t > 0")
    return columns[0], columns[1], columns[2], columns[3]


def flatten(x: Tensor, dimension: int) -> Tensor:
    """States ``[b, ...]`` as float64 ``[b, d]``; raises :class:`Refusal` where the dimension does not fit."""
    flat = x.to(torch.float64).flatten(1)
    if flat.shape[1] != dimension:
        raise Refusal(
            f"states of {flat.shape[1]} coordinates for an oracle of {dimension}; reshape the data or the states"
        )
    return flat


def labels(cond: Cond | None, batch: int, classes: int) -> Tensor | None:
    """The labels ``[b]`` in ``cond``, checked; ``classes`` itself is the null label; ``None`` where there are none."""
    if cond is None or "label" not in cond:
        if cond:
            raise Refusal(f"cond has {sorted(cond)}; an oracle knows 'label' only")
        return None
    label = cond["label"]
    if label.shape != (batch,) or bool((label < 0).any()) or bool((label > classes).any()):
        raise Refusal(
            f"labels of shape {tuple(label.shape)} for {batch} samples must lie in 0..{classes} ({classes} = null)"
        )
    return label


def divide(a: Tensor, b: Tensor) -> Tensor:
    """``a / b`` with 0/0 = 0."""
    return torch.where(b == 0, torch.zeros_like(a * b), a / torch.where(b == 0, torch.ones_like(b), b))


def pick(logp: Tensor, u: Tensor) -> Tensor:
    """An index ``[b]`` into every row of log-probabilities ``[b, k]`` by the inverse cdf of uniforms ``u`` ``[b]``."""
    p = logp.exp()
    cdf = p.cumsum(1)
    index = torch.searchsorted(cdf, u.to(cdf)[:, None] * cdf[:, -1:], right=True)[:, 0]
    last = p.shape[1] - 1 - (p > 0).flip(1).to(torch.int8).argmax(1)
    return torch.minimum(index, last)


def flow_on_circle(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    flat: Tensor,
    start: tuple[Tensor, Tensor],
    end: tuple[Tensor, Tensor],
) -> Tensor:
    """Carry flat states ``[b, d]`` along the exact probability flow between two levels, by DOP853 at tolerance 1e-12.

    ``velocity(y, cos, sin)`` is ``dy/dphi`` on the unit circle; ``start`` and ``end`` are ``(alpha, sigma)``, each
    ``[b, 1]``.
    """
    import numpy as np
    from scipy.integrate import solve_ivp

    phi, psi = (torch.atan2(sigma, alpha) for alpha, sigma in (start, end))
    rho, eta = (torch.hypot(alpha, sigma) for alpha, sigma in (start, end))

    def derivative(u: float, packed: Any) -> Any:
        angle = phi + u * (psi - phi)
        y = torch.from_numpy(np.ascontiguousarray(packed)).reshape(flat.shape)
        with torch.no_grad():
            return (velocity(y, angle.cos(), angle.sin()) * (psi - phi)).reshape(-1).numpy()

    begin = (flat / rho).detach().reshape(-1).numpy()
    solution = solve_ivp(derivative, (0.0, 1.0), begin, method="DOP853", rtol=1e-12, atol=1e-12)
    if not solution.success:
        raise Refusal(f"the exact flow did not converge ({solution.message.strip()}); stay away from t = 0")
    return torch.from_numpy(solution.y[:, -1].copy()).reshape(flat.shape) * eta

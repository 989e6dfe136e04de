"""Multistep solvers of the probability-flow ODE in general: what they integrate, along which axis, what they remember.

The contract: the exact step from ``t`` to ``s`` is the deterministic bridge at a *mean* over the step: of the clean
data under the density ``e^lambda``, or of the noise under ``e^-lambda``, both in ``lambda = log(alpha / sigma)`` (Lu et
al. 2022b, eq. 3.6; 2022a, eq. 3.4).  A solver takes the mean of the polynomial through its last p values, as a function
of lambda, of ``sigma / alpha`` or of ``t``.  At ``alpha = 0`` and ``sigma = 0`` lambda is infinite: there the bridge at
the belief's point is taken, and ``alpha = 0`` leaves no history.

A value found at the end of a step also corrects that step (UniC: Zhao et al. 2023, section 3.1), at no evaluation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.errors import Refusal, nearest
from sfumato.samplers.ode import Level, exact_step, level
from sfumato.samplers.polynomials import combine, exponential_moments, mean_weights
from sfumato.schedules import at


def require_choice(sampler: object, setting: str, known: tuple[Any, ...]) -> None:
    """Raises :class:`Refusal` unless this setting of the sampler has one of its known values."""
    value = getattr(sampler, setting)
    if value not in known:
        hint = nearest(value, known) if isinstance(value, str) else f"known: {', '.join(map(str, known))}"
        raise Refusal(f"{type(sampler).__name__}: {setting}={value!r}; {hint}")


class Node(NamedTuple):
    """A value that a solver remembers, and its place on the axis."""

    value: Tensor
    place: float


class Past(NamedTuple):
    """The carry of a multistep solver: its last nodes, and the state and time the last step went out from."""

    nodes: tuple[Node, ...]
    x: Tensor
    t: float


#: ``(values, places, moments, h) -> mean``: how a polynomial is read; places are in units of the step, of length h.
Rule = Callable[[list[Tensor], list[float], list[float], float], Tensor]


def polynomial(values: list[Tensor], places: list[float], moments: list[float], h: float) -> Tensor:
    """The exact mean of the polynomial through all values."""
    return combine(mean_weights(places, moments), values)


def midpoint(values: list[Tensor], places: list[float], moments: list[float], h: float) -> Tensor:
    """As :func:`polynomial`, but a line through two values is read half-way along the step, not at its mean."""
    if len(values) != 2:
        return polynomial(values, places, moments, h)
    return combine(mean_weights(places, [1.0, 0.5]), values)


class Axis(NamedTuple):
    """What is integrated and as a function of what.

    ``noise``: whether the noise (else the clean data) is.  ``place(t, level)``: the variable.  ``moments(process, t, s,
    count)``: of the density over the step, in units of the step on this axis.  ``to_data``: whether ``sigma = 0`` is an
    ordinary point of it.
    """

    noise: bool
    place: Callable[[float, Level], float]
    moments: Callable[[Any, float, float, int], list[float]]
    to_data: bool = False

    def value(self, x: Tensor, x0: Tensor, here: Level) -> Tensor:
        """The integrated value at a state and its belief's point."""
        return (x - here.alpha * x0) / here.sigma if self.noise else x0

    def mean(self, nodes: tuple[Node, ...], rule: Rule, process: Any, t: float, s: float) -> Tensor:
        """The mean over the step from ``t`` to ``s``."""
        if len(nodes) == 1:
            return nodes[0].value
        here, there = self.place(t, level(process, t)), self.place(s, level(process, s))
        places = [(node.place - here) / (there - here) for node in nodes]
        return rule([node.value for node in nodes], places, self.moments(process, t, s, len(nodes)), there - here)

    def step(self, process: Any, x: Tensor, x0: Tensor, value: Tensor, mean: Tensor, t: float, s: float) -> Tensor:
        """The step at a mean; ``value`` is what ``x`` and ``x0`` imply, so that equal ones cancel exactly."""
        if not self.noise:
            return exact_step(process, x, mean, t, s)
        here, there = level(process, t), level(process, s)
        return exact_step(process, x, x0, t, s) + (there.sigma - there.alpha * here.sigma / here.alpha) * (mean - value)


def _log_snr_moments(sign: float) -> Callable[[Any, float, float, int], list[float]]:
    def moments(process: Any, t: float, s: float, count: int) -> list[float]:
        return exponential_moments(sign * (level(process, s).lam - level(process, t).lam), count)

    return moments


def _flat_moments(process: Any, t: float, s: float, count: int) -> list[float]:
    return [1 / (k + 1) for k in range(count)]


#: Gauss-Legendre quadrature on [0, 1] for the one density without a closed form.
_QUADRATURE_POINTS = 24


def _time_moments(process: Any, t: float, s: float, count: int) -> list[float]:
    """Of ``du`` over a step in time, ``u = sigma / alpha``: by parts, so that ``u`` is integrated, not its slope."""
    points, weights = _gauss_legendre(_QUADRATURE_POINTS)
    alpha, sigma = process.schedule(t + (s - t) * points)
    u = sigma / alpha
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at(process.schedule, t), at(process.schedule, s)
    first, last = sigma_t / alpha_t, sigma_s / alpha_s
    integrals = [float((weights * points ** (k - 1) * u).sum()) for k in range(1, count)]
    return [1.0, *((last - k * integral) / (last - first) for k, integral in enumerate(integrals, 1))]


@functools.lru_cache
def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """The nodes and weights on [0, 1], from the eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (points + 1) / 2, vectors[0] ** 2


DATA = Axis(False, lambda t, here: here.lam, _log_snr_moments(1.0))
NOISE = Axis(True, lambda t, here: here.lam, _log_snr_moments(-1.0))
NOISE_IN_RATIO = Axis(True, lambda t, here: here.sigma / here.alpha, _flat_moments, to_data=True)
NOISE_IN_TIME = Axis(True, lambda t, here: t, _time_moments)


def advance(
    axis: Axis,
    order: int,
    process: Any,
    x: Tensor,
    x0: Tensor,
    t: float,
    s: float,
    past: Past | None,
    *,
    rule: Rule = polynomial,
    corrected: int = 0,
) -> tuple[Tensor, Past | None]:
    """One step of a multistep solver for a belief already formed, and what it will remember.

    ``order``: how many values it uses, this one included.  ``corrected``: a step that used fewer values than this is
    corrected, before the next one, by the belief found at its end.
    """
    here, there = level(process, t), level(process, s)
    if here.ends:
        return exact_step(process, x, x0, t, s), None
    value = axis.value(x, x0, here)
    nodes: tuple[Node, ...] = (Node(value, axis.place(t, here)),)
    if past is not None:
        if len(past.nodes) < corrected:
            x, x0 = _correct(axis, process, x, x0, t, value, past, rule)
        nodes = (*past.nodes, *nodes)[-order:]
    if there.ends and not (axis.to_data and there.sigma == 0):
        return exact_step(process, x, x0, t, s), Past(nodes, x, t)
    mean = axis.mean(nodes, rule, process, t, s)
    return axis.step(process, x, x0, value, mean, t, s), Past(nodes, x, t)


def _correct(
    axis: Axis, process: Any, x: Tensor, x0: Tensor, t: float, value: Tensor, past: Past, rule: Rule
) -> tuple[Tensor, Tensor]:
    """The last step, taken again with the value at its end; and the clean data that this state and value imply."""
    before = level(process, past.t)
    known = past.nodes[-1].value
    clean = (past.x - before.sigma * known) / before.alpha if axis.noise else known
    ends = (*past.nodes, Node(value, axis.place(t, level(process, t))))
    better = axis.step(process, past.x, clean, known, axis.mean(ends, rule, process, past.t, t), past.t, t)
    return better, x0 + (better - x) / level(process, t).alpha if axis.noise else x0

"""Solvers of the reverse-time SDE of a Gaussian process: Euler-ancestral, Euler-Maruyama, DPM-Solver++(SDE).

The contract: in ``y = x / alpha`` and ``u = sigma / alpha`` the SDE of every schedule reads, in falling ``u``,
``dy = (y - x0) d(u^2) / u^2 + sqrt(-d(u^2)) dw`` with ``x0`` the belief's point (Song et al. 2021, eq. 6; Karras et al.
2022, eq. 6).  Its exact solution for a constant ``x0`` is the bridge of a point belief; ``eta`` scales the noise
between the ODE (0) and the SDE (1).  Noise is the space's own, coefficients are python floats, a step to ``sigma = 0``
returns the belief's point, and every grid from 1 to 0 is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, final

from torch import Tensor

from sfumato.core import RNG, Carry, Law, Process
from sfumato.errors import Refusal
from sfumato.laws import Dirac, Normal
from sfumato.samplers.ancestral import require_gaussian, require_rng
from sfumato.schedules import at, log_snr


def noisy_step(
    process: Process[Any], x: Tensor, x0: Tensor, t: float, s: float, eta: float, s_noise: float, rng: RNG | None
) -> Tensor:
    """A draw of the bridge to ``s`` for a constant ``x0``, its noise scaled by ``s_noise``; no draw at ``eta = 0``."""
    law: Any = process.bridge(x, Dirac(x0), t, s, eta)
    if isinstance(law, Normal) and s_noise != 1:
        law = replace(law, var=law.var * s_noise**2)
    drawn: Tensor = law.point() if rng is None else law.draw(rng)
    return drawn


def require_noise(eta: float, s_noise: float) -> None:
    """Raises :class:`Refusal` for a negative or infinite share of noise."""
    if not 0 <= eta < math.inf:
        raise Refusal(f"eta={eta}: the share of fresh noise is 0 (the ODE) or more (1 is the SDE)")
    if not 0 <= s_noise < math.inf:
        raise Refusal(f"s_noise={s_noise}: the scale of the noise is 0 or more (1 is the SDE's own)")


@final
@dataclass(frozen=True)
class EulerAncestral:
    """Ancestral steps by Euler's method (k-diffusion's ``sample_euler_ancestral``, for every schedule).

    Down to ``u_down`` by the ODE, then up again by fresh noise ``u_up = min(u_s, eta sqrt(u_s^2 (u_t^2 - u_s^2)) /
    u_t)`` with ``u_down^2 + u_up^2 = u_s^2`` (Song et al. 2021, eq. 47).  Up to ``eta = 1`` that is DDIM's bridge at
    the belief's point; beyond, the noise grows until nothing of ``x`` is kept.  ``s_noise`` scales the noise alone.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_noise(self.eta, self.s_noise)

    @property
    def order(self) -> int | None:
        """1 where deterministic."""
        return None if self.eta else 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, one draw."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        source = require_rng(rng, self) if self.eta else None
        kept = math.exp(log_snr(process.schedule, t) / 2 - log_snr(process.schedule, s) / 2)  # u_s / u_t, 0 at the ends
        eta = min(self.eta, 1 / math.sqrt(max(1 - kept**2, 1e-12)))
        return noisy_step(process, x, q.point(), t, s, eta, self.s_noise, source), None


@final
@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE (Song et al. 2021, eq. 6 and appendix D), the prior's own drift solved exactly.

    In states of unit scale, ``r = sqrt(alpha^2 + sigma^2)``, every schedule is an Ornstein-Uhlenbeck process, and so is
    its reverse but for the force ``g^2 (x + score)``, which vanishes at the prior.  With ``a = alpha_t r_s / (alpha_s
    r_t)`` the step is ``x_s = a x + 2 (1 - a) (x + score) + sqrt(1 - a^2) z``: the textbook's to first order in the
    step, but finite where ``alpha = 0`` (the drift is infinite there) and never unstable, since ``x`` is kept with a
    factor in [0, 1].  Weak order 1.
    """

    order: ClassVar[int | None] = None
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, one draw."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        source = require_rng(rng, self)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at(process.schedule, t), at(process.schedule, s)
        if sigma_s == 0:
            return q.point(), None
        r_t, r_s = math.hypot(alpha_t, sigma_t), math.hypot(alpha_s, sigma_s)
        a = alpha_t * r_s / (alpha_s * r_t)
        score = (alpha_t * q.point() - x) * (r_t / sigma_t**2)
        mean = (2 - a) / r_t * x + 2 * (1 - a) * score
        noise = process.space.noise(x, source)
        return r_s * (mean + math.sqrt(1 - a * a) * noise), None


class Past(NamedTuple):
    """What DPM-Solver++(SDE) remembers: the last belief's point and its lambda."""

    x0: Tensor
    lam: float


@final
@dataclass(frozen=True)
class DPMSolverPPSDE:
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al. 2022b, section 3.4; k-diffusion's ``sample_dpmpp_2m_sde``).

    The belief's point is extrapolated in ``lambda`` from the last two evaluations, then the linear SDE is solved
    exactly: ``x_s = (sigma_s / sigma_t) e^(-eta h) x + alpha_s (1 - e^(-(1 + eta) h)) x0 + sigma_s sqrt(1 - e^(-2 eta
    h)) z`` with ``h = lambda_s - lambda_t``.  That is a bridge, and is taken as such.  ``eta = 0`` is DPM-Solver++(2M).
    As there, the first step, a step from ``alpha = 0`` and the step to ``sigma = 0`` are not extrapolated.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    takes: ClassVar[str] = "belief"
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_noise(self.eta, self.s_noise)

    @property
    def order(self) -> int | None:
        """2 where deterministic."""
        return None if self.eta else 2

    def start(self, model: Any, process: Process[Any], grid: list[float]) -> Carry:
        """Refuses any process but a Gaussian one; the history is empty."""
        require_gaussian(process, self)
        return None

    def step(
        self, model: Any, process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """One evaluation, one draw."""
        return self(model(x, t), process, x, t, s, carry, rng)

    def __call__(
        self, q: Law[Any], process: Any, x: Tensor, t: float, s: float, carry: Carry, rng: RNG | None
    ) -> tuple[Tensor, Carry]:
        """The update for a belief already formed."""
        source = require_rng(rng, self) if self.eta else None
        x0 = q.point()
        lam, lam_next = log_snr(process.schedule, t) / 2, log_snr(process.schedule, s) / 2
        h = lam_next - lam
        bridge_eta = self._bridge_eta(h)
        if math.isinf(lam):
            return noisy_step(process, x, x0, t, s, bridge_eta, self.s_noise, source), None
        used = x0
        if carry is not None and not math.isinf(lam_next):
            used = x0 + (x0 - carry.x0) * (h / (2 * (lam - carry.lam)))
        return noisy_step(process, x, used, t, s, bridge_eta, self.s_noise, source), Past(x0, lam)

    def _bridge_eta(self, h: float) -> float:
        """The ``eta`` of the bridge whose fresh share ``eta^2 (1 - e^(-2h))`` is the SDE's ``1 - e^(-2 eta h)``."""
        if self.eta == 0 or math.isinf(h):
            return min(self.eta, 1.0) if self.eta == 0 else 1.0
        return math.sqrt(math.expm1(-2 * self.eta * h) / math.expm1(-2 * h))

"""Objectives for tokens: D3PM, MDLM, score entropy, discrete flow matching; and the bound that evaluates them all.

The contract: an objective is ``(denoiser, x0, t, cond, rng, eps, end) -> [b]`` in **nats per token**, the mean over a
sample's real sites; :func:`bits` divides by ``log 2``.  With ``t`` uniform on (0, 1] the expected value of every bound
below (``MDLM``, ``ScoreEntropy``, ``DiscreteFlow("kl")``, ``D3PM`` with ``auxiliary=0``) is the negative ELBO without
the prior's term, which vanishes where ``alpha(1) = 0``.

``eps`` are uniform numbers in [0, 1), one a site, in place of a draw from ``rng``: the same numbers give the same
``x_t`` by the inverse cdf, so that a validation loss sees fixed noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import RNG, Cond, Denoiser, Law, Process, Time
from sfumato.denoisers.tokens import at_least_float32
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.processes.bound import Bound, step_kl
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import masks
from sfumato.randomness import Uniforms, as_rng
from sfumato.training.times import EDGE
from sfumato.trees import cast, counted


@runtime_checkable
class StatesCost(Protocol):
    """A head that knows ``-log p(x0 | x_t)`` from the raw output, without writing its belief out."""

    def cost(self, raw: Tensor, x0: Tensor, x_t: Tensor, t: Time) -> Tensor | None:
        """Nats ``[b, ...]`` of every site; None where only the belief itself tells."""
        ...


@runtime_checkable
class StatesEntropy(Protocol):
    """A head whose raw output states a concrete score of its own, apart from its belief."""

    def entropy(self, raw: Tensor, x0: Tensor, x_t: Tensor) -> Tensor:
        """The score entropy ``[b, ...]`` of every site over the rate of unmasking."""
        ...


def bits(nats: Any) -> Any:
    """Nats in bits."""
    return nats / math.log(2)


def _noised(process: Any, x0: Tensor, t: Time, rng: Any, eps: Tensor | None, end: Tensor | None) -> Tensor:
    if rng is None and eps is None:
        raise Refusal("a loss draws tokens but rng is None; pass a Stream, an int seed, or eps: uniforms in [0, 1)")
    source: RNG = as_rng(rng) if eps is None else Uniforms(eps)
    found: Tensor = process.noised(x0, t, source, end)
    return found


def _sum(process: Any, terms: Tensor) -> Tensor:
    return counted(terms, process.space.sites(terms))


def _cost(denoiser: Any, x0: Tensor, x_t: Tensor, t: Time, cond: Cond | None) -> Tensor:
    """``process.loss`` of the belief, ``[b]``: from the raw output where the head knows how."""
    process, raw = denoiser.head.process, at_least_float32(denoiser.raw(x_t, t, cond))
    terms = denoiser.head.cost(raw, x0, x_t, t) if isinstance(denoiser.head, StatesCost) else None
    found: Tensor = process.loss(denoiser.head(raw, x_t, t), x0, x_t, t) if terms is None else _sum(process, terms)
    return found


def _one_rate(process: Any) -> bool:
    """Whether all masked sites, and they alone, come back at one rate, that of ``Jump.unmasking``: not by blocks."""
    return isinstance(process, Jump) and masks(process.kernel)


def _costs_alone(denoiser: Any) -> bool:
    """Whether every bound is a weight times the cost of masked sites."""
    return _one_rate(denoiser.head.process) and isinstance(denoiser.head, StatesCost)


def _unmasked(process: Any, t: Tensor, s: Tensor) -> Tensor:
    """The share of masked sites that a step from ``t`` to ``s`` shows, ``[b]``."""
    later, earlier = process.signal(t), process.signal(s)
    found: Tensor = (earlier - later) / (1 - later)
    return found


def _per_token(process: Any, loss: Tensor, x0: Tensor) -> Tensor:
    found: Tensor = loss / process.space.dof(x0).to(loss).clamp(min=1)
    return found


def _last_step(t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The step ``(k - 1) / T, k / T`` that holds ``t``, both ``[b]`` float64."""
    k = (t.double() * steps - 1e-9).ceil().clamp(1, steps)
    return k / steps, (k - 1) / steps


@final
@dataclass(frozen=True)
class D3PM:
    """``T (KL(q(x_s|x_t,x0) || p(x_s|x_t)) + auxiliary * cross-entropy)`` at the step that holds ``t``, any kernel.

    Austin et al. 2021, eq. 5: the variational bound of ``steps`` steps, one of them at a time, plus ``lambda`` times
    ``-log p(x0 | x_t)`` (their images: .001; 0 is the bound alone).  Raises :class:`Refusal` for fewer than one step or
    a negative weight.
    """

    steps: int = 1000
    auxiliary: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.auxiliary >= 0:
            raise Refusal(f"steps={self.steps}, auxiliary={self.auxiliary}: need a step and a weight of at least 0")

    def __call__(
        self,
        denoiser: Any,
        x0: Int[Tensor, "b ..."],
        t: Float[Tensor, " b"],
        cond: Cond | None = None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss ``[b]`` in nats per token."""
        process = denoiser.head.process
        t, s = _last_step(t, self.steps)
        x_t = _noised(process, x0, t, rng, eps, end)
        if _costs_alone(denoiser):
            cost = _cost(denoiser, x0, x_t, t, cond)
            total = (cast(_unmasked(process, t, s), cost) + self.auxiliary) * cost
        else:
            q = denoiser(x_t, t, cond)
            total = step_kl(process, q, x0, x_t, t, s) + self.auxiliary * process.loss(q, x0, x_t, t)
        return _per_token(process, self.steps * total, x0)


@final
@dataclass(frozen=True)
class MDLM:
    """``-alpha' / (1 - alpha)`` times the cross-entropy of masked sites: the continuous-time NELBO (Sahoo et al. 2024,
    section 3); with ``steps`` the bound of that many steps, ``T (alpha_s - alpha_t) / (1 - alpha_t)``.

    Absorbing kernels only, of all sites at once: raises :class:`Refusal` for others, and for fewer than one step.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise Refusal(f"steps={self.steps}: a bound has at least one step; None is continuous time")

    def __call__(
        self,
        denoiser: Any,
        x0: Int[Tensor, "b ..."],
        t: Float[Tensor, " b"],
        cond: Cond | None = None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss ``[b]`` in nats per token."""
        process = denoiser.head.process
        if not _one_rate(process):
            raise Refusal(
                "MDLM weighs masked tokens of an absorbing Jump; use ScoreEntropy or D3PM, or absorbing(size)"
            )
        if self.steps is None:
            weight = process.unmasking(t)
        else:
            t, s = _last_step(t, self.steps)
            weight = self.steps * _unmasked(process, t, s)
        x_t = _noised(process, x0, t, rng, eps, end)
        loss = _cost(denoiser, x0, x_t, t, cond)
        return _per_token(process, cast(weight, loss) * loss, x0)


@final
@dataclass(frozen=True)
class ScoreEntropy:
    """The denoising score entropy of SEDD (Lou et al. 2024, section 3): ``Jump.rate`` of the belief, for any kernel.

    A head that states a score of its own (:class:`~sfumato.denoisers.tokens.Score`) is trained on that score as it is;
    by blocks, on its belief.
    """

    def __call__(
        self,
        denoiser: Any,
        x0: Int[Tensor, "b ..."],
        t: Float[Tensor, " b"],
        cond: Cond | None = None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss ``[b]`` in nats per token."""
        process = denoiser.head.process
        x_t = _noised(process, x0, t, rng, eps, end)
        if isinstance(denoiser.head, StatesEntropy) and _one_rate(process):
            raw = at_least_float32(denoiser.raw(x_t, t, cond))
            entropy = _sum(process, denoiser.head.entropy(raw, x0, x_t))
            return _per_token(process, cast(process.unmasking(t), entropy) * entropy, x0)
        if _costs_alone(denoiser):
            cost = _cost(denoiser, x0, x_t, t, cond)
            return _per_token(process, cast(process.unmasking(t), cost) * cost, x0)
        return _per_token(process, process.rate(denoiser(x_t, t, cond), x0, x_t, t), x0)


@final
@dataclass(frozen=True)
class DiscreteFlow:
    """Discrete flow matching: ``form="cross-entropy"`` is ``-log p(x0 | x_t)`` unweighted (Gat et al. 2024; Campbell
    et al. 2024); ``"kl"`` is the generalised KL of the jump rates, a bound (Shaul et al. 2024):
    ``-alpha'/(1 - alpha) (1[x_t = x0] - p(x_t) - 1[x_t != x0] log p(x0))`` where the kernel redraws.

    Raises :class:`Refusal` for another form.
    """

    form: str = "cross-entropy"

    def __post_init__(self) -> None:
        if self.form not in ("cross-entropy", "kl"):
            raise Refusal(f"form={self.form!r}: discrete flow matching has 'cross-entropy' and 'kl'")

    def __call__(
        self,
        denoiser: Any,
        x0: Int[Tensor, "b ..."],
        t: Float[Tensor, " b"],
        cond: Cond | None = None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss ``[b]`` in nats per token."""
        process = denoiser.head.process
        x_t = _noised(process, x0, t, rng, eps, end)
        if self.form == "cross-entropy":
            return _per_token(process, _cost(denoiser, x0, x_t, t, cond), x0)
        return _per_token(process, flow_divergence(process, denoiser(x_t, t, cond), x0, x_t, t), x0)


def flow_divergence(
    process: Jump, q: Law[Tensor], x0: Int[Tensor, "b ..."], x_t: Int[Tensor, "b ..."], t: Time
) -> Float[Tensor, " b"]:
    """``sum over y of u_q(y) - u(y) + u(y) log(u(y) / u_q(y))`` between the flow's jump rates (``eta = 0``) of a belief
    and of the truth: the KL of their paths per unit of time in nats, ``[b]``."""
    stated = process.reverse_rates(q, x_t, t, eta=0.0)
    true = process.reverse_rates(Dirac(x0), x_t, t, eta=0.0)
    here = true > 0
    gap = torch.where(here, true, 1.0).log() - torch.where(here, stated, 1.0).log()
    terms = (stated - true + torch.where(here, true * gap, 0.0)).sum(-1)
    return counted(terms, process.space.sites(terms))


def nelbo(
    denoiser: Denoiser[Tensor],
    process: Process[Any],
    x0: Int[Tensor, "b ..."],
    rng: Any,
    draws: int = 1,
    cond: Cond | None = None,
    start: float = 0.0,
) -> Bound:
    """The continuous-time negative ELBO of every sample in nats: an unbiased estimate of ``draws`` times a sample.

    ``prior = KL(q(x_1|x0) || prior)``; ``diffusion``: one row a draw, whose sum estimates the integral of ``rate``
    from ``start`` to 1 (times spread evenly over draws, from an offset of the sample's own); ``reconstruction =
    -log p(x0 | x_start)``, nothing at ``start = 0``. ``total`` bounds ``-log p(x0)`` from above; ``bits(total /
    L)`` are bits per token. Raises :class:`Refusal` for fewer than one draw and ``start`` outside [0, 1).
    """
    if draws < 1 or not 0 <= start < 1:
        raise Refusal(f"draws={draws}, start={start}: need a draw at least and a start in [0, 1)")
    rng = as_rng(rng)
    offset = rng.uniform((len(x0),)).double()
    rows = []
    for draw in range(draws):
        t = (start + (1 - start) * (draw + offset) / draws).clamp(min=EDGE)
        x_t = process.marginal(x0, t).draw(rng)
        rows.append((1 - start) / draws * process.rate(denoiser(x_t, t, cond), x0, x_t, t))
    prior = process.marginal(x0, 1.0).kl(process.prior(x0))
    reconstruction = torch.zeros_like(prior)
    if start > 0:
        x_t = process.marginal(x0, start).draw(rng)
        reconstruction = process.loss(denoiser(x_t, start, cond), x0, x_t, start)
    return Bound(prior, torch.stack(rows), reconstruction)

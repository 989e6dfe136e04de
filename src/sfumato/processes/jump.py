"""The jump process on tokens: every site forgets its token by one kernel, independently of the others.

The contract: ``alpha(t)`` of the schedule is the signal a site has kept (the chance that its token is untouched, where
the kernel redraws), so ``marginal = P(alpha_t)[x0]``, ``forward = P(alpha_t / alpha_s)[x_s]`` and
``bridge[x_s] = sum over x0 of q(x0) P(alpha_s)[x0, x_s] P(alpha_t/alpha_s)[x_s, x_t] / P(alpha_t)[x0, x_t]``, in closed
form for Dirac and Categorical beliefs (Austin et al. 2021, eq. 3-4).  ``rate`` is the score entropy (Lou et al. 2024,
section 3; Campbell et al. 2022), whose absorbing case is MDLM's weighted cross-entropy (Sahoo et al. 2024, section 3).

A D3PM chain of T steps is this law read at ``t = k / T``; :func:`survival` makes the schedule of given jump
probabilities.  A belief is first conditioned on what ``x_t`` leaves possible: an unmasked token is its own ``x0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import RNG, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Categorical, Dirac, Through
from sfumato.processes.kernels import Kernel, beside, log_add, masks, numbers, one_hot_log, safe_log, widest
from sfumato.schedules import ZERO_ALPHA, Schedule, Table, at, rates, wide
from sfumato.spaces.tokens import Tokens
from sfumato.trees import counted, site_uniforms

#: Tokens ``[b, ...]`` and numbers for every token of the vocabulary ``[b, ..., K]``.
State = Int[Tensor, "b ..."]


def survival(jumps: Any) -> Table:
    """The schedule of a T-step chain whose step ``k`` redraws a token with chance ``jumps[k - 1]`` (D3PM's ``beta_k``).

    ``alpha(k / T) = prod over i <= k of (1 - jumps[i])``, ``-log(alpha)`` linear between.  Raises :class:`Refusal`
    unless every chance lies strictly between 0 and 1; absorbing chains that end in 1 / 1 are the schedule 'flow'.
    """
    left = 1 - numbers(jumps, "jump chances")
    if left.ndim != 1 or len(left) == 0 or not bool(((left > 0) & (left < 1)).all()):
        raise Refusal("jump chances must lie strictly between 0 and 1; for D3PM's absorbing 1/(T-k+1) use 'flow'")
    return Table.from_betas(1 - left**2, "survival")  # a table keeps alpha^2


@final
@dataclass(frozen=True)
class Jump:
    """Tokens destroyed by ``kernel`` along ``schedule`` (its ``alpha``); states are int64 ``[b, ...]``.

    ``space``: :class:`~sfumato.spaces.tokens.Tokens`, by default all tokens of the kernel without padding, or the
    :class:`~sfumato.spaces.symmetric_edges.SymmetricEdges` of a vocabulary, each of which is drawn and counted once.
    Raises :class:`Refusal` where the space has no vocabulary, another one, or pads with the mask, where the schedule
    destroys nothing (``alpha = 1``), and for an absorbing kernel whose schedule leaves a token unmasked at ``t = 1``:
    its bound would be infinite.
    """

    kernel: Kernel
    schedule: Schedule
    space: Any = None

    def __post_init__(self) -> None:
        if self.space is None:
            object.__setattr__(self, "space", Tokens(self.kernel.size))
        vocabulary = getattr(self.space, "size", None)
        if vocabulary is None:
            raise Refusal(
                f"{type(self.space).__name__} holds numbers, and a Jump moves tokens; give Tokens or SymmetricEdges of "
                f"size={self.kernel.size}"
            )
        if vocabulary != self.kernel.size:
            raise Refusal(
                f"a space of {vocabulary} tokens but a kernel of {self.kernel.size}; "
                "give both one vocabulary (a mask token counts)"
            )
        if getattr(self.space, "padded", False) and self.kernel.mask == 0:
            raise Refusal("padding holds token 0, which is this kernel's mask; give the mask another token")
        left = at(self.schedule, 1.0)[0]
        if left >= 0.999:
            raise Refusal(f"a schedule with alpha(1)={left:g} destroys no token; use 'flow' or 'cosine-continuous'")
        if left > ZERO_ALPHA and bool((self.kernel.limit == 0).any()):
            raise Refusal(
                f"a schedule with alpha(1)={left:.2g} leaves tokens unmasked at t=1; "
                "use 'flow', 'cosine-continuous' or 'zero-terminal' with this kernel"
            )

    def signal(self, t: Time, x: Tensor | None = None) -> Any:
        """``alpha(t)``, float64, that broadcasts against ``x``: 1 at the data, exactly 0 where it is rounding error."""
        alpha = at(self.schedule, t, None if x is None else wide(x))[0]
        if torch.is_tensor(alpha):
            return torch.where(alpha <= ZERO_ALPHA, 0.0, alpha)
        return alpha if alpha > ZERO_ALPHA else 0.0

    def _loss_of_signal(self, t: Time, x: Tensor) -> tuple[Any, Any]:
        """``(alpha, -d alpha/dt)`` that broadcast against ``x``; alpha is held above 0, so that rates stay finite."""
        alpha, _, slope, _ = rates(self.schedule, t, wide(x))
        if not torch.is_tensor(alpha):
            return max(alpha, ZERO_ALPHA), -slope
        return beside(torch.clamp(alpha, min=ZERO_ALPHA), x), beside(-slope, x)

    def unmasking(self, t: Time, x: Tensor | None = None) -> Any:
        """``-alpha' / (1 - alpha)``: the rate at which a token that is gone comes back; a float or float64 tensor that
        broadcasts against ``x``."""
        alpha, _, slope, _ = rates(self.schedule, t, None if x is None else wide(x))
        gone = torch.clamp(1 - alpha, min=ZERO_ALPHA) if torch.is_tensor(alpha) else max(1 - alpha, ZERO_ALPHA)
        return -slope / gone

    def _law(self, logw: Tensor) -> Categorical:
        return Categorical(logw.log_softmax(-1), self.space)

    def _logs(self, q: Law[Tensor]) -> Tensor:
        """The logarithm of a Dirac or Categorical belief, ``[b, ..., K]``."""
        logq = one_hot_log(q.x, self.kernel.size, widest(q.x)) if isinstance(q, Dirac) else _logp(q)
        if logq.shape[-1] != self.kernel.size:
            raise Refusal(f"a belief over {logq.shape[-1]} tokens but a kernel of {self.kernel.size}; they must agree")
        return logq

    def condition(self, q: Law[Tensor], x_t: State, t: Time) -> Categorical:
        """The belief without what ``x_t`` rules out, normalised: an unmasked token is its own ``x0``.

        A belief that gives no mass to anything possible is replaced by no knowledge at all.
        """
        mask = self.kernel.mask
        if mask is None or not masks(self.kernel):
            logq, _ = self._weights(q, x_t, self.signal(t, x_t))
        else:
            logq = self._logs(q)
            lost = (logq == -math.inf).all(-1, keepdim=True)
            shown = one_hot_log(x_t, self.kernel.size, logq.dtype)
            logq = torch.where((x_t == mask)[..., None], torch.where(lost, 0.0, logq), shown)
        return Categorical(logq.log_softmax(-1), self.space)

    def _weights(self, q: Law[Tensor], x_t: Tensor, alpha: Any) -> tuple[Tensor, Tensor]:
        """The logarithms of the belief and of ``P(alpha)[x0, x_t]`` for every ``x0``, made compatible."""
        logq = self._logs(q)
        reach = self._columns(x_t, alpha, logq.dtype)
        ruled_out = reach == -math.inf
        lost = (ruled_out | (logq == -math.inf)).all(-1, keepdim=True)
        return torch.where(ruled_out, -math.inf, torch.where(lost, 0.0, logq)), reach

    def _columns(self, x_t: Tensor, r: Any, dtype: torch.dtype) -> Tensor:
        """The kernel's columns; a token that nothing can have become (a prompt at ``t = 1``) has been itself."""
        logs = self.kernel.columns(x_t, r, dtype)
        if not bool((self.kernel.limit == 0).any()):
            return logs
        alone = (logs == -math.inf).all(-1, keepdim=True)
        return torch.where(alone, one_hot_log(x_t, self.kernel.size, dtype), logs)

    def _explained(self, q: Law[Tensor], x_t: Tensor, alpha: Any) -> Tensor:
        """``log(q(x0) / P(alpha)[x0, x_t])`` of the conditioned belief, ``-inf`` where ``x_t`` rules ``x0`` out."""
        logq, reach = self._weights(q, x_t, alpha)
        logq = logq.log_softmax(-1)
        return torch.where(reach == -math.inf, -math.inf, logq - torch.where(reach == -math.inf, 0.0, reach))

    def prior(self, like: State) -> Categorical:
        """The kernel's limit law at every site, shaped like ``like``."""
        return Categorical(safe_log(beside(self.kernel.limit, like)).expand(*like.shape, -1), self.space)

    def marginal(self, x0: State, t: Time, end: State | None = None) -> Categorical:
        """``q(x_t | x0) = P(alpha_t)[x0]``; with ``end``, a given draw of the prior, each site is still ``x0`` with
        chance ``alpha_t`` and already ``end`` else (the mixture path of discrete flow matching).

        Raises :class:`Refusal` for an ``end`` with a RateMatrix kernel.
        """
        alpha = self.signal(t, x0)
        if end is not None:
            return self._law(self.kernel.mix(x0, end, alpha))
        return self._law(self.kernel.rows(x0, alpha, widest(x0)))

    def noised(self, x0: State, t: Time, rng: RNG, end: State | None = None) -> State:
        """A draw of ``marginal(x0, t, end)`` from the same uniform numbers, which never writes the law out: training
        needs no ``K`` numbers a site for it."""
        if end is not None:
            return self.marginal(x0, t, end).draw(rng)
        u = site_uniforms(self.space, tuple(x0.shape), rng).to(x0.device)
        drawn: Tensor = self.space.project(self.kernel.redraw(x0, self.signal(t, x0), u))
        return drawn

    def forward(self, x_s: State, s: Time, t: Time) -> Categorical:
        """``q(x_t | x_s) = P(alpha_t / alpha_s)[x_s]`` for ``s <= t``."""
        return self._law(self.kernel.rows(x_s, _ratio(self.signal(t, x_s), self.signal(s, x_s)), widest(x_s)))

    def bridge(self, x_t: State, q: Law[Tensor], t: Time, s: Time, eta: float = 1.0) -> Law[Tensor]:
        """The law of ``x_s`` given ``x_t`` and the belief ``q`` over ``x0``: a Categorical.

        ``eta = 1`` is the posterior of the Markov chain.  ``eta = 0`` is the maximal coupling of ``x_s`` and ``x_t``
        given ``x0``: it lands on the same marginal by the fewest jumps, straight to ``x0`` where the kernel redraws
        (discrete flow matching without stochasticity).  Between them ``eta`` is the chance of the first.  They are one
        law for an absorbing kernel.  Beliefs that are neither Dirac nor Categorical are drawn from first; raises
        :class:`Refusal` for ``eta`` outside [0, 1] (remasking belongs to samplers).
        """
        if not 0 <= eta <= 1:
            raise Refusal(f"eta={eta}: the share of the chain's own jumps lies in [0, 1]; more noise is a sampler's")
        if not isinstance(q, Dirac | Categorical):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, eta))
        later, earlier = self.signal(t, x_t), self.signal(s, x_t)
        laws = []
        if masks(self.kernel):
            eta = 0.0  # both are one law, and this way is the shorter
        if eta > 0:
            origin = self.kernel.push(self._explained(q, x_t, later), earlier)
            laws.append(origin + self._columns(x_t, _ratio(later, earlier), origin.dtype))
        if eta < 1:
            laws.append(self.kernel.agree(x_t, self.condition(q, x_t, t).logp, later, earlier))
        if len(laws) == 1:
            return self._law(laws[0])
        chain, few = (law.log_softmax(-1) for law in laws)
        return self._law(log_add(chain + math.log(eta), few + math.log(1 - eta)))

    def ratio(self, q: Law[Tensor], x_t: State, t: Time) -> Float[Tensor, "b ... k"]:
        """The concrete score ``p_t(y) / p_t(x_t)`` that a belief implies, ``[b, ..., K]``, 1 at ``y = x_t``."""
        return self._log_ratio(q, x_t, self._loss_of_signal(t, x_t)[0]).exp()

    def _log_ratio(self, q: Law[Tensor], x_t: Tensor, alpha: Any) -> Tensor:
        wide_q = q if isinstance(q, Dirac) else Categorical(beside(_logp(q), x_t), self.space)
        return self.kernel.push(self._explained(wide_q, x_t, alpha), alpha)

    def reverse_rates(
        self, q: Law[Tensor], x_t: State, t: Time, eta: float = 1.0, noise: float = 0.0
    ) -> Float[Tensor, "b ... k"]:
        """The rates ``[b, ..., K]`` (0 at ``x_t``) at which ``x_t`` jumps to ``y`` per unit of time backwards.

        ``eta`` as in :meth:`bridge`, of which this is the limit: 1 reverses the chain, ``R[y, x_t] p_t(y) / p_t(x_t)``;
        0 is discrete flow matching.  ``noise`` adds jumps of the kernel forwards at that rate and their reversal, which
        together leave every ``p_t`` as it is (Campbell et al. 2024: remasking for an absorbing kernel).
        Raises :class:`Refusal` for ``eta`` outside [0, 1] and for negative ``noise``.
        """
        if not (0 <= eta <= 1 and noise >= 0):
            raise Refusal(f"eta={eta}, noise={noise}: need eta in [0, 1] and noise of at least 0")
        alpha, slope = self._loss_of_signal(t, x_t)
        pace: Any = _last(slope / alpha)
        flow: Any = 0.0
        reversal = self.kernel.inflow(x_t) * self._log_ratio(q, x_t, alpha).exp()
        if eta < 1:
            logq = self.condition(q, x_t, t).logp
            flow = (1 - eta) * _last(slope) * self.kernel.agreeing_rates(x_t, logq, alpha)
        found: Tensor = flow + (eta * pace + noise) * reversal + noise * self.kernel.outflow(x_t)
        return found

    def loss(self, q: Law[Tensor], x0: State, x_t: State, t: Time) -> Float[Tensor, " b"]:
        """``-log q(x0)`` of the conditioned belief in nats summed over sites, ``[b]``, finite at both ends.

        A site that an absorbing kernel has left unmasked costs nothing.
        """
        return self.condition(q, x_t, t).nll(x0)

    def rate(self, q: Law[Tensor], x0: State, x_t: State, t: Time) -> Float[Tensor, " b"]:
        """The integrand of the continuous-time ELBO in nats, ``[b]``: :meth:`score_entropy` at the ratios that
        the belief implies."""
        return self._entropy(self._log_ratio(q, x_t, self._loss_of_signal(t, x_t)[0]), x0, x_t, t)

    def score_entropy(self, score: Float[Tensor, "b ... k"], x0: State, x_t: State, t: Time) -> Float[Tensor, " b"]:
        """``sum over y of rate(y -> x_t) (s_y - r_y + r_y log(r_y / s_y))`` at a stated concrete score ``[b, ..., K]``.

        ``r = q(y | x0) / q(x_t | x0)``; the entry at ``x_t`` is not read (Lou et al. 2024).  ``[b]``.
        """
        return self._entropy(safe_log(beside(score, x_t)), x0, x_t, t)

    def _entropy(self, log_s: Tensor, x0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        alpha, slope = self._loss_of_signal(t, x_t)
        log_r = self._log_ratio(Dirac(x0), x_t, alpha)
        speed = self.kernel.inflow(x_t) * _last(slope / alpha)
        known = (log_r > -math.inf) & (speed > 0)
        gap = torch.where(known, log_s, 0.0) - torch.where(known, log_r, 0.0)
        # r (s/r - 1 - log(s/r)), whose difference loses no digits where s is near r
        against = torch.where(known, log_r, 0.0).exp() * (torch.expm1(gap) - gap)
        terms = torch.where(known, against, torch.where(speed > 0, log_s, -math.inf).exp()) * speed
        total = terms.sum(-1)
        return counted(total, self.space.sites(total))


def _logp(q: Any) -> Tensor:
    """The log-probabilities of a categorical belief; raises :class:`Refusal` for any other law."""
    if not isinstance(q, Categorical):
        raise Refusal(f"a {type(q).__name__} belief has no probability for every token; give a Dirac or a Categorical")
    return q.logp


def _ratio(later: Any, earlier: Any) -> Any:
    """``alpha_t / alpha_s`` with ``0 / 0 = 0``: from the prior on nothing is left to keep."""
    if torch.is_tensor(later) or torch.is_tensor(earlier):
        earlier = torch.as_tensor(earlier, dtype=torch.float64)
        return torch.where(earlier == 0, 0.0, later / torch.where(earlier == 0, 1.0, earlier)).clamp(max=1)
    return min(later / earlier, 1.0) if earlier else 0.0


def _last(value: Any) -> Any:
    return value[..., None] if torch.is_tensor(value) and value.ndim else value

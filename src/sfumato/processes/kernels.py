"""How one token is destroyed: the transition kernels of the jump process.

The contract: a kernel is a semigroup of stochastic matrices indexed by the signal ``r`` that a transition leaves,
``P(r) P(r') = P(r r')``, ``P(1) = I`` and every row of ``P(0)`` the limit law: ``P(r) = exp(-log(r) R)`` with the rate
matrix ``R``.  Where ``R = 1 pi' - I`` (absorbing, uniform, marginal) ``P(r) = r I + (1 - r) 1 pi'`` and every operation
takes O(K) a site; ``r`` is then the chance that a token is left alone.

All laws here are logarithms, ``[b, ..., K]``; ``x`` are tokens ``[b, ...]``; a signal is a float or a tensor that
broadcasts against ``x``.  Sources: D3PM (Austin et al. 2021, section 3.1 and appendix A), SEDD (Lou et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.trees import precise_device

#: A signal: the product of ``1 - jump probability``; a float, or a tensor that broadcasts against the tokens.
Signal = Any


def safe_log(p: Tensor) -> Tensor:
    """``log p`` with ``-inf`` at 0 and no gradient there."""
    return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -math.inf)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """``log(exp a + exp b)`` with finite gradients where both are ``-inf``."""
    top = torch.maximum(a, b).detach()
    top = torch.where(top == -math.inf, 0.0, top)
    return top + safe_log((a - top).exp() + (b - top).exp())


def log_sum(a: Tensor) -> Tensor:
    """``log sum exp a`` over the last axis, kept, with finite gradients where all are ``-inf``."""
    top = a.amax(-1, keepdim=True).detach()
    top = torch.where(top == -math.inf, 0.0, top)
    return top + safe_log((a - top).exp().sum(-1, keepdim=True))


def widest(x: Tensor) -> torch.dtype:
    """The format that laws of the tokens ``x`` are worked out in: float64, or float32 on a device without it."""
    return torch.float64 if precise_device(x) == x.device else torch.float32


def beside(value: Any, x: Tensor) -> Tensor:
    """Numbers where ``x`` is, in its widest format."""
    return torch.as_tensor(value, dtype=None if torch.is_tensor(value) else torch.float64).to(widest(x)).to(x.device)


def against_tokens(r: Signal, x: Tensor) -> Tensor:
    """A signal in the widest format that broadcasts against ``x[..., None]``."""
    value = beside(r, x)
    return value[..., None] if value.ndim else value


def one_hot_log(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """The logarithm of a one-hot law: 0 at ``x``, ``-inf`` elsewhere."""
    return torch.full((*x.shape, size), -math.inf, dtype=dtype, device=x.device).scatter(-1, x[..., None], 0.0)


@runtime_checkable
class Kernel(Protocol):
    """What :class:`~sfumato.processes.jump.Jump` asks of a kernel over ``size`` tokens."""

    @property
    def size(self) -> int:
        """The number of tokens, a mask token included."""
        ...

    @property
    def limit(self) -> Tensor:
        """The law that a token forgets itself into, ``[K]``, float64."""
        ...

    @property
    def mask(self) -> int | None:
        """The one token that every token ends as (absorbing kernels), else None."""
        ...

    def rows(self, x: Tensor, r: Signal, dtype: torch.dtype) -> Tensor:
        """``log P(r)[x, .]``: where the token ``x`` may be later."""
        ...

    def redraw(self, x: Tensor, r: Signal, u: Tensor) -> Tensor:
        """A draw of ``P(r)[x, .]`` by the inverse cdf of uniform numbers ``u``, one a token."""
        ...

    def columns(self, x: Tensor, r: Signal, dtype: torch.dtype) -> Tensor:
        """``log P(r)[., x]``: how likely every earlier token is to have become ``x``."""
        ...

    def push(self, logw: Tensor, r: Signal) -> Tensor:
        """``log(w P(r))`` for weights ``w``, ``[b, ..., K]``."""
        ...

    def agree(self, x_t: Tensor, logq: Tensor, later: Signal, earlier: Signal) -> Tensor:
        """The bridge that keeps as many tokens as any can: the maximal coupling of ``x_s`` (signal ``earlier``) and
        ``x_t`` (signal ``later``) given ``x0``, averaged over the law ``logq`` of ``x0``; a log-law."""
        ...

    def agreeing_rates(self, x_t: Tensor, logq: Tensor, r: Signal) -> Tensor:
        """The rates ``x_t -> y`` of that bridge per unit of signal regained, ``[b, ..., K]``."""
        ...

    def mix(self, x0: Tensor, end: Tensor, r: Signal) -> Tensor:
        """The log-law of a token on its way from ``x0`` to a given ``end``."""
        ...

    def inflow(self, x: Tensor) -> Tensor:
        """``R[., x]`` without its diagonal: the rates at which every other token becomes ``x``."""
        ...

    def outflow(self, x: Tensor) -> Tensor:
        """``R[x, .]`` without its diagonal: the rates at which ``x`` becomes every other token."""
        ...


def numbers(values: Any, what: str) -> Tensor:
    """``values`` as float64; raises :class:`Refusal` for what is no table of numbers (ragged rows, a name, None)."""
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        told = " ".join(repr(values).split())
        told = told if len(told) <= 60 else f"{told[:57]}..."
        raise Refusal(f"{what} of {told}: give numbers, in rows of one length") from None


def _law(p: Any, what: str) -> Tensor:
    values = numbers(p, what)
    total = float(values.sum()) if values.ndim == 1 and len(values) else math.nan
    if not (values.ndim == 1 and bool((values >= 0).all()) and abs(total - 1) < 1e-6):
        raise Refusal(f"{what} must be a law over tokens: non-negative, of sum 1, not of sum {total:.6g}")
    return values / values.sum()


def _only(limit: Tensor) -> int | None:
    top = int(limit.argmax())
    return top if float(limit[top]) == 1 else None


def _off(v: Tensor, x: Tensor) -> Tensor:
    """``v [b, ..., K]`` with 0 at the token ``x``."""
    return v.scatter(-1, x[..., None], 0.0)


@final
@dataclass(frozen=True, eq=False)
class RankOne:
    """Tokens are redrawn from ``pi [K]`` at one rate, ``R = 1 pi' - I``: O(K) a site.

    See :func:`absorbing`, :func:`uniform` and :func:`marginal`.  Two of one ``pi`` are equal.  Raises :class:`Refusal`
    where ``pi`` is no law or has fewer than two tokens.
    """

    pi: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pi", _law(self.pi, "pi"))
        if self.size < 2:
            raise Refusal(f"size={self.size}: a jump process needs at least two tokens")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankOne) and torch.equal(self.pi, other.pi)

    def __hash__(self) -> int:
        return hash(tuple(self.pi.tolist()))

    def __repr__(self) -> str:
        return f"RankOne(size={self.size}, mask={self.mask})"

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.pi)

    @property
    def limit(self) -> Tensor:
        """``pi``."""
        return self.pi

    @property
    def mask(self) -> int | None:
        """The token that has all the mass of ``pi``, if one has."""
        return _only(self.pi)

    def _pi(self, x: Tensor) -> Tensor:
        return beside(self.pi, x)

    def rows(self, x: Tensor, r: Signal, dtype: torch.dtype) -> Tensor:
        """``log(r e_x + (1 - r) pi)``."""
        r, pi = against_tokens(r, x), self._pi(x)
        kept = safe_log(r + (1 - r) * pi[x][..., None]).to(dtype)
        law = safe_log((1 - r) * pi).to(dtype).expand(*x.shape, self.size)
        return law.scatter(-1, x[..., None], kept)

    def redraw(self, x: Tensor, r: Signal, u: Tensor) -> Tensor:
        """``x`` itself over ``r`` and its own share of ``pi``, else a token of ``pi``: O(log K) a token."""
        r, pi, u = beside(r, x), self._pi(x), beside(u, x)
        edges, gone = pi.cumsum(0), 1 - r
        below = gone * (edges - pi)[x]
        other = torch.where(u < below, u, u - r) / torch.where(gone == 0, 1.0, gone)
        last = int(self.pi.nonzero()[-1])
        drawn = torch.searchsorted(edges, other.contiguous(), right=True).clamp(max=last)
        return torch.where((u >= below) & (u < below + r + gone * pi[x]), x, drawn)

    def columns(self, x: Tensor, r: Signal, dtype: torch.dtype) -> Tensor:
        """``log(r e_x + (1 - r) pi_x)``."""
        r, pi = against_tokens(r, x), self._pi(x)[x][..., None]
        law = safe_log((1 - r) * pi).to(dtype).expand(*x.shape, self.size)
        return law.scatter(-1, x[..., None], safe_log(r + (1 - r) * pi).to(dtype))

    def push(self, logw: Tensor, r: Signal) -> Tensor:
        """``log(r w + (1 - r) sum(w) pi)``."""
        r = against_tokens(r, logw[..., 0])
        left, gone = safe_log(r).to(logw), safe_log((1 - r) * self._pi(logw)).to(logw)
        return log_add(left + logw, gone + log_sum(logw))

    def agree(self, x_t: Tensor, logq: Tensor, later: Signal, earlier: Signal) -> Tensor:
        """A token that is not ``x0`` stays with chance ``(1 - earlier) / (1 - later)``, else it turns into ``x0``."""
        later, earlier = against_tokens(later, x_t), against_tokens(earlier, x_t)
        gone = 1 - later
        stay = torch.where(gone == 0, 0.0, (1 - earlier) / torch.where(gone == 0, 1.0, gone))
        moved = safe_log(1 - stay).to(logq) + logq
        held = log_add(moved.gather(-1, x_t[..., None]), safe_log(stay).to(logq).expand(*x_t.shape, 1))
        return moved.scatter(-1, x_t[..., None], held)

    def agreeing_rates(self, x_t: Tensor, logq: Tensor, r: Signal) -> Tensor:
        """``q(y) / (1 - r)``: the conditional velocity of discrete flow matching (Gat et al. 2024, section 3)."""
        return _off(beside(logq.exp(), x_t) / (1 - against_tokens(r, x_t)), x_t)

    def mix(self, x0: Tensor, end: Tensor, r: Signal) -> Tensor:
        """``log(r e_x0 + (1 - r) e_end)``: still ``x0``, or already ``end``."""
        r = against_tokens(r, x0)
        here, there = (one_hot_log(x, self.size, r.dtype) for x in (x0, end))
        return log_add(safe_log(r) + here, safe_log(1 - r) + there)

    def inflow(self, x: Tensor) -> Tensor:
        """``pi_x`` from every other token."""
        return _off(self._pi(x)[x][..., None].expand(*x.shape, self.size), x)

    def outflow(self, x: Tensor) -> Tensor:
        """``pi`` without ``x`` itself."""
        return _off(self._pi(x).expand(*x.shape, self.size), x)


def masks(kernel: Kernel) -> bool:
    """Whether a token is untouched until it is the mask: what is shown is certain, and a mask may have been any token.

    (A rate matrix may end in a mask by way of other tokens.)
    """
    return isinstance(kernel, RankOne) and kernel.mask is not None


def absorbing(size: int, mask: int | None = None) -> RankOne:
    """Tokens turn into the mask token and stay it (D3PM absorbing, MDLM, SEDD absorb).

    ``size`` counts the mask, which is the last token unless given.  Raises :class:`Refusal` for a mask outside.
    """
    mask = size - 1 if mask is None else mask
    if not 0 <= mask < size:
        raise Refusal(f"mask={mask} is no token of a vocabulary of size={size}; give one of 0..{size - 1}")
    return RankOne(torch.nn.functional.one_hot(torch.tensor(mask), size))


def uniform(size: int) -> RankOne:
    """Tokens are redrawn uniformly among ``size`` (multinomial diffusion, Hoogeboom et al. 2021; D3PM uniform)."""
    return RankOne(torch.full((size,), 1 / max(size, 1), dtype=torch.float64))


def marginal(pi: Any) -> RankOne:
    """Tokens are redrawn from ``pi [K]``, most often the data's own frequencies (DiGress, Vignac et al. 2023)."""
    return RankOne(numbers(pi, "pi"))


@final
@dataclass(frozen=True, eq=False)
class RateMatrix:
    """Any rate matrix ``R [K, K]``: ``P(r) = exp(-log(r) R)``, O(K^2) a site; a signal of 1/e is one unit of time.

    Transitions are entrywise accurate (a Taylor series of a non-negative matrix, squared), and remembered for float
    signals.  Two of one ``R`` are equal.  Raises :class:`Refusal` for a matrix that is not square, whose off-diagonal
    entries are negative, whose rows do not sum to zero, or that never forgets where it started (no single limit law).
    """

    rates: Any = field(repr=False)
    _seen: dict[float, Tensor] = field(default_factory=dict, repr=False)
    limit: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rates = numbers(self.rates, "a rate matrix")
        if rates.ndim != 2 or rates.shape[0] != rates.shape[1] or len(rates) < 2:
            raise Refusal(f"a rate matrix of shape {tuple(rates.shape)}; it must be [K, K] with K of at least 2")
        off = rates - rates.diagonal().diag()
        if bool((off < 0).any()) or not bool(torch.isfinite(rates).all()):
            raise Refusal(f"a rate matrix with an off-diagonal entry of {float(off.min()):.3g}; rates are at least 0")
        sums = rates.sum(1)
        wrong = (sums.abs() - 1e-6 * rates.abs().amax(1) > 0).nonzero()  # each row in its own units
        if len(wrong):
            first = int(wrong[0])
            raise Refusal(
                f"row {first} of the rate matrix sums to {float(sums[first]):.3g}, must be 0; "
                "set the diagonal to minus the sum of the rest of the row"
            )
        object.__setattr__(self, "rates", off - off.sum(1).diag())
        _, scales, basis = torch.linalg.svd(self.rates.T)
        if float(scales[-2]) <= 1e-12 * float(scales[0]):
            raise Refusal("a rate matrix that never forgets where it started has no prior; connect its closed classes")
        limit = (basis[-1] / basis[-1].sum()).clamp(min=0)
        limit = torch.where(limit < 1e-15, 0.0, limit)
        object.__setattr__(self, "limit", limit / limit.sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateMatrix) and torch.equal(self.rates, other.rates)

    def __hash__(self) -> int:
        return hash(tuple(self.rates.flatten().tolist()))

    def __repr__(self) -> str:
        return f"RateMatrix(size={self.size})"

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.rates)

    @property
    def mask(self) -> int | None:
        """The token that all others end as, if there is one."""
        return _only(self.limit)

    def matrix(self, r: Signal) -> Tensor:
        """``P(r)``: ``[K, K]`` for a float, ``[n, K, K]`` for ``n`` signals; float64, on the CPU, rows of sum 1."""
        if torch.is_tensor(r) and r.ndim:
            return self._power(r.reshape(-1).cpu().double())
        r = float(r)
        if r not in self._seen:
            if len(self._seen) >= 256:
                self._seen.clear()
            self._seen[r] = self._power(torch.tensor([r], dtype=torch.float64))[0]
        return self._seen[r]

    def _power(self, r: Tensor) -> Tensor:
        """``exp((R + cI) u) exp(-cu)``, ``u = -log r``: a series of non-negative terms loses no digits."""
        pace = float(-self.rates.diagonal().min())
        elapsed = -torch.where(r > 0, r, 1.0).log()[:, None, None]
        halvings = max(0, math.ceil(math.log2(max(float(elapsed.max()) * pace, 1e-9) / 0.5)))
        step = elapsed / 2**halvings
        eye = torch.eye(self.size, dtype=torch.float64)
        grown, total = eye.expand(len(r), -1, -1), eye.expand(len(r), -1, -1)
        for order in range(1, 17):
            grown = grown @ (self.rates + pace * eye) * (step / order)
            total = total + grown
        for _ in range(halvings + 1):
            power = total / total.sum(-1, keepdim=True)
            total = power @ power
        return torch.where(r[:, None, None] > 0, power, self.limit)

    def rows(self, x: Tensor, r: Signal, dtype: torch.dtype) -> Tensor:
        """``log P(r)[x, .]``."""
        return safe_log(_take(self.matrix(r), x)).to(dtype)

    def redraw(self, x: Tensor, r: Signal, u: Tensor) -> Tensor:
        """The inverse cdf of the row of every token."""
        p = _take(self.matrix(r), x)
        edges = p.cumsum(-1)
        drawn = torch.searchsorted(edges, beside(u, x)[..., None] * edges[..., -1:], right=True)[..., 0]
        last = self.size - 1 - (p > 0).flip(-1).to(torch.int8).argmax(-1)
        return torch.minimum(drawn, last)

    def columns(self, x: Tensor, r: Signal, dtype: torch.dtype) -> Tensor:
        """``log P(r)[., x]``."""
        return safe_log(_take(self.matrix(r).mT, x)).to(dtype)

    def push(self, logw: Tensor, r: Signal) -> Tensor:
        """``log(w P(r))``."""
        top = logw.amax(-1, keepdim=True).detach()
        top = torch.where(top == -math.inf, 0.0, top)
        return top + safe_log(_times((logw - top).exp(), self.matrix(r))).to(logw)

    def agree(self, x_t: Tensor, logq: Tensor, later: Signal, earlier: Signal) -> Tensor:
        """Given ``x0`` a token stays with chance ``min(1, P_s[x0, x_t] / P_t[x0, x_t])``, else it is drawn from what
        ``P_s[x0, .]`` has more than ``P_t[x0, .]``."""
        after, before = self.matrix(later), self.matrix(earlier)
        stay = torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0).clamp(max=1)
        held = _take(stay.mT, x_t)
        q = beside(logq.exp(), x_t)
        moved = _times(q * (1 - held), _normalised((before - after).clamp(min=0)))
        here = moved.gather(-1, x_t[..., None]) + (q * held).sum(-1, keepdim=True)
        return safe_log(moved.scatter(-1, x_t[..., None], here)).to(logq)

    def agreeing_rates(self, x_t: Tensor, logq: Tensor, r: Signal) -> Tensor:
        """The limit of :meth:`agree` per unit of signal regained."""
        signal = r.cpu().double() if torch.is_tensor(r) else torch.tensor(r, dtype=torch.float64)
        power = self.matrix(r)
        change = -(power @ self.rates) / (signal.reshape(-1, 1, 1) if signal.ndim else signal)
        leave = (-change).clamp(min=0) / torch.where(power > 0, power, 1.0)
        q = beside(logq.exp(), x_t)
        return _off(_times(q * _take(leave.mT, x_t), _normalised(change.clamp(min=0))), x_t)

    def mix(self, x0: Tensor, end: Tensor, r: Signal) -> Tensor:
        """Refused: only where every token is redrawn from one law is a given end one of its draws."""
        raise Refusal("a given end needs an absorbing, uniform or marginal kernel; a RateMatrix has no such coupling")

    def inflow(self, x: Tensor) -> Tensor:
        """``R[., x]`` off the diagonal."""
        return _off(beside(self.rates, x).T[x], x)

    def outflow(self, x: Tensor) -> Tensor:
        """``R[x, .]`` off the diagonal."""
        return _off(beside(self.rates, x)[x], x)


def _normalised(m: Tensor) -> Tensor:
    total = m.sum(-1, keepdim=True)
    return m / torch.where(total > 0, total, 1.0)


def _take(m: Tensor, x: Tensor) -> Tensor:
    """The rows ``x [b, ...]`` of one matrix ``[K, K]`` or of one matrix a sample ``[b, K, K]``."""
    m = beside(m, x)
    if m.ndim == 2:
        return m[x]
    sample = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1))
    return m.expand(len(x), -1, -1)[sample, x]


def _times(w: Tensor, m: Tensor) -> Tensor:
    """``w m`` for weights ``[b, ..., K]`` and one matrix, or one a sample."""
    product: Tensor = beside(w.flatten(1, -2) if w.ndim > 2 else w[:, None], w) @ beside(m, w)
    return product.reshape(w.shape)


def gaussian_matrix(size: int, beta: float) -> Tensor:
    """One step of D3PM's discretised Gaussian (appendix A.2.3): ``[K, K]``, symmetric and doubly stochastic.

    ``Q_ij`` is ``exp(-4 |i - j|^2 / ((K - 1)^2 beta))`` over its sum across all ``2K - 1`` distances; the diagonal
    takes what is left.  Raises :class:`Refusal` for fewer than two tokens or a ``beta`` not above 0.
    """
    if size < 2 or not beta > 0:
        raise Refusal(f"size={size}, beta={beta}: a discretised Gaussian needs two tokens and a positive beta")
    place = torch.arange(size, dtype=torch.float64)
    reach = torch.arange(1 - size, size, dtype=torch.float64)
    scale = -4 / ((size - 1) ** 2 * beta)
    weight = torch.exp(scale * (place[:, None] - place) ** 2) / torch.exp(scale * reach**2).sum()
    off = weight - weight.diagonal().diag()
    return off + (1 - off.sum(1)).diag()


def discretised_gaussian(size: int, beta: float = 0.02) -> RateMatrix:
    """Ordinal tokens that wander: jumps of D3PM's discretised Gaussian ``Q`` at the rate at which the slowest
    contrast between tokens decays as the signal itself, ``R = (Q - I) / (1 - lambda_2)``.

    Doubly stochastic, so that the limit is uniform.  Raises as :func:`gaussian_matrix`.
    """
    step = gaussian_matrix(size, beta)
    off = step - step.diagonal().diag()
    rates = off - off.sum(1).diag()  # Q - I whose rows sum to 0 to their own last digit
    return RateMatrix(rates / -float(torch.linalg.eigvalsh(rates)[-2]))

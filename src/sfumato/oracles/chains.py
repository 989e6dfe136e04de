"""Sequences of tokens whose law is a table: every posterior, bound and sampler output by enumeration.

The contract: ``p`` is a law over all ``V^L`` sequences; for any :class:`~sfumato.processes.jump.Jump` of at least ``V``
tokens the exact belief (site by site), the exact law of ``x_t``, the exact expected bounds, the exact law of what a
sampler of n steps writes, and the exact law of the continuous-time reverse chain follow by summing over states.
A belief that is exact site by site still misses the correlation between sites: that is what the bounds and the
samplers' laws show.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Cond, Denoiser, Time
from sfumato.errors import Refusal
from sfumato.grids import validate
from sfumato.laws import Categorical
from sfumato.oracles.common import float64, pick
from sfumato.processes.blocks import Blocks
from sfumato.processes.bound import Bound, step_kl
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import safe_log
from sfumato.randomness import as_rng

#: Tables beyond this many states do not fit a matrix over them.
MOST_STATES = 4096


def all_states(size: int, length: int) -> Int[Tensor, "n l"]:
    """All ``size ** length`` sequences in the order of a flattened table, ``[n, L]`` int64."""
    return torch.cartesian_prod(*[torch.arange(size)] * length).reshape(-1, length)


@final
@dataclass(frozen=True, eq=False)
class EnumerableChain:
    """``p``: a table over ``L`` sites of ``V`` tokens each, ``[V, ..., V]``, normalised at construction.

    Raises :class:`Refusal` for sides of different lengths, negative entries, or more than 4096 sequences.
    """

    p: Any

    def __post_init__(self) -> None:
        p = float64(self.p)
        if p.ndim < 1 or len(set(p.shape)) != 1 or not bool((p >= 0).all()) or not float(p.sum()) > 0:
            raise Refusal(f"a table of shape {tuple(p.shape)} must be [V, ..., V], non-negative and not all 0")
        if p.numel() > MOST_STATES:
            raise Refusal(f"a table of {p.numel()} sequences; at most {MOST_STATES} are enumerated")
        object.__setattr__(self, "p", p / p.sum())

    @property
    def size(self) -> int:
        """The number of data tokens, ``V``."""
        size: int = self.p.shape[0]
        return size

    @property
    def length(self) -> int:
        """The number of sites, ``L``."""
        length: int = self.p.ndim
        return length

    @functools.cached_property
    def sequences(self) -> Int[Tensor, "n l"]:
        """All sequences, ``[V^L, L]``."""
        return all_states(self.size, self.length)

    @functools.cached_property
    def support(self) -> tuple[Float[Tensor, " m"], Int[Tensor, "m l"]]:
        """The sequences of positive probability and that probability."""
        possible = self.p.flatten() > 0
        return self.p.flatten()[possible], self.sequences[possible]

    @property
    def entropy(self) -> float:
        """``-sum p log p`` in nats: what every bound on ``-log p(x0)`` is at least, on average."""
        p, _ = self.support
        return float(-(p * p.log()).sum())

    @property
    def marginals(self) -> Float[Tensor, "l v"]:
        """The law of every site alone, ``[L, V]``."""
        axes = range(self.length)
        return torch.stack([self.p.sum([a for a in axes if a != site]) if self.length > 1 else self.p for site in axes])

    def sample(self, n: int, rng: Any) -> Int[Tensor, "n l"]:
        """``n`` sequences by one uniform number each, ``[n, L]``."""
        u = as_rng(rng).uniform((n,))
        return self.sequences[pick(safe_log(self.p.flatten()).expand(n, -1), u)]

    def nll(self, x: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """``-log p(x)`` in nats, infinite for what the table forbids or does not hold; shape ``[b]``."""
        inside = (x < self.size).all(1)
        return torch.where(inside, -safe_log(self.p.flatten())[self._index(x.clamp(max=self.size - 1))], math.inf)

    def _index(self, x: Tensor, size: int | None = None) -> Tensor:
        places = torch.tensor([(size or self.size) ** k for k in reversed(range(self.length))])
        return (x * places).sum(1)

    def counts(self, x: Int[Tensor, "b l"]) -> Float[Tensor, " n"]:
        """How often every sequence of the table occurs in ``x``, flat ``[V^L]``; others are not counted."""
        inside = (x < self.size).all(1)
        return torch.bincount(self._index(x[inside]), minlength=self.p.numel()).double()

    def posterior(self, process: Jump | Blocks) -> ChainPosterior:
        """The exact denoiser: the law of every site given ``x_t``; raises :class:`Refusal` for too small a kernel."""
        return ChainPosterior(self, process)

    def denoiser(self, process: Jump | Blocks) -> ChainPosterior:
        """The same: a belief about tokens has no point that would do."""
        return ChainPosterior(self, process)

    # ------------------------------------------------------------------------------------------------- exact laws

    def law_at(self, process: Jump, t: Time) -> Tensor:
        """The law of ``x_t`` over all ``K^L`` states, a table ``[K, ..., K]``."""
        size = _check(self, process)
        step = process.kernel.rows(torch.arange(self.size), process.signal(float(t)), torch.float64).exp()
        law: Tensor = self.p
        for _ in range(self.length):  # each pass turns the leading site and moves it last
            law = torch.tensordot(law, step, dims=([0], [0]))
        return law.reshape([size] * self.length)

    def output(self, process: Jump, grid: Any, denoiser: Denoiser[Tensor] | None = None, eta: float = 1.0) -> Tensor:
        """The exact law of what the ancestral sampler writes along ``grid`` (decreasing times): ``[K, ..., K]``.

        It starts at the prior and draws every site from its bridge.  ``denoiser``: the exact one unless given.
        """
        size, times = _check(self, process), validate(grid)
        states = all_states(size, self.length)
        model = denoiser or self.posterior(process)
        law = process.prior(states[:1]).logp[0].exp()
        table = functools.reduce(lambda a, b: (a[:, None] * b).flatten(), law)
        for t, s in pairwise(times):
            bridge: Any = process.bridge(states, model(states, t), t, s, eta)
            table = table @ _product(bridge.logp.exp())
        found: Tensor = table.reshape([size] * self.length)
        return found

    def reversed_law(
        self,
        process: Jump,
        denoiser: Denoiser[Tensor] | None = None,
        eta: float = 1.0,
        noise: float = 0.0,
        start: float = 1.0,
        stop: float = 1e-6,
        tolerance: float = 1e-10,
    ) -> Tensor:
        """The law at ``stop`` of the continuous-time reverse chain from the exact law at ``start``: ``[K, ..., K]``.

        Integrates the Kolmogorov forward equation of ``process.reverse_rates(..., eta, noise)`` over all states in
        ``log t``.  With the exact denoiser it is the law of ``x_stop`` whatever ``eta`` and ``noise``.  Rates of
        kernels that redraw are infinite at ``t = 1`` where ``alpha(1) = 0`` and ``eta > 0``: start below it.
        """
        from scipy.integrate import solve_ivp

        size = _check(self, process)
        states, model = all_states(size, self.length), denoiser or self.posterior(process)

        def derivative(u: float, packed: Any) -> Any:
            t = math.exp(-u)
            rates = t * process.reverse_rates(model(states, t), states, t, eta, noise)
            law = torch.from_numpy(packed)
            flow = rates * law[:, None, None]
            change = -flow.sum((1, 2))
            for site in range(self.length):
                place = size ** (self.length - 1 - site)
                for token in range(size):
                    target = torch.arange(len(states)) + (token - states[:, site]) * place
                    change = change.index_add(0, target, flow[:, site, token])
            return change.numpy()

        begin = self.law_at(process, start).flatten().numpy()
        span = (-math.log(start), -math.log(stop))
        solution = solve_ivp(derivative, span, begin, method="DOP853", rtol=tolerance, atol=tolerance)
        if not solution.success:
            raise Refusal(f"the reverse chain did not converge ({solution.message.strip()}); start below t = 1")
        return torch.from_numpy(solution.y[:, -1].copy()).reshape([size] * self.length)

    # ------------------------------------------------------------------------------------------------ exact bounds

    def elbo(self, denoiser: Denoiser[Tensor], process: Jump | Blocks, grid: Any) -> Bound:
        """The negative ELBO of every sequence on ``grid`` with nothing left to chance: terms of shape ``[V^L]``.

        Weigh ``total`` by ``p`` for the bound on the entropy.  Raises :class:`Refusal` for a grid that does not end
        in 0.
        """
        times = validate(grid)
        if times[-1] != 0:
            raise Refusal(f"the grid ends at t={times[-1]:g}: a bound on the data needs a grid that ends in 0")
        x0 = self.sequences
        terms = [
            self._expected(process, denoiser, t, lambda q, x, y, t=t, s=s: step_kl(process, q, x, y, t, s))
            for t, s in pairwise(times)
        ]
        prior = process.marginal(x0, times[0]).kl(process.prior(x0))
        diffusion = torch.stack(terms[:-1]) if len(terms) > 1 else torch.zeros(0, len(x0), dtype=torch.float64)
        return Bound(prior, diffusion, terms[-1])

    def nelbo(self, denoiser: Denoiser[Tensor], process: Jump, nodes: int = 64, score: Any = None) -> Bound:
        """The continuous-time negative ELBO of every sequence, by Gauss-Legendre in ``t^(1/3)``: terms ``[V^L]``.

        ``score(q, x_t, t)``: a concrete score to be judged in place of the belief's own (``Jump.score_entropy``).
        """
        import numpy as np

        x0 = self.sequences
        places, weights = np.polynomial.legendre.leggauss(nodes)
        rows = []
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            t = float(place) ** 3  # kernels that redraw have a rate that grows as -log t towards the data

            def rate(q: Any, x: Tensor, y: Tensor, t: float = t) -> Tensor:
                return process.rate(q, x, y, t) if score is None else process.score_entropy(score(q, y, t), x, y, t)

            rows.append(3 * float(place) ** 2 * float(weight) * self._expected(process, denoiser, t, rate))
        prior = process.marginal(x0, 1.0).kl(process.prior(x0))
        return Bound(prior, torch.stack(rows), torch.zeros_like(prior))

    def _expected(self, process: Jump | Blocks, denoiser: Denoiser[Tensor], t: float, loss: Any) -> Tensor:
        """``E[loss(q, x0, x_t)]`` over ``q(x_t | x0)`` for every sequence ``x0``, ``[V^L]``."""
        size = _check(self, process)
        states = all_states(size, self.length)
        chance = _product(process.marginal(self.sequences, t).logp.exp())
        row, column = torch.nonzero(chance, as_tuple=True)
        belief: Any = denoiser(states, t)
        values = loss(Categorical(belief.logp[column], process.space), self.sequences[row], states[column])
        return torch.zeros(len(chance), dtype=torch.float64).index_add(0, row, chance[row, column] * values.double())


def _product(sites: Tensor) -> Tensor:
    """Laws of every site ``[n, L, K]`` as laws over all states ``[n, K^L]``."""
    law = sites[:, 0]
    for site in range(1, sites.shape[1]):
        law = (law[:, :, None] * sites[:, site, None]).flatten(1)
    return law


def _check(chain: EnumerableChain, process: Jump | Blocks) -> int:
    """The kernel's number of tokens; raises :class:`Refusal` where it has fewer than the data."""
    size: int = process.kernel.size
    if size < chain.size:
        raise Refusal(f"a kernel of {size} tokens for data of {chain.size}; an absorbing kernel needs one more")
    return size


@final
@dataclass(frozen=True, eq=False)
class ChainPosterior:
    """The exact belief about an enumerable chain: the law of every site given all of ``x_t``, ``[b, L, K]`` float64.

    Where no sequence of the table can have become ``x_t`` it is the law of every site alone.
    """

    chain: EnumerableChain
    process: Jump | Blocks
    kind: ClassVar[str] = "belief"

    def __post_init__(self) -> None:
        _check(self.chain, self.process)

    def __call__(self, x_t: Int[Tensor, "b l"], t: Time, cond: Cond | None = None) -> Categorical:
        """The belief at ``x_t`` ``[b, L]`` and time ``t`` (a float or ``[b]``)."""
        chain, size = self.chain, self.process.kernel.size
        if x_t.shape[1:] != (chain.length,):
            raise Refusal(f"states of shape {tuple(x_t.shape)} for an oracle of {chain.length} sites")
        reach = self.process.kernel.columns(x_t, self.process.signal(t, x_t), torch.float64)
        p, sequences = chain.support
        weight = p.log().expand(len(x_t), -1)
        for site in range(chain.length):
            weight = weight + reach[:, site].index_select(1, sequences[:, site])
        lost = (weight == -math.inf).all(1, keepdim=True)
        p = torch.where(lost, p, torch.where(lost, 0.0, weight).softmax(1))
        tokens = torch.nn.functional.one_hot(sequences, size).double()
        return Categorical(safe_log(torch.einsum("bn,nlk->blk", p, tokens)), self.process.space)


def dirichlet(size: int, length: int, seed: int = 0, concentration: float = 0.7) -> EnumerableChain:
    """A random table: ``numpy.random.default_rng(seed).dirichlet`` over all ``size ** length`` sequences."""
    import numpy as np

    p = np.random.default_rng(seed).dirichlet(concentration * np.ones(size**length))
    return EnumerableChain(torch.from_numpy(p).reshape([size] * length))


def staircase(length: int = 10) -> EnumerableChain:
    """The ``length + 1`` binary sequences of ones and then zeros, all equally likely (Campbell et al. 2024's toy)."""
    p = torch.zeros([2] * length, dtype=torch.float64)
    for ones in range(length + 1):
        p[(1,) * ones + (0,) * (length - ones)] = 1.0
    return EnumerableChain(p)


def total_variation(a: Tensor, b: Tensor) -> float:
    """``sum |a - b| / 2`` of two tables; where ``b`` has fewer tokens, over the states that both have (a state that
    still holds a mask is in neither: the mass it keeps from ``a`` counts as missing there)."""
    common = a[tuple(slice(n) for n in b.shape)]
    return float((common - b).abs().sum() / 2)


__all__: Sequence[str] = [
    "ChainPosterior", "EnumerableChain", "all_states", "dirichlet", "staircase", "total_variation",
]  # fmt: skip

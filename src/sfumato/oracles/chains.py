"""Sequences of tokens whose law is a table: every posterior, bound and sampler output by enumeration.

The contract: ``p`` is a law over all ``V^L`` sequences; for any :class:`~sfumato.processes.jump.Jump` of at least ``V``
tokens the exact belief (site by site), the exact law of ``x_t``, the exact expected bounds, the exact law of what a
sampler of n steps writes, and the exact law of the continuous-time reverse chain follow by summing over states.
A belief that is exact site by site still misses the correlation between sites: that is what the bounds and the
samplers' laws show.

How the sites stand in a state is a :class:`Form`: in a row here, on the edges and nodes of a graph in
:mod:`~sfumato.oracles.graphs`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Cond, Denoiser, Law, Time
from sfumato.errors import Refusal
from sfumato.grids import validate
from sfumato.laws import Categorical
from sfumato.oracles.common import float64, pick
from sfumato.processes.bound import Bound, add_parts, step_kl
from sfumato.processes.kernels import numbers, safe_log
from sfumato.randomness import as_rng
from sfumato.trees import batch_size, rows

#: Tables beyond this many states do not fit a matrix over them.
MOST_STATES = 4096


def every(sides: Sequence[int]) -> Int[Tensor, "n l"]:
    """All places of a table of these ``sides``, in the order in which it is flattened, ``[n, L]`` int64."""
    return torch.cartesian_prod(*map(torch.arange, sides)).reshape(-1, len(sides))


def all_states(size: int, length: int) -> Int[Tensor, "n l"]:
    """All ``size ** length`` sequences in the order of a flattened table, ``[n, L]`` int64."""
    return every([size] * length)


@runtime_checkable
class Form(Protocol):
    """How the sites of a table stand in the states and laws of a process, part by part."""

    def require(self, shape: Sequence[int]) -> None:
        """Raises :class:`Refusal` for a table of another shape than this form's."""
        ...

    def parts(self, process: Any) -> Mapping[str, Any]:
        """The jump process of every part; raises :class:`Refusal` for a process of other states."""
        ...

    def split(self, whole: Any) -> Mapping[str, Any]:
        """The parts of a state or of a law, in the order of the table's sites."""
        ...

    def sites(self, part: str, values: Tensor) -> tuple[Tensor, ...]:
        """Values ``[b, ..., k]`` of a part as one ``[b, k]`` for each of its sites."""
        ...

    def states(self, sites: Int[Tensor, "n l"]) -> Any:
        """The states that hold these tokens."""
        ...

    def belief(self, logp: Sequence[Tensor], process: Any) -> Law[Any]:
        """The law of states whose sites have these log-laws, ``[b, k]`` each."""
        ...


@final
@dataclass(frozen=True)
class Sequences:
    """Sites in a row: states ``[b, L]``."""

    def require(self, shape: Sequence[int]) -> None:
        """All sides are the vocabulary."""
        if len(shape) < 1 or len(set(shape)) != 1:
            raise Refusal(f"a table of shape {tuple(shape)} must be [V, ..., V], a side for every site")

    def parts(self, process: Any) -> Mapping[str, Any]:
        """The process itself."""
        return {"": process}

    def split(self, whole: Any) -> Mapping[str, Any]:
        """The whole."""
        return {"": whole}

    def sites(self, part: str, values: Tensor) -> tuple[Tensor, ...]:
        """One after the other."""
        return values.unbind(1) if values.ndim == 3 else ()

    def states(self, sites: Int[Tensor, "n l"]) -> Tensor:
        """The tokens themselves."""
        return sites

    def belief(self, logp: Sequence[Tensor], process: Any) -> Categorical:
        """Side by side, ``[b, L, K]``."""
        return Categorical(torch.stack(list(logp), 1), process.space)


@final
@dataclass(frozen=True, eq=False)
class EnumerableChain:
    """``p``: a table over ``L`` sites of ``V`` tokens each, ``[V, ..., V]``, normalised at construction.

    ``form``: how the sites stand in a state, in a row ``[b, L]`` unless given.  Raises :class:`Refusal` for sides of
    different lengths, negative entries, or more than 4096 sequences.
    """

    p: Any
    form: Form = Sequences()

    def __post_init__(self) -> None:
        p = float64(numbers(self.p, "a table of sequences"))
        self.form.require(p.shape)
        if not bool((p >= 0).all()) or not 0 < float(p.sum()) < math.inf:
            raise Refusal(f"a table of shape {tuple(p.shape)} must be non-negative, finite and not all 0")
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
        return every(self.p.shape)

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
        return torch.stack(self.alone)

    @property
    def alone(self) -> list[Float[Tensor, " v"]]:
        """The law of every site alone, one by one."""
        axes = range(self.length)
        return [self.p.sum([a for a in axes if a != site]) if self.length > 1 else self.p for site in axes]

    def sample(self, n: int, rng: Any) -> Any:
        """``n`` states by one uniform number each: sequences ``[n, L]``."""
        u = as_rng(rng).uniform((n,))
        return self.form.states(self.sequences[pick(safe_log(self.p.flatten()).expand(n, -1), u)])

    def nll(self, x: Any) -> Float[Tensor, " b"]:
        """``-log p(x)`` in nats of states, infinite for what the table forbids or does not hold; shape ``[b]``."""
        place, inside = self._find(x)
        return torch.where(inside, -safe_log(self.p.flatten())[place], math.inf)

    def _find(self, x: Any) -> tuple[Tensor, Tensor]:
        """The place of every state in the flat table, and whether it is there."""
        given = self.form.split(x)
        sites = torch.cat(self._spread({part: v[..., None] for part, v in given.items()}), 1)
        inside = ((sites >= 0) & (sites < torch.tensor(self.p.shape))).all(1)
        for part, own in self.form.split(self.form.states(sites)).items():
            inside = inside & (own == given[part]).flatten(1).all(1)
        return (torch.where(inside[:, None], sites, 0) * _strides(self.p.shape)).sum(1), inside

    def counts(self, x: Any) -> Float[Tensor, " n"]:
        """How often every sequence of the table occurs in states ``x``, flat ``[V^L]``; others are not counted."""
        place, inside = self._find(x)
        return torch.bincount(place[inside], minlength=self.p.numel()).double()

    def _spread(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Values ``[b, ..., k]`` of every part as one ``[b, k]`` for every site of the table."""
        found = [site for part, v in values.items() for site in self.form.sites(part, v)]
        if len(found) != self.length:
            shapes = ", ".join(str(tuple(v.shape[:-1])) for v in values.values())
            raise Refusal(f"states of shape {shapes} for an oracle of {self.length} sites")
        return found

    def _logs(self, law: Any) -> list[Tensor]:
        """The log-law of every site."""
        return self._spread({part: own.logp for part, own in self.form.split(law).items()})

    def _jumps(self, process: Any) -> list[Any]:
        """The jump process of every site; raises :class:`Refusal` where a kernel has fewer tokens than the data."""
        blank = self.form.split(self.form.states(torch.zeros((1, self.length), dtype=torch.int64)))
        parts = self.form.parts(process)
        found = [own for part, own in parts.items() for _ in self.form.sites(part, blank[part][..., None])]
        for own, side in zip(found, self.p.shape, strict=True):
            if own.kernel.size < side:
                raise Refusal(
                    f"a kernel of {own.kernel.size} tokens for data of {side}; an absorbing kernel needs one more"
                )
        return found

    def sizes(self, process: Any) -> list[int]:
        """How many tokens the kernel of every site has; raises :class:`Refusal` for too small a kernel."""
        return [own.kernel.size for own in self._jumps(process)]

    def given(self, process: Any, x_t: Any, t: Time) -> Law[Any]:
        """The exact law of every site given ``x_t``, as :meth:`posterior` states it."""
        x, parts = self.form.split(x_t), self.form.parts(process)
        reach = self._spread(
            {part: own.kernel.columns(x[part], own.signal(t, x[part]), torch.float64) for part, own in parts.items()}
        )
        p, sequences = self.support
        weight = p.log().expand(batch_size(x_t), -1)
        for site in range(self.length):
            weight = weight + reach[site].index_select(1, sequences[:, site])
        lost = (weight == -math.inf).all(1, keepdim=True)
        p = torch.where(lost, p, torch.where(lost, 0.0, weight).softmax(1))
        tokens = (torch.nn.functional.one_hot(sequences[:, k], size) for k, size in enumerate(self.sizes(process)))
        return self.form.belief([safe_log(p @ own.double()) for own in tokens], process)

    def posterior(self, process: Any) -> ChainPosterior:
        """The exact denoiser: the law of every site given ``x_t``; raises :class:`Refusal` for too small a kernel."""
        return ChainPosterior(self, process)

    def denoiser(self, process: Any) -> ChainPosterior:
        """The same: a belief about tokens has no point that would do."""
        return ChainPosterior(self, process)

    # ------------------------------------------------------------------------------------------------- exact laws

    def law_at(self, process: Any, t: Time) -> Tensor:
        """The law of ``x_t`` over all ``K^L`` states, a table ``[K, ..., K]``."""
        law: Tensor = self.p
        for own, side in zip(self._jumps(process), self.p.shape, strict=True):
            step = own.kernel.rows(torch.arange(side), own.signal(float(t)), torch.float64).exp()
            law = torch.tensordot(law, step, dims=([0], [0]))  # turns the leading site and moves it last
        return law

    def output(self, process: Any, grid: Any, denoiser: Denoiser[Tensor] | None = None, eta: float = 1.0) -> Tensor:
        """The exact law of what the ancestral sampler writes along ``grid`` (decreasing times): ``[K, ..., K]``.

        It starts at the prior and draws every site from its bridge.  ``denoiser``: the exact one unless given.
        """
        sizes, times = self.sizes(process), validate(grid)
        states = self.form.states(every(sizes))
        model = denoiser or self.posterior(process)
        table = _product(self._logs(process.prior(rows(states, slice(1)))))[0]
        for t, s in pairwise(times):
            table = table @ _product(self._logs(process.bridge(states, model(states, t), t, s, eta)))
        return table.reshape(sizes)

    def reversed_law(
        self,
        process: Any,
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

        sizes, parts = self.sizes(process), self.form.parts(process)
        tokens, model = every(sizes), denoiser or self.posterior(process)
        states = self.form.states(tokens)
        x, places = self.form.split(states), _strides(sizes)

        def derivative(u: float, packed: Any) -> Any:
            t = math.exp(-u)
            q, law = self.form.split(model(states, t)), torch.from_numpy(packed)
            change = torch.zeros_like(law)
            rates = {part: own.reverse_rates(q[part], x[part], t, eta, noise) for part, own in parts.items()}
            for site, own in enumerate(self._spread(rates)):
                flow = t * own * law[:, None]
                change = change - flow.sum(1)
                for token in range(sizes[site]):
                    target = torch.arange(len(tokens)) + (token - tokens[:, site]) * places[site]
                    change = change.index_add(0, target, flow[:, token])
            return change.numpy()

        begin = self.law_at(process, start).flatten().numpy()
        span = (-math.log(start), -math.log(stop))
        solution = solve_ivp(derivative, span, begin, method="DOP853", rtol=tolerance, atol=tolerance)
        if not solution.success:
            raise Refusal(f"the reverse chain did not converge ({solution.message.strip()}); start below t = 1")
        return torch.from_numpy(solution.y[:, -1].copy()).reshape(sizes)

    # ------------------------------------------------------------------------------------------------ exact bounds

    def elbo(self, denoiser: Denoiser[Any], process: Any, grid: Any) -> Bound:
        """The negative ELBO of every sequence on ``grid`` with nothing left to chance: terms of shape ``[V^L]``.

        Weigh ``total`` by ``p`` for the bound on the entropy.  Raises :class:`Refusal` for a grid that does not end
        in 0.
        """
        times = validate(grid)
        if times[-1] != 0:
            raise Refusal(f"the grid ends at t={times[-1]:g}: a bound on the data needs a grid that ends in 0")
        x0 = self.form.states(self.sequences)
        terms = [
            self._expected(process, denoiser, t, lambda q, x, y, t=t, s=s: step_kl(process, q, x, y, t, s))
            for t, s in pairwise(times)
        ]
        prior = add_parts(process.marginal(x0, times[0]).kl(process.prior(x0)))
        diffusion = torch.stack(terms[:-1]) if len(terms) > 1 else torch.zeros(0, len(prior), dtype=torch.float64)
        return Bound(prior, diffusion, terms[-1])

    def nelbo(self, denoiser: Denoiser[Any], process: Any, nodes: int = 64, score: Any = None) -> Bound:
        """The continuous-time negative ELBO of every sequence, by Gauss-Legendre in ``t^(1/3)``: terms ``[V^L]``.

        ``score(q, x_t, t)``: a concrete score to be judged in place of the belief's own (``Jump.score_entropy``).
        """
        import numpy as np

        x0 = self.form.states(self.sequences)
        places, weights = np.polynomial.legendre.leggauss(nodes)
        terms = []
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            t = float(place) ** 3  # kernels that redraw have a rate that grows as -log t towards the data

            def rate(q: Any, x: Any, y: Any, t: float = t) -> Any:
                return process.rate(q, x, y, t) if score is None else process.score_entropy(score(q, y, t), x, y, t)

            terms.append(3 * float(place) ** 2 * float(weight) * self._expected(process, denoiser, t, rate))
        prior = add_parts(process.marginal(x0, 1.0).kl(process.prior(x0)))
        return Bound(prior, torch.stack(terms), torch.zeros_like(prior))

    def _expected(self, process: Any, denoiser: Denoiser[Any], t: float, loss: Any) -> Tensor:
        """``E[loss(q, x0, x_t)]`` over ``q(x_t | x0)`` for every sequence ``x0``, ``[V^L]``."""
        clean, noisy = self.form.states(self.sequences), self.form.states(every(self.sizes(process)))
        chance = _product(self._logs(process.marginal(clean, t)))
        row, column = torch.nonzero(chance, as_tuple=True)
        values = add_parts(loss(rows(denoiser(noisy, t), column), rows(clean, row), rows(noisy, column)))
        return torch.zeros(len(chance), dtype=torch.float64).index_add(0, row, chance[row, column] * values.double())


def _product(sites: Sequence[Tensor]) -> Tensor:
    """Log-laws of every site, ``[n, K]`` each, as laws over all states, ``[n, prod of K]``."""
    return functools.reduce(lambda a, b: (a[:, :, None] * b[:, None]).flatten(1), [site.exp() for site in sites])


def _strides(sides: Sequence[int]) -> Int[Tensor, " l"]:
    """How far apart the neighbours of every side lie in a flattened table."""
    return torch.tensor([math.prod(sides[k + 1 :]) for k in range(len(sides))])


@final
@dataclass(frozen=True, eq=False)
class ChainPosterior:
    """The exact belief about an enumerable chain: the law of every site given all of ``x_t``, ``[b, L, K]`` float64 (of
    a graph as its :class:`Form` states it).

    Where no sequence of the table can have become ``x_t`` it is the law of every site alone.
    """

    chain: EnumerableChain
    process: Any
    kind: ClassVar[str] = "belief"

    def __post_init__(self) -> None:
        self.chain.sizes(self.process)  # refuses what does not fit

    def __call__(self, x_t: Any, t: Time, cond: Cond | None = None) -> Any:
        """The belief at ``x_t`` ``[b, L]`` and time ``t`` (a float or ``[b]``)."""
        return self.chain.given(self.process, x_t, t)


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
    "ChainPosterior", "EnumerableChain", "Form", "Sequences", "all_states", "dirichlet", "staircase", "total_variation",
]  # fmt: skip

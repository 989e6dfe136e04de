"""Undirected graphs whose law is a table: every posterior, bound and sampler output by enumeration.

The contract: ``p`` is a law over the kinds of the ``n (n - 1) / 2`` edges of ``n`` nodes, kind 0 being no edge, and,
where nodes have kinds too, of the ``n`` nodes.  Its maths is that of
:class:`~sfumato.oracles.chains.EnumerableChain` on the sites side by side (nodes first, then the upper triangle row by
row); states and laws are those of the process: ``[b, n, n]`` for a :class:`~sfumato.processes.jump.Jump` on
:class:`~sfumato.spaces.symmetric_edges.SymmetricEdges`, with kinds of nodes ``{"nodes": [b, n], "edges": [b, n, n]}``
for a :class:`~sfumato.processes.product.Product` of two.  An edge is drawn and counted once.  For discrete diffusion of
graphs (Vignac et al. 2023, DiGress), whose laws do not depend on how the nodes are numbered: :func:`invariant`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Denoiser, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Categorical, Joint
from sfumato.oracles.chains import ChainPosterior, EnumerableChain
from sfumato.oracles.common import float64
from sfumato.processes.bound import Bound
from sfumato.processes.kernels import numbers
from sfumato.spaces.symmetric_edges import SymmetricEdges

#: The parts of a state.
NODES, EDGES = "nodes", "edges"


@final
@dataclass(frozen=True)
class Graphs:
    """How the sites of a table stand in graphs of ``n`` nodes: ``names`` is the edges alone, or the nodes and they."""

    n: int
    names: tuple[str, ...]

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The upper triangle, row by row."""
        i, j = torch.triu_indices(self.n, self.n, 1)
        return i, j

    def require(self, shape: Sequence[int]) -> None:
        """A side for every node, where nodes have kinds, and one for every pair of nodes."""
        typed, pairs = self.n if NODES in self.names else 0, math.comb(self.n, 2)
        if len(shape) != typed + pairs or len(set(shape[:typed])) > 1 or len(set(shape[typed:])) != 1:
            raise Refusal(
                f"a table of shape {tuple(shape)} for graphs of {self.n} nodes; give one side of E for each of the "
                f"{pairs} pairs of nodes, and before them one of N for each node where nodes have kinds"
            )

    def parts(self, process: Any) -> Mapping[str, Any]:
        """The process of the edges, and that of the nodes."""
        found = {EDGES: process} if self.names == (EDGES,) else getattr(process, "parts", {})
        if set(found) != set(self.names):
            raise Refusal(
                f"graphs with kinds of nodes and edges, but a {type(process).__name__} of {sorted(found) or 'one part'}"
                "; give a Product of 'nodes' and 'edges'"
            )
        space = getattr(found[EDGES], "space", None)
        if not isinstance(space, SymmetricEdges):
            raise Refusal(
                f"edges destroyed on {type(space).__name__} would be drawn twice; give the Jump SymmetricEdges(size=K)"
            )
        if space.mask is not None and not bool(space.mask.all()):
            raise Refusal(f"an oracle of {self.n} nodes and a space that pads some of them; leave the mask out")
        return {name: found[name] for name in self.names}

    def split(self, whole: Any) -> Mapping[str, Any]:
        """Nodes and edges of a state or a law."""
        if self.names == (EDGES,):
            return {EDGES: whole}
        parts = whole.parts if isinstance(whole, Joint) else whole
        return {name: parts[name] for name in self.names}

    def sites(self, part: str, values: Tensor) -> tuple[Tensor, ...]:
        """Node by node; pair by pair."""
        if values.shape[1:-1] != ((self.n,) if part == NODES else (self.n, self.n)):
            return ()
        i, j = self.pairs
        return values.unbind(1) if part == NODES else values[:, i, j].unbind(1)

    def _both(self, sites: Tensor, out: Tensor) -> Tensor:
        """``out [b, n, n, ...]`` with the values ``[b, pairs, ...]`` in both triangles."""
        i, j = self.pairs
        out[:, i, j] = sites
        out[:, j, i] = sites
        return out

    def states(self, sites: Int[Tensor, "b l"]) -> Any:
        """Edges ``[b, n, n]``, with nodes in a dict."""
        first = sites.shape[1] - math.comb(self.n, 2)
        edges = self._both(sites[:, first:], sites.new_zeros((len(sites), self.n, self.n)))
        return {NODES: sites[:, :first], EDGES: edges} if first else edges

    def belief(self, logp: Sequence[Tensor], process: Any) -> Law[Any]:
        """A Categorical of the edges, certain of kind 0 on the diagonal, or a Joint of it and that of the nodes."""
        parts, first = self.parts(process), len(logp) - math.comb(self.n, 2)
        sites = torch.stack(list(logp[first:]), 1)
        none = torch.full((len(sites), self.n, self.n, sites.shape[-1]), -math.inf, dtype=sites.dtype)
        none[..., 0] = 0.0
        edges = Categorical(self._both(sites, none), parts[EDGES].space)
        if not first:
            return edges
        return Joint({NODES: Categorical(torch.stack(list(logp[:first]), 1), parts[NODES].space), EDGES: edges})


@final
@dataclass(frozen=True, eq=False)
class EnumerableGraph:
    """``p``: a law over graphs of ``n`` nodes, a table ``[E, ..., E]`` with a side for every pair of nodes (0, 1), (0,
    2), ..., (1, 2), ..., or ``[N, ..., N, E, ..., E]`` with one for every node before them; normalised at construction.

    The process has at least ``E`` kinds of edges (a mask is one more), and ``N`` of nodes.  Raises :class:`Refusal` for
    fewer than two nodes, a table of another shape, negative entries, and more than 4096 graphs.
    """

    p: Any
    n: int
    chain: EnumerableChain = field(init=False, repr=False)

    def __post_init__(self) -> None:
        p = float64(numbers(self.p, "a table of graphs"))
        if self.n < 2:
            raise Refusal(f"n={self.n}: a graph of an oracle has at least two nodes, so that there is an edge")
        names = (EDGES,) if p.ndim <= math.comb(self.n, 2) else (NODES, EDGES)
        object.__setattr__(self, "chain", EnumerableChain(p, Graphs(self.n, names)))
        object.__setattr__(self, "p", self.chain.p)

    @property
    def graphs(self) -> Any:
        """All graphs, in the order of the flattened table, as states."""
        return self.chain.form.states(self.chain.sequences)

    @property
    def entropy(self) -> float:
        """``-sum p log p`` in nats: what every bound on ``-log p(x0)`` is at least, on average."""
        return self.chain.entropy

    @property
    def marginals(self) -> dict[str, Tensor]:
        """The law of every site alone: ``"edges"`` ``[pairs, E]``, and ``"nodes"`` ``[n, N]`` where they have kinds.

        Their means over sites are the limits that DiGress's kernel ``marginal`` takes.
        """
        alone = self.chain.alone
        first = len(alone) - math.comb(self.n, 2)
        return ({NODES: torch.stack(alone[:first])} if first else {}) | {EDGES: torch.stack(alone[first:])}

    def sample(self, count: int, rng: Any) -> Any:
        """``count`` graphs by one uniform number each."""
        return self.chain.sample(count, rng)

    def nll(self, x: Any) -> Float[Tensor, " b"]:
        """``-log p(x)`` in nats, ``[b]``; infinite for what the table forbids or does not hold, and for what is no
        undirected graph."""
        return self.chain.nll(x)

    def counts(self, x: Any) -> Float[Tensor, " g"]:
        """How often every graph of the table occurs in ``x``, flat; others are not counted."""
        return self.chain.counts(x)

    def posterior(self, process: Any) -> ChainPosterior:
        """The exact denoiser: the law of every node and edge given ``x_t``.  Raises :class:`Refusal` for a process that
        does not fit."""
        return self.chain.posterior(process)

    def denoiser(self, process: Any) -> ChainPosterior:
        """The same: a belief about tokens has no point that would do."""
        return self.chain.posterior(process)

    def law_at(self, process: Any, t: Time) -> Tensor:
        """The law of ``x_t``, a table like ``p`` with sides of the kernels' sizes."""
        return self.chain.law_at(process, t)

    def output(self, process: Any, grid: Any, denoiser: Denoiser[Any] | None = None, eta: float = 1.0) -> Tensor:
        """The exact law of what the ancestral sampler writes along ``grid``, such a table; ``denoiser``: the exact one
        unless given."""
        return self.chain.output(process, grid, denoiser, eta)

    def reversed_law(
        self, process: Any, denoiser: Denoiser[Any] | None = None, eta: float = 1.0, noise: float = 0.0,
        start: float = 1.0, stop: float = 1e-6, tolerance: float = 1e-10,
    ) -> Tensor:  # fmt: skip
        """The law at ``stop`` of the continuous-time reverse chain from the exact law at ``start``, such a table: see
        :meth:`~sfumato.oracles.chains.EnumerableChain.reversed_law`."""
        return self.chain.reversed_law(process, denoiser, eta, noise, start, stop, tolerance)

    def elbo(self, denoiser: Denoiser[Any], process: Any, grid: Any) -> Bound:
        """The negative ELBO of every graph of the table on ``grid``, with nothing left to chance."""
        return self.chain.elbo(denoiser, process, grid)

    def nelbo(self, denoiser: Denoiser[Any], process: Any, nodes: int = 64) -> Bound:
        """The continuous-time negative ELBO of every graph of the table, by Gauss-Legendre at ``nodes`` times."""
        return self.chain.nelbo(denoiser, process, nodes)


def invariant(p: Any, n: int) -> Float[Tensor, "..."]:
    """The mean of a table of graphs of ``n`` nodes over all ``n!`` ways to number them: a law that is the same for a
    graph under any numbering, as that of molecules is.  Raises :class:`Refusal` as :class:`EnumerableGraph`."""
    table = EnumerableGraph(p, n).p
    first = table.ndim - math.comb(n, 2)
    i, j = torch.triu_indices(n, n, 1)
    place = torch.zeros(n, n, dtype=torch.int64)
    place[i, j] = place[j, i] = torch.arange(first, table.ndim)
    total = torch.zeros_like(table)
    for order in permutations(range(n)):
        new = torch.tensor(order)
        nodes: list[int] = new.tolist() if first else []
        edges: list[int] = place[new[i], new[j]].tolist()
        total = total + table.permute(nodes + edges)
    return total / math.factorial(n)

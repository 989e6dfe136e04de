"""Discrete diffusion of graphs: edges drawn once and counted once, exact laws by enumeration, numbering of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.tokens import Softmax, TokenDenoiser
from sfumato.laws import Categorical, Dirac
from sfumato.oracles import EnumerableChain, EnumerableGraph, dirichlet, invariant, total_variation
from sfumato.processes import Jump, Product, absorbing, discretised_gaussian, marginal, uniform
from sfumato.spaces import Euclidean, SymmetricEdges, Tokens
from sfumato.training.token_objectives import D3PM, MDLM, DiscreteFlow, ScoreEntropy

FLOW, COSINE = sf.schedules.get("flow"), sf.schedules.get("cosine-continuous")
#: Three nodes; two kinds of edges beside none; the law does not depend on how the nodes are numbered.
GRAPH = EnumerableGraph(invariant(dirichlet(3, 3).p, 3), 3)
#: Two kinds of nodes, edges that are there or not.
TYPED = EnumerableGraph(invariant(dirichlet(2, 6, 1).p, 3), 3)
KERNELS: dict[str, Any] = {
    "absorbing": absorbing(4),
    "uniform": uniform(3),
    "marginal": marginal(GRAPH.marginals["edges"].mean(0)),
    "ordinal": discretised_gaussian(3, 0.5),
}
PAIR = {"nodes": Jump(uniform(2), COSINE), "edges": Jump(absorbing(3), FLOW, SymmetricEdges(size=3))}


def of_edges(name: str, schedule: Any = FLOW) -> Jump:
    return Jump(KERNELS[name], schedule, SymmetricEdges(size=KERNELS[name].size))


def in_a_row(process: Jump) -> Jump:
    """The same on the upper triangle as a sequence."""
    return Jump(process.kernel, process.schedule, Tokens(process.kernel.size))


def upper(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return x[:, i, j]


def average(oracle: Any, terms: Tensor) -> float:
    return float((oracle.p.flatten() * terms).sum())


def renumbered(x: Any, order: Any) -> Any:
    if isinstance(x, dict):
        return {"nodes": x["nodes"][:, order], "edges": renumbered(x["edges"], order)}
    return x[:, order][:, :, order]


# ----------------------------------------------------------------------------------------------------- one edge, once


@dataclass
class Counting:
    """A source that writes down what it was asked for."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def uniform(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        self.shapes.append(tuple(shape))
        return sf.Stream(len(self.shapes)).uniform(shape, rows)

    def normal(self, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
        raise AssertionError("tokens take uniform numbers")


@pytest.mark.parametrize("name", KERNELS)
def test_every_edge_is_drawn_once(name: str) -> None:
    process, x0, rng = of_edges(name), GRAPH.sample(500, 0), Counting()
    x_t = process.marginal(x0, 0.6).draw(rng)
    q = GRAPH.posterior(process)(x_t, 0.6)
    draws = [
        x_t, process.noised(x0, 0.6, rng), process.forward(x_t, 0.6, 0.8).draw(rng), process.prior(x0).draw(rng),
        process.bridge(x_t, q, 0.6, 0.2).draw(rng), process.bridge(x_t, Dirac(x0), 0.6, 0.2, 0.5).draw(rng),
        process.space.noise(x0, rng), q.draw(rng), q.point(), process.prior(x0).point(),
    ]  # fmt: skip
    assert all(process.space.contains(x) for x in [x0, *draws])
    assert set(rng.shapes) == {(500, 3)}
    assert len(rng.shapes) == len(draws) - 2
    assert torch.equal(process.noised(x0, 0.6, sf.Stream(4)), process.marginal(x0, 0.6).draw(sf.Stream(4)))


@pytest.mark.parametrize("name", KERNELS)
def test_laws_and_losses_are_those_of_the_upper_triangle(name: str) -> None:
    process, x0 = of_edges(name), GRAPH.sample(50, 0)
    row, x_t, x_s = in_a_row(process), process.marginal(x0, 0.6).draw(sf.Stream(1)), process.prior(x0)
    drawn = x_s.draw(sf.Stream(2)) * 0 + process.marginal(x0, 0.3).draw(sf.Stream(2))
    q = GRAPH.posterior(process)(x_t, 0.6)
    flat = Categorical(upper(q.logp), row.space)
    pairs = [
        (process.marginal(x0, 0.3).nll(drawn), row.marginal(upper(x0), 0.3).nll(upper(drawn))),
        (process.marginal(x0, 0.3).kl(process.prior(x0)), row.marginal(upper(x0), 0.3).kl(row.prior(upper(x0)))),
        (process.loss(q, x0, x_t, 0.6), row.loss(flat, upper(x0), upper(x_t), 0.6)),
        (process.rate(q, x0, x_t, 0.6), row.rate(flat, upper(x0), upper(x_t), 0.6)),
        (
            sf.processes.step_kl(process, q, x0, x_t, 0.6, 0.2),
            sf.processes.step_kl(row, flat, upper(x0), upper(x_t), 0.6, 0.2),
        ),
        (process.space.dof(x0), row.space.dof(upper(x0))),
    ]
    for own, other in pairs:
        assert torch.allclose(own.double(), other.double(), atol=1e-12)


def test_objectives_are_those_of_the_upper_triangle() -> None:
    """A network of edges, read at the upper triangle; its numbers below it and on the diagonal do not matter."""
    process = of_edges("absorbing")
    row, x0, t = in_a_row(process), GRAPH.sample(40, 0), torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def edges(x: Tensor, times: Tensor, cond: Any = None) -> Tensor:
        return weights[x] + 9 * torch.ones(3, 3).tril()[..., None] * torch.arange(4)

    eps = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    later, earlier = torch.tril_indices(3, 3, -1)
    order = [int(k) for i, j in zip(*torch.triu_indices(3, 3, 1), strict=True)
             for k in ((later == j) & (earlier == i)).nonzero()]  # fmt: skip
    graph = TokenDenoiser(edges, Softmax(process))
    flat = TokenDenoiser(lambda x, times, cond: weights[x], Softmax(row))
    for objective in (MDLM(), ScoreEntropy(), D3PM(7, 0.3), DiscreteFlow(), DiscreteFlow("kl")):
        own = objective(graph, x0, t, eps=eps)
        assert torch.allclose(own, objective(flat, upper(x0), t, eps=eps[:, order]), atol=1e-6), objective


def test_what_an_edge_is_drawn_as_does_not_depend_on_padding() -> None:
    small, large = (torch.arange(n)[None] < 3 for n in (3, 6))
    x0 = torch.zeros(4, 6, 6, dtype=torch.int64)
    x0[:, :3, :3] = GRAPH.sample(4, 0)
    for kernel in (absorbing(4), uniform(4)):
        own, padded = (Jump(kernel, FLOW, SymmetricEdges(mask, 4)) for mask in (small, large))
        a = own.marginal(x0[:, :3, :3], 0.5).draw(sf.Streams(range(4)))
        b = padded.marginal(x0, 0.5).draw(sf.Streams(range(4)))
        assert torch.equal(b[:, :3, :3], a)
        assert padded.space.contains(b)
        assert not bool(b[:, 3:].any())
        assert torch.equal(padded.marginal(x0, 0.5).nll(b), own.marginal(x0[:, :3, :3], 0.5).nll(a))
        assert padded.space.dof(b).tolist() == [3] * 4


def test_the_diagonal_may_be_impossible() -> None:
    """A limit that never has token 0, which the diagonal and padding hold: what is not counted costs nothing."""
    kernel = marginal([0.0, 0.4, 0.6])
    for space, x0 in (
        (SymmetricEdges(size=3), torch.tensor([[[0, 1], [1, 0]]])),
        (Tokens(3, torch.tensor([[True, False]])), torch.tensor([[1, 0]])),
    ):
        process = Jump(kernel, FLOW, space)
        assert float(process.prior(x0).nll(x0)) == pytest.approx(-math.log(0.4))
        p, pi = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])  # half of the way there
        assert float(process.marginal(x0, 0.5).kl(process.prior(x0))) == pytest.approx(
            float((p * (p / pi).log()).sum())
        )


@pytest.mark.parametrize("name", sf.samplers.TOKENS)
def test_samplers_of_tokens_walk_graphs(name: str) -> None:
    process = of_edges("absorbing")
    sampler = sf.samplers.build("ddpm" if name == "ddpm-cache" else name)
    x1 = process.prior(GRAPH.sample(3000, 0)).draw(sf.Stream(0))
    model, grid = GRAPH.posterior(process), torch.linspace(1, 0, 41, dtype=torch.float64)
    with torch.no_grad():
        *states, x = sf.trajectory(model, process, sampler, grid, x1, rng=sf.Stream(1))
    assert all(process.space.contains(state) for state in [*states, x])
    share = GRAPH.counts(x) / 3000
    assert float(share.sum()) == pytest.approx(1.0)
    if name != "confidence":  # which favours likely kinds
        floor = GRAPH.counts(GRAPH.sample(3000, 5)) / 3000
        assert float((share - GRAPH.p.flatten()).abs().sum()) < 2.5 * float((floor - GRAPH.p.flatten()).abs().sum())


# -------------------------------------------------------------------------------------------------------- exact laws


@pytest.mark.parametrize("name", KERNELS)
def test_a_graph_of_edges_is_the_chain_of_its_upper_triangle(name: str) -> None:
    process = of_edges(name)
    row, chain, grid = in_a_row(process), EnumerableChain(GRAPH.p), torch.linspace(1, 0, 4, dtype=torch.float64)
    model, flat = GRAPH.posterior(process), chain.posterior(row)
    assert GRAPH.entropy == chain.entropy
    assert torch.equal(upper(GRAPH.sample(9, 3)), chain.sample(9, 3))
    x_t = process.prior(GRAPH.sample(30, 0)).draw(sf.Stream(0))
    assert torch.allclose(upper(model(x_t, 0.4).logp).exp(), flat(upper(x_t), 0.4).logp.exp(), atol=1e-12)
    pairs = [
        (GRAPH.law_at(process, 0.4), chain.law_at(row, 0.4)),
        (GRAPH.output(process, grid), chain.output(row, grid)),
        (GRAPH.elbo(model, process, grid).total, chain.elbo(flat, row, grid).total),
        (GRAPH.nelbo(model, process, 8).total, chain.nelbo(flat, row, 8).total),
    ]
    for own, other in pairs:
        assert torch.allclose(own, other, atol=1e-10)


@pytest.mark.parametrize("name", KERNELS)
def test_the_bound_in_continuous_time_is_the_entropy(name: str) -> None:
    """Of edges that know of each other; of few steps it is more, as their kinds are drawn apart."""
    process = of_edges(name)
    model = GRAPH.posterior(process)
    assert average(GRAPH, GRAPH.nelbo(model, process).total) == pytest.approx(GRAPH.entropy, abs=1e-9)
    steps = average(GRAPH, GRAPH.elbo(model, process, torch.linspace(1, 0, 5, dtype=torch.float64)).total)
    assert GRAPH.entropy + 1e-3 < steps < GRAPH.entropy + 0.5


def test_the_bound_of_nodes_and_edges_is_the_entropy() -> None:
    process = Product(dict(reversed(PAIR.items())))  # in any order
    model = TYPED.posterior(process)
    assert average(TYPED, TYPED.nelbo(model, process).total) == pytest.approx(TYPED.entropy, abs=1e-9)
    x0 = TYPED.sample(4000, 0)
    bound = sf.elbo(model, process, x0, torch.linspace(1, 0, 3, dtype=torch.float64), sf.Stream(1)).total
    exact = average(TYPED, TYPED.elbo(model, process, torch.linspace(1, 0, 3, dtype=torch.float64)).total)
    assert abs(float(bound.mean()) - exact) < 4.5 * float(bound.std()) / math.sqrt(4000)


@pytest.mark.parametrize("typed", [False, True], ids=["edges", "nodes and edges"])
def test_the_sampler_and_the_reverse_chain_end_in_the_law(typed: bool) -> None:
    two = EnumerableGraph(dirichlet(2, 3, 4).p, 2)  # nodes, of two kinds
    oracle, process = (two, Product(PAIR)) if typed else (GRAPH, of_edges("absorbing"))
    grids = [torch.linspace(1, 0, n + 1, dtype=torch.float64) for n in (8, 16)]
    gaps = [total_variation(oracle.output(process, grid), oracle.p) for grid in grids]
    assert 1.7 < gaps[0] / gaps[1] < 2.3  # of first order
    end = oracle.reversed_law(process, start=0.9, stop=1e-4, tolerance=1e-8)
    assert total_variation(end, oracle.law_at(process, 1e-4)) < 1e-6


def test_the_sides_of_a_table_are_pairs_row_by_row() -> None:
    for k, (i, j) in enumerate(combinations(range(4), 2)):
        p = torch.zeros([2] * 6)
        p[tuple(int(side == k) for side in range(6))] = 1.0
        assert EnumerableGraph(p, 4).sample(1, 0)[0].nonzero().tolist() == [[i, j], [j, i]]


def test_graphs_are_drawn_as_often_as_the_law_says() -> None:
    n = 20_000
    for oracle in (GRAPH, TYPED):
        share = oracle.counts(oracle.sample(n, 7)) / n
        p = oracle.p.flatten()
        assert bool(((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-12).all())
        assert torch.allclose(oracle.nll(oracle.graphs), -p.log(), atol=1e-12)
        assert torch.equal(oracle.counts(oracle.graphs), torch.ones(len(p), dtype=torch.float64))


def test_what_is_no_undirected_graph_has_no_probability() -> None:
    x = GRAPH.sample(1, 0)
    loop, directed, masked = x.clone(), x.clone(), x.clone()
    loop[:, 1, 1] = 1
    directed[:, 0, 1] = (x[:, 0, 1] + 1) % 3
    masked[:, 0, 1] = masked[:, 1, 0] = 3
    found = GRAPH.nll(torch.cat([x, loop, directed, masked]))
    assert bool(torch.isfinite(found[0]))
    assert found[1:].tolist() == [math.inf] * 3
    assert float(GRAPH.counts(torch.cat([x, loop, directed, masked])).sum()) == 1


# ------------------------------------------------------------------------------------------------------ renumbering


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:], ids=str)
@pytest.mark.parametrize("typed", [False, True], ids=["edges", "nodes and edges"])
def test_what_is_believed_does_not_depend_on_the_numbers_of_nodes(typed: bool, order: tuple[int, ...]) -> None:
    oracle, process = (TYPED, Product(PAIR)) if typed else (GRAPH, of_edges("marginal"))
    new = torch.tensor(order)
    x_t = process.prior(oracle.sample(40, 0)).draw(sf.Stream(0))
    assert torch.allclose(oracle.nll(renumbered(oracle.graphs, new)), oracle.nll(oracle.graphs), atol=1e-12)
    here, there = (oracle.posterior(process)(x, 0.5) for x in (x_t, renumbered(x_t, new)))
    parts = (lambda q: {key: own.logp.exp() for key, own in q.parts.items()}) if typed else (lambda q: q.logp.exp())
    moved, found = renumbered(parts(here), new), parts(there)
    for a, b in zip(*(v.values() if typed else (v,) for v in (moved, found)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_law_that_depends_on_the_numbers_of_nodes_is_seen() -> None:
    oracle, process = EnumerableGraph(dirichlet(3, 3).p, 3), of_edges("marginal")
    new, x_t = torch.tensor([1, 2, 0]), process.prior(GRAPH.sample(40, 0)).draw(sf.Stream(0))
    here, there = (oracle.posterior(process)(x, 0.5).logp.exp() for x in (x_t, renumbered(x_t, new)))
    assert float((renumbered(here, new) - there).abs().max()) > 0.1


def test_what_the_sampler_writes_is_as_invariant_as_the_data() -> None:
    process = of_edges("uniform")
    written = GRAPH.output(process, torch.linspace(1, 0, 4, dtype=torch.float64))
    assert total_variation(written, GRAPH.p) > 1e-3
    assert torch.allclose(invariant(written, 3), written, atol=1e-12)


@pytest.mark.parametrize(("n", "typed"), [(3, False), (4, False), (2, True), (3, True)])
def test_an_invariant_table_is_the_mean_over_all_numberings(n: int, typed: bool) -> None:
    sites = math.comb(n, 2) + n * typed
    oracle = EnumerableGraph(dirichlet(2, sites).p, n)
    places = [oracle.nll(renumbered(oracle.graphs, torch.tensor(order))) for order in permutations(range(n))]
    mean = torch.stack(places).neg().exp().mean(0)
    assert torch.allclose(invariant(oracle.p, n).flatten(), mean, atol=1e-14)


# --------------------------------------------------------------------------------------------------------- refusals

EDGES3 = SymmetricEdges(size=3)
REFUSED: dict[str, tuple[Any, str]] = {
    "numbers": (lambda: Jump(absorbing(3), FLOW, SymmetricEdges()), "SymmetricEdges holds numbers, and a Jump moves"),
    "line": (lambda: Jump(absorbing(3), FLOW, Euclidean()), r"give Tokens or SymmetricEdges of size=3"),
    "vocabulary": (lambda: Jump(absorbing(4), FLOW, EDGES3), "a space of 3 tokens but a kernel of 4"),
    "mask": (lambda: Jump(absorbing(3, 0), FLOW, EDGES3), "padding holds token 0, which is this kernel's mask"),
    "noise": (
        lambda: SymmetricEdges().noise(torch.zeros(2, 3, 3, dtype=torch.int64), sf.Stream(0)),
        r"edges of torch.int64 but no vocabulary; give SymmetricEdges\(mask, size\)",
    ),
    "empty": (lambda: SymmetricEdges(size=0), "size=0: edges have at least one kind"),
    "square": (
        lambda: Jump(absorbing(3), FLOW, EDGES3).prior(torch.zeros(2, 3, 4, dtype=torch.int64)).draw(sf.Stream(0)),
        r"a state of shape \(2, 3, 4\); edges are \[b, n, n\]",
    ),
    "graphs": (
        lambda: SymmetricEdges(torch.ones(3, 4, dtype=torch.bool), 3).uniforms((2, 4, 4), sf.Stream(0)),
        r"a state of shape \(2, 4, 4\) for a mask of shape \(3, 4\)",
    ),
    "one node": (lambda: EnumerableGraph(torch.ones(2), 1), "n=1: a graph of an oracle has at least two nodes"),
    "sides": (lambda: EnumerableGraph(torch.ones(2, 2), 3), r"shape \(2, 2\) for graphs of 3 nodes; .* the 3 pairs"),
    "kinds": (lambda: EnumerableGraph(torch.ones(2, 3, 2), 3), r"shape \(2, 3, 2\) for graphs of 3 nodes"),
    "ragged": (lambda: EnumerableGraph([[1.0], [1.0, 2.0]], 3), r"a table of graphs of \[\[1.0\], \[1.0, 2.0\]\]"),
    "nothing": (lambda: EnumerableGraph(torch.zeros(2, 2, 2), 3), "not all 0"),
    "many": (lambda: EnumerableGraph(torch.ones([3] * 10), 5), "a table of 59049 sequences; at most 4096"),
    "row": (lambda: GRAPH.posterior(Jump(absorbing(4), FLOW)), "destroyed on Tokens would be drawn twice"),
    "parts": (lambda: TYPED.posterior(PAIR["edges"]), "a Jump of one part; give a Product of 'nodes' and 'edges'"),
    "part": (
        lambda: TYPED.posterior(Product({"edges": PAIR["edges"], "atoms": PAIR["nodes"]})),
        r"a Product of \['atoms', 'edges'\]; give a Product of 'nodes' and 'edges'",
    ),
    "padding": (
        lambda: GRAPH.posterior(Jump(uniform(3), FLOW, SymmetricEdges(torch.tensor([[True, True, False]]), 3))),
        "an oracle of 3 nodes and a space that pads some of them",
    ),
    "kernel": (lambda: GRAPH.posterior(Jump(uniform(2), FLOW, SymmetricEdges(size=2))), "a kernel of 2 tokens for"),
    "states": (
        lambda: GRAPH.posterior(of_edges("uniform"))(torch.zeros(1, 4, 4, dtype=torch.int64), 0.5),
        r"states of shape \(1, 4, 4\) for an oracle of 3 sites",
    ),
    "eps": (
        lambda: ScoreEntropy()(
            TokenDenoiser(lambda x, t, cond: torch.zeros(*x.shape, 3), Softmax(of_edges("uniform"))),
            GRAPH.sample(2, 0), torch.full((2,), 0.5), eps=torch.rand(2, 3, 3),
        ),
        r"given uniforms of shape \(2, 3, 3\) for sites \(2, 3\); give one a site",
    ),
    "blocks": (
        lambda: sf.processes.Blocks(Jump(absorbing(3), FLOW, EDGES3), 3),
        r"blocks are of sequences \[b, L\], not of SymmetricEdges",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(sf.Refusal, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)

"""Laws 1, 2, 3, 7, 9 for every process of numbers and tokens; those on manifolds are in test_space_laws."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.processes.interpolant import Bridge, Interpolant, Parabola, SineSquared
from sfumato.processes.mixed import NUMBERS, TOKENS, Together, join
from sfumato.spaces import SymmetricEdges
from sfumato.testing import (
    SigmaPoints,
    check_bridge,
    check_coupling,
    check_elbo,
    check_ends_of_process,
    check_equivariance,
    check_process,
    check_same_law,
    columns,
)
from sfumato.testing.processes import TIMES
from sfumato.trees import tree_map

SCHEDULES = sf.schedules.names()
#: Coupled paths: the laws that do not need a Markov chain.
INTERPOLANTS = {
    "straight": Interpolant(sf.schedules.get("flow")),
    "trigonometric": Interpolant(sf.schedules.get("cosine-continuous")),
    "brownian": Interpolant(sf.schedules.get("flow"), Bridge(1.0)),
    "sine-squared": Interpolant(sf.schedules.get("cosine-continuous"), SineSquared(0.5)),
    "parabola": Interpolant(sf.schedules.get("flow"), Parabola(2.0)),
}


#: Tokens: every kernel, on schedules that leave no signal at the end.
JUMPS = {
    "absorbing": sf.processes.Jump(sf.processes.absorbing(3), sf.schedules.get("flow")),
    "uniform": sf.processes.Jump(sf.processes.uniform(3), sf.schedules.get("cosine-continuous")),
    "marginal": sf.processes.Jump(sf.processes.marginal([0.5, 0.2, 0.3]), sf.schedules.get("linear")),
    "ordinal": sf.processes.Jump(sf.processes.discretised_gaussian(3, 0.5), sf.schedules.get("flow")),
    "rates": sf.processes.Jump(
        sf.processes.RateMatrix([[-1.5, 1.0, 0.5], [0.2, -0.2, 0.0], [0.6, 1.4, -2.0]]),
        sf.schedules.get("zero-terminal"),
    ),
    "blocks": sf.processes.Blocks(sf.processes.Jump(sf.processes.absorbing(3), sf.schedules.get("flow")), 1),
}
#: Kinds of edges of undirected graphs.
EDGES = SymmetricEdges(size=3)
GRAPHS = {
    "graph": sf.processes.Jump(sf.processes.marginal([0.5, 0.2, 0.3]), sf.schedules.get("flow"), EDGES),
    "graph, masked": sf.processes.Jump(sf.processes.absorbing(3), sf.schedules.get("cosine-continuous"), EDGES),
}
#: A clean state of each: two tokens; three nodes, two edges.
ROW, GRAPH = torch.tensor([[1, 0]]), torch.tensor([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]])
CLEAN = dict.fromkeys(JUMPS, ROW) | dict.fromkeys(GRAPHS, GRAPH)


#: Degradations, and heat: states have no transition from one to the next, only marginals and bridges.
CHAINLESS: dict[str, Any] = {
    name: sf.processes.Cold(sf.degradations.build("pixelate:coarsest=1" if name == "pixelate" else name))
    for name in sf.degradations.names()
}
CHAINLESS["heat"] = sf.processes.Heat(sf.processes.heat.Widths(0.5, 3.0, 20), 0.1, 0.125)


def gaussian_process(name: str) -> Any:
    return sf.processes.Gaussian(sf.schedules.get(name))


def product_process() -> Any:
    return sf.processes.Product({"image": gaussian_process("linear"), "point": gaussian_process("flow")})


def a_state(n: int = 1) -> torch.Tensor:
    return torch.tensor([[1.5, -0.7]], dtype=torch.float64).repeat(n, 1)


def a_product_state(n: int = 1) -> dict[str, torch.Tensor]:
    return {"image": torch.full((n, 1, 1, 2), 0.8, dtype=torch.float64), "point": a_state(n)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_gaussian_process(name: str) -> None:
    check_process(gaussian_process(name), a_state())


def test_product() -> None:
    check_process(product_process(), a_product_state())


@pytest.mark.parametrize("name", JUMPS | GRAPHS)
def test_jump(name: str) -> None:
    check_process((JUMPS | GRAPHS)[name], CLEAN[name], n=8_000 if name in GRAPHS else 20_000)


#: Numbers and tokens, in a dict and in one tensor.
TOGETHER: dict[str, tuple[Any, Any]] = {
    "product with tokens": (
        sf.processes.Product({"x": gaussian_process("flow"), "kind": JUMPS["uniform"]}),
        {"x": torch.tensor([[1.5, -0.7]], dtype=torch.float64), "kind": torch.tensor([[2]])},
    ),
    "mixed": (
        sf.processes.mixed.Mixed(gaussian_process("flow"), 2, 3, sf.schedules.get("cosine-continuous")),
        torch.tensor([[1.5, -0.7, 2.0]], dtype=torch.float64),
    ),
    "graph with kinds of nodes": (
        sf.processes.Product({"nodes": JUMPS["uniform"], "edges": GRAPHS["graph"]}),
        {"nodes": torch.tensor([[2, 0, 1]]), "edges": GRAPH},
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_numbers_and_tokens(name: str) -> None:
    process, clean = TOGETHER[name]
    n = 8_000 if name.startswith("graph") else 20_000
    check_process(process, clean, n=n)
    rng, clean = sf.Stream(0), tree_map(lambda v: v.expand(n, *v.shape[1:]), clean)
    end = process.prior(clean).draw(rng)  # a token on its way to a given end is still a draw
    given = process.marginal(clean, 0.4, end).draw(rng)
    check_same_law(given, process.marginal(clean, 0.4).draw(rng), "1 marginal with a given end, t=0.4")
    assert torch.equal(columns(process.marginal(clean, 1.0, end).draw(rng)), columns(end))


@pytest.mark.parametrize("name", CHAINLESS)
def test_without_a_chain(name: str) -> None:
    process, clean = CHAINLESS[name], torch.randn(1, 1, 3, 3, dtype=torch.float64).repeat(20_000, 1, 1, 1)
    assert torch.equal(process.marginal(clean, 0.0).draw(sf.Stream(0)), clean)
    for t, s in TIMES:
        check_bridge(process, clean, t, s, sf.Stream(0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_given_end(name: str) -> None:
    check_coupling(gaussian_process(name), a_state(50_000), sf.Stream(0))


def test_a_given_end_of_a_product() -> None:
    check_coupling(product_process(), a_product_state(50_000), sf.Stream(0))


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_is_the_entropy(name: str, steps: int) -> None:
    process = gaussian_process(name)
    oracle = sf.oracles.Gaussian([0.4, -1.0], [0.25, 4.0])
    rng = SigmaPoints()
    x0 = oracle.sample(128, rng)
    grid = sf.grids.uniform(process.schedule, steps)
    # the aggregate q(x_1) is a little off the prior where alpha(1) > 0: that KL is part of the bound
    alpha, sigma = sf.schedules.at(process.schedule, 1.0)
    end = sf.laws.Normal(
        alpha * torch.tensor([[0.4, -1.0]]).double(), alpha**2 * torch.tensor([[0.25, 4.0]]) + sigma**2
    )
    surplus = float(end.kl(process.prior(end.mean)))
    check_elbo(process, oracle.posterior(process), x0, oracle.entropy + surplus, grid, rng, 1e-6)


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("name", JUMPS)
def test_the_bound_of_tokens_is_the_entropy(name: str, steps: int) -> None:
    """Of sites that know nothing of each other, so that a belief site by site is the whole truth."""
    process, p = JUMPS[name], torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    p = p if process.kernel.mask is None else torch.tensor([0.7, 0.3], dtype=torch.float64)
    chain = sf.oracles.EnumerableChain(p[:, None] * p.flip(0))
    bound = chain.elbo(chain.posterior(process), process, torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    x1 = process.marginal(chain.sequences, 1.0).logp.exp()
    q = torch.einsum("n,nlk->lk", chain.p.flatten(), x1)  # where alpha(1) > 0 its KL from the prior is in the bound
    surplus = float(torch.xlogy(q, q / process.kernel.limit).nan_to_num().sum())
    assert float((chain.p.flatten() * bound.total).sum()) == pytest.approx(chain.entropy + surplus, abs=1e-9)


def outer(*sites: list[float]) -> torch.Tensor:
    """The table of sites that know nothing of each other."""
    return functools.reduce(lambda a, b: a[..., None] * b, [torch.tensor(p, dtype=torch.float64) for p in sites])


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", [*GRAPHS, "graph with kinds of nodes"])
def test_the_bound_of_graphs_is_the_entropy(name: str, steps: int) -> None:
    """Of edges that know nothing of each other; of others, in continuous time, in test_graphs."""
    process = (GRAPHS | {key: process for key, (process, _) in TOGETHER.items()})[name]
    edges, nodes = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], []
    if name == "graph, masked":
        edges = [[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]]
    if name in TOGETHER:
        edges, nodes = edges[:1], [[0.3, 0.7], [0.8, 0.2]]
    alone = sf.oracles.EnumerableGraph(outer(*nodes, *edges), 2 if nodes else 3)
    bound = alone.elbo(alone.posterior(process), process, torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    assert float((alone.p.flatten() * bound.total).sum()) == pytest.approx(alone.entropy, abs=1e-9)


def test_the_bound_of_numbers_and_tokens_is_the_sum_of_entropies() -> None:
    process, _ = TOGETHER["mixed"]
    numbers, tokens = sf.oracles.Gaussian([0.4, -1.0], [0.25, 4.0]), sf.oracles.EnumerableChain([0.6, 0.3, 0.1])
    oracle = sf.testing.Independent({NUMBERS: numbers, TOKENS: tokens})
    exact, n = oracle.posterior(process.product), 40_000
    x0 = join(oracle.sample(n, 0))

    def believe(x: torch.Tensor, t: Any, cond: Any = None) -> Any:
        return Together(exact(process.split(x), t))

    grid = sf.grids.uniform(process.schedule, 6)
    check_elbo(process, believe, x0, numbers.entropy + tokens.entropy, grid, sf.Stream(1), tolerance=0.03)


def test_the_bound_of_a_product_is_the_sum_of_entropies() -> None:
    process = product_process()
    image, point = sf.oracles.Gaussian([[[0.5, -0.3]]], [[[0.25, 1.5]]]), sf.oracles.Gaussian([1.0, 0.0], 0.5)
    oracle = sf.testing.Independent({"image": image, "point": point})
    rng = SigmaPoints()
    x0 = oracle.sample(256, rng)
    entropy = image.entropy + point.entropy
    check_elbo(
        process, oracle.posterior(process), x0, entropy, sf.grids.uniform(process.parts["image"].schedule, 7), rng, 1e-4
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_rotations_commute(name: str) -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    x0 = torch.randn(5, 3, dtype=torch.float64)
    check_equivariance(gaussian_process(name), x0, lambda x: x @ turn.T, sf.Stream(1))


def tokens(*order: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Token ``k`` called ``order[k]``."""
    return lambda x: torch.tensor(order)[x]


def renumbered(x: torch.Tensor) -> torch.Tensor:
    """The nodes of a graph in another order."""
    order = torch.tensor([2, 0, 1])
    return x[:, order][:, :, order]


def mirrored(x: torch.Tensor) -> torch.Tensor:
    """The last axis turned round: columns of an image, sites of a sequence."""
    return x.flip(-1)


#: What a process does not tell apart, and, where it is no chain, the laws that it has.
STATELESS: dict[str, Any] = {"laws": ("marginal", "bridge")}
COUPLED: dict[str, Any] = {"laws": ("marginal", "bridge", "belief bridge"), "eta": 0.0}
SYMMETRIES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "absorbing": (tokens(1, 0, 2), {}),
    "uniform": (tokens(1, 2, 0), {}),
    "marginal": (mirrored, {}),
    "ordinal": (tokens(2, 1, 0), {}),
    "rates": (mirrored, {}),
    "blocks": (tokens(1, 0, 2), {}),
    "graph": (renumbered, {}),
    "graph, masked": (lambda x: tokens(1, 0, 2)(renumbered(x)) * (1 - torch.eye(3, dtype=torch.int64)), {}),
    "graph with kinds of nodes": (
        lambda x: {"nodes": tokens(1, 2, 0)(x["nodes"][:, [2, 0, 1]]), "edges": renumbered(x["edges"])},
        {},
    ),
    "product with tokens": (lambda x: {"x": -x["x"].flip(-1), "kind": tokens(1, 2, 0)(x["kind"])}, {}),
    "mixed": (lambda x: torch.cat([-x[:, [1, 0]], tokens(1, 2, 0, 3)(x[:, 2:].long()).to(x)], 1), {}),
    **{name: (lambda x: -x, COUPLED) for name in INTERPOLANTS},
    **dict.fromkeys(("mask", "fade", "scatter"), (torch.neg, STATELESS)),
    **dict.fromkeys(("blur", "pixelate", "heat"), (mirrored, STATELESS)),
}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_symmetries_commute(name: str) -> None:
    act, options = SYMMETRIES[name]
    if name in TOGETHER:
        process, clean = TOGETHER[name]
    elif name in CLEAN:
        process, clean = (JUMPS | GRAPHS)[name], CLEAN[name]
    else:
        process = (INTERPOLANTS | CHAINLESS)[name]
        clean = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    clean = tree_map(lambda v: v.expand(200, *v.shape[1:]), clean)
    check_equivariance(process, clean, act, sf.Stream(1), **options)


def test_the_kit_sees_a_token_that_is_not_like_the_others() -> None:
    for name in ("marginal", "rates"):
        with pytest.raises(AssertionError, match="law broken: 9 equivariance"):
            check_equivariance(JUMPS[name], torch.tensor([[1, 0]]).expand(200, 2), tokens(1, 2, 0), sf.Stream(1))


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_interpolant(name: str) -> None:
    process, rng, n = INTERPOLANTS[name], sf.Stream(0), 50_000
    check_ends_of_process(process, a_state(), rng, eta=0.0)
    clean = a_state(n)
    for t, s in TIMES:
        check_bridge(process, clean, t, s, rng, etas=(0.0,))
    end = process.prior(clean).draw(rng)
    for t in (0.4, 0.8):  # a given end averages back to the marginal, fresh noise and all
        given = process.marginal(clean, t, end).draw(rng)
        check_same_law(given, process.marginal(clean, t).draw(rng), f"1 marginal with a given end, t={t}")
        times = torch.full((n,), t, dtype=torch.float64)
        assert torch.allclose(process.marginal(clean, times, end).point(), process.marginal(clean, t, end).point())
    if process.gamma is None:
        check_coupling(process, clean, rng)


def test_the_kit_sees_a_bridge_of_the_wrong_variance() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Beta:
        """A process whose bridge has the transition's variance: beta for beta-tilde."""

        inner: Any

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def bridge(self, x_t: Any, q: Any, t: Any, s: Any, eta: float = 1.0) -> Any:
            law = self.inner.bridge(x_t, q, t, s, eta)
            return law if eta < 1 or s == 0 else sf.laws.Normal(law.mean, self.inner.forward(x_t, s, t).var)

    with pytest.raises(AssertionError, match="bridge"):
        check_process(Beta(gaussian_process("flow")), a_state(), n=20_000)


def test_the_kit_sees_a_bridge_that_lands_elsewhere() -> None:
    process = product_process()
    with pytest.raises(AssertionError, match="law broken: 7 evidence bound"):
        check_elbo(
            gaussian_process("flow"),
            sf.oracles.Gaussian([0.0], 0.3).posterior(gaussian_process("flow")),
            sf.oracles.Gaussian([0.0], 0.25).sample(64, SigmaPoints()),
            sf.oracles.Gaussian([0.0], 0.25).entropy,
            sf.grids.uniform(process.parts["point"].schedule, 5),
            SigmaPoints(),
            1e-6,
        )

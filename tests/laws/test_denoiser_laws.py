"""Law 6 for every process that has more than one prediction, law 10 for Gaussian ones, and the denoiser's protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.denoisers import PREDICTIONS, GaussianHead, Preconditioned
from sfumato.denoisers.manifold import EndpointHead, VelocityHead
from sfumato.denoisers.tokens import HEADS
from sfumato.processes import (
    Blocks,
    Geodesic,
    Jump,
    RateMatrix,
    absorbing,
    discretised_gaussian,
    marginal,
    uniform,
)
from sfumato.spaces import SO3, Simplex, Sphere, SymmetricEdges, Torus
from sfumato.testing import (
    MLP,
    Independent,
    OracleNet,
    check_belief_at_data,
    check_denoiser,
    check_predictions,
    check_training,
    gaussian_lesson,
)

SCHEDULES = sf.schedules.names()
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
IMAGE = sf.oracles.Gaussian([[[0.5, -0.3]]], [[[0.25, 1.5]]])
DATA = sf.oracles.Empirical(MIXTURE.sample(40, 0), torch.arange(40) % 2)


def process_of(name: str) -> Any:
    return sf.processes.Gaussian(sf.schedules.get(name))


@pytest.mark.parametrize("name", SCHEDULES)
def test_predictions_are_one_belief(name: str) -> None:
    refused = check_predictions(process_of(name), MIXTURE)
    assert refused == (["eps", "score"] if name in ("flow", "cosine-continuous", "zero-terminal") else [])


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_predictions_are_one_belief_for_other_samplers(sampler: str) -> None:
    check_predictions(process_of("flow"), IMAGE, sampler=sampler)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["denoiser", "posterior"])
@pytest.mark.parametrize("oracle", [MIXTURE, IMAGE, DATA], ids=["mixture", "image", "data"])
def test_oracles_are_denoisers(oracle: Any, kind: str, name: str) -> None:
    process = process_of(name)
    denoiser = getattr(oracle, kind)(process)
    check_denoiser(denoiser, process, oracle.sample(6, 1), tolerance=1e-9)
    check_denoiser(denoiser, process, oracle.sample(6, 1).float())


@pytest.mark.parametrize("oracle", [MIXTURE, DATA], ids=["mixture", "data"])
def test_conditional_oracles_are_denoisers(oracle: Any) -> None:
    process = process_of("flow")
    cond = {"label": torch.tensor([0, 1, 2, 0, 1, 2])}
    check_denoiser(oracle.denoiser(process), process, oracle.sample(6, 1), cond=cond, tolerance=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_networks_are_denoisers(prediction: str) -> None:
    process = process_of("linear")
    net = MLP(2)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    model = Preconditioned(net, GaussianHead(process, prediction))
    check_denoiser(model, process, MIXTURE.sample(6, 1).float())


@pytest.mark.parametrize("prediction", ["eps", "v", "flow", "edm", "score"])
def test_any_network_believes_clean_data(prediction: str) -> None:
    process = process_of("linear")
    net = MLP(2)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    bound = 0.1 if prediction in ("score",) else 0.02
    check_belief_at_data(
        Preconditioned(net, GaussianHead(process, prediction)), process, MIXTURE.sample(6, 1).float(), bound
    )


def test_a_product_of_oracles_is_a_denoiser() -> None:
    process = sf.processes.Product({"image": process_of("linear"), "point": process_of("flow")})
    oracle = Independent({"image": IMAGE, "point": MIXTURE})
    for denoiser in (oracle.denoiser(process), oracle.posterior(process)):
        check_denoiser(denoiser, process, oracle.sample(5, 0), tolerance=1e-9)


@pytest.mark.parametrize(
    ("prediction", "name"),
    [("eps", "linear"), ("v", "cosine-continuous"), ("flow", "flow"), ("edm", "karras"), ("x0", "cosine")],
)
def test_training_reaches_the_oracle(prediction: str, name: str) -> None:
    check_training(gaussian_lesson(process_of(name), MIXTURE, prediction))


def test_the_kit_sees_a_network_that_did_not_learn() -> None:
    with pytest.raises(AssertionError, match="law broken: 10 training"):
        check_training(gaussian_lesson(process_of("flow"), MIXTURE, "flow"), steps=10)


# ------------------------------------------------------------------------------- one belief, stated in several ways

TOKENS: dict[str, Any] = {
    "absorbing": Jump(absorbing(4), sf.schedules.get("flow")),
    "uniform": Jump(uniform(3), sf.schedules.get("cosine-continuous")),
    "marginal": Jump(marginal([0.5, 0.2, 0.3]), sf.schedules.get("flow")),
    "ordinal": Jump(discretised_gaussian(3, 0.5), sf.schedules.get("flow")),
    "rates": Jump(RateMatrix([[-1.5, 1.0, 0.5], [0.2, -0.2, 0.0], [0.6, 1.4, -2.0]]), sf.schedules.get("flow")),
    "blocks": Blocks(Jump(absorbing(4), sf.schedules.get("flow")), 1),
    "graph": Jump(marginal([0.5, 0.2, 0.3]), sf.schedules.get("flow"), SymmetricEdges(size=3)),
    "graph, masked": Jump(absorbing(4), sf.schedules.get("flow"), SymmetricEdges(size=4)),
}
#: What a network has to output for a belief ``logp`` about tokens.
STATED: dict[str, Callable[[Any, torch.Tensor, torch.Tensor, Any], torch.Tensor]] = {
    "softmax": lambda process, logp, x, t: logp,
    "posterior": lambda process, logp, x, t: logp - process.kernel.columns(x, process.signal(t, x), torch.float64),
    "subs": lambda process, logp, x, t: logp + 1.5,
    "score": lambda process, logp, x, t: logp - 0.7,
}


@pytest.mark.parametrize("name", TOKENS)
def test_predictions_of_tokens_are_one_belief(name: str) -> None:
    process, graph = TOKENS[name], name.startswith("graph")
    oracle: Any = sf.oracles.EnumerableGraph(sf.oracles.dirichlet(3, 3).p, 3) if graph else sf.oracles.dirichlet(3, 2)
    exact, grid = oracle.posterior(process), torch.linspace(1, 0, 7, dtype=torch.float64)
    x1 = process.prior(oracle.sample(200, 0)).draw(sf.Stream(0))
    truth = sf.sample(exact, process, sf.samplers.get("ddpm"), grid, x1, rng=1)
    for kind in STATED if process.kernel.mask is not None else ("softmax", "posterior"):
        head = HEADS[kind](process)

        def restated(x: Any, t: Any, cond: Any = None, head: Any = head, kind: str = kind) -> Any:
            raw = STATED[kind](process, exact(x, t).logp, x, t)
            return head(raw.nan_to_num(nan=0.0, neginf=-1e4).clamp(min=-1e4), x, t)

        assert torch.equal(sf.sample(restated, process, sf.samplers.get("ddpm"), grid, x1, rng=1), truth), kind


MANIFOLDS: dict[str, tuple[Any, tuple[int, ...], str, tuple[Any, ...]]] = {
    "torus": (Geodesic(Torus()), (2,), "ddim", (VelocityHead, EndpointHead)),
    "sphere": (Geodesic(Sphere()), (3,), "ddim", (VelocityHead, EndpointHead)),
    "so3": (Geodesic(SO3()), (3, 3), "ddim", (VelocityHead, EndpointHead)),
    "simplex": (Geodesic(Simplex()), (3,), "ddim", (VelocityHead, EndpointHead)),
}


@pytest.mark.parametrize("name", MANIFOLDS)
def test_predictions_on_manifolds_are_one_belief(name: str) -> None:
    process, shape, sampler, heads = MANIFOLDS[name]
    zero = torch.zeros(40, *shape, dtype=torch.float64)
    exact = sf.oracles.ManifoldData(process.space, process.space.uniform(zero[:3], sf.Stream(9))).denoiser(process)
    x1, grid = process.prior(zero).draw(sf.Stream(0)), sf.grids.uniform(process.schedule, 12)
    truth = sf.sample(exact, process, sf.samplers.get(sampler), grid, x1)
    for make in heads:
        head = make(process)

        def restated(x: Any, t: Any, cond: Any = None, head: Any = head) -> Any:
            return head(head.target(exact(x, t).point(), x, t), x, t)

        x = sf.sample(restated, process, sf.samplers.get(sampler), grid, x1)
        assert float(process.space.distance(x, truth).max()) < 1e-6, make.__name__


def test_a_belief_with_variance() -> None:
    process = process_of("linear")
    head = GaussianHead(process, "v")
    x = torch.randn(4, 2)
    law = head((torch.zeros(4, 2), torch.full((4, 2), -1.0)), x, 0.5)
    _, sigma = sf.schedules.at(process.schedule, 0.5)
    assert isinstance(law, sf.laws.Normal)
    assert torch.allclose(torch.as_tensor(law.var), torch.full((4, 2), sigma**2 * 2.718281828459045**-1), rtol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_predictions_that_cannot_start_are_refused(prediction: str) -> None:
    with pytest.raises(sf.Refusal, match=r"cannot give x0 at t=1.*use 'v', 'x0', 'flow' or 'edm'"):
        Preconditioned(MLP(2), GaussianHead(process_of("flow"), prediction))


def test_unknown_predictions_are_refused_with_the_nearest() -> None:
    with pytest.raises(sf.Refusal, match=r"unknown prediction 'epsilon'.*eps"):
        GaussianHead(process_of("linear"), "epsilon")
    with pytest.raises(sf.Refusal, match="sigma_data"):
        GaussianHead(process_of("linear"), "edm", 0.0)


def test_express_states_the_target() -> None:
    process = process_of("flow")
    x0, eps = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    x_t = 0.7 * x0 + 0.3 * eps
    assert torch.allclose(sf.denoisers.express("flow", process, x0, x_t, 0.3), eps - x0)
    assert torch.allclose(sf.denoisers.express("eps", process, x0, x_t, 0.3), eps)
    assert torch.allclose(sf.denoisers.express("v", process, x0, x_t, 0.3), 0.7 * eps - 0.3 * x0)
    assert torch.allclose(sf.denoisers.express("score", process, x0, x_t, 0.3), -eps / 0.3)


def test_the_kit_sees_a_belief_that_mixes_the_batch() -> None:
    class Coupled:
        def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
            return sf.laws.Dirac(x_t - x_t.mean(0))

    with pytest.raises(AssertionError, match="alone and in a batch differ"):
        check_denoiser(Coupled(), process_of("flow"), MIXTURE.sample(4, 0))


def test_the_kit_sees_a_wrong_target() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Off:
        exact: Any

        def denoiser(self, process: Any) -> Any:
            return self.exact.denoiser(process)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.exact, name)

    class Wrong:
        def __init__(self, net: Any) -> None:
            self.net = net

        def __call__(self, x: Any, t: Any, cond: Any) -> Any:
            return 1.001 * self.net(x, t, cond)

    process = process_of("flow")
    head = GaussianHead(process, "v")
    exact = MIXTURE.denoiser(process)
    x = process.prior(torch.zeros(4, 2)).draw(sf.Stream(0)).double()
    right, wrong = (
        Preconditioned(net, head)(x, 0.5).point() for net in (OracleNet(exact, head), Wrong(OracleNet(exact, head)))
    )
    assert torch.allclose(right, exact(x, 0.5).point(), atol=1e-12)
    assert not torch.allclose(wrong, right, atol=1e-6)

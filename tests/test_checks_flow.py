"""Flow matching, couplings, bridges and reflow against exact values: identities, closed forms, plans, straightness."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.data import toys
from sfumato.denoisers import PREDICTIONS, GaussianHead, Preconditioned, express
from sfumato.errors import Refusal
from sfumato.likelihood import log_prob
from sfumato.metrics.transport import normalised_path_energy, velocity, walk
from sfumato.oracles.coupled import CoupledGaussian, bridge_covariance
from sfumato.processes.interpolant import Blur, Bridge, Interpolant, Parabola, SineSquared
from sfumato.training.couplings import Entropic, Exact, entropic_plan, exact_pairs, squared_distances
from sfumato.training.velocity import AtOne, velocity_loss

FLOW = sf.schedules.get("flow")
STRAIGHT = sf.processes.Gaussian(FLOW)
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
COND_OT_VP_COSINE = ("flow", "linear", "cosine-continuous")
#: Every kind of interpolant.
INTERPOLANTS = {
    "straight": Interpolant(FLOW),
    "trigonometric": Interpolant(sf.schedules.get("cosine-continuous")),
    "brownian": Interpolant(FLOW, Bridge(1.0)),
    "sine-squared": Interpolant(sf.schedules.get("cosine-continuous"), SineSquared(0.5)),
    "parabola": Interpolant(FLOW, Parabola(2.0)),
    "blurred": Interpolant(FLOW, Blur(0.1)),
}


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# -------------------------------------------------------------------------------------------------------- flow matching


@pytest.mark.parametrize("name", COND_OT_VP_COSINE)
@pytest.mark.parametrize("t", [0.13, 0.5, 0.93])
def test_marginal_velocity_is_the_conditional_expectation(name: str, t: float) -> None:
    process = sf.processes.Gaussian(sf.schedules.get(name))
    x = process.marginal(MIXTURE.sample(50, 0), t).draw(sf.Stream(1))
    exact = MIXTURE.velocity(process, x, t)
    assert float((velocity(MIXTURE.denoiser(process), process, x, t) - exact).abs().max()) < 1e-10
    # a finite data set: the mean of every datum's own velocity under its posterior weight, one by one
    data = MIXTURE.sample(20, 2)
    alpha, sigma, dalpha, dsigma = sf.schedules.rates(process.schedule, t)
    gap = x[:, None] - alpha * data
    weight = (-(gap**2).sum(-1) / (2 * sigma**2)).softmax(1)
    mean = (weight[..., None] * (dalpha * data + dsigma * gap / sigma)).sum(1)
    empirical = sf.oracles.Empirical(data)
    assert float((velocity(empirical.denoiser(process), process, x, t) - mean).abs().max()) < 1e-10


class PerSample:
    """The field ``a x + b`` with a copy of ``a`` and ``b`` for every sample: gradients come sample by sample."""

    def __init__(self, n: int) -> None:
        self.a = torch.full((n, 1), 0.3, dtype=torch.float64, requires_grad=True)
        self.b = torch.full((n, 1), -0.2, dtype=torch.float64, requires_grad=True)
        self.inputs: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        self.inputs = x
        return self.a * x + self.b

    def gradients(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.cat(torch.autograd.grad(loss.sum(), (self.a, self.b)), 1)


def require_zero_mean(values: torch.Tensor, sigmas: float = 4.0) -> None:
    error = values.std(0) / len(values) ** 0.5
    assert float((values.mean(0).abs() / error).max()) < sigmas


def test_gradient_of_conditional_flow_matching_is_that_of_flow_matching() -> None:
    n = 20_000
    process = INTERPOLANTS["straight"]
    net = PerSample(n)
    x0, t = MIXTURE.sample(n, 0), torch.full((n,), 0.6, dtype=torch.float64)
    conditional = net.gradients(velocity_loss(Preconditioned(net, GaussianHead(process, "flow")), x0, t, rng=1))
    assert net.inputs is not None
    x_t = net.inputs * math.hypot(0.4, 0.6)  # the head scales what the network sees to unit variance
    error = net.a * net.inputs + net.b - MIXTURE.velocity(STRAIGHT, x_t, 0.6)
    marginal = net.gradients((error**2).mean(1))
    require_zero_mean(conditional - marginal)
    assert float(marginal.mean(0).abs().min()) > 0.1  # and neither is zero


@pytest.mark.parametrize("name", COND_OT_VP_COSINE)
def test_conversions_round_trip(name: str) -> None:
    process = sf.processes.Gaussian(sf.schedules.get(name))
    x0, noise = MIXTURE.sample(20, 0), sf.Stream(1).normal((20, 2)).double()
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = sf.schedules.at(process.schedule, t)
        x_t = alpha * x0 + sigma * noise
        for first in PREDICTIONS:
            stated = express(first, process, x0, x_t, t)
            clean = GaussianHead(process, first)(stated, x_t, t).point()
            assert float((clean - x0).abs().max()) < 1e-10
            for second in PREDICTIONS:
                through = GaussianHead(process, second)(express(second, process, clean, x_t, t), x_t, t).point()
                assert float((express(first, process, through, x_t, t) - stated).abs().max()) < 1e-10 / sigma


def test_likelihood_of_the_exact_field() -> None:
    x0 = MIXTURE.sample(20, 3)
    found = log_prob(MIXTURE.denoiser(STRAIGHT), STRAIGHT, x0, noise=1e-4, tolerance=1e-8)
    assert float((found.logp + MIXTURE.nll(x0)).abs().max()) < 1e-5


# --------------------------------------------------------------------------------------------------------- interpolants


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_solvers_see_the_velocity_itself(name: str) -> None:
    """Whatever the coupling and whatever the field: restated as x0 and back, the velocity is unchanged."""
    process = INTERPOLANTS[name]
    x, v = torch.randn(2, 30, 2, dtype=torch.float64)
    head = GaussianHead(process, "flow")

    class Anything:
        def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
            return head(v, x_t, t)

    for t in (1.0, 0.7, 0.3, 0.01):
        assert float((velocity(Anything(), process, x, t) - v).abs().max()) < 1e-10


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_without_a_coupling_it_is_the_gaussian_process(name: str) -> None:
    process = INTERPOLANTS[name]
    gaussian = sf.processes.Gaussian(process.schedule)
    oracle, coupled = sf.oracles.Gaussian([0.7], 2.0), CoupledGaussian(0.7, 2.0)
    x = column(-2.0, 0.1, 3.0)
    for t in (1.0, 0.6, 0.2):
        if name != "blurred":  # whose schedule spreads the prior, too
            gap = coupled.velocity(process, x, t) - oracle.velocity(gaussian, x, t)
            assert float(gap.abs().max()) < 1e-12
        given = process.marginal(x, t)
        assert torch.equal(given.point(), gaussian.marginal(x, t).point())


@pytest.mark.parametrize("name", [name for name in INTERPOLANTS if name != "straight"])
@pytest.mark.parametrize("t", [0.05, 0.35, 0.9])
def test_regression_finds_the_exact_velocity(name: str, t: float) -> None:
    """At the closed-form velocity of a coupling the gradient of the loss vanishes: the target has every term."""
    process, n = INTERPOLANTS[name], 40_000
    coupled = CoupledGaussian(0.5, 1.5, 0.0, 1.0, 0.8)
    noise = sf.Stream(3).normal((2, n, 1)).double()
    end = noise[0]
    x0 = 0.5 + 0.8 * end + (1.5 - 0.64) ** 0.5 * noise[1]
    at = torch.full((n,), t, dtype=torch.float64)
    shift = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
    slope = torch.ones(n, 1, dtype=torch.float64, requires_grad=True)

    class Exactly:
        def __call__(self, x: Any, times: Any, cond: Any) -> Any:
            alpha, sigma = sf.schedules.at(process.schedule, t)
            return slope * coupled.velocity(process, x * math.hypot(alpha, sigma), t) + shift

    head = GaussianHead(process, "flow")
    loss = velocity_loss(Preconditioned(Exactly(), head), x0, at, rng=4, end=end)
    require_zero_mean(torch.cat(torch.autograd.grad(loss.sum(), (shift, slope)), 1))


def test_the_bridge_loss_is_finite_and_bounded_at_both_ends() -> None:
    process, n = INTERPOLANTS["brownian"], 512
    head = GaussianHead(process, "flow")
    x0 = sf.Stream(0).normal((n, 4))
    for t in (2.0**-25, 1e-6, 1 - 1e-6, 1 - 2.0**-25):
        times = torch.full((n,), t, dtype=torch.float64)
        zero = Preconditioned(lambda x, t, cond: torch.zeros_like(x), head)
        loss = velocity_loss(zero, x0, times, rng=1)
        # unit noise and no data in proportion: gamma'^2 / (1 + gamma'^2)
        assert float(loss.mean()) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(Refusal, match="rng is None"):
        velocity_loss(zero, x0, times, eps=x0)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_a_coupled_path_is_no_markov_chain(name: str) -> None:
    process, x = INTERPOLANTS[name], column(0.3, -0.2)
    q = sf.laws.Dirac(x)
    for refused in (
        lambda: process.forward(x, 0.2, 0.5),
        lambda: process.rate(q, x, x, 0.5),
        lambda: process.bridge(x, q, 0.5, 0.2),
        lambda: process.bridge(x, q, 0.5, 0.2, 0.1),
    ):
        with pytest.raises(Refusal, match="no Markov chain"):
            refused()
    grid = sf.grids.uniform(process.schedule, 4)
    for sampler in ("ddpm", "ddpm-large", "euler-ancestral", "euler-maruyama"):
        with pytest.raises(Refusal):
            sf.samplers.trajectory(
                CoupledGaussian(0.0, 1.0).denoiser(process), process, sf.samplers.get(sampler), grid, x, rng=0
            )
    with pytest.raises(Refusal, match="Markov"):
        sf.samplers.get("ddim", eta=0.5).start(None, process, grid.tolist())


def test_refusals_of_interpolants() -> None:
    with pytest.raises(Refusal, match="rises again"):
        Interpolant(sf.schedules.get("cosine-continuous"), SineSquared(5.0))
    with pytest.raises(Refusal, match="velocity_loss"):
        INTERPOLANTS["brownian"].loss(sf.laws.Dirac(column(0.0)), column(0.0), column(0.0), 0.5)
    with pytest.raises(Refusal, match="no velocity to regress"):
        velocity_loss(Preconditioned(None, GaussianHead(STRAIGHT, "flow")), column(0.0), column(0.5)[:, 0])
    for bump in (Bridge, SineSquared, Parabola, Blur):
        with pytest.raises(Refusal, match="positive size"):
            bump(0.0)


# ------------------------------------------------------------------------------------------------------------ couplings


def clouds(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return toys.sample("8gaussians", n, 0), toys.sample("gaussian", n, 1)


def test_the_exact_plan_is_optimal_and_uses_every_draw_once() -> None:
    import ot

    x0, noise = clouds(256)
    end = Exact()(x0, noise, None, sf.Stream(0))
    even = np.full(256, 1 / 256)
    best = ot.emd2(even, even, squared_distances(x0, noise).numpy())
    assert float(((x0 - end) ** 2).sum(1).mean()) == pytest.approx(best, abs=1e-9)
    assert torch.equal(end.sort(0).values, noise.sort(0).values)
    assert torch.equal(exact_pairs(squared_distances(x0, noise)).sort().values, torch.arange(256))


@pytest.mark.parametrize("coupling", [Exact(), Entropic(0.5)])
def test_pairs_are_made_within_labels_and_repeat(coupling: Any) -> None:
    x0, noise = clouds(96)
    label = torch.arange(96) % 3
    end = coupling(x0, noise, label, sf.Stream(7))
    assert torch.equal(end, coupling(x0, noise, label, sf.Stream(7)))
    for c in range(3):
        own = noise[label == c]
        assert all(bool((own == row).all(1).any()) for row in end[label == c])
        alone = coupling(x0[label == c], own, None, sf.Stream(7))
        if isinstance(coupling, Exact):
            assert torch.equal(end[label == c], alone)


@pytest.mark.parametrize("reg", [0.02, 0.5, 2.0, 200.0])
def test_entropic_plan(reg: float) -> None:
    import ot

    x0, noise = clouds(64)
    cost, even = squared_distances(x0, noise), np.full(64, 1 / 64)
    plan = entropic_plan(cost, reg)
    assert float((plan.sum(0) - 1 / 64).abs().max()) < 1e-12
    assert float((plan.sum(1) - 1 / 64).abs().max()) < 1e-12
    if reg >= 0.5:  # below, the peer's scalings overflow
        peer = ot.sinkhorn(even, even, cost.numpy(), reg, method="sinkhorn_stabilized", numItermax=5000)
        assert np.abs(plan.numpy() - peer).sum() < 1e-5
    else:
        assert float((plan * cost).sum()) == pytest.approx(ot.emd2(even, even, cost.numpy()), rel=2e-3)
    # cut short it is still a coupling
    short = entropic_plan(cost, reg, iterations=3)
    assert float((short.sum(0) - 1 / 64).abs().max()) < 1e-12
    assert float((short.sum(1) - 1 / 64).abs().max()) < 1e-12


def test_entropic_pairs_follow_the_plan() -> None:
    x0, noise = clouds(24)
    plan = entropic_plan(squared_distances(x0, noise), 2 * 1.5**2)
    counts, rounds = torch.zeros(24, 24, dtype=torch.float64), 600
    for k in range(rounds):
        end = Entropic(1.5)(x0, noise, None, sf.Stream(k))
        column_of = (end[:, None] == noise).all(-1).long().argmax(1)
        counts[torch.arange(24), column_of] += 1
    expected = 24 * plan
    z = (counts / rounds - expected) / (expected * (1 - expected) / rounds).sqrt().clamp(min=1e-3)
    assert float(z.abs().max()) < 5


# -------------------------------------------------------------------------------------------------------------- bridges


@pytest.mark.parametrize(("sigma", "expected"), [(1.0, 1.561553), (1e-4, 2.0), (1e3, 0.0)])
def test_schroedinger_bridge_of_gaussians(sigma: float, expected: float) -> None:
    # optimal transport (s0 s1 = 2) as sigma falls, independence as it grows
    assert bridge_covariance(1.0, 4.0, sigma) == pytest.approx(expected, abs=1e-5)


def test_sinkhorn_on_a_grid_gives_the_bridge() -> None:
    x = torch.linspace(-5, 5, 361, dtype=torch.float64)
    y = 2 * x
    a, b = (-(x**2) / 2).softmax(0), (-(y**2) / 8).softmax(0)
    plan = entropic_plan((x[:, None] - y) ** 2, 2.0, a, b)
    assert float((plan * x[:, None] * y).sum()) == pytest.approx(1.561420, abs=2e-4)


BRIDGE = Interpolant(FLOW, Bridge(1.0))
SCHROEDINGER = CoupledGaussian(0.0, 1.0, 0.0, 4.0, bridge_covariance(1.0, 4.0, 1.0))


def test_bridge_marginals_by_the_ode() -> None:
    assert float(SCHROEDINGER.moments(BRIDGE, 0.5)[1]) == pytest.approx(2.280776, abs=1e-6)
    grid = torch.linspace(1.0, 0.5, 126, dtype=torch.float64)
    x = sf.sample(SCHROEDINGER.denoiser(BRIDGE), BRIDGE, sf.samplers.get("heun"), grid, column(2.0))
    assert float(x**2) == pytest.approx(2.280776, abs=1e-4)
    # all the way, on the grid of the recipe: sigma_t is like sqrt(t) near the data
    whole = sf.grids.get("quadratic")(BRIDGE.schedule, 100)
    x = sf.sample(SCHROEDINGER.denoiser(BRIDGE), BRIDGE, sf.samplers.get("heun"), whole, column(2.0))
    assert float(x**2) == pytest.approx(1.0, abs=5e-3)


def test_bridge_marginals_by_the_sde() -> None:
    """``dx = (v - sigma^2 / 2 grad log p) dt + sigma dW``, backwards, has the ODE's marginals: the variance."""
    variance, steps = 4.0, 20_000
    times = torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64)
    one = torch.ones(steps, 1, dtype=torch.float64)
    drift = SCHROEDINGER.velocity(BRIDGE, one, times[:-1]) - 0.5 * SCHROEDINGER.score(BRIDGE, one, times[:-1])
    h, halfway = 0.9 / steps, 0.0
    for t, rate in zip(times.tolist(), drift[:, 0].tolist(), strict=False):
        halfway = variance if abs(t - 0.5) < h / 2 else halfway
        variance = (1 - h * rate) ** 2 * variance + h
    assert halfway == pytest.approx(2.280776, abs=1e-3)
    assert variance == pytest.approx(float(SCHROEDINGER.moments(BRIDGE, 0.1)[1]), abs=1e-3)


def test_likelihood_of_a_coupled_path() -> None:
    process = INTERPOLANTS["straight"]
    x0 = column(-1.0, 0.3, 2.0)
    coupled = CoupledGaussian(0.5, 1.5, 0.0, 1.0, 0.8)
    found = log_prob(coupled.denoiser(process), process, x0, noise=1e-6, tolerance=1e-8)
    expected = -sf.oracles.Gaussian([0.5], 1.5).nll(x0)
    assert float((found.logp - expected).abs().max()) < 1e-5


# --------------------------------------------------------------------------------------------------------- straightness

#: Sigma points of the prior: every flow here is linear, so two points carry its mean and variance.
TWO = column(-1.0, 1.0)


@pytest.mark.parametrize(("s", "straightness"), [(1.0, 0.429204), (2.0, 0.858407), (3.0, 1.287611)])
def test_rectified_flow_of_gaussians(s: float, straightness: float) -> None:
    m = 0.7
    oracle = sf.oracles.Gaussian([m], s * s)
    first = walk(oracle.denoiser(STRAIGHT), STRAIGHT, TWO, steps=200)
    assert float((first.x0 - (m + s * TWO)).abs().max()) < 1e-6  # the optimal transport map
    assert float(first.straightness.mean()) == pytest.approx(straightness, abs=1e-6)
    assert straightness == pytest.approx(s * (2 - math.pi / 2), abs=1e-6)
    assert float(first.energy.mean()) == pytest.approx((s - 1) ** 2 + straightness + m * m, abs=1e-6)
    # one Euler step of it: all samples on the mean
    one = sf.grids.uniform(FLOW, 1)
    collapsed = sf.sample(oracle.denoiser(STRAIGHT), STRAIGHT, sf.samplers.get("euler"), one, TWO)
    assert float((collapsed - m).abs().max()) < 1e-12
    # reflow: what regression on its pairs learns is straight, one step is exact, and no convex cost rises
    process = Interpolant(FLOW)
    again = CoupledGaussian.fit(first.x0, first.x1).denoiser(process)
    second = walk(again, process, TWO, steps=20)
    assert float(second.straightness.abs().max()) < 1e-9
    once = sf.sample(again, process, sf.samplers.get("euler"), one, TWO)
    assert float((once - first.x0).abs().max()) < 1e-9
    independent = 1 + s * s + m * m
    assert float(first.cost.mean()) <= independent
    for power in (1, 2, 4):
        cost = [float(((w.x1 - w.x0).abs() ** power).mean()) for w in (first, second)]
        assert cost[1] <= cost[0] * (1 + 1e-9)


def test_normalised_path_energy_of_gaussians() -> None:
    flow = walk(sf.oracles.Gaussian([0.0], 4.0).denoiser(STRAIGHT), STRAIGHT, TWO, steps=200)
    assert normalised_path_energy(float(flow.energy.mean()), 1.0) == pytest.approx(0.858407, abs=1e-6)
    with pytest.raises(Refusal, match="no scale"):
        normalised_path_energy(1.0, 0.0)


def test_optimal_transport_has_no_excess_energy() -> None:
    process = Interpolant(FLOW)
    joined = CoupledGaussian(0.0, 4.0, 0.0, 1.0, 2.0)
    flow = walk(joined.denoiser(process), process, TWO, steps=10)
    assert normalised_path_energy(float(flow.energy.mean()), 1.0) < 1e-12


# -------------------------------------------------------------------------------------------------------------- recipes

TINY: dict[str, Any] = {"channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "precision": "float32"}


class Probe(torch.nn.Module):
    """A network that answers 0 and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        self.seen.append(x)
        return 0 * x


def probed(recipe: str, times: Any, **settings: Any) -> tuple[sf.Diffusion, Probe, dict[str, torch.Tensor]]:
    """A recipe's model around a probe, at other times, with a batch of its data."""
    from sfumato import recipes
    from sfumato.training.settings import resolve

    data = sf.data.load("digits").standardised()
    chosen = recipes.get(recipe)
    model = chosen.build(resolve(chosen.defaults, TINY | settings), data.spec(), {"seed": 0, "horizon": {"steps": 1}})
    probe = Probe()
    compose = model.compose
    model = replace(model, net=probe, compose=lambda net: replace(compose(net), times=times))
    return model, probe, {"x": data.train.x[:120], "label": data.train.label[:120]}


def ends_seen(recipe: str, seed: int, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model, probe, batch = probed(recipe, AtOne(), **settings)
    model.losses(batch, sf.Stream(seed))
    return model.transform.encode(batch["x"]), probe.seen[0], batch["label"]


def test_ot_cfm_trains_on_optimal_pairs_of_every_class() -> None:
    x0, end, label = ends_seen("ot-cfm", 0)
    for c in label.unique():
        cost = squared_distances(x0[label == c], end[label == c])
        assert torch.equal(exact_pairs(cost), torch.arange(len(cost)))
    free_x0, free, _ = ends_seen("ot-cfm", 0, conditional=False)
    whole = squared_distances(free_x0, free)
    assert torch.equal(exact_pairs(whole), torch.arange(len(whole)))
    # classes divide a batch, and cost it optimality
    assert float(whole.diagonal().mean()) < float(squared_distances(x0, end).diagonal().mean())


def test_sb_cfm_trains_on_entropic_pairs_and_bridges() -> None:
    joined = [ends_seen("sb-cfm", 0, sigma=sigma, conditional=False) for sigma in (0.5, 100.0)]
    cost = [float((x0 - end).square().flatten(1).sum(1).mean()) for x0, end, _ in joined]
    assert cost[0] < cost[1]  # a cold plan is near optimal, a hot one independent
    # half-way the state has the bridge's variance beyond what its ends explain
    model, probe, batch = probed("sb-cfm", lambda u: torch.full_like(u, 0.5).double(), sigma=2.0)
    model.losses(batch, sf.Stream(0))
    x_t = probe.seen[0] * (0.25 + 0.25 + 4 / 4) ** 0.5
    x0 = model.transform.encode(batch["x"])
    rest = x_t - 0.5 * x0  # 0.5 end + gamma z, gamma = 1, and end standard normal in law
    assert float(rest.var()) == pytest.approx(0.25 + 1.0, rel=0.05)


def test_interpolant_trains_on_its_path() -> None:
    model, probe, batch = probed("interpolant", lambda u: torch.full_like(u, 0.5).double(), bump_scale=1.0)
    (loss,) = model.losses(batch, sf.Stream(0)).values()
    x0 = model.transform.encode(batch["x"])
    x_t = probe.seen[0] * (0.5 + 0.5 + 1.0) ** 0.5
    half = 0.5**0.5
    assert float((x_t - half * x0).var()) == pytest.approx(0.5 + 1.0, rel=0.05)  # beta^2 + gamma^2
    # a network of zeros: |alpha' x0 + beta' x1|^2, gamma' = 0 in the middle
    expected = (math.pi / 2) ** 2 * (0.5 * float(x0.square().mean()) + 0.5)
    assert float(loss.mean()) == pytest.approx(expected, rel=0.05)


def test_recipes_are_what_they_name() -> None:
    paths = {name: probed(name, AtOne())[0].process for name in ("ot-cfm", "sb-cfm", "interpolant")}
    assert paths["ot-cfm"] == Interpolant(FLOW)
    assert paths["sb-cfm"] == Interpolant(FLOW, Bridge(0.5))
    assert paths["interpolant"] == Interpolant(sf.schedules.get("cosine-continuous"), SineSquared(0.5))

"""Riemannian flow matching and Brownian diffusion on manifolds: velocities, heads, losses, data, refusals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.data import manifolds
from sfumato.denoisers.manifold import EndpointHead, OnManifold, ScoreHead, VelocityHead, tangent_loss
from sfumato.laws import Dirac
from sfumato.laws.manifold import Along, WrappedNormal
from sfumato.nets.mlp import MLP
from sfumato.oracles import ManifoldData
from sfumato.processes import Brownian, Circles, Geodesic, Product, Rotations
from sfumato.processes.interpolant import Interpolant
from sfumato.samplers.manifold import GeodesicWalk
from sfumato.spaces import SO3, Simplex, Sphere, Torus
from sfumato.testing import z_mean


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "torus": (Torus(), (2,)),
    "sphere": (Sphere(), (3,)),
    "so3": (SO3(), (3, 3)),
    "simplex": (Simplex(), (3,)),
}


def pair(name: str, n: int) -> tuple[Any, Tensor, Tensor]:
    space, shape = CASES[name]
    zero = torch.zeros(n, *shape, dtype=torch.float64)
    return space, space.uniform(zero, sf.Stream(0)), space.uniform(zero, sf.Stream(1))


@pytest.mark.parametrize("name", CASES)
def test_the_velocity_is_the_derivative_of_the_path(name: str) -> None:
    space, x0, x1 = pair(name, 20)
    for schedule in ("flow", "cosine-continuous"):
        process = Geodesic(space, sf.schedules.get(schedule))
        for t in (0.2, 0.8):
            x_t = process.marginal(x0, t, x1).point()
            ahead, behind = (process.marginal(x0, t + h, x1).point() for h in (1e-6, -1e-6))
            moved = (space.log(x_t, ahead) - space.log(x_t, behind)) / 2e-6
            times = torch.full((20,), t, dtype=torch.float64)
            assert torch.allclose(process.velocity(x0, x_t, t), moved, atol=1e-7)
            assert torch.allclose(process.velocity(x0, x_t, times), moved, atol=1e-7)
            slope = space.square(process.slope(x0, x_t, t)).sqrt()
            assert torch.allclose(slope, space.distance(x0, x1))  # of constant length


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_many_steps_for_a_constant_belief(name: str) -> None:
    space, x0, x1 = pair(name, 20)
    process = Geodesic(space)
    x = x1
    for t, s in ((1.0, 0.9), (0.9, 0.35), (0.35, 0.1)):
        x = process.bridge(x, Dirac(x0), t, s, 0.0).point()
        assert torch.allclose(x, process.marginal(x0, s, x1).point(), atol=1e-9)
    assert torch.equal(process.bridge(x, Dirac(x0), 0.1, 0.0, 0.0).point(), x0)
    assert torch.allclose(process.bridge(x0, Dirac(x0), 0.0, 0.3, 0.0).point(), x0)  # out of the data: stays


def test_ddim_solves_the_ode_of_an_exact_belief() -> None:
    process = Geodesic(Torus())
    oracle = ManifoldData(Torus(), [[-1.0], [1.2], [2.5]])
    model, x1 = oracle.denoiser(process), torch.linspace(-3.1, 3.1, 40, dtype=torch.float64)[:, None]
    end = sf.sample(model, process, sf.samplers.get("ddim"), sf.grids.uniform(process.schedule, 50), x1)
    assert bool((end[:, None] == oracle.atoms).any(1).all())  # it lands on the data, exactly
    # the exact marginal density integrates to 1
    ring = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)[:-1, None]
    for t in (0.9, 0.5, 0.2):
        density = oracle.logp(process, ring, t).exp()
        assert float(density.mean() * 2 * math.pi) == pytest.approx(1, abs=2e-3)


def test_ddim_on_a_sphere_is_of_first_order() -> None:
    # on the circle the exact velocity jumps where a ball ends; on the 3-sphere it is smooth
    process, zero = Geodesic(Sphere()), torch.zeros(40, 4, dtype=torch.float64)
    model = ManifoldData(Sphere(), Sphere().uniform(zero[:3], sf.Stream(0))).denoiser(process)
    x1 = Sphere().uniform(zero, sf.Stream(1))
    grids = [torch.linspace(1, 0.4, n + 1, dtype=torch.float64) for n in (40, 80, 160)]
    walks = [sf.sample(model, process, sf.samplers.get("ddim"), grid, x1) for grid in grids]
    gaps = [float(Sphere().distance(a, b).mean()) for a, b in pairwise(walks)]
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.06)


def test_the_exact_posterior_on_the_circle() -> None:
    process = Geodesic(Torus())
    oracle = ManifoldData(Torus(), [[0.0], [1.0], [-2.0]])
    # at share .25 a state at .6 is within .25 pi of 0 and of 1, not of -2
    belief = oracle.belief(process, f64([0.6]), 0.25)
    assert torch.allclose(belief.logr.exp(), f64([0.5, 0.5, 0.0]))
    assert float(belief.point()) == pytest.approx(0.5)
    assert belief.nll(f64([1.0])).item() == pytest.approx(math.log(2))
    assert oracle.belief(process, f64([2.5]), 0.1).logr.exp()[0].tolist() == [0.0, 1.0, 0.0]  # lost: the nearest
    walk = Brownian(Circles())
    gaps = WrappedNormal(oracle.atoms, 1.1).nll(f64([0.6]).expand(3, 1))
    sigma_time = float(sf.schedules.time_at(walk.schedule, -2 * math.log(1.1)))
    assert torch.allclose(oracle.belief(walk, f64([0.6]), sigma_time).logr[0], (-gaps).log_softmax(0), atol=1e-9)
    # the mean score is the slope of the exact density
    x = f64([0.6], [-2.9])
    ahead, behind = (oracle.logp(walk, x + h, sigma_time) for h in (1e-6, -1e-6))
    assert torch.allclose(oracle.score(walk, x, sigma_time)[:, 0], (ahead - behind) / 2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["circles", "rotations"])
def test_the_walk_at_eta_0_is_of_first_order(name: str) -> None:
    kernel, shape, n = {"circles": (Circles(), (1,), 64), "rotations": (Rotations(), (3, 3), 24)}[name]
    process, zero = Brownian(kernel), torch.zeros(3, *shape, dtype=torch.float64)
    oracle = ManifoldData(kernel.space, kernel.space.uniform(zero, sf.Stream(3)))
    x = process.marginal(oracle.sample(n, 0), 0.8).draw(sf.Stream(0))
    grids = [torch.linspace(0.8, 0.3, steps + 1, dtype=torch.float64) for steps in (40, 80, 160)]
    walks = [sf.sample(oracle.denoiser(process), process, GeodesicWalk(0.0), grid, x) for grid in grids]
    gaps = [float(kernel.space.distance(a, b).mean()) for a, b in pairwise(walks)]
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.06)


def test_a_step_of_the_walk() -> None:
    process, n = Brownian(Circles()), 20_000
    x, belief = f64([1.0]).expand(n, 1), Dirac(f64([-0.4]).expand(n, 1))
    t, s = 0.5, 0.45
    between = process._between(s, t, x)
    drift = between * float(process.score(belief, x, t)[0])
    moved, _ = GeodesicWalk()(belief, process, x, t, s, None, sf.Stream(0))
    step = Torus().log(x, moved)[:, 0]
    assert z_mean(step, drift) < 4.5
    assert z_mean((step - drift) ** 2, between) < 4.5
    along, _ = GeodesicWalk(0.0)(belief, process, x, t, s, None, None)
    assert float(Torus().log(x, along)[0]) == pytest.approx(drift / 2)
    assert torch.equal(GeodesicWalk()(belief, process, x, t, 0.0, None, sf.Stream(0))[0], belief.x)


def heads(space: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"velocity": VelocityHead(Geodesic(space)), "endpoint": EndpointHead(Geodesic(space))}
    if isinstance(space, Torus):
        found["score"] = ScoreHead(Brownian(Circles()))
    if isinstance(space, SO3):
        found["score"] = ScoreHead(Brownian(Rotations()))
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_head_reads_its_own_target(name: str) -> None:
    space, x0, _ = pair(name, 30)
    for kind, head in heads(space).items():
        for t in (0.3, torch.full((30,), 0.3, dtype=torch.float64)):
            x_t = head.process.marginal(x0, t).draw(sf.Stream(2))
            belief = head(head.target(x0, x_t, t), x_t, t)
            if kind == "score":
                score = head.process.score(Dirac(x0), x_t, t)
                assert torch.allclose(head.process.score(belief, x_t, t), score, rtol=1e-5), kind
            else:
                assert float(space.distance(belief.point(), x0).max()) < 1e-5, kind


def test_the_score_target_has_unit_size_per_factor() -> None:
    n = 20_000
    for kernel, shape in ((Circles(), (1,)), (Rotations(), (3, 3))):
        head = ScoreHead(Brownian(kernel))
        x0 = kernel.space.uniform(torch.zeros(n, *shape, dtype=torch.float64), sf.Stream(0))
        for t in (0.2, 0.6, 0.8):
            x_t = head.process.marginal(x0, t).draw(sf.Stream(1))
            square = kernel.space.square(head.target(x0, x_t, t))
            assert abs(float(square.mean()) - 1) < 4.5 * float(square.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", CASES)
def test_losses_are_finite_at_both_ends_and_learn(name: str) -> None:
    torch.manual_seed(0)
    space, x0, _ = pair(name, 64)
    x0 = space.exp(x0[:1].expand_as(x0), 0.1 * space.noise(x0[:1].expand_as(x0), sf.Stream(3))).float()
    inputs, outputs = space.coordinates(x0).shape[1], x0[0].numel()
    for kind, head in heads(space).items():
        model = OnManifold(MLP(inputs, outputs, width=32, depth=2), head)
        t = torch.rand(64).clamp(min=1e-3)
        t[0], t[1] = 1.0, 1e-3
        optimiser = torch.optim.Adam(model.net.parameters(), 3e-3)
        losses = []
        for step in range(60):
            loss = tangent_loss(model, x0, t, rng=sf.Stream(step))
            assert loss.shape == (64,)
            assert bool(torch.isfinite(loss).all()), kind
            optimiser.zero_grad()
            loss.mean().backward()
            optimiser.step()
            losses.append(float(loss.detach().mean()))
        assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), (kind, losses[::10])
        process = head.process
        for moment in (0.0, 1.0):
            q = Dirac(space.uniform(x0, sf.Stream(5)))
            found = process.loss(q, x0, process.marginal(x0, moment).draw(sf.Stream(4)), moment)
            assert bool(torch.isfinite(found).all())
        x1 = process.prior(x0).draw(sf.Streams(range(64)))
        sampler = GeodesicWalk() if kind == "score" else sf.samplers.get("ddim")
        x = sf.sample(model, process, sampler, sf.grids.uniform(process.schedule, 8), x1, rng=sf.Streams(range(64)))
        assert space.contains(x)
        assert x.dtype == torch.float32


def test_a_trained_velocity_samples_two_wells_on_the_circle() -> None:
    torch.manual_seed(0)
    rng, process = sf.Stream(0), Geodesic(Torus())
    model = OnManifold(MLP(2, 1, width=64, depth=2), VelocityHead(process))
    optimiser = torch.optim.Adam(model.net.parameters(), 2e-3)
    for _ in range(800):
        side = (rng.uniform((256, 1)) < 0.25).float()
        x0 = Torus().exp(math.pi - 0.2 - 1.9 * side, 0.2 * rng.normal((256, 1)))
        loss = tangent_loss(model, x0, rng.uniform((256,)).clamp(min=1e-3), rng=rng).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x1 = process.prior(torch.zeros(4000, 1)).draw(rng)
    x = sf.sample(model, process, sf.samplers.get("ddim"), sf.grids.uniform(process.schedule, 30), x1)
    near = (Torus().log(torch.full_like(x, math.pi - 2.1), x).abs() < 0.9).float().mean()
    assert float(near) == pytest.approx(0.25, abs=0.07)
    far = (Torus().log(torch.full_like(x, math.pi - 0.2), x).abs() < 0.9).float().mean()
    assert float(near + far) > 0.93


def test_guidance_on_a_manifold_moves_tangent_vectors() -> None:
    process = Geodesic(Torus())
    head = VelocityHead(process)
    x_t, t = f64([3.0]), 0.5
    cond, ref = head(f64([-0.8]), x_t, t), head(f64([0.4]), x_t, t)
    guided = cond.tilt(ref, 2.0)
    assert isinstance(guided, Along)
    assert float(guided.point()) == pytest.approx(3.0 + 1.0 - 2 * math.pi)  # through the seam, not through 0


def test_what_is_no_markov_chain_is_refused() -> None:
    process, x = Geodesic(Torus()), f64([0.5])
    model = ManifoldData(Torus(), [[0.0]]).denoiser(process)
    for sampler in ("ddpm", "ddim:eta=0.5"):
        with pytest.raises(sf.Refusal, match="and Geodesic is none: there is nothing to draw; use 'ddim'"):
            sf.samplers.trajectory(model, process, sf.samplers.build(sampler), [1.0, 0.0], x, rng=0)
        product = Product({"angle": process, "point": Interpolant(sf.schedules.get("flow"))})
        with pytest.raises(sf.Refusal, match="and Product is none: there is nothing to draw; use 'ddim'"):
            sf.samplers.trajectory(
                model, product, sf.samplers.build(sampler), [1.0, 0.0], {"angle": x, "point": x}, rng=0
            )
    for call in (
        lambda: process.forward(x, 0.2, 0.4),
        lambda: process.bridge(x, Dirac(x), 0.4, 0.2),
        lambda: process.rate(Dirac(x), x, x, 0.4),
    ):
        with pytest.raises(sf.Refusal, match="no Markov chain"):
            call()


def test_what_does_not_fit_is_refused() -> None:
    x = f64([0.5])
    with pytest.raises(sf.Refusal, match="must reach the prior"):
        Geodesic(Torus(), sf.schedules.get("linear"))
    with pytest.raises(sf.Refusal, match="cannot shrink"):
        Brownian(Circles(), sf.schedules.get("flow"))
    with pytest.raises(sf.Refusal, match="use Geodesic for couplings"):
        Brownian(Circles()).marginal(x, 0.5, end=x)
    rotations = Brownian(Rotations())
    eye = torch.eye(3, dtype=torch.float64)[None]
    with pytest.raises(sf.Refusal, match="use the sampler 'walk'"):
        rotations.bridge(eye, Dirac(eye), 0.5, 0.2).draw(sf.Stream(0))
    with pytest.raises(sf.Refusal, match="needs a Brownian process, not Geodesic; use 'ddim'"):
        sf.samplers.trajectory(None, Geodesic(Torus()), GeodesicWalk(), [1.0, 0.0], x, rng=0)
    with pytest.raises(sf.Refusal, match="eta=2"):
        GeodesicWalk(2.0)
    with pytest.raises(sf.Refusal, match="uniform prior only"):
        Geodesic(Torus(), base=lambda like: WrappedNormal(like, 1.0)).log_density(x, x, 0.5)
    with pytest.raises(sf.Refusal, match="no members of Sphere"):
        ManifoldData(Sphere(), [[1.0, 1.0]])
    with pytest.raises(sf.Refusal, match="score under a WrappedNormal"):
        Brownian(Circles()).score(WrappedNormal(x, 0.3), x, 0.5)
    model = OnManifold(MLP(2, 3), VelocityHead(Geodesic(Torus())))
    with pytest.raises(sf.Refusal, match="set its outputs"):
        model(x.float(), 0.5)
    with pytest.raises(sf.Refusal, match="rng is None"):
        tangent_loss(model, x, f64(0.5))
    with pytest.raises(sf.Refusal, match="give 'label'"):
        MLP(2, 1)(torch.zeros(1, 2), torch.zeros(1), {"label": torch.zeros(1).long()})
    with pytest.raises(sf.Refusal, match="at least 1"):
        MLP(2, 0)


def test_an_mlp_with_classes_reads_its_label() -> None:
    torch.manual_seed(0)
    net = MLP(2, 1, classes=3)
    torch.nn.init.normal_(net.last.weight)
    x, t = torch.randn(4, 2), torch.rand(4)
    one, two = (net(x, t, {"label": torch.full((4,), k)}) for k in (0, 3))
    assert float((one - two).abs().max().detach()) > 1e-3
    assert net(x.double(), t, {"label": torch.zeros(4).long()}).dtype == torch.float64
    assert MLP(**net.settings).settings == net.settings


@pytest.mark.parametrize("name", manifolds.names())
def test_synthetic_data(name: str) -> None:
    data, space = manifolds.load(name), manifolds.space(name)
    assert (len(data.train), len(data.test)) == (20_000, 4_000)
    assert space.contains(data.train)
    assert space.contains(data.test)
    assert torch.equal(data.train, manifolds.load(name).train)
    assert not torch.equal(data.train[:4000], data.test)
    # far from uniform, and both parts of one law
    flat, other = data.train.flatten(1), data.test.flatten(1)
    error = (flat.var(0) / len(flat) + other.var(0) / len(other)).sqrt()
    assert float(((flat.mean(0) - other.mean(0)).abs() / error).max()) < 4.5
    uniform = space.uniform(data.test, sf.Stream(0)).flatten(1)
    assert float((uniform.mean(0) - other.mean(0)).abs().max()) > 0.1
    with pytest.raises(sf.Refusal, match="ask for at least 1"):
        manifolds.sample(name, 0, 0)


def test_the_regions_of_the_ramachandran_plot() -> None:
    phi, psi = manifolds.load("torsions").train.T * 180 / math.pi
    helix = ((phi + 63).abs() < 40) & ((psi + 42).abs() < 40)
    sheet = ((phi + 110).abs() < 70) & ((psi - 135).abs() < 60)
    assert float(helix.float().mean()) == pytest.approx(0.42, abs=0.05)
    assert float(sheet.float().mean()) == pytest.approx(0.45, abs=0.05)
    assert float((phi > 20).float().mean()) == pytest.approx(0.07, abs=0.02)
    with pytest.raises(sf.Refusal, match="torsions"):
        manifolds.sample("torsion", 3, 0)

"""Heat kernels at their published values, spaces at their edges, geometry of molecules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.laws.manifold import IGSO3, Along, Uniform, WrappedBridge, WrappedNormal
from sfumato.spaces import SO3, Simplex, Sphere, SymmetricEdges, Torus, ZeroCoM, igso3, wrapped_normal
from sfumato.spaces.geometry import rmsd, superpose, torsion, turn_about_bond, turn_torsions
from sfumato.spaces.so3 import hat, rotation, rotation_vector, vee
from sfumato.spaces.torus import wrap
from sfumato.testing import z_mean

N = 100_000


def f64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ANGLES = torch.linspace(0, math.pi, 400, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------- wrapped normal
def test_wrapped_normal_values() -> None:
    for sigma, expected in ((0.3, 11.111111), (1.0, 0.948920), (2.0, 0.037290)):
        assert float(wrapped_normal.square_score(sigma)) == pytest.approx(expected, abs=1e-6)
    assert float(wrapped_normal.score(f64(1.0), 1.0)) == pytest.approx(-0.999991, abs=1e-6)
    assert float(wrapped_normal.score(f64(1.0), 2.0)) == pytest.approx(-0.199816, abs=1e-6)
    circle = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    for sigma in (0.05, 0.3, 1.0, 1.5, 1.6, 3.0):
        density = wrapped_normal.log_density(circle, sigma).exp()
        assert float(torch.trapezoid(density, circle)) == pytest.approx(1, abs=1e-9)
        mean = float(torch.trapezoid(density * circle.cos(), circle))
        assert mean == pytest.approx(math.exp(-(sigma**2) / 2), abs=1e-9)


def test_wrapped_normal_by_windings_and_by_waves() -> None:
    angle = torch.linspace(-math.pi, math.pi, 101, dtype=torch.float64)
    at, above = (f64(wrapped_normal.SWITCH * (1 + gap)) for gap in (0.0, 1e-13))
    assert torch.allclose(wrapped_normal.log_density(angle, at), wrapped_normal.log_density(angle, above), atol=1e-11)
    assert torch.allclose(wrapped_normal.score(angle, at), wrapped_normal.score(angle, above), atol=1e-11)
    for sigma in (1e-4, 1e-2, 1.0, 10.0, 1e3):
        score = wrapped_normal.score(angle, sigma)
        assert bool(torch.isfinite(score).all())
        assert float(score.abs().max()) <= math.pi / sigma**2
        assert float(score[-1].abs()) < 1e-6 / sigma  # half a turn is as far one way as the other
        slope = (
            wrapped_normal.log_density(angle + 1e-7, sigma) - wrapped_normal.log_density(angle - 1e-7, sigma)
        ) / 2e-7
        inside = slice(1, -1) if sigma < 0.1 else slice(None)
        assert torch.allclose(score[inside], slope[inside], rtol=1e-5, atol=1e-5)


def test_wrapped_normal_law() -> None:
    mean, scale = f64([2.9, -0.4]).expand(N, 2), f64([0.8, 1.9])
    law = WrappedNormal(mean, scale)
    x = law.draw(sf.Stream(0))
    assert Torus().contains(x)
    for i, sigma in enumerate((0.8, 1.9)):
        assert z_mean((x - mean)[:, i].cos(), math.exp(-(sigma**2) / 2)) < 4.5
    other = WrappedNormal(mean + 0.3, 1.1)
    assert z_mean((law.nll(x) - other.nll(x)).exp(), 1.0) < 4.5
    uniform = Uniform(Torus(), mean)
    assert z_mean(uniform.nll(x) - law.nll(x) - law.kl(uniform), 0.0) < 4.5
    y = x[:50].clone().requires_grad_()
    score = WrappedNormal(mean[:50], scale).score(x[:50])
    (slope,) = torch.autograd.grad(-WrappedNormal(mean[:50], scale).nll(y).sum(), y)
    assert torch.allclose(score, slope, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------ IGSO(3)
def test_igso3_values() -> None:
    eps = f64(0.1, 0.3, 0.5, 1, 1.5, 2)
    expected = f64(299.250209, 32.585223, 11.255316, 1.964517, 0.180594, 0.005889)
    assert torch.allclose(igso3.square_score(eps), expected, atol=1e-5, rtol=0)
    at_one = igso3.score(f64(1.0), f64(0.5, 1.0, 1.5, 2.0))
    assert torch.allclose(at_one, f64(-3.915244, -0.915205, -0.338310, -0.083129), atol=1e-6, rtol=0)
    per_axis = (igso3.square_score(0.5) / 3).sqrt()  # FrameDiff's normaliser
    assert float(per_axis) == pytest.approx(1.936949, abs=1e-6)
    assert float(igso3.mean_trace(0.5)) == pytest.approx(2.336402, abs=1e-6)
    assert float(igso3.mean_trace(1.0)) == pytest.approx(1.103638, abs=1e-6)
    assert float(igso3.score(f64(1.0), 0.1)) == pytest.approx(-99.9, abs=0.02)  # the bare series has no digit here
    for width in (1e-3, 0.1, 0.5, 1.0, 2.0, 10.0):
        assert float(igso3.mean_trace(width)) == pytest.approx(3 * math.exp(-(width**2)), abs=1e-9)
        reach = torch.linspace(0, min(math.pi, 12 * width), 8001, dtype=torch.float64)
        assert float(torch.trapezoid(igso3.angle_density(reach, width), reach)) == pytest.approx(1, abs=1e-6)


def test_the_small_noise_form_is_the_series_where_both_hold() -> None:
    order = torch.arange(200, dtype=torch.float64)
    for eps, last in ((0.3, 2.0), (0.4, 2.6), (0.5, 2.3)):
        angle = torch.linspace(0.05, last, 60, dtype=torch.float64)
        terms = (2 * order + 1) * torch.exp(-order * (order + 1) * eps**2 / 2)
        waves = (order + 0.5) * angle[:, None]
        series = (terms * waves.sin()).sum(1) / (angle / 2).sin()
        assert torch.allclose(igso3.log_density(angle, eps), series.log(), atol=1e-5)
        plain = -angle / eps**2 + 1 / angle - 1 / (angle / 2).tan() / 2
        assert torch.allclose(igso3.score(angle, eps), plain, atol=8e-7)
    both = [igso3.score(ANGLES, f64(igso3.SWITCH * (1 + gap))) for gap in (0.0, 1e-13)]
    assert torch.allclose(*both, atol=1e-11)


def test_igso3_is_finite_everywhere() -> None:
    angle = torch.cat([f64(0.0, 1e-300, 1e-12, 1e-8, 1e-5), ANGLES])
    eps = torch.logspace(-4, 1, 61, dtype=torch.float64)[:, None]
    score = igso3.score(angle, eps)
    assert bool(torch.isfinite(score).all())
    assert bool((score <= 1e-6 / eps).all())
    assert bool((score.abs() <= angle / eps**2 * (1 + 1e-12) + 1e-9).all())  # never huge: the flat kernel's own bound
    assert float((score[:, -1] * eps[:, 0]).abs().max()) < 1e-6  # half a turn: no way is shorter
    assert bool(torch.isfinite(igso3.log_density(angle, eps)).all())
    assert bool(torch.isfinite(igso3.angle_density(angle, eps)).all())


def test_igso3_angles_by_inverse_cdf() -> None:
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for eps in (1e-3, 0.2, 0.9, 1.1, 4.0):
        angle = igso3.draw_angle(u, eps)
        assert bool((angle.diff() > 0).all())
        assert 0 <= float(angle.min()) < float(angle.max()) <= math.pi
        # the density at the middle of each of 2000 slices of equal mass
        mass = igso3.angle_density((angle[1:] + angle[:-1]) / 2, eps) * angle.diff()
        assert torch.allclose(mass[100:-100], torch.full((1799,), 1 / 2000, dtype=torch.float64), rtol=2e-3)
        assert float((1 + 2 * angle.cos()).mean()) == pytest.approx(3 * math.exp(-(eps**2)), abs=2e-3)
    mixed = igso3.draw_angle(u, torch.where(u < 0.5, 0.2, 1.1))
    assert torch.allclose(mixed[:1000], igso3.draw_angle(u[:1000], 0.2), atol=1e-12)


def test_igso3_law() -> None:
    mean = SO3().uniform(torch.zeros(1, 3, 3, dtype=torch.float64), sf.Stream(1)).expand(N, 3, 3)
    law, other, uniform = IGSO3(mean, 0.6), IGSO3(mean, 0.8), Uniform(SO3(), mean)
    x = law.draw(sf.Stream(0))
    assert SO3().contains(x)
    trace = (mean.mT @ x).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert z_mean(trace, 3 * math.exp(-0.36)) < 4.5
    assert z_mean((law.nll(x) - other.nll(x)).exp(), 1.0) < 4.5
    assert z_mean(uniform.nll(x) - law.nll(x) - law.kl(uniform), 0.0) < 4.5
    square = SO3().square(law.score(x))
    assert z_mean(square, float(igso3.square_score(0.6))) < 4.5
    # the score is the gradient: move by exp and compare with the change of the density
    v = SO3().noise(x[:200], sf.Stream(2))
    up, down = (law.nll(torch.cat([SO3().exp(x[:200], h * v), x[200:]]))[:200] for h in (1e-5, -1e-5))
    inner = (law.score(x)[:200] * v).flatten(1).sum(1) / 2
    assert torch.allclose((down - up) / 2e-5, inner, atol=1e-6)
    # a narrow kernel has the density of a normal
    narrow = IGSO3(mean[:1], 1e-3)
    assert float(narrow.nll(mean[:1])) == pytest.approx(1.5 * math.log(2 * math.pi * 1e-6), abs=1e-5)
    wide = IGSO3(mean[:4], f64(0.1, 0.2, 0.3, 0.4))
    assert wide.draw(sf.Stream(0)).shape == wide.score(x[:4]).shape == (4, 3, 3)
    assert wide.nll(x[:4]).shape == (4,)


def test_a_random_walk_of_rotation_vectors_has_the_same_trace() -> None:
    steps, eps, rng = 40, 0.9, sf.Stream(0)
    x = torch.eye(3, dtype=torch.float64).expand(20_000, 3, 3)
    for _ in range(steps):
        x = SO3().exp(x, eps / math.sqrt(steps) * SO3().noise(x, rng))
    walked = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    drawn = IGSO3(torch.eye(3, dtype=torch.float64).expand(20_000, 3, 3), eps).draw(rng)
    assert z_mean(walked, 3 * math.exp(-(eps**2))) < 4.5
    trace = drawn.diagonal(dim1=-2, dim2=-1).sum(-1)
    for moment in (1, 2, 3):
        a, b = walked**moment, trace**moment
        error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
        assert abs(float(a.mean() - b.mean())) < 4.5 * error + 0.02 * moment / steps * float(b.abs().mean())


def test_haar() -> None:
    x = SO3().uniform(torch.zeros(N, 3, 3, dtype=torch.float64), sf.Stream(0))
    angle = rotation_vector(x).norm(dim=1)
    assert z_mean(angle, math.pi / 2 + 2 / math.pi) < 4.5
    assert float((igso3.angle_density(ANGLES, 10.0) - (1 - ANGLES.cos()) / math.pi).abs().max()) < 1e-12
    assert z_mean(x[:, 0, 0] ** 2, 1 / 3) < 4.5


# ------------------------------------------------------------------------------------------------------- torus bridge
def test_the_density_of_a_torus_bridge() -> None:
    circle = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)[:-1, None]
    ones = torch.ones_like(circle)
    for sigma_t, sigma_s in ((0.6, 0.3), (3.0, 1.2), (3.0, 2.9)):
        law = WrappedBridge(2.8 * ones, -2.0 * ones, sigma_t, sigma_s)
        density = (-law.nll(circle)).exp()
        assert float(density.mean() * 2 * math.pi) == pytest.approx(1, abs=1e-8)
        # Bayes: q(x_s | x_0) q(x_t | x_s) / q(x_t | x_0)
        between = math.sqrt(sigma_t**2 - sigma_s**2)
        joint = WrappedNormal(-2.0 * ones, sigma_s).nll(circle) + WrappedNormal(circle, between).nll(2.8 * ones)
        bayes = (WrappedNormal(-2.0 * ones, sigma_t).nll(2.8 * ones) - joint).exp()
        assert torch.allclose(density, bayes, atol=1e-9)


def test_the_rate_of_brownian_motion_is_the_limit_of_a_step() -> None:
    process = sf.processes.Brownian(sf.processes.Circles())
    x0, wrong, x_t = f64([2.8]), f64([-2.4]), f64([-3.0])
    h = 1e-5
    for t in (0.3, 0.5, 0.75):
        step = process._between(t - h, t, x_t) ** 0.5
        angle = wrap(x_t + step * torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None])
        ones = torch.ones_like(angle)
        truth, belief = (process.bridge(x_t * ones, sf.laws.Dirac(x * ones), t, t - h) for x in (x0, wrong))
        density = (-truth.nll(angle)).exp()
        kl = float((density * (belief.nll(angle) - truth.nll(angle))).sum() * step * 18 / 4000)
        rate = float(process.rate(sf.laws.Dirac(wrong), x0, x_t, t))
        assert kl / h == pytest.approx(rate, rel=5e-3)


# ------------------------------------------------------------------------------------------------- spaces, at edges
def test_angles_wrap() -> None:
    given = f64(0.5, math.pi, -math.pi, 3 * math.pi, 1e-9, 7.0, -7.0)
    expected = f64(0.5, -math.pi, -math.pi, -math.pi, 1e-9, 7 - 2 * math.pi, 2 * math.pi - 7)
    assert torch.allclose(wrap(given), expected, atol=1e-15)
    assert float(wrap(f64(1e-9))) == 1e-9
    for dtype in (torch.float32, torch.float64):
        x = (torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=dtype) - 0.5) * 100
        edge = torch.tensor([math.pi, -math.pi, 3 * math.pi, -5 * math.pi], dtype=dtype)
        assert Torus().contains(wrap(torch.cat([x, edge, edge.nextafter(edge + 1), edge.nextafter(edge - 1)])))


def test_antipodes_and_half_turns() -> None:
    x = Sphere().uniform(torch.zeros(50, 3, dtype=torch.float64), sf.Stream(0))
    away = Sphere().log(x, -x)
    assert torch.allclose(away.norm(dim=1), torch.full((50,), math.pi, dtype=torch.float64))
    assert torch.allclose(Sphere().tangent(x, away), away, atol=1e-12)
    r = SO3().uniform(torch.zeros(50, 3, 3, dtype=torch.float64), sf.Stream(0))
    axis = Sphere().uniform(torch.zeros(50, 3, dtype=torch.float64), sf.Stream(1))
    half = r @ rotation(math.pi * axis)
    assert torch.allclose(SO3().distance(r, half), torch.full((50,), math.pi, dtype=torch.float64))
    assert torch.allclose(SO3().exp(r, SO3().log(r, half)), half, atol=1e-9)
    for size in (1e-12, 1e-6, 1e-3, 3.1):
        assert torch.allclose(rotation_vector(rotation(size * axis)), size * axis, rtol=1e-6, atol=1e-15)
    assert torch.equal(vee(hat(axis)), axis)
    # gradients at the identity are finite
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rotation_vector(rotation(w)).sum(), w)
    assert torch.allclose(slope, torch.ones(3, dtype=torch.float64))


def test_the_simplex_projects_to_the_nearest() -> None:
    assert torch.allclose(Simplex().project(f64([0.6, 0.6, -0.2])), f64([0.5, 0.5, 0.0]))
    assert torch.allclose(Simplex().project(f64([3.0, 0.0, 0.0])), f64([1.0, 0.0, 0.0]))
    x = 2 * torch.randn(200, 4, dtype=torch.float64)
    near = Simplex().project(x)
    others = Simplex().uniform(torch.zeros(500, 4, dtype=torch.float64), sf.Stream(0))
    assert bool(((x - near).norm(dim=1)[:, None] <= torch.cdist(x, others) + 1e-12).all())
    assert z_mean(Simplex().uniform(torch.zeros(N, 4, dtype=torch.float64), sf.Stream(0))[:, 0] ** 2, 2 / 20) < 4.5


def test_noise_of_a_molecule_and_of_a_graph_ignores_padding() -> None:
    sizes = [3, 1, 4]
    for wide in (4, 7):
        mask = torch.arange(wide) < torch.tensor(sizes)[:, None]
        points = ZeroCoM(mask).noise(torch.zeros(3, wide, 3), sf.Streams([5, 6, 7]))
        edges = SymmetricEdges(mask).noise(torch.zeros(3, wide, wide), sf.Streams([5, 6, 7]))
        if wide == 4:
            small = points, edges
        assert torch.equal(points[:, :4], small[0])
        assert torch.equal(edges[:, :4, :4], small[1])
        assert ZeroCoM(mask).dof(points).tolist() == [6, 0, 9]
        assert SymmetricEdges(mask).dof(edges).tolist() == [3, 0, 6]
    tokens = torch.randint(0, 5, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    space = SymmetricEdges(torch.arange(4) < torch.tensor(sizes)[:, None])
    assert space.contains(space.project(tokens))
    assert torch.equal(space.project(tokens)[2].triu(1), tokens[2].triu(1))
    assert float(space.sites(tokens).expand(3, 4, 4).sum()) == 9
    with pytest.raises(sf.Refusal, match="behind padding"):
        ZeroCoM(torch.tensor([[True, False, True]]))
    with pytest.raises(sf.Refusal, match="edges are"):
        SymmetricEdges().project(torch.zeros(2, 3, 4))
    with pytest.raises(sf.Refusal, match="for a mask of shape"):
        ZeroCoM(torch.ones(2, 3)).project(torch.zeros(2, 4, 3))


def test_laws_of_manifolds_refuse_what_they_cannot() -> None:
    x = f64([0.5], [1.0])
    law = WrappedNormal(x, 0.3)
    bridge = WrappedBridge(x, x, 0.6, 0.3)
    for kl in (law.kl, bridge.kl, Uniform(Torus(), x).kl):
        with pytest.raises(sf.Refusal, match="KL"):
            kl(WrappedNormal(x, 0.4))
    for refuses in (law, bridge, Uniform(Torus(), x), IGSO3(torch.eye(3)[None], 0.3)):
        with pytest.raises(sf.Refusal, match="tilted"):
            refuses.tilt(law, 2.0)


def test_guidance_along_tangent_vectors() -> None:
    x = f64([3.0], [0.0])
    cond, ref = Along(x, f64([0.5], [1.0]), Torus()), Along(x, f64([0.2], [-1.0]), Torus())
    assert torch.allclose(cond.tilt(ref, 3.0).point(), wrap(x + f64([1.1], [5.0]).clamp(max=math.pi * (1 - 1e-6))))
    assert torch.equal(cond.tilt(ref, 1.0).point(), cond.point())
    assert torch.equal(sf.laws.pool([ref, cond], [1.0, 0.0]).point(), ref.point())
    assert cond.nll(cond.point()).tolist() == [0.0, 0.0]
    with pytest.raises(sf.Refusal, match="tilted"):
        cond.tilt(sf.laws.Dirac(x), 2.0)


# --------------------------------------------------------------------------------------------------------- molecules
def test_torsion_updates_change_no_other_torsion() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 9, 3, dtype=torch.float64, generator=generator)
    bonds = [(1, 2), (3, 4), (5, 6)]
    sides = [torch.arange(9) > last for last in (2, 4, 6)]
    sides = [side | (torch.arange(9) == bond[1]) for side, bond in zip(sides, bonds, strict=True)]
    chain = [(i, i + 1, i + 2, i + 3) for i in range(6)]
    angles = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    y = turn_torsions(x, bonds, sides, angles)
    asked = {(0, 1, 2, 3): 0, (2, 3, 4, 5): 1, (4, 5, 6, 7): 2}
    for atoms in chain:
        change = wrap(torsion(y, atoms) - torsion(x, atoms))
        wanted = wrap(angles[:, asked[atoms]]) if atoms in asked else torch.zeros(5, dtype=torch.float64)
        assert float(wrap(change - wanted).abs().max()) < 1e-6
    assert torch.allclose((y[:, 1:] - y[:, :-1]).norm(dim=2), (x[:, 1:] - x[:, :-1]).norm(dim=2))
    # superposing has taken the rigid motion out: no small rotation or shift brings y nearer
    for k in range(3):
        moved = y @ rotation(1e-3 * torch.eye(3, dtype=torch.float64)[k]).T
        assert bool((rmsd(y, x) <= rmsd(moved, x) + 1e-12).all())
    with pytest.raises(sf.Refusal, match="the fixed end"):
        turn_about_bond(x, (1, 2), torch.arange(9) < 5, angles[:, 0])


def test_superposition_and_torsions() -> None:
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    moved = x @ rotation(f64(1.0, -2.0, 0.5)).T + f64(3.0, -1.0, 2.0)
    assert float(rmsd(superpose(moved, x), x).max()) < 1e-12
    mirrored = x * f64(1.0, 1.0, -1.0)
    assert float(rmsd(superpose(mirrored, x), x).min()) > 0.1  # a mirror image is no rotation
    corners = f64([1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1])
    assert float(torsion(corners, (0, 1, 2, 3))) == pytest.approx(math.pi / 2)

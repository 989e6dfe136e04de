"""Laws 1, 2, 3, 4, 9, 11, 12 for every space, and for every process on a space that is not R^n."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.laws.manifold import Uniform, WrappedNormal
from sfumato.oracles import ManifoldData
from sfumato.processes import Brownian, Circles, Gaussian, Geodesic, Rotations
from sfumato.spaces import SO3, Euclidean, Simplex, Sphere, SymmetricEdges, Tokens, Torus, ZeroCoM
from sfumato.spaces.so3 import rotation
from sfumato.testing import (
    check_bridge,
    check_coupling,
    check_driver,
    check_ends,
    check_ends_of_process,
    check_equivariance,
    check_isometry,
    check_manifold,
    check_process,
    check_recovery,
    check_same_law,
    check_space,
    check_spread,
    check_streams,
)
from sfumato.testing.processes import TIMES, check_markov

MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, True, True]])


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def member(space: Any, *shape: int) -> Tensor:
    drawn: Tensor = space.project(normal(*shape))
    return drawn


def tokens(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape) % 5


def kinds(n: int, *channels: int) -> Tensor:
    """Three graphs of ``n`` nodes."""
    upper = torch.ones(n, n, dtype=torch.int64).triu(1).reshape(n, n, *[1] * len(channels))
    drawn = tokens(3, n, n, *channels) * upper
    return drawn + drawn.transpose(1, 2)


#: A space, three members of it, states off it.
SPACES: dict[str, tuple[Any, Tensor, list[Tensor]]] = {
    "euclidean": (Euclidean(), normal(3, 2), []),
    "zero-com": (ZeroCoM(MASK), member(ZeroCoM(MASK), 3, 4, 3), [normal(3, 4, 3), normal(3, 4, 3) * MASK[..., None]]),
    "edges": (SymmetricEdges(), member(SymmetricEdges(), 3, 4, 4), [normal(3, 4, 4), torch.eye(4).expand(3, 4, 4)]),
    "edges, padded, channels": (
        SymmetricEdges(MASK),
        member(SymmetricEdges(MASK), 3, 4, 4, 2),
        [member(SymmetricEdges(), 3, 4, 4, 2), normal(3, 4, 4, 2)],
    ),
    "kinds of edges": (
        SymmetricEdges(size=5),
        kinds(4),
        [
            kinds(4) + 1,
            kinds(4) + torch.eye(4, dtype=torch.int64),
            tokens(3, 4, 4),
            normal(3, 4, 4),
            (kinds(4) == 4) * 5,
        ],
    ),
    "kinds of edges, padded": (
        SymmetricEdges(MASK, 5),
        SymmetricEdges(MASK, 5).project(kinds(4)),
        [kinds(4), SymmetricEdges(MASK, 5).project(kinds(4)).double()],
    ),
    "kinds of edges, channels": (SymmetricEdges(size=2), kinds(3, 2).clamp(max=1), []),
    "torus": (Torus(), member(Torus(), 3, 2), [f64([math.pi, 0]), f64([0, -4]), 9 * normal(3, 2)]),
    "torus, two axes": (Torus(), member(Torus(), 3, 2, 2), []),
    "sphere": (Sphere(), member(Sphere(), 3, 4), [normal(3, 4), 1.001 * member(Sphere(), 3, 4)]),
    "spheres": (Sphere(), member(Sphere(), 3, 2, 3), [normal(3, 2, 3)]),
    "so3": (SO3(), member(SO3(), 3, 3, 3), [normal(3, 3, 3), -member(SO3(), 3, 3, 3)]),
    "so3, two": (SO3(), member(SO3(), 3, 2, 3, 3), []),
    "simplex": (Simplex(), member(Simplex(), 3, 4), [normal(3, 4), f64([0.6, 0.6, -0.2]), f64([0.3, 0.3, 0.3])]),
    "tokens": (Tokens(5), tokens(3, 4), [tokens(3, 4) + 1, tokens(3, 4) - 1, normal(3, 4)]),
    "tokens, two axes": (Tokens(2), tokens(3, 2, 2).clamp(max=1), [2 + 0 * tokens(3, 2, 2)]),
    "tokens, padded": (Tokens(5, MASK), tokens(3, 4) * MASK, [tokens(3, 4) * MASK + ~MASK]),
    "tokens, padded alike": (Tokens(5, MASK[0]), tokens(3, 4) * MASK[0], [tokens(3, 4) * MASK[0] + ~MASK[0]]),
    "tokens, one": (Tokens(1), 0 * tokens(3, 4), [tokens(3, 4)]),
}
#: A manifold, the shape of a state, a symmetry.
TURN, OTHER = rotation(f64(0.3, -1.1, 0.7)), rotation(f64(-2.0, 0.4, 1.0))
MANIFOLDS: dict[str, tuple[Any, tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "torus": (Torus(), (3,), lambda x: Torus().project(-x + f64(1.0, 2.0, 3.0))),
    "sphere": (Sphere(), (3,), lambda x: x @ TURN.T),
    "circle": (Sphere(), (2,), lambda x: x.flip(-1)),
    "3-sphere": (Sphere(), (4,), lambda x: x.roll(1, -1)),
    "spheres": (Sphere(), (2, 3), lambda x: (x @ TURN.T).flip(1)),
    "so3": (SO3(), (3, 3), lambda x: TURN @ x @ OTHER),
    "simplex": (Simplex(), (4,), lambda x: x.roll(1, -1)),
}


def like(name: str, n: int = 1) -> Tensor:
    return torch.zeros(n, *MANIFOLDS[name][1], dtype=torch.float64)


@pytest.mark.parametrize("name", SPACES)
def test_space(name: str) -> None:
    check_space(*SPACES[name])


@pytest.mark.parametrize("name", MANIFOLDS)
def test_manifold(name: str) -> None:
    space, _, act = MANIFOLDS[name]
    check_manifold(space, like(name), edges=name == "simplex")
    check_isometry(space, act, like(name, 50))


@pytest.mark.parametrize("name", MANIFOLDS)
def test_densities_of_geodesics(name: str) -> None:
    check_spread(MANIFOLDS[name][0], like(name))


# ------------------------------------------------------------------------------------- Gaussian noise on subspaces
SUBSPACES: dict[str, tuple[Any, Tensor, Callable[[Tensor], Tensor]]] = {
    "zero-com": (
        ZeroCoM(MASK[:1]),
        member(ZeroCoM(MASK[:1]), 1, 4, 2) / 2,
        lambda x: x[:, [1, 2, 0, 3]] @ f64([0.6, 0.8], [-0.8, 0.6]),
    ),
    "edges": (
        SymmetricEdges(MASK[:1, :3]),
        member(SymmetricEdges(MASK[:1, :3]), 1, 3, 3) / 2,
        lambda x: x[:, [2, 0, 1]][:, :, [2, 0, 1]],
    ),
}


@pytest.mark.parametrize("name", SUBSPACES)
def test_gaussian_on_a_subspace(name: str) -> None:
    space, x0, act = SUBSPACES[name]
    process = Gaussian(sf.schedules.get("cosine"), space)
    check_process(process, x0, n=20_000)
    check_equivariance(process, x0.repeat(5, *[1] * (x0.ndim - 1)), act, sf.Stream(1))


# --------------------------------------------------------------------------------------------------------- geodesics
GEODESICS: dict[str, tuple[Geodesic, tuple[int, ...]]] = {
    "torus": (Geodesic(Torus()), (2,)),
    "torus, cosine": (Geodesic(Torus(), sf.schedules.get("cosine-continuous")), (2,)),
    "torus, wrapped prior": (Geodesic(Torus(), base=lambda x: WrappedNormal(torch.zeros_like(x) + 3.0, 0.7)), (2,)),
    "sphere": (Geodesic(Sphere()), (3,)),
    "so3": (Geodesic(SO3()), (3, 3)),
    "simplex": (Geodesic(Simplex()), (3,)),
}
EXACT = ["torus", "torus, cosine", "sphere", "so3", "simplex"]


def start(name: str, n: int) -> tuple[Geodesic, Tensor]:
    process, shape = GEODESICS[name]
    x0 = process.space.uniform(torch.zeros(1, *shape, dtype=torch.float64), sf.Stream(4))
    return process, x0.expand(n, *shape)


@pytest.mark.parametrize("name", GEODESICS)
def test_geodesic(name: str) -> None:
    rng, (process, clean) = sf.Stream(0), start(name, 20_000)
    if process.base is None:
        check_ends_of_process(process, clean[:5], rng, eta=0.0)
    for t, s in TIMES:
        check_bridge(process, clean, t, s, rng, etas=(0.0,))
    check_coupling(process, clean, rng)
    times = torch.full((20,), 0.4, dtype=torch.float64)
    end = process.prior(clean[:20]).draw(rng)
    for law in (
        process.marginal(clean[:20], times, end),
        process.bridge(end, sf.laws.Dirac(clean[:20]), 1.0, 0.4, 0.0),
    ):
        assert torch.allclose(law.point(), process.marginal(clean[:20], 0.4, end).point(), atol=1e-6)


def atoms(space: Any, shape: tuple[int, ...], n: int = 3) -> ManifoldData:
    return ManifoldData(space, space.uniform(torch.zeros(n, *shape, dtype=torch.float64), sf.Stream(9)))


def check(sampler: Any, process: Any, shape: tuple[int, ...], steps: int) -> None:
    """The laws of a sampler; its streams with so many points that two seeds do not end on one of them by chance."""
    oracle, zero = atoms(process.space, shape), torch.zeros(1, *shape, dtype=torch.float64)
    check_ends(sampler, process, oracle, zero)
    check_driver(sampler, process, oracle, zero)
    check_streams(sampler, process, atoms(process.space, shape, 24), zero)
    check_recovery(sampler, process, oracle, zero, steps=steps)


@pytest.mark.parametrize("name", EXACT)
def test_ddim_with_eta_0_samples_geodesics(name: str) -> None:
    process, shape = GEODESICS[name]
    check(sf.samplers.get("ddim"), process, shape, 40)


@pytest.mark.parametrize("name", ["torus", "sphere", "so3", "simplex"])
def test_symmetries_commute_with_geodesics(name: str) -> None:
    space, _, act = MANIFOLDS[name]
    process, x0 = Geodesic(space), space.uniform(like(name, 9), sf.Stream(1))
    end = space.uniform(x0, sf.Stream(2))
    for t in (0.3, 0.9):
        x_t, moved = process.marginal(x0, t, end).point(), process.marginal(act(x0), t, act(end)).point()
        assert float(space.distance(act(x_t), moved).max()) < 1e-9
        back = process.bridge(x_t, sf.laws.Dirac(x0), t, 0.1, 0.0).point()
        there = process.bridge(moved, sf.laws.Dirac(act(x0)), t, 0.1, 0.0).point()
        assert float(space.distance(act(back), there).max()) < 1e-9
        assert torch.allclose(process.log_density(x0, x_t, 0.99), process.log_density(act(x0), act(x_t), 0.99))


# --------------------------------------------------------------------------------------------------- Brownian motion
BROWNIAN: dict[str, tuple[Brownian, tuple[int, ...]]] = {
    "circles": (Brownian(Circles()), (2,)),
    "circles, karras": (Brownian(Circles(), sf.schedules.get("karras", sigma_max=7.0, rho=3.0)), (1,)),
    "rotations": (Brownian(Rotations()), (3, 3)),
}


@pytest.mark.parametrize("name", BROWNIAN)
def test_brownian(name: str) -> None:
    process, shape = BROWNIAN[name]
    rng, space = sf.Stream(0), process.space
    clean = space.uniform(torch.zeros(1, *shape, dtype=torch.float64), sf.Stream(4)).expand(20_000, *shape)
    assert float(process.marginal(clean[:2], 1.0).kl(process.prior(clean[:2])).max()) < 1e-6
    assert torch.equal(process.marginal(clean, 0.0).draw(rng), clean)
    for t, s in ((0.7003, 0.3002), (0.5, 0.45), (1.0, 0.6)):
        x_s = process.marginal(clean, s).draw(rng)
        x_t = process.forward(x_s, s, t).draw(rng)
        assert space.contains(x_t)
        check_same_law(x_t, process.marginal(clean, t).draw(rng), f"forward after marginal, s={s} to t={t}")


@pytest.mark.parametrize("name", ["circles", "circles, karras"])
def test_brownian_bridges_of_the_torus_are_exact(name: str) -> None:
    process, shape = BROWNIAN[name]
    rng, clean = sf.Stream(0), f64(*[2.5, -1.0][: shape[0]]).expand(20_000, *shape)
    check_ends_of_process(process, clean[:5], rng)
    for t, s in ((0.7003, 0.3002), (0.8, 0.7), (1.0, 0.75)):
        check_bridge(process, clean, t, s, rng)
        check_markov(process, clean, t, s, rng)


#: A symmetry of the space, and the laws that have a closed form.
WALKED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    "circles": (lambda x: Torus().project(-x + f64(1.0, 2.0)), ("marginal", "forward", "bridge")),
    "circles, karras": (lambda x: Torus().project(x - 2.5), ("marginal", "forward", "bridge")),
    "rotations": (lambda x: TURN @ x @ OTHER, ("marginal", "forward")),
}


@pytest.mark.parametrize("name", WALKED)
def test_symmetries_commute_with_walks(name: str) -> None:
    process, shape = BROWNIAN[name]
    act, laws = WALKED[name]
    x0 = process.space.uniform(torch.zeros(50, *shape, dtype=torch.float64), sf.Stream(4))
    check_equivariance(process, x0, act, sf.Stream(1), tolerance=1e-7, laws=laws)


@pytest.mark.parametrize("name", BROWNIAN)
def test_the_bound_on_walks_is_the_entropy(name: str) -> None:
    """Law 7: of three points, log 3: the integral of the rate at the exact belief, over times drawn evenly."""
    process, shape = BROWNIAN[name]
    oracle, n = atoms(process.space, shape), 10_000 if "circles" in name else 2500
    rng = sf.Stream(2)
    x0 = oracle.sample(n, rng)
    first = 0.25  # below it the points are told apart for certain, and the rate is 0
    t = first + (1 - first) * (torch.arange(n) + rng.uniform((n,)).double()) / n
    t = t[torch.randperm(n, generator=torch.Generator().manual_seed(5))]
    x_t = process.marginal(x0, t).draw(rng)
    rate = (1 - first) * process.rate(oracle.belief(process, x_t, t), x0, x_t, t)
    surplus = float(process.marginal(x0[:1], 1.0).kl(process.prior(x0[:1])))
    error = float(rate.std()) / math.sqrt(n)
    assert error < 0.1
    assert abs(float(rate.mean()) + surplus - math.log(3)) < 4.5 * error


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim:eta=0.5"])
def test_samplers_that_walk_bridges_refuse_rotations_before_the_first_step(name: str) -> None:
    process, shape = BROWNIAN["rotations"]
    x = process.space.uniform(torch.zeros(2, *shape, dtype=torch.float64), sf.Stream(0))
    parts = sf.processes.Product({"pose": process, "x": Gaussian(sf.schedules.get("flow"))})
    for whole, state, mend in (
        (process, x, "'walk'"),
        (parts, {"pose": x, "x": torch.zeros(2, 1)}, "PerPart with 'walk' for 'pose', 'ddpm' for 'x'"),
    ):
        with pytest.raises(sf.Refusal, match=f"of Brownian on SO3 has no closed form; use {mend}$"):
            sf.samplers.trajectory(lambda *_: None, whole, sf.samplers.build(name), [1.0, 0.0], state, rng=0)


WALKS = {"walk": sf.samplers.get("walk"), "ode": sf.samplers.build("walk:eta=0")}


@pytest.mark.parametrize("sampler", WALKS)
@pytest.mark.parametrize("name", ["circles", "rotations"])
def test_walks_sample_brownian_motion(name: str, sampler: str) -> None:
    process, shape = BROWNIAN[name]
    check(WALKS[sampler], process, shape, 40)


def test_ddpm_samples_brownian_motion_on_the_torus() -> None:
    process, shape = BROWNIAN["circles"]
    check(sf.samplers.get("ddpm"), process, shape, 6)


def test_the_kit_sees_spaces_that_are_off() -> None:
    class Shifted:
        """Zero-CoM without taking the centre away."""

        def __init__(self, mask: Tensor) -> None:
            self.mask = mask

        def __getattr__(self, name: str) -> Any:
            return getattr(ZeroCoM(self.mask), name)

        def noise(self, x: Tensor, rng: Any) -> Tensor:
            return rng.normal(tuple(x.shape)).to(x) * self.mask[..., None]

    x = member(ZeroCoM(MASK[:1]), 2, 4, 3)
    with pytest.raises(AssertionError, match="noise spans 9 dimensions, dof is 6"):
        check_space(Shifted(MASK[:1]), x)

    class Skewed:
        """Tokens whose noise prefers the low ones."""

        size = 5

        def __getattr__(self, name: str) -> Any:
            return getattr(Tokens(5), name)

        def noise(self, x: Tensor, rng: Any) -> Tensor:
            return (rng.uniform(tuple(x.shape)) ** 1.1 * 5).long()

    with pytest.raises(AssertionError, match="noise is token 0 too often or too rarely"):
        check_space(Skewed(), tokens(3, 4))

    class Alike(Skewed):
        """Tokens whose noise is one number for all sites of a sample, or for two in every other sample."""

        def __init__(self, share: float) -> None:
            self.share = share

        def noise(self, x: Tensor, rng: Any) -> Tensor:
            own, other = (Tokens(5).noise(x, rng) for _ in range(2))
            alike = rng.uniform((len(x),))[:, None] < self.share
            return torch.where(alike, own[:, :1], other)

    for share, message in ((1.0, "noise spans 1 dimensions, dof is 4"), (0.3, "noise at two sites is not independent")):
        with pytest.raises(AssertionError, match=message):
            check_space(Alike(share), tokens(3, 4))

    class Opposite(Skewed):
        """Tokens whose noise prefers the low ones at one site and the high ones at another, nearly even in all."""

        def noise(self, x: Tensor, rng: Any) -> Tensor:
            u = rng.uniform(tuple(x.shape))
            u[:, 0] = u[:, 0] ** 1.2
            u[:, 1] = 1 - u[:, 1] ** 1.2
            return (u * 5).long()

    with pytest.raises(AssertionError, match="too often or too rarely"):
        check_space(Opposite(), tokens(3, 4))

    class Chord:
        """A sphere whose geodesics are measured through the ball."""

        def __getattr__(self, name: str) -> Any:
            return getattr(Sphere(), name)

        def log(self, x: Tensor, y: Tensor) -> Tensor:
            return Sphere().tangent(x, y - x)

    with pytest.raises(AssertionError, match="exp\\(x, log\\(x, y\\)\\) is not y"):
        check_manifold(Chord(), torch.zeros(1, 3, dtype=torch.float64))  # type: ignore[arg-type]


def test_a_sphere_of_two_points_is_refused() -> None:
    x = torch.ones(3, 1, dtype=torch.float64)
    calls: list[Callable[[], Any]] = [
        lambda: Sphere().project(x), lambda: Sphere().dof(x), lambda: Sphere().log_volume(x),
        lambda: Sphere().uniform(x, sf.Stream(0)), lambda: Sphere().log_spread(x, x, 0.5),
        lambda: Geodesic(Sphere()).prior(x).draw(sf.Stream(0)), lambda: ManifoldData(Sphere(), x),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(sf.Refusal) as refused:
            call()
        assert "\n" not in str(refused.value)
    assert not Sphere().contains(x)
    with pytest.raises(sf.Refusal, match=r"shape \(3, 1\): a sphere's are \[b, ..., d\] with d of 2"):
        Sphere().noise(x, sf.Stream(0))


@pytest.mark.parametrize("eta", [2.0, -0.5, 1.000001])
def test_a_share_of_noise_beyond_the_whole_is_refused(eta: float) -> None:
    angle, turned = f64([0.5, 1.0]), torch.eye(3, dtype=torch.float64)[None]
    for process, x in ((Brownian(Circles()), angle), (Brownian(Rotations()), turned)):
        for q in (sf.laws.Dirac(x), Uniform(process.space, x)):
            with pytest.raises(sf.Refusal, match=rf"eta={eta:g}: the share of fresh noise of a Brownian bridge"):
                process.bridge(x, q, 0.5, 0.2, eta)


def test_uniform_laws() -> None:
    for name, (space, _, _) in MANIFOLDS.items():
        law = Uniform(space, like(name, 4))
        assert torch.equal(law.kl(law), torch.zeros(4, dtype=torch.float64))
        assert law.nll(law.draw(sf.Stream(0))).shape == (4,)
        with pytest.raises(sf.Refusal, match="draw from it"):
            law.point()
    assert float(Uniform(SO3(), like("so3")).nll(torch.eye(3)[None])) == pytest.approx(math.log(8 * math.pi**2))
    assert float(Uniform(Sphere(), like("sphere")).nll(f64([0, 0, 1]))) == pytest.approx(math.log(4 * math.pi))

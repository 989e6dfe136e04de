"""A product of coordinates and types: one network call a step, one ancestral update, the joint law of both parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import sfumato as sf
from sfumato.laws import Categorical, Dirac, Joint
from sfumato.oracles import Atoms, total_variation
from sfumato.oracles.manifolds import ManifoldAtoms
from sfumato.processes import Gaussian, Geodesic, Interpolant, Jump, Product, absorbing, uniform
from sfumato.schedules import at
from sfumato.spaces import Torus

#: Five molecules of two points in the plane: coordinates, types, weights.  No part tells which molecule it is.
PLACES = torch.tensor(
    [
        [[1.0, 0.0], [-1.0, 0.0]],
        [[1.0, 0.0], [-1.0, 0.0]],
        [[0.0, 1.0], [0.0, -1.0]],
        [[0.0, 1.0], [0.0, -1.0]],
        [[1.5, 1.5], [-1.5, -1.5]],
    ]
).double()
TYPES = torch.tensor([[0, 1], [1, 0], [0, 1], [2, 2], [2, 2]])
WEIGHTS = torch.tensor([0.3, 0.1, 0.15, 0.25, 0.2]).double()
KERNELS = {"absorbing": absorbing(4), "uniform": uniform(3)}


@dataclass(frozen=True)
class Plane:
    """Coordinates in the plane, noised or led along a coupled path whose ends are drawn apart."""

    process: Any
    places: Tensor = PLACES

    def near(self, x: Tensor, t: float) -> Tensor:
        """``log q(x_t | x0)`` of every molecule, up to a constant."""
        alpha, sigma = at(self.process.schedule, t)
        return -((x[:, None] - alpha * PLACES) ** 2).sum((2, 3)) / (2 * sigma**2)

    def belief(self, logr: Tensor, x: Tensor) -> Any:
        """The law of the coordinates with these weights of molecules."""
        return Atoms(logr, PLACES.flatten(1), (2, 2))


@dataclass(frozen=True)
class Bent:
    """Two angles a molecule, on geodesics of the torus; a state that none can have led to is from the nearest."""

    process: Any
    places: Tensor = torch.tensor([[0.5, -2.0], [0.5, -2.0], [2.5, 1.0], [2.5, 1.0], [-1.5, 0.2]]).double()

    def near(self, x: Tensor, t: float) -> Tensor:
        """As for :class:`Plane`."""
        centres = [place.expand(x.shape) for place in self.places]
        logs = torch.stack([self.process.log_density(centre, x, t) for centre in centres], 1)
        far = torch.stack([self.process.space.distance(centre, x) for centre in centres], 1)
        return torch.where(torch.isfinite(logs), logs, -100 * (1 + far))

    def belief(self, logr: Tensor, x: Tensor) -> Any:
        """As for :class:`Plane`: its point is a step along the exact velocity."""
        return ManifoldAtoms(logr, x, self.places, self.process.space)


#: How coordinates are destroyed: with noise, and on paths that have none to draw.
COORDINATES = {
    "noise": Plane(Gaussian(sf.schedules.get("cosine"))),
    "coupled path": Plane(Interpolant(sf.schedules.get("cosine-continuous"))),
    "geodesics": Bent(Geodesic(Torus())),
}


@dataclass
class Network:
    """The exact belief about both parts, from both, in one call; ``apart``: each from its own part alone."""

    process: Product
    coordinates: Any
    apart: bool = False
    calls: list[int] = field(default_factory=list)

    def __call__(self, x_t: dict[str, Tensor], t: float, cond: Any = None) -> Joint:
        self.calls.append(len(x_t["x"]))
        kinds: Any = self.process.parts["kind"]
        near = self.coordinates.near(x_t["x"], t)
        reach = kinds.kernel.columns(x_t["kind"], kinds.signal(t), torch.float64)
        shown = sum(reach[:, site][:, TYPES[:, site]] for site in range(2)).clamp(min=-1e3)
        logs = [near, shown] if self.apart else [near + shown] * 2
        place, kind = (log.add(WEIGHTS.log()).log_softmax(1) for log in logs)
        tokens = torch.einsum("bn,nlk->blk", kind.exp(), one_hot(TYPES, kinds.kernel.size).double())
        if kinds.kernel.mask is not None:  # two shown in one step may be types of no molecule: they stay
            known = one_hot(x_t["kind"], kinds.kernel.size).double()
            tokens = torch.where((x_t["kind"] == kinds.kernel.mask)[..., None], tokens, known)
        return Joint({"x": self.coordinates.belief(place, x_t["x"]), "kind": Categorical(tokens.log(), kinds.space)})


def tables(kernel: str, steps: int, n: int, apart: bool = False, path: str = "noise") -> tuple[Tensor, Network]:
    """The law of (places, types) that the ancestral sampler writes, ``[places, type 1, type 2]``, and its network."""
    coordinates: Any = COORDINATES[path]
    process = Product({"x": coordinates.process, "kind": Jump(KERNELS[kernel], sf.schedules.get("flow"))})
    like = {"x": coordinates.places[:1].expand(n, *coordinates.places.shape[1:]), "kind": TYPES[:1].expand(n, 2)}
    network = Network(process, coordinates, apart)
    grid = sf.grids.uniform(coordinates.process.schedule, steps)
    x1 = process.prior(like).draw(sf.Stream(0))
    x = sf.sample(network, process, sf.samplers.get("ddpm"), grid, x1, rng=1)
    gap = (x["x"][:, None] - coordinates.places[[0, 2, 4]]).abs().flatten(2).amax(2)
    assert float(gap.amin(1).max()) < 1e-9  # every sample is one of the three shapes
    index = (gap.argmin(1) * 3 + x["kind"][:, 0]) * 3 + x["kind"][:, 1]
    return torch.bincount(index, minlength=27).reshape(3, 3, 3).double() / n, network


def truth() -> Tensor:
    table = torch.zeros(3, 3, 3).double()
    for weight, shape, (a, b) in zip(WEIGHTS, (0, 0, 1, 1, 2), TYPES.tolist(), strict=True):
        table[shape, a, b] += weight
    return table


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("path", COORDINATES)
def test_coordinates_and_types_cost_one_network_call_a_step(path: str, kernel: str) -> None:
    """Whatever destroys the coordinates, a manifold's geodesics included: one update moves both parts."""
    n, steps = 6000, 150
    found, network = tables(kernel, steps, n, path=path)
    assert network.calls == [n] * steps
    exact = truth()
    assert total_variation(found.sum((1, 2)), exact.sum((1, 2))) < 0.03  # coordinates
    assert total_variation(found.sum(0), exact.sum(0)) < 0.03  # types
    assert total_variation(found, exact) < 0.04  # and that they belong together


def test_parts_that_do_not_see_each_other_do_not_belong_together() -> None:
    found, network = tables("absorbing", 60, 3000, apart=True)
    assert len(network.calls) == 60
    exact = truth()
    assert total_variation(found.sum((1, 2)), exact.sum((1, 2))) < 0.05
    assert total_variation(found, exact) > 0.2


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_a_part_without_noise_moves_as_it_would_alone(eta: float) -> None:
    """On a product every Markov part draws its bridge at ``eta``, every other takes that of 0 at the belief's point."""
    line, bent = Gaussian(sf.schedules.get("flow")), Geodesic(Torus())
    process = Product({"x": line, "angle": bent, "inner": Product({"angle": bent, "x": line})})
    x = torch.linspace(-1, 1, 6).double().reshape(6, 1)
    state = {"x": x, "angle": x, "inner": {"angle": x, "x": x}}
    angles = ManifoldAtoms(torch.tensor([[0.3, 0.7]]).double().log().expand(6, 2), x, torch.ones(2, 1) * 2, Torus())
    belief = Joint({"x": Dirac(0.5 * x), "angle": angles, "inner": Joint({"angle": angles, "x": Dirac(0.5 * x)})})
    found: Any = process.bridge(state, belief, 0.8, 0.5, eta)
    alone = bent.bridge(x, Dirac(angles.point()), 0.8, 0.5, 0.0).point()
    normal: Any = line.bridge(x, Dirac(0.5 * x), 0.8, 0.5, eta)
    for law in (found, found.parts["inner"]):
        assert torch.equal(law.parts["angle"].draw(None), alone)
        assert torch.equal(law.parts["x"].mean, normal.mean)
        assert law.parts["x"].var == normal.var > 0
    sampler = sf.samplers.build("ddpm" if eta == 1 else f"ddim:eta={eta}")
    moved = sf.sample(lambda *_: belief, process, sampler, [0.8, 0.5], state, rng=0)
    assert torch.equal(moved["angle"], alone)
    assert not torch.equal(moved["x"], normal.mean)

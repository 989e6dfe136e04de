"""A product of coordinates and types: one network call a step, one ancestral update, the joint law of both parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import sfumato as sf
from sfumato.laws import Categorical, Joint
from sfumato.oracles import Atoms, total_variation
from sfumato.processes import Gaussian, Jump, Product, absorbing, uniform
from sfumato.schedules import at

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
COORDINATES = Gaussian(sf.schedules.get("cosine"))
KERNELS = {"absorbing": absorbing(4), "uniform": uniform(3)}


@dataclass
class Network:
    """The exact belief about both parts, from both, in one call; ``apart``: each from its own part alone."""

    process: Product
    apart: bool = False
    calls: list[int] = field(default_factory=list)

    def __call__(self, x_t: dict[str, Tensor], t: float, cond: Any = None) -> Joint:
        self.calls.append(len(x_t["x"]))
        kinds: Any = self.process.parts["kind"]
        alpha, sigma = at(COORDINATES.schedule, t)
        near = -((x_t["x"][:, None] - alpha * PLACES) ** 2).sum((2, 3)) / (2 * sigma**2)
        reach = kinds.kernel.columns(x_t["kind"], kinds.signal(t), torch.float64)
        shown = sum(reach[:, site][:, TYPES[:, site]] for site in range(2))
        logs = [near, shown] if self.apart else [near + shown] * 2
        place, kind = (log.add(WEIGHTS.log()).log_softmax(1) for log in logs)
        tokens = torch.einsum("bn,nlk->blk", kind.exp(), one_hot(TYPES, kinds.kernel.size).double())
        return Joint({"x": Atoms(place, PLACES.flatten(1), (2, 2)), "kind": Categorical(tokens.log(), kinds.space)})


def tables(kernel: str, steps: int, n: int, apart: bool = False) -> tuple[Tensor, Network]:
    """The law of (places, types) that the ancestral sampler writes, ``[places, type 1, type 2]``, and its network."""
    process = Product({"x": COORDINATES, "kind": Jump(KERNELS[kernel], sf.schedules.get("flow"))})
    like = {"x": torch.zeros(n, 2, 2).double(), "kind": torch.zeros(n, 2, dtype=torch.int64)}
    network = Network(process, apart)
    grid = sf.grids.uniform(COORDINATES.schedule, steps)
    x1 = process.prior(like).draw(sf.Stream(0))
    x = sf.sample(network, process, sf.samplers.get("ddpm"), grid, x1, rng=1)
    gap = (x["x"][:, None] - PLACES[[0, 2, 4]]).abs().amax((2, 3))
    assert float(gap.amin(1).max()) < 1e-9  # every sample is one of the three shapes
    index = (gap.argmin(1) * 3 + x["kind"][:, 0]) * 3 + x["kind"][:, 1]
    return torch.bincount(index, minlength=27).reshape(3, 3, 3).double() / n, network


def truth() -> Tensor:
    table = torch.zeros(3, 3, 3).double()
    for weight, shape, (a, b) in zip(WEIGHTS, (0, 0, 1, 1, 2), TYPES.tolist(), strict=True):
        table[shape, a, b] += weight
    return table


@pytest.mark.parametrize("kernel", KERNELS)
def test_coordinates_and_types_cost_one_network_call_a_step(kernel: str) -> None:
    n, steps = 6000, 150
    found, network = tables(kernel, steps, n)
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

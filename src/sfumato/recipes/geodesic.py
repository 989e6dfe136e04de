"""Riemannian flow matching: flow matching on a torus, a sphere or the rotations, along geodesics.

Chen, Lipman 2023, "Flow Matching on General Geometries", https://arxiv.org/abs/2302.03660.

* path (eq. 13): ``x_t`` is on the geodesic from the data to a uniform draw of the manifold (``t`` runs towards the
  draw here);
* loss (eq. 14): the squared length of the difference of two tangent vectors at ``x_t``, the network's and the path's;
* sampling: the same deterministic bridge as everywhere, ``ddim``, which follows geodesics: no state leaves its space.

Data: ``torsions``, ``quakes``, ``rotations`` (``sfumato list data``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sfumato import schedules
from sfumato.core import Cond
from sfumato.denoisers.manifold import OnManifold, VelocityHead, tangent_loss
from sfumato.processes.geodesic import Geodesic
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.settings import Optimisation, Reporting, Sampling, require
from sfumato.training.times import Uniform


@final
@dataclass(frozen=True)
class PointNetwork:
    """The perceptron: ``depth`` residual blocks of ``width`` units."""

    width: int = 256
    depth: int = 4
    #: Points have no classes here.
    conditional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.depth >= 1, "depth", self.depth, "at least 1 block")


@final
@dataclass(frozen=True)
class Settings:
    """Nothing of its own: the data say which manifold it is."""

    network: PointNetwork = PointNetwork()
    optimisation: Optimisation = Optimisation(batch=512, standardise=False, precision="float32")
    sampling: Sampling = Sampling(sampler="ddim", grid="uniform", sampling_steps=50, clip=False)
    reporting: Reporting = Reporting(grid_columns=32)


def make(recipe: Any, settings: Settings, spec: Mapping[str, Any], classes: tuple[str, ...]) -> Any:
    """A perceptron from the manifold's coordinates to an ambient vector; it keeps the name of its data."""
    import torch

    from sfumato.data import manifolds
    from sfumato.nets.mlp import MLP

    name = str(spec["transform"]["data"])
    state = torch.zeros((1, *(int(v) for v in spec["shape"])))
    coordinates = manifolds.space(name).coordinates(state)
    net: Any = MLP(coordinates.shape[1], state.numel(), settings.network.width, settings.network.depth)
    net.data = name
    return net


def loss(
    denoiser: OnManifold,
    x0: Tensor,
    t: Tensor,
    cond: Cond | None,
    rng: Any = None,
    eps: Tensor | None = None,
    end: Tensor | None = None,
) -> Tensor:
    """:func:`~sfumato.denoisers.manifold.tangent_loss`, whose noise is a draw of the prior."""
    return tangent_loss(denoiser, x0, t, cond, rng, end)


def compose(settings: Settings, net: Any) -> Composition:
    """Geodesics of the data's manifold and a network of tangent vectors, at uniform times."""
    from sfumato.data import manifolds

    process = Geodesic(manifolds.space(net.data), schedules.get("flow"))
    return Composition(OnManifold(net, VelocityHead(process)), Uniform(1e-3), loss)


RECIPE = Recipe(
    name="geodesic",
    title="Riemannian flow matching along geodesics: torus, sphere, rotations",
    paper="Chen and Lipman 2023, arXiv 2302.03660",
    defaults=Settings(),
    compose=compose,
    kind="points",
    make=make,
)

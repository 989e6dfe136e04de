"""Laws 4, 11, 12 for processes without a chain, Cold and Heat, on a finite data set; their networks as denoisers.

The oracle knows the posterior over its images exactly: of a degraded one by which images could have become it, of a
blurred one with noise by Bayes' rule.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.manifold import EndpointHead, OnManifold, ScoreHead, VelocityHead
from sfumato.denoisers.restorers import cold_restorer, heat_restorer
from sfumato.laws import Dirac, Through
from sfumato.laws.manifold import Along
from sfumato.nets.mlp import MLP
from sfumato.oracles import Atoms
from sfumato.processes import Brownian, Circles, Cold, Geodesic, Heat, Rotations
from sfumato.processes.cold import naive
from sfumato.processes.heat import Restoration, Widths
from sfumato.spaces import SO3, Simplex, Sphere, Torus
from sfumato.testing import (
    check_denoiser,
    check_driver,
    check_ends,
    check_pool,
    check_recovery,
    check_streams,
)

IMAGES = sf.Stream(3).normal((24, 1, 4, 4)).double()
SHAPE = (1, 4, 4)
#: Two images that differ by more than this are told apart where no noise hides them.
SHARP = 1e-5


def uniform(n: int) -> Atoms:
    """A law over the images, all alike."""
    return Atoms(torch.zeros(n, len(IMAGES)).double().log_softmax(1), IMAGES.flatten(1), SHAPE)


@dataclass(frozen=True)
class Images:
    """The finite data set: samples and perfect models.  ``noise``: of the process's marginals; ``whole``: models state
    the law of the image in place of its mean."""

    noise: float
    whole: bool = False

    def sample(self, n: int, rng: Any) -> Tensor:
        return uniform(n).draw(sf.randomness.as_rng(rng))

    def belief(self, process: Any, x: Tensor, t: float) -> Atoms:
        ways = process.marginal(IMAGES, t).point().flatten(1)
        off = (x.flatten(1)[:, None] - ways).square().sum(2)
        return Atoms((-off / (2 * self.noise**2)).log_softmax(1), IMAGES.flatten(1), SHAPE)

    def posterior(self, process: Any) -> Any:
        return lambda x, t, cond=None: self.belief(process, x, t)

    def denoiser(self, process: Any) -> Any:
        if self.whole:
            return self.posterior(process)
        stated: Callable[[Tensor], Any] = Dirac
        if isinstance(process, Heat):
            stated = functools.partial(Restoration, delta=process.delta)
        return lambda x, t, cond=None: stated(self.belief(process, x, t).point())


def begun(process: Any) -> Callable[[Tensor], Through]:
    """The law at ``t = 1``: an image, then its marginal."""
    return lambda like: Through(uniform(len(like)), lambda image: process.marginal(image.x, 1.0))


def cold(name: str, **own: Any) -> Cold:
    degrade = sf.degradations.build("pixelate:coarsest=1" if name == "pixelate" else name)
    return Cold(degrade, begun(Cold(degrade)), **own)


def heat() -> Heat:
    process = Heat(Widths(0.5, 3.0, 20), 0.3, 0.375)
    return Heat(process.widths, process.sigma, process.delta, begun(process))


CASES: dict[str, tuple[Any, Images]] = {name: (cold(name), Images(SHARP)) for name in sf.degradations.names()}
CASES["blur, algorithm 1"] = (cold("blur", step=naive), Images(SHARP))
CASES["heat"] = (heat(), Images(0.3))
ZERO = torch.zeros(1, *SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_the_exact_posterior_recovers_the_images(name: str) -> None:
    process, oracle = CASES[name]
    check_recovery(sf.samplers.get("ddpm"), process, oracle, ZERO, steps=12, n=1500)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("name", CASES)
def test_ends_and_driver(name: str, sampler: str) -> None:
    process, oracle = CASES[name]
    check_ends(sf.samplers.get(sampler), process, oracle, ZERO)
    check_driver(sf.samplers.get(sampler), process, oracle, ZERO)


@pytest.mark.parametrize("name", CASES)
def test_streams(name: str) -> None:
    """Where all images end alike (faded, hidden) chance is in the belief alone, so the models state it."""
    process, oracle = CASES[name]
    check_streams(sf.samplers.get("ddpm"), process, Images(oracle.noise, whole=True), ZERO)


@pytest.mark.parametrize("name", ["blur", "blur, algorithm 1", "pixelate"])
def test_what_ends_apart_is_recovered_without_chance(name: str) -> None:
    process, oracle = CASES[name]
    check_recovery(sf.samplers.get("ddim"), process, oracle, ZERO, steps=12, n=1500)


def test_the_kit_sees_a_belief_that_prefers_an_image() -> None:
    """A model that prefers one image changes the law of what is drawn."""
    process, oracle = CASES["heat"]

    class Partial:
        """The oracle's samples, and a model that takes the first image for seven times as likely as any other."""

        sample = oracle.sample

        def posterior(self, process: Any) -> Any:
            extra = torch.zeros(len(IMAGES)).double()
            extra[0] = 2.0

            def model(x: Tensor, t: Any, cond: Any = None) -> Atoms:
                q = oracle.belief(process, x, t)
                return Atoms((q.logr + extra).log_softmax(1), q.atoms, q.shape)

            return model

    with pytest.raises(AssertionError, match="4 recovery"):
        check_recovery(sf.samplers.get("ddpm"), process, Partial(), ZERO, steps=12, n=1500)


# ----------------------------------------------------------------------------------------------- networks and heads


def restores(view: Tensor, t: Tensor, cond: Any = None) -> Tensor:
    """A network for images: something of its view and its time."""
    return 0.3 * torch.tanh(view[:, :1]) + 0.1 * t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", CASES)
def test_restorers_are_denoisers_whose_beliefs_pool(name: str) -> None:
    process, _ = CASES[name]
    made = heat_restorer(restores, process) if name == "heat" else cold_restorer(restores, process, 0.01)
    check_denoiser(made, process, IMAGES[:6])
    check_denoiser(made, process, IMAGES[:6].float())
    check_pool([made(IMAGES[:6], 0.7), made(IMAGES[6:12], 0.7)], sf.Stream(0))


HEADS: dict[str, Any] = {
    "velocity, torus": VelocityHead(Geodesic(Torus())),
    "velocity, sphere": VelocityHead(Geodesic(Sphere())),
    "velocity, so3": VelocityHead(Geodesic(SO3())),
    "velocity, simplex": VelocityHead(Geodesic(Simplex())),
    "endpoint, sphere": EndpointHead(Geodesic(Sphere())),
    "score, torus": ScoreHead(Brownian(Circles())),
    "score, so3": ScoreHead(Brownian(Rotations())),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_on_manifolds_are_denoisers_whose_beliefs_pool(name: str) -> None:
    head = HEADS[name]
    space, shape = (
        head.process.space,
        {"torus": (2,), "sphere": (3,), "so3": (3, 3), "simplex": (3,)}[name.split(", ")[1]],
    )
    x0 = space.uniform(torch.zeros(6, *shape, dtype=torch.float64), sf.Stream(1))
    net = MLP(space.coordinates(x0).shape[1], x0[0].numel(), width=16, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    model = OnManifold(net.double(), head)
    check_denoiser(model, head.process, x0, tolerance=1e-5)
    with torch.no_grad():
        laws = [model(x0, 0.5), Along(x0, 0.3 * space.noise(x0, sf.Stream(2)), space)]
    check_pool(laws, sf.Stream(3))
